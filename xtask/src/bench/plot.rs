//! Tables as a picture (SVG), one below the other: how a figure grows, where the first condition is a number; else what
//! each round has come to, as a strip of points.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use plotters::coord::ranged1d::AsRangedCoord;
use plotters::prelude::*;

use super::report::{Row, Table};

/// Of a table's part of the picture, in pixels.
const WIDTH: u32 = 900;
const HEIGHT: u32 = 420;
/// Of the names at its right.
const LEGEND: u32 = 230;

/// As many contenders can be told apart.
const COLORS: [RGBColor; 9] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xe3, 0x77, 0xc2),
    RGBColor(0x7f, 0x7f, 0x7f),
    RGBColor(0xbc, 0xbd, 0x22),
];

/// Draws the first figure of each table into the picture of a suite in a directory, which is made if need be.
///
/// # Errors
///
/// When the file cannot be written.
pub fn draw(dir: &Path, suite: &str, tables: &[Table]) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    let path = dir.join(format!("{suite}.svg"));
    let tables: Vec<&Table> = tables.iter().filter(|table| !table.rows.is_empty()).collect();
    let root = SVGBackend::new(&path, (WIDTH, HEIGHT * tables.len() as u32)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| anyhow!("{error}"))?;
    for (area, table) in root.split_evenly((tables.len().max(1), 1)).iter().zip(tables) {
        let result = if grows(table) { growth(area, table) } else { strips(area, table) };
        result.map_err(|error| anyhow!("{}: {error}", table.name))?;
    }
    root.present().with_context(|| format!("draw {}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// The first condition as a number.
fn at(row: &Row) -> Option<f64> {
    row.keys.first()?.parse().ok()
}

/// Whether the first condition is a number that grows, and the only one.
fn grows(table: &Table) -> bool {
    let numbers: BTreeSet<_> = table.rows.iter().map(|row| row.keys.first()).collect();
    !table.strip
        && table.keys.len() == 1
        && numbers.len() > 1
        && table.rows.iter().all(|row| at(row).is_some())
}

/// Contenders in the order of their first rows.
fn contenders(table: &Table) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for row in &table.rows {
        if !names.contains(&row.contender.as_str()) {
            names.push(&row.contender);
        }
    }
    names
}

/// From the smallest to the largest figure, with some room, for an axis by powers of ten; nothing is below a tenth.
fn range(figures: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = figures
        .filter(|figure| figure.is_finite())
        .fold((f64::INFINITY, 0.1), |(low, high): (f64, f64), figure| (low.min(figure), high.max(figure)));
    low.clamp(0.1, high) / 1.5..high * 1.5
}

/// A curve for each contender, with the quartiles, on axes by powers of ten.
fn growth(area: &Area<'_>, table: &Table) -> Drawn {
    let x = range(table.rows.iter().filter_map(at));
    let y = range(table.rows.iter().flat_map(|row| row.figures[0].quartiles()));
    let mut chart = chart(area, table, x.log_scale(), y.clone().log_scale())?;
    chart
        .configure_mesh()
        .x_desc(table.keys[0])
        .y_desc(table.figures[0].heading)
        .x_label_formatter(&|x| format!("{x}"))
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for (name, color) in contenders(table).into_iter().zip(COLORS.iter().cycle()) {
        let rows = || table.rows.iter().filter(|row| row.contender == name);
        let points = rows().filter_map(|row| Some((at(row)?, row.figures[0].median().max(y.start))));
        chart.draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?;
        chart.draw_series(points.map(|point| Circle::new(point, 3, color.filled())))?;
        chart.draw_series(rows().filter_map(|row| {
            let [low, high] = row.figures[0].quartiles().map(|figure| figure.max(y.start));
            Some(PathElement::new([(at(row)?, low), (at(row)?, high)], color))
        }))?;
    }
    legend(area, table)
}

/// The figure of each round, a column for each condition and contender.
fn strips(area: &Area<'_>, table: &Table) -> Drawn {
    let rows = table.by_conditions();
    let y = range(rows.iter().flat_map(|row| row.figures[0].all().iter().copied()));
    let mut chart = chart(area, table, 0.0..rows.len() as f64, y.clone().log_scale())?;
    let label = |x: &f64| rows.get(*x as usize).map(|row| row.keys.join(", ")).unwrap_or_default();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(rows.len())
        .x_label_formatter(&label)
        .y_desc(table.figures[0].heading)
        .y_label_formatter(&|y| format!("{y}"))
        .draw()?;
    for (name, color) in contenders(table).into_iter().zip(COLORS.iter().cycle()) {
        let columns = || rows.iter().zip(0..).filter(|(row, _)| row.contender == name);
        let points = columns().flat_map(|(row, column)| {
            let figures = row.figures[0].all();
            let count = figures.len() as f64;
            figures.iter().zip(0..).map(move |(figure, i)| {
                let x = f64::from(column) + 0.2 + 0.6 * (f64::from(i) + 0.5) / count;
                (x, *figure)
            })
        });
        chart.draw_series(
            points.map(|(x, figure)| Circle::new((x, figure.max(y.start)), 3, color.filled())),
        )?;
        chart.draw_series(columns().map(|(row, column)| {
            let median = row.figures[0].median().max(y.start);
            let column = f64::from(column);
            PathElement::new([(column + 0.1, median), (column + 0.9, median)], color.stroke_width(2))
        }))?;
    }
    legend(area, table)
}

type Chart<'a, X, Y> = ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>;

fn chart<'a, X, Y>(
    area: &Area<'a>,
    table: &Table,
    x: X,
    y: Y,
) -> Result<Chart<'a, X::CoordDescType, Y::CoordDescType>, Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
{
    Ok(ChartBuilder::on(area)
        .caption(&table.title, ("sans-serif", 16))
        .margin(12)
        .margin_right(LEGEND)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(x, y)?)
}

/// Whose color is whose, at the right of the chart.
fn legend(area: &Area<'_>, table: &Table) -> Drawn {
    for ((name, color), place) in contenders(table).into_iter().zip(COLORS.iter().cycle()).zip(0..) {
        let (x, y) = (WIDTH as i32 - LEGEND as i32 + 15, 50 + 20 * place);
        area.draw(&Rectangle::new([(x, y), (x + 10, y + 10)], color.filled()))?;
        area.draw(&Text::new(name.to_owned(), (x + 16, y - 1), ("sans-serif", 13)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::Figure;

    #[test]
    fn a_picture_names_all_contenders_and_shows_every_round() {
        let mut table = Table {
            name: "cost",
            title: "Cost".to_owned(),
            keys: vec!["flows"],
            figures: vec![Figure { name: "ns", heading: "ns a packet", decimals: 0 }],
            ..Table::default()
        };
        for (flows, cost) in [("1", 10.0), ("1000", 100.0), ("1000", -3.0)] {
            table.push(&[flows.to_owned()], "fwha", &[cost]);
            table.push(&[flows.to_owned()], "kernel", &[cost * 9.0]);
        }
        let mut strip = Table { keys: Vec::new(), name: "strip", ..table.clone() };
        strip.rows.clear();
        [1.0, 2.0, 3.0].iter().for_each(|figure| strip.push(&[], "fwha", &[*figure]));
        let dir = std::env::temp_dir().join(format!("fwha-plot-{}", std::process::id()));
        draw(&dir, "test", &[table, strip]).unwrap();
        let picture = fs::read_to_string(dir.join("test.svg")).unwrap();
        fs::remove_dir_all(&dir).unwrap();
        assert!(picture.contains("kernel") && picture.contains("ns a packet"), "{picture}");
        // Two points of each of two curves, and three rounds.
        assert_eq!(picture.matches("<circle").count(), 2 * 2 + 3);
    }
}

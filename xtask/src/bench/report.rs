//! What a suite has found: tables as text, as JSON, as pictures.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::figures::Series;
use super::plot;

/// All that a suite has found.
pub struct Report {
    suite: &'static str,
    machine: String,
    /// What one must know to read it.
    pub notes: Vec<String>,
    /// The figures.
    pub tables: Vec<Table>,
}

/// Figures of contenders under the same conditions.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// For programs.
    pub name: &'static str,
    /// For people.
    pub title: String,
    /// Names of the conditions; a number that grows is the first, and the axis of the picture.
    pub keys: Vec<&'static str>,
    /// What is measured; the first is compared, and drawn.
    pub figures: Vec<Figure>,
    /// Whether each round is shown in the picture, even where a number grows.
    pub strip: bool,
    /// With whom others are compared.
    pub rivals: Vec<&'static str>,
    /// In the order in which they came.
    pub rows: Vec<Row>,
}

/// A figure that is measured.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// For programs, with its unit.
    pub name: &'static str,
    /// For people, with its unit.
    pub heading: &'static str,
    /// How exactly it is printed.
    pub decimals: usize,
}

/// Of the packets that were sent in a round, the part that got to where they should. Figures for each packet are for each that
/// was sent, and one that was lost has not cost all of its way: where too few arrived the table says how many, beside the
/// contender's first figure.
pub const ARRIVED: Figure = Figure { name: "arrived_percent", heading: "arrived, %", decimals: 1 };
/// Fewer are too few.
const ARRIVED_MIN: f64 = 99.0;

/// What one contender has come to under some conditions.
#[derive(Clone, Debug)]
pub struct Row {
    /// The conditions.
    pub keys: Vec<String>,
    /// The contender.
    pub contender: String,
    /// As many as the table has figures; one for each round.
    pub figures: Vec<Series>,
}

impl Report {
    /// Nothing as yet.
    pub fn new(suite: &'static str) -> Self {
        Self { suite, machine: machine(), notes: Vec::new(), tables: Vec::new() }
    }

    /// Prints it, and writes what was asked for.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn publish(&self, json: Option<&Path>, plot: Option<&Path>) -> Result<()> {
        println!("{}\n{}", self.suite, self.machine);
        for table in &self.tables {
            println!("\n{}", table.text());
        }
        self.notes.iter().for_each(|note| println!("{note}"));
        if let Some(path) = json {
            fs::write(path, format!("{:#}\n", self.json()))
                .with_context(|| format!("write {}", path.display()))?;
        }
        plot.map_or(Ok(()), |dir| plot::draw(dir, self.suite, &self.tables))
    }

    fn json(&self) -> Value {
        let tables: Map<String, Value> =
            self.tables.iter().map(|table| (table.name.to_owned(), table.json())).collect();
        json!({ "suite": self.suite, "machine": self.machine, "notes": self.notes, "tables": tables })
    }
}

impl Table {
    /// Adds the figures of a round.
    pub fn push(&mut self, keys: &[String], contender: &str, figures: &[f64]) {
        assert_eq!(
            (keys.len(), figures.len()),
            (self.keys.len(), self.figures.len()),
            "as the table has them"
        );
        let at = self.rows.iter().position(|row| row.keys == keys && row.contender == contender);
        let at = at.unwrap_or_else(|| {
            let figures = vec![Series::default(); figures.len()];
            self.rows.push(Row { keys: keys.to_vec(), contender: contender.to_owned(), figures });
            self.rows.len() - 1
        });
        self.rows[at].figures.iter_mut().zip(figures).for_each(|(series, figure)| series.push(*figure));
    }

    /// The rows: those under the same conditions follow each other, in the order of `push`.
    pub fn by_conditions(&self) -> Vec<&Row> {
        let mut conditions: Vec<&[String]> = Vec::new();
        for row in &self.rows {
            if !conditions.contains(&row.keys.as_slice()) {
                conditions.push(&row.keys);
            }
        }
        let place = |row: &&Row| conditions.iter().position(|keys| *keys == row.keys);
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(place);
        rows
    }

    /// Round by round, what part of a rival's first figure this is.
    fn of(&self, row: &Row, rival: &str) -> Option<Series> {
        let rival = self.rows.iter().find(|other| other.keys == row.keys && other.contender == rival)?;
        Some(row.figures[0].over(&rival.figures[0]))
    }

    /// The rivals that were measured.
    fn rivals(&self) -> impl Iterator<Item = &&'static str> {
        self.rivals.iter().filter(|rival| self.rows.iter().any(|row| row.contender == **rival))
    }

    /// The least part of its packets that arrived in a round, in per cent, if that is too few.
    fn too_few_arrived(&self, row: &Row) -> Option<f64> {
        let place = self.figures.iter().position(|figure| figure.name == ARRIVED.name)?;
        let least = row.figures[place].quantile(0.0);
        (least < ARRIVED_MIN).then_some(least)
    }

    /// As text.
    pub fn text(&self) -> String {
        let mut lines = vec![Vec::new()];
        lines[0].extend(self.keys.iter().map(|key| (*key).to_owned()));
        lines[0].push(String::new());
        lines[0].extend(self.figures.iter().map(|figure| figure.heading.to_owned()));
        lines[0].extend(self.rivals().map(|rival| format!("of {rival}")));
        let mut last = None;
        for row in self.by_conditions() {
            let repeated = last == Some(&row.keys);
            let mut line: Vec<String> =
                row.keys.iter().map(|key| if repeated { String::new() } else { key.clone() }).collect();
            last = Some(&row.keys);
            line.push(row.contender.clone());
            let first = line.len();
            line.extend(self.figures.iter().zip(&row.figures).map(|(f, series)| cell(series, f.decimals)));
            if let Some(least) = self.too_few_arrived(row) {
                line[first] += &format!(", {least:.1} % arrived");
            }
            line.extend(
                self.rivals().map(|rival| {
                    self.of(row, rival).map_or_else(|| "-".to_owned(), |series| cell(&series, 2))
                }),
            );
            lines.push(line);
        }
        let widths: Vec<usize> = (0..lines[0].len())
            .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = format!("{}; median (quartiles)\n\n", self.title);
        for line in &lines {
            let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if column <= self.keys.len() { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    fn json(&self) -> Value {
        let rows = self.by_conditions().into_iter().map(|row| {
            let mut json = Map::new();
            for (name, key) in self.keys.iter().zip(&row.keys) {
                let number = key.parse::<f64>().ok();
                json.insert((*name).to_owned(), number.map_or_else(|| key.as_str().into(), Value::from));
            }
            json.insert("contender".to_owned(), row.contender.as_str().into());
            for (figure, series) in self.figures.iter().zip(&row.figures) {
                json.insert(figure.name.to_owned(), series.json());
            }
            let of =
                self.rivals().filter_map(|rival| Some(((*rival).to_owned(), self.of(row, rival)?.json())));
            json.insert("of".to_owned(), Value::Object(of.collect()));
            if let Some(least) = self.too_few_arrived(row) {
                json.insert("too_few_arrived_percent".to_owned(), least.into());
            }
            Value::Object(json)
        });
        // In the order of the table: the fields of a row have none that means something.
        let figures = self.figures.iter().map(|f| json!({ "name": f.name, "heading": f.heading }));
        json!({
            "title": self.title, "figures": figures.collect::<Vec<_>>(), "rows": rows.collect::<Vec<_>>(),
        })
    }
}

/// A cell of a table: median and quartiles, if there are any.
fn cell(series: &Series, decimals: usize) -> String {
    if series.len() > 1 { series.spread(decimals) } else { format!("{:.decimals$}", series.median()) }
}

/// The machine and the versions of what is compared, in a line.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    // Those of the machine: the calling thread may be bound to one.
    let cpus = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let version = |program: &str| {
        let output = std::process::Command::new(program).arg("--version").output().ok()?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let words = said.split_whitespace().map(|word| word.trim_matches(['v', ',', '(', ')']));
        let version =
            words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit())).find(|w| w.contains('.'))?;
        // There are two programs of the name iptables.
        let variant = ["(nf_tables)", "(legacy)"].into_iter().find(|variant| said.contains(variant));
        let variant = variant.map(|variant| format!(" {variant}")).unwrap_or_default();
        Some(format!(", {program} {version}{variant}"))
    };
    let versions: String =
        ["nft", "iptables", "conntrackd", "keepalived", "iperf3"].into_iter().filter_map(version).collect();
    format!(
        "{}, {cpus} CPUs, load {load}, Linux {}{versions}",
        model.unwrap_or("unknown processor"),
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contenders_are_compared_under_the_same_conditions_round_by_round() {
        let ns = Figure { name: "ns", heading: "ns a packet", decimals: 0 };
        let mut table = Table {
            name: "cost",
            title: "Cost".to_owned(),
            keys: vec!["flows"],
            figures: vec![ns],
            rivals: vec!["kernel", "nobody"],
            ..Table::default()
        };
        for (flows, contender, cost) in [
            ("1", "fwha", 100.0),
            ("1000", "fwha", 400.0),
            ("1", "kernel", 200.0),
            ("1", "fwha", 300.0),
            ("1", "kernel", 200.0),
        ] {
            table.push(&[flows.to_owned()], contender, &[cost]);
        }
        let rows: Vec<_> =
            table.by_conditions().iter().map(|row| (row.keys[0].as_str(), row.contender.as_str())).collect();
        assert_eq!(rows, [("1", "fwha"), ("1", "kernel"), ("1000", "fwha")]);
        let json = table.json();
        assert_eq!(json.pointer("/rows/0/of/kernel/median"), Some(&1.0.into()));
        assert_eq!(json.pointer("/rows/0/flows"), Some(&1.0.into()));
        assert_eq!(json.pointer("/rows/2/of/kernel"), None);
        let text = table.text();
        assert!(text.contains("of kernel") && !text.contains("nobody"), "{text}");
    }

    #[test]
    fn a_figure_of_packets_that_were_lost_is_marked() {
        let ns = Figure { name: "ns", heading: "ns a packet", decimals: 0 };
        let mut table = Table { figures: vec![ns, ARRIVED], ..Table::default() };
        for arrived in [100.0, 98.5, 100.0] {
            table.push(&[], "kernel", &[200.0, arrived]);
            table.push(&[], "fwha", &[100.0, 99.5]);
        }
        let text = table.text();
        assert!(text.contains("200 (200-200), 98.5 % arrived"), "{text}");
        assert_eq!(text.matches("% arrived").count(), 1, "{text}");
    }
}

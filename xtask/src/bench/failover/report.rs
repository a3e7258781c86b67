//! What the users saw, contender by contender.

use std::fmt::Write as _;

use fwha_tests::traffic::{DialledReport, HeldReport, ProbeReport};
use serde_json::{Map, Value, json};

use super::Contender;
use crate::bench::figures::Series;
use crate::bench::report::{self, Figure, Table};

/// What one blow did.
pub struct Sample {
    pub probe: ProbeReport,
    pub held: HeldReport,
    pub dialled: DialledReport,
    /// The successor's account: ms until it decided, and from there to each step.
    pub steps: Vec<(String, f64)>,
}

/// What a contender did with so many flows.
pub struct Row {
    pub contender: Contender,
    /// Flows that were asked for, and that there were.
    pub flows: u32,
    pub present: u32,
    pub samples: Vec<Sample>,
}

impl Row {
    /// Nothing as yet.
    pub const fn new(contender: Contender, flows: u32) -> Self {
        Self { contender, flows, present: flows, samples: Vec::new() }
    }

    fn series(&self, figure: impl Fn(&Sample) -> f64) -> Series {
        let mut series = Series::default();
        self.samples.iter().for_each(|sample| series.push(figure(sample)));
        series
    }

    fn outages(&self) -> Series {
        self.series(|sample| sample.probe.outage_ms)
    }

    fn sum(&self, figure: impl Fn(&Sample) -> u64) -> u64 {
        self.samples.iter().map(figure).sum()
    }

    /// What part of another contender's outage this is, by the medians.
    fn of(&self, rows: &[Row], other: Contender) -> Option<f64> {
        let other = rows.iter().find(|row| (row.contender, row.flows) == (other, self.flows))?;
        Some(self.outages().median() / other.outages().median()).filter(|part| part.is_finite())
    }

    /// The successor's steps, by name, in their order.
    fn steps(&self) -> Vec<(&str, Series)> {
        let Some(first) = self.samples.first() else { return Vec::new() };
        let of = |sample: &Sample, name: &str| {
            sample.steps.iter().find(|step| step.0 == name).map_or(f64::NAN, |step| step.1)
        };
        first.steps.iter().map(|(name, _)| (name.as_str(), self.series(|sample| of(sample, name)))).collect()
    }
}

/// Who is compared with, and how the column is called.
const RIVALS: [(Contender, &str); 2] =
    [(Contender::KeepalivedFastest, "of 10 ms"), (Contender::Keepalived, "of 1 s")];

/// The table.
pub fn text(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<28} {:>8} {:>5}  {:>22} {:>8} {:>8}  {:>8} {:>8}  {:>18} {:>7}  {:>8} {:>8}\n",
        "",
        "flows",
        "runs",
        "outage",
        "worst",
        "lost",
        "conn.",
        "new",
        "still",
        "worst",
        RIVALS[0].1,
        RIVALS[1].1
    );
    for row in rows {
        let outages = row.outages();
        let still = row.series(|sample| sample.held.wait_max_ms);
        let of = |rival| row.of(rows, rival).map_or("-".to_owned(), |part| format!("{part:.3}"));
        let _ = writeln!(
            text,
            "{:<28} {:>8} {:>5}  {:>22} {:>8.1} {:>8.0}  {:>8} {:>8}  {:>18} {:>7.0}  {:>8} {:>8}",
            row.contender.name(),
            row.present,
            row.samples.len(),
            outages.spread(1),
            outages.quantile(1.0),
            row.series(|sample| sample.probe.lost as f64).median(),
            format!("{}/{}", row.sum(|s| s.held.lost), row.sum(|s| s.held.held)),
            format!("{}/{}", row.sum(|s| s.dialled.failed), row.sum(|s| s.dialled.dialled)),
            still.spread(0),
            still.quantile(1.0),
            of(RIVALS[0].0),
            of(RIVALS[1].0),
        );
    }
    text += "\n\
        outage: without answers to a probe of 1 kHz, ms, median (quartiles) and worst; lost: probes without an answer, median;\n\
        conn.: connections that were lost, of those held; new: of those begun meanwhile, failed;\n\
        still: the longest that a connection waited for an answer, ms, median (quartiles) and worst;\n\
        of 10 ms, of 1 s: the median outage, as part of that of keepalived with such adverts.\n";
    if rows.iter().any(|row| row.present < row.flows) {
        text += "flows: fewer than asked for, because nf_conntrack_max admits no more.\n";
    }
    let accounts = rows.iter().filter(|row| !row.steps().is_empty()).map(|row| {
        let steps = row
            .steps()
            .into_iter()
            .map(|(name, ms)| format!("{name} {:.2} (at most {:.2})", ms.median(), ms.quantile(1.0)));
        format!("{:<28} {:>8}  {}\n", row.contender.name(), row.present, steps.collect::<Vec<_>>().join(", "))
    });
    let accounts: String = accounts.collect();
    if !accounts.is_empty() {
        let _ = write!(
            text,
            "\nThe successor's account: ms from the first lost probe (or the command) until it decided, and from there to each step; medians\n{accounts}"
        );
    }
    text
}

/// The outages of all takeovers, for a picture.
pub fn table(rows: &[Row]) -> Table {
    let rows = rows.iter().map(|row| report::Row {
        keys: vec![row.present.to_string()],
        contender: row.contender.name().to_owned(),
        figures: vec![row.outages()],
    });
    Table {
        name: "outage",
        title: "Outage at a takeover, by the number of flows".to_owned(),
        keys: vec!["flows"],
        figures: vec![Figure { name: "outage_ms", heading: "outage, ms", decimals: 1 }],
        strip: true,
        rows: rows.collect(),
        ..Table::default()
    }
}

/// The same, and more, for programs.
pub fn json(rows: &[Row], machine: &str) -> Value {
    let rows = rows.iter().map(|row| {
        let outages = row.outages();
        let of = |rival| row.of(rows, rival);
        let steps: Map<String, Value> =
            row.steps().into_iter().map(|(name, ms)| (format!("{name}_ms"), ms.json())).collect();
        let each = row.samples.iter().map(|sample| {
            json!({
                "probe": sample.probe, "held": sample.held, "dialled": sample.dialled,
                "steps_ms": sample.steps.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
            })
        });
        json!({
            "contender": row.contender.name(), "flows": row.present, "flows_asked_for": row.flows,
            "outage_ms": outages.json(), "outage_worst_ms": outages.quantile(1.0),
            "still_ms": row.series(|sample| sample.held.wait_max_ms).json(),
            "connections_lost": row.sum(|s| s.held.lost), "connections_held": row.sum(|s| s.held.held),
            "of_keepalived_10_ms": of(RIVALS[0].0), "of_keepalived_1_s": of(RIVALS[1].0),
            "steps": steps, "runs": each.collect::<Vec<_>>(),
        })
    });
    json!({ "machine": machine, "rows": rows.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(contender: Contender, outages_ms: &[f64]) -> Row {
        let mut row = Row::new(contender, 1_000);
        row.samples = outages_ms
            .iter()
            .map(|&outage_ms| Sample {
                probe: ProbeReport { outage_ms, ..ProbeReport::default() },
                held: HeldReport { held: 200, ..HeldReport::default() },
                dialled: DialledReport::default(),
                steps: vec![("decided".to_owned(), outage_ms - 1.0)],
            })
            .collect();
        row
    }

    #[test]
    fn outages_are_compared_with_those_of_keepalived_by_the_medians() {
        let rows = [
            row(Contender::Fwha, &[30.0, 20.0, 25.0]),
            row(Contender::Keepalived, &[3000.0, 2500.0, 2000.0]),
        ];
        assert_eq!(rows[0].of(&rows, Contender::Keepalived), Some(0.01));
        assert_eq!(rows[0].of(&rows, Contender::KeepalivedFastest), None);
        let json = json(&rows, "a machine");
        assert_eq!(json.pointer("/rows/0/outage_worst_ms"), Some(&30.0.into()));
        assert_eq!(json.pointer("/rows/0/steps/decided_ms/median"), Some(&24.0.into()));
        assert!(text(&rows).contains("0/600"));
    }

    #[test]
    fn a_contender_of_which_every_turn_failed_is_a_row_without_figures() {
        let rows = [row(Contender::Fwha, &[20.0]), Row::new(Contender::Keepalived, 1_000)];
        assert_eq!(rows[0].of(&rows, Contender::Keepalived), None);
        assert!(text(&rows).contains(Contender::Keepalived.name()));
    }
}

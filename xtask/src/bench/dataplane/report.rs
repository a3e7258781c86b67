//! The figures as tables and as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use aya::programs::ProgramInfo;
use serde_json::{Value, json};

use super::Plan;
use super::rig::{Hook, Program};
use super::traffic::Kind;
use crate::bench::figures::Series;
use crate::bench::report::{self, Figure, Table};

/// Name of the traffic with which the steps are measured: established TCP over IPv4.
pub const STEPS: &str = "single steps";

/// What an established packet needs, as programs whose cost is added, and one that is part of it and taken off.
const SHARES: [(&str, Program, Option<Program>); 7] = [
    ("parse, build the key", Program::Parse, None),
    ("look up the flow", Program::Lookup, Some(Program::Parse)),
    ("count in the flow", Program::Touch, Some(Program::Lookup)),
    ("read the clock", Program::CoarseClock, None),
    ("count per CPU", Program::Counters, None),
    ("settings and ownership", Program::Settings, None),
    ("rewrite, redirect", Program::Rewrite, None),
];

/// All figures.
#[derive(Default)]
pub struct Report {
    pub plan: Plan,
    pub machine: String,
    pub sizes: Vec<Size>,
    pub memory: Memory,
    pub rows: Vec<Row>,
    pub stages: Vec<Stage>,
    /// Kinds of traffic that the firewall does not take, and the reason.
    pub refused: BTreeMap<&'static str, &'static str>,
    pub events_lost: u64,
}

/// What a program costs with some traffic.
pub struct Row {
    pub traffic: &'static str,
    pub hook: Hook,
    pub flows: u32,
    pub program: Program,
    /// ns a packet: of the empty program with the generator, of all others without.
    pub ns: Series,
    /// Part of what the bare router costs.
    pub of_router: Option<Series>,
}

/// What a step in the opening of a flow costs.
pub struct Stage {
    pub kind: &'static str,
    pub name: Option<&'static str>,
    pub flows: u32,
    /// ns a packet, one figure for each chunk of flows.
    pub ns: Series,
}

/// Size of a program.
#[derive(Clone)]
pub struct Size {
    name: &'static str,
    translated: u32,
    jited: u32,
    verified: u32,
    load: Duration,
}

impl Size {
    /// From what the kernel says of it.
    pub fn new(name: &'static str, info: &ProgramInfo, load: Duration) -> Self {
        Self {
            name,
            translated: info.size_translated().unwrap_or_default(),
            jited: info.size_jitted(),
            verified: info.verified_instruction_count().unwrap_or_default(),
            load,
        }
    }
}

/// Memory of the table of established flows.
#[derive(Default)]
pub struct Memory {
    pub elements: u64,
    pub bytes: u64,
    pub key: u64,
    pub value: u64,
}

impl Memory {
    fn per_flow(&self) -> f64 {
        self.bytes as f64 / self.elements as f64
    }
}

impl Report {
    /// Adds the figures of one more loading, which come in the same order.
    pub fn add(&mut self, load: Self) {
        if self.rows.is_empty() {
            *self = load;
            return;
        }
        for (row, more) in self.rows.iter_mut().zip(load.rows) {
            row.ns.extend(more.ns);
            if let (Some(of), Some(more)) = (&mut row.of_router, more.of_router) {
                of.extend(more);
            }
        }
        for (stage, more) in self.stages.iter_mut().zip(load.stages) {
            stage.ns.extend(more.ns);
        }
        self.events_lost += load.events_lost;
    }

    /// Prints the tables.
    pub fn print(&self) {
        println!("{}", self.machine);
        println!(
            "loaded {} times, each time {} rounds of {} packets; ns a packet without the generator; median (quartiles)\n",
            self.plan.loads, self.plan.rounds, self.plan.packets
        );
        println!(
            "{:<20} {:<4} {:>9}  {:<38} {:>22}  {:>20}",
            "traffic", "hook", "flows", "program", "ns", "of the bare router"
        );
        let mut last = None;
        for row in &self.rows {
            let of = row.of_router.as_ref().filter(|_| row.program == Program::Fwha);
            let of = of.map(|series| series.spread(2)).unwrap_or_default();
            let head = (row.traffic, row.hook, row.flows);
            let (traffic, hook, flows) = if last == Some(head) {
                ("", "", String::new())
            } else {
                (row.traffic, row.hook.name(), row.flows.to_string())
            };
            last = Some(head);
            let line = format!(
                "{traffic:<20} {hook:<4} {flows:>9}  {:<38} {:>22}  {of:>20}",
                row.program.name(),
                row.ns.spread(1)
            );
            println!("{}", line.trim_end());
        }
        self.print_shares();
        println!("\n{:<18} {:>9}  {:<38} {:>22}", "opening a flow", "flows", "packet", "ns");
        for stage in &self.stages {
            println!(
                "{:<18} {:>9}  {:<38} {:>22}",
                stage.kind,
                stage.flows,
                stage.name.unwrap_or_default(),
                stage.ns.spread(0)
            );
        }
        println!(
            "\n{:<18} {:>12} {:>12} {:>12} {:>12}",
            "program", "instructions", "machine code", "verified", "load"
        );
        for size in &self.sizes {
            println!(
                "{:<18} {:>12} {:>10} B {:>12} {:>9} ms",
                size.name,
                size.translated / 8,
                size.jited,
                size.verified,
                size.load.as_millis()
            );
        }
        println!(
            "\nmemory: {:.0} bytes a flow ({} key, {} value; {} MiB for {} flows)",
            self.memory.per_flow(),
            self.memory.key,
            self.memory.value,
            self.memory.bytes >> 20,
            self.memory.elements
        );
        for (kind, reason) in &self.refused {
            println!("{kind}: not measured, fwha drops it ({reason})");
        }
        if self.events_lost > 0 {
            println!("{} events found no room", self.events_lost);
        }
    }

    /// What the steps of an established packet cost at least, and what fwha takes beside them.
    fn print_shares(&self) {
        if self.rows.iter().all(|row| row.traffic != STEPS) {
            return;
        }
        println!("\nan established TCP packet in fwha, IPv4, XDP, by what each step costs alone; ns");
        print!("{:<28}", "flows");
        self.plan.flows.iter().for_each(|flows| print!("{flows:>10}"));
        let mut rest: Vec<f64> = self.plan.flows.iter().map(|&n| self.step(n, Program::Fwha, None)).collect();
        let total = rest.clone();
        for (name, program, without) in SHARES {
            print!("\n{name:<28}");
            for (&flows, rest) in self.plan.flows.iter().zip(&mut rest) {
                let ns = self.step(flows, program, without);
                *rest -= ns;
                print!("{ns:>10.1}");
            }
        }
        for (name, figures) in [("the rest", rest), ("fwha", total)] {
            print!("\n{name:<28}");
            figures.iter().for_each(|ns| print!("{ns:>10.1}"));
        }
        println!();
    }

    /// Median cost of a step, without another that is part of it.
    fn step(&self, flows: u32, program: Program, without: Option<Program>) -> f64 {
        let row = |program| {
            self.rows.iter().find(|row| (row.traffic, row.flows, row.program) == (STEPS, flows, program))
        };
        match (row(program), without.and_then(row)) {
            (Some(row), Some(without)) => row.ns.minus(&without.ns).median(),
            (Some(row), None) => row.ns.median(),
            _ => f64::NAN,
        }
    }

    /// What fwha and the bare router cost as flows grow, for a picture: established packets, then others.
    pub fn tables(&self) -> Vec<Table> {
        let table = |name, title: &str| Table {
            name,
            title: title.to_owned(),
            keys: vec!["flows"],
            figures: vec![Figure { name: "ns", heading: "ns a packet", decimals: 1 }],
            ..Table::default()
        };
        let mut tables = [table("established", "Established flows"), table("others", "Other packets")];
        for row in self.rows.iter().filter(|row| row.traffic != STEPS) {
            let established = Kind::ALL.iter().any(|kind| kind.name() == row.traffic);
            if matches!(row.program, Program::Fwha | Program::Router) {
                tables[usize::from(!established)].rows.push(report::Row {
                    keys: vec![row.flows.to_string()],
                    contender: format!("{}: {}, {}", row.program.name(), row.traffic, row.hook.name()),
                    figures: vec![row.ns.clone()],
                });
            }
        }
        tables.into()
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "traffic": row.traffic, "hook": row.hook.name(), "flows": row.flows,
                "program": row.program.name(), "ns": row.ns.json(),
                "of_router": row.of_router.as_ref().map(Series::json),
            })
        });
        let opening = self.stages.iter().map(|stage| {
            json!({ "kind": stage.kind, "packet": stage.name, "flows": stage.flows, "ns": stage.ns.json() })
        });
        let programs = self.sizes.iter().map(|size| {
            json!({
                "name": size.name, "instructions": size.translated / 8, "machine_code_bytes": size.jited,
                "verified_instructions": size.verified, "load_ms": size.load.as_millis() as u64,
            })
        });
        json!({
            "machine": self.machine, "loads": self.plan.loads, "rounds": self.plan.rounds, "packets": self.plan.packets,
            "rows": rows.collect::<Vec<_>>(), "opening": opening.collect::<Vec<_>>(),
            "programs": programs.collect::<Vec<_>>(),
            "memory": {
                "bytes_per_flow": self.memory.per_flow(), "key_bytes": self.memory.key,
                "value_bytes": self.memory.value, "elements": self.memory.elements, "bytes": self.memory.bytes,
            },
            "refused": self.refused, "events_lost": self.events_lost,
        })
    }
}

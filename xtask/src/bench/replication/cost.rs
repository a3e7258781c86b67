//! CPU, and bytes on the sync link, for each connection: the same packets through both systems.

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Lab, Node};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::Plan;
use super::conntrackd::{Conntrackd, States};
use super::pair::Fwha;
use super::traffic::{Wire, conversation, lasts};
use super::usage::{Cpu, Link, own_cpu, since};
use crate::bench::figures::Series;
use crate::bench::report::{self, Figure, Table};

/// Connections before anything is measured: neighbours are known then, and code is where it is needed.
const WARM_UP: u32 = 200;
/// How long the last connection may take to be forgotten.
const PATIENCE: Duration = Duration::from_secs(30);
/// As the config files have it.
const TIME_WAIT: Duration = Duration::from_secs(1);
/// Between two looks whether it is.
const LOOK: Duration = Duration::from_millis(500);

/// Who replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Fwha,
    /// Another build of it.
    Other,
    Conntrackd(States),
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Fwha => "fwha",
            Self::Other => "fwha, other build",
            Self::Conntrackd(States::All) => "conntrackd",
            Self::Conntrackd(States::Few) => "conntrackd, few states",
        }
    }
}

enum Running {
    Fwha(Fwha),
    Conntrackd(Conntrackd),
}

impl Running {
    fn start(lab: &Lab, contender: Contender) -> Result<Self> {
        Ok(match contender {
            Contender::Fwha | Contender::Other => Self::Fwha(Fwha::start(lab)?),
            Contender::Conntrackd(states) => Self::Conntrackd(Conntrackd::start(lab, states)?),
        })
    }

    fn cpu(&self) -> Result<[Cpu; 2]> {
        let [active, backup] = Node::ALL.map(|node| {
            Cpu::of(match self {
                Self::Fwha(pair) => pair.pid(node),
                Self::Conntrackd(pair) => pair.pid(node),
            })
        });
        Ok([active?, backup?])
    }

    fn replicated(&self, lab: &Lab) -> Result<(u64, u64)> {
        match self {
            Self::Fwha(pair) => pair.replicated(),
            Self::Conntrackd(pair) => pair.replicated(lab),
        }
    }

    fn tracked(&self, lab: &Lab) -> Result<u64> {
        match self {
            Self::Fwha(pair) => pair.flows(Node::Fw1),
            Self::Conntrackd(pair) => pair.flows(lab),
        }
    }

    fn stop(&mut self, lab: &Lab) -> Result<()> {
        match self {
            Self::Fwha(pair) => pair.stop(),
            Self::Conntrackd(pair) => pair.stop(lab),
        }
    }
}

/// Where fewer of the connections reach the backup, it is not they that are measured.
const ARRIVED_MIN: f64 = 0.9;

/// What is measured, for each connection that reached the backup; and how many a second were begun.
const FIGURES: [(&str, &str, usize); 7] = [
    ("active_us", "CPU of the daemon, active, µs", 2),
    ("backup_us", "CPU of the daemon, backup, µs", 2),
    ("daemons_us", "both together, µs", 2),
    ("kernel_us", "packets and events, with the generator, µs", 2),
    ("bytes", "bytes on the sync link", 0),
    ("packets", "packets on the sync link", 2),
    ("per_s", "connections a second that were had", 0),
];

/// A contender's figures.
struct Row {
    contender: Contender,
    figures: [Series; FIGURES.len()],
    /// Flows that reached the backup, of all that there were.
    arrived: Series,
    threads: Vec<(String, f64)>,
}

/// Measures it.
pub fn run(
    lab: &mut Lab,
    plan: &Plan,
    spinner: &ProgressBar,
    pictures: &mut Vec<Table>,
) -> Result<(String, Value)> {
    let mut contenders = vec![Contender::Fwha];
    if plan.other.is_some() {
        contenders.push(Contender::Other);
    }
    if plan.rival {
        contenders.push(Contender::Conntrackd(States::All));
        // Once is enough to see that it works.
        if plan.rounds > 1 {
            contenders.push(Contender::Conntrackd(States::Few));
        }
    }
    let mut rows: Vec<Row> = contenders
        .iter()
        .map(|&contender| Row {
            contender,
            figures: Default::default(),
            arrived: Series::default(),
            threads: Vec::new(),
        })
        .collect();
    for round in 0..plan.rounds {
        let mut order: Vec<&mut Row> = rows.iter_mut().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for row in order {
            let name = row.contender.name();
            spinner.set_message(format!("cost, round {} of {}: {name}", round + 1, plan.rounds));
            if let Some(dir) = plan.other.as_ref().filter(|_| row.contender == Contender::Other) {
                lab.take_programs_from(dir.clone());
            }
            let measured = measure(lab, plan, row).context(name);
            lab.take_programs_from(plan.bin_dir.clone());
            measured?;
        }
    }
    pictures.push(table(&rows));
    Ok((text(plan, &rows), json(plan, &rows)))
}

/// Both daemons' CPU for each connection, for a picture.
fn table(rows: &[Row]) -> Table {
    let (name, heading, decimals) = FIGURES[2];
    let rows = rows.iter().map(|row| report::Row {
        keys: Vec::new(),
        contender: row.contender.name().to_owned(),
        figures: vec![row.figures[2].clone()],
    });
    Table {
        name: "cost",
        title: "CPU of both daemons for each connection".to_owned(),
        figures: vec![Figure { name, heading, decimals }],
        rows: rows.collect(),
        ..Table::default()
    }
}

fn measure(lab: &Lab, plan: &Plan, row: &mut Row) -> Result<()> {
    let mut running = Running::start(lab, row.contender)?;
    let wire = Wire::through(lab, Node::Fw1)?;
    let flows = plan.rate * plan.seconds;
    let steps = conversation();
    wire.play(0..WARM_UP, plan.rate, &steps)?;
    gone(lab, &running)?;
    let had = running.replicated(lab)?.1;

    // What the daemons do without a connection.
    let (before, began) = (running.cpu()?, Instant::now());
    sleep(Duration::from_secs(plan.seconds.min(2).into()));
    let idle = since(&running.cpu()?, &before);
    let idle_for = began.elapsed().as_secs_f64();

    let (before, link, own, began) = (running.cpu()?, Link::of(lab, Node::Fw1)?, own_cpu()?, Instant::now());
    let took = wire.play(WARM_UP..WARM_UP + flows, plan.rate, &steps)?;
    let own = own_cpu()? - own;
    gone(lab, &running)?;
    let used = since(&running.cpu()?, &before);
    let link = Link::of(lab, Node::Fw1)?.since(link);
    let lasted = began.elapsed().as_secs_f64() / idle_for;

    let arrived = (running.replicated(lab)?.1 - had) as f64 / f64::from(flows);
    ensure!(arrived >= ARRIVED_MIN, "of {flows} connections only {:.1} % reached the backup", arrived * 1e2);
    row.arrived.push(arrived);
    // One that was told twice is still one.
    let count = f64::from(flows) * arrived.min(1.0);
    let net = |i: usize| (used[i].total() as f64 - idle[i].total() as f64 * lasted) / count / 1e3;
    let figures = [
        net(0),
        net(1),
        net(0) + net(1),
        own as f64 / count / 1e3,
        link.bytes as f64 / count,
        link.packets as f64 / count,
        f64::from(flows) / (took - lasts(&steps)).as_secs_f64(),
    ];
    row.figures.iter_mut().zip(figures).for_each(|(series, figure)| series.push(figure));
    row.threads.clear();
    for (i, node) in Node::ALL.into_iter().enumerate() {
        for (thread, ns) in used[i].threads() {
            row.threads.push((format!("{node} {thread}"), ns as f64 / count / 1e3));
        }
    }
    running.stop(lab)
}

/// Waits until both nodes have forgotten all flows.
fn gone(lab: &Lab, running: &Running) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    // By then the last one's time is up.
    sleep(TIME_WAIT + LOOK);
    if let Running::Conntrackd(pair) = running {
        // The kernel collects what has expired when it finds the time, up to a minute later. In one go is cheaper.
        pair.flush(lab, Node::Fw1)?;
    }
    loop {
        sleep(LOOK);
        let left = (running.tracked(lab)?, running.replicated(lab)?.0);
        if left == (0, 0) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "flows that do not end: {left:?}");
    }
}

fn text(plan: &Plan, rows: &[Row]) -> String {
    let mut text = format!(
        "TCP connections, {} a second asked for, {} rounds of {} s; for each that reached the backup; median (quartiles)\n\n",
        plan.rate, plan.rounds, plan.seconds
    );
    let _ = write!(text, "{:<46}", "");
    for row in rows {
        let _ = write!(text, " {:>22}", row.contender.name());
    }
    for rival in rows.iter().skip(1) {
        let _ = write!(text, " {:>28}", format!("fwha / {}", rival.contender.name()));
    }
    text.push('\n');
    for (i, (_, name, decimals)) in FIGURES.iter().enumerate() {
        let _ = write!(text, "{name:<46}");
        for row in rows {
            let _ = write!(text, " {:>22}", row.figures[i].spread(*decimals));
        }
        for rival in rows.iter().skip(1) {
            let _ = write!(text, " {:>28}", rows[0].figures[i].over(&rival.figures[i]).spread(2));
        }
        text.push('\n');
    }
    let _ = write!(text, "{:<46}", "flows that reached the backup");
    for row in rows {
        let _ = write!(text, " {:>22}", row.arrived.spread(4));
    }
    text.push('\n');
    for row in rows {
        let _ = write!(text, "\nthreads of {}, µs a connection, idle included:", row.contender.name());
        let mut threads: Vec<_> = row.threads.iter().filter(|t| t.1 >= 0.05).collect();
        threads.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (thread, us) in threads {
            let _ = write!(text, " {thread} {us:.2},");
        }
        text.pop();
    }
    text.push('\n');
    text
}

fn json(plan: &Plan, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        let figures = FIGURES.iter().zip(&row.figures);
        let mut json: serde_json::Map<String, Value> =
            figures.map(|((name, ..), series)| ((*name).to_owned(), series.json())).collect();
        json.insert("contender".to_owned(), row.contender.name().into());
        json.insert("arrived".to_owned(), row.arrived.json());
        Value::Object(json)
    });
    json!({ "rate": plan.rate, "seconds": plan.seconds, "rows": rows.collect::<Vec<_>>() })
}

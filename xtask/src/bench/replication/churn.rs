//! More connections than packets can be had for: the daemon's own program on fw1 is run on them in the kernel
//! (`BPF_PROG_TEST_RUN`), behind the generator of `bench dataplane`. Flows, events, replication and expiry are as ever; only
//! drivers and cables see nothing.

use std::fmt::Write as _;
use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun as _, TestRunOptions, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use fwha_common::settings::name;
use fwha_tests::lab::{Host, Lab, Node};
use indicatif::ProgressBar;
use nix::net::if_::if_nametoindex;
use serde_json::{Value, json};

use super::Plan;
use super::lag::Lag;
use super::pair::{Fwha, LONG};
use super::traffic::{Wire, conversation, mac};
use super::usage::{Cpu, resident, since};
use crate::bench::dataplane::order::Order;
use crate::bench::dataplane::rig::{self, Action, Hook, Words};
use crate::bench::figures::Series;
use crate::build_ebpf;

/// The schedule's grain.
const TICK: Duration = Duration::from_millis(10);
/// In this time the last flow has expired, and been swept.
const EXPIRY: Duration = Duration::from_millis(2_500);
/// So long the daemons are watched without a connection.
const IDLE: Duration = Duration::from_secs(1);
/// Ticks that a connection lasts.
const LASTS: u32 = 30;
/// The generator's slot for the program.
const SLOT: u32 = 0;
/// Drivers and queues are warm, and neighbours known, after so many real connections.
const WARM_UP: u32 = 100;

const SYN: u64 = 0x02;
const RST: u64 = 0x04;
const ACK: u64 = 0x10;

/// Where a smaller part of the connections comes to be, it is not they that are measured.
const CREATED_MIN: f64 = 0.9;

/// What is measured, for each rate.
const FIGURES: [(&str, &str, usize); 14] = [
    ("per_s", "connections a second that were had", 0),
    ("lag_p50_ms", "lag, median, ms", 1),
    ("lag_p99_ms", "lag, 99 %, ms", 1),
    ("created", "flows created, of those offered", 4),
    ("events_lost", "events that found no room in the ring buffer", 0),
    ("overflow", "changes that found no room in the queue", 0),
    ("differs", "digests that differed", 0),
    ("retransmitted", "flows sent again", 0),
    ("settled_s", "until both are equal and empty, s", 1),
    ("active_us", "CPU of the daemon for each, active, µs", 2),
    ("sweeper_us", "of which its sweeper, µs", 2),
    ("backup_us", "CPU of the daemon for each, backup, µs", 2),
    ("active_mb", "memory of the active daemon afterwards, MB", 0),
    ("backup_mb", "memory of the backup daemon afterwards, MB", 0),
];

/// What one build did at one rate.
struct Row {
    /// It is the other build.
    other: bool,
    rate: u32,
    figures: [Series; FIGURES.len()],
}

impl Row {
    fn heading(&self) -> String {
        format!("{}{}", self.rate, if self.other { ", other build" } else { " a second" })
    }
}

/// Measures it.
pub fn run(lab: &mut Lab, plan: &Plan, spinner: &ProgressBar) -> Result<(String, Value)> {
    let object = build_ebpf::build_package("fwha-bench-ebpf")?;
    let object = fs::read(&object).with_context(|| format!("read {}", object.display()))?;
    let mut builds = vec![(false, &plan.bin_dir)];
    builds.extend(plan.other.as_ref().map(|dir| (true, dir)));
    let mut rows: Vec<Row> = Vec::new();
    for &(other, _) in &builds {
        rows.extend(plan.churn_rates.iter().map(|&rate| Row { other, rate, figures: Default::default() }));
    }
    for round in 0..plan.churns {
        for &(other, dir) in &builds {
            lab.take_programs_from(dir.clone());
            let rows = rows.iter_mut().filter(|row| row.other == other);
            let measured = turn(lab, plan, &object, rows, |row| {
                let heading = row.heading();
                spinner.set_message(format!("connections, {heading}, {} of {}", round + 1, plan.churns));
            });
            lab.take_programs_from(plan.bin_dir.clone());
            measured?;
        }
        // Each build is the first one as often as the last one.
        builds.reverse();
    }
    Ok((text(plan, &rows), json(plan, &rows)))
}

/// One build has its turn.
fn turn<'a>(
    lab: &Lab,
    plan: &Plan,
    object: &[u8],
    rows: impl Iterator<Item = &'a mut Row>,
    tell: impl Fn(&Row),
) -> Result<()> {
    let mut fwha = Fwha::start(lab)?;
    Wire::through(lab, Node::Fw1)?.play(0..WARM_UP, 1_000, &conversation())?;
    let mut injector = Injector::new(lab, &fwha, object)?;
    for row in rows {
        tell(row);
        let new = measure(lab, plan, &mut fwha, &mut injector, row.rate)?;
        row.figures.iter_mut().zip(new).for_each(|(series, figure)| series.push(figure));
    }
    fwha.stop()
}

fn measure(
    lab: &Lab,
    plan: &Plan,
    fwha: &mut Fwha,
    injector: &mut Injector,
    rate: u32,
) -> Result<[f64; FIGURES.len()]> {
    empty(lab, fwha)?;
    let counters = |fwha: &Fwha| -> Result<[u64; 5]> {
        Ok([
            fwha.stat(Node::Fw1, "flows.flows_created")?,
            fwha.stat(Node::Fw1, "flows.events_lost")?,
            fwha.count(Node::Fw1, "overflow")?,
            fwha.count(Node::Fw2, "digest_differs")?,
            fwha.count(Node::Fw1, "retransmitted")?,
        ])
    };
    let cpu = |fwha: &Fwha| -> Result<[Cpu; 2]> {
        Ok([Cpu::of(fwha.pid(Node::Fw1))?, Cpu::of(fwha.pid(Node::Fw2))?])
    };
    // What the daemons do without a connection.
    let (idle_before, began) = (cpu(fwha)?, Instant::now());
    sleep(IDLE);
    let idle = since(&cpu(fwha)?, &idle_before);
    let idle_for = began.elapsed().as_secs_f64();

    let (before, cpu_before, began) = (counters(fwha)?, cpu(fwha)?, Instant::now());
    let lag = Lag::of(fwha.pair().node(Node::Fw1))?;
    let flows = rate * plan.churn_seconds;
    let took = lab.within(Host::Fw1, || injector.play(flows, rate))??;
    let settling = Instant::now();
    // Not to ask costs the daemons nothing.
    sleep(EXPIRY);
    let used = since(&cpu(fwha)?, &cpu_before);
    let lasted = began.elapsed().as_secs_f64() / idle_for;
    let lag = Lag::of(fwha.pair().node(Node::Fw1))?.since(&lag);
    empty(lab, fwha)?;
    let settled = settling.elapsed().as_secs_f64();
    let rise: Vec<f64> = counters(fwha)?.iter().zip(before).map(|(now, then)| (now - then) as f64).collect();
    // All figures are for each that came to be.
    let (created, offered) = (rise[0], f64::from(flows));
    ensure!(created >= offered * CREATED_MIN, "of {flows} connections only {created} came to be");
    let us =
        |of: fn(&Cpu) -> u64, i: usize| (of(&used[i]) as f64 - of(&idle[i]) as f64 * lasted) / created / 1e3;
    Ok([
        created / took.as_secs_f64(),
        lag.quantile(0.5),
        lag.quantile(0.99),
        created / offered,
        rise[1],
        rise[2],
        rise[3],
        rise[4],
        settled,
        us(Cpu::total, 0),
        us(sweeper, 0),
        us(Cpu::total, 1),
        resident(fwha.pid(Node::Fw1))? as f64 / 1e6,
        resident(fwha.pid(Node::Fw2))? as f64 / 1e6,
    ])
}

/// Of which by the sweeper.
fn sweeper(cpu: &Cpu) -> u64 {
    cpu.threads().filter(|(name, _)| *name == "fwha-sweeper").map(|(_, ns)| ns).sum()
}

/// Waits until both nodes have proved that they hold no flows.
fn empty(lab: &Lab, fwha: &mut Fwha) -> Result<()> {
    lab.wait_for("both tables to be empty", LONG, || {
        Ok((fwha.flows(Node::Fw1)? == 0 && fwha.flows(Node::Fw2)? == 0).then_some(()))
    })?;
    ensure!(fwha.settle(lab)? == Node::Fw1, "fw1 is not active any more");
    Ok(())
}

/// The generator in front of the daemon's program.
struct Injector {
    bench: Ebpf,
    order: Array<MapData, Words>,
    /// Where the program lies for tail calls: it goes with it.
    _slots: ProgramArray<MapData>,
    /// Index and MAC of the node's interfaces on the LAN and the inet side.
    ends: [(u32, [u8; 6]); 2],
    /// Number of the next flow.
    next: u32,
}

impl Injector {
    fn new(lab: &Lab, fwha: &Fwha, object: &[u8]) -> Result<Self> {
        let mut bench = EbpfLoader::new()
            .map_max_entries("TABLE", 1)
            .map_max_entries("TABLE_SHORT", 1)
            .load(object)
            .context("load the generator's object")?;
        let generator: &mut SchedClassifier =
            bench.program_mut("generate_tc").context("no generator")?.try_into()?;
        generator.load().context("load the generator")?;
        let mut slots: ProgramArray<MapData> =
            bench.take_map("TC_PROGRAMS").context("no map TC_PROGRAMS")?.try_into()?;
        slots.set(SLOT, &program_of(fwha.pid(Node::Fw1))?, 0).context("a place for the program")?;
        let end = |interface| -> Result<_> {
            let index = lab.within(Host::Fw1, || if_nametoindex(interface))??;
            Ok((index, mac(lab, Host::Fw1, interface)?))
        };
        Ok(Self {
            order: bench.take_map("ORDER").context("no map ORDER")?.try_into()?,
            bench,
            _slots: slots,
            ends: [end("lan")?, end("wan")?],
            next: 0,
        })
    }

    /// Opens so many connections, and resets each some time later. Runs on the node. Returns how long that took.
    fn play(&mut self, flows: u32, per_second: u32) -> Result<Duration> {
        let opening = [(SYN, false, 0, 0), (SYN | ACK, true, 0, 1), (ACK, false, 1, 1)];
        let reset = [(RST | ACK, false, 1, 1)];
        let (first, began) = (self.next, Instant::now());
        self.next += flows;
        let per_tick = (u128::from(per_second) * TICK.as_millis() / 1000) as u32;
        let chunk = |tick: u32| (first + (tick * per_tick).min(flows), ((tick + 1) * per_tick).min(flows));
        let ticks = flows.div_ceil(per_tick);
        let mut opened = Duration::ZERO;
        for tick in 0..ticks + LASTS {
            if tick < ticks {
                let (start, end) = chunk(tick);
                self.run(start, first + end - start, &opening)?;
                opened = began.elapsed();
            }
            if let Some(tick) = tick.checked_sub(LASTS) {
                let (start, end) = chunk(tick);
                self.run(start, first + end - start, &reset)?;
            }
            // Late is late: what was missed is not made up for.
            sleep((TICK * (tick + 1)).saturating_sub(began.elapsed()));
        }
        Ok(opened)
    }

    fn run(&mut self, start: u32, count: u32, steps: &[(u64, bool, u64, u64)]) -> Result<()> {
        for &(flags, reply, sent, heard) in steps {
            let (ifindex, mac) = self.ends[usize::from(reply)];
            let order = Order {
                program: SLOT.into(),
                dst_mac: rig::mac(mac),
                src_mac: rig::mac([2, 0, 0, 0, 9, 9]),
                family: 4,
                proto: 6,
                flags,
                reply: reply.into(),
                first: start.into(),
                sent,
                heard,
                ..Order::default()
            };
            self.order.set(0, order.words(), 0)?;
            let mut frame = [0; rig::V4_LEN];
            frame[12] = 8;
            let options = TestRunOptions {
                data_in: Some(&frame),
                ctx_in: Some(&rig::tc_context(ifindex)),
                repeat: count,
                ..TestRunOptions::default()
            };
            let program: &SchedClassifier =
                self.bench.program("generate_tc").context("no generator")?.try_into()?;
            let result = program.test_run(options).context("a test run")?;
            // Of the last packet; of all, the counters tell afterwards how many flows there were.
            let action = Action::of(Hook::Tc, result.return_value);
            ensure!(action == Action::Redirect, "the daemon's program did not forward: {action:?}");
        }
        Ok(())
    }
}

/// The program at tc ingress of the daemon with this process number, by what it has open.
fn program_of(pid: u32) -> Result<ProgramFd> {
    let mut ids = Vec::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).context("read the daemon's descriptors")? {
        // Others come and go.
        let Ok(info) = fs::read_to_string(file?.path()) else { continue };
        ids.extend(info.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    let program = loaded_programs()
        .flatten()
        .find(|program| ids.contains(&program.id()) && program.name_as_str() == Some(name::TC_INGRESS));
    program.context("the daemon has no program at tc")?.fd().context("open the daemon's program")
}

fn text(plan: &Plan, rows: &[Row]) -> String {
    let mut text = format!(
        "Connections opened, reset and expired, for {} s, {} times; median (quartiles)\n\n{:<46}",
        plan.churn_seconds, plan.churns, "offered"
    );
    for row in rows {
        let _ = write!(text, " {:>26}", row.heading());
    }
    text.push('\n');
    for (i, (_, what, decimals)) in FIGURES.iter().enumerate() {
        let _ = write!(text, "{what:<46}");
        for row in rows {
            let _ = write!(text, " {:>26}", row.figures[i].spread(*decimals));
        }
        text.push('\n');
    }
    text
}

fn json(plan: &Plan, rows: &[Row]) -> Value {
    let rows = rows.iter().map(|row| {
        let figures = FIGURES.iter().zip(&row.figures);
        let mut json: serde_json::Map<String, Value> =
            figures.map(|((name, ..), series)| ((*name).to_owned(), series.json())).collect();
        json.insert("offered_per_s".to_owned(), row.rate.into());
        json.insert("other".to_owned(), row.other.into());
        Value::Object(json)
    });
    json!({ "seconds": plan.churn_seconds, "rows": rows.collect::<Vec<_>>() })
}

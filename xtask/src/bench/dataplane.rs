//! `cargo xtask bench dataplane`: what a packet costs in the programs, in ns of one CPU.
//!
//! | module | holds |
//! |---|---|
//! | [`traffic`] | kinds of packets, and how a conversation goes |
//! | [`rig`] | the network namespace, the generator, the programs under test, one timed run |
//! | [`firewall`] | fwha's own programs, set up as the daemon would |
//! | [`report`] | the tables, and the same as JSON |
//!
//! How it is measured, and what it means, is told in `docs/performance.md`.

mod firewall;
#[path = "../../bench-ebpf/src/order.rs"]
#[cfg_attr(not(test), expect(dead_code, reason = "some of it is for the kernel's side"))]
pub mod order;
mod report;
pub mod rig;
pub mod traffic;

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use fwha_tests::root::is_root;
use indicatif::ProgressBar;

use crate::bench::figures::Series;
use crate::bench::plot;
use crate::build_ebpf;
use crate::cargo::{root, spinner};
use fwha_common::embryonic::CAPACITY;
use report::{Report, Row, Stage};
use rig::{Action, Hook, Program, Rig};
use traffic::{Embryonic, Kind, Place, Traffic};

/// Measure what a packet costs in the kernel programs
#[derive(clap::Args, Default)]
pub struct Args {
    /// Few flows and short runs, to see that all of it works; the times mean nothing
    #[arg(long)]
    quick: bool,
    /// Also with four million flows, which take some 7 GiB, and up to twice that with several loadings; without the
    /// single steps (`--only`) half of it
    #[arg(long, conflicts_with = "quick")]
    full: bool,
    /// Numbers of flows
    #[arg(long, value_name = "N,N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    flows: Vec<u32>,
    /// How often everything is loaded anew, to another place in memory
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    loads: Option<u32>,
    /// How often each program has its turn after each loading
    #[arg(long, value_parser = clap::value_parser!(u32).range(3..=1_000))]
    rounds: Option<u32>,
    /// Only traffic whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The CPU to run on; by default the last one
    #[arg(long)]
    cpu: Option<usize>,
    /// Measure this object of fwha's programs instead of the committed one
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a picture into a directory
    #[arg(long, value_name = "DIR")]
    plot: Option<PathBuf>,
}

impl Args {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { quick: true, ..Self::default() }
    }
}

/// How much is done.
#[derive(Clone, Default)]
pub struct Plan {
    /// Numbers of flows.
    flows: Vec<u32>,
    /// How often everything is loaded anew.
    loads: u32,
    /// How often each program then has its turn.
    rounds: u32,
    /// Packets of one turn.
    packets: u32,
    /// Only traffic whose name contains this.
    only: String,
    /// The CPU, if not the last.
    cpu: Option<usize>,
}

impl Plan {
    /// Whether single steps are measured, which have tables of their own.
    fn has_steps(&self) -> bool {
        report::STEPS.contains(&self.only)
    }
}

/// UDP that lasts this long has come to its last state.
const UDP_STREAM: Duration = Duration::from_millis(2_100);
/// Flows that are opened at a time: few enough to leave room among the embryonic ones, and in the ring buffer.
const CHUNK: u32 = 4_096;
/// Memory that the firewall's table takes for one flow of each kind.
const BYTES_PER_FLOW: u64 = 900;
/// Memory that the tables of the steps take for one flow.
const BYTES_PER_FLOW_STEPS: u64 = 900;

/// Runs the suite.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!("the bench needs root: it loads BPF programs; run `sudo -E cargo xtask bench dataplane`");
    }
    let mut plan = if args.quick {
        Plan { flows: vec![1_000, 8_000], loads: 1, packets: 20_000, ..Plan::default() }
    } else {
        Plan { flows: vec![1_000, 64_000, 1_000_000], loads: 3, packets: 300_000, ..Plan::default() }
    };
    if args.full {
        plan.flows.push(4_000_000);
    }
    if !args.flows.is_empty() {
        plan.flows.clone_from(&args.flows);
        plan.flows.sort_unstable();
    }
    plan.only = args.only.clone().unwrap_or_default();
    plan.loads = args.loads.unwrap_or(plan.loads);
    plan.rounds = args.rounds.unwrap_or(3);
    plan.cpu = args.cpu;
    let most = plan.flows.iter().copied().max().context("no number of flows")?;
    let bytes = BYTES_PER_FLOW + if plan.has_steps() { BYTES_PER_FLOW_STEPS } else { 0 };
    // The tables of the last loading may not be gone yet.
    let needed = u64::from(most) * bytes * u64::from(plan.loads.min(2));
    let available = available_memory()?;
    ensure!(
        needed < available,
        "{most} flows need {} MiB of memory and {} are available; take fewer: --flows",
        needed >> 20,
        available >> 20
    );
    let object = build_ebpf::build_package("fwha-bench-ebpf")?;
    let object = fs::read(&object).with_context(|| format!("read {}", object.display()))?;
    let fwha = args.object.clone().unwrap_or_else(|| root().join(build_ebpf::OBJECT));
    let fwha = fs::read(&fwha).with_context(|| format!("read {}", fwha.display()))?;

    let spinner = spinner("loading");
    let mut report = Report { plan: plan.clone(), ..Report::default() };
    for _ in 0..plan.loads {
        // On a thread of its own, with which the network namespace ends.
        let load = || measure(&plan, &spinner, &object, &fwha, most);
        let load =
            thread::scope(|scope| scope.spawn(load).join()).map_err(|_| anyhow!("the bench panicked"))??;
        report.add(load);
    }
    spinner.finish_and_clear();
    report.print();
    if let Some(path) = &args.json {
        fs::write(path, format!("{:#}\n", report.json()))
            .with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(dir) = &args.plot {
        plot::draw(dir, "dataplane", &report.tables())?;
    }
    if args.quick {
        println!("\nQuick: everything works, but the times are those of runs that are too short.");
    }
    Ok(ExitCode::SUCCESS)
}

/// What the machine can still give, in bytes.
fn available_memory() -> Result<u64> {
    let info = fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.split_whitespace().next());
    Ok(kib.context("MemAvailable in /proc/meminfo")?.parse::<u64>()? << 10)
}

/// Loads everything once, and measures all there is.
fn measure(plan: &Plan, spinner: &ProgressBar, object: &[u8], fwha: &[u8], most: u32) -> Result<Report> {
    let mut bench = Bench { rig: Rig::new(plan.cpu, object, fwha, most, plan.has_steps())?, plan, spinner };
    let mut report = Report {
        plan: plan.clone(),
        machine: bench.rig.machine(),
        sizes: bench.rig.sizes(),
        ..Report::default()
    };
    let mut filled = 0;
    for &flows in &plan.flows {
        bench.fill(filled..flows, &mut report)?;
        filled = flows;
        bench.compare(flows, &mut report)?;
    }
    report.memory = bench.rig.firewall.flow_memory()?;
    report.events_lost = bench.rig.firewall.events_lost()?;
    Ok(report)
}

struct Bench<'a> {
    rig: Rig,
    plan: &'a Plan,
    spinner: &'a ProgressBar,
}

impl Bench<'_> {
    /// Has flows with these numbers opened, of each kind, by packets that go through the firewall.
    fn fill(&mut self, flows: Range<u32>, report: &mut Report) -> Result<()> {
        self.spinner.set_message(format!("{} flows: opening them", flows.end));
        let mut udp_since = Instant::now();
        for kind in Kind::ALL {
            let opening = kind.opening();
            let try_one = Place::Sequence(flows.start..flows.start + 1);
            let run = self.rig.run(Program::Fwha, Hook::Xdp, &opening[0].traffic, try_one)?;
            if let Some(reason) = run.reason {
                report.refused.insert(kind.name(), reason.as_str());
                continue;
            }
            let stage = |name| Stage { kind: kind.name(), name, flows: flows.end, ns: Series::default() };
            let mut stages: Vec<_> = opening.iter().map(|step| stage(step.name)).collect();
            for chunk in chunks(&flows) {
                for (step, stage) in opening.iter().zip(&mut stages) {
                    let place = Place::Sequence(chunk.clone());
                    let empty = self.rig.run(Program::Empty, Hook::Xdp, &step.traffic, place.clone())?;
                    let run = self.rig.run(Program::Fwha, Hook::Xdp, &step.traffic, place)?;
                    ensure!(run.action == Action::Redirect, "{:?}: {:?}", step.traffic, run.action);
                    stage.ns.push(run.ns - empty.ns);
                    self.rig.firewall.drain();
                }
            }
            report.stages.extend(stages.into_iter().filter(|stage| stage.name.is_some()));
            if kind == Kind::Udp4 {
                udp_since = Instant::now();
            }
        }
        for chunk in chunks(&flows).filter(|_| self.plan.has_steps()) {
            let traffic = &Kind::Tcp4.both_ways()[0];
            let run = self.rig.run(Program::Insert, Hook::Xdp, traffic, Place::Sequence(chunk))?;
            ensure!(run.action == Action::Drop, "a flow was not put into the tables: {:?}", run.action);
        }
        // Nothing announces that a UDP flow has become a stream: its next packet after that time finds out.
        thread::sleep(UDP_STREAM.saturating_sub(udp_since.elapsed()));
        for chunk in chunks(&flows) {
            let traffic = &Kind::Udp4.both_ways()[0];
            self.rig.run(Program::Fwha, Hook::Xdp, traffic, Place::Sequence(chunk))?;
            self.rig.firewall.drain();
        }
        Ok(())
    }

    /// Compares the programs with each kind of traffic at this number of flows.
    fn compare(&mut self, flows: u32, report: &mut Report) -> Result<()> {
        use Program::{
            CoarseClock, Counters, ExactClock, Fwha, Lookup, LookupShort, Parse, Rewrite, Router, Settings,
            Ticks, Touch,
        };
        for kind in Kind::ALL {
            self.rounds(kind.name(), Hook::Xdp, flows, &kind.both_ways(), &[Router, Fwha], report)?;
        }
        for kind in [Kind::Tcp4, Kind::Tcp6] {
            self.rounds(kind.name(), Hook::Tc, flows, &kind.both_ways(), &[Router, Fwha], report)?;
        }
        let steps = [
            Fwha,
            Parse,
            LookupShort,
            Lookup,
            Touch,
            Ticks,
            CoarseClock,
            ExactClock,
            Counters,
            Settings,
            Rewrite,
        ];
        self.rounds(report::STEPS, Hook::Xdp, flows, &Kind::Tcp4.both_ways(), &steps, report)?;
        for (name, traffic) in traffic::OTHERS {
            self.rounds(name, Hook::Xdp, flows, &[traffic], &[Router, Fwha], report)?;
        }
        Ok(())
    }

    /// Gives each program its turn with the same traffic, one after the other, and that again and again; every other
    /// round in the opposite order.
    fn rounds(
        &mut self,
        name: &'static str,
        hook: Hook,
        flows: u32,
        ways: &[Traffic],
        programs: &[Program],
        report: &mut Report,
    ) -> Result<()> {
        if !name.contains(&self.plan.only) {
            return Ok(());
        }
        let refused = report.refused.contains_key(name);
        let programs: Vec<_> = [Program::Empty]
            .into_iter()
            .chain(programs.iter().copied().filter(|program| !(refused && *program == Program::Fwha)))
            .collect();
        let mut ns = vec![Series::default(); programs.len()];
        self.spinner.set_message(format!("{flows} flows: {name}, {hook:?}"));
        // The first round only warms up.
        for round in 0..=self.plan.rounds {
            let mut order: Vec<_> = (0..programs.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            for i in order {
                let mut sum = 0.0;
                for traffic in ways {
                    let packets = self.plan.packets / ways.len() as u32;
                    let place = |packets| Place::Random { flows, packets, seed: round };
                    let packets = match traffic.fresh {
                        Some(Embryonic::Room) => {
                            self.rig.firewall.clear_embryonic()?;
                            packets.min(CAPACITY / 2)
                        }
                        Some(Embryonic::Full) if round == 0 => {
                            self.rig.run(programs[i], hook, traffic, place(CAPACITY))?;
                            packets
                        }
                        _ => packets,
                    };
                    let run = self.rig.run(programs[i], hook, traffic, place(packets))?;
                    let expected = programs[i].action(traffic);
                    ensure!(
                        run.action == expected,
                        "{name}, {:?}: {:?} instead of {expected:?}",
                        programs[i],
                        run.action
                    );
                    sum += run.ns;
                }
                self.rig.firewall.drain();
                if round > 0 {
                    ns[i].push(sum / ways.len() as f64);
                }
            }
        }
        let net: Vec<_> = ns.iter().map(|series| series.minus(&ns[0])).collect();
        let router = programs.iter().position(|program| *program == Program::Router);
        for (i, program) in programs.iter().enumerate() {
            report.rows.push(Row {
                traffic: name,
                hook,
                flows,
                program: *program,
                ns: if *program == Program::Empty { ns[i].clone() } else { net[i].clone() },
                of_router: router.map(|router| net[i].over(&net[router])),
            });
        }
        Ok(())
    }
}

/// Some flows at a time.
fn chunks(flows: &Range<u32>) -> impl Iterator<Item = Range<u32>> + use<> {
    let end = flows.end;
    flows.clone().step_by(CHUNK as usize).map(move |start| start..end.min(start + CHUNK))
}

//! What traffic meets when something fails: every fault on either node, with the traffic of users through the pair, and
//! what must come of it.
//!
//! Each case has a lab of its own: the pair settles, traffic runs, the fault is inflicted, lasts for a while, and is
//! mended; the pair settles again, and the traffic ends. So what is measured contains the way back as well.

use std::fmt;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::lab::{Cable, Host, Lab, LabOptions, LineProcess, Node};
use crate::pair::{PATIENCE, Pair, event_ms};
use crate::traffic::{Connections, DialledReport, HeldReport, Probe, ProbeReport, mono_ms};

/// Connections that are held through a fault.
pub const HELD: u32 = 200;
/// New connections a second meanwhile.
pub const RATE: u32 = 500;
/// How long a fault lasts: longer than any lease.
pub const LASTS: Duration = Duration::from_secs(3);
/// How long all is quiet before, and after.
const QUIET: Duration = Duration::from_secs(1);
/// Processes that keep the processors busy: twice as many as a small machine has.
const HOGS: usize = 4;
/// By how much one node's clock is ahead of the other's, where they differ.
const AHEAD: Duration = Duration::from_secs(100_000);

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The daemon is killed and all cables are pulled at once.
    Power,
    /// The same, and the clocks of the two nodes differ by a day.
    PowerOtherClock,
    /// The daemon is killed (SIGKILL) and stays away.
    Kill,
    /// The daemon is killed and started again at once, within its lease.
    Restart,
    /// The daemon hangs (SIGSTOP).
    Hang,
    /// The daemon is told to end (SIGTERM).
    Terminate,
    /// All cables are pulled; the daemon lives.
    Cables,
    /// The cable to the LAN is pulled.
    LanCable,
    /// The cable to the LAN goes and comes five times.
    Flapping,
    /// The dedicated link is cut.
    SyncCable,
    /// What the node sends on the dedicated link is lost, and nothing else.
    MuteSync,
    /// What the node sends to the LAN is lost, and nothing else.
    MuteLan,
    /// Both nodes lose all they have, and start together.
    ColdStart,
    /// Nothing fails: the group is moved by hand.
    Switchover,
    /// Nothing fails, but the processors are busy.
    Hogs,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 15] = [
        Fault::Power,
        Fault::PowerOtherClock,
        Fault::Kill,
        Fault::Restart,
        Fault::Hang,
        Fault::Terminate,
        Fault::Cables,
        Fault::LanCable,
        Fault::Flapping,
        Fault::SyncCable,
        Fault::MuteSync,
        Fault::MuteLan,
        Fault::ColdStart,
        Fault::Switchover,
        Fault::Hogs,
    ];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Fault::Power => "power fails",
            Fault::PowerOtherClock => "power fails, clocks differ",
            Fault::Kill => "daemon killed",
            Fault::Restart => "daemon killed and restarted",
            Fault::Hang => "daemon hangs",
            Fault::Terminate => "daemon told to end",
            Fault::Cables => "all cables pulled",
            Fault::LanCable => "LAN cable pulled",
            Fault::Flapping => "LAN cable flaps",
            Fault::SyncCable => "sync cable pulled",
            Fault::MuteSync => "sync link one-way",
            Fault::MuteLan => "LAN cable one-way",
            Fault::ColdStart => "both start together",
            Fault::Switchover => "moved by hand",
            Fault::Hogs => "processors busy",
        }
    }

    /// What must become of the role when it strikes the Active node.
    const fn moves(self) -> Moves {
        match self {
            Fault::Restart | Fault::SyncCable | Fault::MuteSync | Fault::Hogs => Moves::Stays,
            Fault::ColdStart => Moves::Begins,
            _ => Moves::Goes,
        }
    }

    /// How long the probe may be without answers when it strikes the Active node: far above what is usual, so that a
    /// busy machine does not decide, and far below what the failure of a mechanism costs.
    const fn outage_limit_ms(self) -> f64 {
        match self {
            Fault::Restart | Fault::SyncCable | Fault::MuteSync | Fault::Hogs => 50.0,
            Fault::Terminate | Fault::Switchover => 100.0,
            Fault::Flapping => 1500.0,
            // Three adverts of a second are missed, three rounds of questions find nobody, and there is a grace.
            Fault::MuteLan => 9_000.0,
            // While it lasts there is nobody; then programs are loaded, which takes its time on a busy machine.
            Fault::ColdStart => 15_000.0,
            _ => 500.0,
        }
    }

    /// How many new connections may fail when it strikes the Active node: what was answered in its last moment is known to
    /// nobody else if it is cut off without a word. Ten ms of them, where a ms is usual.
    const fn new_lost_with_it(self) -> u64 {
        match self {
            Fault::Power | Fault::PowerOtherClock | Fault::Cables => RATE as u64 / 100,
            _ => 0,
        }
    }
}

/// What becomes of the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moves {
    /// The other node has it.
    Goes,
    /// The Active node keeps it, in the same term.
    Stays,
    /// One of them has it, who does not matter.
    Begins,
}

/// A fault, and which node it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// What fails.
    pub fault: Fault,
    /// Whether it strikes the Active node; else the Backup.
    pub active: bool,
}

impl Case {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Case> {
        let both =
            Fault::ALL.into_iter().flat_map(|fault| [true, false].map(|active| Case { fault, active }));
        // Nothing can be moved from a Backup; and what strikes both strikes the Active node.
        both.filter(|case| case.active || !matches!(case.fault, Fault::Switchover | Fault::ColdStart))
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.fault.name(), if self.active { "active" } else { "backup" })
    }
}

/// A time during which a node was Active, by its own events.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reign {
    /// The node.
    pub node: Node,
    /// From when, in ms since the fault.
    pub from_ms: f64,
    /// Until when; none if it was to the end, or the daemon had no time to say.
    pub until_ms: Option<f64>,
}

/// What came of a case.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The case.
    pub case: Case,
    /// The node that was struck.
    pub struck: Node,
    /// The probe.
    pub probe: ProbeReport,
    /// Connections that were held.
    pub held: HeldReport,
    /// New connections.
    pub dialled: DialledReport,
    /// Who was Active when, in order.
    pub reigns: Vec<Reign>,
    /// Who is Active at the end, and in which term.
    pub last: (Node, u64),
    /// The same before the fault.
    pub first: (Node, u64),
}

impl Outcome {
    /// Checks it against what must come of the case.
    ///
    /// # Errors
    ///
    /// Naming what was not so.
    pub fn check(&self) -> Result<()> {
        let Case { fault, active } = self.case;
        if fault.moves() == Moves::Begins {
            // Nobody has the flows; but who was there first, is there to the end.
            let begun = self.reigns.iter().filter(|reign| reign.from_ms > 0.0).count();
            ensure!(begun == 1, "active after the start: {:?}", self.reigns);
            let limit_ms = fault.outage_limit_ms();
            ensure!(self.probe.outage_ms <= limit_ms, "{:.1} ms without answers", self.probe.outage_ms);
            return Ok(());
        }
        if !active || fault.moves() == Moves::Stays {
            ensure!(self.first == self.last, "the role moved: {:?}, then {:?}", self.first, self.last);
        } else {
            ensure!(self.last.1 > self.first.1, "the role did not move: term {} still", self.last.1);
            ensure!(
                self.reigns.iter().any(|reign| reign.node == self.struck.peer() && reign.from_ms > 0.0),
                "{} was never active",
                self.struck.peer()
            );
        }
        ensure!(self.held.lost == 0, "{} of {} connections were lost", self.held.lost, self.held.held);
        ensure!(
            self.dialled.failed <= if active { fault.new_lost_with_it() } else { 0 },
            "{} of {} new connections failed",
            self.dialled.failed,
            self.dialled.dialled
        );
        let limit_ms = if active { fault.outage_limit_ms() } else { 50.0 };
        ensure!(
            self.probe.outage_ms <= limit_ms,
            "{:.1} ms without answers, more than {limit_ms}",
            self.probe.outage_ms
        );
        Ok(())
    }
}

/// Plays a case in a lab of its own; `options` are those of the lab, the fault lasts for `lasts`.
///
/// # Errors
///
/// When the lab or a program does not do its part, or the pair does not settle.
pub fn play(case: Case, options: LabOptions, lasts: Duration) -> Result<Outcome> {
    let lab = Lab::new(options).context("lay the lab")?;
    let outcome = play_in(&lab, case, lasts);
    if !outcome.as_ref().is_ok_and(|outcome| outcome.check().is_ok()) {
        eprint!("{}", lab.log_tails(40));
    }
    lab.remove()?;
    outcome
}

fn play_in(lab: &Lab, case: Case, lasts: Duration) -> Result<Outcome> {
    let fw1 = match case.fault {
        Fault::PowerOtherClock => lab.start_node_ahead(Node::Fw1, AHEAD)?,
        _ => lab.start_node(Node::Fw1)?,
    };
    let mut pair = Pair::of(fw1, lab.start_node(Node::Fw2)?);
    let active = pair.settle(lab)?;
    let struck = if case.active { active } else { active.peer() };
    let first = (active, term(&pair, active)?);

    let mut chronicle = Chronicle::default();
    for node in Node::ALL {
        chronicle.follow(lab, &pair, node)?;
    }
    let mut probe = Probe::start(lab)?;
    let connections = Connections::start(lab, HELD, RATE)?;
    probe.wait_for_more_answers()?;
    thread::sleep(QUIET);

    let struck_at_ms = mono_ms();
    let inflicted = inflict(lab, &mut pair, struck, case.fault)?;
    thread::sleep(lasts);
    if case.active && case.fault == Fault::MuteLan {
        // No carrier tells of it: it takes its time to be noticed, and is not to end before.
        pair.wait_for_role(lab, struck.peer(), "active")?;
    }
    mend(lab, &mut pair, struck, case.fault, inflicted)?;
    let started: &[Node] = match case.fault {
        Fault::ColdStart => &Node::ALL,
        Fault::Power | Fault::PowerOtherClock | Fault::Kill | Fault::Restart | Fault::Terminate => &[struck],
        _ => &[],
    };
    for &node in started {
        chronicle.follow(lab, &pair, node)?;
    }
    let active = pair.settle(lab)?;
    thread::sleep(QUIET);

    let (held, dialled) = connections.end()?;
    let probe = probe.end()?;
    let last = (active, term(&pair, active)?);
    let reigns = chronicle.reigns(struck_at_ms)?;
    Ok(Outcome { case, struck, probe, held, dialled, reigns, last, first })
}

fn term(pair: &Pair, node: Node) -> Result<u64> {
    Ok(crate::pair::term(&pair.node(node).ctl(&["status"])?))
}

/// What must be ended for a fault to be over.
#[derive(Default)]
struct Inflicted {
    hogs: Vec<Child>,
}

fn inflict(lab: &Lab, pair: &mut Pair, node: Node, fault: Fault) -> Result<Inflicted> {
    let mut inflicted = Inflicted::default();
    match fault {
        Fault::Power | Fault::PowerOtherClock => {
            crate::takeover::lose(lab, pair, node)?;
        }
        Fault::Kill => pair.node_mut(node).kill()?,
        Fault::Restart => {
            pair.node_mut(node).kill()?;
            pair.restart(lab, node)?;
        }
        Fault::Hang => pair.node(node).stop()?,
        Fault::Terminate => drop(pair.node_mut(node).term(PATIENCE)?),
        Fault::Cables => lab.cut(node, Cable::All)?,
        Fault::LanCable => lab.cut(node, Cable::Lan)?,
        Fault::Flapping => {
            for _ in 0..5 {
                lab.cut(node, Cable::Lan)?;
                thread::sleep(Duration::from_millis(100));
                lab.heal(node, Cable::Lan)?;
                thread::sleep(Duration::from_millis(100));
            }
        }
        Fault::SyncCable => lab.cut(node, Cable::Sync)?,
        Fault::MuteSync => lab.mute(&[(node, "sync")])?,
        Fault::MuteLan => lab.mute(&[(node, "lan")])?,
        Fault::ColdStart => {
            for node in Node::ALL {
                lab.cut(node, Cable::All)?;
                pair.node(node).send_kill()?;
            }
            for node in Node::ALL {
                pair.node_mut(node).kill()?;
                let cleaned = lab.cleanup(node)?;
                ensure!(cleaned.status.success(), "{}", String::from_utf8_lossy(&cleaned.stderr));
                // As a machine boots; the lab's would let packets through before there is a firewall.
                lab.exec(node.host(), &["sysctl", "-q", "net.ipv4.ip_forward=0"])?;
            }
        }
        Fault::Switchover => drop(pair.node(node).ctl_lines(&["switchover", "--wait"])?),
        Fault::Hogs => {
            for _ in 0..HOGS {
                let mut hog = Command::new("sh");
                hog.args(["-c", "while :; do :; done"]);
                inflicted.hogs.push(lab.spawn(Host::Switch, &mut hog)?);
            }
        }
    }
    Ok(inflicted)
}

fn mend(lab: &Lab, pair: &mut Pair, node: Node, fault: Fault, mut inflicted: Inflicted) -> Result<()> {
    match fault {
        Fault::Power => {
            lab.heal(node, Cable::All)?;
            pair.restart(lab, node)?;
        }
        Fault::PowerOtherClock => {
            lab.heal(node, Cable::All)?;
            let restarted = match node {
                Node::Fw1 => lab.start_node_ahead(node, AHEAD)?,
                Node::Fw2 | Node::Fw3 => lab.start_node(node)?,
            };
            *pair.node_mut(node) = restarted;
        }
        Fault::Kill | Fault::Terminate => pair.restart(lab, node)?,
        Fault::ColdStart => {
            for node in Node::ALL {
                lab.heal(node, Cable::All)?;
                pair.restart(lab, node)?;
            }
        }
        Fault::Restart | Fault::Flapping | Fault::Switchover => {}
        Fault::Hang => pair.node(node).cont()?,
        Fault::Cables => lab.heal(node, Cable::All)?,
        Fault::LanCable => lab.heal(node, Cable::Lan)?,
        Fault::SyncCable => lab.heal(node, Cable::Sync)?,
        Fault::MuteSync | Fault::MuteLan => lab.mute(&[])?,
        Fault::Hogs => {
            for hog in &mut inflicted.hogs {
                hog.kill().and_then(|()| hog.wait()).context("end a process of our own")?;
            }
        }
    }
    Ok(())
}

/// The events of both nodes, of all their daemons.
#[derive(Default)]
struct Chronicle {
    sources: Vec<(Node, LineProcess<Value>)>,
}

impl Chronicle {
    /// Follows the daemon that a node has now.
    fn follow(&mut self, lab: &Lab, pair: &Pair, node: Node) -> Result<()> {
        lab.wait_for(&format!("{node} to answer"), PATIENCE, || Ok(pair.node(node).ctl(&["status"]).ok()))?;
        self.sources.push((node, pair.node(node).follow_events(lab)?));
        Ok(())
    }

    /// Who was Active when, in ms since `zero_ms`.
    fn reigns(mut self, zero_ms: f64) -> Result<Vec<Reign>> {
        let mut reigns: Vec<Reign> = Vec::new();
        for (node, source) in &mut self.sources {
            let mut present: Option<Reign> = None;
            // Everything up to now is there already.
            while let Some(event) = source.next(Duration::from_millis(200))? {
                let text = event["text"].as_str().unwrap_or_default();
                if event["kind"] != "role" {
                    continue;
                }
                let at_ms = event_ms(&event) - zero_ms;
                if text.contains("-> active") {
                    present = Some(Reign { node: *node, from_ms: at_ms, until_ms: None });
                } else if text.contains("active ->") {
                    reigns.extend(present.take().map(|reign| Reign { until_ms: Some(at_ms), ..reign }));
                }
            }
            reigns.extend(present);
        }
        reigns.sort_by(|a, b| a.from_ms.total_cmp(&b.from_ms));
        Ok(reigns)
    }
}

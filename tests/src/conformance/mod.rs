//! The same packets through the kernel's nf_conntrack and through fwha, compared one by one.
//!
//! * [`script`]: the language in which conversations are written; [`sequences`]: those that are written.
//! * [`random`]: conversations made up from a seed, in the same language.
//! * [`wire`]: their bytes.
//! * [`device`]: the devices under test; [`fwha`]: what fills in fwha's maps.
//! * [`compare`]: what came out, in comparable form.
//! * [`forecast`]: what two models say of a conversation; [`conntrack`]: that of the kernel.
//! * [`known`]: the differences that are meant; [`report`]: the others.
//!
//! Nothing here waits for time to pass: behind each packet goes a marker, and what comes out before the marker is the
//! device's answer. No play shares an address with another, so thousands run one after the other in the same devices.

pub mod compare;
pub mod conntrack;
pub mod device;
pub mod forecast;
pub mod fwha;
pub mod known;
pub mod random;
pub mod report;
pub mod script;
pub mod sequences;
pub mod wire;

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context as _, Result, anyhow};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use self::compare::{Output, Plain, routed, verdict};
use self::device::{Device, World};
use self::forecast::Forecast;
use self::fwha::Hook;
use self::script::{Sequence, Verdict};
use self::wire::{Ends, Family, frames};

/// Plays in one set of devices. Their tables, and the addresses, have room for more.
const PLAYS: u16 = 20_000;

/// Runs `work` on a thread that stays on one CPU, as the devices need: then packets and markers keep their order.
///
/// # Errors
///
/// That of `work`.
///
/// # Panics
///
/// When `work` does.
pub fn on_one_cpu<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let pinned = || {
        let allowed = sched_getaffinity(Pid::from_raw(0))?;
        let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
        let mut one = CpuSet::new();
        one.set(first.context("a CPU to run on")?)?;
        sched_setaffinity(Pid::from_raw(0), &one)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(pinned).join())
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The devices: the kernel, and fwha at both hooks.
pub struct Rig {
    devices: [Device; 3],
    plays: u16,
}

/// What a device did with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// In one word.
    pub verdict: Verdict,
    /// What came out.
    pub outputs: Vec<Output>,
    /// What came out, in words.
    pub words: String,
    /// fwha's drop reasons.
    pub reasons: Vec<&'static str>,
    /// The kernel's conntrack entries afterwards, when they were asked for.
    pub entries: Vec<String>,
    /// How long the flow is now kept, in seconds, when it was asked for and there is one in the main table.
    pub timeout_s: Option<u64>,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)?;
        if !self.reasons.is_empty() {
            write!(f, " ({})", self.reasons.join(", "))?;
        }
        if !self.entries.is_empty() {
            write!(f, " [{}]", self.entries.join("; "))?;
        }
        if let Some(timeout_s) = self.timeout_s {
            write!(f, " {timeout_s} s")?;
        }
        Ok(())
    }
}

/// A sequence as it was played: the answers of all devices to each step, the kernel's first.
pub struct Play<'a> {
    /// What was played.
    pub sequence: &'a Sequence,
    /// With which IP.
    pub family: Family,
    /// Answers by step and device.
    pub answers: Vec<[Answer; 3]>,
    /// What was to be expected, by step; none if the models have no such packets.
    pub forecasts: Option<Vec<Forecast>>,
}

/// A packet that the kernel and fwha treat differently.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Name of the sequence.
    pub sequence: String,
    /// With which IP.
    pub family: Family,
    /// Number of the packet in it, from 1.
    pub packet: usize,
    /// The packet as the script has it.
    pub text: String,
    /// What the kernel did.
    pub kernel: Answer,
    /// What fwha did.
    pub fwha: Answer,
    /// At which hooks.
    pub hooks: Vec<&'static str>,
    /// The packets before it.
    pub before: Vec<String>,
}

/// What was not foreseen.
#[derive(Clone, Debug)]
pub struct Surprise {
    /// Number of the packet, from 1.
    pub packet: usize,
    /// What it is.
    pub kind: String,
    /// The packet, and what became of it.
    pub text: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sequence, family, packet, text, kernel, fwha, hooks, before: _ } = self;
        writeln!(f, "{sequence} ({}), packet {packet}: {text}", family.as_str())?;
        writeln!(f, "    {:8}{kernel}", "kernel")?;
        write!(f, "    {:8}{fwha}", hooks.join(" "))
    }
}

impl Rig {
    /// Lays the devices.
    ///
    /// # Errors
    ///
    /// Without root, nft or a kernel that has what is needed.
    pub fn new() -> Result<Self> {
        let world = World::new()?;
        let devices = [world.kernel()?, world.fwha(Hook::Xdp)?, world.fwha(Hook::Tc)?];
        Ok(Self { devices, plays: 0 })
    }

    /// Protocols that this kernel has no tracker for.
    ///
    /// # Errors
    ///
    /// When its namespace cannot be entered.
    pub fn untracked(&self) -> Result<Vec<&'static str>> {
        self.devices[0].untracked()
    }

    /// Plays a sequence through all devices. With `look`, the kernel's entries are read after each packet.
    ///
    /// # Errors
    ///
    /// When a device forwards nothing any more.
    pub fn play<'a>(&mut self, sequence: &'a Sequence, family: Family, look: bool) -> Result<Play<'a>> {
        if self.plays == PLAYS {
            *self = Self::new()?;
        }
        self.plays += 1;
        let ends = Ends::new(family, self.plays, sequence.isn);
        let mut expected = Plain::default();
        let mut plains = [Plain::default(), Plain::default(), Plain::default()];
        let mut answers = Vec::with_capacity(sequence.steps.len());
        for step in &sequence.steps {
            let from = step.message.from;
            let sent = frames(&step.message, &ends);
            let whole = expected.take(sent.iter().map(|frame| (from.other(), routed(from, frame))).collect());
            let answer = |device: &mut Device, plain: &mut Plain| -> Result<Answer> {
                let mut heard = Vec::new();
                for frame in &sent {
                    heard.extend(device.send(from, frame)?);
                }
                let outputs = plain.take(heard);
                let words: Vec<String> = outputs.iter().map(|output| output.describe(&whole)).collect();
                Ok(Answer {
                    verdict: verdict(&outputs, &whole),
                    words: if words.is_empty() { "dropped".into() } else { words.join(" + ") },
                    outputs,
                    reasons: device.reasons()?,
                    entries: if look { device.entries(&ends.inside())? } else { Vec::new() },
                    timeout_s: if look { device.timeout_s(&ends.inside())? } else { None },
                })
            };
            let [kernel, xdp, tc] = &mut self.devices;
            let [a, b, c] = &mut plains;
            let context = || anyhow!("{}: {}", sequence.name, step.text);
            answers.push([
                answer(kernel, a).with_context(context)?,
                answer(xdp, b).with_context(context)?,
                answer(tc, c).with_context(context)?,
            ]);
        }
        let forecasts = forecast::of(sequence, family, &ends);
        Ok(Play { sequence, family, answers, forecasts })
    }
}

impl Play<'_> {
    /// The packets that fwha treats differently.
    pub fn differences(&self) -> Vec<Difference> {
        let mut differences = Vec::new();
        for (index, (step, answers)) in self.sequence.steps.iter().zip(&self.answers).enumerate() {
            let [kernel, xdp, tc] = answers;
            let difference = |fwha: &Answer, hooks: &[&'static str]| Difference {
                sequence: self.sequence.name.clone(),
                family: self.family,
                packet: index + 1,
                text: step.text.clone(),
                kernel: kernel.clone(),
                fwha: fwha.clone(),
                hooks: hooks.into(),
                before: self.sequence.steps[..index].iter().map(|step| step.text.clone()).collect(),
            };
            match (xdp.outputs == kernel.outputs, tc.outputs == kernel.outputs) {
                (true, true) => {}
                (false, false) if xdp.outputs == tc.outputs && xdp.reasons == tc.reasons => {
                    differences.push(difference(xdp, &["xdp", "tc"]))
                }
                (same_xdp, same_tc) => {
                    if !same_xdp {
                        differences.push(difference(xdp, &["xdp"]));
                    }
                    if !same_tc {
                        differences.push(difference(tc, &["tc"]));
                    }
                }
            }
        }
        differences
    }

    /// What neither model foresaw, and where they part for no known cause.
    pub fn surprises(&self) -> Vec<Surprise> {
        let mut surprises = Vec::new();
        let steps = self.sequence.steps.iter().zip(&self.answers).zip(self.forecasts.iter().flatten());
        for (index, ((step, [kernel, xdp, tc]), forecast)) in steps.enumerate() {
            let mut surprise = |kind: String| {
                let text = format!("{}: kernel {kernel}, xdp {xdp}, tc {tc}", step.text);
                surprises.push(Surprise { packet: index + 1, kind, text });
            };
            if kernel.verdict != forecast.kernel {
                surprise(format!("kernel: {}, not {}", kernel.verdict.as_str(), forecast.kernel.as_str()));
            }
            for (hook, answer) in [("xdp", xdp), ("tc", tc)] {
                let reasons = BTreeSet::from_iter(&answer.reasons);
                if answer.verdict != forecast.fwha || reasons != BTreeSet::from_iter(&forecast.reasons) {
                    let said = |verdict: Verdict, reasons: &[&str]| {
                        format!("{} ({})", verdict.as_str(), reasons.join(", "))
                    };
                    let (is, not) =
                        (said(answer.verdict, &answer.reasons), said(forecast.fwha, &forecast.reasons));
                    surprise(format!("{hook}: {is}, not {not}"));
                }
            }
            if let Some(parting) = forecast.parting.as_ref().filter(|parting| parting.cause.is_none()) {
                surprise(format!("parting: {}", parting.what));
            }
        }
        surprises
    }

    /// The conversation, line by line, with what the kernel did; and fwha, where it did something else.
    pub fn lines(&self) -> Vec<String> {
        let differences = self.differences();
        let mut lines = Vec::new();
        for (index, (step, answers)) in self.sequence.steps.iter().zip(&self.answers).enumerate() {
            lines.push(format!("{:60} {}", step.text, answers[0]));
            for difference in differences.iter().filter(|difference| difference.packet == index + 1) {
                lines.push(format!("{:>60} {}", difference.hooks.join(" "), difference.fwha));
            }
        }
        lines
    }

    /// The packets, by their index, with which the kernel does not do what the script says.
    pub fn misread(&self) -> Vec<usize> {
        let steps = self.sequence.steps.iter().zip(&self.answers).enumerate();
        steps
            .filter(|(_, (step, answers))| step.expected[self.family as usize] != answers[0].verdict)
            .map(|(index, _)| index)
            .collect()
    }
}

/// The smallest part of a sequence that still has the surprise.
///
/// # Errors
///
/// As of [`Rig::play`].
pub fn shrink(rig: &mut Rig, sequence: &Sequence, family: Family, found: &Surprise) -> Result<Sequence> {
    let mut best = sequence.clone();
    // Nothing behind the packet matters.
    best.steps.truncate(found.packet);
    let mut chunk = best.steps.len() / 2;
    while chunk > 0 {
        let mut at = 0;
        while at < best.steps.len() {
            let mut fewer = best.clone();
            fewer.steps.drain(at..(at + chunk).min(best.steps.len()));
            let play = rig.play(&fewer, family, false)?;
            if play.surprises().first().is_some_and(|surprise| surprise.kind == found.kind) {
                best = fewer;
            } else {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    Ok(best)
}

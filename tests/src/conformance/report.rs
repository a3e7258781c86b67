//! Everything played and compared, and what came of it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use anyhow::{Context as _, Result};

use super::forecast::Forecast;
use super::known::known;
use super::script::Sequence;
use super::{Difference, Play, Rig, Surprise, random, sequences, shrink};

/// Differences of one kind that are listed; the rest is counted.
const LISTED: usize = 12;

/// Random conversations with one kind of difference that are cut down to what still shows it.
const SHRUNK: usize = 3;

/// What is to be played.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The sequences with this in their name, so all of them when it is empty; none without it.
    pub sequences: Option<String>,
    /// Seeds of random conversations.
    pub seeds: Range<u64>,
    /// Whether the kernel's entries are read after each packet, for whoever watches.
    pub look: bool,
}

/// What came of it.
#[derive(Default)]
pub struct Report {
    sequences: usize,
    packets: usize,
    /// Random conversations; of these, as foreseen to their end; without any difference until then.
    conversations: usize,
    finished: usize,
    unparted: usize,
    /// Packets of conversations that the models have, up to the first surprise; and those before which both sides knew
    /// the same, so that they had to do the same.
    foreseen: usize,
    in_step: usize,
    /// Where both sides came to know different things, or treated a packet differently, by the row that says why.
    partings: BTreeMap<&'static str, usize>,
    /// Differences that are meant, by id.
    meant: BTreeMap<&'static str, usize>,
    /// Differences that are not, by kind: what the kernel and what fwha does.
    kinds: BTreeMap<String, usize>,
    /// Those to be listed.
    differences: Vec<String>,
    /// Packets with which the kernel does not do what the script says.
    misread: Vec<String>,
    /// Protocols that this kernel has no tracker for.
    untracked: Vec<&'static str>,
}

impl Report {
    /// Plays the plan; `watch` sees every play.
    ///
    /// # Errors
    ///
    /// When a device cannot be laid, or forwards nothing any more.
    pub fn of(plan: &Plan, mut watch: impl FnMut(&Play<'_>)) -> Result<Self> {
        let mut rig = Rig::new()?;
        let mut report = Self { untracked: rig.untracked()?, ..Self::default() };
        let wanted = |sequence: &&Sequence| {
            plan.sequences.as_ref().is_some_and(|name| sequence.name.contains(name.as_str()))
        };
        for sequence in sequences::all()?.iter().filter(wanted) {
            for family in &sequence.families {
                let play = rig.play(sequence, *family, plan.look)?;
                watch(&play);
                report.count(&play);
                if let Some(forecasts) = &play.forecasts {
                    report.weigh(forecasts);
                    for Surprise { packet, kind, text } in play.surprises() {
                        let name = format!("{} ({})", sequence.name, family.as_str());
                        report.differences.push(format!("{name}, packet {packet}: {kind}\n  {text}"));
                        *report.kinds.entry(kind).or_default() += 1;
                    }
                }
                for difference in play.differences().iter().filter(|_| play.forecasts.is_none()) {
                    if report.judge(difference).is_some_and(|before| before < LISTED) {
                        report.differences.push(difference.to_string());
                    }
                }
                for index in play.misread() {
                    let (text, kernel) = (&sequence.steps[index].text, &play.answers[index][0]);
                    let (name, family) = (&sequence.name, family.as_str());
                    report.misread.push(format!("{name} ({family}), packet {}: {text}: {kernel}", index + 1));
                }
            }
        }
        for seed in plan.seeds.clone() {
            let sequence = random::conversation(seed)?;
            let family = sequence.families[0];
            let play = rig.play(&sequence, family, plan.look)?;
            watch(&play);
            report.count(&play);
            let forecasts = play.forecasts.as_ref().context("a forecast of a random conversation")?;
            let surprise = play.surprises().into_iter().next();
            // What comes behind the first may be nothing but its consequence.
            let end = surprise.as_ref().map_or(forecasts.len(), |surprise| surprise.packet);
            report.conversations += 1;
            report.finished += usize::from(surprise.is_none());
            report.unparted +=
                usize::from(forecasts[..end].iter().all(|forecast| forecast.parting.is_none()));
            report.weigh(&forecasts[..end]);
            if let Some(surprise) = surprise {
                let count = report.kinds.entry(surprise.kind.clone()).or_default();
                *count += 1;
                if *count <= SHRUNK {
                    report.differences.push(shortest(&mut rig, &sequence, &surprise)?);
                }
            }
        }
        Ok(report)
    }

    /// Whether fwha does nothing but what the kernel does, and what is known to be different.
    pub fn agrees(&self) -> bool {
        self.kinds.is_empty()
    }

    /// How many of all packets both models foresaw, in percent.
    pub fn foreseen_percent(&self) -> usize {
        self.foreseen * 100 / self.packets.max(1)
    }

    /// How many of the foreseen packets came while both sides knew the same, so that they had to do the same, in percent.
    pub fn in_step_percent(&self) -> usize {
        self.in_step * 100 / self.foreseen.max(1)
    }

    /// Whether the kernel does what the scripts say.
    pub fn as_scripted(&self) -> bool {
        self.misread.is_empty()
    }

    /// Counts what was foreseen.
    fn weigh(&mut self, forecasts: &[Forecast]) {
        self.foreseen += forecasts.len();
        self.in_step += forecasts.iter().filter(|forecast| forecast.in_step).count();
        for cause in forecasts.iter().filter_map(|forecast| forecast.parting.as_ref()?.cause) {
            *self.partings.entry(cause).or_default() += 1;
        }
    }

    fn count(&mut self, play: &Play<'_>) {
        self.sequences += 1;
        self.packets += play.answers.len();
    }

    /// Counts a difference. Returns how many of its kind there were before, unless it is meant.
    fn judge(&mut self, difference: &Difference) -> Option<usize> {
        if let Some(known) = known(difference) {
            *self.meant.entry(known.id).or_default() += 1;
            return None;
        }
        let Difference { kernel, fwha, .. } = difference;
        let reasons =
            if fwha.reasons.is_empty() { String::new() } else { format!(" ({})", fwha.reasons.join(", ")) };
        let kind = format!("kernel {}, fwha {}{reasons}", kernel.verdict.as_str(), fwha.verdict.as_str());
        let count = self.kinds.entry(kind).or_default();
        *count += 1;
        Some(*count - 1)
    }
}

/// A surprise of a random conversation, with the shortest script that shows it.
fn shortest(rig: &mut Rig, sequence: &Sequence, found: &Surprise) -> Result<String> {
    let family = sequence.families[0];
    let short = shrink(rig, sequence, family, found)?;
    let play = rig.play(&short, family, true)?;
    let Surprise { packet, kind, text } = found;
    let mut text = format!(
        "{} ({}), packet {packet}: {kind}\n  {text}\n  of which this is enough (isn {} {}):",
        sequence.name,
        family.as_str(),
        short.isn[0],
        short.isn[1]
    );
    for line in play.lines() {
        text += "\n    ";
        text += &line;
    }
    Ok(text)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for difference in &self.differences {
            writeln!(f, "{difference}\n")?;
        }
        if !self.misread.is_empty() {
            writeln!(f, "this kernel does not do what the scripts say:")?;
            self.misread.iter().try_for_each(|line| writeln!(f, "    {line}"))?;
        }
        if !self.untracked.is_empty() {
            writeln!(f, "without a tracker in this kernel: {}", self.untracked.join(", "))?;
        }
        for (kind, count) in &self.kinds {
            writeln!(f, "{count:7}  {kind}")?;
        }
        for (id, count) in &self.meant {
            writeln!(f, "{count:7}  known: {id}")?;
        }
        for (id, count) in &self.partings {
            writeln!(f, "{count:7}  known, foreseen: {id}")?;
        }
        let meant: usize = self.meant.values().chain(self.partings.values()).sum();
        let others: usize = self.kinds.values().sum();
        let Self { sequences, packets, foreseen, in_step, conversations, finished, unparted, .. } = self;
        writeln!(
            f,
            "{foreseen} packets foreseen by the models, {in_step} of them while both sides knew the same of the flow"
        )?;
        writeln!(
            f,
            "{conversations} random conversations, {finished} compared to their end, {unparted} of them without a difference"
        )?;
        write!(
            f,
            "{sequences} sequences, {packets} packets, {others} differences, {meant} more that are known"
        )
    }
}

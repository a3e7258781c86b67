//! The conversations that are written down, by topic.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Play;
use super::script::{Sequence, Verdict, parse};

/// A file of sequences.
pub struct File {
    /// Its name.
    pub name: &'static str,
    /// What is in it.
    pub text: &'static str,
}

/// The kernel whose doings are written in the sequences.
pub const RECORDED: &str = "6.18";

/// Whether this is that kernel.
pub fn recorded_here() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    release.strip_prefix(RECORDED).is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

macro_rules! files {
    ($($name:literal),+ $(,)?) => {
        /// All files.
        pub const FILES: &[File] =
            &[$(File { name: $name, text: include_str!(concat!("sequences/", $name)) }),+];
    };
}

files![
    "tcp.seq",
    "tcp-window.seq",
    "tcp-timeouts.seq",
    "udp.seq",
    "icmp.seq",
    "ip.seq",
    "fragments.seq",
    "protocols.seq",
];

impl File {
    /// Its sequences.
    ///
    /// # Errors
    ///
    /// A line that is not of the language.
    pub fn sequences(&self) -> Result<Vec<Sequence>> {
        parse(self.text).with_context(|| self.name)
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src/conformance/sequences").join(self.name)
    }

    /// Its text with what the kernel did in these plays of its sequences.
    pub fn recorded(&self, plays: &[Play<'_>]) -> String {
        let mut lines: Vec<String> = self.text.lines().map(str::to_owned).collect();
        for (at, line) in lines.iter_mut().enumerate() {
            let mut text = None;
            // What a family does that is not played does not matter.
            let mut seen = [None; 2];
            for play in plays {
                for (step, answers) in play.sequence.steps.iter().zip(&play.answers) {
                    if step.line == Some(at) {
                        text = Some(&step.text);
                        seen[play.family as usize] = Some(answers[0].verdict);
                    }
                }
            }
            let (Some(text), Some(first)) = (text, seen[0].or(seen[1])) else { continue };
            let second = seen[1].unwrap_or(first);
            *line = match (first, second) {
                (Verdict::Pass, Verdict::Pass) => text.clone(),
                (first, second) if first == second => format!("{text} : {}", first.as_str()),
                (first, second) => format!("{text} : {} {}", first.as_str(), second.as_str()),
            };
        }
        lines.join("\n") + "\n"
    }
}

/// All sequences.
///
/// # Errors
///
/// A line that is not of the language.
pub fn all() -> Result<Vec<Sequence>> {
    let files: Vec<Vec<Sequence>> = FILES.iter().map(File::sequences).collect::<Result<_>>()?;
    Ok(files.concat())
}

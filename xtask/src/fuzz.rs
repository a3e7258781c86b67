//! `cargo xtask fuzz`: searches for inputs that something is wrong with, led by coverage. See `fwha_fuzz`.
//!
//! libFuzzer wants instrumented code and no more, so the pinned toolchain does: its instrumentation is a pass of LLVM.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo::{build_executables, cargo, root};

/// Search for inputs that decoders, nodes or the packet engine make something wrong of
#[derive(clap::Args)]
pub struct Args {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Run this input once, or all inputs of this directory, instead of a search
    #[arg(long, value_name = "PATH", requires = "targets")]
    replay: Option<PathBuf>,
    /// Targets; all of them if none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// The committed corpora, relative to the workspace.
const CORPORA: &str = "fuzz/corpus";
/// Everything found so far, and what the search ended with, relative to the workspace.
const FINDINGS: &str = "target/fuzz-findings";
/// A corpus has no more inputs than this.
const INPUTS_MAX: usize = 300;
/// A corpus is not longer than this, in bytes.
const BYTES_MAX: u64 = 300_000;
/// Inputs are not longer than this: most of what a longer one reaches, a shorter one does.
const INPUT_LEN_MAX: u32 = 4096;

/// What makes code tell libFuzzer which way it went and what it compared.
const INSTRUMENTATION: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    let known = corpora()?;
    if let Some(name) = args.targets.iter().find(|name| !known.contains(name)) {
        bail!("no target {name:?}; there are {}", known.join(", "));
    }
    let program = build()?;
    let targets = if args.targets.is_empty() { &known } else { &args.targets };
    let mut good = true;
    for target in targets {
        let fuzzer = Fuzzer::new(&program, target)?;
        good &= match &args.replay {
            Some(path) => fuzzer.run([path])?,
            None => fuzzer.search(args.seconds)?,
        };
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The names of all corpora, which are those of the targets.
fn corpora() -> Result<Vec<String>> {
    let entries = fs::read_dir(root().join(CORPORA)).with_context(|| format!("read {CORPORA}"))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn build() -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--package", "fwha-fuzz", "--bin", "fwha-fuzz", "--features", "libfuzzer"])
        // With a target named, build scripts and macros are built without the flags.
        .args(["--profile", "fuzz", "--target", &host()?])
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    let program = build_executables(command)?.into_iter().next();
    program.context("cargo built no program")
}

/// The triple of this machine.
fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("start rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc -vV names no host")?.to_owned())
}

/// The program, with one target.
struct Fuzzer<'a> {
    program: &'a Path,
    target: &'a str,
    corpus: PathBuf,
    findings: PathBuf,
}

impl<'a> Fuzzer<'a> {
    fn new(program: &'a Path, target: &'a str) -> Result<Self> {
        let findings = root().join(FINDINGS).join(target);
        for directory in ["corpus", "merged"] {
            let directory = findings.join(directory);
            fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
        }
        Ok(Self { program, target, corpus: root().join(CORPORA).join(target), findings })
    }

    /// Runs the program; whether it found nothing.
    fn run(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<bool> {
        let status = Command::new(self.program)
            .args(args)
            .arg(format!("-max_len={INPUT_LEN_MAX}"))
            .args(["-timeout=10", "-rss_limit_mb=1024", "-verbosity=1"])
            .arg(format!("-artifact_prefix={}/", self.findings.display()))
            .env("FWHA_FUZZ_TARGET", self.target)
            .env("RUST_BACKTRACE", "1")
            .status()
            .with_context(|| format!("start {}", self.program.display()))?;
        Ok(status.success())
    }

    /// Searches for a while, from what is known; what is new and worth it goes into the corpus. Whether nothing is wrong.
    fn search(&self, seconds: u32) -> Result<bool> {
        println!("== {} for {seconds} s", self.target);
        let found = self.findings.join("corpus");
        let time = format!("-max_total_time={seconds}");
        if !self.run([
            time.as_ref(),
            "-print_final_stats=1".as_ref(),
            found.as_os_str(),
            self.corpus.as_os_str(),
        ])? {
            println!(
                "{}: see above; the input is in {}. With the mistake mended, put it into {CORPORA}/{} under a name that says what it was.",
                self.target,
                self.findings.display(),
                self.target
            );
            return Ok(false);
        }
        self.merge(&found)?;
        Ok(true)
    }

    /// Makes the corpus anew, of the fewest and shortest inputs that reach as much as all that were found. Those with a
    /// name of their own stay.
    fn merge(&self, found: &Path) -> Result<()> {
        let merged = self.findings.join("merged");
        fs::remove_dir_all(&merged)?;
        fs::create_dir(&merged)?;
        for path in inputs(&self.corpus)?.into_iter().filter(|path| is_named(path)) {
            fs::copy(&path, merged.join(path.file_name().context("a file has a name")?))?;
        }
        let how = ["-merge=1", "-use_counters=0"].map(OsStr::new);
        let dirs = [merged.as_os_str(), found.as_os_str(), self.corpus.as_os_str()];
        ensure!(self.run(how.into_iter().chain(dirs))?, "merging the corpus of {} failed", self.target);

        let mut kept = HashSet::new();
        let mut bytes = 0;
        let mut sized = inputs(&merged)?;
        sized.sort_by_cached_key(|path| {
            (!is_named(path), fs::metadata(path).map_or(0, |m| m.len()), path.clone())
        });
        for path in sized {
            bytes += fs::metadata(&path)?.len();
            if kept.len() == INPUTS_MAX || bytes > BYTES_MAX {
                println!("{}: the corpus is full; the longest inputs are left out", self.target);
                break;
            }
            let name = path.file_name().context("a file has a name")?.to_owned();
            fs::copy(&path, self.corpus.join(&name))?;
            kept.insert(name);
        }
        for path in inputs(&self.corpus)? {
            if path.file_name().is_none_or(|name| !kept.contains(name)) {
                fs::remove_file(path)?;
            }
        }
        println!("{}: {} inputs in the corpus", self.target, kept.len());
        Ok(())
    }
}

/// The files of a directory.
fn inputs(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

/// Whether an input was named by people; libFuzzer names one by its SHA-1.
fn is_named(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.len() != 40 || !name.iter().all(u8::is_ascii_hexdigit)
}

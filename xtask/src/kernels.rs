//! `cargo xtask kernels`: tests on kernels that Debian has, each in a machine of its own.
//!
//! The machine is emulated (qemu without KVM, which a build machine seldom has), so it is slow: nothing here is about time.
//! It has this system's files below a layer of its own, so tests run as they would here, and change nothing here.

mod machine;
mod package;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::root::is_root;

use crate::cargo::{build_executables, cargo, root};
use crate::command::output;
use machine::Machine;
use package::Kernel;

/// Run tests on other kernels than this machine's: Debian's newest of a suite, emulated
///
/// Without filters these are all tests of the programs (`dataplane`) and the scenarios that need what other kernels have
/// (`vlan_devices`). The kernels are taken from the Debian mirror that apt uses, and kept below `target/kernels/`.
#[derive(clap::Args)]
pub struct Args {
    /// A Debian suite to take the kernel of; can be repeated
    #[arg(long = "suite", value_name = "SUITE", default_values_t = ["trixie".to_owned(), "trixie-backports".to_owned()])]
    suites: Vec<String>,
    /// Give the nodes of the scenarios' lab network cards of this model of qemu's (virtio-net-pci, vmxnet3, e1000e) instead of
    /// veths
    #[arg(long, value_name = "MODEL")]
    nic: Option<String>,
    /// Only tests whose name contains one of these, of the programs, of all scenarios and of the comparison with nf_conntrack
    filters: Vec<String>,
}

/// The test programs, and which tests of them run without filters: all, those of this name, none. What the kernel's tracker does
/// (`conformance`) changes from one to the next: see `docs/conntrack-differences.md`.
const PROGRAMS: [(&str, Option<&str>); 3] =
    [("dataplane", Some("")), ("conformance", None), ("scenarios", Some("vlan_devices"))];

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "kernels need root: the machine reads all files of this one; run `sudo -E cargo xtask kernels`"
        );
    }
    machine::check_tools()?;
    let tests = build()?;
    let dir = root().join("target/kernels");
    let mut failed = false;
    for suite in &args.suites {
        let kernel = Kernel::newest_of(suite, &dir)?;
        let machine = Machine::new(&kernel, args.nic.as_deref())?;
        let mut ran = 0;
        for (program, default) in PROGRAMS {
            let mut filters: Vec<&str> = args.filters.iter().map(String::as_str).collect();
            if filters.is_empty() {
                let Some(default) = default else { continue };
                filters.push(default);
            }
            let path = tests.program(program)?;
            let list = output(Command::new(&path).arg("--list").args(&filters))?;
            if !list.lines().any(|line| line.ends_with(": test")) {
                continue;
            }
            let outcome = machine.run(&path, &filters)?;
            match outcome.passed() {
                Ok(passed) => println!("Linux {}: {program}: {passed} passed", kernel.release),
                Err(error) => {
                    println!("Linux {}: {program}: FAILED: {error:#}\n{}", kernel.release, outcome.said);
                    failed = true;
                }
            }
            ran += outcome.ran();
        }
        ensure!(ran > 0, "no test has such a name");
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The test programs, with the programs that they start beside them.
struct Tests(Vec<PathBuf>);

/// Builds all in the selection that `.ci/run` builds, of which nothing is built anew then.
fn build() -> Result<Tests> {
    let mut command = cargo();
    command.args(["build", "--workspace", "--tests"]);
    for program in ["fwha", "fwhactl", "fwha-traffic", "xtask"] {
        command.args(["--bin", program]);
    }
    Ok(Tests(build_executables(command)?))
}

impl Tests {
    fn program(&self, name: &str) -> Result<PathBuf> {
        let of_name = |path: &&PathBuf| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            file.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
        };
        self.0.iter().find(of_name).cloned().with_context(|| format!("cargo built no test program {name}"))
    }
}

/// Makes a directory empty.
fn empty(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))
}

/// Checks that a file is there.
fn file(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_file(), "{} is missing", path.display());
    Ok(path)
}

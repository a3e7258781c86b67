//! `cargo xtask test`: all tests, with the programs they start built before them.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, Result, bail};
use fwha_tests::root::is_root;

use crate::cargo::{build_bins, cargo};

/// Tests that run at the same time for each processor: most of the time of a scenario is spent waiting for timers.
const LABS_PER_PROCESSOR: usize = 2;

/// Run all tests; without root those that need it say `skipped: needs root`
#[derive(clap::Args)]
pub struct Args {
    /// Passed on to `cargo test`: a filter, `-p PACKAGE`, `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_args: Vec<OsString>,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() && env::var("CI").as_deref() == Ok("true") {
        bail!("CI=true and no root: the tests in network namespaces would be skipped; run as root");
    }
    let bin_dir = build_bins(&["fwha", "fwha-tests"], false)?;
    let mut command = cargo();
    if env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        command.env("RUST_TEST_THREADS", (processors * LABS_PER_PROCESSOR).to_string());
    }
    let status = command
        .args(["test", "--workspace"])
        .args(&args.cargo_args)
        .env("FWHA_BIN_DIR", bin_dir)
        .status()
        .context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

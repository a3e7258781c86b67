//! `cargo xtask test`: all tests, with the programs they start built before them.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context as _, Result, bail};
use fwha_tests::root::is_root;

use crate::cargo::{build_bins, cargo};

/// Run all tests; without root those that need it say `skipped: needs root`
#[derive(clap::Args)]
pub struct Args {
    /// Passed on to `cargo test`: a filter, `-p PACKAGE`, `-- --nocapture`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_args: Vec<OsString>,
}

/// Tests at a time beyond one for each processor: those in labs wait most of the time. With more of them, what moves addresses
/// waits for others: the kernel changes the networks of all namespaces under one lock (`rtnl_mutex`).
const WAITING: usize = 1;

/// How many tests a test program runs at a time, see `cargo test -- --help`.
const TEST_THREADS: &str = "RUST_TEST_THREADS";

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() && env::var("CI").as_deref() == Ok("true") {
        bail!("CI=true and no root: the tests in network namespaces would be skipped; run as root");
    }
    let bin_dir = build_bins(&["fwha", "fwha-tests"], false)?;
    let cpus = thread::available_parallelism().context("count the processors")?.get();
    let threads = env::var_os(TEST_THREADS).unwrap_or_else(|| (cpus + WAITING).to_string().into());
    let status = cargo()
        .args(["test", "--workspace"])
        .args(&args.cargo_args)
        .env("FWHA_BIN_DIR", bin_dir)
        .env(TEST_THREADS, threads)
        .status()
        .context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

//! `cargo xtask test`: all tests, with the programs they start built before them.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

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

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() && env::var("CI").as_deref() == Ok("true") {
        bail!("CI=true and no root: the tests in network namespaces would be skipped; run as root");
    }
    let bin_dir = build_bins(&["fwha", "fwha-tests"], false)?;
    let status = cargo()
        .args(["test", "--workspace"])
        .args(&args.cargo_args)
        .env("FWHA_BIN_DIR", bin_dir)
        .status()
        .context("start cargo")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

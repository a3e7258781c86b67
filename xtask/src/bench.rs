//! `cargo xtask bench SUITE`: figures, measured on the machine it runs on.

mod dataplane;

use std::process::ExitCode;

use anyhow::Result;

/// Measure what fwha costs
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(clap::Subcommand)]
enum Suite {
    Dataplane(dataplane::Args),
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.suite {
        Suite::Dataplane(args) => dataplane::run(args),
    }
}

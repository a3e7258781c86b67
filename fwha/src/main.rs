//! `fwha`: runs a node, checks its config file, or cleans up after it.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;
use fwha::{
    args::{Fwha, FwhaVerb, RunArgs},
    check, cleanup,
    config::ConfigErrors,
    daemon::{self, RunOptions},
    sys::memory::HugePages,
};

/// The replica of a large flow table is looked at here and there.
#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

fn main() -> ExitCode {
    let done = match Fwha::parse().verb {
        FwhaVerb::Run(args) => {
            let RunArgs { config, node, run_dir, state_dir } = args;
            daemon::run(RunOptions { config, node, run_dir, state_dir }).map(|()| ExitCode::SUCCESS)
        }
        FwhaVerb::Check(args) => check::run(&args),
        FwhaVerb::Cleanup(args) => cleanup::run(&args).map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        // Mistakes in the config file name the file themselves.
        let text = match error.downcast_ref::<ConfigErrors>() {
            Some(errors) => errors.to_string(),
            None => format!("fwha: {error:#}"),
        };
        // Whoever closed standard error does not want to know.
        let _ = writeln!(std::io::stderr(), "{text}");
        ExitCode::FAILURE
    })
}

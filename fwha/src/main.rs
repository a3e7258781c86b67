//! `fwha`: runs a node, or checks its config file.

use std::process::ExitCode;

use clap::Parser;
use fwha::{
    args::{Fwha, FwhaVerb},
    check,
    config::ConfigErrors,
    daemon::{self, RunOptions},
};

fn main() -> ExitCode {
    let done = match Fwha::parse().verb {
        FwhaVerb::Run(args) => {
            daemon::run(RunOptions { config: args.config, node: args.node, run_dir: args.run_dir })
                .map(|()| ExitCode::SUCCESS)
        }
        FwhaVerb::Check(args) => check::run(&args),
    };
    done.unwrap_or_else(|error| {
        // Mistakes in the config file name the file themselves.
        match error.downcast_ref::<ConfigErrors>() {
            Some(errors) => eprintln!("{errors}"),
            None => eprintln!("fwha: {error:#}"),
        }
        ExitCode::FAILURE
    })
}

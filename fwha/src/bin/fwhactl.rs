//! `fwhactl`: asks a running fwha node, and tells it what to do.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    fwha::ctl::run(fwha::args::Fwhactl::parse())
}

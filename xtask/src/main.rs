//! Chores of the project: `cargo xtask VERB`. One verb, one file.

mod bench;
mod build_ebpf;
mod cargo;
mod conformance;
mod demo;
mod fuzz;
mod test;

use std::process::ExitCode;

use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "chores of the project")]
enum Command {
    Bench(bench::Args),
    BuildEbpf(build_ebpf::Args),
    Conformance(conformance::Args),
    Demo(demo::Args),
    Fuzz(fuzz::Args),
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Bench(args) => bench::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Test(args) => test::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

//! Chores of the project: `cargo xtask VERB`. One verb, one file.

mod bench;
mod build_ebpf;
mod cargo;
mod command;
mod conformance;
mod demo;
mod faults;
mod fuzz;
mod kernels;
mod sim;
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
    Faults(faults::Args),
    Fuzz(fuzz::Args),
    Kernels(kernels::Args),
    Sim(sim::Args),
    Test(test::Args),
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Bench(args) => bench::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Faults(args) => faults::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Sim(args) => sim::run(&args),
        Command::Test(args) => test::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

//! `cargo xtask bench [SUITE]`: figures, measured on the machine it runs on.

mod connections;
mod contender;
mod dataplane;
mod failover;
mod figures;
mod forward;
mod latency;
mod live;
mod plot;
mod replication;
mod report;
mod ruleset;
mod scale;
mod stage;
mod throughput;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Measure what fwha costs
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    /// All suites, each as short as it can be, to see that they work; the figures mean nothing
    #[arg(long)]
    quick: bool,
    #[command(subcommand)]
    suite: Option<Suite>,
}

#[derive(clap::Subcommand)]
enum Suite {
    Connections(connections::Args),
    Dataplane(dataplane::Args),
    Failover(failover::Args),
    Forward(forward::Args),
    Latency(latency::Args),
    Replication(replication::Args),
    Ruleset(ruleset::Args),
    Scale(scale::Args),
    Throughput(throughput::Args),
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    match &args.suite {
        Some(Suite::Connections(args)) => connections::run(args),
        Some(Suite::Dataplane(args)) => dataplane::run(args),
        Some(Suite::Failover(args)) => failover::run(args),
        Some(Suite::Forward(args)) => forward::run(args),
        Some(Suite::Latency(args)) => latency::run(args),
        Some(Suite::Ruleset(args)) => ruleset::run(args),
        Some(Suite::Scale(args)) => scale::run(args),
        Some(Suite::Replication(args)) => replication::run(args),
        Some(Suite::Throughput(args)) => throughput::run(args),
        None if args.quick => {
            dataplane::run(&dataplane::Args::quick())?;
            forward::run(&forward::Args::quick())?;
            ruleset::run(&ruleset::Args::quick())?;
            latency::run(&latency::Args::quick())?;
            connections::run(&connections::Args::quick())?;
            scale::run(&scale::Args::quick())?;
            throughput::run(&throughput::Args::quick())?;
            replication::run(&replication::Args::quick())?;
            failover::run(&failover::Args::quick())
        }
        None => {
            bail!("which suite? `cargo xtask bench --help` shows them; or all with `--quick`")
        }
    }
}

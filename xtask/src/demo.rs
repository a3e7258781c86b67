//! `cargo xtask demo`: the product in one command. See `fwha_tests::takeover` for what happens in it.

mod timeline;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::{self, Attach, Cable, Host, Lab, LabOptions, Node, binary};
use fwha_tests::pair::Pair;
use fwha_tests::root::is_root;
use fwha_tests::takeover::{self, Outcome, Progress};
use fwha_tests::traffic::Plan;
use indicatif::{ProgressBar, ProgressStyle};

use crate::cargo::build_bins;

/// Lines of each node's log that a failure shows.
const LOG_LINES: usize = 40;

/// Copy a file through two firewalls, lose the active one in the middle, and check that the connection survives
#[derive(clap::Args)]
pub struct Args {
    /// Switch replication off: then the connection must die
    #[arg(long)]
    no_sync: bool,
    /// Leave the lab standing, whole again, and say how to enter it
    #[arg(long, conflicts_with = "runs")]
    keep: bool,
    /// Remove labs that were left standing, and do nothing else
    #[arg(long, exclusive = true)]
    clean: bool,
    /// How packets are caught on the zones' interfaces
    #[arg(long, value_enum, default_value_t = AttachArg::Auto)]
    attach: AttachArg,
    /// The file's size
    #[arg(long, value_name = "MiB", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    size: u64,
    /// How fast it is copied
    #[arg(long, value_name = "MiB/s", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=2_000))]
    rate: u64,
    /// How often; each time with a new lab
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    runs: u32,
    /// Build as for use, which takes longer; otherwise as for `cargo xtask test`, with the dear parts optimised
    #[arg(long)]
    release: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum AttachArg {
    Auto,
    Xdp,
    Tc,
}

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    if !is_root() {
        bail!(
            "the demo needs root: it makes network namespaces and loads BPF programs; run `sudo -E cargo xtask demo`"
        );
    }
    if args.clean {
        let removed = lab::clean_kept(|_| true)?;
        println!(
            "{}",
            if removed.is_empty() {
                "no lab was left".into()
            } else {
                format!("removed {}", removed.join(", "))
            }
        );
        return Ok(ExitCode::SUCCESS);
    }
    let options = LabOptions {
        attach: match args.attach {
            AttachArg::Auto => Attach::Auto,
            AttachArg::Xdp => Attach::Xdp,
            AttachArg::Tc => Attach::Tc,
        },
        replication: !args.no_sync,
        bin_dir: Some(build_bins(&["fwha", "fwha-tests"], args.release)?),
        ..LabOptions::default()
    };

    let mut runs = Vec::new();
    for number in 1..=args.runs {
        if args.runs > 1 {
            println!("\nrun {number} of {}", args.runs);
        }
        runs.push(one(args, &options)?);
    }
    if args.runs > 1 {
        timeline::table(&runs);
    }
    Ok(if runs.iter().all(|run| run.passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What became of one run.
struct Run {
    /// None when it broke off.
    outcome: Option<Outcome>,
    passed: bool,
}

/// One run in a lab of its own, told as it goes.
///
/// # Errors
///
/// When the lab cannot be laid or removed; all else is a run that failed.
fn one(args: &Args, options: &LabOptions) -> Result<Run> {
    let lab = Lab::new(options.clone()).context("lay the lab")?;
    let plan = Plan { size: args.size << 20, rate: args.rate << 20, ..Plan::default() };
    let mut outcome = None;
    let verdict = play(args, &lab, plan, &mut outcome);
    lab::wait_if_terminating();
    match (&verdict, &outcome) {
        (Ok(()), Some(outcome)) if args.no_sync => {
            println!(
                "PASS: without replication {} did not know the connection, and it died",
                outcome.survivor()
            );
        }
        (Ok(()), _) => println!("PASS: the connection survived the loss of its firewall"),
        (Err(error), _) => {
            eprint!("{}", lab.log_tails(LOG_LINES));
            println!("FAIL: {error:#}");
        }
    }
    if args.keep {
        print_entry(&lab)?;
        lab.keep()?;
    } else {
        lab.remove()?;
    }
    Ok(Run { outcome, passed: verdict.is_ok() })
}

/// Plays the scenario, prints its timeline, checks what came of it, and with `--keep` makes the pair whole again.
fn play(args: &Args, lab: &Lab, plan: Plan, told: &mut Option<Outcome>) -> Result<()> {
    let mut pair = Pair::start(lab)?;
    let outcome = told.insert(watch(lab, &mut pair, plan, args.no_sync)?);
    timeline::print(outcome);
    if args.no_sync {
        outcome.check_died()?;
    } else {
        outcome.check_survived()?;
    }
    if args.keep {
        lab.heal(outcome.lost, Cable::All)?;
        pair.restart(lab, outcome.lost)?;
        pair.settle(lab)?;
    }
    Ok(())
}

/// Runs the scenario under a progress bar, or with a line now and then where there is no terminal.
fn watch(lab: &Lab, pair: &mut Pair, plan: Plan, no_sync: bool) -> Result<Outcome> {
    let style = "{msg:<41} [{wide_bar}] {binary_bytes} of {binary_total_bytes}";
    let bar =
        ProgressBar::new(plan.size).with_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
    bar.enable_steady_tick(Duration::from_millis(100));
    let say = |message: String| {
        if bar.is_hidden() {
            println!("{message}");
        }
        bar.set_message(message);
    };
    let mut quarters = 0;
    let result = takeover::run(lab, pair, plan, |progress| match progress {
        Progress::Started => say("fw1 and fw2 start".into()),
        Progress::Settled(active) => say(format!("{active} is active, {} backup: copying", active.peer())),
        Progress::Copied(bytes) => {
            bar.set_position(bytes);
            let reached = bytes * 4 / plan.size;
            if bar.is_hidden() && reached > quarters {
                quarters = reached;
                println!("{} of {} MiB", bytes >> 20, plan.size >> 20);
            }
        }
        Progress::Lost(lost) if no_sync => say(format!("{lost} is lost: waiting for the copy to die")),
        Progress::Lost(lost) => say(format!("{lost} is lost: copying through {}", lost.peer())),
    });
    bar.finish_and_clear();
    result
}

/// Tells how to use a lab that is left standing.
fn print_entry(lab: &Lab) -> Result<()> {
    let fwhactl = binary("fwhactl", lab.options().bin_dir.as_deref())?;
    ensure!(fwhactl.is_file());
    println!("\nThe lab stays. A shell on one of its boxes:");
    for host in Host::ALL {
        println!("  ip netns exec {} bash", lab.namespace(host));
    }
    println!("The nodes, from anywhere:");
    for node in Node::ALL {
        let socket = lab.dir().join(node.name()).join("fwha.sock");
        println!("  {} --socket {} status", fwhactl.display(), socket.display());
    }
    println!("  (also: flows, stats, events --follow, switchover)");
    println!("Config, key and logs: {}", lab.dir().display());
    println!("Remove it with `cargo xtask demo --clean`.");
    Ok(())
}

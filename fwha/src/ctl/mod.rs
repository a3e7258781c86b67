//! `fwhactl`: one file a verb.
//!
//! | file | holds |
//! |---|---|
//! | `client` | HTTP on the control socket |
//! | `term` | colours, aligned columns, durations and times for people |
//! | `status`, `flows`, `diff` (of flows), `stats`, `events`, `capture`, `transfer`, `switchover`, `standby`, `explain`, `reload`, `resource`, `keygen` | the verbs |

mod capture;
mod client;
mod diff;
mod events;
mod explain;
mod flows;
mod keygen;
mod reload;
mod resource;
mod standby;
mod stats;
mod status;
mod switchover;
mod term;
mod transfer;

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use serde::Serialize;

use crate::api::{Status, path};
use crate::args::{CtlVerb, Fwhactl, Output};
use client::Client;
use term::Style;

/// Does what the command line says and prints the answer. Errors are printed too, as one line.
pub fn run(args: Fwhactl) -> ExitCode {
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(dispatch(args)));
    done.unwrap_or_else(|error| {
        // Whoever reads has seen enough (`fwhactl flows | head`).
        if error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        tell(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

async fn dispatch(args: Fwhactl) -> anyhow::Result<ExitCode> {
    let ctl = Ctl { client: Client::new(args.socket), output: args.output, style: Style::of_stdout() };
    match args.verb {
        CtlVerb::Status(args) => return status::run(&ctl, &args).await,
        CtlVerb::Flows(args) => return flows::run(&ctl, &args).await,
        CtlVerb::Stats(args) => stats::run(&ctl, &args).await?,
        CtlVerb::Events(args) => events::run(&ctl, &args).await?,
        CtlVerb::Capture(args) => capture::run(&ctl, &args).await?,
        CtlVerb::Bulk(args) => return transfer::run(&ctl, path::BULK, args).await,
        CtlVerb::Resync(args) => return transfer::run(&ctl, path::RESYNC, args).await,
        CtlVerb::Switchover(args) => switchover::run(&ctl, args).await?,
        CtlVerb::Explain(args) => explain::run(&ctl, &args).await?,
        CtlVerb::Standby(args) => standby::run(&ctl, &args).await?,
        CtlVerb::Reload(args) => return reload::run(&ctl, &args).await,
        CtlVerb::Resource(args) => resource::run(&ctl, args).await?,
        CtlVerb::Keygen(args) => keygen::run(ctl.output, &args)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What every verb needs.
struct Ctl {
    client: Client,
    output: Output,
    style: Style,
}

impl Ctl {
    /// The peer of this name, or all of them: of each the daemon must say what became of it.
    async fn peers(&self, named: Option<&String>) -> anyhow::Result<BTreeSet<String>> {
        if let Some(name) = named {
            return Ok(BTreeSet::from([name.clone()]));
        }
        let status: Status = self.client.get(path::STATUS).await?;
        Ok(status.peers.into_iter().map(|peer| peer.name).collect())
    }
}

/// Prints to standard output. Whoever reads may have seen enough (`fwhactl status | head -1`): that is no error, and what was
/// to be done goes on.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}

/// Says something to people that is no part of the answer.
fn tell(text: fmt::Arguments<'_>) {
    // The daemon's words may hold what a stranger sent it. Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr(), "fwhactl: {}", term::plain(&text.to_string()));
}

/// Prints one object as a line of JSON.
fn print_json(out: &mut impl Write, object: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(object)?;
    line.push(b'\n');
    out.write_all(&line)?;
    Ok(())
}

//! `fwhactl reload`: the cluster file is read again.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use super::{Ctl, print, print_json, tell, term};
use crate::{
    api::{ApiError, ConfigChange, ReloadReply, ReloadRequest, path},
    args::{Output, ReloadArgs},
};

pub(super) async fn run(ctl: &Ctl, args: &ReloadArgs) -> anyhow::Result<ExitCode> {
    let request = ReloadRequest { dry_run: args.dry_run, revalidate: args.revalidate };
    let reply: ReloadReply = match ctl.client.post(path::RELOAD, &request).await {
        Ok(reply) => reply,
        Err(error) => {
            // Mistakes in the file, shown as `fwha check` does: many lines.
            let Some(ApiError { error: text }) = error.downcast_ref() else { return Err(error) };
            if text.lines().count() == 1 {
                return Err(error);
            }
            let mut stderr = io::stderr().lock();
            // Whoever closed it does not want to know.
            let _ = text.lines().try_for_each(|line| writeln!(stderr, "{}", term::plain(line)));
            return Ok(ExitCode::FAILURE);
        }
    };
    let mut out = Vec::new();
    match ctl.output {
        Output::Json => print_json(&mut out, &reply)?,
        Output::Table => table(&mut out, &reply)?,
    }
    print(&out)?;
    if ctl.output == Output::Table {
        reply.warnings.iter().for_each(|warning| tell(format_args!("warning: {warning}")));
    }
    let restarts = reply.changes.iter().filter(|c| c.restart).count();
    if restarts == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    if ctl.output == Output::Table {
        let these = if restarts == 1 { "one change needs" } else { "some changes need" };
        let what = if args.dry_run { "a reload would change nothing" } else { "nothing was changed" };
        tell(format_args!("{what}: {these} a restart of fwha, on one node after the other"));
    }
    Ok(ExitCode::FAILURE)
}

fn table(out: &mut impl Write, reply: &ReloadReply) -> io::Result<()> {
    for ConfigChange { text, restart } in &reply.changes {
        writeln!(out, "{}{}", term::plain(text), if *restart { " (needs a restart)" } else { "" })?;
    }
    if reply.changes.is_empty() {
        writeln!(out, "nothing changed")?;
    }
    if let Some(ended) = reply.flows_ended {
        let flows = if ended == 1 { "flow" } else { "flows" };
        writeln!(out, "{ended} {flows} ended that the rules do not admit")?;
    }
    Ok(())
}

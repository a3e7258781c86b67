//! `fwhactl standby`: take the node out, or let it take part again.

use std::io::{self, Write};

use super::{Ctl, print_json};
use crate::{
    api::{MovedGroup, StandbyReply, StandbyRequest, path},
    args::{Output, StandbyArgs, Switch},
};

pub(super) async fn run(ctl: &Ctl, args: &StandbyArgs) -> anyhow::Result<()> {
    let request = StandbyRequest { on: args.standby == Switch::On, force: args.force };
    let reply: StandbyReply = ctl.client.post(path::STANDBY, &request).await?;
    let mut out = io::stdout().lock();
    match ctl.output {
        Output::Json => print_json(&mut out, &reply)?,
        Output::Table => {
            let StandbyReply { node, on, moved, took_ms } = reply;
            for MovedGroup { group, to } in moved {
                let to = to.map_or("is with no node now".into(), |to| format!("moved to {to}"));
                writeln!(out, "{group} {to} in {took_ms:.1} ms")?;
            }
            writeln!(out, "{node} {}", if on { "is on standby" } else { "takes part again" })?;
        }
    }
    Ok(())
}

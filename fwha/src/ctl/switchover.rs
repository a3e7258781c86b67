//! `fwhactl switchover`: move a group to another node.

use std::io::{self, Write};

use super::{Ctl, print_json};
use crate::{
    api::{SwitchoverReply, SwitchoverRequest, path},
    args::{Output, SwitchoverArgs},
};

pub(super) async fn run(ctl: &Ctl, args: SwitchoverArgs) -> anyhow::Result<()> {
    let request = SwitchoverRequest { group: args.group, to: args.to };
    let reply: SwitchoverReply = ctl.client.post(path::SWITCHOVER, &request).await?;
    let mut out = io::stdout().lock();
    match ctl.output {
        Output::Json => print_json(&mut out, &reply)?,
        Output::Table => {
            let SwitchoverReply { group, from, to, took_ms } = reply;
            writeln!(out, "{group} moved from {from} to {to} in {took_ms:.1} ms")?;
        }
    }
    Ok(())
}

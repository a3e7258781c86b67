//! `fwhactl resource`: what runs with the groups.

use std::io::{self, Write};

use super::{Ctl, print_json, term};
use crate::{
    api::{ResourceReply, ResourceRequest, path},
    args::{Output, ResourceArgs, ResourceVerb},
};

pub(super) async fn run(ctl: &Ctl, args: ResourceArgs) -> anyhow::Result<()> {
    let ResourceVerb::Cleanup { name } = args.verb;
    let reply: ResourceReply = ctl.client.post(path::RESOURCE_CLEANUP, &ResourceRequest { name }).await?;
    let mut out = io::stdout().lock();
    match ctl.output {
        Output::Json => print_json(&mut out, &reply)?,
        Output::Table => {
            let ResourceReply { node, name } = reply;
            writeln!(out, "{}: the failures of {} are forgotten", term::plain(&node), term::plain(&name))?;
        }
    }
    Ok(())
}

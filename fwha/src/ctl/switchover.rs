//! `fwhactl switchover`: move a group to another node.

use std::{io::Write, time::Duration};

use anyhow::bail;
use tokio::time::{Instant, sleep};

use super::{Ctl, print, print_json};
use crate::{
    api::{Status, SwitchoverReply, SwitchoverRequest, path},
    args::{Output, SwitchoverArgs},
};

/// Between two looks at whether the nodes are in sync.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);
/// A bulk of millions of flows takes some seconds.
const SYNC_WAIT: Duration = Duration::from_secs(60);

pub(super) async fn run(ctl: &Ctl, args: SwitchoverArgs) -> anyhow::Result<()> {
    let request = SwitchoverRequest { group: args.group, to: args.to, force: args.force };
    let reply: SwitchoverReply = ctl.client.post(path::SWITCHOVER, &request).await?;
    let mut out = Vec::new();
    match ctl.output {
        Output::Json => print_json(&mut out, &reply)?,
        Output::Table => {
            let SwitchoverReply { group, from, to, took_ms } = &reply;
            writeln!(out, "{group} moved from {from} to {to} in {took_ms:.1} ms")?;
        }
    }
    print(&out)?;
    if args.wait { wait_for_sync(ctl, &reply).await } else { Ok(()) }
}

/// Waits until this node holds the flows of the group's new node.
async fn wait_for_sync(ctl: &Ctl, moved: &SwitchoverReply) -> anyhow::Result<()> {
    let SwitchoverReply { group, to, .. } = moved;
    let deadline = Instant::now() + SYNC_WAIT;
    loop {
        let status: Status = ctl.client.get(path::STATUS).await?;
        let active = status.groups.iter().find(|g| g.name == *group).and_then(|g| g.active.clone());
        if active.as_ref() != Some(to) {
            let active = active.unwrap_or_else(|| "no node".into());
            bail!("group {group} went on from {to} to {active}");
        }
        let Some(peer) = status.peers.iter().find(|p| p.name == *to) else { return Ok(()) };
        // Without replication no digest will ever agree.
        let in_sync = peer.sync.digest_match && peer.sync.state == "in-sync";
        if in_sync || peer.sync.state == "disabled" {
            return Ok(());
        }
        if peer.state != "alive" || Instant::now() > deadline {
            bail!(
                "group {group} is with {to}, but this node is not in sync with it: {to} is {}, replication is {}",
                peer.state,
                peer.sync.state
            );
        }
        sleep(LOOK_INTERVAL).await;
    }
}

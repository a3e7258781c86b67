//! `fwhactl status`: is all well, and who does what.

use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

use tokio::time::MissedTickBehavior;

use super::{
    Ctl,
    client::Silent,
    print, print_json, tell,
    term::{self, Grid, Paint, Style},
};
use crate::{
    api::{
        GroupStatus, LinkStatus, PeerStatus, ResourceStatus, Role, Status, SyncStatus, TrackerStatus, path,
    },
    args::{Output, StatusArgs},
};

/// The exit code when a group has not exactly one Active node, or the daemon hangs, as a whole or one of its threads.
const TROUBLED: u8 = 3;

/// Between two pictures of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

pub(super) async fn run(ctl: &Ctl, args: &StatusArgs) -> anyhow::Result<ExitCode> {
    if args.watch {
        return watch(ctl).await;
    }
    let status: Status = match ctl.client.get(path::STATUS).await {
        Ok(status) => status,
        Err(error) if error.is::<Silent>() => {
            tell(format_args!("{error:#}"));
            return Ok(ExitCode::from(TROUBLED));
        }
        Err(error) => return Err(error),
    };
    let mut out = Vec::new();
    draw(&mut out, ctl, &status)?;
    print(&out)?;
    Ok(if status.troubled() { ExitCode::from(TROUBLED) } else { ExitCode::SUCCESS })
}

/// Shows the status every second. A daemon that is gone may come back, so that is shown too.
async fn watch(ctl: &Ctl) -> anyhow::Result<ExitCode> {
    let mut ticks = tokio::time::interval(WATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut out = Vec::new();
        if ctl.style.terminal && ctl.output == Output::Table {
            // Cursor to the corner, erase the screen.
            write!(out, "\x1b[H\x1b[2J")?;
        }
        match ctl.client.get::<Status>(path::STATUS).await {
            Ok(status) => draw(&mut out, ctl, &status)?,
            Err(error) if ctl.output == Output::Table => {
                let text = format!("{error:#}");
                writeln!(out, "{}", ctl.style.paint(Paint::Bad, &text))?;
            }
            Err(error) => return Err(error),
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&out)?;
        stdout.flush()?;
    }
}

fn draw(out: &mut Vec<u8>, ctl: &Ctl, status: &Status) -> anyhow::Result<()> {
    match ctl.output {
        Output::Json => print_json(out, status),
        Output::Table => Ok(table(out, ctl.style, status)?),
    }
}

fn table(out: &mut Vec<u8>, style: Style, status: &Status) -> io::Result<()> {
    let Status { node, cluster, config_hash, version, uptime_ms, flows, .. } = status;
    writeln!(
        out,
        "{} of cluster {}, config {config_hash}, fwha {version}, up {}",
        style.paint(Paint::Bold, node),
        style.paint(Paint::Bold, cluster),
        term::duration(*uptime_ms)
    )?;

    let mut groups = Grid::with_heading(&["GROUP", "ROLE", "ACTIVE", "TERM", "FOR", "VIPS", "REASON"]);
    for group in &status.groups {
        groups.row(group_row(group));
    }
    writeln!(out)?;
    groups.print(out, style, "")?;

    for group in &status.groups {
        if let Some(trackers) = trackers(&group.trackers) {
            writeln!(out)?;
            if status.groups.len() > 1 {
                writeln!(out, "trackers of group {}:", term::plain(&group.name))?;
            }
            trackers.print(out, style, "")?;
        }
    }
    for group in &status.groups {
        if let Some(resources) = resources(&group.resources) {
            writeln!(out)?;
            if status.groups.len() > 1 {
                writeln!(out, "resources of group {}:", term::plain(&group.name))?;
            }
            resources.print(out, style, "")?;
        }
    }

    if !status.peers.is_empty() {
        let mut peers = Grid::with_heading(&["PEER", "STATE", "SYNC", "LAG", "UNACKED", "LINKS"]);
        for peer in &status.peers {
            peers.row(peer_row(peer));
        }
        writeln!(out)?;
        peers.print(out, style, "")?;
    }

    if !status.witnesses.is_empty() {
        let mut witnesses = Grid::with_heading(&["WITNESS", "STATE", "FOR", "RTT"]);
        for witness in &status.witnesses {
            let state = if witness.state == "up" { Paint::Good } else { Paint::Warn };
            let rtt = witness.rtt_us.map_or_else(String::new, |us| format!("{:.2}ms", us as f64 / 1000.0));
            witnesses.row([
                (Paint::Bold, witness.address.clone()),
                (state, witness.state.clone()),
                (Paint::Plain, term::duration(witness.since_ms)),
                (Paint::Plain, rtt),
            ]);
        }
        writeln!(out)?;
        witnesses.print(out, style, "")?;
    }

    if !status.reaches.is_empty() {
        let mut reaches = Grid::with_heading(&["REACH", "NEIGHBOURS", "FOR", "FRAMES"]);
        for reach in &status.reaches {
            let state = if reach.state == "down" { Paint::Bad } else { Paint::Warn };
            let paths: Vec<String> =
                reach.paths.iter().map(|(peer, path)| format!("{peer} {path}")).collect();
            reaches.row([
                (Paint::Bold, reach.zone.clone()),
                (state, format!("{} of {} answer", reach.answered, reach.asked)),
                (Paint::Plain, term::duration(reach.since_ms)),
                (Paint::Plain, paths.join(", ")),
            ]);
        }
        writeln!(out)?;
        reaches.print(out, style, "")?;
    }

    if !status.interfaces.is_empty() {
        let mut interfaces = Grid::with_heading(&["INTERFACE", "ZONE", "ATTACHED", "WHY"]);
        for i in &status.interfaces {
            let cells = [i.interface.clone(), i.zone.clone(), i.attach.to_string(), i.reason.clone()];
            interfaces.row(cells.map(|text| (Paint::Plain, text)));
        }
        writeln!(out)?;
        interfaces.print(out, style, "")?;
    }

    let used = flows.local + flows.peer;
    writeln!(
        out,
        "\nflows: {} local, {} from peers, {} of {} used; {} embryonic; {} at risk",
        flows.local, flows.peer, used, flows.max, flows.embryonic, flows.at_risk
    )?;
    for warning in &status.warnings {
        writeln!(out, "{} {}", style.paint(Paint::Warn, "warning:"), style.paint(Paint::Plain, warning))?;
    }
    Ok(())
}

fn group_row(group: &GroupStatus) -> [(Paint, String); 7] {
    let role = match group.role {
        Role::Active => Paint::Good,
        Role::Backup => Paint::Plain,
        Role::Init | Role::Standby => Paint::Warn,
        Role::Fault => Paint::Bad,
    };
    let active: Vec<&str> = group.active.iter().chain(&group.also_active).map(String::as_str).collect();
    let active = match &active[..] {
        [] => (Paint::Bad, "none".to_owned()),
        [one] => (Paint::Plain, (*one).to_owned()),
        many => (Paint::Bad, many.join(", ")),
    };
    [
        (Paint::Bold, group.name.clone()),
        (role, group.role.to_string()),
        active,
        (Paint::Plain, group.term.to_string()),
        (Paint::Plain, term::duration(group.since_ms)),
        (Paint::Plain, group.vips.join(" ")),
        (Paint::Dim, group.reason.clone()),
    ]
}

/// What is watched; `None` if nothing is.
pub(super) fn trackers(trackers: &[TrackerStatus]) -> Option<Grid> {
    let mut grid = Grid::with_heading(&["TRACKER", "STATE", "FOR", "EFFECT", "LAST RESULT"]);
    for tracker in trackers {
        let state = match (tracker.state.as_str(), tracker.counts) {
            ("up", _) => Paint::Good,
            ("down", true) => Paint::Bad,
            _ => Paint::Warn,
        };
        grid.row([
            (Paint::Bold, tracker.name.clone()),
            (state, tracker.state.clone()),
            (Paint::Plain, term::duration(tracker.since_ms)),
            (Paint::Plain, tracker.effect.clone()),
            (Paint::Dim, tracker.result.clone()),
        ]);
    }
    (!trackers.is_empty()).then_some(grid)
}

/// What runs with a group; `None` if nothing does.
fn resources(resources: &[ResourceStatus]) -> Option<Grid> {
    let mut grid = Grid::with_heading(&["RESOURCE", "STATE", "FOR", "RESTARTS", "LAST RESULT"]);
    for resource in resources {
        let state = match (resource.state.as_str(), &resource.failure) {
            ("failed", _) => Paint::Bad,
            ("starting" | "stopping" | "unknown", _) | (_, Some(_)) => Paint::Warn,
            ("running", None) => Paint::Good,
            _ => Paint::Plain,
        };
        grid.row([
            (Paint::Bold, resource.name.clone()),
            (state, resource.state.clone()),
            (Paint::Plain, term::duration(resource.since_ms)),
            (Paint::Plain, resource.restarts.to_string()),
            (Paint::Dim, resource.result.clone()),
        ]);
    }
    (!resources.is_empty()).then_some(grid)
}

fn peer_row(peer: &PeerStatus) -> [(Paint, String); 6] {
    let state = if peer.state == "alive" { Paint::Good } else { Paint::Bad };
    let mut shown = peer.state.clone();
    if let Some(since_ms) = peer.since_ms {
        shown.push_str(&format!(" for {}", term::duration(since_ms)));
    }
    if !peer.reason.is_empty() {
        shown.push_str(&format!(" ({})", peer.reason));
    }
    let links: Vec<String> = peer.links.iter().map(link).collect();
    let well = |l: &LinkStatus| l.state == "up" && matches!(l.replication.as_str(), "" | "up");
    let link_paint = if peer.links.iter().all(well) { Paint::Plain } else { Paint::Bad };
    [
        (Paint::Bold, peer.name.clone()),
        (state, shown),
        sync_cell(&peer.sync),
        (Paint::Plain, term::duration(peer.sync.lag_ms)),
        (Paint::Plain, peer.sync.unacked.to_string()),
        (link_paint, links.join(", ")),
    ]
}

fn sync_cell(sync: &SyncStatus) -> (Paint, String) {
    let mut text = sync.state.clone();
    if let Some(bulk) = &sync.bulk {
        let left = bulk.remaining_ms.map_or(String::new(), |ms| format!(", {} left", term::duration(ms)));
        text.push_str(&format!(
            " ({} {} of {}, {} buckets to go{left})",
            bulk.direction, bulk.flows_done, bulk.flows_total, bulk.buckets_left
        ));
    }
    text.push_str(&format!(" for {}", term::duration(sync.since_ms)));
    match sync.state.as_str() {
        "in-sync" if sync.digest_match => (Paint::Good, text),
        "down" | "silent" | "diverged" => (Paint::Bad, text),
        _ => (Paint::Warn, text),
    }
}

/// Interface, heartbeats, round trip; then what is worth a word about replication on it.
fn link(link: &LinkStatus) -> String {
    let mut text = format!("{} {}", link.interface, link.state);
    if let Some(rtt_us) = link.rtt_us {
        text.push_str(&format!(" {:.2}ms", rtt_us as f64 / 1000.0));
    }
    if let Some(loss @ 1..) = link.loss_per_mille {
        text.push_str(&format!(" {:.1}% lost", f64::from(loss) / 10.0));
    }
    if !matches!(link.replication.as_str(), "" | "up") {
        text.push_str(&format!(" (replication {})", link.replication));
    }
    if link.used {
        text.push_str(" used");
    }
    text
}

//! Frames that are lost one way in a zone although every carrier is there.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{CLIENT, Cable, Lab, LabOptions, Node};
use fwha_tests::pair::{Pair, role};
use fwha_tests::scenario::with_pair;
use serde_json::Value;

/// Rounds of advertisements, one a second, in which anything would flap that can.
const ROUNDS: u64 = 8;

/// No frame of these nodes gets out of their LAN port, or all do again.
fn mute(lab: &Lab, nodes: &[Node]) -> Result<()> {
    let cables: Vec<_> = nodes.iter().map(|&node| (node, "lan")).collect();
    lab.mute(&cables)
}

/// Lets the nodes know a neighbour in the LAN: the client asks each for its address.
fn make_known(lab: &Lab) -> Result<()> {
    for node in Node::ALL {
        lab.exec(node.host(), &["ping", "-c", "1", "-W", "2", CLIENT]).context("ping")?;
    }
    Ok(())
}

fn path(status: &Value, peer: Node) -> Option<&str> {
    status.pointer("/reaches/0/paths")?.get(peer.name())?.as_str()
}

fn hold(lab: &Lab, pair: &Pair, before: &[(String, u64); 2]) -> Result<()> {
    let active = if before[0].0 == "active" { Node::Fw1 } else { Node::Fw2 };
    pair.wait_for_adverts(lab, active, ROUNDS)?;
    ensure!(pair.roles()? == *before, "{:?} was {before:?}", pair.roles()?);
    Ok(())
}

#[test]
fn an_active_whose_frames_do_not_get_out_in_a_zone_gives_way_and_does_not_come_back() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let backup = active.peer();
        make_known(lab)?;
        // The neighbours are looked at every ten seconds.
        pair.wait_for_adverts(lab, active, 11)?;
        mute(lab, &[active])?;
        let cut = Instant::now();
        pair.wait_for_role(lab, backup, "active")?;
        println!("the group has moved {:.1} s after the loss", cut.elapsed().as_secs_f64());
        pair.wait_for_role(lab, active, "fault")?;
        let status = pair
            .wait_for_status(lab, active, "the loss to be named", |s| path(s, backup) == Some("unheard"))?;
        let warnings = status["warnings"].to_string();
        ensure!(
            warnings.contains(&format!("one-way in zone lan: {backup} does not hear {active}")),
            "{warnings}"
        );
        pair.wait_for_status(lab, backup, "the loss to be named", |s| path(s, active) == Some("deaf"))?;
        let explained = pair.node(active).ctl_output(&["explain", "role"])?;
        println!("{}", String::from_utf8_lossy(&explained.stdout));
        let before = pair.roles()?;
        hold(lab, pair, &before)?;
        mute(lab, &[])?;
        ensure!(pair.settle(lab)? == backup);
        hold(lab, pair, &pair.roles()?)?;
        let status = pair.node(active).ctl(&["status"])?;
        ensure!(status.get("reaches").is_none() && role(&status) == Some("backup"), "{status}");
        let events = pair.node(active).ctl_lines(&["events"])?;
        let told: Vec<&str> =
            events.iter().filter(|e| e["kind"] == "path").filter_map(|e| e["text"].as_str()).collect();
        ensure!(
            told == [
                format!("one-way in zone lan: {backup} does not hear {active}"),
                format!("zone lan: {backup} and {active} hear each other again"),
            ],
            "{told:?}"
        );
        Ok(())
    });
}

#[test]
fn the_same_loss_at_the_backup_or_at_both_moves_nothing() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let backup = active.peer();
        make_known(lab)?;
        let before = term_and_active(pair, active)?;
        mute(lab, &[backup])?;
        pair.wait_for_status(lab, active, "the loss to be named", |s| path(s, backup) == Some("deaf"))?;
        mute(lab, &[active, backup])?;
        pair.wait_for_status(lab, active, "the loss to be named", |s| path(s, backup) == Some("cut"))?;
        pair.wait_for_adverts(lab, active, ROUNDS)?;
        ensure!(term_and_active(pair, active)? == before);
        mute(lab, &[])?;
        ensure!(pair.settle(lab)? == active);
        ensure!(term_and_active(pair, active)? == before);
        Ok(())
    });
}

/// The Active has no neighbours beyond those that the kernel lists for multicast, which answer nobody.
#[test]
fn a_backup_whose_cable_comes_back_takes_nothing() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let backup = active.peer();
        let before = term_and_active(pair, active)?;
        lab.cut(backup, Cable::Lan)?;
        pair.wait_for_role(lab, backup, "fault")?;
        pair.wait_for_status(lab, active, "the loss to be named", |s| path(s, backup) == Some("cut"))?;
        // Rounds of questions that find nobody.
        pair.wait_for_adverts(lab, active, ROUNDS / 2)?;
        lab.heal(backup, Cable::Lan)?;
        // What it asks makes the client known to it at once, and to the Active by its word.
        lab.exec(backup.host(), &["ping", "-c", "1", "-W", "2", CLIENT]).context("ping")?;
        ensure!(pair.settle(lab)? == active);
        pair.wait_for_adverts(lab, active, ROUNDS)?;
        ensure!(term_and_active(pair, active)? == before, "{:?} was {before:?}", pair.roles()?);
        Ok(())
    });
}

/// The Active's role and term.
fn term_and_active(pair: &Pair, active: Node) -> Result<(String, u64)> {
    let [fw1, fw2] = pair.roles()?;
    Ok(if active == Node::Fw1 { fw1 } else { fw2 })
}

//! Cables that are pulled one at a time.

use anyhow::{Context as _, Result};
use fwha_tests::lab::{Cable, Host, INET_VIP, Lab, LabOptions, Node};
use fwha_tests::pair::{active_node, peer_state, role};
use fwha_tests::scenario::with_pair;
use fwha_tests::takeover;
use fwha_tests::traffic::Probe;
use serde_json::Value;

#[test]
fn losing_the_sync_link_alone_moves_nothing_and_a_death_after_it_is_still_noticed() {
    with_pair(LabOptions::default(), |lab, pair| {
        let active = pair.settle(lab)?;
        let backup = active.peer();
        let before = pair.roles()?;
        let mut probe = Probe::start(lab)?;

        lab.cut(active, Cable::Sync)?;
        for node in Node::ALL {
            pair.wait_for_status(lab, node, "the loss of the sync link to be seen", |status| {
                peer_state(status) == Some("sync-lost")
            })?;
        }
        pair.wait_for_adverts(lab, active, 3)?;
        assert_eq!(pair.roles()?, before);

        lab.heal(active, Cable::Sync)?;
        assert_eq!(pair.settle(lab)?, active);
        assert_eq!(pair.roles()?, before);
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("sync link cut and healed: {} of {} probes lost", report.lost, report.sent);
        assert_eq!(report.lost, 0, "{report:?}");

        lab.cut(active, Cable::Sync)?;
        pair.wait_for_status(lab, backup, "the loss of the sync link to be seen", |status| {
            peer_state(status) == Some("sync-lost")
        })?;
        let mut probe = Probe::start(lab)?;
        takeover::lose(lab, pair, active)?;
        pair.wait_for_role(lab, backup, "active")?;
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("death of the active without a sync link: outage {:.1} ms", report.outage_ms);
        Ok(())
    });
}

#[test]
fn a_node_that_loses_a_data_cable_is_in_fault_and_its_peer_has_the_group() {
    with_pair(LabOptions::default(), |lab, pair| {
        let cut = pair.settle(lab)?;
        let peer = cut.peer();
        let mut probe = Probe::start(lab)?;

        lab.cut(cut, Cable::Lan)?;
        pair.wait_for_role(lab, peer, "active")?;
        pair.wait_for_role(lab, cut, "fault")?;
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!(
            "a data cable of the active cut: outage {:.1} ms, {} probes lost",
            report.outage_ms, report.lost
        );

        lab.heal(cut, Cable::Lan)?;
        assert_eq!(pair.settle(lab)?, peer);
        Ok(())
    });
}

/// Lets the inet side ping the nodes.
const PING: &str = r#"
[[rule]]
name = "ping-from-inet"
from = "inet"
to = "node"
services = ["icmp"]
action = "accept"
"#;

/// Whether the server reaches the virtual router.
fn ping(lab: &Lab) -> Result<()> {
    lab.exec(Host::Server, &["ping", "-c", "3", "-i", "0.2", "-W", "2", INET_VIP]).context("ping").map(drop)
}

#[test]
fn a_switch_that_is_dead_for_both_nodes_takes_no_other_zone_with_it() {
    with_pair(LabOptions { extra_config: PING.into(), ..LabOptions::default() }, |lab, pair| {
        let active = pair.settle(lab)?;
        let other = active.peer();
        lab.cut(other, Cable::Lan)?;
        pair.wait_for_role(lab, other, "fault")?;
        lab.cut(active, Cable::Lan)?;
        pair.wait_for_role(lab, other, "backup")?;
        let spared = "zone lan has no carrier, and no other node is known to be better off";
        for node in Node::ALL {
            pair.wait_for_status(lab, node, "the loss to be named, which counts for nothing", |status| {
                active_node(status) == Some(active.name()) && status["warnings"].to_string().contains(spared)
            })?;
        }
        ping(lab)?;

        // Which of them has more, counts.
        lab.cut(active, Cable::Wan)?;
        pair.wait_for_role(lab, other, "active")?;
        pair.wait_for_role(lab, active, "fault")?;
        ping(lab)?;

        // Nothing is left: `status` says so by its exit code, on both nodes.
        lab.cut(other, Cable::Wan)?;
        pair.wait_for_role(lab, other, "fault")?;
        for node in Node::ALL {
            pair.wait_for_status(lab, node, "nobody to be active", |status| active_node(status).is_none())?;
            let output = pair.node(node).ctl_output(&["status"])?;
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert_eq!(output.status.code(), Some(3), "{said}");
            assert!(said.contains("warning: group gateway: no node is active"), "{said}");
        }

        lab.heal(other, Cable::Lan)?;
        pair.wait_for_role(lab, other, "active")?;
        let cut = |status: &Value| status["warnings"].to_string().contains("zone inet has no carrier");
        pair.wait_for_status(lab, other, "the loss to be named", cut)?;
        lab.heal(other, Cable::Wan)?;
        // Before the other has more than it, which would count.
        pair.wait_for_status(lab, other, "its carrier to be seen", |status| !cut(status))?;
        lab.heal(active, Cable::All)?;
        assert_eq!(pair.settle(lab)?, other);
        let status = pair.node(active).ctl(&["status"])?;
        assert_eq!(role(&status), Some("backup"));
        assert_eq!(pair.node(other).ctl_output(&["status"])?.status.code(), Some(0));
        ping(lab)?;
        Ok(())
    });
}

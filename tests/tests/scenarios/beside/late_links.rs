//! Sync links that are not there yet when a node starts: after a power cut in which the peer stays dead, a direct cable
//! has no carrier, and what configures networks gives such an interface no address.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use fwha_tests::lab::{Host, Lab, LabOptions, Node, NodeProcess};
use fwha_tests::pair::{PATIENCE, Pair, role};
use fwha_tests::scenario::in_lab;
use serde_json::Value;

const NO_ADDRESS: &str = "interface sync does not have this node's sync address 172.16.0.1";
const NO_INTERFACE: &str = "there is no interface sync";

/// Waits until a node that started first is Active and warns of its sync link.
fn is_active_and_warns(lab: &Lab, node: &NodeProcess, warning: &str) -> Result<()> {
    lab.wait_for("the node to be active, and to warn", PATIENCE, || {
        let status = node.ctl(&["status"])?;
        let warns = status["warnings"].to_string().contains(warning);
        Ok((role(&status) == Some("active") && warns).then_some(()))
    })?;
    ensure!(node.log()?.contains(warning), "the log does not say so");
    Ok(())
}

/// Whether a link of the node to its peer is `up` for heartbeats and replication, and nothing is said against it.
fn is_up(status: &Value, interface: &str) -> bool {
    let links = status.pointer("/peers/0/links").and_then(Value::as_array);
    let up = |link: &&Value| {
        link["interface"] == interface && [&link["state"], &link["replication"]].iter().all(|s| *s == "up")
    };
    let warned = format!("interface {interface}");
    links.is_some_and(|links| links.iter().any(|l| up(&l)))
        && !status["warnings"].to_string().contains(&warned)
}

#[test]
fn a_node_starts_without_its_sync_link_and_finds_its_peer_when_that_comes() {
    in_lab(LabOptions::beside(), |lab| {
        let host = Node::Fw1.host();
        for (away, back, warning) in [
            ("address del 172.16.0.1/24 dev sync", "address add 172.16.0.1/24 dev sync", NO_ADDRESS),
            ("link set sync down name away", "link set away up name sync", NO_INTERFACE),
        ] {
            lab.ip(host, away)?;
            let fw1 = lab.start_node(Node::Fw1)?;
            is_active_and_warns(lab, &fw1, warning)?;

            lab.ip(host, back)?;
            let mut pair = Pair::of(fw1, lab.start_node(Node::Fw2)?);
            ensure!(pair.settle(lab)? == Node::Fw1, "the group moved");
            pair.wait_for_status(lab, Node::Fw1, "the link to be up", |status| is_up(status, "sync"))?;
            for node in [Node::Fw2, Node::Fw1] {
                ensure!(pair.node_mut(node).term(PATIENCE)?.success());
            }
        }
        Ok(())
    });
}

#[test]
fn with_two_sync_links_a_node_uses_the_one_that_is_there() {
    in_lab(LabOptions::beside(), |lab| {
        let [near, far] = [Host::Fw1, Host::Fw2].map(|host| lab.namespace(host));
        let cable =
            ["-netns", &near, "link", "add", "sync2", "type", "veth", "peer", "name", "sync2", "netns", &far];
        ensure!(Command::new("ip").args(cable).status()?.success(), "cannot lay another sync cable");
        let mut config = fs::read_to_string(lab.config_path())?;
        for n in ["1", "2"] {
            let first = format!("{{ interface = \"sync\", address = \"172.16.0.{n}\" }}");
            let second = format!("{{ interface = \"sync2\", address = \"172.17.0.{n}\" }}");
            config = config.replace(&first, &format!("{first}, {second}"));
        }
        fs::write(lab.config_path(), config)?;
        for (node, address) in [(Node::Fw1, "172.17.0.1/24"), (Node::Fw2, "172.17.0.2/24")] {
            lab.ip(node.host(), &format!("address add {address} dev sync2"))?;
            lab.ip(node.host(), "link set sync2 up")?;
        }
        lab.ip(Host::Fw1, "address del 172.16.0.1/24 dev sync")?;

        let (mut pair, active) = Pair::settled(lab)?;
        pair.wait_for_status(lab, Node::Fw1, "the warning, and the other link", |status| {
            is_up(status, "sync2") && status["warnings"].to_string().contains(NO_ADDRESS)
        })?;
        lab.ip(Host::Fw1, "address add 172.16.0.1/24 dev sync")?;
        for node in Node::ALL {
            pair.wait_for_status(lab, node, "both links to be up", |status| {
                is_up(status, "sync") && is_up(status, "sync2")
            })?;
        }
        ensure!(pair.settle(lab)? == active, "the group moved");
        Ok(())
    });
}

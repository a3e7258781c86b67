//! Nodes that are cut off from each other, and who of them takes the group.

use std::fs;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Host, LAN_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair, active_node, peer_state, role};
use fwha_tests::scenario::in_lab;
use serde_json::Value;

/// A node's ports at the switch, and the bridges that they belong to. The dedicated link comes back first: two Actives that
/// hear each other's adverts alone for a while go by VRRP, which knows no terms.
const CABLES: [(&str, &str); 3] = [("sync", "sync"), ("lan", "lan"), ("wan", "inet")];

/// A lab whose nodes ask the server before they claim anything, and its pair, settled.
fn witnessed(play: impl FnOnce(&Lab, &mut Pair, Node) -> Result<()>) {
    in_lab(LabOptions::default(), |lab| {
        let config = fs::read_to_string(lab.config_path())?;
        let config = config.replacen("[cluster]\n", &format!("[cluster]\nwitness = [\"{SERVER}\"]\n"), 1);
        let script = format!("echo $FWHA_EVENT $FWHA_CAUSE >> {}/$FWHA_NODE.split", lab.dir().display());
        let hook = format!(
            "\n[[hook]]\nname = \"splits\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\non = [\"split-brain\"]\n"
        );
        fs::write(lab.config_path(), config + &hook)?;
        let (mut pair, active) = Pair::settled(lab)?;
        for node in Node::ALL {
            wait_for_witness(lab, &pair, node, "up")?;
        }
        play(lab, &mut pair, active)
    });
}

fn wait_for_witness(lab: &Lab, pair: &Pair, node: Node, state: &str) -> Result<Value> {
    pair.wait_for_status(lab, node, &format!("the witness of {node} to be {state}"), |status| {
        status.pointer("/witnesses/0/state").and_then(Value::as_str) == Some(state)
    })
}

/// Takes the client and a node's LAN port to a switch of their own, which [`join`] connects.
fn strand(lab: &Lab, node: Node) -> Result<()> {
    let script = format!(
        "ip link add away type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nip link set away up\n\
         ip link set client master away\nip link set {node}-lan master away\n\
         ip link add trunk-away type veth peer name trunk-lan\nip link set trunk-away master away up\n\
         ip link set trunk-lan up\n"
    );
    lab.exec(Host::Switch, &["sh", "-ec", &script]).map(drop)
}

fn join(lab: &Lab) -> Result<()> {
    lab.exec(Host::Switch, &["ip", "link", "set", "trunk-lan", "master", "lan"]).map(drop)
}

/// Takes a node's ports out of their bridges at the switch, or puts them back. Every carrier stays.
fn cut_off(lab: &Lab, node: Node, cables: &[(&str, &str)], cut: bool) -> Result<()> {
    let mut script = String::new();
    for (port, bridge) in cables {
        let to = if cut { "nomaster".to_owned() } else { format!("master {bridge}") };
        script.push_str(&format!("ip link set {node}-{port} {to}\n"));
    }
    lab.exec(Host::Switch, &["sh", "-ec", &script]).map(drop)
}

#[test]
fn of_two_nodes_that_are_cut_off_the_one_without_a_witness_does_not_claim_the_group() {
    witnessed(|lab, pair, active| {
        let backup = active.peer();
        let before = pair.roles()?;
        cut_off(lab, backup, &CABLES, true)?;
        for node in Node::ALL {
            pair.wait_for_status(lab, node, "the peer to be dead", |s| peer_state(s) == Some("dead"))?;
        }
        let status = wait_for_witness(lab, pair, backup, "down")?;
        ensure!(role(&status) == Some("backup"), "{status}");
        let warnings = status["warnings"].to_string();
        ensure!(
            warnings.contains("no witness answers") && warnings.contains("may be the one that is cut off"),
            "{warnings}"
        );
        let explained = pair.node(backup).ctl_output(&["explain", "role"])?;
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        println!("{explained}");
        ensure!(
            explained.contains(&format!("{active} cannot be reached, and no witness answers")),
            "{explained}"
        );
        // A claim counts as held once it has been so for some heartbeats.
        for line in [
            format!("fwha_witness_state{{witness=\"{SERVER}\",state=\"down\"}} 1"),
            "fwha_group_claim_held{group=\"gateway\"} 1".to_owned(),
        ] {
            lab.wait_for(&format!("{line} in the metrics"), PATIENCE, || {
                let metrics = pair.node(backup).ctl_output(&["stats", "--prometheus"])?;
                let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
                Ok(metrics.lines().any(|l| l == line).then_some(()))
            })?;
        }
        // Longer than VRRP's silence, which the backup has heard since.
        pair.wait_for_adverts(lab, active, 5)?;
        ensure!(pair.roles()? == before, "{:?} was {before:?}", pair.roles()?);
        let events = pair.node(backup).ctl_lines(&["events"])?;
        let told = events.iter().filter(|e| e["kind"] == "witness" && e["group"] == "gateway");
        ensure!(told.count() == 1, "{events:?}");
        ensure!(pair.node(backup).count("link.witness.claims_held")? == 1);

        cut_off(lab, backup, &CABLES, false)?;
        ensure!(pair.settle(lab)? == active);
        ensure!(pair.roles()? == before, "{:?} was {before:?}", pair.roles()?);
        Ok(())
    });
}

#[test]
fn a_node_that_reaches_the_witness_replaces_one_that_it_cannot_reach_without_a_wait() {
    witnessed(|lab, pair, active| {
        let backup = active.peer();
        cut_off(lab, active, &CABLES, true)?;
        strand(lab, active)?;
        let status = pair.wait_for_role(lab, backup, "active")?;
        ensure!(active_node(&status) == Some(backup.name()), "{status}");
        // The other one keeps what it had, for those that reach it.
        let status = wait_for_witness(lab, pair, active, "down")?;
        ensure!(role(&status) == Some("active"), "{status}");

        let events = pair.node(backup).ctl_lines(&["events"])?;
        let at = |kind: &str, text: &str| {
            let event = events
                .iter()
                .find(|e| e["kind"] == kind && e["text"].as_str().is_some_and(|t| t.contains(text)));
            let at = event.and_then(|e| e["at_mono_ms"].as_f64());
            at.with_context(|| format!("no event {kind} with {text:?} in {events:?}"))
        };
        let waited = at("role", "took over")? - at("peer", "answers nowhere")?;
        println!("from the verdict on the peer to the role: {waited:.3} ms");
        // A claim that is held for some heartbeats is told and counted.
        let held = events.iter().any(|e| e["kind"] == "witness" && e["group"] == "gateway");
        let counted = pair.node(backup).count("link.witness.claims_held")?;
        ensure!(waited >= 0.0 && !held && counted == 0, "{counted} claims were held: {events:?}");

        // The client has only the one that will give way, and is the last to be with the others again.
        lab.wait_for_answer(Host::Client, LAN_VIP)?;
        let known = lab.neighbour_mac(LAN_VIP)?;
        ensure!(known == Some(lab.lan_mac(active)?), "{known:?}");
        let [sync, _, wan] = CABLES;
        cut_off(lab, active, &[sync, wan], false)?;
        ensure!(pair.settle(lab)? == backup);
        let healing = Instant::now();
        join(lab)?;
        let winner = Some(lab.lan_mac(backup)?);
        lab.wait_for("the client to know where the address is", PATIENCE, || {
            Ok((lab.neighbour_mac(LAN_VIP)? == winner).then_some(()))
        })?;
        println!("the client knew of the new owner {:.1?} after its LAN was whole again", healing.elapsed());
        let events = pair.node(backup).ctl_lines(&["events"])?;
        for kind in ["split-brain", "split-brain-end"] {
            let event =
                events.iter().find(|e| e["kind"] == kind).with_context(|| format!("no event {kind}"))?;
            println!("{kind}: {}", event["text"]);
            let why = "cause: no path between the nodes: heartbeats lost on sync link 0";
            ensure!(event["text"].as_str().is_some_and(|t| t.contains(why)), "{event}");
        }
        let told = lab.wait_for("the hook to be told", PATIENCE, || {
            let told = fs::read_to_string(lab.dir().join(format!("{backup}.split"))).unwrap_or_default();
            Ok((told.lines().count() == 2).then_some(told))
        })?;
        ensure!(
            told.starts_with("split-brain no path") && told.contains("\nsplit-brain-end no path"),
            "{told}"
        );
        let metrics = pair.node(backup).ctl_output(&["stats", "--prometheus"])?;
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        let line = "fwha_group_split_brains_total{group=\"gateway\"} 1";
        ensure!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        Ok(())
    });
}

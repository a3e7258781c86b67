//! A group of 500 addresses moves as one.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Host, Lab, LabOptions, Node};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;
use serde_json::Value;

const EACH: u32 = 250;

/// Two virtual routers of 250 addresses each.
fn many() -> String {
    let mut text = String::from("\n[[group]]\nname = \"many\"\nnodes = [\"fw1\", \"fw2\"]\nvips = [\n");
    for net in 1..=2 {
        let addresses: Vec<String> = (1..=EACH).map(|n| format!("\"10.50.{net}.{n}/24\"")).collect();
        writeln!(
            text,
            "  {{ zone = \"lan\", vrid = {}, addresses = [{}] }},",
            100 + net,
            addresses.join(", ")
        )
        .expect("text");
    }
    text + "]\n"
}

/// How many of the addresses a node has.
fn count(lab: &Lab, node: Node) -> Result<usize> {
    let shown = lab.exec(node.host(), &["ip", "-4", "-oneline", "address", "show", "dev", "lan"])?;
    Ok(shown.matches("inet 10.50.").count())
}

fn active(pair: &Pair, node: Node) -> Result<bool> {
    let status = pair.node(node).ctl(&["status"])?;
    let groups = status["groups"].as_array().context("groups")?;
    Ok(groups.iter().any(|g| g["name"] == "many" && g["role"] == "active"))
}

#[test]
fn five_hundred_addresses_move_with_their_group() {
    in_lab(LabOptions { extra_config: many(), ..LabOptions::default() }, |lab| {
        let mut pair = Pair::start(lab)?;
        pair.settle(lab)?;
        let all = 2 * EACH as usize;
        lab.wait_for("fw1 to have all addresses", PATIENCE, || {
            Ok((active(&pair, Node::Fw1)? && count(lab, Node::Fw1)? == all).then_some(()))
        })?;
        ensure!(count(lab, Node::Fw2)? == 0);
        pair.node_mut(Node::Fw1).kill()?;
        lab.cut(Node::Fw1, fwha_tests::lab::Cable::All)?;
        lab.wait_for("fw2 to have all addresses", PATIENCE, || {
            Ok((count(lab, Node::Fw2)? == all).then_some(()))
        })?;
        let event: Value = lab.wait_for("the takeover's event", PATIENCE, || {
            let events = pair.node(Node::Fw2).ctl_lines(&["events"])?;
            Ok(events.into_iter().find(|e| e["kind"] == "takeover" && e["group"] == "many"))
        })?;
        let steps: Vec<&str> = event["steps"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|step| step["name"].as_str())
            .collect();
        ensure!(steps == ["advert", "own", "vips", "announce"], "{event}");
        // Every neighbour hears of every address.
        lab.exec(Host::Client, &["ip", "addr", "add", "10.50.2.254/24", "dev", "eth0"])?;
        lab.exec(Host::Client, &["ping", "-c1", "-W5", "10.50.2.250"])?;
        Ok(())
    });
}

//! The group's addresses: 500 of them move as one; and those that nobody accepts are addresses all the same.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{
    Attach, CLIENT, CLIENT6, Host, INET_VIP, LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP, Lab, LabOptions, Node, PING6,
    SERVER, SERVER6,
};
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
    in_lab(LabOptions { extra_config: many(), ..LabOptions::beside() }, |lab| {
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

#[test]
fn addresses_that_are_not_accepted_are_known_and_used_but_do_not_answer_by_tc() {
    addresses_that_are_not_accepted(Attach::Tc);
}

#[test]
fn addresses_that_are_not_accepted_are_known_and_used_but_do_not_answer_by_xdp() {
    addresses_that_are_not_accepted(Attach::Xdp);
}

/// RFC 9568, 6.4.3: Accept_Mode is off.
fn addresses_that_are_not_accepted(attach: Attach) {
    let options = LabOptions { attach, ipv6: true, extra_config: PING6.into(), ..LabOptions::beside() };
    in_lab(options, |lab| {
        let whole = fs::read_to_string(lab.config_path())?;
        let group =
            |more: &str| whole.replacen("name = \"gateway\"", &format!("name = \"gateway\"\n{more}"), 1);
        fs::write(lab.config_path(), group("accept = false"))?;
        let (mut pair, active) = Pair::settled(lab)?;
        lab.route6_through_group()?;
        let ping = |to: &str, wait: &str| -> Result<bool> {
            Ok(lab.try_exec(Host::Client, &["ping", "-c1", wait, to])?.status.success())
        };
        let link_local = format!("{LINK_LOCAL_VIP}%eth0");
        let [v4, v6] = active.lan_addresses();
        for own in [v4, v6] {
            lab.wait_for(&format!("an answer of {own}"), PATIENCE, || Ok(ping(own, "-W1")?.then_some(())))?;
        }
        // Also from a zone that is not that of the address.
        for vip in [LAN_VIP, LAN_VIP6, &link_local, INET_VIP] {
            let (address, client) =
                (vip.trim_end_matches("%eth0"), if vip.contains(':') { CLIENT6 } else { CLIENT });
            let explained =
                pair.node(active).ctl(&["explain", "packet", "--in", "lan", "icmp", client, address])?;
            ensure!(explained["reason"] == "vip_not_accepted", "{explained:#}");
            let before = pair.node(active).count("drops.vip_not_accepted")?;
            ensure!(!ping(vip, "-W1")?, "{vip} answers");
            pair.wait_for_count(lab, active, "drops.vip_not_accepted", before)?;
        }
        for vip in [LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP] {
            let entry = lab.exec(Host::Client, &["ip", "neighbour", "show", "to", vip, "dev", "eth0"])?;
            ensure!(entry.contains("lladdr"), "{vip} is known: {entry}");
        }
        ensure!(ping(SERVER, "-W5")? && ping(SERVER6, "-W5")?, "they are the way");

        // The owner of the addresses takes what is for them.
        let owner = group("accept = false\npriority = { fw1 = 255, fw2 = 100 }\npreempt = true");
        fs::write(lab.config_path(), owner)?;
        for node in Node::ALL {
            pair.node(node).ctl(&["reload"])?;
        }
        pair.wait_for_role(lab, Node::Fw1, "active")?;
        ensure!(pair.settle(lab)? == Node::Fw1);
        for vip in [LAN_VIP, LAN_VIP6] {
            lab.wait_for_answer(Host::Client, vip)?;
        }

        // And so does everybody by default.
        fs::write(lab.config_path(), &whole)?;
        for node in Node::ALL {
            let reply = pair.node(node).ctl(&["reload"])?;
            ensure!(reply.to_string().contains("accept: false -> true"), "{reply}");
        }
        for vip in [LAN_VIP, LAN_VIP6, &link_local, INET_VIP] {
            ensure!(ping(vip, "-W5")?, "{vip} answers");
        }
        Ok(())
    });
}

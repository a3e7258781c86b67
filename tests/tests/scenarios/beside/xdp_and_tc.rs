//! A zone by XDP beside one whose interface takes no frames of XDP: a bridge, which is hooked at tc.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Attach, CLIENT, Host, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;
use fwha_tests::traffic::Conversation;

const PORT: u16 = 5000;

/// Puts a bridge with the name and the address of each node's cable to the inet side over that cable.
fn bridge_wan(lab: &Lab) -> Result<()> {
    for (node, address) in Node::ALL.into_iter().zip(["10.0.0.1/24", "10.0.0.2/24"]) {
        for line in [
            "link set wan down",
            "link set wan name cable",
            "addr flush dev cable",
            "link add wan type bridge stp_state 0 forward_delay 0",
            "link set cable master wan up",
            &format!("addr add {address} dev wan"),
            "link set wan up",
        ] {
            lab.ip(node.host(), line)?;
        }
    }
    Ok(())
}

/// The LAN as the lab has it, by XDP; the inet side by the driver. What `rule` says is added to the one from LAN to inet.
fn configure(lab: &Lab, rule: &str) -> Result<()> {
    let text = fs::read_to_string(lab.config_path())?;
    let text = text.replace("name = \"lan-out\"\n", &format!("name = \"lan-out\"\n{rule}"));
    ensure!(text.contains(rule), "{text}");
    let inet = "interfaces = [\"wan\"]\nattach = \"xdp\"\n";
    ensure!(text.contains(inet), "{text}");
    fs::write(lab.config_path(), text.replace(inet, "interfaces = [\"wan\"]\n"))
        .context("write the config file")
}

fn a_conversation_survives_its_node(rule: &str) {
    in_lab(LabOptions { attach: Attach::Xdp, ..LabOptions::beside() }, |lab| {
        bridge_wan(lab)?;
        configure(lab, rule)?;
        let (mut pair, active) = Pair::settled(lab)?;
        let client: Ipv4Addr = CLIENT.parse()?;
        let listener = lab.within(Host::Server, || TcpListener::bind((SERVER, PORT)))??;
        let mut conversation = Conversation::open(lab, Host::Client, client, &listener)?;
        conversation.talk()?;
        let status = pair.node(active).ctl(&["status"])?;
        ensure!(status.to_string().contains("leaves by wan through the kernel's stack"), "{status:#}");
        let packet = ["explain", "packet", "udp", &format!("{CLIENT}:4000"), &format!("{SERVER}:53")];
        let explained = pair.node(active).ctl(&packet)?;
        ensure!(
            explained.to_string().contains("the stack forwards it, for that sends nothing of XDP"),
            "{explained:#}"
        );
        lab.wait_for("the flow on the backup", PATIENCE, || {
            let flow = ["flows", &format!("dport={PORT}"), "state=established"];
            Ok((!pair.node(active.peer()).ctl_lines(&flow)?.is_empty()).then_some(()))
        })?;
        pair.node_mut(active).kill()?;
        pair.wait_for_role(lab, active.peer(), "active")?;
        conversation.talk()
    });
}

#[test]
fn what_comes_by_xdp_leaves_by_an_interface_that_takes_none_of_it() {
    a_conversation_survives_its_node("");
}

#[test]
fn so_does_what_the_syn_proxy_has_changed() {
    a_conversation_survives_its_node("syn-proxy = true\n");
}

//! A host that moves to another MAC and tells nobody.

use std::fs;
use std::net::TcpListener;

use anyhow::{Result, ensure};
use fwha_tests::lab::{CLIENT, Host, INET_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::PATIENCE;
use fwha_tests::scenario::with_pair;
use fwha_tests::traffic::Conversation;

const PORT: u16 = 5000;
const NEW_MAC: &str = "02:00:00:00:0a:80";

/// A node's neighbour entry of the server: its MAC, if it has one, and its state.
fn entry(lab: &Lab, node: Node) -> Result<(Option<String>, String)> {
    let shown = lab.ip(node.host(), &format!("neighbour show to {SERVER} dev wan"))?;
    let words: Vec<&str> = shown.split_whitespace().collect();
    let mac = words.iter().position(|word| *word == "lladdr").map(|at| words[at + 1].to_owned());
    Ok((mac, words.last().copied().unwrap_or_default().to_owned()))
}

/// Has a node's kernel doubt its neighbours on the inet side soon, and ask them quickly: it would take half a minute. It is to
/// believe them for longer than it delays a probe (half of the first number at least, in ms; the second, in s), or it asks them
/// again and again by itself (`neigh_add_timer` of net/core/neighbour.c takes an answer for a use).
fn hurry(lab: &Lab, node: Node) -> Result<()> {
    lab.within(node.host(), || {
        for (name, value) in
            [("base_reachable_time_ms", "3000"), ("delay_first_probe_time", "1"), ("retrans_time_ms", "100")]
        {
            fs::write(format!("/proc/sys/net/ipv4/neigh/wan/{name}"), value)?;
        }
        Ok(())
    })?
}

#[test]
fn a_server_that_moves_to_another_mac_in_silence_is_found_again() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        hurry(lab, active)?;
        let listener = lab.within(Host::Server, || TcpListener::bind((SERVER, PORT)))??;
        let mut conversation = Conversation::open(lab, Host::Client, CLIENT.parse()?, &listener)?;
        conversation.talk()?;
        let old_mac = lab.mac(Host::Server, "eth0")?;
        // It goes on in the programs, and the kernel takes its neighbour for idle.
        lab.wait_for("the server's entry to be stale", PATIENCE, || {
            conversation.talk()?;
            let (mac, state) = entry(lab, active)?;
            ensure!(mac.as_ref() == Some(&old_mac) && state == "STALE", "{mac:?} {state}");
            Ok(Some(()))
        })?;

        // The server itself is not to ask anybody, by which it would be heard.
        lab.ip(Host::Server, &format!("link set eth0 address {NEW_MAC}"))?;
        let gateway = lab.mac(active.host(), "wan")?;
        lab.ip(
            Host::Server,
            &format!("neighbour replace {INET_VIP} lladdr {gateway} dev eth0 nud permanent"),
        )?;
        ensure!(entry(lab, active)?.0.as_deref() != Some(NEW_MAC), "the move was heard of");
        conversation.talk()?;
        ensure!(entry(lab, active)?.0.as_deref() == Some(NEW_MAC));
        ensure!(pair.settle(lab)? == active);
        Ok(())
    });
}

//! Two groups on two nodes: each node Active for one, each takes the other's over, and flows belong to the group
//! through whose addresses they go.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{CLIENT, Host, Lab, LabOptions, Node, NodeProcess, SERVER};
use fwha_tests::pair::PATIENCE;
use fwha_tests::scenario::in_lab;
use fwha_tests::traffic::Conversation;
use serde_json::Value;

const PORT: u16 = 5000;
/// The client's second address, in the network of the second group.
const GUEST: &str = "192.168.200.100";

/// The second group, of these nodes, and a zone of its own beside the one that both groups are in.
fn second_group(nodes: &str) -> String {
    format!(
        r#"
[[zone]]
name = "guests"
interfaces = ["guests"]

[[group]]
name = "guests"
nodes = [{nodes}]
vips = [
  {{ zone = "inet", vrid = 71, addresses = ["10.0.0.13/24"] }},
  {{ zone = "guests", vrid = 72, addresses = ["192.168.200.12/24"] }},
]

[[rule]]
name = "guests-out"
from = "guests"
to = "inet"
action = "accept"
"#
    )
}

/// Lays the guests' network: another bridge, another interface of nodes and client, and routes by the second group.
fn lay_guests(lab: &Lab) -> Result<()> {
    lab.ip(Host::Switch, "link add guests type bridge stp_state 0 forward_delay 0 mcast_snooping 0")?;
    lab.ip(Host::Switch, "link set guests up")?;
    for (host, interface, address) in [
        (Host::Fw1, "guests", "192.168.200.1/24"),
        (Host::Fw2, "guests", "192.168.200.2/24"),
        (Host::Fw3, "guests", "192.168.200.3/24"),
        (Host::Client, "eth1", "192.168.200.100/24"),
    ] {
        let (port, namespace) = (format!("{}-guests", host.name()), lab.namespace(host));
        lab.ip(Host::Switch, &format!("link add {port} type veth peer name {interface} netns {namespace}"))?;
        lab.ip(Host::Switch, &format!("link set {port} master guests up"))?;
        lab.ip(host, &format!("addr add {address} dev {interface}"))?;
        lab.ip(host, &format!("link set {interface} up"))?;
    }
    lab.ip(Host::Client, "route add default via 192.168.200.12 table 200")?;
    lab.ip(Host::Client, &format!("rule add from {GUEST} lookup 200"))?;
    lab.ip(Host::Server, "route add 192.168.200.0/24 via 10.0.0.13")?;
    Ok(())
}

/// Role and term in a group, by a node's `status`.
fn role(status: &Value, group: &str) -> Option<(String, u64)> {
    let groups = status["groups"].as_array()?;
    let group = groups.iter().find(|g| g["name"] == group)?;
    Some((group["role"].as_str()?.to_owned(), group["term"].as_u64()?))
}

/// Waits until a node has these roles in `gateway` and `guests`, and returns the terms.
fn wait_for_roles(lab: &Lab, node: &NodeProcess, wanted: [&str; 2]) -> Result<[u64; 2]> {
    lab.wait_for(&format!("{} to be {wanted:?}", node.node()), PATIENCE, || {
        let status = node.ctl(&["status"])?;
        let Some(roles) =
            ["gateway", "guests"].map(|group| role(&status, group)).into_iter().collect::<Option<Vec<_>>>()
        else {
            return Ok(None);
        };
        let as_wanted = roles.iter().zip(wanted).all(|((role, _), wanted)| role == wanted);
        Ok(as_wanted.then_some([roles[0].1, roles[1].1]))
    })
}

/// Waits until each of the nodes and each of its peers that it hears have proved that they hold the same flows.
fn wait_for_sync(lab: &Lab, nodes: &[&NodeProcess]) -> Result<()> {
    lab.wait_for("all to be in sync", PATIENCE, || {
        for node in nodes {
            let status = node.ctl(&["status"])?;
            let peers = status["peers"].as_array().context("peers")?;
            let proved = |peer: &&Value| {
                peer.pointer("/sync/state").and_then(Value::as_str) == Some("in-sync")
                    && peer.pointer("/sync/digest_match") == Some(&Value::Bool(true))
            };
            let heard: Vec<&Value> = peers.iter().filter(|peer| peer["state"] == "alive").collect();
            if heard.len() != nodes.len() - 1 || !heard.iter().all(proved) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
}

/// The owner of the flow from an address, as a node shows it.
fn owner(node: &NodeProcess, source: &str) -> Result<String> {
    let flows = node.ctl_lines(&["flows"])?;
    let flow = flows.iter().find(|flow| flow["src"] == source && flow["dport"] == PORT);
    Ok(flow.context("no such flow")?["owner"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn two_groups_are_on_two_nodes_and_each_moves_alone_with_its_flows() {
    let extra_config = second_group(r#""fw2", "fw1""#);
    in_lab(LabOptions { extra_config, ..LabOptions::beside() }, |lab| {
        lay_guests(lab)?;
        let fw1 = lab.start_node(Node::Fw1)?;
        let mut fw2 = lab.start_node(Node::Fw2)?;
        // At a cold start each group goes where it prefers to be.
        let [gateway_term, _] = wait_for_roles(lab, &fw1, ["active", "backup"])?;
        let [_, guests_term] = wait_for_roles(lab, &fw2, ["backup", "active"])?;
        wait_for_sync(lab, &[&fw1, &fw2])?;

        let listener = lab.within(Host::Server, || TcpListener::bind((SERVER, PORT)))??;
        let mut through_gateway = Conversation::open(lab, Host::Client, CLIENT.parse()?, &listener)?;
        let mut through_guests = Conversation::open(lab, Host::Client, GUEST.parse()?, &listener)?;
        through_gateway.talk()?;
        through_guests.talk()?;
        // Each flow is on the node that has its group's addresses, and known to the other.
        lab.wait_for("both flows on both nodes", PATIENCE, || {
            for node in [&fw1, &fw2] {
                let owners = [owner(node, CLIENT)?, owner(node, GUEST)?];
                ensure!(owners == ["fw1", "fw2"], "{owners:?} by {}", node.node());
            }
            Ok(Some(()))
        })?;
        wait_for_sync(lab, &[&fw1, &fw2])?;

        // The loss of one node moves its group alone.
        fw2.kill()?;
        let after = wait_for_roles(lab, &fw1, ["active", "active"])?;
        assert_eq!(after, [gateway_term, guests_term + 1]);
        through_guests.talk()?;
        through_gateway.talk()?;
        assert_eq!(owner(&fw1, GUEST)?, "fw1");

        // It comes back as Backup in both; one is moved back by hand.
        let fw2 = lab.start_node(Node::Fw2)?;
        wait_for_roles(lab, &fw2, ["backup", "backup"])?;
        wait_for_sync(lab, &[&fw1, &fw2])?;
        let refused = fw1.ctl_output(&["switchover", "--to", "fw2"])?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && said.contains("gateway, guests"), "{said}");
        fw1.ctl(&["switchover", "guests", "--to", "fw2", "--wait"])?;
        assert_eq!(wait_for_roles(lab, &fw1, ["active", "backup"])?[0], gateway_term);
        assert_eq!(wait_for_roles(lab, &fw2, ["backup", "active"])?[1], guests_term + 2);
        through_guests.talk()?;
        through_gateway.talk()?;
        assert_eq!([owner(&fw1, CLIENT)?, owner(&fw1, GUEST)?], ["fw1", "fw2"]);
        Ok(())
    });
}

#[test]
fn a_spare_takes_both_groups_when_their_nodes_are_lost_one_after_the_other() {
    let extra_config = second_group(r#""fw2", "fw3""#);
    in_lab(LabOptions { extra_config, spare: true, ..LabOptions::beside() }, |lab| {
        lay_guests(lab)?;
        let mut fw1 = lab.start_node(Node::Fw1)?;
        let mut fw2 = lab.start_node(Node::Fw2)?;
        let fw3 = lab.start_node(Node::Fw3)?;
        // The first group has all three nodes; the second is not for the first node.
        lab.wait_for("each group to be where it prefers to be", PATIENCE, || {
            let [first, second] = [fw1.ctl(&["status"])?, fw2.ctl(&["status"])?];
            let here = |status, group| role(status, group).is_some_and(|(role, _)| role == "active");
            Ok((here(&first, "gateway") && here(&second, "guests")).then_some(()))
        })?;
        wait_for_roles(lab, &fw3, ["backup", "backup"])?;
        wait_for_sync(lab, &[&fw1, &fw2, &fw3])?;

        let listener = lab.within(Host::Server, || TcpListener::bind((SERVER, PORT)))??;
        let mut through_gateway = Conversation::open(lab, Host::Client, CLIENT.parse()?, &listener)?;
        let mut through_guests = Conversation::open(lab, Host::Client, GUEST.parse()?, &listener)?;
        through_gateway.talk()?;
        through_guests.talk()?;
        wait_for_sync(lab, &[&fw1, &fw2, &fw3])?;
        lab.wait_for("the spare to know both flows", PATIENCE, || {
            Ok((owner(&fw3, CLIENT)? == "fw1" && owner(&fw3, GUEST)? == "fw2").then_some(()))
        })?;

        // The first group goes to the next of its nodes, which tells the spare of what becomes of its flows.
        fw1.kill()?;
        wait_for_roles(lab, &fw2, ["active", "active"])?;
        through_gateway.talk()?;
        through_guests.talk()?;
        wait_for_sync(lab, &[&fw2, &fw3])?;
        fw2.kill()?;
        wait_for_roles(lab, &fw3, ["active", "active"])?;
        through_gateway.talk()?;
        through_guests.talk()?;
        Ok(())
    });
}

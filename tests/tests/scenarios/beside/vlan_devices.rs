//! A trunk with two VLANs, each with a device of the kernel's and a zone of its own. The firewalls are routers on a stick
//! between them; a third zone is on a cable of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Attach, CLIENT, Host, LAN_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::root::skip_for_kernel;
use fwha_tests::scenario::in_lab;
use fwha_tests::sys::{Feature, set_feature, set_vlan_offload};
use fwha_tests::traffic::Conversation;

const PORT: u16 = 5000;
/// The host of the second VLAN.
const DMZ: Host = Host::Fw3;
const DMZ_ADDRESS: &str = "192.168.200.100";
const DMZ_VIP: &str = "192.168.200.12";

fn ip(lab: &Lab, host: Host, line: &str) -> Result<String> {
    let words: Vec<&str> = ["ip"].into_iter().chain(line.split_whitespace()).collect();
    lab.exec(host, &words)
}

/// A VLAN device with its address.
fn add_vlan(lab: &Lab, host: Host, trunk: &str, vlan: u16, address: &str) -> Result<()> {
    ip(lab, host, &format!("link add link {trunk} name {trunk}.{vlan} type vlan id {vlan}"))?;
    ip(lab, host, &format!("addr add {address}/24 dev {trunk}.{vlan}"))?;
    ip(lab, host, &format!("link set {trunk}.{vlan} up"))?;
    Ok(())
}

/// What a node has in the VLANs: device by device, its address there.
fn vlans_of(node: Node) -> [(u16, String); 2] {
    let last = node as usize + 1;
    [(100, format!("192.168.100.{last}")), (200, format!("192.168.200.{last}"))]
}

/// Makes the LAN a trunk: what was on it without a tag is in VLAN 100 now, and VLAN 200 has a host of its own.
fn lay_vlans(lab: &Lab) -> Result<()> {
    ip(lab, Host::Client, "addr flush dev eth0")?;
    add_vlan(lab, Host::Client, "eth0", 100, CLIENT)?;
    ip(lab, Host::Client, &format!("route add default via {LAN_VIP}"))?;
    for node in Node::ALL {
        ip(lab, node.host(), "addr flush dev lan")?;
        for (vlan, address) in vlans_of(node) {
            add_vlan(lab, node.host(), "lan", vlan, &address)?;
        }
    }
    let namespace = lab.namespace(DMZ);
    ip(lab, Host::Switch, &format!("link add dmz type veth peer name eth0 netns {namespace}"))?;
    ip(lab, Host::Switch, "link set dmz master lan up")?;
    ip(lab, DMZ, "link set eth0 up")?;
    add_vlan(lab, DMZ, "eth0", 200, DMZ_ADDRESS)?;
    ip(lab, DMZ, &format!("route add default via {DMZ_VIP}"))?;
    ip(lab, Host::Server, "route add 192.168.200.0/24 via 10.0.0.12")?;
    if lab.options().attach == Attach::Xdp {
        lab.within(DMZ, || set_feature("eth0", Feature::TxChecksum, false))??;
        for node in Node::ALL {
            lab.within(node.host(), || set_vlan_offload("lan", false))??;
            // A veth hands tags over beside the frame, as a NIC does that takes them off.
            lab.within(Host::Switch, || set_vlan_offload(&format!("{node}-lan"), false))??;
        }
    }
    Ok(())
}

/// Zones and group with the VLANs.
fn configure(lab: &Lab) -> Result<()> {
    let text = fs::read_to_string(lab.config_path())?;
    let attach = match lab.options().attach {
        Attach::Auto => String::new(),
        other => format!("attach = \"{}\"\n", other.name()),
    };
    let group = format!("{{ zone = \"lan\",  vrid = 62, addresses = [\"{LAN_VIP}/24\"] }},\n");
    let dmz = format!("  {{ zone = \"dmz\", vrid = 63, addresses = [\"{DMZ_VIP}/24\"] }},\n");
    let tagged = text
        .replace("interfaces = [\"lan\"]", "interfaces = [\"lan.100\"]")
        .replace(&group, &format!("{group}{dmz}"));
    ensure!(tagged.matches("lan.100").count() == 1 && tagged.contains(&dmz), "{tagged}");
    let more = format!(
        r#"
[[zone]]
name = "dmz"
interfaces = ["lan.200"]
{attach}
[[rule]]
name = "lan-to-dmz"
from = "lan"
to = "dmz"
action = "accept"
"#
    );
    fs::write(lab.config_path(), tagged + &more).context("write the config file")
}

/// Whether a connection to a host in VLAN 100 is answered by anybody.
fn answers(lab: &Lab, from: Host, to: &str) -> Result<bool> {
    let to = SocketAddr::new(to.parse()?, PORT);
    let tried = lab.within(from, || TcpStream::connect_timeout(&to, Duration::from_millis(300)))?;
    Ok(!tried.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut))
}

fn zones_of_a_trunk_are_apart_and_their_flows_survive(lab: &Lab) -> Result<()> {
    let probe = lab.try_exec(
        Host::Client,
        &["ip", "link", "add", "link", "eth0", "name", "eth0.9", "type", "vlan", "id", "9"],
    )?;
    if !probe.status.success() {
        skip_for_kernel("VLAN devices (module 8021q)");
        return Ok(());
    }
    ip(lab, Host::Client, "link del eth0.9")?;
    lay_vlans(lab)?;
    configure(lab)?;
    let (mut pair, active) = Pair::settled(lab)?;
    let has = |node: Node, device: &str, vip: &str| -> Result<bool> {
        Ok(ip(lab, node.host(), &format!("-4 addr show dev {device}"))?.contains(&format!("inet {vip}/")))
    };
    for (device, vip) in [("lan.100", LAN_VIP), ("lan.200", DMZ_VIP)] {
        ensure!(has(active, device, vip)? && !has(active.peer(), device, vip)?, "{vip} on {device}");
    }

    let client: Ipv4Addr = CLIENT.parse()?;
    let in_dmz = lab.within(DMZ, || TcpListener::bind((DMZ_ADDRESS, PORT)))??;
    let in_inet = lab.within(Host::Server, || TcpListener::bind((SERVER, PORT)))??;
    // On a stick, and from a tag to none.
    let mut conversations = [
        Conversation::open(lab, Host::Client, client, &in_dmz)?,
        Conversation::open(lab, Host::Client, client, &in_inet)?,
    ];
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    // No rule lets the other way.
    let denied = pair.node(active).count("drops.no_rule")?;
    ensure!(!answers(lab, DMZ, CLIENT)?, "somebody in lan answered dmz");
    pair.wait_for_count(lab, active, "drops.no_rule", denied)?;
    lab.wait_for("both flows on the backup", PATIENCE, || {
        let flows =
            pair.node(active.peer()).ctl_lines(&["flows", &format!("dport={PORT}"), "state=established"])?;
        let zones: Vec<&str> = flows.iter().filter_map(|flow| flow["zone_out"].as_str()).collect();
        Ok((zones.contains(&"dmz") && zones.contains(&"inet")).then_some(()))
    })?;

    pair.node_mut(active).kill()?;
    pair.wait_for_role(lab, active.peer(), "active")?;
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    pair.restart(lab, active)?;
    ensure!(pair.settle(lab)? == active.peer());

    // A device that goes takes its zone along; the node is Backup until it has it again, and the group goes where all are.
    let (loser, vlan) = (active.peer(), vlans_of(active.peer())[1].clone());
    ip(lab, loser.host(), "link del lan.200")?;
    pair.wait_for_role(lab, active, "active")?;
    let reasons: Vec<String> =
        pair.node(loser).ctl_lines(&["events"])?.iter().map(ToString::to_string).collect();
    ensure!(reasons.iter().any(|event| event.contains("zone dmz has no carrier")), "{reasons:#?}");
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    add_vlan(lab, loser.host(), "lan", vlan.0, &vlan.1)?;
    pair.wait_for_role(lab, loser, "backup")?;
    pair.node(active).ctl(&["switchover", "--to", loser.name(), "--wait"])?;
    for (device, vip) in [("lan.100", LAN_VIP), ("lan.200", DMZ_VIP)] {
        ensure!(has(loser, device, vip)?, "{vip} on {device}");
    }
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    Ok(())
}

#[test]
fn zones_of_a_trunk_are_apart_and_their_flows_survive_through_tc() {
    in_lab(
        LabOptions { attach: Attach::Tc, ..LabOptions::beside() },
        zones_of_a_trunk_are_apart_and_their_flows_survive,
    );
}

#[test]
fn zones_of_a_trunk_are_apart_and_their_flows_survive_through_xdp() {
    in_lab(
        LabOptions { attach: Attach::Xdp, ..LabOptions::beside() },
        zones_of_a_trunk_are_apart_and_their_flows_survive,
    );
}

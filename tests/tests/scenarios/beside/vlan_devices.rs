//! A trunk with two VLANs, each with a device of the kernel's and a zone of its own. The firewalls are routers on a stick
//! between them; a third zone is on a cable of its own. The trunk is a cable, or a bond of two.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fwha::sys::interface::takes_tags_off;
use fwha_tests::lab::{Attach, CLIENT, Cable, Host, LAN_VIP, Lab, LabOptions, Node, SERVER};
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

/// A VLAN device with its address.
fn add_vlan(lab: &Lab, host: Host, trunk: &str, vlan: u16, address: &str) -> Result<()> {
    lab.ip(host, &format!("link add link {trunk} name {trunk}.{vlan} type vlan id {vlan}"))?;
    lab.ip(host, &format!("addr add {address}/24 dev {trunk}.{vlan}"))?;
    lab.ip(host, &format!("link set {trunk}.{vlan} up"))?;
    Ok(())
}

/// What a node has in the VLANs: device by device, its address there.
fn vlans_of(node: Node) -> [(u16, String); 2] {
    let last = node as usize + 1;
    [(100, format!("192.168.100.{last}")), (200, format!("192.168.200.{last}"))]
}

/// The interface of a node that its VLANs are on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trunk {
    /// Its cable to the LAN.
    Cable,
    /// A bond of that one and another, of which the one carries what the other could.
    Bond,
}

impl Trunk {
    fn name(self) -> &'static str {
        match self {
            Trunk::Cable => "lan",
            Trunk::Bond => "bond0",
        }
    }

    /// Lays a second cable and makes both of them one.
    fn bond(lab: &Lab, node: Node) -> Result<()> {
        let (port, namespace) = (format!("{node}-lan2"), lab.namespace(node.host()));
        lab.ip(Host::Switch, &format!("link add {port} type veth peer name lan2 netns {namespace}"))?;
        lab.ip(Host::Switch, &format!("link set {port} master lan up"))?;
        lab.ip(node.host(), "link add bond0 type bond mode active-backup miimon 20")?;
        for cable in ["lan", "lan2"] {
            lab.ip(node.host(), &format!("link set {cable} down"))?;
            lab.ip(node.host(), &format!("link set {cable} master bond0"))?;
        }
        lab.ip(node.host(), "link set bond0 up")?;
        Ok(())
    }
}

/// Makes the LAN a trunk: what was on it without a tag is in VLAN 100 now, and VLAN 200 has a host of its own.
fn lay_vlans(lab: &Lab, trunk: Trunk) -> Result<()> {
    lab.ip(Host::Client, "addr flush dev eth0")?;
    add_vlan(lab, Host::Client, "eth0", 100, CLIENT)?;
    lab.ip(Host::Client, &format!("route add default via {LAN_VIP}"))?;
    for node in Node::ALL {
        lab.ip(node.host(), "addr flush dev lan")?;
        if trunk == Trunk::Bond {
            Trunk::bond(lab, node)?;
        }
        for (vlan, address) in vlans_of(node) {
            add_vlan(lab, node.host(), trunk.name(), vlan, &address)?;
        }
    }
    let namespace = lab.namespace(DMZ);
    lab.ip(Host::Switch, &format!("link add dmz type veth peer name eth0 netns {namespace}"))?;
    lab.ip(Host::Switch, "link set dmz master lan up")?;
    lab.ip(DMZ, "link set eth0 up")?;
    add_vlan(lab, DMZ, "eth0", 200, DMZ_ADDRESS)?;
    lab.ip(DMZ, &format!("route add default via {DMZ_VIP}"))?;
    lab.ip(Host::Server, "route add 192.168.200.0/24 via 10.0.0.12")?;
    if lab.options().attach == Attach::Xdp {
        lab.within(DMZ, || set_feature("eth0", Feature::TxChecksum, false))??;
    }
    Ok(())
}

/// Starts a node that is to say this and end.
fn refuses(lab: &Lab, said: &str) -> Result<()> {
    let mut refused = lab.start_node(Node::Fw1)?;
    ensure!(!refused.wait(PATIENCE)?.success());
    ensure!(refused.log()?.contains(said), "{}", refused.log()?);
    Ok(())
}

/// Has the trunk leave tags on frames: as long as it takes them off, XDP could not see them. (A network card of
/// `cargo xtask kernels --nic` may leave them on by itself.)
pub fn leave_tags_on(lab: &Lab) -> Result<()> {
    if lab.within(Host::Fw1, || takes_tags_off("lan"))?? {
        refuses(lab, "ethtool -K lan rxvlan off")?;
    }
    for node in Node::ALL {
        lab.within(node.host(), || set_vlan_offload("lan", false))??;
        // A veth hands tags over beside the frame, as a NIC does that takes them off.
        lab.within(Host::Switch, || set_vlan_offload(&format!("{node}-lan"), false))??;
    }
    Ok(())
}

/// Zones and group with the VLANs.
fn configure(lab: &Lab, trunk: &str) -> Result<()> {
    let text = fs::read_to_string(lab.config_path())?;
    let attach = match lab.options().attach {
        Attach::Auto => String::new(),
        other => format!("attach = \"{}\"\n", other.name()),
    };
    let group = format!("{{ zone = \"lan\",  vrid = 62, addresses = [\"{LAN_VIP}/24\"] }},\n");
    let dmz = format!("  {{ zone = \"dmz\", vrid = 63, addresses = [\"{DMZ_VIP}/24\"] }},\n");
    let tagged = text
        .replace("interfaces = [\"lan\"]", &format!("interfaces = [\"{trunk}.100\"]"))
        .replace(&group, &format!("{group}{dmz}"));
    ensure!(tagged.contains(".100\"]") && tagged.contains(&dmz), "{tagged}");
    let more = format!(
        r#"
[[zone]]
name = "dmz"
interfaces = ["{trunk}.200"]
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

/// Whether the kernel has VLAN devices; says so if not.
fn has_vlan_devices(lab: &Lab) -> Result<bool> {
    let probe = lab.try_exec(
        Host::Client,
        &["ip", "link", "add", "link", "eth0", "name", "eth0.9", "type", "vlan", "id", "9"],
    )?;
    if !probe.status.success() {
        skip_for_kernel("VLAN devices (module 8021q)");
        return Ok(false);
    }
    lab.ip(Host::Client, "link del eth0.9")?;
    Ok(true)
}

fn zones_of_a_trunk_are_apart_and_their_flows_survive(lab: &Lab, trunk: Trunk) -> Result<()> {
    if !has_vlan_devices(lab)? {
        return Ok(());
    }
    lay_vlans(lab, trunk)?;
    configure(lab, trunk.name())?;
    if lab.options().attach == Attach::Xdp {
        leave_tags_on(lab)?;
    }
    let (mut pair, active) = Pair::settled(lab)?;
    let has = |node: Node, device: &str, vip: &str| -> Result<bool> {
        Ok(lab.ip(node.host(), &format!("-4 addr show dev {device}"))?.contains(&format!("inet {vip}/")))
    };
    let devices = [100, 200].map(|vlan| format!("{}.{vlan}", trunk.name()));
    let vips = || devices.iter().zip([LAN_VIP, DMZ_VIP]);
    for (device, vip) in vips() {
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

    if trunk == Trunk::Bond && !lab.has_cards() {
        // The other cable takes over, and no node.
        lab.cut(active, Cable::Lan)?;
        for conversation in &mut conversations {
            conversation.talk()?;
        }
        lab.heal(active, Cable::Lan)?;
        ensure!(pair.settle(lab)? == active);
    }

    pair.node_mut(active).kill()?;
    pair.wait_for_role(lab, active.peer(), "active")?;
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    pair.restart(lab, active)?;
    ensure!(pair.settle(lab)? == active.peer());

    // A device that goes takes its zone along; the node is Backup until it has it again, and the group goes where all are.
    let (loser, vlan) = (active.peer(), vlans_of(active.peer())[1].clone());
    lab.ip(loser.host(), &format!("link del {}", devices[1]))?;
    pair.wait_for_role(lab, active, "active")?;
    let reasons: Vec<String> =
        pair.node(loser).ctl_lines(&["events"])?.iter().map(ToString::to_string).collect();
    ensure!(reasons.iter().any(|event| event.contains("zone dmz has no carrier")), "{reasons:#?}");
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    add_vlan(lab, loser.host(), trunk.name(), vlan.0, &vlan.1)?;
    pair.wait_for_role(lab, loser, "backup")?;
    pair.node(active).ctl(&["switchover", "--to", loser.name(), "--wait"])?;
    for (device, vip) in vips() {
        ensure!(has(loser, device, vip)?, "{vip} on {device}");
    }
    for conversation in &mut conversations {
        conversation.talk()?;
    }
    Ok(())
}

/// Kernels that have the devices are emulated (`cargo xtask kernels`), and stall now and then.
fn options(attach: Attach) -> LabOptions {
    let (heartbeat, lease) = (Some(Duration::from_millis(50)), Some(Duration::from_secs(5)));
    LabOptions { attach, heartbeat, lease, ..LabOptions::beside() }
}

#[test]
fn zones_of_a_trunk_are_apart_and_their_flows_survive_through_tc() {
    in_lab(options(Attach::Tc), |lab| zones_of_a_trunk_are_apart_and_their_flows_survive(lab, Trunk::Cable));
}

#[test]
fn zones_of_a_trunk_are_apart_and_their_flows_survive_through_xdp() {
    in_lab(options(Attach::Xdp), |lab| zones_of_a_trunk_are_apart_and_their_flows_survive(lab, Trunk::Cable));
}

#[test]
fn zones_of_a_bond_are_apart_and_their_flows_survive_through_tc() {
    in_lab(options(Attach::Tc), |lab| zones_of_a_trunk_are_apart_and_their_flows_survive(lab, Trunk::Bond));
}

#[test]
fn xdp_is_refused_on_a_bond() {
    in_lab(options(Attach::Xdp), |lab| {
        if !has_vlan_devices(lab)? {
            return Ok(());
        }
        lay_vlans(lab, Trunk::Bond)?;
        configure(lab, "bond0")?;
        refuses(lab, "interface bond0 is a bond")
    });
}

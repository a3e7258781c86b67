//! `[[group]]`: VIPs that move together, and the nodes between which they move.

use std::{
    collections::{HashMap, HashSet},
    net::Ipv4Addr,
    time::Duration,
};

use fwha_proto::heartbeat::MAX_INSTANCES;
use ipnet::Ipv4Net;
use serde::Serialize;
use toml::Spanned;

use super::{
    GroupId, NodeId, Span, ZoneId,
    names::Names,
    nodes::Nodes,
    section::{self, Section},
    source::Mistakes,
    value,
    zones::Zones,
};

/// A `[[group]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Its number: its place in the file, from 0.
    pub id: GroupId,
    /// Its name.
    pub name: String,
    /// Its nodes and their VRRP priorities (1 to 254, no two equal), most preferred first.
    pub nodes: Vec<(NodeId, u8)>,
    /// Whether a more preferred node takes the group back when it returns.
    pub preempt: bool,
    /// For how long it must have been ready to, up to an hour.
    pub preempt_delay: Duration,
    /// Time between two VRRP adverts, whole centiseconds, 10 ms to 40.95 s.
    pub advert_interval: Duration,
    /// Its VIPs.
    pub vips: Vec<Vip>,
}

impl Group {
    /// The priority of a node; none if it is not in the group.
    pub fn priority(&self, node: NodeId) -> Option<u8> {
        self.nodes.iter().find(|&&(id, _)| id == node).map(|&(_, priority)| priority)
    }
}

/// A virtual router (RFC 9568) of a group: addresses in one zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// The zone; the addresses are on its first interface.
    pub zone: ZoneId,
    /// Virtual router identifier, 1 to 255, once in a zone.
    pub vrid: u8,
    /// The addresses, each with the prefix length of its network.
    pub addresses: Vec<Ipv4Net>,
}

/// Addresses in one VRRP advert: its count field has 8 bits (RFC 9568, 5.2.5).
const ADDRESSES_MAX: usize = 255;

/// What no two groups may have in common, and where it was first seen.
#[derive(Default)]
struct Seen {
    vrids: HashSet<(ZoneId, u8)>,
    addresses: HashSet<Ipv4Addr>,
    networks: Vec<(Ipv4Net, ZoneId)>,
}

pub(super) fn read<'a>(
    root: &mut Section<'a>,
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    mistakes: &mut Mistakes,
) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut names = Names::new("group");
    let mut seen = Seen::default();
    let sections = section::array_of_tables(root, "group", "[[group]]", mistakes);
    if sections.is_empty() {
        mistakes
            .add_global("no [[group]]")
            .remedy("without one no node ever forwards: [[group]], name, nodes, vips");
    }
    if let Some(extra) = sections.get(1) {
        mistakes
            .add(extra.span.clone(), "more than one group is not supported yet")
            .remedy("put all vips into one group: it owns every flow");
    }
    for (index, mut section) in sections.into_iter().enumerate() {
        let name = names.read(&mut section, mistakes);
        let members = read_members(&mut section, nodes, mistakes);
        let preempt = section.boolean("preempt", mistakes).unwrap_or(false);
        let preempt_delay = read_preempt_delay(&mut section, preempt, mistakes);
        let advert_interval = read_advert_interval(&mut section, mistakes);
        let mut vips = Vec::new();
        if let Some(items) = section.list("vips", mistakes) {
            if let Some(extra) = items.get(MAX_INSTANCES) {
                mistakes
                    .add(extra.span(), format!("more than {MAX_INSTANCES} vrids in one group"))
                    .remedy("one vrid takes many addresses: addresses = [ …, … ]");
            }
            for vip in section::tables(items, "vips", mistakes) {
                vips.extend(read_vip(vip, &members, nodes, zones, &mut seen, mistakes));
            }
        }
        section.finish(mistakes);
        groups.push(Group {
            id: index as GroupId,
            name,
            nodes: members,
            preempt,
            preempt_delay,
            advert_interval,
            vips,
        });
    }
    groups
}

/// `nodes` and `priority`.
fn read_members(section: &mut Section<'_>, nodes: &Nodes<'_>, mistakes: &mut Mistakes) -> Vec<(NodeId, u8)> {
    let mut members: Vec<(NodeId, u8)> = Vec::new();
    let items = section
        .require("nodes", mistakes)
        .and_then(|v| section::list(v, "nodes", mistakes).map(|l| (l, v.span())));
    let Some((items, span)) = items else {
        section.get("priority");
        return members;
    };
    if items.is_empty() {
        mistakes.add(span, "nodes is empty").remedy("name the nodes, most preferred first");
    }
    for name in section::strings(items, "nodes", mistakes) {
        let Some(index) = nodes.names.find(&name, mistakes) else { continue };
        let id = index as NodeId + 1;
        if members.iter().any(|&(m, _)| m == id) {
            mistakes.add(name.span(), format!("node {:?} is there twice", name.get_ref()));
            continue;
        }
        // 200, 190, 180, …: room for others in between and on both sides.
        members.push((id, 200 - 10 * members.len() as u8));
    }
    if let Some(priorities) = section.get("priority").and_then(|t| section::table(t, "priority", mistakes)) {
        read_priorities(priorities, &mut members, nodes, mistakes);
    }
    members
}

/// `priority = { fw1 = 150, fw2 = 100 }`: for all of the group's nodes or none.
fn read_priorities(
    section: Section<'_>,
    members: &mut [(NodeId, u8)],
    nodes: &Nodes<'_>,
    mistakes: &mut Mistakes,
) {
    let mut given: HashMap<NodeId, (u8, Span)> = HashMap::new();
    let mut complete = true;
    for (key, value) in section.entries() {
        let name = Spanned::new(key.span(), key.get_ref().as_ref());
        let id = nodes.names.find(&name, mistakes).map(|i| i as NodeId + 1);
        let priority = section::integer(value, "priority", 1..=254, mistakes);
        let Some(id) = id else { continue };
        if !members.iter().any(|&(m, _)| m == id) {
            mistakes.add(key.span(), format!("node {:?} is not in this group's nodes", name.get_ref()));
            continue;
        }
        let Some(priority) = priority.map(|p| p as u8) else {
            complete = false;
            continue;
        };
        if let Some((&other, _)) = given.iter().find(|(_, (p, _))| *p == priority) {
            // The first in the file is fine, the second is the mistake.
            let (id, other, span) = match &given[&other].1 {
                first if first.start > value.span().start => (other, id, first.clone()),
                _ => (id, other, value.span()),
            };
            let name = |id: NodeId| nodes.names.name(usize::from(id) - 1);
            mistakes
                .add(span, format!("node {:?} has the priority of {:?}, {priority}", name(id), name(other)))
                .remedy("priorities must differ, or the group flaps");
        }
        given.insert(id, (priority, value.span()));
    }
    for (id, priority) in members.iter_mut() {
        match given.get(id) {
            Some((given, _)) => *priority = *given,
            None if complete => {
                let name = nodes.names.name(usize::from(*id) - 1);
                mistakes
                    .add(section.span.clone(), format!("node {name:?} has no priority"))
                    .remedy("give all of the group's nodes one, or leave out priority");
            }
            None => {}
        }
    }
    members.sort_by_key(|&(_, priority)| std::cmp::Reverse(priority));
}

fn read_preempt_delay(section: &mut Section<'_>, preempt: bool, mistakes: &mut Mistakes) -> Duration {
    let range = Duration::ZERO..=Duration::from_secs(3600);
    let Some(delay) = section.duration("preempt-delay", range, mistakes) else { return Duration::ZERO };
    if !preempt {
        mistakes
            .add(delay.span(), "preempt-delay without preempt means nothing")
            .remedy("say preempt = true, or leave it out");
    }
    delay.into_inner()
}

fn read_advert_interval(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Duration {
    let range = Duration::from_millis(10)..=Duration::from_millis(40_950);
    let Some(interval) = section.duration("advert-interval", range, mistakes) else {
        return Duration::from_secs(1);
    };
    let interval_ms = interval.get_ref().as_millis();
    if !interval_ms.is_multiple_of(10) {
        mistakes
            .add(
                interval.span(),
                format!("advert-interval {interval_ms}ms is not a whole number of centiseconds"),
            )
            .remedy(format!(
                "like \"{}ms\": VRRP counts in units of 10 ms",
                interval_ms.next_multiple_of(10)
            ));
    }
    interval.into_inner()
}

fn read_vip(
    mut section: Section<'_>,
    members: &[(NodeId, u8)],
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    seen: &mut Seen,
    mistakes: &mut Mistakes,
) -> Option<Vip> {
    let zone_name = section.required_string("zone", mistakes);
    let zone = zone_name.as_ref().and_then(|name| zones.names.find(name, mistakes));
    let vrid_value = section.require("vrid", mistakes);
    let vrid = vrid_value.and_then(|v| section::integer(v, "vrid", 1..=255, mistakes));
    let list = section.require("addresses", mistakes);
    let items = list.and_then(|v| section::list(v, "addresses", mistakes));
    section.finish(mistakes);

    if let (Some(name), Some(index)) = (&zone_name, zone) {
        for &(id, _) in members {
            if !zones.list[index].interfaces.contains_key(&id) {
                let node = nodes.names.name(usize::from(id) - 1);
                mistakes
                    .add(name.span(), format!("node {node:?} has no interface in zone {:?}", name.get_ref()))
                    .remedy("a VIP needs one on each node of its group");
            }
        }
    }
    if let (Some(vrid), Some(value), Some(index)) = (vrid, vrid_value, zone)
        && !seen.vrids.insert((index as ZoneId + 1, vrid as u8))
    {
        mistakes
            .add(value.span(), format!("vrid {vrid} is there twice in zone {:?}", zones.names.name(index)))
            .remedy("choose one that no other router on that network uses");
    }
    let zone = zone.map(|index| index as ZoneId + 1);
    let (list, items) = (list?, items?);
    if items.is_empty() {
        mistakes.add(list.span(), "addresses is empty").remedy("like [\"10.0.0.12/24\"]");
    }
    if let Some(extra) = items.get(ADDRESSES_MAX) {
        mistakes
            .add(extra.span(), format!("more than {ADDRESSES_MAX} addresses in one vrid"))
            .remedy("put the others under another vrid");
    }
    let mut addresses = Vec::new();
    for text in section::strings(items, "addresses", mistakes) {
        match value::host_prefix(text.get_ref()) {
            Ok(net) => {
                check_address(net, zone, text.span(), nodes, zones, seen, mistakes);
                addresses.push(net);
            }
            Err(problem) => {
                mistakes.add(text.span(), format!("vip: {problem}"));
            }
        }
    }
    Some(Vip { zone: zone?, vrid: vrid? as u8, addresses })
}

/// A VIP must be the only one of its address, and its network must be in one zone.
fn check_address(
    net: Ipv4Net,
    zone: Option<ZoneId>,
    span: Span,
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    seen: &mut Seen,
    mistakes: &mut Mistakes,
) {
    let address = net.addr();
    if nodes.sync_addresses.contains(&address) {
        mistakes.add(span.clone(), format!("vip {address} is a node's sync address"));
    }
    if !seen.addresses.insert(address) {
        mistakes.add(span, format!("vip {address} is there twice")).remedy("an address is in one place");
        return;
    }
    let Some(zone) = zone else { return };
    let overlaps = |other: &Ipv4Net| other.contains(&net.network()) || net.contains(&other.network());
    if let Some((other, place)) = seen.networks.iter().find(|(n, z)| *z != zone && overlaps(n)) {
        mistakes
            .add(
                span,
                format!(
                    "vip {net} overlaps vip {other} of zone {:?}",
                    zones.names.name(usize::from(*place) - 1)
                ),
            )
            .remedy("each zone needs networks of its own");
    }
    seen.networks.push((net, zone));
}

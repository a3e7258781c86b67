//! `[[group]]`: VIPs that move together, and the nodes between which they move.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::Path,
    time::Duration,
};

use fwha_common::{MAX_GROUPS, group::MAX_VIPS};
use fwha_proto::{
    election,
    heartbeat::MAX_INSTANCES,
    vrrp::hmac::{self, Mode},
    vrrp::packet::{ADDRESSES_MAX, Auth, Checksum, PASSWORD_LEN, Version},
};
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use toml::Spanned;

use super::{
    GroupId, KeyError, NodeId, Span, ZoneId,
    names::Names,
    nodes::Nodes,
    ownership,
    routes::{self, Route, RoutingRule},
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
    /// Its nodes and their VRRP priorities (1 to 255, no two equal), most preferred first.
    pub nodes: Vec<(NodeId, u8)>,
    /// Whether a more preferred node takes the group back when it returns.
    pub preempt: bool,
    /// For how long it must have been ready to, up to an hour.
    pub preempt_delay: Duration,
    /// The VRRP that it speaks.
    #[serde(serialize_with = "version_text")]
    pub version: Version,
    /// How its adverts are authenticated. Keys are no part of the hash, their numbers are.
    #[serde(serialize_with = "hmac_text", skip_serializing_if = "Option::is_none")]
    pub hmac: Option<hmac::Config>,
    /// Time between two VRRP adverts, whole centiseconds, 10 ms to 40.95 s; in version 2 whole
    /// seconds, 1 s to 255 s.
    pub advert_interval: Duration,
    /// How its addresses are announced to the neighbours.
    pub announce: Announce,
    /// Whether its addresses have the MAC of their virtual router (RFC 9568, 7.3), not that of the interface.
    #[serde(skip_serializing_if = "is_false")]
    pub virtual_mac: bool,
    /// Accept_Mode (RFC 9568, 6.1): whether a node that is not the owner of its addresses takes what is addressed to
    /// them.
    #[serde(skip_serializing_if = "is_true")]
    pub accept: bool,
    /// Its virtual routers.
    pub vips: Vec<Vip>,
    /// Routes that are where it is Active.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Rules of policy routing, likewise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routing_rules: Vec<RoutingRule>,
}

impl Group {
    /// What the election is told of it, on a node that begins with `start`.
    pub fn election(&self, start: election::Start) -> election::GroupConfig {
        let instance = |vip: &Vip| election::Instance {
            zone: vip.zone,
            vrid: vip.vrid,
            addresses: vip.addresses.iter().map(|a| a.addr()).collect(),
            peers: vip.peers.clone(),
        };
        election::GroupConfig {
            group: self.id,
            name: self.name.clone(),
            members: self.nodes.clone(),
            preempt: self.preempt,
            preempt_delay: self.preempt_delay,
            advert_interval_cs: (self.advert_interval.as_millis() / 10) as u16,
            version: self.version,
            hmac: self.hmac.clone(),
            announce: election::Announce {
                repeat: self.announce.repeat.clone(),
                refresh: self.announce.refresh,
            },
            instances: self.vips.iter().map(instance).collect(),
            start,
        }
    }

    /// The priority of a node; none if it is not in the group.
    pub fn priority(&self, node: NodeId) -> Option<u8> {
        self.nodes.iter().find(|&&(id, _)| id == node).map(|&(_, priority)| priority)
    }
}

/// For the hash of the config: what nobody asked for is not in it.
fn is_false(value: &bool) -> bool {
    !value
}

/// See [`is_false`].
fn is_true(value: &bool) -> bool {
    *value
}

/// For the hash of the config: two nodes must agree on all of it.
fn hmac_text<S: Serializer>(hmac: &Option<hmac::Config>, serializer: S) -> Result<S::Ok, S::Error> {
    // Keys show their numbers alone.
    serializer.collect_str(&format_args!("{hmac:?}"))
}

fn version_text<S: Serializer>(version: &Version, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{version:?}"))
}

/// When and how fast gratuitous ARP and unsolicited neighbour advertisements are sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Announce {
    /// After a takeover at once, and again so long after it, soonest first: at most
    /// `ANNOUNCE_REPEAT_MAX` times, 10 ms to an hour.
    pub repeat: Vec<Duration>,
    /// For as long as the node is active once in this time, 1 s to a day.
    pub refresh: Option<Duration>,
    /// Between two addresses of one announcement, up to a second.
    pub interval: Duration,
}

impl Default for Announce {
    fn default() -> Self {
        let election::Announce { repeat, refresh } = election::Announce::default();
        Self { repeat, refresh, interval: Duration::ZERO }
    }
}

/// Unicast peers of one virtual router.
pub const PEERS_MAX: usize = 32;
/// How often an announcement may be repeated.
pub const ANNOUNCE_REPEAT_MAX: usize = 16;

/// A virtual router (RFC 9568) of a group: addresses of one family in one zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Vip {
    /// The zone; the addresses are on its first interface.
    pub zone: ZoneId,
    /// Virtual router identifier, 1 to 255, once in a zone for each family.
    pub vrid: u8,
    /// The addresses, each with the prefix length of its network. Of IPv6 the first is link-local.
    pub addresses: Vec<IpNet>,
    /// The routers, of the same family, that it speaks to by unicast and listens to, the nodes themselves
    /// among them; with none it speaks by multicast.
    pub peers: Vec<IpAddr>,
}

impl Vip {
    /// Whether it is one for IPv6.
    pub fn is_v6(&self) -> bool {
        self.addresses.first().is_some_and(|a| a.addr().is_ipv6())
    }
}

/// The window of signed adverts at least, unless it is set.
const HMAC_WINDOW: Duration = Duration::from_secs(5);

/// What no two groups may have in common, and where it was first seen.
#[derive(Default)]
struct Seen {
    /// With the family: whether it is IPv6.
    vrids: HashSet<(ZoneId, u8, bool)>,
    /// With the zone if it is link-local.
    addresses: HashSet<(IpAddr, Option<ZoneId>)>,
    networks: Vec<(IpNet, ZoneId)>,
    routes: Vec<Route>,
    routing_rules: Vec<RoutingRule>,
}

pub(super) fn read<'a>(
    root: &mut Section<'a>,
    config: &Path,
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
    if let Some(extra) = sections.get(MAX_GROUPS) {
        mistakes.add(extra.span.clone(), format!("more than {MAX_GROUPS} groups"));
    }
    for (index, mut section) in sections.into_iter().enumerate() {
        let name = names.read(&mut section, mistakes);
        let members = read_members(&mut section, nodes, mistakes);
        let preempt = section.boolean("preempt", mistakes).unwrap_or(false);
        let preempt_delay = read_preempt_delay(&mut section, preempt, mistakes);
        let version = read_version(&mut section, mistakes);
        let advert_interval = read_advert_interval(&mut section, version, mistakes);
        let hmac = read_hmac(&mut section, advert_interval, config, mistakes);
        let announce = read_announce(&mut section, mistakes);
        let virtual_mac = section.boolean("virtual-mac", mistakes).unwrap_or(false);
        let accept = section.boolean("accept", mistakes).unwrap_or(true);
        let mut vips = Vec::new();
        if let Some(items) = section.list("vips", mistakes) {
            for vip in section::tables(items, "vips", mistakes) {
                let (span, before) = (vip.span.clone(), vips.len());
                vips.extend(read_vip(vip, &members, nodes, zones, &mut seen, mistakes));
                if version.is_v2() && vips[before..].iter().any(Vip::is_v6) {
                    mistakes
                        .add(span.clone(), "VRRP version 2 has no IPv6")
                        .remedy("leave out vrrp-version, or the IPv6 addresses");
                }
                if before <= MAX_INSTANCES && vips.len() > MAX_INSTANCES {
                    mistakes
                        .add(span, format!("more than {MAX_INSTANCES} vrids in one group"))
                        .remedy(
                            "one vrid takes many addresses: addresses = [ …, … ]; with IPv4 and IPv6 it counts twice",
                        );
                }
            }
        }
        let routes = routes::read(&mut section, &members, nodes, zones, &mut seen.routes, mistakes);
        let routing_rules = routes::read_rules(&mut section, &mut seen.routing_rules, mistakes);
        let span = section.span.clone();
        section.finish(mistakes);
        let group = Group {
            id: index as GroupId,
            name,
            nodes: members,
            preempt,
            preempt_delay,
            version,
            hmac,
            advert_interval,
            announce,
            virtual_mac,
            accept,
            vips,
            routes,
            routing_rules,
        };
        groups.push((group, span));
    }
    ownership::check(&groups, zones, mistakes);
    let addresses: usize = groups.iter().flat_map(|(g, _)| &g.vips).map(|vip| vip.addresses.len()).sum();
    if addresses > MAX_VIPS {
        mistakes.add_global(format!("{addresses} virtual addresses: the data plane has room for {MAX_VIPS}"));
    }
    groups.into_iter().map(|(group, _)| group).collect()
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
        let priority = section::integer(value, "priority", 1..=255, mistakes);
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

/// `vrrp-version`, and what one version alone has: `auth-pass` and `checksum`.
fn read_version(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Version {
    let v2 = section.integer("vrrp-version", 2..=3, mistakes) == Some(2);
    let auth = section.string("auth-pass", mistakes);
    let checksum = section.string("checksum", mistakes);
    if let Some(auth) = auth.as_ref().filter(|_| !v2) {
        mistakes
            .add(auth.span(), "auth-pass without vrrp-version = 2")
            .remedy("version 3 of VRRP has no passwords: leave it out; `auth` signs its adverts");
    }
    if let Some(checksum) = checksum.as_ref().filter(|_| v2) {
        mistakes
            .add(checksum.span(), "checksum with vrrp-version = 2")
            .remedy("version 2 has only one kind: leave it out");
    }
    if v2 {
        return Version::V2 { auth: auth.map_or(Auth::None, |text| read_password(&text, mistakes)) };
    }
    let checksum = checksum.map_or(Checksum::default(), |text| match *text.get_ref() {
        "message" => Checksum::Message,
        "pseudo-header" => Checksum::PseudoHeader,
        other => {
            mistakes
                .add(text.span(), format!("unknown checksum {other:?}"))
                .remedy(value::suggest(other, &["message", "pseudo-header"]));
            Checksum::default()
        }
    });
    Version::V3 { checksum }
}

/// `auth`: keepalived's `auth_hmac`.
fn read_hmac(
    section: &mut Section<'_>,
    interval: Duration,
    config: &Path,
    mistakes: &mut Mistakes,
) -> Option<hmac::Config> {
    let mut table = section::table(section.get("auth")?, "auth", mistakes)?;
    if let Some(kind) = table.required_string("type", mistakes).filter(|kind| *kind.get_ref() != "hmac") {
        let remedy = "auth = { type = \"hmac\", key-file = \"vrrp.key\", key-id = 1 }; a password of version 2 is auth-pass";
        mistakes.add(kind.span(), format!("unknown auth type {:?}", kind.get_ref())).remedy(remedy);
    }
    let mut keys: Vec<hmac::Key> = read_hmac_key(&mut table, config, mistakes).into_iter().collect();
    let accept = table.list("accept", mistakes).map(|items| section::tables(items, "accept", mistakes));
    for mut further in accept.into_iter().flatten() {
        keys.extend(read_hmac_key(&mut further, config, mistakes));
        further.finish(mistakes);
    }
    for (n, key) in keys.iter().enumerate() {
        if keys[..n].iter().any(|other| other.id == key.id) {
            mistakes.add(table.span.clone(), format!("auth: key-id {} twice", key.id));
        }
    }
    let mode = table.string("mode", mistakes).map(|text| {
        let found = Mode::ALL.into_iter().find(|mode| mode.as_str() == *text.get_ref());
        if found.is_none() {
            let known = Mode::ALL.map(Mode::as_str);
            mistakes
                .add(text.span(), format!("unknown mode {:?}", text.get_ref()))
                .remedy(value::suggest(text.get_ref(), &known));
        }
        found.unwrap_or(Mode::Enforce)
    });
    let range = Duration::from_secs(1)..=Duration::from_secs(300);
    let window = table.duration("window", range, mistakes).map(|window| *window.get_ref());
    let whole = Duration::from_secs(window.unwrap_or((interval * 3).max(HMAC_WINDOW)).as_secs());
    table.finish(mistakes);
    Some(hmac::Config { keys, mode: mode.unwrap_or(Mode::Enforce), window: whole })
}

/// `key-file` and `key-id`.
fn read_hmac_key(table: &mut Section<'_>, config: &Path, mistakes: &mut Mistakes) -> Option<hmac::Key> {
    let id = table.integer("key-id", 1..=255, mistakes).unwrap_or(1) as u8;
    let text = table.required_string("key-file", mistakes)?;
    let path = super::beside(config, text.get_ref());
    let key = super::key::read_hmac(&path);
    let key = key.and_then(|secret| hmac::Key::new(id, &secret).ok_or(KeyError::Malformed));
    let problem = match key {
        Ok(key) => return Some(key),
        Err(problem) => problem,
    };
    let like = "like: printf 'hex:%s' \"$(openssl rand -hex 32)\"; the same on every router";
    let (problem, remedy) = match problem {
        KeyError::Malformed => ("does not hold 32 to 64 bytes".to_owned(), like.to_owned()),
        KeyError::Missing => (problem.to_string(), like.to_owned()),
        _ => (problem.to_string(), problem.remedy(&path)),
    };
    mistakes.add(text.span(), format!("key file {} {problem}", path.display())).remedy(remedy);
    None
}

/// The password is padded with zeros (RFC 2338, 5.3.10).
fn read_password(text: &Spanned<&str>, mistakes: &mut Mistakes) -> Auth {
    let bytes = text.get_ref().as_bytes();
    let mut password = [0; PASSWORD_LEN];
    if bytes.is_empty() || bytes.len() > PASSWORD_LEN {
        mistakes.add(text.span(), format!("auth-pass does not have 1 to {PASSWORD_LEN} bytes"));
    } else {
        password[..bytes.len()].copy_from_slice(bytes);
    }
    Auth::Password(password)
}

fn read_advert_interval(section: &mut Section<'_>, version: Version, mistakes: &mut Mistakes) -> Duration {
    let range = if version.is_v2() {
        Duration::from_secs(1)..=Duration::from_secs(255)
    } else {
        Duration::from_millis(10)..=Duration::from_millis(40_950)
    };
    let Some(interval) = section.duration("advert-interval", range, mistakes) else {
        return Duration::from_secs(1);
    };
    let interval_ms = interval.get_ref().as_millis();
    if version.is_v2() && !interval_ms.is_multiple_of(1000) {
        mistakes
            .add(interval.span(), format!("advert-interval {interval_ms}ms is not a whole number of seconds"))
            .remedy(format!("like \"{}s\": version 2 of VRRP counts in them", interval_ms.div_ceil(1000)));
    } else if !interval_ms.is_multiple_of(10) {
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

/// `announce = { repeat = [ … ], refresh = "60s", interval = "1ms" }`.
fn read_announce(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Announce {
    let mut announce = Announce::default();
    let table = section.get("announce").and_then(|value| section::table(value, "announce", mistakes));
    let Some(mut table) = table else { return announce };
    if let Some(items) = table.list("repeat", mistakes) {
        announce.repeat.clear();
        let range = Duration::from_millis(10)..=Duration::from_secs(3600);
        for item in items {
            let Some(after) = section::duration(item, "repeat", range.clone(), mistakes) else { continue };
            if announce.repeat.last().is_some_and(|last| last >= after.get_ref()) {
                mistakes
                    .add(after.span(), "repeat is not in order")
                    .remedy("each is reckoned from the takeover, soonest first");
            }
            announce.repeat.push(after.into_inner());
        }
        if let Some(extra) = items.get(ANNOUNCE_REPEAT_MAX) {
            mistakes
                .add(extra.span(), format!("more than {ANNOUNCE_REPEAT_MAX} repetitions"))
                .remedy("what is to go on for ever is refresh");
        }
    }
    let range = Duration::from_secs(1)..=Duration::from_secs(24 * 3600);
    announce.refresh = table.duration("refresh", range, mistakes).map(Spanned::into_inner);
    let range = Duration::ZERO..=Duration::from_secs(1);
    announce.interval =
        table.duration("interval", range, mistakes).map_or(Duration::ZERO, Spanned::into_inner);
    table.finish(mistakes);
    announce
}

fn read_vip(
    mut section: Section<'_>,
    members: &[(NodeId, u8)],
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    seen: &mut Seen,
    mistakes: &mut Mistakes,
) -> Vec<Vip> {
    let zone_name = section.required_string("zone", mistakes);
    let zone = zone_name.as_ref().and_then(|name| zones.names.find(name, mistakes));
    let vrid_value = section.require("vrid", mistakes);
    let vrid = vrid_value.and_then(|v| section::integer(v, "vrid", 1..=255, mistakes));
    let list = section.require("addresses", mistakes);
    let items = list.and_then(|v| section::list(v, "addresses", mistakes));
    let peers_at = section.get("peers").map(|value| value.span());
    let peers = read_peers(&mut section, mistakes);
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
    let zone_id = zone.map(|index| index as ZoneId + 1);
    let (Some(list), Some(items)) = (list, items) else { return Vec::new() };
    if items.is_empty() {
        mistakes.add(list.span(), "addresses is empty").remedy("like [\"10.0.0.12/24\"]");
    }
    // RFC 9568, 1: a virtual router is of one family.
    let (mut v4, mut v6): (Vec<IpNet>, Vec<IpNet>) = Default::default();
    for text in section::strings(items, "addresses", mistakes) {
        match value::host_prefix(text.get_ref()) {
            Ok(net) => {
                check_address(net, zone_id, text.span(), nodes, zones, seen, mistakes);
                let addresses = if net.addr().is_ipv4() { &mut v4 } else { &mut v6 };
                addresses.push(net);
                if addresses.len() == ADDRESSES_MAX + 1 {
                    mistakes
                        .add(text.span(), format!("more than {ADDRESSES_MAX} addresses in one vrid"))
                        .remedy("put the others under another vrid");
                }
            }
            Err(problem) => {
                mistakes.add(text.span(), format!("vip: {problem}"));
            }
        }
    }
    // RFC 9568, 5.2.9: its link-local address comes first.
    v6.sort_by_key(|net| !is_link_local(net));
    if v6.first().is_some_and(|net| !is_link_local(net)) {
        mistakes
            .add(list.span(), "addresses of IPv6 without a link-local one")
            .remedy("VRRP advertises one first, and hosts route by it: add one like \"fe80::12/64\"");
    }
    let (Some(zone), Some(zone_id), Some(vrid), Some(value)) = (zone, zone_id, vrid, vrid_value) else {
        return Vec::new();
    };
    let vrid = vrid as u8;
    let routers: Vec<Vip> = [v4, v6]
        .into_iter()
        .filter(|addresses| !addresses.is_empty())
        .map(|addresses| {
            let v6 = addresses.first().is_some_and(|a: &IpNet| a.addr().is_ipv6());
            let peers: Vec<IpAddr> = peers.iter().filter(|peer| peer.is_ipv6() == v6).copied().collect();
            if let (Some(span), true) = (&peers_at, peers.is_empty()) {
                let family = if v6 { "IPv6" } else { "IPv4" };
                mistakes
                    .add(span.clone(), format!("peers has no address of {family}"))
                    .remedy("name the other routers' own addresses of each family, or leave peers out");
            }
            Vip { zone: zone_id, vrid, addresses, peers }
        })
        .collect();
    let mut twice = false;
    for router in &routers {
        twice |= !seen.vrids.insert((zone_id, vrid, router.is_v6()));
    }
    if twice {
        mistakes
            .add(value.span(), format!("vrid {vrid} is there twice in zone {:?}", zones.names.name(zone)))
            .remedy("choose one that no other router on that network uses");
    }
    routers
}

/// `peers`: addresses of routers.
fn read_peers(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Vec<IpAddr> {
    let mut peers = Vec::new();
    let items = section.list("peers", mistakes).unwrap_or_default();
    for text in section::strings(items, "peers", mistakes) {
        match value::host_ip(text.get_ref()) {
            Ok(peer) if peers.contains(&peer) => {
                mistakes.add(text.span(), format!("peer {peer} is there twice"));
            }
            Ok(peer) => peers.push(peer),
            Err(problem) => {
                mistakes.add(text.span(), format!("peers: {problem}"));
            }
        }
    }
    if let Some(extra) = items.get(PEERS_MAX) {
        mistakes.add(extra.span(), format!("more than {PEERS_MAX} peers"));
    }
    peers
}

fn is_link_local(net: &IpNet) -> bool {
    matches!(net.addr(), IpAddr::V6(address) if address.is_unicast_link_local())
}

/// A VIP must be the only one of its address, and its network must be in one zone.
fn check_address(
    net: IpNet,
    zone: Option<ZoneId>,
    span: Span,
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    seen: &mut Seen,
    mistakes: &mut Mistakes,
) {
    let address = net.addr();
    if let IpAddr::V4(address) = address
        && nodes.sync_addresses.contains(&address)
    {
        mistakes.add(span.clone(), format!("vip {address} is a node's sync address"));
    }
    let link_local = is_link_local(&net);
    if !seen.addresses.insert((address, zone.filter(|_| link_local))) {
        mistakes.add(span, format!("vip {address} is there twice")).remedy("an address is in one place");
        return;
    }
    let Some(zone) = zone.filter(|_| !link_local) else { return };
    let overlaps = |other: &IpNet| other.contains(&net.network()) || net.contains(&other.network());
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

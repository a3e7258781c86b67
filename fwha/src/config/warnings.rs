//! What is worth a thought in a file without mistakes.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fwha_common::{
    flow::{FlowKey, octets, proto},
    rule::{Action, Query, ZONE_ANY, ZONE_NODE},
};
use ipnet::IpNet;

use super::{
    Config, ZoneId,
    groups::{Group, Vip},
    rules::{Rule, Service},
};

/// Rules are compared with each other up to so many: that takes the square of their number.
const COMPARED_MAX: usize = 1_000;

/// All of it, a sentence each.
pub(super) fn of(config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    nodes(config, &mut warnings);
    sync(config, &mut warnings);
    if config.nodes.len() > 1 {
        warnings.extend(config.replication.losses());
        let unreplicated: Vec<&str> =
            config.rules.iter().filter(|r| !r.replicate).map(|r| r.name.as_str()).collect();
        if !unreplicated.is_empty() && config.replication.enabled {
            warnings.push(format!("a takeover loses the flows of {}", unreplicated.join(", ")));
        }
    }
    if config.rules.is_empty() {
        warnings.push("no rules: every packet is dropped".into());
    } else if !admits_tcp_to_node(config) {
        warnings.push("no rule admits TCP to the node: nobody can log in to it through a zone".into());
    }
    for rule in &config.rules {
        warnings.extend(idle(config, rule));
    }
    warnings.extend(hidden(&config.rules));
    witnesses(config, &mut warnings);
    for tracker in &config.trackers {
        if let Some((address, group)) = tracker.watch.address().and_then(|a| Some((a, vip_of(config, a)?))) {
            warnings.push(format!(
                "tracker {} watches {address}, an address of group {}, which the node has itself while it is active",
                tracker.name, group.name
            ));
        }
        warnings.extend(tracker.doubt(&config.groups));
    }
    warnings.extend(config.asymmetric_rules());
    for group in &config.groups {
        if group.vips.is_empty() {
            warnings.push(format!("group {} has no vips: nobody's traffic follows it", group.name));
        }
        for vip in &group.vips {
            peers(vip, group, &mut warnings);
            for net in vip.addresses.iter().filter(|net| net.prefix_len() < widest(net)) {
                let name = &group.name;
                warnings.push(format!(
                    "group {name}: {net} brings a route to all of {}: is that the length of its network's prefix?",
                    net.trunc()
                ));
            }
        }
    }
    warnings
}

/// The shortest prefix that a network of hosts may be believed to have: 10.0.0.0/8, or what a provider gets of IPv6.
const fn widest(net: &IpNet) -> u8 {
    match net {
        IpNet::V4(_) => 8,
        IpNet::V6(_) => 10,
    }
}

fn nodes(config: &Config, warnings: &mut Vec<String>) {
    if config.nodes.len() == 1 {
        warnings.push("one node only: nothing takes over when it fails".to_owned());
        return;
    }
    for group in config.groups.iter().filter(|g| g.nodes.len() == 1) {
        warnings.push(format!("group {} has one node only: nothing takes over when it fails", group.name));
    }
    for node in &config.nodes {
        if config.groups.iter().all(|g| g.priority(node.id).is_none()) {
            warnings.push(format!("node {} is in no group: it never takes anything over", node.name));
        }
        for zone in config.zones.iter().filter(|z| z.interfaces.get(&node.id).is_none_or(Vec::is_empty)) {
            warnings.push(format!("node {} has no interface in zone {}", node.name, zone.name));
        }
    }
}

fn sync(config: &Config, warnings: &mut Vec<String>) {
    if config.nodes.len() > 1 && config.nodes.iter().any(|n| n.sync.len() == 1) {
        warnings.push(
            "one sync link only: without it connections are lost at a takeover; add a second to each node"
                .into(),
        );
    }
    for (at, node) in config.nodes.iter().enumerate() {
        for (n, link) in node.sync.iter().enumerate() {
            let elsewhere = |place: &usize| *place != n;
            let other = config.nodes[..at].iter().find_map(|other| {
                let same = other.sync.iter().position(|l| l.interface == link.interface).filter(elsewhere)?;
                Some((other, same))
            });
            if let Some((other, place)) = other {
                warnings.push(format!(
                    "{} is sync link {} of {} and {} of {}: links are told apart by their order, which must be that of \
                     the cables",
                    link.interface,
                    place + 1,
                    other.name,
                    n + 1,
                    node.name
                ));
            }
            let address = IpAddr::from(link.address);
            let vips = || config.groups.iter().flat_map(|g| &g.vips).flat_map(|v| &v.addresses);
            if let Some(net) = vips().find(|net| net.contains(&address)) {
                warnings.push(format!(
                    "sync address {address} of {} is in the network of the vip {net}: sync links are networks of their own",
                    node.name
                ));
            }
        }
    }
}

/// Whether a rule admits some TCP to the node from some host: port 22, or another that may be where its SSH is, which that of
/// the metrics is not.
fn admits_tcp_to_node(config: &Config) -> bool {
    let admits = |rule: &&Rule| {
        rule.action == Action::Accept && matches!(rule.to, ZONE_NODE | ZONE_ANY) && rule.takes_tcp()
    };
    let metrics = config.metrics.listen.map(|address| address.port());
    config.rules.iter().filter(admits).any(|rule| {
        let named = rule.source.iter().chain(&rule.destination).next();
        let any: IpAddr = match named {
            Some(net) if net.addr().is_ipv6() => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::LOCALHOST.into(),
        };
        let some = |list: &[IpNet]| FlowKey::address(octets(list.first().map_or(any, IpNet::addr)));
        let ports: Vec<u16> = match rule.services[..] {
            [] => vec![22],
            _ => rule.services.iter().filter(|service| service.is_tcp()).map(Service::login).collect(),
        };
        let ports = ports.into_iter().filter(|port| Some(*port) != metrics);
        let zones: Vec<ZoneId> = match rule.from {
            ZONE_ANY => config.zones.iter().map(|z| z.id).collect(),
            zone => vec![zone],
        };
        let admits = |port, from| {
            let query = Query {
                src: some(&rule.source),
                dst: some(&rule.destination),
                port,
                proto: proto::TCP,
                from,
                to: ZONE_NODE,
            };
            config.ruleset.find(&query).is_some_and(|decision| decision.action == Action::Accept as u8)
        };
        ports.into_iter().any(|port| zones.iter().any(|from| admits(port, *from)))
    })
}

/// What of a rule has no effect, whatever stands before it.
fn idle(config: &Config, rule: &Rule) -> Vec<String> {
    let Rule { name, source, destination, services, .. } = rule;
    let mut warnings = Vec::new();
    let is_v6 = |net: &IpNet| net.addr().is_ipv6();
    let apart =
        |v6: bool| source.iter().all(|n| is_v6(n) == v6) && destination.iter().all(|n| is_v6(n) != v6);
    if !source.is_empty() && !destination.is_empty() && (apart(true) || apart(false)) {
        warnings.push(format!(
            "rule {name} matches nothing: one of source and destination is IPv4, the other IPv6"
        ));
    }
    let both = || source.iter().chain(destination);
    let other_icmp = |v6: bool| {
        let icmp = if v6 { proto::ICMP } else { proto::ICMPV6 };
        both().any(|n| is_v6(n) == v6) && !services.is_empty() && services.iter().all(|s| s.proto == icmp)
    };
    let families: BTreeSet<bool> = both().map(is_v6).collect();
    if families.len() == 1 && (other_icmp(true) || other_icmp(false)) {
        let right = if families.contains(&true) { "icmpv6" } else { "icmp" };
        warnings.push(format!("rule {name} matches nothing: for its addresses it is {right}"));
    }
    if rule.mss != 0 && !rule.takes_tcp() {
        warnings.push(format!("rule {name} has an mss, which is for TCP, but no service of TCP"));
    }
    let vip = |net: &IpNet| {
        (net.prefix_len() == net.max_prefix_len()).then(|| vip_of(config, net.addr())).flatten()
    };
    if rule.to != ZONE_NODE
        && rule.to != ZONE_ANY
        && let Some(net) = destination.first()
        && destination.iter().all(|net| vip(net).is_some())
    {
        warnings.push(format!(
            "rule {name} matches nothing: {} is an address of the node, so what goes to it goes to zone \"node\"",
            net.addr()
        ));
    }
    warnings
}

/// Rules of which one before them, with another action, takes all.
fn hidden(rules: &[Rule]) -> Vec<String> {
    let zone = |outer: ZoneId, inner: ZoneId| outer == ZONE_ANY || outer == inner;
    let networks = |outer: &[IpNet], inner: &[IpNet]| {
        outer.is_empty() || !inner.is_empty() && inner.iter().all(|net| outer.iter().any(|o| o.contains(net)))
    };
    let covers = |outer: &Rule, inner: &Rule| {
        zone(outer.from, inner.from)
            && zone(outer.to, inner.to)
            && networks(&outer.source, &inner.source)
            && networks(&outer.destination, &inner.destination)
            && (outer.services.is_empty()
                || !inner.services.is_empty()
                    && inner.services.iter().all(|s| outer.services.iter().any(|o| o.covers(s))))
    };
    if rules.len() > COMPARED_MAX {
        return Vec::new();
    }
    let hider = |at: usize| rules[..at].iter().find(|outer| covers(outer, &rules[at]));
    let hidden = rules.iter().enumerate().filter_map(|(at, rule)| {
        let outer = hider(at).filter(|outer| outer.action != rule.action)?;
        Some(format!(
            "rule {} is never reached: rule {} before it takes all that it matches",
            rule.name, outer.name
        ))
    });
    hidden.collect()
}

/// Witnesses that belong to the cluster.
fn witnesses(config: &Config, warnings: &mut Vec<String>) {
    for &witness in &config.cluster.witness {
        let whose = if witness.is_loopback() {
            "each node itself".to_owned()
        } else if let Some(group) = vip_of(config, witness) {
            format!("an address of group {}", group.name)
        } else if let Some(node) =
            config.nodes.iter().find(|n| n.sync.iter().any(|s| IpAddr::from(s.address) == witness))
        {
            format!("the sync address of {}", node.name)
        } else if config.groups.iter().flat_map(|g| &g.vips).any(|v| v.peers.contains(&witness)) {
            "an address that VRRP speaks to".to_owned()
        } else {
            continue;
        };
        warnings.push(format!(
            "witness {witness} is {whose}: it proves nothing about a node that is cut off; name a host outside of the \
             cluster"
        ));
    }
}

/// The group that has this virtual address.
fn vip_of(config: &Config, address: IpAddr) -> Option<&Group> {
    let has = |g: &&Group| g.vips.iter().flat_map(|v| &v.addresses).any(|a| a.addr() == address);
    config.groups.iter().find(has)
}

/// Peers that VRRP cannot reach, as it speaks to neighbours only (RFC 9568, 5.1.1.3).
fn peers(vip: &Vip, group: &Group, warnings: &mut Vec<String>) {
    let Vip { vrid, addresses, .. } = vip;
    for peer in &vip.peers {
        if addresses.iter().any(|net| net.addr() == *peer) {
            warnings
                .push(format!("vrid {vrid} of group {}: peer {peer} is its own virtual address", group.name));
        } else if !addresses.iter().any(|net| net.contains(peer)) && !link_local(*peer) {
            warnings.push(format!(
                "vrid {vrid} of group {}: peer {peer} is in none of its networks, and VRRP does not pass routers",
                group.name
            ));
        }
    }
}

fn link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

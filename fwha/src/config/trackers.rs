//! `[[tracker]]`: what a node watches, and what its failure means for the groups.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use fwha_common::rule::name_hash;
use fwha_proto::{election::Effect, heartbeat::MAX_TRACKERS, tracker::Settings};
use serde::Serialize;
use toml::{Spanned, de::DeValue};

use super::{
    GroupId, NodeId, ZoneId,
    groups::Group,
    hooks,
    names::Names,
    nodes::Nodes,
    section::{self, Section},
    source::Mistakes,
    value,
    zones::Zones,
};

/// The keys that say what is watched.
const KINDS: [&str; 6] = ["interface", "arp", "ping", "tcp", "command", "file"];
const INTERVAL: Duration = Duration::from_secs(1);
const HALF_LIFE: Duration = Duration::from_secs(30);

/// A `[[tracker]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tracker {
    /// Its name.
    pub name: String,
    /// The groups that it matters for; all if there are none.
    pub groups: Vec<GroupId>,
    /// The nodes that it runs on; all if there are none.
    pub nodes: Vec<NodeId>,
    /// What it watches.
    pub watch: Watch,
    /// From the beginning of a check to that of the next, 100 ms to 1 h.
    pub interval: Duration,
    /// How long a check may take, 10 ms to the interval.
    pub timeout: Duration,
    /// Good checks in a row that end a failure, 1 to 100.
    pub rise: u32,
    /// Bad checks in a row that make one, 1 to 100.
    pub fall: u32,
    /// The half-life of dampening, up to an hour; zero for none.
    pub dampening: Duration,
    /// By how much the priority is lower while it fails, 1 to 253; if there is none it is a fault.
    pub lowers: Option<u8>,
    /// Whether it counts only where it fails on one node and not on another.
    pub shared: bool,
}

/// What a tracker watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Watch {
    /// The carrier of an interface.
    Interface(String),
    /// Whether a neighbour answers ARP, or for IPv6 a neighbour solicitation, on the first interface
    /// of a zone.
    Arp(IpAddr, ZoneId),
    /// Whether a host answers an ICMP echo request.
    Ping(IpAddr),
    /// Whether a port accepts a TCP connection.
    Tcp(SocketAddr),
    /// Whether a program, given by its absolute path and its arguments, ends with exit code 0.
    Command(Vec<String>),
    /// Whether there is no file of this name.
    File(PathBuf),
}

impl Watch {
    /// Whether it lies outside of the node, where it may be dead for all nodes at once.
    const fn is_outside(&self) -> bool {
        matches!(self, Self::Arp(..) | Self::Ping(_) | Self::Tcp(_))
    }

    /// The address that it asks.
    pub(super) const fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Arp(address, _) | Self::Ping(address) => Some(*address),
            Self::Tcp(socket) => Some(socket.ip()),
            Self::Interface(_) | Self::Command(_) | Self::File(_) => None,
        }
    }

    /// Whether it is known at once and for sure, so that one look is enough.
    const fn is_plain(&self) -> bool {
        matches!(self, Self::Interface(_) | Self::File(_))
    }
}

impl Tracker {
    /// The number by which nodes speak of it.
    pub fn id(&self) -> u32 {
        name_hash(&self.name)
    }

    /// What its failure does.
    pub fn effect(&self) -> Effect {
        self.lowers.map_or(Effect::Fault, Effect::Lowers)
    }

    /// How its checks become a verdict.
    pub fn settings(&self) -> Settings {
        Settings { rise: self.rise, fall: self.fall, half_life: self.dampening }
    }

    /// For how long it must have failed on one node alone before it counts there, see
    /// [`fwha_proto::election::trackers`]; `None` if it is not shared.
    pub fn grace(&self, heartbeat_interval: Duration) -> Option<Duration> {
        self.shared.then_some(self.interval + self.timeout + heartbeat_interval * 3)
    }

    /// What is worth a thought about it.
    pub(super) fn doubt(&self, groups: &[Group]) -> Option<String> {
        let name = &self.name;
        let Some(by) = self.lowers else {
            return (!self.shared && self.watch.is_outside() && self.nodes.is_empty()).then(|| {
                format!(
                    "tracker {name} is not shared: when its target is gone for all nodes, none may be active"
                )
            });
        };
        let matters = |g: &&Group| self.groups.is_empty() || self.groups.contains(&g.id);
        let gap = |g: &Group| g.nodes.windows(2).map(|pair| pair[0].1 - pair[1].1).max().unwrap_or(0);
        let group = groups.iter().filter(matters).find(|g| by <= gap(g))?;
        Some(format!(
            "tracker {name} lowers the priority by {by}, but priorities of group {} are {} apart: alone it may move \
             nothing",
            group.name,
            gap(group)
        ))
    }

    /// Whether it runs on a node.
    pub fn runs_on(&self, node: NodeId) -> bool {
        self.nodes.is_empty() || self.nodes.contains(&node)
    }
}

pub(super) fn read<'a>(
    root: &mut Section<'a>,
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    groups: &[Group],
    mistakes: &mut Mistakes,
) -> Vec<Tracker> {
    let mut names = Names::new("tracker");
    let mut trackers: Vec<Tracker> = Vec::new();
    let sections = section::array_of_tables(root, "tracker", "[[tracker]]", mistakes);
    if let Some(extra) = sections.get(MAX_TRACKERS) {
        mistakes.add(extra.span.clone(), format!("more than {MAX_TRACKERS} trackers"));
    }
    for mut section in sections.into_iter().take(MAX_TRACKERS) {
        let name = names.read(&mut section, mistakes);
        let alike = |t: &&Tracker| t.id() == name_hash(&name) && t.name != name;
        if let Some(other) = trackers.iter().find(alike) {
            mistakes
                .add(
                    section.span.clone(),
                    format!("trackers {name:?} and {:?} have the same hash", other.name),
                )
                .remedy("nodes speak of trackers by it: choose another name");
        }
        let tracker = read_one(&mut section, name, nodes, zones, groups, mistakes);
        section.finish(mistakes);
        trackers.extend(tracker);
    }
    trackers
}

fn read_one(
    section: &mut Section<'_>,
    name: String,
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    groups: &[Group],
    mistakes: &mut Mistakes,
) -> Option<Tracker> {
    let watch = read_watch(section, zones, groups, mistakes);
    let groups = hooks::read_groups(section, groups, mistakes);
    let words = section.list("nodes", mistakes).map(|items| section::strings(items, "nodes", mistakes));
    let words = words.into_iter().flatten();
    let nodes = words.filter_map(|w| nodes.names.find(&w, mistakes)).map(|n| n as NodeId + 1).collect();
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    let interval = section.duration("interval", range, mistakes).map_or(INTERVAL, Spanned::into_inner);
    let plain = watch.as_ref().is_some_and(Watch::is_plain);
    let timeout = section.duration("timeout", Duration::from_millis(10)..=interval, mistakes);
    if let (Some(timeout), true) = (&timeout, plain) {
        mistakes
            .add(timeout.span(), "timeout of something that takes no time")
            .remedy("an interface or a file is looked at: leave it out");
    }
    let rise = section.integer("rise", 1..=100, mistakes).map(|n| n as u32);
    let fall = section.integer("fall", 1..=100, mistakes).map(|n| n as u32);
    let range = Duration::ZERO..=Duration::from_secs(3600);
    let dampening = section.duration("dampening", range, mistakes).map(Spanned::into_inner);
    let by_hand = matches!(watch, Some(Watch::File(_)));
    let lowers = read_effect(section, mistakes);
    let shared = section.boolean("shared", mistakes);
    let watch = watch?;
    Some(Tracker {
        name,
        groups,
        nodes,
        interval,
        timeout: timeout.map_or(interval / 2, Spanned::into_inner),
        rise: rise.unwrap_or(if plain { 1 } else { 2 }),
        fall: fall.unwrap_or(if plain { 1 } else { 3 }),
        dampening: dampening.unwrap_or(if by_hand { Duration::ZERO } else { HALF_LIFE }),
        lowers,
        shared: shared.unwrap_or(watch.is_outside()),
        watch,
    })
}

fn read_watch(
    section: &mut Section<'_>,
    zones: &Zones<'_>,
    groups: &[Group],
    mistakes: &mut Mistakes,
) -> Option<Watch> {
    let given: Vec<&str> = KINDS.into_iter().filter(|kind| section.get(kind).is_some()).collect();
    let zone = section.string("zone", mistakes);
    if let (Some(zone), false) = (&zone, given == ["arp"]) {
        mistakes
            .add(zone.span(), "zone without arp")
            .remedy("routes say where anything else is: leave it out");
    }
    let kind = match given[..] {
        [kind] => kind,
        [] => {
            mistakes
                .add(section.span.clone(), "[[tracker]] watches nothing")
                .remedy(format!("it needs one of {}", KINDS.join(", ")));
            return None;
        }
        _ => {
            mistakes
                .add(section.span.clone(), format!("[[tracker]] watches {} at once", given.join(" and ")))
                .remedy("make a tracker for each");
            return None;
        }
    };
    if kind == "command" {
        return Some(Watch::Command(hooks::read_command(section, mistakes)));
    }
    let text = section.string(kind, mistakes)?;
    let watch = match kind {
        "interface" => value::interface(text.get_ref()).map(Watch::Interface),
        "ping" => value::host_ip(text.get_ref()).map(Watch::Ping),
        "tcp" => read_port(text.get_ref()).map(Watch::Tcp),
        "arp" => match value::host_ip(text.get_ref()) {
            Ok(target) => {
                return Some(Watch::Arp(
                    target,
                    zone_of(target, text.span(), zone, zones, groups, mistakes)?,
                ));
            }
            Err(problem) => Err(problem),
        },
        _ if Path::new(text.get_ref()).is_absolute() => Ok(Watch::File(text.get_ref().into())),
        _ => Err(format!("{:?} is not an absolute path", text.get_ref())),
    };
    watch.map_err(|problem| mistakes.add(text.span(), format!("{kind}: {problem}"))).ok()
}

/// The zone on whose interface a neighbour is: the one that is named, or the one with a VIP in its network.
fn zone_of(
    target: IpAddr,
    span: super::Span,
    named: Option<Spanned<&str>>,
    zones: &Zones<'_>,
    groups: &[Group],
    mistakes: &mut Mistakes,
) -> Option<ZoneId> {
    if let Some(name) = named {
        return zones.names.find(&name, mistakes).map(|index| index as ZoneId + 1);
    }
    let mut vips = groups.iter().flat_map(|g| &g.vips);
    let found = vips.find(|vip| vip.addresses.iter().any(|net| net.contains(&target)));
    if found.is_none() {
        mistakes
            .add(span, format!("arp: {target} is in the network of no vip"))
            .remedy("say where to ask: zone = \"…\"");
    }
    found.map(|vip| vip.zone)
}

fn read_port(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("{text:?} is not an address with a port, like \"10.0.0.1:443\" or \"[fd00::1]:443\"")
    })?;
    value::host_ip(&address.ip().to_string())?;
    if address.port() == 0 { Err("port 0 accepts nothing".into()) } else { Ok(address) }
}

/// `weight` or `fault`.
fn read_effect(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Option<u8> {
    let fault_at = section.get("fault").map(|value| value.span());
    let fault = section.boolean("fault", mistakes);
    let weight = section.get("weight");
    if let (Some(span), None, Some(false)) = (&fault_at, weight, fault) {
        mistakes
            .add(span.clone(), "a tracker that does nothing")
            .remedy("say what its failure does: fault = true, or weight = -50");
    }
    let weight = weight?;
    let DeValue::Integer(number) = weight.get_ref() else {
        section::wrong_type(weight, "weight", "a negative integer", mistakes);
        return None;
    };
    let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok();
    let Some(by) = parsed.filter(|n| (-253..=-1).contains(n)) else {
        mistakes
            .add(weight.span(), format!("weight {number} is out of range"))
            .remedy("from -253 to -1: so much is taken from the priority while it fails");
        return None;
    };
    if fault == Some(true) {
        mistakes
            .add(weight.span(), "weight beside fault = true")
            .remedy("a fault forbids the role whatever the priority is: leave out one of them");
    }
    Some(by.unsigned_abs() as u8)
}

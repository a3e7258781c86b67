//! `[[zone]]`: sets of interfaces. Rules speak of zones only.

use std::collections::{BTreeMap, HashMap};

use fwha_common::{MAX_ZONES, rule};
use serde::Serialize;
use toml::{Spanned, de::DeValue};

use super::{
    NamedInterface, NodeId, ZoneId,
    names::Names,
    nodes::Nodes,
    section::{self, Section},
    source::Mistakes,
    value, vlan,
};

/// What rules call the node itself.
pub(super) const NODE: &str = "node";
/// What rules call every zone.
pub(super) const ANY: &str = "any";

/// Where the packet programs are attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attach {
    /// By what the interface's driver does best.
    #[default]
    Auto,
    /// Native XDP, or not at all.
    Xdp,
    /// tc ingress.
    Tc,
}

/// A `[[zone]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Zone {
    /// Its number: its place in the file, from 1.
    pub id: ZoneId,
    /// Its name.
    pub name: String,
    /// Its interfaces on each node. On the first of them are the zone's VIPs.
    pub interfaces: BTreeMap<NodeId, Vec<String>>,
    /// Where the packet programs are attached on them.
    pub attach: Attach,
    /// Whether sources are held against the routes (strict reverse path, RFC 3704).
    pub anti_spoofing: bool,
}

/// The zones as read.
pub(super) struct Zones<'a> {
    pub(super) list: Vec<Zone>,
    pub(super) names: Names<'a>,
}

impl Zones<'_> {
    /// The number of the zone that a rule names.
    pub(super) fn of_rule(&self, name: &Spanned<&str>, mistakes: &mut Mistakes) -> Option<ZoneId> {
        match *name.get_ref() {
            NODE => Some(rule::ZONE_NODE),
            ANY => Some(rule::ZONE_ANY),
            text => {
                let found = self.list.iter().find(|z| z.name == text);
                if found.is_none() {
                    self.names.unknown(text, name.span(), &[NODE, ANY], mistakes);
                }
                found.map(|z| z.id)
            }
        }
    }
}

/// Which zone has an interface of a node: for "in two zones".
type Taken = HashMap<(NodeId, String), String>;

pub(super) fn read<'a>(
    root: &mut Section<'a>,
    nodes: &Nodes<'_>,
    interfaces: &mut Vec<NamedInterface>,
    mistakes: &mut Mistakes,
) -> Zones<'a> {
    let mut zones = Zones { list: Vec::new(), names: Names::new("zone") };
    let mut taken = Taken::new();
    let sections = section::array_of_tables(root, "zone", "[[zone]]", mistakes);
    if let Some(extra) = sections.get(MAX_ZONES) {
        mistakes.add(extra.span.clone(), format!("more than {MAX_ZONES} zones"));
    }
    if sections.is_empty() {
        mistakes
            .add_global("no [[zone]]")
            .remedy("name the networks: [[zone]], name = \"…\", interfaces = [ … ]");
    }
    for (index, mut section) in sections.into_iter().take(MAX_ZONES).enumerate() {
        let name = zones.names.read(&mut section, mistakes);
        if name == NODE || name == ANY {
            let span = section.get("name").map_or(section.span.clone(), |n| n.span());
            let meaning = if name == NODE { "the firewall itself" } else { "every zone" };
            mistakes
                .add(span, format!("zone name {name:?} is reserved"))
                .remedy(format!("rules mean {meaning} by it; choose another name"));
        }
        let attach = read_attach(&mut section, mistakes);
        let anti_spoofing = section.boolean("anti-spoofing", mistakes).unwrap_or(true);
        let value = section.require("interfaces", mistakes);
        let id = index as ZoneId + 1;
        let mut zone = Zone { id, name, interfaces: BTreeMap::new(), attach, anti_spoofing };
        match value.map(|v| (v, v.get_ref())) {
            Some((_, DeValue::Array(items))) => {
                for node in &nodes.list {
                    read_interfaces(&mut zone, node.id, items, nodes, &mut taken, interfaces, mistakes);
                }
                if items.is_empty() {
                    let span = value.map_or(section.span.clone(), |v| v.span());
                    mistakes.add(span, format!("zone {:?} has no interfaces", zone.name));
                }
            }
            Some((_, DeValue::Table(table))) => {
                for (key, value) in table {
                    let node = Spanned::new(key.span(), key.get_ref().as_ref());
                    let index = nodes.names.find(&node, mistakes);
                    let items = section::list(value, "interfaces", mistakes);
                    if let (Some(index), Some(items)) = (index, items) {
                        let node = index as NodeId + 1;
                        read_interfaces(&mut zone, node, items, nodes, &mut taken, interfaces, mistakes);
                    }
                }
            }
            Some((value, _)) => section::wrong_type(
                value,
                "interfaces",
                "a list like [\"eth0\"] or a table like { fw1 = [\"eth0\"], fw2 = [\"eth1\"] }",
                mistakes,
            ),
            None => {}
        }
        section.finish(mistakes);
        zones.list.push(zone);
    }
    zones
}

fn read_attach(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Attach {
    let Some(text) = section.string("attach", mistakes) else { return Attach::Auto };
    match *text.get_ref() {
        "auto" => Attach::Auto,
        "xdp" => Attach::Xdp,
        "tc" => Attach::Tc,
        other => {
            mistakes
                .add(text.span(), format!("unknown attachment {other:?}"))
                .remedy(value::suggest(other, &["auto", "xdp", "tc"]));
            Attach::Auto
        }
    }
}

fn read_interfaces<'a>(
    zone: &mut Zone,
    node: NodeId,
    items: &'a [section::Value<'a>],
    nodes: &Nodes<'_>,
    taken: &mut Taken,
    interfaces: &mut Vec<NamedInterface>,
    mistakes: &mut Mistakes,
) {
    for text in section::strings(items, "interface", mistakes) {
        let name = match vlan::interface(text.get_ref()) {
            Ok(name) => name,
            Err(problem) => {
                mistakes.add(text.span(), format!("interface: {problem}"));
                continue;
            }
        };
        let owner = (node, name);
        if nodes.sync_interfaces.contains(&owner) {
            mistakes
                .add(
                    text.span(),
                    format!(
                        "interface {:?} is a sync link of {:?}",
                        owner.1,
                        nodes.names.name(usize::from(node) - 1)
                    ),
                )
                .remedy("a sync link needs an interface of its own, in no zone");
        }
        // One VLAN, however it is written.
        let same = (node, vlan::canonical(&owner.1));
        if let Some(other) = taken.get(&same) {
            let message = if *other == zone.name {
                format!("interface {:?} is there twice", owner.1)
            } else {
                format!("interface {:?} is already in zone {other:?}", owner.1)
            };
            mistakes.add(text.span(), message).remedy("an interface is in one zone");
        }
        taken.insert(same, zone.name.clone());
        interfaces.push(NamedInterface { node, name: owner.1.clone(), zone: true, span: text.span() });
        zone.interfaces.entry(node).or_default().push(owner.1);
    }
}

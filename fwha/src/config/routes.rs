//! Routes and rules of a `[[group]]`, that are where the group is Active.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{
    NodeId, ZoneId,
    nodes::Nodes,
    section::{self, Section},
    source::Mistakes,
    value,
    zones::Zones,
};

/// The routing table `main` (rtnetlink(7)).
const TABLE_MAIN: u32 = 254;
/// The table `local`, which is the kernel's own.
const TABLE_LOCAL: u32 = 255;
/// The place of a rule without one: before that of the table `main` (32766, ip-rule(8)).
const PRIORITY: u32 = 1000;
/// A place behind that of the table `main` is of no use.
const PRIORITY_MAX: u64 = 32765;

/// A route that follows a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where it leads.
    pub to: IpNet,
    /// The next hop.
    pub via: IpAddr,
    /// The zone through whose first interface the next hop is reached.
    pub zone: ZoneId,
    /// The routing table.
    pub table: u32,
    /// Of several routes to one network that with the lowest is taken; the kernel's default if there is none.
    pub metric: Option<u32>,
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} via {}", self.to, self.via)?;
        if self.table != TABLE_MAIN {
            write!(f, " table {}", self.table)?;
        }
        self.metric.map_or(Ok(()), |metric| write!(f, " metric {metric}"))
    }
}

/// `routes` of a group; `seen` are those of the groups before.
pub(super) fn read(
    section: &mut Section<'_>,
    members: &[(NodeId, u8)],
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    seen: &mut Vec<Route>,
    mistakes: &mut Mistakes,
) -> Vec<Route> {
    let mut routes = Vec::new();
    let Some(items) = section.list("routes", mistakes) else { return routes };
    for table in section::tables(items, "routes", mistakes) {
        let span = table.span.clone();
        let Some(route) = read_one(table, members, nodes, zones, mistakes) else { continue };
        let same =
            |other: &Route| (other.to, other.table, other.metric) == (route.to, route.table, route.metric);
        if seen.iter().any(same) {
            mistakes
                .add(span, format!("the route to {} is there twice", route.to))
                .remedy("give them different metrics, or tables");
        }
        seen.push(route.clone());
        routes.push(route);
    }
    routes
}

fn read_one(
    mut section: Section<'_>,
    members: &[(NodeId, u8)],
    nodes: &Nodes<'_>,
    zones: &Zones<'_>,
    mistakes: &mut Mistakes,
) -> Option<Route> {
    let to = section.required_string("to", mistakes).and_then(|text| match value::network(text.get_ref()) {
        Ok(net) => Some(net),
        Err(problem) => {
            mistakes.add(text.span(), format!("to: {problem}"));
            None
        }
    });
    let via =
        section.required_string("via", mistakes).and_then(|text| match value::host_ip(text.get_ref()) {
            Ok(via) if to.is_some_and(|to: IpNet| to.addr().is_ipv4() != via.is_ipv4()) => {
                mistakes.add(text.span(), "via is of another family than to");
                None
            }
            Ok(via) => Some(via),
            Err(problem) => {
                mistakes.add(text.span(), format!("via: {problem}"));
                None
            }
        });
    let zone = section.required_string("zone", mistakes).and_then(|name| {
        let index = zones.names.find(&name, mistakes)?;
        for &(id, _) in members.iter().filter(|(id, _)| !zones.list[index].interfaces.contains_key(id)) {
            let node = nodes.names.name(usize::from(id) - 1);
            mistakes
                .add(name.span(), format!("node {node:?} has no interface in zone {:?}", name.get_ref()))
                .remedy("a route needs one on each node of its group");
        }
        Some(index as ZoneId + 1)
    });
    let table = read_table(&mut section, mistakes).unwrap_or(TABLE_MAIN);
    let metric = section.integer("metric", 1..=u64::from(u32::MAX), mistakes).map(|n| n as u32);
    section.finish(mistakes);
    Some(Route { to: to?, via: via?, zone: zone?, table, metric })
}

fn read_table(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Option<u32> {
    let table = section.integer("table", 1..=u64::from(u32::MAX), mistakes).map(|n| n as u32);
    if table == Some(TABLE_LOCAL) {
        mistakes
            .add(section.span.clone(), format!("table {TABLE_LOCAL} is the kernel's own"))
            .remedy("choose another one");
    }
    table
}

/// A rule of policy routing that follows a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RoutingRule {
    /// Packets from there; from anywhere if there is none.
    pub from: Option<IpNet>,
    /// Packets to there; to anywhere if there is none. One of both is there, both of one family.
    pub to: Option<IpNet>,
    /// The table by which they are routed.
    pub table: u32,
    /// Its place among the rules, 1 to 32765.
    pub priority: u32,
}

impl std::fmt::Display for RoutingRule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (word, net) in [("from", self.from), ("to", self.to)] {
            if let Some(net) = net {
                write!(f, "{word} {net} ")?;
            }
        }
        write!(f, "table {} priority {}", self.table, self.priority)
    }
}

/// `rules` of a group; `seen` are those of the groups before.
pub(super) fn read_rules(
    section: &mut Section<'_>,
    seen: &mut Vec<RoutingRule>,
    mistakes: &mut Mistakes,
) -> Vec<RoutingRule> {
    let mut rules = Vec::new();
    let Some(items) = section.list("rules", mistakes) else { return rules };
    for mut table in section::tables(items, "rules", mistakes) {
        let span = table.span.clone();
        let mut net = |key| {
            let text = table.string(key, mistakes)?;
            value::network(text.get_ref())
                .map_err(|problem| mistakes.add(text.span(), format!("{key}: {problem}")))
                .ok()
        };
        let (from, to) = (net("from"), net("to"));
        let number = read_table(&mut table, mistakes);
        let priority = table.integer("priority", 1..=PRIORITY_MAX, mistakes).map_or(PRIORITY, |n| n as u32);
        if table.require("table", mistakes).is_none() {
            table.finish(mistakes);
            continue;
        }
        table.finish(mistakes);
        match (from, to) {
            (None, None) => {
                mistakes.add(span.clone(), "a rule for everything").remedy("it needs from, or to");
            }
            (Some(from), Some(to)) if from.addr().is_ipv4() != to.addr().is_ipv4() => {
                mistakes.add(span.clone(), "to is of another family than from");
            }
            _ => {}
        }
        let rule = RoutingRule { from, to, table: number.unwrap_or(TABLE_MAIN), priority };
        if seen.contains(&rule) {
            mistakes.add(span, format!("the rule {rule} is there twice"));
        }
        seen.push(rule.clone());
        rules.push(rule);
    }
    rules
}

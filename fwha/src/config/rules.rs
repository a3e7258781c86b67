//! `[[rule]]`: which flows may begin. The first that matches decides; what none matches is dropped.

use std::{collections::HashMap, fmt, sync::Arc};

use fwha_common::{
    flow::{Flow, proto},
    rule::{self, Action, Network, ZONE_ANY, ZONE_NODE},
    ruleset::{MAX_RULES, Ruleset, TooLarge},
};
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::{
    ZoneId,
    names::Names,
    section::{self, Section},
    source::{Mistakes, Span},
    value,
    zones::Zones,
};

/// A `[[rule]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// Its name.
    pub name: String,
    /// Its number: its place in the file, from 0.
    pub index: u32,
    /// Zone the flow comes from, or [`ZONE_ANY`].
    pub from: ZoneId,
    /// Zone the flow goes to, [`ZONE_NODE`] for the firewall itself, or [`ZONE_ANY`], which includes it.
    pub to: ZoneId,
    /// Networks the flow comes from; empty for all.
    pub source: Vec<IpNet>,
    /// Networks the flow goes to; empty for all.
    pub destination: Vec<IpNet>,
    /// Protocols and ports; empty for all.
    pub services: Vec<Service>,
    /// What becomes of the flow.
    #[serde(serialize_with = "action_name")]
    pub action: Action,
    /// TCP: as [`Flow::mss`].
    pub mss: u16,
    /// Whether its flows are sent to the peers.
    pub replicate: bool,
    /// TCP connections are opened by way of the SYN proxy.
    pub syn_proxy: bool,
}

/// A protocol and its destination ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// IP protocol; 0 for any.
    pub proto: u8,
    /// Lowest port.
    pub port_min: u16,
    /// Highest port.
    pub port_max: u16,
}

impl Service {
    /// Everything.
    pub const ANY: Self = Self { proto: 0, port_min: 0, port_max: u16::MAX };

    /// Whether TCP is among it.
    pub(super) const fn is_tcp(&self) -> bool {
        matches!(self.proto, 0 | proto::TCP)
    }

    /// The port of it at which hosts are most likely logged in to: that of SSH, or the first.
    pub(super) const fn login(&self) -> u16 {
        if self.port_min <= 22 && 22 <= self.port_max { 22 } else { self.port_min }
    }

    /// Whether it takes all that `other` does.
    pub(super) fn covers(&self, other: &Self) -> bool {
        (self.proto == 0 || self.proto == other.proto)
            && self.port_min <= other.port_min
            && self.port_max >= other.port_max
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.proto, proto::name(self.proto)) {
            (0, _) => f.write_str("any")?,
            (_, Some(name)) => f.write_str(name)?,
            (number, None) => write!(f, "proto/{number}")?,
        }
        match (self.port_min, self.port_max) {
            (0, u16::MAX) => Ok(()),
            (min, max) if min == max => write!(f, "/{min}"),
            (min, max) => write!(f, "/{min}-{max}"),
        }
    }
}

impl Rule {
    /// Whether it may admit what the SYN proxy is for: TCP that is forwarded. (The node's own stack has cookies.)
    fn proxies(&self) -> bool {
        self.action == Action::Accept && self.to != ZONE_NODE && self.takes_tcp()
    }

    /// Whether it matches some TCP.
    pub(super) fn takes_tcp(&self) -> bool {
        self.services.is_empty() || self.services.iter().any(Service::is_tcp)
    }

    /// The rule as the ruleset is compiled from it.
    pub(super) fn compile(&self) -> rule::Rule {
        let networks = |list: &[IpNet]| -> Vec<Network> {
            list.iter().map(|net| Network::new(net.addr(), net.prefix_len())).collect()
        };
        let service =
            |s: &Service| rule::Service { proto: s.proto, port_min: s.port_min, port_max: s.port_max };
        rule::Rule {
            from: self.from,
            to: self.to,
            source: networks(&self.source),
            destination: networks(&self.destination),
            services: self.services.iter().map(service).collect(),
            decision: rule::Decision {
                name_hash: rule::name_hash(&self.name),
                index: self.index,
                mss: self.mss,
                action: self.action as u8,
                flags: if self.syn_proxy { rule::Decision::SYN_PROXY } else { 0 },
            },
        }
    }
}

/// Every `[[rule]]`, in the order of the file, and what they are compiled to.
pub(super) struct Rules {
    pub list: Vec<Rule>,
    pub ruleset: Arc<Ruleset>,
    /// What may be meant otherwise than it is written.
    pub doubts: Vec<String>,
}

/// Compiles the rules. What does not fit is a mistake of the first rule with which it does not.
fn compile(rules: &[Rule], spans: &[Span], mistakes: &mut Mistakes) -> Arc<Ruleset> {
    let compiled: Vec<rule::Rule> = rules.iter().map(Rule::compile).collect();
    let problem = match Ruleset::compile(&compiled) {
        Ok(ruleset) => return Arc::new(ruleset),
        Err(problem) => problem,
    };
    let (first, remedy) = match problem {
        TooLarge::Rules(_) => {
            (MAX_RULES, "a rule may have many networks and services: join those that do the same")
        }
        TooLarge::Memory => {
            // With more rules it never gets smaller.
            let (mut fits, mut fails) = (0, compiled.len());
            while fails - fits > 1 {
                let half = fits.midpoint(fails);
                if Ruleset::compile(&compiled[..half]).is_ok() { fits = half } else { fails = half }
            }
            (
                fits,
                "each network of a list takes room for the rules that have others there: use fewer or wider ones",
            )
        }
    };
    if let (Some(rule), Some(span)) = (rules.get(first), spans.get(first)) {
        mistakes
            .add(span.clone(), format!("with rule {:?} the ruleset is too large: {problem}", rule.name))
            .remedy(remedy);
    }
    Arc::default()
}

pub(super) fn read<'a>(root: &mut Section<'a>, zones: &Zones<'_>, mistakes: &mut Mistakes) -> Rules {
    let mut rules: Vec<Rule> = Vec::new();
    let mut spans = Vec::new();
    let mut names = Names::new("rule");
    let mut hashes: HashMap<u32, String> = HashMap::new();
    let mut doubts = Vec::new();
    for mut section in section::array_of_tables(root, "rule", "[[rule]]", mistakes) {
        let name = names.read(&mut section, mistakes);
        if let Some(other) = hashes.insert(rule::name_hash(&name), name.clone())
            && other != name
        {
            mistakes
                .add(section.span.clone(), format!("rules {name:?} and {other:?} have the same hash"))
                .remedy("flows are marked with it; rename one of them");
        }
        let from = read_zone(&mut section, "from", zones, mistakes);
        let to = read_zone(&mut section, "to", zones, mistakes);
        let services = read_services(&mut section, &name, &mut doubts, mistakes);
        let rule = Rule {
            name,
            index: rules.len() as u32,
            from,
            to,
            source: read_networks(&mut section, "source", mistakes),
            destination: read_networks(&mut section, "destination", mistakes),
            services,
            action: read_action(&mut section, mistakes),
            mss: read_mss(&mut section, mistakes),
            replicate: section.boolean("replicate", mistakes).unwrap_or(true),
            syn_proxy: section.boolean("syn-proxy", mistakes).unwrap_or(false),
        };
        if rule.syn_proxy && !rule.proxies() {
            mistakes
                .add(section.span.clone(), format!("syn-proxy of rule {:?} has nothing to do", rule.name))
                .remedy("it is for rules that accept TCP connections through the firewall");
        }
        spans.push(section.span.clone());
        section.finish(mistakes);
        rules.push(rule);
    }
    let ruleset = compile(&rules, &spans, mistakes);
    Rules { list: rules, ruleset, doubts }
}

fn read_zone(
    section: &mut Section<'_>,
    key: &'static str,
    zones: &Zones<'_>,
    mistakes: &mut Mistakes,
) -> ZoneId {
    let Some(name) = section.string(key, mistakes) else { return ZONE_ANY };
    let zone = zones.of_rule(&name, mistakes).unwrap_or(ZONE_ANY);
    if key == "from" && zone == ZONE_NODE {
        mistakes
            .add(name.span(), "rules from \"node\" are not supported yet")
            .remedy("what the firewall itself sends is always allowed");
    }
    zone
}

fn read_networks(section: &mut Section<'_>, key: &'static str, mistakes: &mut Mistakes) -> Vec<IpNet> {
    let mut networks = Vec::new();
    for text in read_strings(section, key, mistakes) {
        match value::network(text.get_ref()) {
            Ok(network) => networks.push(network),
            Err(problem) => {
                mistakes.add(text.span(), format!("{key}: {problem}"));
            }
        }
    }
    networks
}

fn read_services(
    section: &mut Section<'_>,
    rule: &str,
    doubts: &mut Vec<String>,
    mistakes: &mut Mistakes,
) -> Vec<Service> {
    let mut services = Vec::new();
    for text in read_strings(section, "services", mistakes) {
        let number = text.get_ref();
        if number.bytes().all(|b| b.is_ascii_digit()) {
            doubts.push(format!(
                "rule {rule}: service \"{number}\" is an IP protocol, not a port: write \"tcp/{number}\" or \
                 \"udp/{number}\" for the port, \"proto/{number}\" for the protocol"
            ));
        }
        match service(text.get_ref()) {
            Ok(service) => services.push(service),
            Err(problem) => mistakes
                .add(text.span(), format!("services: {problem}"))
                .remedy(
                    "like \"tcp/22\", \"udp/53\", \"tcp/1000-2000\", \"tcp\", \"icmp\", \"icmpv6\", \"gre\", \"esp\", \"any\", \
                     or the number of an IP protocol like \"proto/89\"",
                ),
        }
    }
    services
}

/// The strings of an optional list that must not be empty.
fn read_strings<'a>(
    section: &mut Section<'a>,
    key: &'static str,
    mistakes: &mut Mistakes,
) -> Vec<toml::Spanned<&'a str>> {
    let Some(value) = section.get(key) else { return Vec::new() };
    let Some(items) = section::list(value, key, mistakes) else { return Vec::new() };
    if items.is_empty() {
        mistakes
            .add(value.span(), format!("{key} is empty, so the rule would match nothing"))
            .remedy("leave it out to match everything");
    }
    section::strings(items, key, mistakes)
}

/// `any`, a protocol by name or number, `proto/89`, `tcp/22`, `udp/1000-2000`.
fn service(text: &str) -> Result<Service, String> {
    let (name, ports) = match text.split_once('/') {
        Some((name, ports)) => (name, Some(ports)),
        None => (text, None),
    };
    if name == "proto" {
        let proto = ports.and_then(proto::from_name).ok_or_else(|| format!("unknown service {text:?}"))?;
        return Ok(Service { proto, ..Service::ANY });
    }
    let proto = match name {
        "any" => 0,
        name => proto::from_name(name).ok_or_else(|| format!("unknown service {text:?}"))?,
    };
    let Some(ports) = ports else { return Ok(Service { proto, ..Service::ANY }) };
    if !proto::has_ports(proto) {
        return Err(format!("{name:?} has no ports"));
    }
    let port = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if port > 0 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
        _ => Err(format!("{digits:?} in {text:?} is not a port from 1 to 65535")),
    };
    let (port_min, port_max) = match ports.split_once('-') {
        Some((min, max)) => (port(min)?, port(max)?),
        None => (port(ports)?, port(ports)?),
    };
    if port_min > port_max {
        return Err(format!("in {text:?} the first port is higher than the last"));
    }
    Ok(Service { proto, port_min, port_max })
}

/// `mss = "pmtu"`, or a number of bytes.
fn read_mss(section: &mut Section<'_>, mistakes: &mut Mistakes) -> u16 {
    // What every host takes (RFC 9293, 3.7.1), and what fits the largest packet.
    let range = 536..=i64::from(u16::MAX - 40);
    let Some(value) = section.get("mss") else { return 0 };
    let number = value.get_ref().as_integer().and_then(|n| n.as_str().replace('_', "").parse::<i64>().ok());
    match (value.get_ref().as_str(), number) {
        (Some("pmtu"), _) => Flow::MSS_PMTU,
        (_, Some(bytes)) if range.contains(&bytes) => bytes as u16,
        _ => {
            mistakes.add(value.span(), "mss is not a maximum segment size").remedy(format!(
                "\"pmtu\" for what fits the route, or {} to {} bytes",
                range.start(),
                range.end()
            ));
            0
        }
    }
}

fn read_action(section: &mut Section<'_>, mistakes: &mut Mistakes) -> Action {
    let Some(text) = section.required_string("action", mistakes) else { return Action::Drop };
    match *text.get_ref() {
        "accept" => Action::Accept,
        "drop" => Action::Drop,
        "reject" => Action::Reject,
        other => {
            mistakes
                .add(text.span(), format!("unknown action {other:?}"))
                .remedy(value::suggest(other, &["accept", "drop", "reject"]));
            Action::Drop
        }
    }
}

fn action_name<S: Serializer>(action: &Action, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match action {
        Action::Accept => "accept",
        Action::Drop => "drop",
        Action::Reject => "reject",
    })
}

//! Flows: the list of them, their deletion, and in what two nodes differ.

use std::fmt;
use std::net::IpAddr;

use fwha_common::flow::{FlowState, proto};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where a flow in this node's table came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// It began here.
    Local,
    /// A peer sent it.
    Peer,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Peer => "peer",
        })
    }
}

/// A flow. In pairs the first is the original direction, the second the reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRow {
    /// The protocol's name in config files (`tcp`, `udp`, `icmp`, `icmpv6` and so on), or its number if it has none.
    pub proto: String,
    /// Address of the end that began it.
    pub src: IpAddr,
    /// Its port; the identifier of an ICMP echo.
    pub sport: u16,
    /// Address of the other end.
    pub dst: IpAddr,
    /// Its port; 0 for an ICMP echo.
    pub dport: u16,
    /// State, as `conntrack -L` names it, in lower case.
    pub state: String,
    /// Zone that it comes from.
    pub zone_in: String,
    /// Zone that it goes to.
    pub zone_out: String,
    /// Node that owns it now; empty if none is known.
    pub owner: String,
    /// Where this table has it from.
    pub origin: Origin,
    /// Since it began.
    pub age_ms: u64,
    /// Since its last packet that this node knows of.
    pub idle_ms: u64,
    /// Until it ends if no packet comes.
    pub timeout_ms: u64,
    /// Packets.
    pub packets: [u64; 2],
    /// Bytes at layer 3.
    pub bytes: [u64; 2],
    /// Name of the rule that admitted it; empty if this node's ruleset has it no more.
    pub rule: String,
    /// Opened by way of the SYN proxy: the ends have sequence numbers of their own. Left out if not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub syn_proxied: bool,
}

/// Which flows are asked for: those that match all that is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowFilter {
    /// Where the table has it from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
    /// Protocol, by its name or number.
    #[serde(skip_serializing_if = "Option::is_none", with = "protocol")]
    pub proto: Option<u8>,
    /// Address or network of the end that began it.
    #[serde(skip_serializing_if = "Option::is_none", with = "network")]
    pub src: Option<IpNet>,
    /// Address or network of the other end.
    #[serde(skip_serializing_if = "Option::is_none", with = "network")]
    pub dst: Option<IpNet>,
    /// Port of the end that began it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sport: Option<u16>,
    /// Port of the other end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dport: Option<u16>,
    /// State, as in [`FlowRow::state`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// A zone that it comes from or goes to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl FlowFilter {
    /// The terms that [`FlowFilter::set`] knows.
    pub const TERMS: &[&str] = &["origin", "proto", "src", "dst", "sport", "dport", "state", "zone"];

    /// Whether `flow` matches.
    pub fn matches(&self, flow: &FlowRow) -> bool {
        fn is<T: PartialEq>(wanted: &Option<T>, found: &T) -> bool {
            wanted.as_ref().is_none_or(|w| w == found)
        }
        is(&self.origin, &flow.origin)
            && self.proto.is_none_or(|number| protocol::parse(&flow.proto) == Ok(number))
            && self.src.is_none_or(|net| net.contains(&flow.src))
            && self.dst.is_none_or(|net| net.contains(&flow.dst))
            && is(&self.sport, &flow.sport)
            && is(&self.dport, &flow.dport)
            && is(&self.state, &flow.state)
            && self.zone.as_ref().is_none_or(|z| *z == flow.zone_in || *z == flow.zone_out)
    }

    /// Adds a term like `dport=22`. A second one for the same thing is refused: whichever of the two were ignored, more flows would
    /// match than somebody may have meant, and be deleted.
    ///
    /// # Errors
    /// What is wrong with the term.
    pub fn set(&mut self, term: &str) -> Result<(), String> {
        fn once<T>(place: &mut Option<T>, key: &str, value: T) -> Result<(), String> {
            if place.is_some() {
                return Err(format!("{key:?} is given twice"));
            }
            *place = Some(value);
            Ok(())
        }
        let (key, value) =
            term.split_once('=').ok_or_else(|| format!("{term:?} is not a term like dport=22"))?;
        let port = || value.parse().map_err(|_| format!("{key}: {value:?} is not a port"));
        let net =
            || network::parse(value).map_err(|()| format!("{key}: {value:?} is not an address or prefix"));
        match key {
            "origin" => {
                let origin = match value {
                    "local" => Origin::Local,
                    "peer" => Origin::Peer,
                    _ => return Err(format!("origin is local or peer, not {value:?}")),
                };
                once(&mut self.origin, key, origin)
            }
            "proto" => once(&mut self.proto, key, protocol::parse(value)?),
            "src" => once(&mut self.src, key, net()?),
            "dst" => once(&mut self.dst, key, net()?),
            "sport" => once(&mut self.sport, key, port()?),
            "dport" => once(&mut self.dport, key, port()?),
            "state" => {
                let value = value.to_ascii_lowercase();
                let mut known = FlowState::ALL.iter().skip(1).map(|s| s.as_str());
                if !known.clone().any(|s| s == value) {
                    let known: Vec<_> = known.by_ref().collect();
                    return Err(format!("state is one of {}, not {value:?}", known.join(", ")));
                }
                once(&mut self.state, key, value)
            }
            "zone" => once(&mut self.zone, key, value.to_owned()),
            _ => Err(format!("unknown term {key:?}: known are {}", Self::TERMS.join(", "))),
        }
    }
}

/// Protocols in a filter: a number and its name are the same.
mod protocol {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::proto;

    pub(super) fn parse(text: &str) -> Result<u8, String> {
        let named = proto::NAMES.iter().find(|(_, name)| name.eq_ignore_ascii_case(text));
        named.map(|(number, _)| *number).or_else(|| text.parse().ok()).ok_or_else(|| {
            let names = proto::NAMES.map(|(_, name)| name).join(", ");
            format!("proto is one of {names} or a number up to 255, not {text:?}")
        })
    }

    pub(super) fn serialize<S: Serializer>(number: &Option<u8>, serializer: S) -> Result<S::Ok, S::Error> {
        match number.map(|number| (number, proto::name(number))) {
            Some((_, Some(name))) => serializer.serialize_str(name),
            Some((number, None)) => serializer.collect_str(&number),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse(&text).map(Some).map_err(D::Error::custom)
    }
}

/// Addresses and prefixes in a filter: an address alone is a prefix of its whole length.
mod network {
    use std::net::IpAddr;

    use ipnet::IpNet;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn parse(text: &str) -> Result<IpNet, ()> {
        text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(drop)
    }

    pub(super) fn serialize<S: Serializer>(net: &Option<IpNet>, serializer: S) -> Result<S::Ok, S::Error> {
        match net {
            Some(net) => serializer.collect_str(net),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpNet>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let net = parse(&text)
            .map_err(|()| D::Error::custom(format_args!("{text:?} is not an address or prefix")))?;
        Ok(Some(net))
    }
}

/// What `GET /v1/flows/diff` takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffQuery {
    /// The peer; all of them if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Compare flow by flow with peers even where digests agree.
    pub all: bool,
    /// Compare with this node's own flow table only. Without this and a peer it comes first.
    pub local: bool,
}

/// What stands for a peer where the daemon's replica is compared with this node's own flow table.
pub const KERNEL: &str = "kernel";

/// A line of a comparison with a peer or the kernel's table; the last one about each is its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DiffLine {
    /// A flow that differs.
    Difference(FlowDifference),
    /// That was all.
    End(DiffEnd),
}

/// A flow in which two nodes differ, or this node's replica and the kernel's table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowDifference {
    /// The peer, or [`KERNEL`].
    pub peer: String,
    /// `only-here`, `only-there`, `identity` (two flows of the same addresses and ports), `version`, or `state`.
    pub kind: String,
    /// A change was on its way: the two do not differ for good.
    pub in_flight: bool,
    /// As in [`FlowRow::proto`].
    pub proto: String,
    /// Address of the end that began it.
    pub src: IpAddr,
    /// Its port; the identifier of an ICMP echo.
    pub sport: u16,
    /// Address of the other end.
    pub dst: IpAddr,
    /// Its port; 0 for an ICMP echo.
    pub dport: u16,
    /// Its bucket.
    pub bucket: u8,
    /// What this node's replica has.
    pub here: Option<FlowSide>,
    /// What the peer has, or the kernel's table.
    pub there: Option<FlowSide>,
}

/// What one node has of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowSide {
    /// Which flow it is: the node at which it began, that node's boot epoch, a number.
    pub identity: String,
    /// The owner's term, and how often the flow changed.
    pub version: String,
    /// As in [`FlowRow::state`].
    pub state: String,
    /// Since its last change that this node knows of.
    pub age_ms: u64,
}

/// The end of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffEnd {
    /// The peer, or [`KERNEL`].
    pub peer: String,
    /// Buckets compared: all.
    pub buckets: u64,
    /// Those of them that were compared flow by flow.
    pub buckets_listed: u64,
    /// Flows of the peer, or of the table, that were compared.
    pub flows_listed: u64,
    /// Flows that differ.
    pub differences: u64,
    /// Flows of which a change was on its way.
    pub in_flight: u64,
    /// Differences beyond those that are told one by one.
    pub untold: u64,
    /// Why there is nothing of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// What became of flows that were to be deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowsDeleted {
    /// Flows deleted, here and on the peers.
    pub deleted: u64,
    /// Flows that match and that another node owns.
    pub not_owned: u64,
}

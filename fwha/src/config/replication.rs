//! `[replication]`: what peers are told about flows, and what they are believed.

use std::time::Duration;

use fwha_common::flow::proto;
use ipnet::IpNet;
use serde::Serialize;

use super::{
    section::{self, Section},
    source::Mistakes,
    value,
};

/// `[replication]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replication {
    /// Whether flows are sent to the peers.
    pub enabled: bool,
    /// IP protocols whose flows are sent; empty for all.
    pub protocols: Vec<u8>,
    /// Flows from or to these networks are not sent.
    pub ignore: Vec<IpNet>,
    /// Flows are sent when they are so old.
    pub min_age: Duration,
    /// Whether a received flow is refused that this node's rules would not admit.
    pub strict: bool,
    /// Flows that one peer may have in this node's table; `None` for all of it.
    pub peer_flows: Option<u32>,
    /// Bytes a second that one peer may send.
    pub peer_bytes_per_second: u64,
    /// Bytes a second that a bulk transfer sends at most.
    pub bulk_bytes_per_second: u64,
}

impl Default for Replication {
    fn default() -> Self {
        Self {
            enabled: true,
            protocols: Vec::new(),
            ignore: Vec::new(),
            min_age: Duration::ZERO,
            strict: false,
            peer_flows: None,
            peer_bytes_per_second: 250_000_000,
            bulk_bytes_per_second: 20_000_000,
        }
    }
}

pub(super) fn read(root: &mut Section<'_>, mistakes: &mut Mistakes) -> Replication {
    let mut read = Replication::default();
    let table = root.get("replication");
    let Some(mut section) = table.and_then(|t| section::table(t, "[replication]", mistakes)) else {
        return read;
    };
    if let Some(enabled) = section.boolean("enabled", mistakes) {
        read.enabled = enabled;
    }
    for text in
        section::strings(section.list("protocols", mistakes).unwrap_or_default(), "protocols", mistakes)
    {
        match proto::from_name(text.get_ref()) {
            Some(number) => read.protocols.push(number),
            None => mistakes.add(text.span(), format!("unknown protocol {:?}", text.get_ref())).remedy(
                "like \"tcp\", \"udp\", \"icmp\", \"sctp\", \"gre\", or the number of an IP protocol",
            ),
        }
    }
    for text in section::strings(section.list("ignore", mistakes).unwrap_or_default(), "ignore", mistakes) {
        match value::network(text.get_ref()) {
            Ok(network) => read.ignore.push(network),
            Err(problem) => {
                mistakes.add(text.span(), format!("ignore: {problem}"));
            }
        }
    }
    if let Some(age) = section.duration("min-age", Duration::ZERO..=Duration::from_secs(3600), mistakes) {
        read.min_age = *age.get_ref();
    }
    if let Some(strict) = section.boolean("strict", mistakes) {
        read.strict = strict;
    }
    if let Some(flows) = section.integer("peer-flows", 1_000..=100_000_000, mistakes) {
        read.peer_flows = Some(flows as u32);
    }
    const BYTES: std::ops::RangeInclusive<u64> = 1_000_000..=10_000_000_000;
    if let Some(bytes) = section.integer("peer-bytes-per-second", BYTES, mistakes) {
        read.peer_bytes_per_second = bytes;
    }
    if let Some(bytes) = section.integer("bulk-bytes-per-second", BYTES, mistakes) {
        read.bulk_bytes_per_second = bytes;
    }
    section.finish(mistakes);
    read
}

impl Replication {
    /// What a takeover loses by the owner's choice, a line each, for `fwha check`.
    pub(super) fn losses(&self) -> Vec<String> {
        if !self.enabled {
            return vec!["replication is off: a takeover loses every connection".into()];
        }
        let mut losses = Vec::new();
        if !self.protocols.is_empty() {
            let names: Vec<String> = self.protocols.iter().map(|&p| proto_name(p)).collect();
            losses.push(format!("a takeover loses all flows but those of {}", names.join(", ")));
        }
        if !self.ignore.is_empty() {
            let networks: Vec<String> = self.ignore.iter().map(ToString::to_string).collect();
            losses.push(format!("a takeover loses the flows from and to {}", networks.join(", ")));
        }
        if !self.min_age.is_zero() {
            losses.push(format!(
                "a takeover loses the flows of the last {}",
                value::show_duration(self.min_age)
            ));
        }
        losses
    }
}

fn proto_name(number: u8) -> String {
    proto::name(number).map_or_else(|| number.to_string(), str::to_owned)
}

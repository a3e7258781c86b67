//! Which group has which flows.
//!
//! A group has the flows between the zones in which it has VIPs: hosts send through them, so these flows
//! come to the node that is Active for it. Groups share the buckets evenly, and the flows of a group are
//! spread over its share.

use std::collections::BTreeSet;

use fwha_common::{
    BUCKETS, MAX_ZONES,
    flow::{FlowKey, octets},
    group::{self, BucketRange, VipKey, ZONE_PAIRS},
    rule::{Action, ZONE_ANY, ZONE_NODE},
};

use fwha_proto::vrrp::packet::PRIORITY_OWNER;

use super::{Config, GroupId, NodeId, Span, ZoneId, groups::Group, source::Mistakes, zones::Zones};

impl Config {
    /// The group of a flow from one zone to another: the one that has VIPs in both, else in that where it
    /// begins, else in that where it goes. Of several, the first in the file.
    pub fn flow_group(&self, from: ZoneId, to: ZoneId) -> GroupId {
        let claim = |group: &Group| 2 * u8::from(has_vips(group, from)) + u8::from(has_vips(group, to));
        // The last of the greatest in the opposite order is the first of them.
        self.groups.iter().rev().max_by_key(|group| claim(group)).map_or(0, |group| group.id)
    }

    /// The buckets of each pair of zones.
    pub fn zone_buckets(&self) -> [BucketRange; ZONE_PAIRS] {
        let mut ranges = [BucketRange::default(); ZONE_PAIRS];
        for from in 0..=MAX_ZONES as ZoneId {
            for to in 0..=MAX_ZONES as ZoneId {
                let group = usize::from(self.flow_group(from, to));
                let range = BucketRange::share(group, self.groups.len().max(1));
                ranges[BucketRange::index(from, to) as usize] = range;
            }
        }
        ranges
    }

    /// What the data plane of node `me` knows of each virtual address.
    pub fn vips(&self, me: NodeId) -> Vec<(VipKey, group::Vip)> {
        let vips = self.groups.iter().flat_map(|group| group.vips.iter().map(move |vip| (group, vip)));
        vips.flat_map(|(group, vip)| {
            // The owner of the addresses takes what is addressed to them whatever Accept_Mode says (RFC 9568, 6.4.3).
            let accepted = group.accept || group.priority(me) == Some(PRIORITY_OWNER);
            let element = group::Vip {
                group: group.id,
                zone: vip.zone,
                vrid: vip.vrid,
                flags: if group.virtual_mac { group::Vip::VIRTUAL_MAC } else { 0 }
                    | if accepted { 0 } else { group::Vip::NOT_ACCEPTED },
            };
            vip.addresses.iter().map(move |net| {
                let address = FlowKey::address(octets(net.addr()));
                let zone = if VipKey::is_link_local(&address) { vip.zone.into() } else { 0 };
                (VipKey { address, zone }, element)
            })
        })
        .collect()
    }

    /// The group of each bucket.
    pub fn bucket_groups(&self) -> [GroupId; BUCKETS] {
        let mut groups = [0; BUCKETS];
        for group in &self.groups {
            let range = BucketRange::share(usize::from(group.id), self.groups.len());
            for hash in 0..BUCKETS as u64 {
                groups[usize::from(range.bucket(hash))] = group.id;
            }
        }
        groups
    }

    /// Rules whose flows begin at one group's VIPs and are answered through another's.
    pub(super) fn asymmetric_rules(&self) -> Vec<String> {
        let zones: Vec<ZoneId> = self.zones.iter().map(|z| z.id).collect();
        let mut warnings = Vec::new();
        for rule in self.rules.iter().filter(|r| r.action == Action::Accept && r.to != ZONE_NODE) {
            let any = |zone| if zone == ZONE_ANY { zones.clone() } else { vec![zone] };
            let pairs = any(rule.from)
                .into_iter()
                .flat_map(|from| any(rule.to).into_iter().map(move |to| (from, to)));
            let parted =
                |&(from, to): &(ZoneId, ZoneId)| self.flow_group(from, to) != self.flow_group(to, from);
            if let Some((from, to)) = pairs.into_iter().find(parted) {
                let group = |a, b| {
                    self.groups.get(usize::from(self.flow_group(a, b))).map_or("?", |g| g.name.as_str())
                };
                warnings.push(format!(
                    "rule {}: from {} to {} flows are of group {}, but answers may come through the VIPs of {}: \
                     they pass while both groups are on one node",
                    rule.name,
                    self.zone_name(from),
                    self.zone_name(to),
                    group(from, to),
                    group(to, from),
                ));
            }
        }
        warnings
    }
}

fn has_vips(group: &Group, zone: ZoneId) -> bool {
    group.vips.iter().any(|vip| vip.zone == zone)
}

/// No two groups may have VIPs in the same two zones: flows between these would belong to both.
pub(super) fn check(groups: &[(Group, Span)], zones: &Zones<'_>, mistakes: &mut Mistakes) {
    let zones_of = |group: &Group| group.vips.iter().map(|vip| vip.zone).collect::<BTreeSet<ZoneId>>();
    for (at, (group, span)) in groups.iter().enumerate() {
        for (other, _) in &groups[..at] {
            let both: Vec<ZoneId> = zones_of(group).intersection(&zones_of(other)).copied().collect();
            let [a, b, ..] = both[..] else { continue };
            let name = |zone: ZoneId| zones.names.name(usize::from(zone) - 1);
            mistakes
                .add(
                    span.clone(),
                    format!(
                        "groups {:?} and {:?} both have vips in zones {:?} and {:?}",
                        other.name,
                        group.name,
                        name(a),
                        name(b)
                    ),
                )
                .remedy("a flow between these would be of both: put these vips into one group");
        }
    }
}

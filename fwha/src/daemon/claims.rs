//! Address conflicts: somebody in a zone says that he has a virtual address which this node owns.
//!
//! A host that was given the address of the gateway takes the traffic of all its neighbours that hear it. The data plane
//! notes what it hears; here it is told, and the neighbours are told again who has the address, as RFC 5227 (2.4, c) has it for
//! addresses that are not to be given up.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use fwha_common::flow::{FlowKey, octets};
use fwha_common::group::{Claim, VipKey};
use fwha_proto::election::GroupId;

use super::names::Names;
use crate::dataplane::{DataplaneError, Maps};
use crate::netlink::Address;

/// Between two defences of an address (RFC 5227, 1.1, DEFEND_INTERVAL).
const INTERVAL: Duration = Duration::from_secs(10);
/// For so long after a group came here, in ns, the node that had it may speak for its addresses.
const SETTLED_NS: u64 = 2_000_000_000;
/// For so long a claim is worth an answer and a warning, in ns. A daemon that was restarted finds those of old.
const MEMORY_NS: u64 = 60_000_000_000;

/// What was heard of claims, and what was done against them.
#[derive(Debug, Default)]
pub struct Defence(BTreeMap<VipKey, Known>);

#[derive(Debug)]
struct Known {
    at_ns: u64,
    defended: Instant,
}

impl Defence {
    /// Whether an address is to be defended now.
    fn due(&mut self, now: Instant, key: VipKey, claim: &Claim) -> bool {
        let due = self
            .0
            .get(&key)
            .is_none_or(|known| known.at_ns != claim.at_ns && now >= known.defended + INTERVAL);
        if due {
            self.0.insert(key, Known { at_ns: claim.at_ns, defended: now });
        }
        due
    }

    /// Which of these addresses the neighbours are to be told of again, with what to tell the operator, by group.
    ///
    /// # Errors
    ///
    /// Those of the maps.
    pub fn turn(
        &mut self,
        maps: &Maps,
        names: &Names,
        here: &BTreeSet<GroupId>,
        addresses: &BTreeMap<GroupId, Vec<Address>>,
        now_ns: u64,
    ) -> Result<Vec<(GroupId, Vec<Address>, String)>, DataplaneError> {
        let now = Instant::now();
        let mut turn = Vec::new();
        for (group, claims) in current(maps, here, now_ns)? {
            let of_group = addresses.get(&group).map_or(&[][..], Vec::as_slice);
            let mut claimed = Vec::new();
            let mut due = Vec::new();
            for (key, claim) in claims {
                let is_it = |a: &&Address| FlowKey::address(octets(a.address)) == key.address;
                // A link-local address may be there in several zones.
                let of_key: Vec<_> = of_group.iter().filter(is_it).copied().collect();
                if !of_key.is_empty() && self.due(now, key, &claim) {
                    claimed.extend(of_key);
                    due.push((key, claim));
                }
            }
            if let Some(text) = text(&due, names) {
                turn.push((group, claimed, text));
            }
        }
        Ok(turn)
    }
}

/// What was claimed a moment ago, for a warning.
///
/// # Errors
///
/// Those of the maps.
pub fn recent(
    maps: &Maps,
    names: &Names,
    here: &BTreeSet<GroupId>,
    now_ns: u64,
) -> Result<Vec<String>, DataplaneError> {
    let mut warnings = Vec::new();
    for claims in current(maps, here, now_ns)?.into_values() {
        warnings.extend(text(&claims, names).map(|text| {
            format!("{text}: find that host; what neighbours send there does not pass this cluster")
        }));
    }
    Ok(warnings)
}

/// The claims of a moment ago against addresses of these groups, since they came here, by group.
fn current(
    maps: &Maps,
    here: &BTreeSet<GroupId>,
    now_ns: u64,
) -> Result<BTreeMap<GroupId, Vec<(VipKey, Claim)>>, DataplaneError> {
    let mut by_group: BTreeMap<GroupId, Vec<(VipKey, Claim)>> = BTreeMap::new();
    for (key, claim) in maps.claims()? {
        if here.contains(&claim.group) {
            by_group.entry(claim.group).or_default().push((key, claim));
        }
    }
    for (&group, claims) in &mut by_group {
        let settled_ns = maps.group(group.into())?.since_ns.saturating_add(SETTLED_NS);
        let from_ns = settled_ns.max(now_ns.saturating_sub(MEMORY_NS));
        claims.retain(|(_, claim)| claim.at_ns > from_ns);
        claims.sort_unstable_by_key(|(key, _)| key.address.map(u32::from_be));
    }
    Ok(by_group)
}

/// One line, however many they are: who claims one address can claim all.
fn text(claims: &[(VipKey, Claim)], names: &Names) -> Option<String> {
    let [(key, claim), others @ ..] = claims else { return None };
    let mut bytes = [0; 16];
    for (four, word) in bytes.chunks_exact_mut(4).zip(key.address) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    let address = Ipv6Addr::from(bytes).to_canonical();
    let mac = claim.mac.map(|byte| format!("{byte:02x}")).join(":");
    let zone = names.zone(claim.zone);
    let more = match others.len() {
        0 => String::new(),
        n => format!(", as are {n} other addresses"),
    };
    Some(format!("{address} is claimed in zone {zone} by {mac}, too{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::good_config;

    #[test]
    fn one_line_tells_of_all_addresses_that_are_claimed() {
        let names = Names::new(&good_config(), 1);
        let claim = |n: u8| {
            let key = VipKey { address: FlowKey::mapped(u32::from_ne_bytes([10, 0, 0, n])), zone: 0 };
            (key, Claim { at_ns: 1, mac: [2, 0, 0, 0, 0xa, n], group: 0, zone: 1 })
        };
        let zone = names.zone(1);
        assert_eq!(text(&[], &names), None);
        let one = format!("10.0.0.9 is claimed in zone {zone} by 02:00:00:00:0a:09, too");
        assert_eq!(text(&[claim(9)], &names), Some(one.clone()));
        assert_eq!(text(&[claim(9), claim(10), claim(11)], &names), Some(one + ", as are 2 other addresses"));
    }

    #[test]
    fn an_address_is_defended_at_once_and_then_each_ten_seconds_while_it_is_claimed() {
        let (mut defence, start) = (Defence::default(), Instant::now());
        let key = VipKey { address: FlowKey::mapped(1), zone: 0 };
        let mut due = |ms, at_ns| {
            let claim = Claim { at_ns, ..Claim::default() };
            defence.due(start + Duration::from_millis(ms), key, &claim)
        };
        assert!(due(0, 5));
        assert!(!due(1000, 5), "nothing new");
        assert!(!due(1000, 6), "not so often");
        assert!(!due(9999, 6));
        assert!(due(10_000, 6), "what came meanwhile is answered");
        assert!(!due(60_000, 6));
        assert!(due(60_001, 7));
    }
}

//! The ruleset: which rule a new flow meets first.

use fwha_common::rule::{Rule, ZONE_ANY};

/// A new flow, as rules see it.
pub struct Query {
    /// Source address, as in a flow key.
    pub src: [u32; 4],
    /// Destination address, as in a flow key.
    pub dst: [u32; 4],
    /// Destination port, host byte order; 0 for protocols without ports.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// Zone it comes from.
    pub from: u8,
    /// Zone it goes to.
    pub to: u8,
}

/// Whether `rule` matches.
#[inline(always)]
pub fn matches(rule: &Rule, query: &Query) -> bool {
    let mut differs = 0u32;
    let mut i = 0;
    while i < 4 {
        differs |= (query.src[i] ^ rule.src[i]) & rule.src_mask[i];
        differs |= (query.dst[i] ^ rule.dst[i]) & rule.dst_mask[i];
        i += 1;
    }
    differs == 0
        && (rule.proto == 0 || rule.proto == query.proto)
        && (rule.from == ZONE_ANY || rule.from == query.from)
        && (rule.to == ZONE_ANY || rule.to == query.to)
        && (rule.port_min..=rule.port_max).contains(&query.port)
}

#[cfg(test)]
mod tests {
    use fwha_common::{
        flow::{V4_MAPPED, proto},
        rule::ZONE_NODE,
    };

    use super::*;

    fn mapped(a: [u8; 4]) -> [u32; 4] {
        [0, 0, V4_MAPPED, u32::from_ne_bytes(a)]
    }

    fn query() -> Query {
        Query {
            src: mapped([192, 168, 1, 7]),
            dst: mapped([10, 0, 0, 1]),
            port: 22,
            proto: proto::TCP,
            from: 1,
            to: 2,
        }
    }

    fn any() -> Rule {
        Rule { port_max: u16::MAX, from: ZONE_ANY, to: ZONE_ANY, ..Rule::default() }
    }

    #[test]
    fn a_rule_without_conditions_matches_all() {
        assert!(matches(&any(), &query()));
        assert!(matches(&any(), &Query { to: ZONE_NODE, port: 0, ..query() }));
    }

    #[test]
    fn each_condition_counts() {
        let rule = Rule {
            src: mapped([192, 168, 1, 0]),
            src_mask: [u32::MAX, u32::MAX, u32::MAX, u32::from_ne_bytes([255, 255, 255, 0])],
            dst: mapped([10, 0, 0, 1]),
            dst_mask: [u32::MAX; 4],
            port_min: 20,
            port_max: 22,
            proto: proto::TCP,
            from: 1,
            to: 2,
            ..Rule::default()
        };
        assert!(matches(&rule, &query()));
        assert!(matches(&rule, &Query { port: 20, ..query() }));
        for other in [
            Query { src: mapped([192, 168, 2, 7]), ..query() },
            Query { src: [0, 0, 0, query().src[3]], ..query() },
            Query { dst: mapped([10, 0, 0, 2]), ..query() },
            Query { port: 19, ..query() },
            Query { port: 23, ..query() },
            Query { proto: proto::UDP, ..query() },
            Query { from: 2, ..query() },
            Query { to: ZONE_NODE, ..query() },
        ] {
            assert!(!matches(&rule, &other));
        }
    }
}

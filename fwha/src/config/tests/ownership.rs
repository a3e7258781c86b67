//! Which group has which flows.

use fwha_common::flow::FlowKey;
use fwha_common::group::{BucketRange, Vip, VipKey};
use fwha_common::rule::ZONE_NODE;

use super::{GOOD, good};
use crate::config::{Config, ZoneId};

/// Beside the example's group in inet (1) and lan (2) one in inet and guests (3); a zone without VIPs (4).
fn two_groups(rules: &str) -> Config {
    good(&format!(
        r#"{GOOD}
[[zone]]
name = "guests"
interfaces = ["guests"]
[[zone]]
name = "dmz"
interfaces = ["dmz"]
[[group]]
name = "guests"
nodes = ["fw2", "fw1"]
vips = [
  {{ zone = "inet", vrid = 71, addresses = ["10.0.0.13/24"] }},
  {{ zone = "guests", vrid = 72, addresses = ["192.168.200.12/24"] }},
]
{rules}"#
    ))
}

#[test]
fn one_group_has_all_flows() {
    let config = good(GOOD);
    assert_eq!(config.bucket_groups(), [0; 256]);
    assert!(config.zone_buckets().iter().all(|range| *range == BucketRange::default()));
}

#[test]
fn a_group_has_the_flows_between_the_zones_of_its_vips() {
    let config = two_groups("");
    let group = |from, to| config.flow_group(from, to);
    assert_eq!([group(2, 1), group(1, 2)], [0, 0], "lan and inet, both ways");
    assert_eq!([group(3, 1), group(1, 3)], [1, 1], "guests and inet, both ways");
    assert_eq!([group(2, 3), group(3, 2)], [0, 1], "that of where it begins");
    assert_eq!([group(3, 4), group(4, 3)], [1, 1], "the only one with a say");
    assert_eq!([group(1, 4), group(4, 1), group(4, 4), group(1, ZONE_NODE)], [0; 4], "the first");

    let (buckets, ranges) = (config.bucket_groups(), config.zone_buckets());
    for (from, to) in (0..=4 as ZoneId).flat_map(|from| (0..=4).map(move |to| (from, to))) {
        let range = ranges[BucketRange::index(from, to) as usize];
        for hash in 0..=255 {
            assert_eq!(buckets[usize::from(range.bucket(hash))], config.flow_group(from, to));
        }
    }
}

#[test]
fn a_rule_whose_answers_come_through_another_groups_vips_is_worth_a_thought() {
    let rule = |from, to, action| {
        let config = two_groups(&format!(
            "[[rule]]\nname = \"across\"\nfrom = \"{from}\"\nto = \"{to}\"\naction = \"{action}\"\n"
        ));
        config.warnings.into_iter().filter(|w| w.starts_with("rule across")).collect::<Vec<_>>()
    };
    assert_eq!(
        rule("lan", "guests", "accept"),
        [
            "rule across: from lan to guests flows are of group gateway, but answers may come through the VIPs \
          of guests: they pass while both groups are on one node"
        ]
    );
    assert_eq!(rule("any", "guests", "accept").len(), 1);
    for (from, to, action) in
        [("guests", "inet", "accept"), ("lan", "guests", "drop"), ("lan", "node", "accept")]
    {
        assert_eq!(rule(from, to, action), [""; 0]);
    }
}

#[test]
fn each_node_knows_of_each_address_what_its_group_says() {
    let with = |more: &str| {
        let text = GOOD.replace("preempt = false", more);
        good(&text.replace("[\"192.168.100.12/24\"]", "[\"192.168.100.12/24\", \"fe80::12/64\"]"))
    };
    let flags = |more: &str| {
        [1, 2].map(|me| with(more).vips(me).iter().map(|(_, vip)| vip.flags).collect::<Vec<_>>())
    };
    assert_eq!(flags(""), [[0; 3], [0; 3]]);
    assert_eq!(flags("virtual-mac = true"), [[Vip::VIRTUAL_MAC; 3], [Vip::VIRTUAL_MAC; 3]]);
    assert_eq!(flags("accept = false"), [[Vip::NOT_ACCEPTED; 3], [Vip::NOT_ACCEPTED; 3]]);
    let owner = "accept = false\npriority = { fw1 = 255, fw2 = 100 }";
    assert_eq!(flags(owner), [[0; 3], [Vip::NOT_ACCEPTED; 3]], "the owner takes what is for its addresses");
    // An address of a link counts there alone.
    let known = with("virtual-mac = true").vips(1);
    let link_local = FlowKey::address("fe80::12".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let zones: Vec<(u32, u8, u8)> = known.iter().map(|(key, vip)| (key.zone, vip.zone, vip.vrid)).collect();
    assert_eq!(zones, [(0, 1, 61), (0, 2, 62), (2, 2, 62)]);
    assert_eq!(known[2].0, VipKey { address: link_local, zone: 2 });
}

#[test]
fn what_nobody_asked_for_does_not_change_the_hash() {
    let hash = |more: &str| good(&GOOD.replace("preempt = false", more)).hash;
    assert_eq!(hash("virtual-mac = false\naccept = true"), hash(""));
    assert!(hash("virtual-mac = true") != hash("") && hash("accept = false") != hash(""));
}

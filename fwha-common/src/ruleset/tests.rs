//! The compiled ruleset beside a scan through the rules, which is what it has to be.

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::{
    flow::{FlowKey, octets, proto},
    rule::{Action, Network, Rule, Service, ZONE_ANY, ZONE_NODE},
};

/// Protocols, ports and zones that rules and flows have. The last of each is in no rule.
const PROTOCOLS: [u8; 5] = [proto::TCP, proto::UDP, proto::ICMP, proto::SCTP, 99];
const PORTS: [u16; 8] = [0, 1, 22, 23, 80, 443, 65_534, 65_535];
const RULE_ZONES: [u8; 5] = [ZONE_ANY, ZONE_NODE, 1, 2, 32];
const ZONES: [u8; 5] = [ZONE_NODE, 1, 2, 32, 31];

/// Networks overlap because their addresses are few.
const ADDRESSES: [&str; 10] = [
    "0.0.0.0",
    "10.0.0.1",
    "10.0.1.255",
    "192.168.77.4",
    "255.255.255.255",
    "::",
    "2001:db8::1",
    "2001:db8:0:ffff:ffff:ffff:ffff:ffff",
    "::fffe:ffff:ffff",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];

fn network() -> impl Strategy<Value = Network> {
    (select(&ADDRESSES[..]), prop_oneof![select(&[0u8, 8, 24, 32, 64, 96, 128][..]), 0..=128u8]).prop_map(
        |(address, len)| {
            let address: IpAddr = address.parse().unwrap();
            Network::new(address, if address.is_ipv4() { len % 33 } else { len })
        },
    )
}

fn service() -> impl Strategy<Value = Service> {
    let proto = prop_oneof![1 => Just(0), 6 => select(&PROTOCOLS[..4])];
    prop_oneof![
        proto.clone().prop_map(Service::all),
        (proto, select(&PORTS[..]), select(&PORTS[..])).prop_map(|(proto, a, b)| Service {
            proto,
            port_min: a.min(b),
            port_max: a.max(b)
        }),
    ]
}

fn rule() -> impl Strategy<Value = Rule> {
    let networks = || prop_oneof![2 => Just(Vec::new()), 3 => vec(network(), 1..4)];
    (select(&RULE_ZONES[..]), select(&RULE_ZONES[..]), networks(), networks(), vec(service(), 0..3)).prop_map(
        |(from, to, source, destination, services)| Rule {
            from,
            to,
            source,
            destination,
            services,
            decision: Decision::default(),
        },
    )
}

/// Networks of the same numbers in both families, and rules that name nothing else.
fn twins() -> impl Strategy<Value = Vec<Rule>> {
    let twin = (select(&[0u32, 1, 0x0a00_0000, 0xffff_ffff][..]), 0..=32u8).prop_map(|(number, len)| {
        let wide = IpAddr::V6(u128::from(number).into());
        [Network::new(v4(number), len), Network::new(wide, 96 + len)]
    });
    let of = move || vec(twin.clone(), 0..3).prop_map(|twins| twins.concat());
    let rule = (of(), of());
    vec(rule, 1..4).prop_map(|rules| {
        let rule = |(source, destination)| Rule { source, destination, ..Rule::all(Decision::default()) };
        rules.into_iter().map(rule).collect()
    })
}

/// Rules that tell which they are.
fn numbered(mut rules: Vec<Rule>) -> Vec<Rule> {
    for (i, rule) in rules.iter_mut().enumerate() {
        rule.decision = Decision { name_hash: !(i as u32), index: i as u32, ..Decision::default() };
    }
    rules
}

/// A flow: for each address the number of a network and a step from its first or last one, or any address.
type Place = (prop::sample::Index, bool, i8, u128);

fn place() -> impl Strategy<Value = Place> {
    let far =
        prop_oneof![Just(0u128), any::<u32>().prop_map(|n| 0xffff_0000_0000 | u128::from(n)), any::<u128>()];
    (any::<prop::sample::Index>(), any::<bool>(), -1..=1i8, far)
}

fn address(networks: &[Network], (index, last, step, far): &Place) -> [u32; 4] {
    let number = if *far != 0 || networks.is_empty() {
        *far
    } else {
        let network = index.get(networks);
        let end = if *last { network.last() } else { network.first() };
        end.wrapping_add_signed((*step).into())
    };
    FlowKey::address(number.to_be_bytes())
}

fn flow() -> impl Strategy<Value = (Place, Place, u8, u16, u8, u8)> {
    let port = prop_oneof![
        (select(&PORTS[..]), -1..=1i16).prop_map(|(port, step)| port.wrapping_add_signed(step)),
        any::<u16>()
    ];
    (place(), place(), select(&PROTOCOLS[..]), port, select(&ZONES[..]), select(&ZONES[..]))
}

/// The first rule that matches is found, whichever it is.
fn check(rules: &[Rule], flows: &[(Place, Place, u8, u16, u8, u8)]) -> Result<(), TestCaseError> {
    let ruleset = Ruleset::compile(rules).unwrap();
    let of = |networks: fn(&Rule) -> &Vec<Network>| -> Vec<Network> {
        rules.iter().flat_map(|rule| networks(rule).iter().copied()).collect()
    };
    let (sources, destinations) = (of(|rule| &rule.source), of(|rule| &rule.destination));
    for (source, destination, proto, port, from, to) in flows {
        let query = Query {
            src: address(&sources, source),
            dst: address(&destinations, destination),
            port: *port,
            proto: *proto,
            from: *from,
            to: *to,
        };
        let expected = rules.iter().find(|rule| rule.matches(&query)).map(|rule| rule.decision);
        prop_assert_eq!(
            ruleset.find(&query),
            expected,
            "{:?} to {:?}, {} {}, {} to {}",
            query.src,
            query.dst,
            proto,
            port,
            from,
            to
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn a_small_ruleset_finds_what_a_scan_finds(rules in vec(rule(), 0..=64), flows in vec(flow(), 64)) {
        check(&numbered(rules), &flows)?;
    }

    #[test]
    fn families_of_the_same_numbers_are_kept_apart(rules in twins(), flows in vec(flow(), 64)) {
        check(&numbered(rules), &flows)?;
    }

    #[test]
    fn a_ruleset_of_many_words_finds_what_a_scan_finds(rules in vec(rule(), 65..400), flows in vec(flow(), 64)) {
        check(&numbered(rules), &flows)?;
    }
}

fn v4(number: u32) -> IpAddr {
    IpAddr::V4(number.into())
}

fn v6(number: u32) -> IpAddr {
    IpAddr::V6((0x2001_0db8 << 96 | u128::from(number) << 64).into())
}

fn query(src: IpAddr, dst: IpAddr, port: u16) -> Query {
    let words = |address| FlowKey::address(octets(address));
    Query { src: words(src), dst: words(dst), port, proto: proto::TCP, from: 1, to: 2 }
}

/// As many rules as there may be, each for a source, a destination and a port of its own, of both families.
fn many() -> Vec<Rule> {
    let rule = |i: u32| {
        let host = |n: u32| vec![Network::new(v4(0x0a00_0000 + 3 * n), 32), Network::new(v6(3 * n), 64)];
        Rule {
            from: 1,
            source: host(i),
            destination: host(MAX_RULES as u32 + i),
            services: vec![Service { proto: proto::TCP, port_min: i as u16 + 1, port_max: i as u16 + 1 }],
            ..Rule::all(Decision::default())
        }
    };
    numbered((0..MAX_RULES as u32).map(rule).collect())
}

#[test]
fn the_longest_ruleset_finds_every_rule_and_little_else() {
    let rules = many();
    let ruleset = Ruleset::compile(&rules).unwrap();
    for i in 0..MAX_RULES as u32 {
        for of in [|n| v4(0x0a00_0000 + 3 * n), |n| v6(3 * n)] {
            let (src, dst) = (of(i), of(MAX_RULES as u32 + i));
            let found = ruleset.find(&query(src, dst, i as u16 + 1));
            assert_eq!(found, Some(rules[i as usize].decision), "{src} to {dst}");
            assert_eq!(ruleset.find(&query(src, dst, i as u16 + 2)), None);
            assert_eq!(ruleset.find(&query(src, src, i as u16 + 1)), None);
        }
    }
    let bytes = ruleset.blocks().len() * BLOCK_LEN;
    assert!(bytes < MAX_RULES * 600, "{bytes} bytes are not in proportion to the rules");
    assert_eq!(
        Ruleset::compile(&vec![Rule::default(); MAX_RULES + 1]).unwrap_err(),
        TooLarge::Rules(MAX_RULES + 1)
    );
}

#[test]
fn a_rule_of_many_networks_and_services_has_one_bit() {
    let hosts = |base: u32| (0..20_000).map(|n| Network::new(v4(base + 2 * n), 32)).collect();
    let service = |n: u16| Service { proto: proto::TCP, port_min: 2 * n, port_max: 2 * n };
    let rules = numbered(vec![Rule {
        source: hosts(0x0a00_0000),
        destination: hosts(0x0b00_0000),
        services: (0..500).map(service).collect(),
        ..Rule::all(Decision::default())
    }]);
    let ruleset = Ruleset::compile(&rules).unwrap();
    for n in 0..20_000 {
        let (src, dst, port) = (0x0a00_0000 + 2 * n, 0x0b00_0000 + 39_998 - 2 * n, (n % 500) as u16 * 2);
        let found = |src, dst, port| ruleset.find(&query(v4(src), v4(dst), port)).is_some();
        assert!(found(src, dst, port));
        assert!(!found(src + 1, dst, port) && !found(src, dst + 1, port) && !found(src, dst, port + 1));
    }
    assert!(ruleset.blocks().len() < 20, "{}", ruleset.blocks().len());
}

#[test]
fn what_needs_too_much_memory_is_refused() {
    let rules = many();
    let blocks = Ruleset::compile(&rules).unwrap().blocks().len();
    assert!(Ruleset::compile_within(&rules, blocks).is_ok());
    for fewer in [1, 2, blocks / 2, blocks - 1] {
        assert_eq!(Ruleset::compile_within(&rules, fewer).unwrap_err(), TooLarge::Memory);
    }
}

#[test]
fn an_ordinary_ruleset_is_one_block() {
    let rules = (0..64u32).map(|n| Rule {
        source: vec![Network::new(v4(0x0a00_0000 + 256 * n), 24), Network::new(v6(n), 64)],
        services: vec![Service { proto: proto::TCP, port_min: n as u16, port_max: n as u16 }],
        decision: Decision { action: Action::Accept as u8, ..Decision::default() },
        ..Rule::default()
    });
    assert_eq!(Ruleset::compile(&rules.collect::<Vec<_>>()).unwrap().blocks().len(), 1);
    assert_eq!(Ruleset::compile(&[]).unwrap().find(&query(v4(1), v4(2), 3)), None);
}

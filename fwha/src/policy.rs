//! What the config file says about single flows.

use std::{collections::HashSet, sync::Arc};

use fwha_common::flow::{Flow, FlowKey, proto};
use fwha_common::rule::{Action, Query, name_hash};
use fwha_common::ruleset::Ruleset;
use fwha_proto::replication;
use ipnet::IpNet;

use crate::config::Config;

/// See the module.
pub struct Policy {
    protocols: Vec<u8>,
    ignore: Vec<IpNet>,
    /// Hashes of the names of rules with `replicate = false`.
    unreplicated: HashSet<u32>,
    /// With `strict`, the rules.
    rules: Option<Arc<Ruleset>>,
}

impl Policy {
    /// The policy of a config file; `None` if it takes all flows as they are.
    pub fn of(config: &Config) -> Option<Self> {
        let replication = &config.replication;
        let unreplicated = config.rules.iter().filter(|r| !r.replicate);
        let policy = Self {
            protocols: replication.protocols.clone(),
            ignore: replication.ignore.clone(),
            unreplicated: unreplicated.map(|r| name_hash(&r.name)).collect(),
            rules: replication.strict.then(|| Arc::clone(&config.ruleset)),
        };
        let all = policy.protocols.is_empty() && policy.ignore.is_empty() && policy.unreplicated.is_empty();
        (!all || policy.rules.is_some()).then_some(policy)
    }
}

/// Whether two config files choose the same flows for replication.
pub fn same_choice(a: &Config, b: &Config) -> bool {
    let unreplicated = |c: &Config| -> HashSet<u32> {
        c.rules.iter().filter(|r| !r.replicate).map(|r| name_hash(&r.name)).collect()
    };
    (&a.replication.protocols, &a.replication.ignore) == (&b.replication.protocols, &b.replication.ignore)
        && unreplicated(a) == unreplicated(b)
}

impl replication::Policy for Policy {
    fn replicates(&self, key: &FlowKey, flow: &Flow) -> bool {
        let ignored = |(address, _): &([u8; 16], u16)| {
            let v6 = std::net::Ipv6Addr::from(*address);
            self.ignore.iter().any(|net| net.contains(&v6.to_canonical()))
        };
        (self.protocols.is_empty() || self.protocols.contains(&key.proto))
            && !self.unreplicated.contains(&flow.rule_hash)
            && (self.ignore.is_empty() || !key.ends(false).iter().any(ignored))
    }

    fn admits(&self, key: &FlowKey, flow: &Flow) -> bool {
        self.rules.as_ref().is_none_or(|rules| admits(rules, key, flow))
    }
}

/// Whether the first of the rules that matches the flow's first packet accepts it.
pub fn admits(rules: &Ruleset, key: &FlowKey, flow: &Flow) -> bool {
    let from_b = flow.originator_is_b();
    let (src, dst) = if from_b { (key.addr_b, key.addr_a) } else { (key.addr_a, key.addr_b) };
    let [_, (_, port)] = key.ends(from_b);
    let [from, to] = flow.zones();
    let port = if proto::has_ports(key.proto) { port } else { 0 };
    let query = Query { src, dst, port, proto: key.proto, from, to };
    rules.find(&query).is_some_and(|decision| decision.action == Action::Accept as u8)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use fwha_common::flow::{FlowState, V4_MAPPED, octets};
    use fwha_proto::replication::Policy as _;
    use fwha_proto::seal::ClusterKey;

    use super::*;
    use crate::config::Source;

    fn policy(replication: &str) -> Option<Policy> {
        let text = format!(
            r#"
            [cluster]
            name = "edge"
            key-file = "key"
            [replication]
            {replication}
            [[node]]
            name = "fw1"
            [[zone]]
            name = "inet"
            interfaces = ["wan"]
            [[zone]]
            name = "lan"
            interfaces = ["lan"]
            [[group]]
            name = "gateway"
            nodes = ["fw1"]
            [[rule]]
            name = "web"
            from = "lan"
            to = "inet"
            destination = ["10.0.0.0/8", "2001:db8::/32"]
            services = ["tcp/80", "icmp"]
            action = "accept"
            "#
        );
        let key = |_: &Path| Ok(ClusterKey::new([7; 32]).into());
        Policy::of(&Config::parse(Source::new("fwha.toml", text), key).unwrap())
    }

    fn flow(src: &str, dst: &str, dport: u16, proto: u8) -> (FlowKey, Flow) {
        let bytes = |text: &str| octets(text.parse().unwrap());
        let (key, from_b) = FlowKey::new(bytes(src), bytes(dst), 40_000, dport, proto);
        let flags = if from_b { Flow::ORIGINATOR_IS_B } else { 0 };
        let word = Flow::word(FlowState::Established, flags, [2, 1]);
        (key, Flow { word, rule_hash: name_hash("web"), ..Flow::default() })
    }

    #[test]
    fn without_a_choice_there_is_no_policy() {
        assert!(policy("").is_none() && policy("min-age = \"1s\"").is_none());
    }

    #[test]
    fn protocols_and_networks_are_left_out() {
        let policy = policy(
            r#"protocols = ["tcp", "50"]
            ignore = ["10.1.0.0/16", "2001:db8:1::/48"]"#,
        );
        let policy = policy.unwrap();
        let sent = |f: (FlowKey, Flow)| policy.replicates(&f.0, &f.1);
        assert!(sent(flow("192.168.1.1", "10.0.0.1", 80, proto::TCP)));
        assert!(sent(flow("192.168.1.1", "10.0.0.1", 0, proto::ESP)));
        assert!(sent(flow("2001:db8::1", "2001:db8::2", 80, proto::TCP)));
        assert!(!sent(flow("192.168.1.1", "10.0.0.1", 80, proto::UDP)));
        for (src, dst) in
            [("192.168.1.1", "10.1.0.1"), ("10.1.2.3", "10.0.0.1"), ("2001:db8::1", "2001:db8:1::2")]
        {
            assert!(!sent(flow(src, dst, 80, proto::TCP)), "{src} {dst}");
        }
    }

    #[test]
    fn strict_asks_the_rules_as_the_data_plane_does() {
        let policy = policy("strict = true").unwrap();
        let admits = |f: (FlowKey, Flow)| policy.admits(&f.0, &f.1);
        assert!(admits(flow("192.168.1.1", "10.0.0.1", 80, proto::TCP)));
        assert!(admits(flow("10.0.0.9", "10.0.0.1", 80, proto::TCP)), "either end may be the lower one");
        assert!(admits(flow("fd00::1", "2001:db8::1", 80, proto::TCP)));
        assert!(admits(flow("192.168.1.1", "10.0.0.1", 40_000, proto::ICMP)), "no ports");
        assert!(!admits(flow("192.168.1.1", "10.0.0.1", 81, proto::TCP)));
        assert!(!admits(flow("192.168.1.1", "11.0.0.1", 80, proto::TCP)));
        let (key, other) = flow("192.168.1.1", "10.0.0.1", 80, proto::TCP);
        let flags = other.flags();
        assert!(
            !policy.admits(&key, &Flow { word: Flow::word(FlowState::Established, flags, [1, 2]), ..other })
        );
        let canonical = flow("192.168.1.1", "10.0.0.1", 80, proto::TCP).0;
        assert_eq!(canonical.addr_a[2], V4_MAPPED);
    }
}

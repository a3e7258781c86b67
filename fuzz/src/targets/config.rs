//! The config file.

use std::time::Duration;

use fwha::config::{Config, ConfigErrors, Source};
use fwha_common::ruleset::MAX_RULES;
use fwha_proto::election;
use fwha_proto::seal::ClusterKey;
use fwha_proto::seal::Identity;

/// Reads a config file.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match (parse(text), parse(text)) {
        (Ok(config), Ok(again)) => {
            assert_eq!((config.hash, config.rules_hash), (again.hash, again.rules_hash));
            accept(&config);
        }
        (Err(errors), Err(again)) => {
            assert!(!errors.mistakes().is_empty());
            assert_eq!(errors.headlines().count(), errors.mistakes().len());
            assert_eq!(errors.to_string(), again.to_string());
        }
        _ => panic!("once it is right, once it is not"),
    }
}

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Source::new("/etc/fwha/fwha.toml", text), |_| Ok(ClusterKey::new([7; 32]).into()))
}

/// What is accepted, the daemon can start with.
fn accept(config: &Config) {
    assert!(config.dataplane_rules().len() <= MAX_RULES);
    for node in &config.nodes {
        if let Err(errors) = config.check_interfaces(node.id, |_| false) {
            assert!(!errors.to_string().is_empty());
        }
        assert_eq!(election_config(config, node.id).check(), Ok(()));
    }
}

/// As the daemon makes it.
fn election_config(config: &Config, node: u8) -> election::Config {
    let names = config.nodes.iter().map(|n| election::NodeConfig { node: n.id, name: n.name.clone() });
    election::Config {
        identity: Identity { cluster: 1, node, epoch: 1 },
        keys: config.keys.clone(),
        probe_key: [0; 2],
        config_hash: config.hash,
        heartbeat_interval: config.cluster.heartbeat_interval,
        lease: config.cluster.lease,
        handover_timeout: Duration::from_secs(1),
        preempt_wait: Duration::from_secs(1),
        nodes: names.collect(),
        zones: config.zones.iter().map(|z| (z.id, z.name.clone())).collect(),
        interfaces: Vec::new(),
        groups: config.groups.iter().map(|group| group.election(election::Start::default())).collect(),
        trackers: config
            .trackers
            .iter()
            .filter(|t| t.runs_on(node))
            .map(|t| election::TrackerConfig {
                id: t.id(),
                name: t.name.clone(),
                groups: t.groups.clone(),
                effect: t.effect(),
                shared: t.grace(config.cluster.heartbeat_interval),
            })
            .collect(),
        witnesses: config.cluster.witness.clone(),
        standby: false,
    }
}

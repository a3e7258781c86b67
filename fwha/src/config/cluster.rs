//! `[cluster]` and `[sync]`: what concerns the cluster as a whole.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fwha_proto::{election::witness::MAX_WITNESSES, seal::cluster_id};
use serde::Serialize;
use toml::Spanned;

use super::{
    beside,
    section::{self, Section},
    source::Mistakes,
    value,
};

/// How groups share the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// One group owns all flows; the other nodes wait.
    ActivePassive,
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cluster {
    /// Its name.
    pub name: String,
    /// What frames and datagrams carry instead of the name ([`cluster_id`]).
    pub id: u32,
    /// How groups share the flows.
    pub mode: Mode,
    /// Elements of the main flow table.
    pub max_flows: u32,
    /// Time between two heartbeats, 1 ms to 1 s.
    pub heartbeat_interval: Duration,
    /// How long the data plane forwards after the daemon last renewed its ownership.
    pub lease: Duration,
    /// Hosts of which one must answer before a group of a lost peer is claimed; nobody is asked if there are none.
    /// Left out of the hash then, which is what nodes reckon that do not know any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub witness: Vec<IpAddr>,
}

/// `[sync]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sync {
    /// UDP port of heartbeats on the sync links. Replication uses the next one.
    pub port: u16,
}

impl Sync {
    /// UDP port of heartbeats.
    pub const fn heartbeat_port(&self) -> u16 {
        self.port
    }

    /// UDP port of replication.
    pub const fn replication_port(&self) -> u16 {
        self.port + 1
    }
}

/// The two sections as read.
pub(super) struct Read {
    pub(super) cluster: Cluster,
    pub(super) sync: Sync,
    /// The key file, made relative to the config file.
    pub(super) key_path: Option<Spanned<PathBuf>>,
}

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Heartbeats per lease at least, as the election asks: a lease must outlive some that are late or lost.
const LEASE_HEARTBEATS_MIN: u32 = 5;

pub(super) fn read(root: &mut Section<'_>, config: &Path, mistakes: &mut Mistakes) -> Read {
    let mut read = Read {
        cluster: Cluster {
            name: String::new(),
            id: 0,
            mode: Mode::ActivePassive,
            max_flows: 1_000_000,
            heartbeat_interval: MS(10),
            lease: MS(1000),
            witness: Vec::new(),
        },
        sync: Sync { port: 4761 },
        key_path: None,
    };
    match root.get("cluster") {
        Some(table) => {
            if let Some(section) = section::table(table, "[cluster]", mistakes) {
                read_cluster(section, &mut read, config, mistakes);
            }
        }
        None => mistakes
            .add_global("no [cluster]")
            .remedy("begin with [cluster], name = \"…\", key-file = \"cluster.key\""),
    }
    if let Some(mut section) = root.get("sync").and_then(|t| section::table(t, "[sync]", mistakes)) {
        if let Some(port) = section.integer("port", 1..=65534, mistakes) {
            read.sync.port = port as u16;
        }
        section.finish(mistakes);
    }
    read
}

fn read_cluster(mut section: Section<'_>, read: &mut Read, config: &Path, mistakes: &mut Mistakes) {
    let cluster = &mut read.cluster;
    if let Some(name) = section.required_string("name", mistakes) {
        match value::name(name.get_ref()) {
            Ok(name) => {
                cluster.id = cluster_id(&name);
                cluster.name = name;
            }
            Err(problem) => {
                mistakes.add(name.span(), format!("cluster: {problem}"));
            }
        }
    }
    if let Some(path) = section.required_string("key-file", mistakes) {
        if path.get_ref().is_empty() {
            mistakes.add(path.span(), "key-file is empty").remedy("like \"cluster.key\"");
        } else {
            read.key_path = Some(Spanned::new(path.span(), beside(config, path.get_ref())));
        }
    }
    if let Some(mode) = section.string("mode", mistakes) {
        match *mode.get_ref() {
            "active-passive" => {}
            "active-active" => mistakes
                .add(mode.span(), "mode \"active-active\" is not supported yet")
                .remedy("use \"active-passive\""),
            other => mistakes
                .add(mode.span(), format!("unknown mode {other:?}"))
                .remedy(value::suggest(other, &["active-passive"])),
        }
    }
    if let Some(flows) = section.integer("max-flows", 1_000..=100_000_000, mistakes) {
        cluster.max_flows = flows as u32;
    }
    if let Some(items) = section.list("witness", mistakes) {
        cluster.witness = read_witnesses(items, mistakes);
    }
    let mut blame = None;
    if let Some(interval) = section.duration("heartbeat-interval", MS(1)..=MS(1000), mistakes) {
        cluster.heartbeat_interval = *interval.get_ref();
        blame = Some(interval.span());
    }
    if let Some(lease) = section.duration("lease", MS(100)..=MS(60_000), mistakes) {
        cluster.lease = *lease.get_ref();
        blame = Some(lease.span());
    }
    let least = cluster.heartbeat_interval * LEASE_HEARTBEATS_MIN;
    if let Some(span) = blame.filter(|_| cluster.lease < least) {
        mistakes
            .add(
                span,
                format!(
                    "a lease of {} is too short for heartbeats every {}",
                    value::show_duration(cluster.lease),
                    value::show_duration(cluster.heartbeat_interval)
                ),
            )
            .remedy(format!("set lease to {} or more", value::show_duration(least)));
    }
    section.finish(mistakes);
}

fn read_witnesses(items: &[section::Value<'_>], mistakes: &mut Mistakes) -> Vec<IpAddr> {
    let mut witnesses = Vec::new();
    for text in section::strings(items, "witness", mistakes) {
        match value::host_ip(text.get_ref()) {
            Ok(address) if witnesses.contains(&address) => {
                mistakes.add(text.span(), format!("witness {address} twice")).remedy("leave one of them out");
            }
            Ok(IpAddr::V6(address)) if address.is_unicast_link_local() => mistakes
                .add(text.span(), format!("witness: {address} is the same on every link"))
                .remedy("give an address that a route leads to"),
            Ok(_) if witnesses.len() == MAX_WITNESSES => {
                mistakes.add(text.span(), format!("more than {MAX_WITNESSES} witnesses"));
            }
            Ok(address) => witnesses.push(address),
            Err(problem) => {
                mistakes.add(text.span(), format!("witness: {problem}"));
            }
        }
    }
    witnesses
}

//! The config file: one TOML file, the same on every node, checked as a whole.
//!
//! [`Config::load`] gives a [`Config`] in which everything is resolved: names have become numbers,
//! defaults are filled in, and what contradicts itself has been refused. Otherwise it gives
//! [`ConfigErrors`]: every mistake with its line, column and remedy.
//!
//! | file | holds |
//! |---|---|
//! | `source` | the text, places in it, mistakes and how they are shown |
//! | `section` | typed reading of tables |
//! | `value` | durations, names, addresses |
//! | [`vlan`] | VLANs in names of interfaces |
//! | `cluster` | `[cluster]`, `[sync]`, `[replication]` |
//! | `nodes`, `zones`, `groups`, `routes` (of a group), `trackers`, `rules`, `timeouts`, `limits`, `metrics`, `hooks`, `resources` | a section each: its type, reading and checks |
//! | `key` | the cluster key's file |
//! | `warnings` | what is worth a thought although it is no mistake |
//! | [`diff`] | what is different in another version of the file |

mod cluster;
pub mod diff;
mod groups;
mod hooks;
pub mod key;
mod limits;
mod metrics;
mod names;
mod nodes;
mod ownership;
mod replication;
mod resources;
mod routes;
mod rules;
mod section;
mod source;
#[cfg(test)]
pub(crate) mod tests;
mod timeouts;
mod trackers;
mod value;
pub mod vlan;
mod warnings;
mod zones;

use std::{
    collections::HashMap,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use fwha_common::{
    limit::Limits,
    rule::{self, Tag},
    ruleset::Ruleset,
    settings::Timeouts,
};
pub use fwha_proto::{NodeId, seal::KeyRing};
use sha2::{Digest, Sha256};
use toml::de::DeTable;

pub use self::{
    cluster::{Cluster, Mode, Sync},
    groups::{Announce, Group, Vip},
    hooks::Hook,
    key::KeyError,
    metrics::Metrics,
    nodes::{Node, NodeError, SyncLink},
    replication::Replication,
    resources::{Resource, Service as ResourceService},
    routes::{Route, RoutingRule},
    rules::{Rule, Service},
    source::{ConfigErrors, Mistake, Source, Span},
    trackers::{Tracker, Watch},
    zones::{Attach, Zone},
};
use self::{section::Section, source::Mistakes};

/// Number of a zone: its place in the file, from 1; [`rule::ZONE_NODE`] is the node itself.
pub type ZoneId = u8;
/// Number of a group: its place in the file, from 0.
pub type GroupId = u8;

/// Where the config file is unless something else is said.
pub const DEFAULT_PATH: &str = "/etc/fwha/fwha.toml";

/// A config file is not longer than this; a longer one is something else.
const FILE_LEN_MAX: u64 = 4 << 20;

/// A checked config file, everything resolved.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[cluster]`.
    pub cluster: Cluster,
    /// The keys from the key file.
    pub keys: KeyRing,
    /// The key file.
    pub key_file: PathBuf,
    /// `[sync]`.
    pub sync: Sync,
    /// `[replication]`.
    pub replication: Replication,
    /// `[timeouts]`, over the kernel's defaults.
    pub timeouts: Timeouts,
    /// `[limits]`.
    pub limits: Limits,
    /// `[metrics]`.
    pub metrics: Metrics,
    /// Every `[[node]]`, in the order of the file: node `id` is at `id - 1`.
    pub nodes: Vec<Node>,
    /// Every `[[zone]]`, in the order of the file: zone `id` is at `id - 1`.
    pub zones: Vec<Zone>,
    /// Every `[[group]]`, in the order of the file: group `id` is at `id`.
    pub groups: Vec<Group>,
    /// Every `[[rule]]`, in the order of the file.
    pub rules: Vec<Rule>,
    /// The same, compiled. A rule's counter is its place.
    pub ruleset: Arc<Ruleset>,
    /// Every `[[tracker]]`, in the order of the file.
    pub trackers: Vec<Tracker>,
    /// Every `[[hook]]`, in the order of the file.
    pub hooks: Vec<Hook>,
    /// Every `[[resource]]`, in the order of the file.
    pub resources: Vec<Resource>,
    /// Hash of all of the above but the key, `[metrics]` and hooks: the first 8 bytes of a SHA-256 over the resolved config, so
    /// comments, spacing, and defaults written out or left out make no difference. Peers compare it.
    pub hash: u64,
    /// Same, of what decides about packets: zones by name and rules.
    pub rules_hash: u64,
    /// Names of the rules, by [`rule::name_hash`].
    rule_names: HashMap<u32, String>,
    /// What is right but worth a thought, a line each.
    pub warnings: Vec<String>,
    source: Arc<Source>,
    /// Where the file names an interface, for [`Config::check_interfaces`].
    interfaces: Vec<NamedInterface>,
}

/// A place where the file names an interface of a node.
#[derive(Clone, Debug)]
struct NamedInterface {
    node: NodeId,
    name: String,
    /// Whether it is a zone's, not a sync link's.
    zone: bool,
    span: Span,
}

impl NamedInterface {
    fn add_missing(&self, node: &str, mistakes: &mut Mistakes) {
        let message = format!("{node} has no interface {:?}", self.name);
        mistakes.add(self.span.clone(), message).remedy("`ip link` shows those that it has");
    }
}

impl Config {
    /// Reads and checks the file at `path`, and the key file that it names.
    ///
    /// # Errors
    /// Every mistake in it, or why it cannot be read.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = read_text(path).map_err(|problem| {
            let mut mistakes = Mistakes::default();
            mistakes.add_global(problem).remedy("name the file with --config");
            mistakes.into_errors(Arc::new(Source::new(path, "")))
        })?;
        Self::parse(Source::new(path, text), key::read)
    }

    /// A hash of what the numbers of nodes, zones and groups mean: they are those of their order in the file.
    pub fn numbering(&self) -> u32 {
        let nodes = self.nodes.iter().map(|n| (&n.name, n.id));
        let zones = self.zones.iter().map(|z| (&z.name, z.id));
        let groups = self.groups.iter().map(|g| (&g.name, g.id));
        let mut text = String::new();
        for (kind, mut names) in
            [("node", nodes.collect::<Vec<_>>()), ("zone", zones.collect()), ("group", groups.collect())]
        {
            names.sort_unstable_by_key(|(_, id)| *id);
            names.iter().for_each(|(name, id)| text += &format!("{kind} {id} {name:?}\n"));
        }
        rule::name_hash(&text)
    }

    /// Checks the text of a config file; `read_key` gets the path of the key file.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn parse(
        source: Source,
        read_key: impl FnOnce(&Path) -> Result<KeyRing, KeyError>,
    ) -> Result<Self, ConfigErrors> {
        let source = Arc::new(source);
        let mut mistakes = Mistakes::default();
        let (root, syntax) = DeTable::parse_recoverable(source.text());
        for error in syntax {
            let mistake = mistakes.add(error.span().unwrap_or(0..0), error.message());
            if error.message() == "duplicate key" {
                mistake.remedy(
                    "in a table each name is there once; what there is many of is either `[[rule]]` each time, or one \
                     `rule = [ … ]`",
                );
            }
        }
        if !mistakes.is_empty() {
            // What a broken file means is a guess; mistakes found in the guess would mislead.
            return Err(mistakes.into_errors(source));
        }

        let mut root = Section::new("the file", 0..0, root.get_ref());
        let mut interfaces = Vec::new();
        let cluster = cluster::read(&mut root, source.path(), &mut mistakes);
        let keys = cluster.key_path.as_ref().and_then(|path| {
            let problem = match read_key(path.get_ref()) {
                Ok(key) => return Some(key),
                Err(problem) => problem,
            };
            let shown = path.get_ref().display();
            mistakes
                .add(path.span(), format!("key file {shown} {problem}"))
                .remedy(problem.remedy(path.get_ref()));
            None
        });
        let nodes = nodes::read(&mut root, &mut interfaces, &mut mistakes);
        let zones = zones::read(&mut root, &nodes, &mut interfaces, &mut mistakes);
        let groups = groups::read(&mut root, source.path(), &nodes, &zones, &mut mistakes);
        let trackers = trackers::read(&mut root, &nodes, &zones, &groups, &mut mistakes);
        let rules = rules::read(&mut root, &zones, &mut mistakes);
        let hooks = hooks::read(&mut root, &groups, &mut mistakes);
        let resources = resources::read(&mut root, &groups, &trackers, &mut mistakes);
        let timeouts = timeouts::read(&mut root, &mut mistakes);
        let limits = limits::read(&mut root, &mut mistakes);
        let metrics = metrics::read(&mut root, &mut mistakes);
        let replication = replication::read(&mut root, &mut mistakes);
        root.finish(&mut mistakes);

        let (Some(keys), Some(key_file), true) =
            (keys, cluster.key_path.map(|path| path.into_inner()), mistakes.is_empty())
        else {
            return Err(mistakes.into_errors(source));
        };
        let rule_names = rules.list.iter().map(|r| (rule::name_hash(&r.name), r.name.clone())).collect();
        let mut config = Self {
            cluster: cluster.cluster,
            keys,
            key_file,
            sync: cluster.sync,
            replication,
            timeouts,
            limits,
            metrics,
            nodes: nodes.list,
            zones: zones.list,
            groups,
            rules: rules.list,
            ruleset: rules.ruleset,
            trackers,
            hooks,
            resources,
            hash: 0,
            rules_hash: 0,
            rule_names,
            warnings: Vec::new(),
            source,
            interfaces,
        };
        let rest = (
            &config.cluster,
            &config.sync,
            &config.replication,
            config.timeouts.ns,
            (config.limits.interval_ns, config.limits.flows),
            &config.nodes,
            &config.zones,
            &config.groups,
            &config.rules,
        );
        // Without trackers and resources it is what nodes that do not know any reckon.
        config.hash = match (&config.trackers[..], &config.resources[..]) {
            ([], []) => hash(&rest),
            (trackers, []) => hash(&(rest, trackers)),
            (trackers, resources) => hash(&(rest, trackers, resources)),
        };
        let caps = timeouts::caps(&config.timeouts);
        if caps != timeouts::caps(&Timeouts::KERNEL) {
            // The same for what is younger than the hash.
            config.hash = hash(&(config.hash, caps));
        }
        let zone_names: Vec<&str> = config.zones.iter().map(|z| z.name.as_str()).collect();
        config.rules_hash = hash(&(zone_names, &config.rules));
        config.warnings = rules.doubts;
        config.warnings.extend(warnings::of(&config));
        Ok(config)
    }

    /// The path of the file, as it was given.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// Whether the file is still the one that was read; or why it cannot be read.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn is_on_disk(&self) -> Result<bool, String> {
        Ok(read_text(self.source.path())? == self.source.text())
    }

    /// The node that this daemon is: the one called `name` (`--node`), else the one called like the
    /// host, with or without the host's domain.
    ///
    /// # Errors
    /// If there is no such node; the message lists those that there are.
    pub fn node_for(&self, name: Option<&str>, hostname: &str) -> Result<&Node, NodeError> {
        nodes::select(self, name, hostname)
    }

    /// The node with this number.
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(usize::from(id).checked_sub(1)?)
    }

    /// The node of this name.
    pub fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|n| n.name == name)
    }

    /// The zone with this number; none for the node itself and for "any".
    pub fn zone(&self, id: ZoneId) -> Option<&Zone> {
        self.zones.get(usize::from(id).checked_sub(1)?)
    }

    /// The name by which commands show a zone number.
    pub fn zone_name(&self, id: ZoneId) -> &str {
        match id {
            rule::ZONE_NODE => zones::NODE,
            rule::ZONE_ANY => zones::ANY,
            _ => self.zone(id).map_or("?", |z| z.name.as_str()),
        }
    }

    /// The rule with this [`rule::name_hash`].
    pub fn rule_name(&self, hash: u32) -> Option<&str> {
        self.rule_names.get(&hash).map(String::as_str)
    }

    /// Whether addresses in a zone have virtual MACs.
    pub fn has_virtual_macs(&self, zone: ZoneId) -> bool {
        let mut groups = self.groups.iter().filter(|group| group.virtual_mac);
        groups.any(|group| group.vips.iter().any(|vip| vip.zone == zone))
    }

    /// The interface of `node` that carries the VIPs and VRRP of `vip`: the first of its zone.
    pub fn vip_interface(&self, vip: &Vip, node: NodeId) -> Option<&str> {
        self.zone(vip.zone)?.interfaces.get(&node)?.first().map(String::as_str)
    }

    /// The resources of the groups that `node` is in.
    pub fn resources_of(&self, node: NodeId) -> impl Iterator<Item = &Resource> {
        let mine = move |r: &&Resource| self.groups[usize::from(r.group)].priority(node).is_some();
        self.resources.iter().filter(mine)
    }

    /// The rules as the data plane takes them, first match first.
    pub fn dataplane_rules(&self) -> Vec<rule::Rule> {
        self.rules.iter().map(Rule::compile).collect()
    }

    /// Whether every interface that a zone has on `node` is one for which `exists` is true, or a VLAN on one, see
    /// [`vlan::place`].
    ///
    /// # Errors
    /// Each place in the file that names one that does not exist, or a VLAN without a device on an interface
    /// that has another use.
    pub fn check_interfaces(&self, node: NodeId, exists: impl Fn(&str) -> bool) -> Result<(), ConfigErrors> {
        let mut mistakes = Mistakes::default();
        let node_name = self.node(node).map_or("?", |n| n.name.as_str());
        let here: Vec<(&NamedInterface, Option<vlan::Place>)> = self
            .interfaces
            .iter()
            .filter(|i| i.node == node)
            .map(|i| (i, if i.zone { vlan::place(&i.name, &exists) } else { vlan::device(&i.name, &exists) }))
            .collect();
        for (named, place) in here.iter().filter(|(named, _)| named.zone) {
            let name = &named.name;
            let Some(vlan::Place { interface, tags }) = place else {
                named.add_missing(node_name, &mut mistakes);
                continue;
            };
            let uses = here.iter().filter(|(_, p)| p.as_ref().is_some_and(|p| p.interface == *interface));
            if tags[0] != Tag::NONE && uses.count() > 1 {
                let vlan = tags.iter().rfind(|t| **t != Tag::NONE).map_or(0, |t| t.vlan());
                mistakes
                    .add(
                        named.span.clone(),
                        format!("{node_name} has no VLAN device {name:?}, and {interface:?} has another use"),
                    )
                    .remedy(format!(
                        "routes tell the networks on {interface} apart by devices: \
                         `ip link add link {interface} name {name} type vlan id {vlan}`"
                    ));
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.into_errors(Arc::clone(&self.source))) }
    }

    /// The same of the sync interfaces, which may come later than the daemon.
    ///
    /// # Errors
    /// Each place in the file that names one that does not exist.
    pub fn check_sync_interfaces(
        &self,
        node: NodeId,
        exists: impl Fn(&str) -> bool,
    ) -> Result<(), ConfigErrors> {
        let mut mistakes = Mistakes::default();
        let node_name = self.node(node).map_or("?", |n| n.name.as_str());
        let missing = |i: &&NamedInterface| i.node == node && !i.zone && !exists(&i.name);
        self.interfaces.iter().filter(missing).for_each(|i| i.add_missing(node_name, &mut mistakes));
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.into_errors(Arc::clone(&self.source))) }
    }
}

/// The text of the file at `path`, or what is wrong with it.
fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes))
        .map_err(|e| format!("cannot read the config file: {e}"))?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err("the config file is larger than 4 MiB".into());
    }
    String::from_utf8(bytes).map_err(|_| "the config file is not UTF-8 text".into())
}

/// A path in the file is relative to the file.
fn beside(config: &Path, path: &str) -> PathBuf {
    config.parent().unwrap_or(Path::new("")).join(path)
}

/// First 8 bytes of the SHA-256 of a value, big-endian, so that it prints as the hash's beginning.
fn hash(value: &impl serde::Serialize) -> u64 {
    // JSON of structs and sorted maps is the same for the same value; it cannot fail for these types.
    let canonical = serde_json::to_vec(value).unwrap_or_default();
    let digest = Sha256::digest(&canonical);
    digest.iter().take(8).fold(0, |hash, &byte| hash << 8 | u64::from(byte))
}

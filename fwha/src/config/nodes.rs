//! `[[node]]`: the boxes, and the addresses by which they reach each other.

use std::{collections::HashSet, net::Ipv4Addr};

use fwha_common::MAX_NODES;
use fwha_proto::heartbeat::MAX_LINKS;
use serde::Serialize;

use super::{
    Config, NamedInterface, NodeId,
    names::Names,
    section::{self, Section},
    source::Mistakes,
    value,
};

/// A `[[node]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its number: its place in the file, from 1.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Its ends of the sync links, most preferred first. Every node has as many, and those at the same
    /// place belong to the same link.
    pub sync: Vec<SyncLink>,
}

/// A node's end of a sync link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SyncLink {
    /// The interface.
    pub interface: String,
    /// The node's address on it.
    pub address: Ipv4Addr,
}

/// Why it is not known which node this is.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum NodeError {
    /// `--node` names none.
    #[error("{file} has no node {name:?}; it has {known}")]
    Unknown {
        /// The config file.
        file: String,
        /// What was asked for.
        name: String,
        /// The nodes that there are.
        known: String,
    },
    /// The host is called like none.
    #[error(
        "this host is called {hostname:?}, like no node in {file}; say which it is with --node ({known})"
    )]
    NotThisHost {
        /// The config file.
        file: String,
        /// The host's name.
        hostname: String,
        /// The nodes that there are.
        known: String,
    },
}

/// The nodes as read.
pub(super) struct Nodes<'a> {
    pub(super) list: Vec<Node>,
    pub(super) names: Names<'a>,
    /// Sync interfaces, which no zone may have.
    pub(super) sync_interfaces: HashSet<(NodeId, String)>,
    /// Sync addresses, which no VIP may be.
    pub(super) sync_addresses: HashSet<Ipv4Addr>,
}

pub(super) fn read<'a>(
    root: &mut Section<'a>,
    interfaces: &mut Vec<NamedInterface>,
    mistakes: &mut Mistakes,
) -> Nodes<'a> {
    let mut nodes = Nodes {
        list: Vec::new(),
        names: Names::new("node"),
        sync_interfaces: HashSet::new(),
        sync_addresses: HashSet::new(),
    };
    let sections = section::array_of_tables(root, "node", "[[node]]", mistakes);
    if let Some(extra) = sections.get(MAX_NODES) {
        mistakes.add(extra.span.clone(), format!("more than {MAX_NODES} nodes"));
    }
    if sections.is_empty() {
        mistakes.add_global("no [[node]]").remedy("name each box: [[node]], name = \"…\", sync = [ … ]");
    }
    let single = sections.len() == 1;
    for (index, mut section) in sections.into_iter().take(MAX_NODES).enumerate() {
        let id = index as NodeId + 1;
        let name = nodes.names.read(&mut section, mistakes);
        let span = section.span.clone();
        let links = section.get("sync");
        let blame = links.map_or(span, |l| l.span());
        if let Some(extra) = links.and_then(|l| l.get_ref().as_array()?.get(MAX_LINKS)) {
            mistakes.add(extra.span(), format!("more than {MAX_LINKS} sync links"));
        }
        let before = interfaces.len();
        let sync = match links.and_then(|l| section::list(l, "sync", mistakes)) {
            Some(items) => read_links(id, items, &mut nodes, interfaces, mistakes),
            None => Vec::new(),
        };
        let named = interfaces.len() - before;
        if links.is_none_or(|l| l.get_ref().as_array().is_some_and(|a| a.is_empty())) && !single {
            mistakes
                .add(blame, format!("node {name:?} has no sync link"))
                .remedy("sync = [{ interface = \"…\", address = \"…\" }]");
        } else if let Some(first) = nodes.list.first()
            && named == sync.len()
            && !sync.is_empty()
            && first.sync.len() != sync.len()
        {
            mistakes
                .add(
                    blame,
                    format!(
                        "node {name:?} has {} sync links, {:?} has {}",
                        sync.len(),
                        first.name,
                        first.sync.len()
                    ),
                )
                .remedy("every node needs an end of every link, in the same order");
        }
        section.finish(mistakes);
        nodes.list.push(Node { id, name, sync });
    }
    nodes
}

fn read_links<'a>(
    node: NodeId,
    items: &'a [section::Value<'a>],
    nodes: &mut Nodes<'_>,
    interfaces: &mut Vec<NamedInterface>,
    mistakes: &mut Mistakes,
) -> Vec<SyncLink> {
    let mut links = Vec::new();
    for mut section in section::tables(items, "sync", mistakes) {
        let interface = section.required_string("interface", mistakes);
        let address = section.required_string("address", mistakes);
        section.finish(mistakes);
        if let Some(text) = &interface {
            match value::interface(text.get_ref()) {
                Ok(name) => {
                    if !nodes.sync_interfaces.insert((node, name.clone())) {
                        mistakes
                            .add(text.span(), format!("interface {name:?} has two sync links of this node"))
                            .remedy("each link needs an interface of its own");
                    }
                    interfaces.push(NamedInterface { node, name, zone: false, span: text.span() });
                }
                Err(problem) => {
                    mistakes.add(text.span(), format!("interface: {problem}"));
                }
            }
        }
        let Some(text) = address else { continue };
        match value::host_address(text.get_ref()) {
            Ok(address) => {
                if !nodes.sync_addresses.insert(address) {
                    mistakes
                        .add(text.span(), format!("sync address {address} is there twice"))
                        .remedy("each end of a link needs an address of its own");
                }
                let interface = interface.map_or(String::new(), |i| (*i.get_ref()).to_owned());
                links.push(SyncLink { interface, address });
            }
            Err(problem) => {
                mistakes.add(text.span(), format!("address: {problem}"));
            }
        }
    }
    links
}

/// See [`Config::node_for`].
pub(super) fn select<'c>(
    config: &'c Config,
    name: Option<&str>,
    hostname: &str,
) -> Result<&'c Node, NodeError> {
    let file = || config.path().display().to_string();
    let known = || config.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
    if let Some(name) = name {
        return config.node_named(name).ok_or_else(|| NodeError::Unknown {
            file: file(),
            name: name.into(),
            known: known(),
        });
    }
    let short = hostname.split('.').next().unwrap_or(hostname);
    config.node_named(hostname).or_else(|| config.node_named(short)).ok_or_else(|| NodeError::NotThisHost {
        file: file(),
        hostname: hostname.into(),
        known: known(),
    })
}

//! Names for numbers, in what people read.

use fwha_proto::NodeId;

use crate::config::{Config, GroupId, ZoneId};

/// The names of a cluster's nodes, zones and groups, and of this node's sync interfaces.
pub struct Names {
    me: NodeId,
    nodes: Vec<String>,
    zones: Vec<String>,
    groups: Vec<String>,
    links: Vec<String>,
}

impl Names {
    /// Those of `config`, on node `me`.
    pub fn new(config: &Config, me: NodeId) -> Self {
        Self {
            me,
            nodes: config.nodes.iter().map(|n| n.name.clone()).collect(),
            zones: config.zones.iter().map(|z| z.name.clone()).collect(),
            groups: config.groups.iter().map(|g| g.name.clone()).collect(),
            links: config
                .nodes
                .iter()
                .filter(|n| n.id == me)
                .flat_map(|n| n.sync.iter().map(|s| s.interface.clone()))
                .collect(),
        }
    }

    /// This node.
    pub fn me(&self) -> &str {
        self.node(self.me)
    }

    /// A node.
    pub fn node(&self, node: NodeId) -> &str {
        let name = usize::from(node).checked_sub(1).and_then(|i| self.nodes.get(i));
        name.map_or("an unknown node", String::as_str)
    }

    /// A zone; "node" is this node itself.
    pub fn zone(&self, zone: ZoneId) -> &str {
        let name = usize::from(zone).checked_sub(1).map(|i| self.zones.get(i));
        name.map_or("node", |name| name.map_or("?", String::as_str))
    }

    /// A sync link: this node's interface.
    pub fn link(&self, link: u8) -> &str {
        self.links.get(usize::from(link)).map_or("?", String::as_str)
    }

    /// A group.
    pub fn group(&self, group: GroupId) -> &str {
        self.groups.get(usize::from(group)).map_or("?", String::as_str)
    }
}

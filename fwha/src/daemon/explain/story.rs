//! The steps of a packet's way, in words.

use std::net::IpAddr;

use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowKey, NextHop, proto};
use fwha_common::rule::{Action, Decision, Interface, Tag, ZONE_NODE};
use fwha_proto::replication::Policy as _;

use super::frame::Tuple;
use super::{Known, Place, octets};
use crate::api::{PacketExplanation, PacketStep};
use crate::config::Config;
use crate::daemon::server::{Problem, Server};
use crate::dataplane::AttachKind;
use crate::dataplane::dry_run::{Exit, Outcome};
use crate::netlink::Link;
use crate::netlink::lookup::Way;
use crate::policy::Policy;

/// A packet, what the program says of it, and what there is to tell about its way.
pub(super) struct Story<'a> {
    pub(super) server: &'a Server,
    pub(super) config: &'a Config,
    pub(super) tuple: Tuple,
    pub(super) place: &'a Place,
    pub(super) places: &'a [Place],
    pub(super) links: &'a [Link],
    pub(super) known: Option<Known>,
    pub(super) outcome: Outcome,
    /// The rule that decided: its place, and what it says.
    pub(super) decision: Option<(usize, Decision)>,
    pub(super) way: Way,
    pub(super) explained: PacketExplanation,
    /// A step has decided; what would follow is not told.
    pub(super) ended: bool,
}

impl<'a> Story<'a> {
    /// Tells the steps and how it ends.
    pub(super) fn tell(mut self) -> Result<PacketExplanation, Problem> {
        self.steps()?;
        let (verdict, reason) = match self.outcome.exit {
            Exit::Dropped(DropReason::Reject) => ("rejected", Some(DropReason::Reject)),
            Exit::Dropped(reason) => ("dropped", Some(reason)),
            Exit::SynAnswered => ("answered", None),
            Exit::Forwarded => ("forwarded", None),
            // The stack forwards what it takes more to forward.
            Exit::Passed if self.outcome.flow.is_some() => ("forwarded", None),
            Exit::Passed => ("passed", None),
        };
        if let Some(reason) = reason {
            // Should no step above have it.
            self.step("forward", &[reason], "");
        }
        let rule = match (&self.decision, &self.known) {
            (Some((_, decision)), _) => self.config.rule_name(decision.name_hash),
            (None, Some(known)) => self.config.rule_name(known.flow.rule_hash),
            (None, None) => None,
        };
        self.explained.rule = rule.map(str::to_owned);
        self.explained.verdict = verdict.to_owned();
        self.explained.reason = reason.map(|reason| reason.as_str().to_owned());
        Ok(self.explained)
    }

    fn push(&mut self, step: &str, result: &str, text: impl Into<String>) {
        if !self.ended {
            let (step, result, text) = (step.into(), result.into(), text.into());
            self.explained.steps.push(PacketStep { step, result, text });
        }
    }

    /// The last step.
    fn end(&mut self, step: &str, result: &str, text: impl Into<String>) {
        self.push(step, result, text);
        self.ended = true;
    }

    /// A step at which a packet may be dropped for these reasons.
    fn step(&mut self, step: &str, reasons: &[DropReason], text: impl Into<String>) {
        let text = text.into();
        match self.reason().filter(|reason| reasons.contains(reason)) {
            Some(reason) if text.is_empty() => self.end(step, "drop", sentence(reason)),
            Some(reason) => self.end(step, "drop", format!("{text}; {}", sentence(reason))),
            None => self.push(step, "pass", text),
        }
    }

    /// The reason for which it is dropped, if it is.
    fn reason(&self) -> Option<DropReason> {
        match self.outcome.exit {
            Exit::Dropped(reason) => Some(reason),
            _ => None,
        }
    }

    fn steps(&mut self) -> Result<(), Problem> {
        use DropReason::{
            ExtensionHeader, Fragment, Icmp, Malformed, NoSettings, NoZone, NotSyn, OtherStation, SctpState,
            SctpTag, TcpFlags, Truncated, UnknownEtherType, Vlan,
        };
        let tags: Vec<String> =
            self.place.tags.iter().filter(|t| **t != Tag::NONE).map(|t| t.vlan().to_string()).collect();
        let tags = if tags.is_empty() {
            String::new()
        } else {
            format!(", tagged {} on {}", tags.join("."), self.link(self.place.trunk))
        };
        let bad =
            [NoSettings, Vlan, UnknownEtherType, Truncated, Malformed, ExtensionHeader, TcpFlags, NoZone];
        self.step("arrival", &bad, format!("by {}{tags}, zone {}", self.place.name, self.explained.zone_in));
        let Outcome { exit, rule, flow, node_flow } = self.outcome;
        if exit == Exit::Passed && rule.is_none() && flow.is_none() && node_flow.is_none() {
            self.explained.zone_out = Some(self.zone(ZONE_NODE));
            self.end(
                "forward",
                "pass",
                "a protocol of the node and its links: to the stack, before any rule",
            );
        }
        if self.ended {
            return Ok(());
        }
        match self.known.take() {
            Some(known) => {
                self.known_flow(&known)?;
                self.known = Some(known);
            }
            None => {
                self.step(
                    "flow",
                    &[Fragment, Icmp, NotSyn, OtherStation, SctpState, SctpTag],
                    "of no known flow",
                );
                self.first_packet()?;
            }
        }
        Ok(())
    }

    /// The steps of a packet of a known flow.
    fn known_flow(&mut self, known: &Known) -> Result<(), Problem> {
        use DropReason::{
            Icmp, LeaseExpired, NoRoute, NoRule, NoRuleset, NotOwner, OtherStation, RouteNoZone, SctpState,
            SctpTag, SourceFlows, Spoofed, TableFull, TcpReset, TcpState, TcpWindow, VipNotAccepted,
            WrongZone,
        };
        let Known { flow, reply, of_node, ends_ns } = known;
        let owner = match of_node {
            true => self.server.names.me().to_owned(),
            false => self.active(self.server.bucket_group[usize::from(flow.bucket)]).unwrap_or_default(),
        };
        let now_ns = self.server.clock.now_ns();
        let row = self.server.flow_row(&self.tuple.key().0, flow, &owner, now_ns, *ends_ns);
        let side = if *reply { "its responder" } else { "its originator" };
        let rule =
            if row.rule.is_empty() { "a rule that is gone".into() } else { format!("rule {}", row.rule) };
        let (state, from, to) = (&row.state, &row.zone_in, &row.zone_out);
        self.push("flow", "pass", format!("{state}, from {from} to {to}, by {rule}; this is from {side}"));
        self.explained.flow = Some(row);
        if *of_node {
            let dropped = self.reason().is_some_and(|reason| reason != VipNotAccepted);
            if self.outcome.flow.is_some() || self.outcome.rule.is_some() || dropped {
                let text =
                    "its way does not end at this node any more: it is judged as the first packet of a flow";
                self.push("flow", "pass", text);
                return self.first_packet();
            }
            self.explained.zone_out = Some(self.zone(ZONE_NODE));
            self.step("route", &[VipNotAccepted], "to an address of this node");
            self.end("forward", "pass", "to the stack: the flow is the node's own");
            return Ok(());
        }
        let text = self.ownership(flow.bucket)?;
        self.step("owner", &[NotOwner, LeaseExpired], text);
        let from = flow.zones()[usize::from(*reply)];
        if self.place.interface.zone == from {
            self.step("reverse_path", &[Spoofed, OtherStation], self.reverse_path());
        } else {
            let text = format!("from zone {}, not {}", self.explained.zone_in, self.zone(from));
            self.step("reverse_path", &[WrongZone], text);
        }
        let reasons = [TcpState, TcpWindow, TcpReset, SctpTag, SctpState, Icmp, TableFull, SourceFlows];
        let state = flow.state().as_str();
        match self.reason() {
            Some(reason) if reasons.contains(&reason) => self.step("state", &reasons, state),
            _ => self.push("state", "pass", format!("{state} lets it pass")),
        }
        // What a rule decided on, or found no rule, began a flow.
        if self.outcome.rule.is_some() || matches!(self.reason(), Some(NoRule | NoRuleset)) {
            self.push("flow", "pass", "it begins another in its place, as the first packet of a flow");
            return self.first_packet();
        }
        self.forward(*reply, &[NoRoute, WrongZone, RouteNoZone]);
        Ok(())
    }

    /// The steps of the first packet of a flow, from its source on.
    fn first_packet(&mut self) -> Result<(), Problem> {
        use DropReason::{
            Land, LeaseExpired, Martian, NoRoute, NoRule, NoRuleset, NotOwner, Reject, RouteNoZone,
            Rule as ByRule, SourceFlows, SourceRate, Spoofed, SynCookie, TableFull, VipNotAccepted,
        };
        let source = self.tuple.src;
        match self.reason() {
            Some(Martian | Land) => self.step("source", &[Martian, Land], source.to_string()),
            _ => self.push("source", "pass", format!("{source} may be a host's")),
        }
        if self.reason() == Some(SynCookie) {
            self.step("syn_proxy", &[SynCookie], "");
        }
        let Outcome { exit, rule, flow, node_flow } = self.outcome;
        let leaves = self.leaves();
        let many = self.tuple.for_many();
        let local = flow.is_none() && (many || node_flow.is_some() || leaves.is_none());
        let text = match (&self.way, leaves) {
            _ if many => "to many: for this node only".to_owned(),
            (_, Some((place, Some(via)))) if !local => {
                format!("by {}, zone {}, via {via}", place.name, self.zone(place.interface.zone))
            }
            (_, Some((place, None))) if !local => {
                format!(
                    "by {}, zone {}, to the destination itself",
                    place.name,
                    self.zone(place.interface.zone)
                )
            }
            (Way::Out(index, _), None) => format!("by {}, which is in no zone", self.link(*index)),
            (Way::Nowhere(why), _) if self.reason() == Some(NoRoute) => (*why).to_owned(),
            (Way::Nowhere(why), _) => format!("{why}: judged as one to this node itself"),
            _ => "to this node itself".to_owned(),
        };
        self.step("route", &[NoRoute, RouteNoZone, VipNotAccepted], text);
        if self.ended {
            return Ok(());
        }
        let to = match (flow, leaves) {
            (Some(flow), _) => flow.zones()[1],
            (None, Some((place, _))) if !local => place.interface.zone,
            _ => ZONE_NODE,
        };
        self.explained.zone_out = Some(self.zone(to));
        if local {
            if exit == Exit::Passed && rule.is_none() {
                self.end(
                    "forward",
                    "pass",
                    "to the stack: a flow of the node itself has these addresses and ports",
                );
                return Ok(());
            }
            self.push("owner", "pass", "not asked: every node answers for itself");
        } else {
            let hash = self.tuple.key().0.hash(&self.server.maps.settings()?.bucket_key);
            let text = self.ownership(self.server.maps.bucket([self.place.interface.zone, to], hash)?)?;
            self.step("owner", &[NotOwner, LeaseExpired], text);
        }
        let mut text = format!("from {} to {}", self.explained.zone_in, self.zone(to));
        match &self.decision {
            Some((place, said)) => {
                text.push_str(&self.rule_text(*place, said, local));
                if said.action == Action::Reject as u8 {
                    self.push("rules", "reject", text);
                } else {
                    self.step("rules", &[ByRule], text);
                }
            }
            None => self.step("rules", &[NoRuleset, NoRule], text),
        }
        self.step("reverse_path", &[Spoofed], self.reverse_path());
        if self.reason() == Some(Reject) {
            // The rule has, above.
            self.ended = true;
        }
        if exit == Exit::SynAnswered {
            let text = "SYN+ACK with a cookie; the connection begins when its acknowledgement comes";
            self.end("syn_proxy", "answer", text);
        }
        let text = self.limits()?;
        self.step("limits", &[SourceRate, SourceFlows], text);
        if local {
            self.end("forward", "pass", "to the stack");
        }
        self.forward(false, &[TableFull]);
        Ok(())
    }

    /// The last step of what is sent on, in this direction of its flow.
    fn forward(&mut self, reply: bool, reasons: &[DropReason]) {
        let Some(flow) = self.outcome.flow.filter(|_| self.reason().is_none() && !self.ended) else {
            return self.step("forward", reasons, "");
        };
        let way = &flow.ways[usize::from(reply)];
        let index = NextHop::ifindex(way.out);
        let name = self.link(index);
        self.explained.zone_out = Some(self.zone(flow.zones()[usize::from(!reply)]));
        self.explained.interface_out = (index != 0).then(|| name.clone());
        self.explained.next_hop = self.via(index);
        let text = match self.outcome.exit {
            Exit::Passed if index == 0 => "the stack forwards it".to_owned(),
            Exit::Passed if way.generation == 0 => {
                format!(
                    "by {name}: the stack asks for the neighbour's MAC, which is not known, and forwards it"
                )
            }
            Exit::Passed => format!("by {name}: the stack forwards it"),
            // The dry run's program, which is that of tc, sends by any interface.
            _ if self.comes_by_xdp() && NextHop::no_xmit(way.out) => {
                format!("by {name}: the stack forwards it, for that sends nothing of XDP")
            }
            _ => format!("by {name} to {}", way.dst_mac.map(|byte| format!("{byte:02x}")).join(":")),
        };
        self.end("forward", "pass", text);
    }

    /// Whether the packet is judged by XDP.
    fn comes_by_xdp(&self) -> bool {
        let device = self.place.interface.device;
        let attached = self.server.attached.load();
        attached.interfaces.iter().any(|a| a.ifindex == device && a.kind == AttachKind::Xdp)
    }

    fn zone(&self, zone: u8) -> String {
        self.server.names.zone(zone).to_owned()
    }

    fn link(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("interface {index}"), |link| link.name.clone())
    }

    /// Where the first packet of a flow leaves, if that is in a zone, and the router that it is handed to.
    fn leaves(&self) -> Option<(&'a Place, Option<IpAddr>)> {
        let index = match (self.outcome.flow, &self.way) {
            (Some(flow), _) if flow.ways[0].out != 0 => NextHop::ifindex(flow.ways[0].out),
            (_, Way::Out(index, _)) => *index,
            _ => return None,
        };
        let place = self.places.iter().find(|place| place.interface.device == index)?;
        Some((place, self.via(index)))
    }

    /// The router beyond an interface, if it leaves there and there is one.
    fn via(&self, index: u32) -> Option<IpAddr> {
        match self.way {
            Way::Out(out, via) if out == index => via,
            _ => None,
        }
    }

    /// The node that is known to be Active in a group.
    fn active(&self, group: u8) -> Option<String> {
        let snapshot = self.server.election_status.load();
        let group = snapshot.status.groups.iter().find(|g| g.group == group)?;
        group.active.first().map(|node| self.server.names.node(*node).to_owned())
    }

    fn ownership(&mut self, bucket: u8) -> Result<String, Problem> {
        let id = self.server.bucket_group[usize::from(bucket)];
        let name = self.server.names.group(id).to_owned();
        let held = self.server.maps.group(u32::from(id))?;
        let text = match self.active(id) {
            _ if held.owned(self.server.clock.now_ns()) => "active here".to_owned(),
            _ if held.forwards(self.server.clock.now_ns()) => "handed over a moment ago".to_owned(),
            Some(node) if node == self.server.names.me() => "active here, and its lease is over".to_owned(),
            Some(node) => format!("active on {node}, to which its neighbours send"),
            None => "active on no node that is known".to_owned(),
        };
        self.explained.group = Some(name.clone());
        Ok(format!("group {name} (bucket {bucket}), {text}"))
    }

    fn reverse_path(&self) -> String {
        if self.place.interface.flags & Interface::LOOSE != 0 {
            return "not looked at (anti-spoofing = false)".to_owned();
        }
        match self.reason() {
            Some(DropReason::Spoofed) => {
                format!("answers to {} do not leave by {}", self.tuple.src, self.place.name)
            }
            _ => format!("answers to {} leave by {}", self.tuple.src, self.place.name),
        }
    }

    /// What a rule says.
    fn rule_text(&self, place: usize, said: &Decision, local: bool) -> String {
        let name = self.config.rule_name(said.name_hash).unwrap_or("?");
        let action = match said.action {
            a if a == Action::Accept as u8 => "accept",
            a if a == Action::Reject as u8 => "reject",
            _ => "drop",
        };
        let mut text = format!(": rule {name} (number {}), {action}", place + 1);
        if said.action != Action::Accept as u8 || local {
            return text;
        }
        if self.tuple.proto == proto::TCP {
            match said.mss {
                0 => {}
                Flow::MSS_PMTU => text.push_str(", MSS clamped to what the routes take"),
                mss => text.push_str(&format!(", MSS clamped to {mss}")),
            }
            if said.syn_proxy() {
                text.push_str(", by the SYN proxy");
            }
        }
        let flow = Flow { rule_hash: said.name_hash, ..Flow::default() };
        let chosen =
            Policy::of(self.config).is_none_or(|policy| policy.replicates(&self.tuple.key().0, &flow));
        if !self.config.replication.enabled || !chosen {
            text.push_str(", not replicated");
        }
        text
    }

    fn limits(&self) -> Result<String, Problem> {
        let limits = self.server.maps.limits()?;
        let mut parts = Vec::new();
        if let Some(rate) = 1_000_000_000u64.checked_div(limits.interval_ns) {
            parts.push(format!("{rate} new flows a second"));
        }
        if limits.flows != 0 {
            let has = self.server.maps.source_flows(&FlowKey::address(octets(self.tuple.src)))?;
            parts.push(format!("{} flows (it has {has})", limits.flows));
        }
        Ok(match parts.is_empty() {
            true => "none".to_owned(),
            false => format!("a source may have {}; as of this moment", parts.join(" and ")),
        })
    }
}

/// A reason, by its name and in words.
fn sentence(reason: DropReason) -> String {
    format!("{}: {}", reason.as_str(), reason.explain().trim_end_matches('.'))
}

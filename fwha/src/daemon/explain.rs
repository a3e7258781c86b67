//! `GET /v1/explain/packet`: what would become of a packet, and by which rule.
//!
//! What becomes of it says the ingress program itself ([`crate::dataplane::dry_run`]). The steps are told from the same tables,
//! in the order in which the program takes them (`fwha-ebpf/src/engine.rs`), up to the one that decided.

mod frame;
mod story;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Json, Query, State};
use axum::http::StatusCode;
use fwha_common::flow::{Flow, FlowKey, FlowState, octets, proto};
use fwha_common::rule::{Interface, Tag};

use self::frame::{TTL, Tuple};
use self::story::Story;
use super::server::{Problem, Server, protocol};
use super::sweeper::expiry_ns;
use crate::api::{self, PacketExplanation};
use crate::dataplane::dry_run::Packet;
use crate::netlink::lookup::{self, Question, Way};
use crate::netlink::{Link, NetlinkError, links};

/// The source port of a packet for which none is given: the first dynamic one (RFC 6335, 6).
const SOURCE_PORT: u16 = 49_152;

fn bad(problem: impl Into<String>) -> Problem {
    Problem(StatusCode::BAD_REQUEST, problem.into())
}

impl From<NetlinkError> for Problem {
    fn from(error: NetlinkError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

pub(super) async fn packet(
    State(server): State<Arc<Server>>,
    query: Result<Query<api::PacketQuery>, QueryRejection>,
) -> Result<Json<PacketExplanation>, Problem> {
    let Query(query) = query?;
    let mut assumed =
        vec![format!("a small packet, not a fragment, with TTL {TTL}, to the interface's own MAC")];
    let mut tuple = read(&query, &mut assumed)?;
    let flags = query.tcp_flags.as_deref().map(frame::flags).transpose().map_err(bad)?;
    if flags.is_some() && tuple.proto != proto::TCP {
        return Err(bad("TCP flags are for tcp"));
    }
    let asked = Arc::clone(&server);
    let (places, links) = tokio::task::spawn_blocking(move || places(&asked)).await??;
    let place = place(&places, &tuple, query.interface.as_deref(), &server, &mut assumed).await?;
    let mut known = server.known(&tuple, flags)?;
    if known.is_none() && matches!(tuple.proto, proto::ICMP | proto::ICMPV6) {
        // Not a question that is known, but maybe the answer to one.
        let answer = Tuple { sport: 0, dport: tuple.sport, ..tuple };
        known = server.known(&answer, flags)?;
        tuple = if known.is_some() { answer } else { tuple };
    }
    let side = known.as_ref().map(|known| (&known.flow, known.reply));
    let content = tuple.content(side, flags);
    if tuple.proto == proto::TCP && known.is_some() {
        let next =
            "the next segment of its sender: the sequence numbers and the window of a real one are not known";
        assumed.push(next.into());
    }
    let packet = Packet {
        ifindex: place.trunk,
        frame: tuple.frame(&content.bytes, place.interface.mac, place.tags),
        key: tuple.key().0,
    };
    let judging = Arc::clone(&server);
    let outcome = tokio::task::spawn_blocking(move || judging.dry_run.judge(&packet)).await??;
    let way = way(&tuple, place.interface.device).await?;
    let what = if content.what.is_empty() { String::new() } else { format!(" {}", content.what) };
    let text = format!("{}{what} {} > {}", protocol(tuple.proto), tuple.end(true), tuple.end(false));
    let config = server.config();
    let decision = outcome.rule.and_then(|index| {
        let decisions = server.maps.decisions().ok()?;
        decisions.into_iter().enumerate().find(|(_, decision)| decision.index == index)
    });
    let explained = PacketExplanation {
        node: server.names.me().to_owned(),
        packet: text,
        interface_in: place.name.clone(),
        zone_in: server.names.zone(place.interface.zone).to_owned(),
        assumed,
        ..PacketExplanation::default()
    };
    let story = Story {
        server: &server,
        config: &config,
        tuple,
        place,
        places: &places,
        links: &links,
        known,
        outcome,
        decision,
        way,
        explained,
        ended: false,
    };
    Ok(Json(story.tell()?))
}

impl Tuple {
    /// The key of its flow, and whether its source is end B of that.
    fn key(&self) -> (FlowKey, bool) {
        FlowKey::new(octets(self.src), octets(self.dst), self.sport, self.dport, self.proto)
    }

    /// Its source (`true`) or its destination, in words.
    fn end(&self, source: bool) -> String {
        let (address, port) = if source { (self.src, self.sport) } else { (self.dst, self.dport) };
        match address {
            _ if !proto::has_ports(self.proto) => address.to_string(),
            IpAddr::V4(v4) => format!("{v4}:{port}"),
            IpAddr::V6(v6) => format!("[{v6}]:{port}"),
        }
    }
}

fn read(query: &api::PacketQuery, assumed: &mut Vec<String>) -> Result<Tuple, Problem> {
    let &api::PacketQuery { ref proto, src, sport, dst, dport, .. } = query;
    if src.is_ipv4() != dst.is_ipv4() {
        return Err(bad("source and destination are of two families"));
    }
    let number = proto::from_name(&proto.to_ascii_lowercase()).ok_or_else(|| {
        bad(format!("there is no protocol {proto:?}: write tcp, udp, icmp, sctp or a number"))
    })?;
    let number = if number == proto::ICMP && src.is_ipv6() { proto::ICMPV6 } else { number };
    let (sport, dport) = match number {
        _ if proto::has_ports(number) => {
            let dport = dport
                .ok_or_else(|| bad(format!("{proto} has ports: write the destination's behind a colon")))?;
            if sport.is_none() {
                assumed.push(format!("from port {SOURCE_PORT}"));
            }
            (sport.unwrap_or(SOURCE_PORT), dport)
        }
        proto::ICMP | proto::ICMPV6 => (sport.or(dport).unwrap_or(0), 0),
        _ if sport.or(dport).is_some() => return Err(bad(format!("{proto} has no ports"))),
        _ => (0, 0),
    };
    Ok(Tuple { proto: number, src, dst, sport, dport })
}

/// Where packets of a zone come in.
struct Place {
    /// The interface, or VLANs on one, as the config names it.
    name: String,
    /// What the programs know of it.
    interface: Interface,
    /// The interface at which they are judged.
    trunk: u32,
    /// The tags that they carry there.
    tags: [Tag; 2],
}

/// All places where packets of a zone come in, and all interfaces.
fn places(server: &Server) -> Result<(Vec<Place>, Vec<Link>), Problem> {
    let links = links::links()?;
    let all = server.maps.interfaces()?;
    let of_zone = |i: &Interface| i.zone != Interface::NO_ZONE && i.flags & Interface::ALONE == 0;
    let places = all.iter().filter(|(key, interface)| key.vlan == 0 && of_zone(interface)).filter_map(
        |(key, interface)| {
            let mut name = links.iter().find(|link| link.index == key.ifindex)?.name.clone();
            if interface.flags & Interface::BARE != 0 {
                for tag in interface.tags.into_iter().filter(|tag| *tag != Tag::NONE) {
                    name = format!("{name}.{}", tag.vlan());
                }
            }
            // Judged where the tags are still on, if that is so.
            let tagged = all.iter().find(|(k, i)| k.vlan != 0 && of_zone(i) && i.device == interface.device);
            let (trunk, tags) = tagged.map_or((key.ifindex, [Tag::NONE; 2]), |(k, i)| (k.ifindex, i.tags));
            Some(Place { name, interface: *interface, trunk, tags })
        },
    );
    Ok((places.collect(), links))
}

/// The place that a packet comes in by: the one of this name, or of this zone; without one, where answers to its source leave.
async fn place<'a>(
    places: &'a [Place],
    tuple: &Tuple,
    wanted: Option<&str>,
    server: &Server,
    assumed: &mut Vec<String>,
) -> Result<&'a Place, Problem> {
    if let Some(found) = wanted.and_then(|name| places.iter().find(|place| place.name == name)) {
        return Ok(found);
    }
    let mut candidates: Vec<&Place> = places.iter().collect();
    if let Some(name) = wanted {
        candidates.retain(|place| server.names.zone(place.interface.zone) == name);
        match candidates[..] {
            [] => {
                let known: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
                let problem = format!(
                    "{name:?} is no interface of a zone, and no zone with one here: the interfaces are {}",
                    known.join(", ")
                );
                return Err(bad(problem));
            }
            [one] => return Ok(one),
            _ => {}
        }
    }
    let back = Question { to: tuple.src, from: None, proto: tuple.proto, ports: [tuple.dport, tuple.sport] };
    let back = lookup::way(back).await?;
    let found = match back {
        Way::Out(index, _) => candidates.iter().find(|place| place.interface.device == index),
        _ => None,
    };
    let names: Vec<&str> = candidates.iter().map(|place| place.name.as_str()).collect();
    let found = found.ok_or_else(|| {
        bad(format!(
            "the way back to {} does not tell by which interface it comes in: say --in, with one of {}",
            tuple.src,
            names.join(", ")
        ))
    })?;
    assumed.push(format!("in by {}, where answers to {} leave", found.name, tuple.src));
    Ok(found)
}

/// Which way it goes.
async fn way(tuple: &Tuple, device: u32) -> Result<Way, Problem> {
    let ports = [tuple.sport, tuple.dport];
    let asked = Question { to: tuple.dst, from: Some((tuple.src, device)), proto: tuple.proto, ports };
    match lookup::way(asked).await? {
        // For one that comes in the kernel looks at the source, too, which the programs do by themselves, and later.
        Way::Nowhere(_) => Ok(lookup::way(Question { from: None, ..asked }).await?),
        way => Ok(way),
    }
}

/// A flow that is there already.
struct Known {
    flow: Flow,
    /// Whether the packet is from its responder.
    reply: bool,
    /// It is one of the node itself.
    of_node: bool,
    ends_ns: u64,
}

impl Server {
    /// The live flow that a packet belongs to, in the order in which the program looks for it.
    fn known(&self, tuple: &Tuple, flags: Option<u8>) -> Result<Option<Known>, Problem> {
        let (key, src_is_b) = tuple.key();
        let (timeouts, now_ns) = (self.maps.timeouts()?, self.clock.now_ns());
        let live = |flow: Option<Flow>, since_ns, of_node| {
            let flow = flow?;
            let ends_ns = expiry_ns(&key, &flow, since_ns, &timeouts);
            let reply = src_is_b != flow.originator_is_b();
            (ends_ns > now_ns).then_some(Known { flow, reply, of_node, ends_ns })
        };
        let main = self.maps.flows().lookup(&key)?;
        let since_ns = match &main {
            Some(flow) => self.maps.group(u32::from(self.bucket_group[usize::from(flow.bucket)]))?.since_ns,
            None => 0,
        };
        if let Some(known) = live(main, since_ns, false) {
            return Ok(Some(known));
        }
        // One that was refused or given up before it was answered is gone.
        let young = self.maps.embryonic_flow(&key)?.filter(|flow| flow.state() != FlowState::Close);
        if let Some(known) = live(young, 0, false) {
            return Ok(Some(known));
        }
        // A SYN to the node begins a flow of its own, whatever was before.
        let begins = tuple.proto == proto::TCP && flags.is_some_and(frame::begins);
        let of_node = self.maps.node_flow(&key)?.filter(|flow| !flow.is_ended());
        Ok(live(of_node, 0, true).filter(|_| !begins))
    }
}

//! The packet's way: what is asked of it, and in which order.

use std::collections::BTreeMap;

use super::environment::{Environment, Question, Target, Way, Zone};
use super::flow::{Direction, End, Flow, Key, STREAM_AFTER_NS, State, Tracking, Tuple, protocol};
use super::fragment::{First, Fragments};
use super::icmp::{self, About};
use super::packet::{self, Content, Frame, Packet, Transport};
use super::sctp::{self, Association};
use super::tcp::{self, Connection, Kind, Seq};
use super::verdict::{Reason, Verdict};

/// The tables of flows. An element whose time is over stays where it is, counts for the limit, and is not found.
pub type Table = BTreeMap<Key, Flow>;

/// The data plane of one node.
#[derive(Clone, Debug)]
pub struct Model {
    /// What it knows besides flows.
    pub environment: Environment,
    /// Flows that were answered.
    pub main: Table,
    /// New flows without an answer.
    pub embryonic: Table,
    /// Flows of the node itself.
    pub node: Table,
    fragments: Fragments,
    flows_begun: u64,
}

/// A packet and where it came in.
struct Arrival<'a> {
    port: usize,
    zone: Zone,
    frame: &'a Frame,
    packet: &'a Packet,
}

/// How a packet that goes on leaves: by the programs or by the stack.
type Goes = Result<Verdict, Reason>;

impl Model {
    /// A node without flows.
    pub fn new(environment: Environment) -> Self {
        Self {
            environment,
            main: Table::new(),
            embryonic: Table::new(),
            node: Table::new(),
            fragments: Fragments::default(),
            flows_begun: 0,
        }
    }

    /// Forgets all flows.
    pub fn forget_flows(&mut self) {
        for table in [&mut self.main, &mut self.embryonic, &mut self.node] {
            table.clear();
        }
    }

    /// Forgets all datagrams in pieces.
    pub fn forget_fragments(&mut self) {
        self.fragments = Fragments::default();
    }

    /// What becomes of a frame that comes in by `port`.
    pub fn judge(&mut self, port: usize, frame: &[u8]) -> Verdict {
        self.try_judge(port, frame).unwrap_or_else(Verdict::Drop)
    }

    /// Makes all flows `ns` older.
    pub fn age(&mut self, ns: u64) {
        for table in [&mut self.main, &mut self.embryonic, &mut self.node] {
            for flow in table.values_mut() {
                flow.created_ns = flow.created_ns.saturating_sub(ns);
                flow.seen_ns = flow.seen_ns.map(|seen| seen.map(|seen| seen.saturating_sub(ns)));
            }
        }
    }

    fn try_judge(&mut self, port: usize, frame: &[u8]) -> Goes {
        let frame = &Frame::parse(frame)?;
        let packet = match &frame.content {
            _ if frame.is_own_protocol() => return Ok(Verdict::Pass),
            Content::Ip(packet) => packet,
            Content::Arp | Content::Other => unreachable!("own protocols"),
        };
        let zone = self.environment.ports[port].zone.ok_or(Reason::NoZone)?;
        let arrival = &Arrival { port, zone, frame, packet };
        // A connection has two ends (RFC 1122, 4.2.3.10).
        if matches!(packet.transport, Transport::Tcp(..)) && packet::is_group(frame.destination) {
            return Err(Reason::OtherStation);
        }
        let tuple = match &packet.transport {
            Transport::Error(about) => {
                let goes = self.error(arrival, about.as_ref())?;
                if let Some(piece) = &packet.piece {
                    // It has no flow, so its other pieces find none.
                    let end = |address| End { address, port: 0 };
                    let tuple = Tuple::new(end(packet.source), end(packet.destination), packet.protocol);
                    let first = First { tuple, origin: None };
                    self.fragments.begin(packet, piece, first, self.environment.now_ns);
                }
                return Ok(goes);
            }
            Transport::OtherIcmp(_) => return Err(Reason::Icmp),
            Transport::Rest => {
                let piece = packet.piece.as_ref().expect("a later piece");
                let first = self.fragments.follow(packet, piece, self.environment.now_ns)?;
                let end = first.origin.map(|origin| origin.plus((piece.offset + piece.length) as u32));
                return self.later_piece(arrival, first.tuple, end);
            }
            Transport::Tcp(tuple, _)
            | Transport::Sctp(tuple, _)
            | Transport::Query(tuple, _)
            | Transport::Plain(tuple, _) => *tuple,
        };
        let goes = self.whole(arrival, tuple)?;
        if let Some(piece) = &packet.piece {
            let origin = match &packet.transport {
                Transport::Tcp(_, segment) => Some(segment.origin),
                _ => None,
            };
            self.fragments.begin(packet, piece, First { tuple, origin }, self.environment.now_ns);
        }
        Ok(goes)
    }

    /// A packet with a transport header.
    fn whole(&mut self, arrival: &Arrival<'_>, tuple: Tuple) -> Goes {
        match self.find(&tuple, Some(&arrival.packet.transport)) {
            Some((Place::Main, flow)) => self.main_flow(arrival, tuple, flow.clone()),
            Some((Place::Embryonic, flow)) => self.embryonic_flow(arrival, tuple, flow.clone()),
            Some((Place::Node, flow)) => self.node_flow(arrival, tuple, flow.clone()),
            None => {
                let (verdict, flow) = self.first_packet(arrival, tuple)?;
                match flow {
                    Some(flow) if flow.zones[1].is_some() => self.embryonic.insert(tuple.key, flow),
                    Some(flow) => self.node.insert(tuple.key, flow),
                    None => None,
                };
                Ok(verdict)
            }
        }
    }

    /// The flow of a packet. Beside a flow that was answered another may have begun: what answers this one is its own,
    /// and if the old one is over, all is.
    fn find(&self, tuple: &Tuple, transport: Option<&Transport>) -> Option<(Place, &Flow)> {
        let main = self.living(&self.main, &tuple.key);
        let embryonic = self.living(&self.embryonic, &tuple.key);
        let node = self.living(&self.node, &tuple.key);
        let begins_beside = main.zip(embryonic).is_some_and(|(main, embryonic)| {
            main.is_over() || transport.is_some_and(|transport| is_answer(embryonic, tuple, transport))
        });
        // A SYN is of the node only if it goes there.
        let begins = matches!(transport, Some(Transport::Tcp(_, segment)) if segment.kind == Kind::Syn);
        let node = node.filter(|_| !begins);
        let main = main.filter(|_| !begins_beside).map(|flow| (Place::Main, flow));
        let embryonic = embryonic.map(|flow| (Place::Embryonic, flow));
        main.or(embryonic).or(node.map(|flow| (Place::Node, flow)))
    }

    /// A packet of a flow that was answered.
    fn main_flow(&mut self, arrival: &Arrival<'_>, tuple: Tuple, mut flow: Flow) -> Goes {
        let direction = flow.direction(&tuple);
        self.belongs(arrival, &tuple.key, &flow, direction)?;
        let goes = self.leave(arrival, &flow, direction)?;

        match self.track(arrival.packet, &flow, direction)? {
            Tracked::Nothing => Ok(goes),
            Tracked::Noted(tracking) => {
                flow.tracking = tracking;
                self.main.insert(tuple.key, flow);
                Ok(goes)
            }
            Tracked::As(tracking) => {
                flow.tracking = tracking;
                self.count(arrival, &mut flow, direction);
                self.main.insert(tuple.key, flow);
                Ok(goes)
            }
            Tracked::Begins => {
                let (goes, flow) = self.first_packet(arrival, tuple)?;
                if let Some(flow) = flow {
                    self.embryonic.insert(tuple.key, flow);
                }
                Ok(goes)
            }
        }
    }

    /// A packet of a flow that was not answered.
    fn embryonic_flow(&mut self, arrival: &Arrival<'_>, tuple: Tuple, mut flow: Flow) -> Goes {
        let direction = flow.direction(&tuple);
        self.belongs(arrival, &tuple.key, &flow, direction)?;
        let goes = self.leave(arrival, &flow, direction)?;
        let tracking = match self.track(arrival.packet, &flow, direction)? {
            Tracked::Nothing => return Ok(goes),
            Tracked::As(tracking) => tracking,
            Tracked::Noted(tracking) => {
                flow.tracking = tracking;
                self.embryonic.insert(tuple.key, flow);
                return Ok(goes);
            }
            Tracked::Begins => unreachable!("nothing begins on what has just begun"),
        };
        flow.tracking = tracking;
        self.count(arrival, &mut flow, direction);
        let ended = flow.state() == State::Close;
        let answered = match &flow.tracking {
            Tracking::Sctp(_) => direction == Direction::Reply,
            _ => !matches!(flow.state(), State::SynSent | State::Unreplied),
        };
        if ended {
            self.embryonic.remove(&tuple.key);
            // Who refuses a SYN has no other connection between these ends.
            if direction == Direction::Reply
                && let Some(Flow { tracking: Tracking::Tcp(old), .. }) = self.main.get_mut(&tuple.key)
            {
                old.state = State::Close;
            }
        } else if answered {
            if !self.main.contains_key(&tuple.key) && self.main.len() >= self.environment.max_flows {
                if let Some(Flow { tracking: Tracking::Tcp(begun), .. }) = self.embryonic.get_mut(&tuple.key)
                {
                    *begun = begun.unanswered();
                }
                return Err(Reason::TableFull);
            }
            self.main.insert(tuple.key, flow);
            self.embryonic.remove(&tuple.key);
        } else {
            self.embryonic.insert(tuple.key, flow);
        }
        Ok(goes)
    }

    /// A packet of a flow of the node itself: its stack judges.
    fn node_flow(&mut self, arrival: &Arrival<'_>, tuple: Tuple, mut flow: Flow) -> Goes {
        let direction = flow.direction(&tuple);
        self.count(arrival, &mut flow, direction);
        self.node.insert(tuple.key, flow);
        Ok(Verdict::Pass)
    }

    /// A later piece of a datagram; of TCP, which number it reaches.
    fn later_piece(&mut self, arrival: &Arrival<'_>, tuple: Tuple, end: Option<Seq>) -> Goes {
        let (place, flow) = self.find(&tuple, None).ok_or(Reason::Fragment)?;
        let mut flow = flow.clone();
        let table: fn(&mut Self) -> &mut Table = match place {
            Place::Main => |model| &mut model.main,
            Place::Embryonic => |model| &mut model.embryonic,
            Place::Node => return self.node_flow(arrival, tuple, flow),
        };
        let direction = flow.direction(&tuple);
        self.belongs(arrival, &tuple.key, &flow, direction)?;
        let goes = self.leave(arrival, &flow, direction)?;
        if let (Tracking::Tcp(connection), Some(end)) = (&mut flow.tracking, end) {
            connection.carry(direction, end);
        }
        if place == Place::Embryonic && direction == Direction::Reply {
            return Ok(goes);
        }
        self.count(arrival, &mut flow, direction);
        table(self).insert(tuple.key, flow);
        Ok(goes)
    }

    /// An ICMP error.
    fn error(&self, arrival: &Arrival<'_>, about: Option<&About>) -> Goes {
        let about =
            about.filter(|about| about.source == arrival.packet.destination).ok_or(Reason::IcmpUnrelated)?;
        let key = &about.tuple.key;
        match self.find(&about.tuple, None) {
            Some((Place::Main | Place::Embryonic, flow)) => {
                let begun = self.living(&self.embryonic, key);
                let flow =
                    [Some(flow), begun].into_iter().flatten().find(|flow| self.is_under_way(flow, about));
                let flow = flow.ok_or(Reason::IcmpUnrelated)?;
                // It comes from where the packet went.
                let direction = flow.direction(&about.tuple).other();
                self.belongs(arrival, key, flow, direction)?;
                self.leave(arrival, flow, direction)
            }
            Some((Place::Node, _)) => Ok(Verdict::Pass),
            None => Err(Reason::IcmpUnrelated),
        }
    }

    /// A packet of no flow: whether it may begin one, and which. What goes no further begins none.
    fn first_packet(
        &mut self,
        arrival: &Arrival<'_>,
        tuple: Tuple,
    ) -> Result<(Verdict, Option<Flow>), Reason> {
        let Arrival { packet, frame, .. } = *arrival;
        let (tracking, port) = match &packet.transport {
            Transport::Tcp(_, segment) if segment.kind == Kind::Syn => {
                (Tracking::Tcp(Connection::begin(segment)), true)
            }
            Transport::Tcp(..) => return Err(Reason::NotSyn),
            Transport::Sctp(_, packet) => (Tracking::Sctp(Association::begin(packet)?), true),
            Transport::Query(_, query) if icmp::fits(*query, true) => {
                (Tracking::Plain(State::Unreplied), false)
            }
            Transport::Query(..) => return Err(Reason::Icmp),
            Transport::Plain(_, port) => (Tracking::Plain(State::Unreplied), port.is_some()),
            Transport::Error(_) | Transport::OtherIcmp(_) | Transport::Rest => {
                unreachable!("no first packets")
            }
        };
        let end = |high: bool| if high { tuple.key.high } else { tuple.key.low };
        let (source, destination) = (end(tuple.from_high), end(!tuple.from_high));

        self.for_this_station(arrival, true)?;
        let asks_for_address = packet.protocol == protocol::UDP
            && packet.source == std::net::IpAddr::from([0; 4])
            && (source.port, destination.port) == (68, 67)
            && packet::is_broadcast(packet.destination)
            && packet::is_group(frame.destination);
        if !asks_for_address {
            if packet::is_martian(packet.source) {
                return Err(Reason::Martian);
            }
            if source == destination {
                return Err(Reason::Land);
            }
        }

        let way = if packet::is_group(frame.destination) {
            Way::Node
        } else {
            self.environment.way(packet.destination)
        };
        let to = match way {
            Way::Nowhere => return Err(Reason::NoRoute),
            Way::Node => {
                if let Some(flow) = self.living(&self.node, &tuple.key)
                    && matches!(packet.transport, Transport::Tcp(..))
                {
                    let flow = flow.clone();
                    return Ok((self.node_flow(arrival, tuple, flow)?, None));
                }
                Target::Node
            }
            Way::Out { port, .. } => {
                Target::Zone(self.environment.ports[port].zone.ok_or(Reason::RouteNoZone)?)
            }
        };
        if to != Target::Node {
            if packet::is_link_local(packet.source) {
                return Err(Reason::Martian);
            }
            self.environment.owns(&tuple.key)?;
        }
        self.environment.admits(&Question {
            from: arrival.zone,
            to,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            port: port.then_some(destination.port),
        })?;
        if !asks_for_address && !self.environment.reached_by(packet.source, arrival.port) {
            return Err(Reason::Spoofed);
        }

        self.flows_begun += 1;
        let mut flow = Flow {
            identity: self.flows_begun,
            originator_is_high: tuple.from_high,
            zones: [Some(arrival.zone), if let Target::Zone(zone) = to { Some(zone) } else { None }],
            tracking,
            inherited: false,
            created_ns: self.environment.now_ns,
            seen_ns: [None; 2],
            packets: [0; 2],
            bytes: [0; 2],
        };
        self.count(arrival, &mut flow, Direction::Original);
        let (verdict, refused) = match way {
            Way::Node | Way::Nowhere => (Verdict::Pass, false),
            Way::Out { mtu, resolved, .. } => {
                (by_programs_or_stack(packet, mtu, resolved), packet.hops_left <= 1)
            }
        };
        Ok((verdict, (!refused).then_some(flow)))
    }

    /// What a packet does to its flow.
    fn track(&self, packet: &Packet, flow: &Flow, direction: Direction) -> Result<Tracked, Reason> {
        let tracking = match (&flow.tracking, &packet.transport) {
            (Tracking::Tcp(connection), Transport::Tcp(_, segment)) => {
                let unchecked = self.is_unchecked(flow);
                match connection.judge(direction, segment, unchecked)? {
                    tcp::Outcome::Unchanged => return Ok(Tracked::Nothing),
                    tcp::Outcome::Changed(connection) => Tracking::Tcp(connection),
                    tcp::Outcome::Noted(connection) => return Ok(Tracked::Noted(Tracking::Tcp(connection))),
                    tcp::Outcome::Begins => return Ok(Tracked::Begins),
                }
            }
            (Tracking::Sctp(association), Transport::Sctp(_, packet)) => {
                let answered = flow.seen_ns[Direction::Reply as usize].is_some();
                match association.judge(direction, packet, answered)? {
                    sctp::Outcome::Unchanged => return Ok(Tracked::Nothing),
                    sctp::Outcome::Changed(association) => Tracking::Sctp(association),
                    sctp::Outcome::Begins => return Ok(Tracked::Begins),
                }
            }
            (Tracking::Plain(_), Transport::Query(_, query))
                if !icmp::fits(*query, direction == Direction::Original) =>
            {
                return Err(Reason::Icmp);
            }
            (Tracking::Plain(state), _) => Tracking::Plain(match (state, direction) {
                (State::Unreplied, Direction::Reply) => State::Replied,
                (State::Replied, _)
                    if matches!(packet.transport, Transport::Plain(..))
                        && self.environment.now_ns > flow.created_ns.saturating_add(STREAM_AFTER_NS) =>
                {
                    State::Assured
                }
                (state, _) => *state,
            }),
            _ => unreachable!("the protocol is part of the key"),
        };
        Ok(Tracked::As(tracking))
    }

    /// Whether a packet of a flow is this node's to forward, came to this station, and by the right zone.
    fn belongs(
        &self,
        arrival: &Arrival<'_>,
        key: &Key,
        flow: &Flow,
        direction: Direction,
    ) -> Result<(), Reason> {
        self.environment.owns(key)?;
        self.for_this_station(arrival, false)?;
        if flow.zones[direction as usize] != Some(arrival.zone) {
            return Err(Reason::WrongZone);
        }
        Ok(())
    }

    fn for_this_station(&self, arrival: &Arrival<'_>, or_group: bool) -> Result<(), Reason> {
        let mac = arrival.frame.destination;
        if mac == self.environment.ports[arrival.port].mac || or_group && packet::is_group(mac) {
            Ok(())
        } else {
            Err(Reason::OtherStation)
        }
    }

    /// How a packet of a flow leaves.
    fn leave(&self, arrival: &Arrival<'_>, flow: &Flow, direction: Direction) -> Goes {
        match self.environment.way(arrival.packet.destination) {
            Way::Nowhere => Err(Reason::NoRoute),
            Way::Node => Ok(Verdict::Pass),
            Way::Out { port, mtu, resolved } => {
                let zone = self.environment.ports[port].zone.ok_or(Reason::RouteNoZone)?;
                if flow.zones[direction.other() as usize] != Some(zone) {
                    return Err(Reason::WrongZone);
                }
                Ok(by_programs_or_stack(arrival.packet, mtu, resolved))
            }
        }
    }

    /// Whether windows are taken from the packets instead of held against them: those of a flow that another node may
    /// have carried on, until both directions were seen since.
    fn is_unchecked(&self, flow: &Flow) -> bool {
        let since_ns = self.environment.owned_since_ns;
        let seen_here = |seen: &Option<u64>| seen.is_some_and(|at| at >= since_ns);
        // A flow that began here has both directions, or is not in the main table.
        let carried_on = flow.seen_ns.iter().any(|seen| seen.is_some_and(|at| at < since_ns));
        (flow.inherited || carried_on) && !flow.seen_ns.iter().all(seen_here)
    }

    /// Whether the packet that an error is about may be on its way.
    fn is_under_way(&self, flow: &Flow, about: &About) -> bool {
        match (&flow.tracking, about.sequence) {
            (Tracking::Tcp(_), _) if self.is_unchecked(flow) => true,
            (Tracking::Tcp(connection), Some(sequence)) => {
                let direction = flow.direction(&about.tuple);
                connection.is_under_way(direction, sequence, flow.bytes[direction as usize])
            }
            _ => true,
        }
    }

    fn count(&self, arrival: &Arrival<'_>, flow: &mut Flow, direction: Direction) {
        flow.count(direction, arrival.packet.length, self.environment.now_ns);
    }

    fn living<'a>(&self, table: &'a Table, key: &Key) -> Option<&'a Flow> {
        let Environment { now_ns, owned_since_ns, .. } = self.environment;
        table.get(key).filter(|flow| flow.lives(key.protocol, now_ns, owned_since_ns))
    }
}

/// Where a flow is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Main,
    Embryonic,
    Node,
}

/// What tracking says of a packet.
enum Tracked {
    /// It goes on, and the flow knows nothing of it.
    Nothing,
    /// It goes on, and the flow is now this, but neither counts it nor lives longer.
    Noted(Tracking),
    /// The flow is now this.
    As(Tracking),
    /// It may begin the next flow of the same key.
    Begins,
}

/// Whether a packet answers a SYN or INIT.
fn is_answer(flow: &Flow, tuple: &Tuple, transport: &Transport) -> bool {
    flow.direction(tuple) == Direction::Reply
        && match (&flow.tracking, transport) {
            (Tracking::Tcp(begun), Transport::Tcp(_, segment)) => begun.is_answered_by(segment),
            (Tracking::Sctp(begun), Transport::Sctp(_, packet)) => begun.is_answered_by(packet),
            _ => false,
        }
}

/// Whether more than new MACs and one hop less is asked for.
fn by_programs_or_stack(packet: &Packet, mtu: usize, resolved: bool) -> Verdict {
    if packet.hops_left <= 1 || packet.has_options || packet.length > mtu || !resolved {
        Verdict::Pass
    } else {
        Verdict::Forward
    }
}

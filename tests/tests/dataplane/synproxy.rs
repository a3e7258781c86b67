//! The SYN proxy: cookies in answer to SYNs, and the connections that come of them.

use std::net::IpAddr;

use etherparse::{PacketBuilder, SlicedPacket, TcpOptionElement, TransportSlice};
use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowKey, FlowState, octets, proto};
use fwha_common::limit::Limits;
use fwha_common::rule::{Decision, Rule};
use fwha_common::settings::Counter;
use fwha_tests::needs_root;

use crate::packets::{CLIENT, NODE, SERVER, fragment, key as key_v4, tcp};
use crate::rig::{
    CLIENT_MAC, LAN, LAN_MAC, Port, Rig, SERVER_MAC, Sent, Table, Verdict, WAN, WAN_MAC, WAN_MTU, accept,
    at_both_hooks, keys,
};

use Verdict::{Answer, Drop, Forward, Pass};

/// A segment, as a test writes and reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    flags: &'static str,
    seq: u32,
    ack: u32,
    window: u16,
    mss: Option<u16>,
    data: Vec<u8>,
}

const ALL_FLAGS: [(&str, u8); 8] =
    [("S", 2), ("S.", 18), (".", 16), ("P.", 24), ("F.", 17), ("R", 4), ("R.", 20), ("P", 8)];

impl Segment {
    /// The frame, as it comes from its sender's side.
    fn frame(&self, source: [u8; 6], destination: [u8; 6]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(source, destination);
        let ip = match (self.from.0, self.to.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("one family"),
        };
        let mut tcp = ip.tcp(self.from.1, self.to.1, self.seq, self.window);
        for flag in self.flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                '.' => tcp.ack(self.ack),
                'P' => tcp.psh(),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                other => panic!("flag {other}"),
            };
        }
        if let Some(mss) = self.mss {
            let options = [
                TcpOptionElement::MaximumSegmentSize(mss),
                TcpOptionElement::SelectiveAcknowledgementPermitted,
                TcpOptionElement::WindowScale(7),
            ];
            tcp = tcp.options(&options).expect("options");
        }
        let mut frame = Vec::new();
        tcp.write(&mut frame, &self.data).expect("a segment");
        frame
    }

    /// Reads a frame with these MACs, all checksums of which must be right.
    fn read(frame: &[u8], source: [u8; 6], destination: [u8; 6]) -> Self {
        assert_eq!((&frame[..6], &frame[6..12]), (&destination[..], &source[..]));
        let packet = SlicedPacket::from_ethernet(frame).expect("a packet");
        let Some(TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("no TCP") };
        let (from, to, sum) = match packet.net.as_ref().expect("IP") {
            etherparse::NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                assert_eq!(usize::from(header.total_len()), frame.len() - 14);
                let sum = tcp.calc_checksum_ipv4(header.source(), header.destination());
                (header.source_addr().into(), header.destination_addr().into(), sum)
            }
            etherparse::NetSlice::Ipv6(ip) => {
                let header = ip.header();
                assert_eq!(usize::from(header.payload_length()), frame.len() - 54);
                let sum = tcp.calc_checksum_ipv6(header.source(), header.destination());
                (IpAddr::from(header.source_addr()), IpAddr::from(header.destination_addr()), sum)
            }
            _ => panic!("no IP"),
        };
        assert_eq!(tcp.checksum(), sum.expect("a sum"));
        let flags = tcp.slice()[13];
        let options: Vec<_> = tcp.options_iterator().map(|option| option.expect("an option")).collect();
        let mss = match options[..] {
            [] => None,
            [TcpOptionElement::MaximumSegmentSize(mss)] => Some(mss),
            ref other => panic!("{other:?}"),
        };
        Self {
            from: (from, tcp.source_port()),
            to: (to, tcp.destination_port()),
            flags: ALL_FLAGS.iter().find(|(_, bits)| *bits == flags).expect("known flags").0,
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            window: tcp.window_size(),
            mss,
            data: tcp.payload().to_vec(),
        }
    }
}

/// A client that opens a connection to a server.
#[derive(Clone, Copy)]
struct Talk {
    client: (IpAddr, u16),
    server: (IpAddr, u16),
}

/// Where the client begins, and the server.
const CLIENT_ISN: u32 = u32::MAX - 2;
const SERVER_ISN: u32 = 0x7000_0000;

impl Talk {
    fn all() -> [Self; 2] {
        let end = |address: &str, port| (address.parse().expect("an address"), port);
        [
            Self { client: end("192.168.100.100", 40_000), server: end("10.0.0.128", 22) },
            Self { client: end("2001:db8:1::100", 40_000), server: end("2001:db8:2::128", 22) },
        ]
    }

    fn headers(&self) -> u16 {
        if self.client.0.is_ipv4() { 40 } else { 60 }
    }

    fn key(&self) -> FlowKey {
        FlowKey::new(octets(self.client.0), octets(self.server.0), self.client.1, self.server.1, proto::TCP).0
    }

    /// A segment from the client.
    fn says(&self, flags: &'static str, seq: u32, ack: u32, data: &[u8]) -> Segment {
        let (from, to) = (self.client, self.server);
        Segment { from, to, flags, seq, ack, window: 8192, mss: None, data: data.to_vec() }
    }

    /// A segment from the server.
    fn answers(&self, flags: &'static str, seq: u32, ack: u32, data: &[u8]) -> Segment {
        Segment { from: self.server, to: self.client, ..self.says(flags, seq, ack, data) }
    }

    fn syn(&self) -> Segment {
        Segment { mss: Some(1300), ..self.says("S", CLIENT_ISN, 0, &[]) }
    }

    /// Sends the SYN, and gives the cookie that it is answered with.
    fn cookie(&self, rig: &mut Rig) -> u32 {
        let sent = from_client(rig, &self.syn());
        assert_eq!(sent.verdict, Answer);
        Segment::read(&sent.frame, LAN_MAC, CLIENT_MAC).seq
    }

    /// Has the connection made, and gives what the server's numbers are ahead of the client's.
    fn open(&self, rig: &mut Rig) -> u32 {
        let cookie = self.cookie(rig);
        let first = CLIENT_ISN.wrapping_add(1);
        let ack = self.says(".", first, cookie.wrapping_add(1), &[]);
        assert_eq!(from_client(rig, &ack).verdict, Forward);
        assert_eq!(from_server(rig, &self.answers("S.", SERVER_ISN, first, &[])).verdict, Forward);
        assert_eq!(from_client(rig, &ack).verdict, Forward);
        assert_eq!(rig.state(&self.key()), Some(FlowState::Established));
        SERVER_ISN.wrapping_sub(cookie)
    }
}

fn from_client(rig: &mut Rig, segment: &Segment) -> Sent {
    rig.send(Port::Lan, &segment.frame(CLIENT_MAC, LAN_MAC))
}

fn from_server(rig: &mut Rig, segment: &Segment) -> Sent {
    rig.send(Port::Wan, &segment.frame(SERVER_MAC, WAN_MAC))
}

fn to_server(sent: &Sent) -> Segment {
    Segment::read(&sent.frame, WAN_MAC, SERVER_MAC)
}

fn to_client(sent: &Sent) -> Segment {
    Segment::read(&sent.frame, LAN_MAC, CLIENT_MAC)
}

fn proxied() -> Rule {
    let mut rule = Rule { from: LAN, to: WAN, ..accept("proxied") };
    rule.decision.flags = Decision::SYN_PROXY;
    rule
}

/// The same without the SYN proxy.
fn admitted() -> Rule {
    Rule { from: LAN, to: WAN, ..accept("proxied") }
}

/// Runs `test` with the proxy on, for each family at each hook.
fn behind_the_proxy(test: fn(&mut Rig, Talk)) {
    at_both_hooks(move |rig| {
        for talk in Talk::all() {
            rig.load_rules(&[proxied()]);
            rig.clear_flows();
            test(rig, talk);
        }
    });
}

fn flow_keys(table: &dyn Table) -> Vec<FlowKey> {
    table.flows().into_iter().map(|(key, _)| key).collect()
}

/// Nothing is in any table.
fn assert_no_trace(rig: &Rig) {
    let tables: [&dyn Table; 4] = [&rig.flows, &rig.embryonic, &rig.node_flows, &rig.node_guests];
    for table in tables {
        assert_eq!(flow_keys(table), []);
    }
    assert_eq!(keys(&rig.sources), [[0; 4]; 0]);
}

#[test]
fn a_connection_is_opened_for_a_cookie_and_numbers_are_translated() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let first = CLIENT_ISN.wrapping_add(1);
        let sent = from_client(rig, &talk.syn());
        assert_eq!(sent.verdict, Answer);
        let answer = to_client(&sent);
        let cookie = answer.seq;
        let mss = Some(WAN_MTU as u16 - talk.headers());
        assert_eq!(answer, Segment { window: 0, mss, ..talk.answers("S.", cookie, first, &[]) });
        assert_no_trace(rig);

        let proxied = rig.counter(Counter::SynProxied);
        let ack = talk.says(".", first, cookie.wrapping_add(1), &[]);
        let sent = from_client(rig, &ack);
        assert_eq!(sent.verdict, Forward);
        // 1300, in the classes that cookies have.
        let mss = Some(if talk.client.0.is_ipv4() { 1300 } else { 1220 });
        assert_eq!(to_server(&sent), Segment { mss, ..talk.says("S", CLIENT_ISN, 0, &[]) });
        assert_eq!(rig.counter(Counter::SynProxied), proxied + 1);
        assert_eq!((flow_keys(&rig.flows), flow_keys(&rig.embryonic)), (vec![], vec![talk.key()]));

        let sent = from_server(rig, &talk.answers("S.", SERVER_ISN, first, &[]));
        assert_eq!(sent.verdict, Forward);
        assert_eq!(to_client(&sent), talk.answers(".", cookie, first, &[0]), "opens the window");
        assert_eq!(rig.state(&talk.key()), Some(FlowState::SynRecv));

        let server_first = SERVER_ISN.wrapping_add(1);
        let sent = from_client(rig, &ack);
        assert_eq!(to_server(&sent), talk.says(".", first, server_first, &[]));
        assert_eq!(rig.state(&talk.key()), Some(FlowState::Established));

        let sent = from_client(rig, &talk.says("P.", first, cookie.wrapping_add(1), b"question"));
        assert_eq!(to_server(&sent), talk.says("P.", first, server_first, b"question"));
        let next = first.wrapping_add(8);
        let sent = from_server(rig, &talk.answers("P.", server_first, next, b"answer"));
        assert_eq!(to_client(&sent), talk.answers("P.", cookie.wrapping_add(1), next, b"answer"));
        let sent = from_client(rig, &talk.says("F.", next, cookie.wrapping_add(7), &[]));
        assert_eq!(to_server(&sent), talk.says("F.", next, server_first.wrapping_add(6), &[]));
        assert_eq!(rig.state(&talk.key()), Some(FlowState::FinWait));
        // What was not sent cannot be acknowledged, in the numbers that the client knows.
        let beyond = from_client(rig, &talk.says(".", next, cookie.wrapping_add(80), &[]));
        assert_eq!(beyond.verdict, Drop(DropReason::TcpWindow));
    });
}

#[test]
fn a_forged_cookie_is_dropped_and_leaves_no_trace() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let cookie = talk.cookie(rig);
        let right = talk.says(".", CLIENT_ISN.wrapping_add(1), cookie.wrapping_add(1), &[]);
        let other_port = (talk.client.0, talk.client.1 + 1);
        for (what, forged) in [
            ("another cookie", Segment { ack: right.ack ^ 0x0100_0000, ..right.clone() }),
            ("another MSS", Segment { ack: right.ack.wrapping_add(17), ..right.clone() }),
            ("another number", Segment { seq: right.seq.wrapping_add(1 << 28), ..right.clone() }),
            ("another port", Segment { from: other_port, ..right.clone() }),
        ] {
            assert_eq!(from_client(rig, &forged).verdict, Drop(DropReason::SynCookie), "{what}");
        }
        // Not those nearby either, which with another MSS would be as good: of them only the client's probe is one, without data.
        for off in [-3, -2, 1, 2, 3] {
            let near = Segment { seq: right.seq.wrapping_add_signed(off), ..right.clone() };
            assert_eq!(from_client(rig, &near).verdict, Drop(DropReason::SynCookie), "{off}");
        }
        let probe = Segment { seq: CLIENT_ISN, data: vec![0; 2], ..right.clone() };
        assert_eq!(from_client(rig, &probe).verdict, Drop(DropReason::SynCookie));
        for flags in ["F.", "R", "R.", "S."] {
            let other = from_client(rig, &Segment { flags, ..right.clone() });
            assert_eq!(other.verdict, Drop(DropReason::NotSyn), "{flags}");
        }
        assert_no_trace(rig);
        // A rule that does not have the proxy takes no cookies, nor does the node itself.
        rig.load_rules(&[Rule { to: LAN, ..proxied() }, admitted()]);
        assert_eq!(from_client(rig, &right).verdict, Drop(DropReason::NotSyn));
        rig.load_rules(&[admitted()]);
        assert_eq!(from_client(rig, &right).verdict, Drop(DropReason::NotSyn));
        assert_no_trace(rig);
        rig.load_rules(&[proxied()]);
        assert_eq!(from_client(rig, &right).verdict, Forward);
    });
}

/// Linux probes the window that we have closed by an empty segment with the number before.
#[test]
fn a_probe_of_the_window_stands_for_the_syn_if_the_acknowledgement_was_lost() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let cookie = talk.cookie(rig);
        let (first, acked) = (CLIENT_ISN.wrapping_add(1), cookie.wrapping_add(1));
        let probe = talk.says(".", CLIENT_ISN, acked, &[]);
        let mss = Some(if talk.client.0.is_ipv4() { 1300 } else { 1220 });
        for _ in 0..2 {
            let sent = from_client(rig, &probe);
            assert_eq!(sent.verdict, Forward);
            assert_eq!(to_server(&sent), Segment { mss, ..talk.says("S", CLIENT_ISN, 0, &[]) });
        }
        let sent = from_server(rig, &talk.answers("S.", SERVER_ISN, first, &[]));
        assert_eq!(to_client(&sent), talk.answers(".", cookie, first, &[0]));
        let sent = from_client(rig, &talk.says("P.", first, acked, b"question"));
        assert_eq!(to_server(&sent), talk.says("P.", first, SERVER_ISN.wrapping_add(1), b"question"));
        assert_eq!(rig.state(&talk.key()), Some(FlowState::Established));
    });
}

#[test]
fn a_flood_of_syns_leaves_no_trace() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        const SYNS: u64 = 2000;
        rig.set_limits(Limits { interval_ns: 1_000_000_000, flows: 1, zero: 0 });
        let answered = rig.counter(Counter::SynAnswered);
        for n in 0..SYNS {
            let from = (talk.client.0, 1024 + n as u16);
            rig.run(Port::Lan, &Segment { from, ..talk.syn() }.frame(CLIENT_MAC, LAN_MAC));
        }
        assert_eq!(rig.counter(Counter::SynAnswered), answered + SYNS);
        assert_no_trace(rig);
        rig.set_limits(Limits::default());
    });
}

#[test]
fn whatever_the_client_sends_again_opens_the_connection_until_the_server_answers() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let cookie = talk.cookie(rig);
        let first = CLIENT_ISN.wrapping_add(1);
        let acked = cookie.wrapping_add(1);
        let mut opened = Vec::new();
        for again in [
            talk.says("P.", first, acked, b"data, in spite of the closed window"),
            talk.says(".", first, acked, &[]),
            // A probe of the closed window.
            talk.says(".", CLIENT_ISN, acked, &[]),
            talk.says("F.", first, acked, &[]),
        ] {
            let sent = from_client(rig, &again);
            assert_eq!(sent.verdict, Forward);
            opened.push(to_server(&sent));
        }
        assert!(opened.iter().all(|syn| *syn == opened[0]), "{opened:?}");
        assert_eq!((opened[0].flags, opened[0].seq), ("S", CLIENT_ISN));
        // Another cookie, of the same SYN: it would have to be another minute.
        let forged = talk.says(".", first, acked ^ 0x0100_0000, &[]);
        assert_eq!(from_client(rig, &forged).verdict, Drop(DropReason::SynCookie));
        // The server does not hear the acknowledgement, and answers again.
        let answer = talk.answers("S.", SERVER_ISN, first, &[]);
        let octet = talk.answers(".", cookie, first, &[0]);
        for _ in 0..2 {
            assert_eq!(to_client(&from_server(rig, &answer)), octet);
        }
        let server_first = SERVER_ISN.wrapping_add(1);
        let sent = from_client(rig, &talk.says(".", first, acked, &[]));
        assert_eq!(to_server(&sent), talk.says(".", first, server_first, &[]));
        assert_eq!(to_client(&from_server(rig, &answer)), octet);
        assert_eq!(rig.state(&talk.key()), Some(FlowState::Established));
    });
}

#[test]
fn a_refusal_is_told_in_the_clients_numbers() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let acked = talk.cookie(rig).wrapping_add(1);
        let first = CLIENT_ISN.wrapping_add(1);
        from_client(rig, &talk.says(".", first, acked, &[]));
        let sent = from_server(rig, &Segment { window: 0, ..talk.answers("R.", 0, first, &[]) });
        assert_eq!(sent.verdict, Forward);
        let told = to_client(&sent);
        assert_eq!((told.flags, told.seq, told.ack), ("R.", acked, first));
        assert_eq!(keys(&rig.flows), []);
    });
}

#[test]
fn a_client_that_gives_up_is_believed_by_the_server_before_and_after_its_answer() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let acked = talk.cookie(rig).wrapping_add(1);
        let first = CLIENT_ISN.wrapping_add(1);
        from_client(rig, &talk.says(".", first, acked, &[]));
        let sent = from_client(rig, &talk.says("R.", first, acked, &[]));
        assert_eq!(sent.verdict, Forward);
        let told = to_server(&sent);
        assert_eq!((told.flags, told.seq), ("R", first), "there is nothing to acknowledge yet");

        rig.clear_flows();
        talk.open(rig);
        // As some stacks do it.
        let reset = talk.says("R.", first, 0, &[]);
        let sent = from_client(rig, &reset);
        assert_eq!((sent.verdict, to_server(&sent)), (Forward, reset));
        assert_eq!(rig.state(&talk.key()), Some(FlowState::Close));
    });
}

#[test]
fn a_fragment_that_the_stack_sends_on_does_not_change_what_the_next_one_is_held_against() {
    needs_root!();
    at_both_hooks(|rig| {
        let talk = Talk::all()[0];
        rig.load_rules(&[proxied()]);
        rig.clear_flows();
        let delta = talk.open(rig);
        let server_first = SERVER_ISN.wrapping_add(1);
        let whole = talk.answers(".", server_first, CLIENT_ISN.wrapping_add(1), &[7; 1404]);
        let whole = crate::packets::edit_ip(&whole.frame(SERVER_MAC, WAN_MAC), |header| {
            header.dont_fragment = false;
        });
        // 20 bytes of TCP and 684 of data; the other 720.
        let cut = 14 + 20 + 704;
        let shorten =
            |frame: &[u8]| crate::packets::edit_ip(frame, |h| h.set_payload_len(frame.len() - 34).unwrap());
        let first = shorten(&fragment(&whole[..cut], 0, true));
        let second = shorten(&fragment(&[&whole[..34], &whole[cut..]].concat(), 704 / 8, false));
        let sent = rig.send(Port::Wan, &first);
        assert_eq!(sent.verdict, Forward);
        // The stack has it where there is no other way out.
        assert!(rig.leave(Port::Lan, Some(Port::Wan), 0, &sent.frame));
        assert_eq!(rig.send(Port::Wan, &second).verdict, Forward);
        let flow = rig.flows.get(&talk.key(), 0).expect("the flow");
        let end = flow.ways.iter().map(|way| way.end).find(|end| *end != CLIENT_ISN.wrapping_add(1));
        assert_eq!(end, Some(server_first.wrapping_add(1404)));
        let known = server_first.wrapping_sub(delta).wrapping_add(1404);
        let ack = talk.says(".", CLIENT_ISN.wrapping_add(1), known, &[]);
        assert_eq!(from_client(rig, &ack).verdict, Forward);
    });
}

#[test]
fn a_server_that_has_another_connection_in_mind_is_told() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let acked = talk.cookie(rig).wrapping_add(1);
        let first = CLIENT_ISN.wrapping_add(1);
        from_client(rig, &talk.says(".", first, acked, &[]));
        let hook = rig.hook;
        let before = rig.drop_count(DropReason::Reject);
        rig.run(Port::Wan, &talk.answers(".", 77, 4711, &[]).frame(SERVER_MAC, WAN_MAC));
        assert_eq!(rig.drop_count(DropReason::Reject), before + 1, "{hook:?}");
        let sent = from_client(rig, &talk.says(".", CLIENT_ISN, acked, &[]));
        assert_eq!(to_server(&sent).flags, "S");
    });
}

#[test]
fn a_client_that_forgot_its_connection_is_left_to_the_server() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let delta = talk.open(rig);
        let isn = CLIENT_ISN.wrapping_add(1 << 30);
        let first = CLIENT_ISN.wrapping_add(1);
        let server_first = SERVER_ISN.wrapping_add(1);
        let syn = Segment { seq: isn, mss: None, ..talk.syn() };
        let sent = from_client(rig, &syn);
        assert_eq!((sent.verdict, to_server(&sent)), (Forward, syn.clone()));
        // A server that knows the connection says so, and is told that it is over (RFC 9293, 3.5.1).
        let sent = from_server(rig, &talk.answers(".", server_first, first, &[]));
        assert_eq!(to_client(&sent), talk.answers(".", server_first.wrapping_sub(delta), first, &[]));
        let reset = talk.says("R", first, 0, &[]);
        assert_eq!(to_server(&from_client(rig, &reset)), reset);
        assert_eq!(rig.state(&talk.key()), Some(FlowState::Close));

        // One that does not takes the new one, without the proxy.
        rig.clear_flows();
        talk.open(rig);
        assert_eq!(from_client(rig, &syn).verdict, Forward);
        let answer = talk.answers("S.", SERVER_ISN.wrapping_add(7), isn.wrapping_add(1), &[]);
        assert_eq!(to_client(&from_server(rig, &answer)), answer);
        assert_eq!(rig.flows.get(&talk.key(), 0).expect("the new one").delta, 0);
    });
}

#[test]
fn a_connection_goes_on_where_it_was_taken_over() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let delta = talk.open(rig);
        let (key, first) = (talk.key(), CLIENT_ISN.wrapping_add(1));
        rig.edit(&key, |flow| {
            assert_eq!(flow.delta, delta);
            // What a peer makes of the record.
            let mut inherited = Flow {
                word: Flow::word(flow.state(), flow.flags() | Flow::INHERITED, flow.zones()),
                delta,
                ..*flow
            };
            inherited.ways = Default::default();
            inherited.ways[0].last_seen_ns = flow.last_seen_ns();
            *flow = inherited;
        });
        let server_next = SERVER_ISN.wrapping_add(5000);
        let client_sees = server_next.wrapping_sub(delta);
        let sent = from_server(rig, &talk.answers("P.", server_next, first, b"more"));
        assert_eq!(to_client(&sent), talk.answers("P.", client_sees, first, b"more"));
        let sent = from_client(rig, &talk.says(".", first, client_sees.wrapping_add(4), &[]));
        assert_eq!(to_server(&sent), talk.says(".", first, server_next.wrapping_add(4), &[]));
        let stray = talk.says(".", first, client_sees.wrapping_add(1 << 20), &[]);
        assert_eq!(from_client(rig, &stray).verdict, Drop(DropReason::TcpWindow));
    });
}

#[test]
fn the_rules_mss_is_told_to_both_ends() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let mut rule = proxied();
        rule.decision.mss = 1000;
        rig.load_rules(&[rule]);
        let sent = from_client(rig, &talk.syn());
        let answer = to_client(&sent);
        assert_eq!(answer.mss, Some(1000));
        let ack = talk.says(".", CLIENT_ISN.wrapping_add(1), answer.seq.wrapping_add(1), &[]);
        assert_eq!(to_server(&from_client(rig, &ack)).mss, Some(1000));
    });
}

#[test]
fn the_mss_is_lowered_in_what_the_stack_sends_on_too() {
    needs_root!();
    at_both_hooks(|rig| {
        let talk = Talk { server: ("203.0.113.5".parse().unwrap(), 22), ..Talk::all()[0] };
        let syn = Segment { mss: Some(1460), ..talk.syn() };
        for (mss, lowered) in [(1000, 1000), (Flow::MSS_PMTU, WAN_MTU as u16 - talk.headers())] {
            let mut rule = accept("all");
            rule.decision.mss = mss;
            rig.load_rules(&[rule]);
            rig.clear_flows();
            let sent = from_client(rig, &syn);
            assert_eq!(sent.verdict, Pass, "its neighbour is not known");
            let expected = Segment { mss: Some(lowered), ..syn.clone() };
            assert_eq!(sent.frame, expected.frame(CLIENT_MAC, LAN_MAC), "checksum and all");
        }
    });
}

/// An ICMP error about a frame, with a right checksum, from the client's side.
fn error_v4(kind: u8, code: u8, about: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 5, 0];
    message.extend(&about[14..14 + 28]);
    let checksum = sum(&message);
    message[2..4].copy_from_slice(&(!checksum).to_be_bytes());
    crate::packets::ip(CLIENT, SERVER, proto::ICMP, &message)
}

/// RFC 1071.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[test]
fn errors_about_the_servers_segments_have_its_numbers() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[proxied()]);
        let talk = Talk::all()[0];
        let delta = talk.open(rig);
        let first = CLIENT_ISN.wrapping_add(1);
        let server_first = SERVER_ISN.wrapping_add(1);
        let seen = from_server(rig, &talk.answers("P.", server_first, first, b"long")).frame;
        let sent = rig.send(Port::Lan, &error_v4(3, 4, &seen));
        assert_eq!(sent.verdict, Forward);
        let inner = &sent.frame[14 + 20 + 8 + 20..];
        assert_eq!(u32::from_be_bytes(inner[4..8].try_into().unwrap()), server_first);
        assert_eq!(sum(&sent.frame[34..]), 0xffff, "the checksum is right");
        // What the client saw came from nobody if it has the server's number.
        let mut as_sent = seen.clone();
        as_sent[38..42].copy_from_slice(&server_first.wrapping_add(delta).to_be_bytes());
        assert_eq!(rig.send(Port::Lan, &error_v4(3, 4, &as_sent)).verdict, Drop(DropReason::IcmpUnrelated));
    });
}

#[test]
fn what_the_stack_answers_it_sees_as_it_was_sent() {
    needs_root!();
    behind_the_proxy(|rig, talk| {
        let delta = talk.open(rig);
        let first = CLIENT_ISN.wrapping_add(1);
        let acked = SERVER_ISN.wrapping_sub(delta).wrapping_add(1);
        // Too long for the server's side: the stack says so.
        let dont_fragment = talk.says("P.", first, acked, &[7; 1380]).frame(CLIENT_MAC, LAN_MAC);
        if talk.client.0.is_ipv4() {
            let long = crate::packets::edit_ip(&dont_fragment, |header| header.dont_fragment = false);
            // It makes fragments of this one.
            let sent = rig.send(Port::Lan, &long);
            assert_eq!(sent.verdict, Pass);
            let forwarded = Segment::read(&sent.frame, CLIENT_MAC, LAN_MAC);
            assert_eq!(forwarded.ack, SERVER_ISN.wrapping_add(1));
        }
        let sent = rig.send(Port::Lan, &dont_fragment);
        assert_eq!((sent.verdict, sent.frame), (Pass, dont_fragment));
        let mut last_hop = talk.says(".", first, acked, &[]).frame(CLIENT_MAC, LAN_MAC);
        if talk.client.0.is_ipv4() {
            last_hop = crate::packets::edit_ip(&last_hop, |header| header.time_to_live = 1);
        } else {
            last_hop[21] = 1;
        }
        let sent = rig.send(Port::Lan, &last_hop);
        assert_eq!((sent.verdict, sent.frame), (Pass, last_hop));
    });
}

#[test]
fn the_stack_finds_a_server_whose_neighbour_is_not_known() {
    needs_root!();
    at_both_hooks(|rig| {
        rig.load_rules(&[proxied()]);
        let talk = Talk { server: ("203.0.113.5".parse().unwrap(), 22), ..Talk::all()[0] };
        let answer = to_client(&from_client(rig, &talk.syn()));
        assert_eq!((answer.flags, answer.mss), ("S.", Some(WAN_MTU as u16 - talk.headers())));
        let ack = talk.says(".", CLIENT_ISN.wrapping_add(1), answer.seq.wrapping_add(1), &[]);
        let sent = from_client(rig, &ack);
        assert_eq!(sent.verdict, Pass);
        let syn = Segment::read(&sent.frame, CLIENT_MAC, LAN_MAC);
        assert_eq!(syn, Segment { mss: Some(1300), ..talk.says("S", CLIENT_ISN, 0, &[]) });
        assert!(rig.leave(Port::Wan, Some(Port::Lan), 0, &sent.frame));
    });
}

#[test]
fn connections_to_the_node_itself_are_its_stacks() {
    needs_root!();
    at_both_hooks(|rig| {
        let mut rule = accept("all");
        rule.decision.flags = Decision::SYN_PROXY;
        rig.load_rules(&[rule]);
        assert_eq!(rig.send(Port::Lan, &tcp(CLIENT, NODE, "S")).verdict, Pass);
        assert_eq!(keys(&rig.node_guests), [key_v4(CLIENT, NODE, proto::TCP)]);
    });
}

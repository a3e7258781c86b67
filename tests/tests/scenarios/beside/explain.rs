//! What `fwhactl explain packet` says is what becomes of the packet: each is explained, then sent.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::frames::{Ip, Tcp, flag, sctp, sctp_chunk};
use fwha_tests::lab::{Attach, CLIENT, CLIENT6, Host, Lab, LabOptions, Node, SERVER, SERVER6};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::with_pair;
use fwha_tests::sys::{packet_socket, receive};
use serde_json::Value;

/// Rules beside those of the lab.
const RULES: &str = r#"
[[rule]]
name = "v6"
from = "lan"
to = "node"
services = ["icmpv6"]
action = "accept"
"#;

/// Rules before those of the lab: what they say of these ports counts.
const FIRST: &str = r#"[[rule]]
name = "no-telnet"
from = "lan"
to = "inet"
services = ["tcp/23"]
action = "drop"

[[rule]]
name = "no-mail"
from = "lan"
to = "inet"
services = ["tcp/25"]
action = "reject"

[[rule]]
name = "shop"
from = "lan"
to = "inet"
services = ["tcp/8080"]
action = "accept"
syn-proxy = true
mss = 1200
replicate = false

"#;

/// What a packet carries.
#[derive(Clone, Copy)]
enum Kind {
    Tcp(u8),
    Udp,
    Echo,
    Init,
    Esp,
}

use Kind::{Echo, Esp, Init, Udp};
const SYN: Kind = Kind::Tcp(flag::SYN);

/// A packet, by where it comes in, and what is to be said of it: verdict, reason, rule.
struct Case {
    from: Host,
    kind: Kind,
    src: &'static str,
    dst: &'static str,
    ports: (u16, u16),
    said: (&'static str, &'static str, &'static str),
}

const fn case(
    from: Host,
    kind: Kind,
    src: &'static str,
    dst: &'static str,
    ports: (u16, u16),
    said: (&'static str, &'static str, &'static str),
) -> Case {
    Case { from, kind, src, dst, ports, said }
}

fn end(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

impl Case {
    /// The command that explains it.
    fn command(&self) -> Vec<String> {
        let (proto, ports) = match self.kind {
            Kind::Tcp(_) => ("tcp", true),
            Udp => ("udp", true),
            Echo => ("icmp", true),
            Init => ("sctp", true),
            Esp => ("50", false),
        };
        let interface = if self.from == Host::Client { "lan" } else { "wan" };
        let mut words: Vec<String> = ["explain", "packet", "--in", interface, proto].map(String::from).into();
        if let Kind::Tcp(flags) = self.kind
            && flags != flag::SYN
        {
            let names = [(flag::FIN, "fin"), (flag::SYN, "syn"), (flag::ACK, "ack")];
            let names: Vec<&str> =
                names.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
            words.extend(["--flags".into(), names.join(",")]);
        }
        for (address, port) in [(self.src, self.ports.0), (self.dst, self.ports.1)] {
            words.push(if ports { end(address, port) } else { address.into() });
        }
        words
    }

    /// The frame, to this MAC.
    fn frame(&self, to: [u8; 6]) -> Result<Vec<u8>> {
        let (src, dst): (IpAddr, IpAddr) = (self.src.parse()?, self.dst.parse()?);
        let ip = Ip::new((to, [2, 0, 0, 0, 9, 9]), src, dst);
        let (proto, payload) = match self.kind {
            Kind::Tcp(flags) => {
                (6, ip.tcp(&Tcp { ports: self.ports, seq: 1, flags, window: 8192, ..Tcp::default() }))
            }
            Udp => (17, ip.udp(self.ports.0, self.ports.1, &[0; 4])),
            Echo if src.is_ipv4() => (1, ip.query(8, self.ports.0)),
            Echo => (58, ip.query(128, self.ports.0)),
            Init => {
                let value = [&7u32.to_be_bytes()[..], &[0; 12]].concat();
                (132, sctp(self.ports, 0, &[sctp_chunk(1, 0, &value)]))
            }
            Esp => (50, vec![0; 16]),
        };
        Ok(ip.frame(proto, &payload))
    }
}

/// Counters of drops on a node.
fn drops(pair: &Pair, node: Node) -> Result<Value> {
    Ok(pair.node(node).ctl(&["stats"])?["drops"].clone())
}

fn mac(lab: &Lab, node: Node, interface: &str) -> Result<[u8; 6]> {
    let text = lab.exec(node.host(), &["ip", "-o", "link", "show", interface])?;
    let mac = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("a MAC")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().ok().context("a MAC of six bytes")
}

/// Asks a node what would become of a packet.
fn explain(pair: &Pair, node: Node, words: &[String]) -> Result<Value> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    pair.node(node).ctl(&words)
}

/// What was said: verdict, reason, rule.
fn said(explained: &Value) -> (&str, &str, &str) {
    let text = |name: &str| explained[name].as_str().unwrap_or_default();
    (text("verdict"), text("reason"), text("rule"))
}

/// Has a node explain a packet, sends it there, and holds the one against the other.
fn check(lab: &Lab, pair: &Pair, node: Node, case: &Case) -> Result<()> {
    let words = case.command();
    let told = words.join(" ");
    let before = drops(pair, node)?;
    let rules = pair.node(node).ctl(&["stats"])?["rules"].clone();
    let explained = explain(pair, node, &words)?;
    ensure!(said(&explained) == case.said, "{told}: {explained:#}");
    let last = explained["steps"].as_array().and_then(|steps| steps.last()).context("a step")?;
    let ends = match case.said.0 {
        "dropped" => last["result"] == "drop",
        "rejected" => {
            explained["steps"].as_array().is_some_and(|s| s.iter().any(|s| s["result"] == "reject"))
        }
        "answered" => last["result"] == "answer",
        _ => last["step"] == "forward" && last["result"] == "pass",
    };
    ensure!(ends, "{told}: {explained:#}");
    ensure!(drops(pair, node)? == before, "{told}: it was counted");
    ensure!(pair.node(node).ctl(&["stats"])?["rules"] == rules, "{told}: a hit was counted");

    let flow = [
        format!("src={}", case.src),
        format!("dst={}", case.dst),
        format!("sport={}", case.ports.0),
        format!("dport={}", case.ports.1),
    ];
    let flow: Vec<&str> = std::iter::once("flows").chain(flow.iter().map(String::as_str)).collect();
    ensure!(pair.node(node).ctl_lines(&flow)?.is_empty(), "{told}: it began a flow");

    let (interface, other) =
        if case.from == Host::Client { ("lan", Host::Server) } else { ("wan", Host::Client) };
    let frame = case.frame(mac(lab, node, interface)?)?;
    let answered = pair.node(node).count("flows.syn_answered")?;
    let far = lab.within(other, || packet_socket("eth0"))??;
    lab.within(case.from, || -> Result<()> {
        let near = packet_socket("eth0")?;
        ensure!(nix::unistd::write(&near, &frame)? == frame.len(), "it is sent as a whole");
        Ok(())
    })??;
    match case.said {
        ("forwarded", ..) => {
            // Of the IP header behind TTL and checksum, the addresses, and all that follows.
            let from = if case.src.contains(':') { 14 + 8 } else { 14 + 12 };
            lab.wait_for(&format!("{told}: to arrive"), PATIENCE, || {
                while let Some(got) = receive(far.as_fd())? {
                    if got.frame.len() >= frame.len() && got.frame[from..frame.len()] == frame[from..] {
                        return Ok(Some(()));
                    }
                }
                Ok(None)
            })?;
        }
        ("passed", ..) => {
            lab.wait_for(&format!("{told}: to be a flow of the node"), PATIENCE, || {
                let rows = pair.node(node).ctl_lines(&flow)?;
                Ok((rows.len() == 1 && rows[0]["zone_out"] == "node").then_some(()))
            })?;
        }
        ("answered", ..) => {
            pair.wait_for_count(lab, node, "flows.syn_answered", answered)?;
        }
        (_, reason, _) => {
            let count = before[reason].as_u64().unwrap_or(0);
            pair.wait_for_count(lab, node, &format!("drops.{reason}"), count)?;
        }
    }
    let (mut expected, mut hits) = (before, rules);
    if !case.said.2.is_empty() {
        let count = hits[case.said.2].as_u64().unwrap_or(0);
        hits[case.said.2] = (count + 1).into();
    }
    if matches!(case.said.0, "dropped" | "rejected") {
        let count = expected[case.said.1].as_u64().unwrap_or(0);
        expected[case.said.1] = (count + 1).into();
    }
    let found = pair.node(node).ctl(&["stats"])?;
    ensure!(found["drops"] == expected, "{told}: {} are the drops, not {expected}", found["drops"]);
    ensure!(found["rules"] == hits, "{told}: {} are the hits, not {hits}", found["rules"]);
    Ok(())
}

/// First packets, on the Active node. What is answered by a host that has no port open comes first where that is by no reset: a
/// reset for a neighbour that is not known yet would be dropped by the egress guard, and counted.
fn first_packets(active: Node) -> Vec<Case> {
    use Host::{Client, Server};
    let ack = Kind::Tcp(flag::ACK);
    let senseless = Kind::Tcp(flag::SYN | flag::FIN);
    let dropped = |reason| ("dropped", reason, "");
    let lan_out = ("forwarded", "", "lan-out");
    let mut cases = vec![
        case(Client, Udp, CLIENT, SERVER, (4000, 53), lan_out),
        case(Client, Echo, CLIENT, SERVER, (77, 0), lan_out),
        case(Client, Init, CLIENT, SERVER, (4001, 99), lan_out),
        case(Client, Esp, CLIENT, SERVER, (0, 0), lan_out),
        case(Client, ack, CLIENT, SERVER, (4002, 80), dropped("syn_cookie")),
        case(Client, Kind::Tcp(flag::FIN | flag::ACK), CLIENT, SERVER, (4002, 80), dropped("not_syn")),
        case(Client, senseless, CLIENT, SERVER, (4003, 80), dropped("tcp_flags")),
        case(Client, SYN, CLIENT, SERVER, (4004, 8080), ("answered", "", "shop")),
        case(Client, SYN, "10.0.0.50", SERVER, (4005, 23), ("dropped", "rule", "no-telnet")),
        case(Client, SYN, "10.0.0.50", SERVER, (4005, 25), ("dropped", "spoofed", "no-mail")),
        case(Client, SYN, "127.0.0.1", SERVER, (4006, 80), dropped("martian")),
        case(Client, SYN, "224.0.0.5", SERVER, (4006, 80), dropped("martian")),
        case(Client, SYN, SERVER, SERVER, (80, 80), dropped("land")),
        case(Client, SYN, CLIENT, "198.51.100.1", (4007, 80), dropped("no_route")),
        case(Client, SYN, CLIENT, "172.16.0.9", (4008, 80), dropped("route_no_zone")),
        case(Client, SYN, CLIENT, "203.0.113.9", (4009, 80), dropped("no_rule")),
        case(Client, SYN, "fd00:bad::1", SERVER6, (4010, 80), ("dropped", "spoofed", "lan-out")),
        case(Client, SYN, "::1", SERVER6, (4011, 80), dropped("martian")),
        case(Client, SYN, CLIENT6, "2001:db8:bad::1", (4012, 80), dropped("no_route")),
        case(Client, Echo, CLIENT6, SERVER6, (78, 0), lan_out),
        case(Client, Udp, CLIENT6, SERVER6, (4013, 53), lan_out),
    ];
    for (client, server) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
        cases.extend([
            case(Client, SYN, client, server, (5000, 81), lan_out),
            case(Client, SYN, client, server, (5001, 23), ("dropped", "rule", "no-telnet")),
            case(Client, SYN, client, server, (5002, 25), ("rejected", "reject", "no-mail")),
            case(Server, SYN, server, client, (5003, 80), dropped("no_rule")),
        ]);
    }
    for (own, server) in active.lan_addresses().into_iter().zip([SERVER, SERVER6]) {
        cases.push(case(Client, SYN, own, server, (5004, 80), ("dropped", "spoofed", "lan-out")));
    }
    cases
}

fn packets_are_explained_as_they_are_judged(attach: Attach) {
    let options = LabOptions { attach, ipv6: true, extra_config: RULES.into(), ..LabOptions::beside() };
    with_pair(options, |lab, pair| {
        let text = std::fs::read_to_string(lab.config_path())?;
        let text = text.replacen("[[rule]]\n", &format!("{FIRST}[[rule]]\n"), 1);
        std::fs::write(lab.config_path(), text)?;
        for node in Node::ALL {
            pair.node(node).ctl(&["reload"])?;
            for family in [
                &["route", "add", "blackhole", "198.51.100.0/24"][..],
                &["-6", "route", "add", "blackhole", "2001:db8:bad::/48"],
            ] {
                lab.exec(node.host(), &[&["ip"], family].concat())?;
            }
        }
        let active = pair.settle(lab)?;
        let (backup, pins) = (active.peer(), lab.pins()?);
        for case in first_packets(active) {
            check(lab, pair, active, &case)?;
        }
        // To the nodes themselves, of which each answers for itself.
        for node in Node::ALL {
            for (client, own) in [CLIENT, CLIENT6].into_iter().zip(node.lan_addresses()) {
                for (port, said) in [(22, ("passed", "", "admin")), (23, ("dropped", "no_rule", ""))] {
                    check(lab, pair, node, &case(Host::Client, SYN, client, own, (6000, port), said))?;
                }
            }
        }
        // What goes through the pair is for the Active one.
        for (client, server) in [(CLIENT, SERVER), (CLIENT6, SERVER6)] {
            let said = ("dropped", "not_owner", "");
            check(lab, pair, backup, &case(Host::Client, SYN, client, server, (6001, 81), said))?;
        }
        known_flows(lab, pair, active)?;
        details(lab, pair, active)?;
        limits(lab, pair, active)?;
        assert_eq!(lab.pins()?, pins, "what is on trial is pinned nowhere");
        Ok(())
    });
}

/// What a rule says beside its action; a flow of the node itself; a neighbour that is not known.
fn details(lab: &Lab, pair: &Pair, active: Node) -> Result<()> {
    let told = |explained: &Value, step: &str, text: &str| {
        let steps = explained["steps"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = steps.iter().any(|s| s["step"] == step && s["text"].to_string().contains(text));
        ensure!(found, "{step} {text:?}: {explained:#}");
        Ok(())
    };
    let shop = case(Host::Client, SYN, CLIENT, SERVER, (8000, 8080), ("answered", "", "shop"));
    let explained = explain(pair, active, &shop.command())?;
    told(&explained, "rules", "accept, MSS clamped to 1200, by the SYN proxy, not replicated")?;

    let ping = case(Host::Client, Echo, CLIENT, active.lan_addresses()[0], (79, 0), ("passed", "", "admin"));
    check(lab, pair, active, &ping)?;
    let explained = explain(pair, active, &ping.command())?;
    ensure!(said(&explained) == ping.said && explained["flow"]["zone_out"] == "node", "{explained:#}");

    // Nobody answers for this address, so the packet goes no further than the stack, which waits for an answer.
    let nobody = case(Host::Client, Udp, CLIENT, "10.0.0.77", (8001, 53), ("forwarded", "", "lan-out"));
    let explained = explain(pair, active, &nobody.command())?;
    ensure!(said(&explained) == nobody.said, "{explained:#}");
    told(&explained, "forward", "the stack asks for the neighbour's MAC")?;
    let frame = nobody.frame(mac(lab, active, "lan")?)?;
    lab.within(Host::Client, || {
        nix::unistd::write(&packet_socket("eth0")?, &frame).map_err(std::io::Error::from)
    })??;
    lab.wait_for("the flow to nobody", PATIENCE, || {
        let rows = pair.node(active).ctl_lines(&["flows", "dst=10.0.0.77"])?;
        Ok((rows.len() == 1 && rows[0]["state"] == "unreplied").then_some(()))
    })
}

/// A source that has as many flows as it may gets no more, and that is said.
fn limits(lab: &Lab, pair: &Pair, active: Node) -> Result<()> {
    let text = std::fs::read_to_string(lab.config_path())?;
    std::fs::write(lab.config_path(), format!("{text}\n[limits]\nflows-per-source = 1\n"))?;
    pair.node(active).ctl(&["reload"])?;
    let more = case(Host::Client, Udp, CLIENT, SERVER, (7000, 53), ("dropped", "source_flows", "lan-out"));
    let words = more.command();
    lab.wait_for("the flows of the client to be counted", PATIENCE, || {
        let explained = explain(pair, active, &words)?;
        Ok((said(&explained) == more.said).then_some(()))
    })?;
    check(lab, pair, active, &more)
}

/// A connection that is there is told by both nodes, from both ends; and that a SYN may begin another in its place.
fn known_flows(lab: &Lab, pair: &Pair, active: Node) -> Result<()> {
    let listener = lab.within(Host::Server, || TcpListener::bind((SERVER, 90)))??;
    let client = lab.within(Host::Client, || TcpStream::connect((SERVER, 90)))??;
    let (_server, _) = listener.accept()?;
    let port = client.local_addr()?.port();
    let filter = ["flows", "dport=90", "state=established"];
    lab.wait_for("the peer to have the connection", PATIENCE, || {
        let known = [active, active.peer()].map(|node| pair.node(node).ctl_lines(&filter));
        Ok(known.into_iter().all(|rows| rows.is_ok_and(|rows| rows.len() == 1)).then_some(()))
    })?;
    let (from, to) = (end(CLIENT, port), end(SERVER, 90));
    for (interface, src, dst, out) in [("lan", &from, &to, "wan"), ("wan", &to, &from, "lan")] {
        let words = |more: &[&str]| -> Vec<String> {
            let words = [&["explain", "packet"], more, &["tcp", src, dst]].concat();
            words.into_iter().map(String::from).collect()
        };
        // Where it comes in is told by the route back.
        let explained = explain(pair, active, &words(&[]))?;
        ensure!(said(&explained) == ("forwarded", "", "lan-out"), "{explained:#}");
        assert_eq!(
            (&explained["interface_in"], &explained["interface_out"]),
            (&interface.into(), &out.into())
        );
        assert_eq!(explained["flow"]["state"], "established", "{explained:#}");
        ensure!(explained["assumed"].to_string().contains("are not known"), "{explained:#}");
        let explained = explain(pair, active.peer(), &words(&[]))?;
        ensure!(said(&explained) == ("dropped", "not_owner", "lan-out"), "{explained:#}");
        // By the other side it is not the flow's.
        let explained = explain(pair, active, &words(&["--in", out]))?;
        ensure!(said(&explained) == ("dropped", "wrong_zone", "lan-out"), "{explained:#}");
    }
    let rows = pair.node(active).ctl_lines(&filter)?;
    assert_eq!(rows.len(), 1, "it goes on: {rows:?}");
    // What the flow lets pass, passes.
    let packets = rows[0]["packets"].clone();
    std::io::Write::write_all(&mut &client, b"x")?;
    lab.wait_for("the connection to count", PATIENCE, || {
        let rows = pair.node(active).ctl_lines(&filter)?;
        Ok((rows[0]["packets"] != packets).then_some(()))
    })
}

#[test]
fn packets_are_explained_as_tc_judges_them() {
    packets_are_explained_as_they_are_judged(Attach::Tc);
}

#[test]
fn packets_are_explained_as_xdp_judges_them() {
    packets_are_explained_as_they_are_judged(Attach::Xdp);
}

#[test]
fn what_makes_no_packet_is_refused_with_a_remedy() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        for (words, problem) in [
            (&["tcp", "192.168.100.100", "10.0.0.128"][..], "tcp has ports"),
            (&["esp", "192.168.100.100:1", "10.0.0.128"], "esp has no ports"),
            (&["tpc", "192.168.100.100", "10.0.0.128:1"], "there is no protocol \"tpc\""),
            (&["tcp", "fd00::1", "10.0.0.128:1"], "of two families"),
            (&["tcp", "192.168.100.1", "10.0.0.128:1"], "say --in, with one of"),
            (
                &["--in", "sync", "tcp", "192.168.100.100", "10.0.0.128:1"],
                "\"sync\" is no interface of a zone",
            ),
            (&["--flags", "ack", "udp", "192.168.100.100", "10.0.0.128:1"], "TCP flags are for tcp"),
            (&["--flags", "ecn", "tcp", "192.168.100.100", "10.0.0.128:1"], "there is no TCP flag \"ecn\""),
            (&["tcp", "host", "10.0.0.128:1"], "\"host\" is not like"),
        ] {
            let output = pair.node(active).ctl_output(&[&["explain", "packet"], words].concat())?;
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(!output.status.success() && told.contains(problem), "{words:?}: {told}");
        }
        Ok(())
    });
}

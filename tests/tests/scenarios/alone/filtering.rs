//! The rules hold in the running cluster: what is admitted passes, all else is dropped and counted.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{CLIENT, Host, LAN_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::with_pair;
use fwha_tests::traffic::Probe;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// How long a connection is tried that must not succeed: long enough for the first SYN to be judged.
const TRY: Duration = Duration::from_millis(200);

/// Tries to connect, which must fail without an answer, and to be counted as dropped for want of a rule.
fn is_dropped(lab: &Lab, pair: &Pair, by: Node, from: Host, to: (&str, u16)) -> Result<()> {
    let before = pair.node(by).count("drops.no_rule")?;
    let to: SocketAddr = format!("{}:{}", to.0, to.1).parse()?;
    let tried = lab.within(from, || TcpStream::connect_timeout(&to, TRY))?;
    let kind = tried.err().map(|error| error.kind());
    ensure!(matches!(kind, Some(ErrorKind::TimedOut | ErrorKind::WouldBlock)), "{to}: {kind:?}");
    pair.wait_for_count(lab, by, "drops.no_rule", before)?;
    Ok(())
}

/// An ICMP message's type and code (RFC 792), and who sent it.
type Answer = (u8, u8, Ipv4Addr);
const ECHO_REPLY: (u8, u8) = (0, 0);
const TTL_EXCEEDED: (u8, u8) = (11, 0);

/// Sends an echo request from the client and returns what answers it.
fn ping(lab: &Lab, to: &str, ttl: u32, identifier: u16) -> Result<Answer> {
    let to: Ipv4Addr = to.parse()?;
    lab.within(Host::Client, || -> Result<Answer> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
        socket.set_ttl_v4(ttl)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let request = etherparse::Icmpv4Header::with_checksum(
            etherparse::Icmpv4Type::EchoRequest(etherparse::IcmpEchoHeader { id: identifier, seq: 1 }),
            b"fwha",
        );
        let request = [&request.to_bytes()[..], b"fwha"].concat();
        let deadline = Instant::now() + PATIENCE;
        let mut sent = false;
        while Instant::now() < deadline {
            // Once: an answer to the second would not show what became of the first.
            if !std::mem::replace(&mut sent, true) {
                socket.send_to(&request, &SockAddr::from(std::net::SocketAddrV4::new(to, 0)))?;
            }
            if let Some(answer) = receive(&socket, &request[4..8])? {
                return Ok(answer);
            }
        }
        anyhow::bail!("nothing answers a ping to {to}")
    })?
}

/// The next ICMP message that is a reply to, or carries, the echo request with this identifier and number.
fn receive(mut socket: &Socket, echo: &[u8]) -> Result<Option<Answer>> {
    let mut buffer = [0; 1500];
    let length = match std::io::Read::read(&mut socket, &mut buffer) {
        Ok(length) => length,
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (ip, icmp) = etherparse::Ipv4Header::from_slice(&buffer[..length]).context("an IPv4 packet")?;
    // The echo's own header, or behind the error's eight bytes the packet that it is about.
    let about = match (icmp[0], icmp[1]) {
        ECHO_REPLY => &icmp[4..8],
        (8, _) => return Ok(None),
        _ => &icmp[8 + 20 + 4..8 + 20 + 8],
    };
    Ok((about == echo).then(|| (icmp[0], icmp[1], Ipv4Addr::from(ip.source))))
}

#[test]
fn what_a_rule_admits_passes_and_all_else_is_dropped_and_counted() {
    with_pair(LabOptions::default(), |lab, pair| {
        let active = pair.settle(lab)?;
        let _client = lab.within(Host::Client, || TcpListener::bind(("0.0.0.0", 80)))??;
        let _server = lab.within(Host::Server, || TcpListener::bind(("0.0.0.0", 80)))??;
        let own = |node: Node| if node == Node::Fw1 { "192.168.100.1" } else { "192.168.100.2" };

        // LAN to inet: admitted, TCP, UDP and echo alike.
        let admitted = pair.node(active).count("rules.lan-out")?;
        drop(lab.within(Host::Client, || TcpStream::connect((SERVER, 80)))??);
        let probe = Probe::start(lab)?.end()?;
        assert_eq!((probe.lost, probe.duplicates), (0, 0), "{probe:?}");
        let (kind, code, from) = ping(lab, SERVER, 64, 1)?;
        assert_eq!(((kind, code), from.to_string().as_str()), (ECHO_REPLY, SERVER));
        assert_eq!(pair.node(active).count("rules.lan-out")?, admitted + 3, "one hit a flow");

        // Inet to LAN: not, although the other direction is.
        is_dropped(lab, pair, active, Host::Server, (CLIENT, 80))?;

        // A packet that dies on the way is answered for by the node that had it.
        let (kind, code, from) = ping(lab, SERVER, 1, 2)?;
        assert_eq!(((kind, code), from.to_string().as_str()), (TTL_EXCEEDED, own(active)));

        // To the nodes themselves: echo and ssh from the LAN, nothing else, and nothing from the inet side.
        for (identifier, address) in [(3, own(Node::Fw1)), (4, own(Node::Fw2)), (5, LAN_VIP)] {
            let (kind, code, from) = ping(lab, address, 64, identifier)?;
            assert_eq!(((kind, code), from.to_string().as_str()), (ECHO_REPLY, address));
        }
        for (node, outside) in [(Node::Fw1, "10.0.0.1"), (Node::Fw2, "10.0.0.2")] {
            // Nobody listens on port 22: that the node refuses shows that the packet came so far.
            let ssh = lab.within(Host::Client, || TcpStream::connect((own(node), 22)))?;
            assert_eq!(ssh.err().map(|error| error.kind()), Some(ErrorKind::ConnectionRefused));
            is_dropped(lab, pair, node, Host::Client, (own(node), 23))?;
            is_dropped(lab, pair, node, Host::Server, (outside, 22))?;
        }
        assert_eq!(pair.settle(lab)?, active);
        Ok(())
    });
}

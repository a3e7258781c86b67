//! Many flows begin and end while the dedicated link is cut, flaps, and loses, repeats, delays and garbles what it carries.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use fwha_tests::frames::Random;
use fwha_tests::garbler::{Garbler, Orders};
use fwha_tests::lab::{CLIENT, Cable, Host, Lab, LabOptions, Node, NodeProcess, SERVER};
use fwha_tests::pair::{Pair, in_sync};
use fwha_tests::scenario::with_pair;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Flows that begin, unless `FWHA_GARBLED_FLOWS` says how many.
const FLOWS: usize = 20_000;
/// How often the weather on the link changes meanwhile.
const CHANGES: usize = 40;
/// Packets that have not been answered yet at most.
const WINDOW: usize = 256;
/// When no answer comes for so long, packets were lost.
const ANSWER: Duration = Duration::from_millis(20);
/// For so long it may take until the nodes are as wanted, and for each flow more: a bulk of everything, and its list
/// through `fwhactl` more than once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE_PER_FLOW: Duration = Duration::from_millis(1);
const SEED: u64 = 1;

const FIRST_CLIENT_PORT: usize = 10_000;
const FIRST_SERVER_PORT: usize = 9000;
const PORTS: usize = 50_000;

/// What the link does, one after the other.
const WEATHER: [Orders; 4] = [
    Orders { loss: 5, duplicate: 5, garble: 2, jitter: Duration::from_millis(1) },
    Orders { loss: 50, duplicate: 20, garble: 10, jitter: Duration::from_millis(30) },
    Orders { loss: 0, duplicate: 30, garble: 0, jitter: Duration::from_millis(10) },
    Orders { loss: 20, duplicate: 0, garble: 20, jitter: Duration::ZERO },
];

/// The client's and the server's port of a flow.
const fn ports(flow: usize) -> (u16, u16) {
    ((FIRST_CLIENT_PORT + flow % PORTS) as u16, (FIRST_SERVER_PORT + flow / PORTS) as u16)
}

/// An IPv4 packet from the client to the server. The kernel writes its checksum.
fn packet(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let [from, to]: [Ipv4Addr; 2] = [CLIENT, SERVER].map(|a| a.parse().expect("an address of the lab"));
    let length = (20 + payload.len()) as u16;
    let mut packet = vec![0x45, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// UDP of a flow, without a checksum.
fn udp(flow: usize) -> Vec<u8> {
    let (from, to) = ports(flow);
    packet(17, &[from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat())
}

/// An ICMP echo request. `id` is so low that nothing is carried in the sum.
fn ping(id: u16) -> Vec<u8> {
    let checksum = !(0x0800 + id);
    packet(1, &[[8, 0], checksum.to_be_bytes(), id.to_be_bytes(), [0, 0]].concat())
}

/// The client, which has no socket for each flow.
struct Client {
    socket: Socket,
    to: SockAddr,
}

impl Client {
    fn new(lab: &Lab) -> Result<Self> {
        let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
        let to: SocketAddr = format!("{SERVER}:0").parse()?;
        Ok(Self { socket: lab.within(Host::Client, raw)?.context("a raw socket")?, to: to.into() })
    }

    fn send(&self, packet: &[u8]) -> Result<()> {
        match self.socket.send_to(packet, &self.to) {
            // A full queue loses packets.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            done => done.map(drop).context("send"),
        }
    }
}

/// Answers everything that comes to a socket, and counts.
fn echo(socket: &UdpSocket, answered: &AtomicUsize, over: &AtomicBool) {
    let mut buffer = [0; 64];
    while !over.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                if socket.send_to(&buffer[..length], from).is_ok() {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            // An ICMP error about an earlier answer.
            Err(_) => {}
        }
    }
}

/// A packet of each of these flows, no faster than they are answered; and of ICMP flows, which end soon.
fn begin(client: &Client, answered: &AtomicUsize, flows: impl Iterator<Item = usize>) -> Result<()> {
    let mut open = answered.load(Ordering::Relaxed);
    for (sent, flow) in flows.enumerate() {
        client.send(&udp(flow))?;
        if flow.is_multiple_of(10) {
            client.send(&ping((flow / 10 % 60_000) as u16))?;
        }
        let asked = Instant::now();
        while open + sent > answered.load(Ordering::Relaxed) + WINDOW {
            if asked.elapsed() > ANSWER {
                open = answered.load(Ordering::Relaxed).saturating_sub(sent);
            }
            std::thread::yield_now();
        }
    }
    Ok(())
}

/// All that two tables must have in common about a flow.
fn identity(flow: &Value) -> String {
    ["proto", "src", "sport", "dst", "dport", "state", "zone_in", "zone_out", "owner", "rule"]
        .map(|field| flow[field].to_string())
        .join(" ")
}

/// The test's flows that have been answered: others are no peer's business.
const ANSWERED: [&str; 3] = ["flows", "proto=udp", "state=replied"];

/// Flows of the test that a node does not have, or not with an answer.
fn missing(node: &NodeProcess, count: usize) -> Result<Vec<usize>> {
    let there: BTreeSet<(u64, u64)> = node
        .ctl_lines(&ANSWERED)?
        .iter()
        .filter_map(|flow| Some((flow["sport"].as_u64()?, flow["dport"].as_u64()?)))
        .collect();
    let absent = |&flow: &usize| {
        let (from, to) = ports(flow);
        !there.contains(&(from.into(), to.into()))
    };
    Ok((0..count).filter(absent).collect())
}

fn change(lab: &Lab, garbler: &Garbler, active: Node, random: &mut Random) -> Result<()> {
    match random.below(8) {
        0 => lab.cut(active, Cable::Sync)?,
        1 => {
            for _ in 0..3 {
                lab.cut(active, Cable::Sync)?;
                lab.heal(active, Cable::Sync)?;
            }
        }
        2 | 3 => lab.heal(active, Cable::Sync)?,
        _ => garbler.order(random.one_of(&WEATHER)),
    }
    Ok(())
}

/// Lets the weather last for so many frames; on a link that is cut there may be none.
fn weather(garbler: &Garbler) {
    const FRAMES: u64 = 60;
    const AT_MOST: Duration = Duration::from_millis(500);
    let (began, before) = (Instant::now(), garbler.done().frames);
    while garbler.done().frames < before + FRAMES && began.elapsed() < AT_MOST {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn play(lab: &Lab, pair: &mut Pair) -> Result<()> {
    let count = std::env::var("FWHA_GARBLED_FLOWS").map_or(Ok(FLOWS), |n| n.parse())?;
    let patience = PATIENCE + PATIENCE_PER_FLOW * count as u32;
    let garbler = Garbler::start(lab, SEED)?;
    let active = pair.settle(lab)?;
    let before = pair.roles()?;
    let (owner, replica) = (pair.node(active), pair.node(active.peer()));
    let client = Client::new(lab)?;
    let (answered, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let last_port = ports(count - 1).1;
    let sockets: Vec<UdpSocket> = (FIRST_SERVER_PORT as u16..=last_port)
        .map(|port| Ok(lab.within(Host::Server, || UdpSocket::bind(("0.0.0.0", port)))??))
        .collect::<Result<_>>()?;
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    }

    let began = Instant::now();
    std::thread::scope(|scope| -> Result<()> {
        for socket in &sockets {
            scope.spawn(|| echo(socket, &answered, &over));
        }
        let created = (|| {
            let mut random = Random(SEED);
            for part in 0..CHANGES {
                change(lab, &garbler, active, &mut random)?;
                begin(&client, &answered, part * count / CHANGES..(part + 1) * count / CHANGES)?;
                weather(&garbler);
            }
            // What was lost on its way to the firewall is sent once more.
            lab.wait_for("all flows on the active node", patience, || {
                let missing = missing(owner, count)?;
                begin(&client, &answered, missing.iter().copied())?;
                Ok(missing.is_empty().then_some(()))
            })
        })();
        over.store(true, Ordering::Relaxed);
        created
    })?;
    let created = began.elapsed();

    garbler.order(Orders::default());
    lab.heal(active, Cable::Sync)?;
    let healing = Instant::now();
    lab.wait_for("both nodes in sync, without the flows that have ended", patience, || {
        let mut well = true;
        for node in [owner, replica] {
            well &= in_sync(&node.ctl(&["status"])?) && node.ctl_lines(&["flows", "proto=icmp"])?.is_empty();
        }
        Ok(well.then_some(()))
    })?;
    let healed = healing.elapsed();

    let identities = |node: &NodeProcess| -> Result<BTreeSet<String>> {
        Ok(node.ctl_lines(&ANSWERED)?.iter().map(identity).collect())
    };
    let (owned, replicated) = (identities(owner)?, identities(replica)?);
    let difference: Vec<_> = owned.symmetric_difference(&replicated).take(5).collect();
    assert!(
        difference.is_empty(),
        "{} and {} flows, of which differ: {difference:?}",
        owned.len(),
        replicated.len()
    );
    assert!(owned.len() >= count, "{} flows", owned.len());
    assert_eq!(pair.roles()?, before, "trouble on the dedicated link moves nothing");

    let done = garbler.done();
    println!(
        "{count} flows in {created:.1?} ({:.0} a second); in sync {healed:.1?} after the trouble; {done:?}",
        count as f64 / created.as_secs_f64()
    );
    let peer = active.peer();
    for counter in [
        "lost",
        "retransmitted",
        "overflow",
        "forged",
        "replayed",
        "bulk_started",
        "digest_differs",
        "deleted_sent",
    ] {
        print!("{counter} {} ", owner.count(&format!("sync.peers.{peer}.{counter}"))?);
    }
    println!();
    for counter in
        ["forged", "replayed", "late", "created_received", "deleted_received", "swept", "digest_differs"]
    {
        print!("{counter} {} ", replica.count(&format!("sync.peers.{active}.{counter}"))?);
    }
    println!();
    assert!(done.lost > 0 && done.duplicated > 0 && done.garbled > 0, "{done:?}");
    garbler.end()?;
    Ok(())
}

#[test]
fn flows_that_begin_while_the_link_is_bad_are_on_both_nodes_when_it_is_good_again() {
    let options = LabOptions {
        max_flows: 524_288,
        extra_config: "\n[timeouts]\nudp = \"15m\"\nicmp = \"2s\"\n".into(),
        ..LabOptions::default()
    };
    with_pair(options, play);
}

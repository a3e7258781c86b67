//! Those who are not of the cluster, on the sync link and on the zones: refused, counted and named, and obeyed by nobody.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};

use anyhow::{Result, ensure};
use etherparse::{EtherType, Ethernet2Header, IpNumber, Ipv4Header};
use fwha::sys::socket::packet_socket;
use fwha_proto::vrrp::packet::{Advert, Checksum, Envelope, GROUP_V4, PROTOCOL};
use fwha_tests::lab::{CLIENT, Host, KEY_FILE, LAN_VIP, Lab, LabOptions, Node};
use fwha_tests::pair::{PATIENCE, Pair, active_node, peer_state, role};
use fwha_tests::scenario::{in_lab, with_pair};
use fwha_tests::traffic::{Copy, Plan};
use nix::net::if_::if_nametoindex;
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Ports of heartbeats and of replication.
const SYNC_PORTS: [u16; 2] = [4761, 4762];

fn sync_address(node: Node) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, 0, 1 + node as u8)
}

/// Checks a copy that ran to its end.
fn check_intact(copy: Copy) -> Result<()> {
    let (received, sent) = copy.end(|_| ())?;
    ensure!(received.error.is_none() && sent.error.is_none(), "{received:?} {sent:?}");
    ensure!(received.bytes == received.expected && received.sha256 == sent.sha256, "{received:?} {sent:?}");
    Ok(())
}

/// Junk of all lengths up to that of a packet, some of it with the beginning of a datagram of the protocol.
fn junk(number: usize) -> Vec<u8> {
    let mut state = number as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let mut bytes: Vec<u8> = (0..number * 7 % 1400).map(|_| next()).collect();
    // Magic, format, kind; then sender, receiver and purpose as they should be.
    if number.is_multiple_of(2) && bytes.len() > 12 {
        bytes[..4].copy_from_slice(&[b'F', b'W', 1, 1 + (number / 2 % 2) as u8]);
        bytes[8..12].copy_from_slice(&[1 + (number / 4 % 2) as u8, 1 + (number / 8 % 2) as u8, 1, 0]);
    }
    bytes
}

#[test]
fn noise_on_the_sync_link_is_counted_and_moves_nothing() {
    // Alone: so much noise takes time from every lab.
    with_pair(LabOptions::default(), |lab, pair| {
        const DATAGRAMS: usize = 3000;
        pair.settle(lab)?;
        let before = pair.roles()?;
        let mut copy = Copy::start(lab, Plan { size: 16 << 20, rate: 16 << 20, ..Plan::default() })?;
        copy.wait_for_bytes(1 << 20, |_| ())?;

        for to in Node::ALL {
            let socket = lab.within(to.peer().host(), || UdpSocket::bind((sync_address(to.peer()), 0)))??;
            for port in SYNC_PORTS {
                for number in 0..DATAGRAMS {
                    // Now and then as if from beyond the link.
                    socket.set_ttl(if number % 10 == 0 { 254 } else { 255 })?;
                    // A full queue on the way is as good as a datagram refused.
                    let _ = socket.send_to(&junk(number), (sync_address(to), port));
                }
            }
        }

        check_intact(copy)?;
        for node in Node::ALL {
            let peer = node.peer();
            for counter in [
                "link.heartbeat_refused.garbage",
                "link.heartbeat_refused.misdirected",
                "link.heartbeat_refused.ttl",
                "sync.garbage",
                "sync.refused_ttl",
                &format!("sync.peers.{peer}.other_cluster"),
            ] {
                pair.wait_for_count(lab, node, counter, 0)?;
            }
        }
        pair.settle(lab)?;
        assert_eq!(pair.roles()?, before);
        Ok(())
    });
}

/// An advertisement for the LAN's virtual router.
fn advert(priority: u8) -> Advert {
    let vip: Ipv4Addr = LAN_VIP.parse().expect("an address");
    Advert { vrid: 62, priority, interval_cs: 100, addresses: vec![IpAddr::V4(vip)] }
}

/// Sends a VRRP message from the client's box with any source address and TTL.
fn send_vrrp(lab: &Lab, source: Ipv4Addr, ttl: u8, message: &[u8]) -> Result<()> {
    lab.within(Host::Client, || -> Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.set_header_included_v4(true)?;
        socket.set_multicast_if_v4(&CLIENT.parse()?)?;
        let header = Ipv4Header::new(
            message.len() as u16,
            ttl,
            IpNumber::from(PROTOCOL),
            source.octets(),
            GROUP_V4.octets(),
        )?;
        let packet = [&header.to_bytes()[..], message].concat();
        socket.send_to(&packet, &SockAddr::from(SocketAddrV4::new(GROUP_V4, 0)))?;
        Ok(())
    })?
}

#[test]
fn adverts_that_are_broken_or_forged_are_counted_and_move_nothing() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let before = pair.roles()?;
        let client: Ipv4Addr = CLIENT.parse()?;
        let own = Ipv4Addr::new(192, 168, 100, 1 + active as u8);
        let message = |source, priority| {
            advert(priority).write(&Envelope::multicast(IpAddr::V4(source)), Checksum::Message)
        };
        let mut broken = message(client, 254);
        broken[6] ^= 0x55;
        let truncated = &message(client, 254)[..9];

        for _ in 0..20 {
            send_vrrp(lab, client, 255, &broken)?;
            send_vrrp(lab, client, 254, &message(client, 254))?;
            send_vrrp(lab, client, 255, truncated)?;
            // Well formed: a stranger who wants the role, the owner of the address, and the Active that gives up.
            send_vrrp(lab, client, 255, &message(client, 254))?;
            send_vrrp(lab, client, 255, &message(client, 255))?;
            send_vrrp(lab, own, 255, &message(own, 0))?;
        }

        for node in Node::ALL {
            for counter in ["vrrp_discarded.checksum", "vrrp_discarded.truncated"] {
                pair.wait_for_count(lab, node, &format!("vrrp.{counter}"), 19)?;
            }
            pair.wait_for_count(lab, node, "vrrp.vrrp_rx.ignored", 0)?;
            // What is not of the link does not come so far.
            pair.wait_for_count(lab, node, "drops.no_rule", 19)?;
            assert_eq!(pair.node(node).count("vrrp.vrrp_discarded.ttl")?, 0);
        }
        // Some more rounds of the true ones.
        let sent = pair.node(active).count("vrrp.vrrp_tx.adverts")?;
        pair.wait_for_count(lab, active, "vrrp.vrrp_tx.adverts", sent + 4)?;
        assert_eq!(pair.settle(lab)?, active);
        assert_eq!(pair.roles()?, before);
        Ok(())
    });
}

/// Waits until a node names why it refuses its peer's datagrams, on both channels, and has counted them.
fn names_its_peer(lab: &Lab, pair: &Pair, node: Node, reason: &str, counter: &str) -> Result<Value> {
    let said = |status: &Value| {
        let peer = &status["peers"][0];
        let told = |(n, channel): (usize, &str)| {
            peer["refused"][n]["channel"] == channel && peer["refused"][n]["reason"] == counter
        };
        peer["reason"].as_str().is_some_and(|text| text.contains(reason))
            && ["heartbeats", "replication"].into_iter().enumerate().all(told)
            && status["warnings"].as_array().is_some_and(|all| {
                all.iter().any(|warning| warning.as_str().is_some_and(|text| text.contains(reason)))
            })
    };
    let status = pair.wait_for_status(lab, node, &format!("{node} to say: {reason}"), said)?;
    pair.wait_for_count(lab, node, &format!("link.heartbeat_refused.{counter}"), 0)?;
    Ok(status)
}

#[test]
fn a_node_with_another_key_or_of_another_cluster_is_refused_and_named() {
    in_lab(LabOptions::beside(), |lab| {
        let other = lab.dir().join("other");
        fs::create_dir(&other)?;
        let good = fs::read_to_string(lab.config_path())?;
        let key = fs::read_to_string(lab.dir().join(KEY_FILE))?;
        let other_key: String = key.trim().chars().rev().collect();
        for (text, key, reason, counter) in [
            (good.clone(), other_key.as_str(), "sealed with another cluster key", "other_key"),
            (good.replace("\"edge\"", "\"hedge\""), key.trim(), "from another cluster", "other_cluster"),
        ] {
            fs::write(other.join("fwha.toml"), text)?;
            write_private(&other.join(KEY_FILE), key)?;
            let first = lab.start_node(Node::Fw1)?;
            lab.wait_for("fw1 to be active", PATIENCE, || {
                Ok((role(&first.ctl(&["status"])?) == Some("active")).then_some(()))
            })?;
            let stranger = lab.start_node_with(Node::Fw2, &other.join("fwha.toml"), "fw2")?;
            let mut pair = Pair::of(first, stranger);

            for node in Node::ALL {
                let status = names_its_peer(lab, &pair, node, reason, counter)?;
                println!("{counter}: {node} is {:?}, its peer {:?}", role(&status), peer_state(&status));
            }
            let copy = Copy::start(lab, Plan { size: 8 << 20, rate: 16 << 20, ..Plan::default() })?;
            check_intact(copy)?;
            let status = pair.node(Node::Fw1).ctl(&["status"])?;
            assert_eq!((role(&status), active_node(&status)), (Some("active"), Some("fw1")), "{status}");
            let status = pair.node(Node::Fw2).ctl(&["status"])?;
            assert_eq!(role(&status), Some("backup"), "{status}");
            for node in Node::ALL {
                assert!(pair.node_mut(node).term(PATIENCE)?.success());
            }
        }
        Ok(())
    });
}

fn write_private(path: &std::path::Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    Ok(writeln!(file, "{text}")?)
}

#[test]
fn the_cluster_key_is_replaced_under_traffic_and_nothing_stops() {
    with_pair(LabOptions::beside(), |lab, pair| {
        pair.settle(lab)?;
        let (before, sessions) = (pair.roles()?, sessions(pair)?);
        let copy = Copy::start(lab, Plan { size: 16 << 20, rate: 4 << 20, ..Plan::default() })?;
        let keygen = |option: &str| -> Result<()> {
            let file = lab.dir().join(KEY_FILE);
            let done = pair.node(Node::Fw1).ctl_output(&["keygen", option, &file.to_string_lossy()])?;
            ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            Ok(())
        };
        let warned = |node: Node| -> Result<bool> {
            let status = pair.node(node).ctl(&["status"])?;
            Ok(status["warnings"].to_string().contains("does not have the new cluster key"))
        };
        keygen("--rotate")?;
        pair.node(Node::Fw1).reload()?;
        lab.wait_for("fw1 to miss the new key on fw2", PATIENCE, || Ok(warned(Node::Fw1)?.then_some(())))?;
        // fw1 offers the new key, which fw2 refuses, and goes on with the old one.
        pair.wait_for_count(lab, Node::Fw2, "sync.peers.fw1.other_key", 0)?;
        ensure!(peer_state(&pair.node(Node::Fw2).ctl(&["status"])?) == Some("alive"));
        pair.node(Node::Fw2).reload()?;
        lab.wait_for("both nodes to use the new key", PATIENCE, || {
            Ok((!warned(Node::Fw1)? && !warned(Node::Fw2)?).then_some(()))
        })?;
        keygen("--finish")?;
        for node in Node::ALL {
            pair.node(node).reload()?;
        }
        check_intact(copy)?;
        pair.settle(lab)?;
        ensure!(pair.roles()? == before, "the group has moved");
        ensure!(self::sessions(pair)? == sessions, "a session was opened anew");
        Ok(())
    });
}

/// Replication sessions that each node has opened.
fn sessions(pair: &Pair) -> Result<[u64; 2]> {
    Ok([
        pair.node(Node::Fw1).count("sync.peers.fw2.sessions")?,
        pair.node(Node::Fw2).count("sync.peers.fw1.sessions")?,
    ])
}

/// An announcement by ARP that this MAC has an address.
fn announcement(mac: [u8; 6], address: Ipv4Addr) -> Vec<u8> {
    let nobody = [0; 6];
    let header = Ethernet2Header { source: mac, destination: [0xff; 6], ether_type: EtherType::ARP };
    let (kind, ends) = ([0, 1, 8, 0, 6, 4, 0, 1], address.octets());
    [&header.to_bytes()[..], &kind, &mac, &ends, &nobody, &ends].concat()
}

#[test]
fn an_address_that_a_stranger_claims_is_defended_and_named() {
    with_pair(LabOptions::beside(), |lab, pair| {
        const MAC: [u8; 6] = [2, 0, 0, 0, 9, 9];
        const TEXT: &str = "192.168.100.12 is claimed in zone lan by 02:00:00:00:09:09, too";
        let active = pair.settle(lab)?;
        let claim = || {
            lab.within(Host::Client, || -> Result<()> {
                let socket = packet_socket(if_nametoindex("eth0")?, 0)?;
                Ok(socket.send(&announcement(MAC, LAN_VIP.parse()?)).map(drop)?)
            })?
        };
        let told = || -> Result<usize> {
            let events = pair.node(active).ctl_lines(&["events"])?;
            let told = |e: &&Value| {
                e["kind"] == "vip-claimed" && e["text"].as_str().is_some_and(|t| t.starts_with(TEXT))
            };
            Ok(events.iter().filter(told).count())
        };
        // Just after a takeover the node that had the address before may speak for it: then nobody is told.
        lab.wait_for("the claim to be told", PATIENCE, || {
            claim()?;
            Ok((told()? > 0).then_some(()))
        })?;
        ensure!(pair.node(active).ctl(&["status"])?["warnings"].to_string().contains(TEXT));
        // A neighbour that believed it, as its entry shows, hears the truth with the next defence.
        let mac: String = MAC.map(|byte| format!("{byte:02x}")).join(":");
        let entry = ["ip", "neighbour", "replace", LAN_VIP, "lladdr", &mac, "dev", "eth0", "nud", "stale"];
        lab.exec(Host::Client, &entry)?;
        ensure!(lab.neighbour_mac(LAN_VIP)?.as_ref() == Some(&mac));
        lab.wait_for("the address to be defended", PATIENCE, || {
            claim()?;
            Ok((lab.neighbour_mac(LAN_VIP)?.as_ref() != Some(&mac)).then_some(()))
        })?;
        ensure!(lab.neighbour_mac(LAN_VIP)? == Some(lab.lan_mac(active)?));
        lab.wait_for("the defence to be told", PATIENCE, || Ok((told()? > 1).then_some(())))?;
        // The Backup has nothing to defend.
        let backup = pair.node(active.peer());
        ensure!(backup.count("flows.vip_claimed")? == 0);
        ensure!(!backup.ctl(&["status"])?["warnings"].to_string().contains(TEXT));
        Ok(())
    });
}

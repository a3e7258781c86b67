//! Ownership is a lease: a daemon that hangs loses it, one that is back in time keeps it.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fwha::sys::bpf::open_pinned;
use fwha_tests::lab::{CLIENT, Host, LAN_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair, event_ms, role};
use fwha_tests::scenario::with_pair;
use fwha_tests::sys::{packet_socket, receive};
use fwha_tests::traffic::{Probe, mono_ms};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The default of `lease`.
const LEASE_MS: f64 = 1000.0;
/// A lease is renewed with each heartbeat, so when the daemon stops it is younger than a few of them, late ones included.
const YOUNGER_MS: f64 = 200.0;

/// Asks on the LAN for an address, ten times: the MACs of all who answer.
fn who_has(lab: &Lab, address: Ipv4Addr) -> Result<BTreeSet<String>> {
    let client = lab.mac(Host::Client, "eth0")?;
    let client: Vec<u8> =
        client.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let socket = lab.within(Host::Client, || packet_socket("eth0"))??;
    let mut request = [&[0xff; 6], &client[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &client[..]].concat();
    request.extend(CLIENT.parse::<Ipv4Addr>()?.octets());
    request.extend([0; 6]);
    request.extend(address.octets());
    let mut answers = BTreeSet::new();
    for _ in 0..10 {
        nix::unistd::write(&socket, &request)?;
        let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        while poll(&mut ready, PollTimeout::from(50u8))? == 1 {
            let Some(received) = receive(socket.as_fd())? else { continue };
            let frame = received.frame;
            if frame.get(12..14) == Some(&[8, 6])
                && frame.get(20..22) == Some(&[0, 2])
                && frame[28..32] == address.octets()
            {
                let mac: Vec<String> = frame[22..28].iter().map(|byte| format!("{byte:02x}")).collect();
                answers.insert(mac.join(":"));
            }
        }
    }
    Ok(answers)
}

/// Makes the client send to one node whatever gratuitous ARP says, as a client behind a slow switch would.
fn nail_gateway(lab: &Lab, node: Node) -> Result<()> {
    let mac = lab.lan_mac(node)?;
    let permanent =
        ["ip", "neighbour", "replace", LAN_VIP, "lladdr", &mac, "dev", "eth0", "nud", "permanent"];
    lab.exec(Host::Client, &permanent)?;
    Ok(())
}

/// Sends datagrams from the client until one arrives at the server, or until `count` were sent. Whether one arrived.
fn crosses(lab: &Lab, port: u16, count: usize) -> Result<bool> {
    let server = lab.within(Host::Server, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)))??;
    let client = lab.within(Host::Client, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    server.set_read_timeout(Some(Duration::from_millis(20)))?;
    for _ in 0..count {
        client.send_to(b"anybody?", (SERVER, port))?;
        if server.recv(&mut [0; 16]).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_daemon_that_hangs_is_fenced_before_its_peer_takes_over_and_gives_way_when_it_wakes() {
    with_pair(LabOptions::default(), |lab, pair| {
        let hung = pair.settle(lab)?;
        let peer = hung.peer();
        nail_gateway(lab, hung)?;
        assert!(crosses(lab, 9001, 50)?, "{hung} forwards");

        let stopped_ms = mono_ms();
        pair.node(hung).stop()?;
        pair.wait_for_role(lab, peer, "active")?;

        let events = pair.node(peer).ctl_lines(&["events"])?;
        let took_over = events.iter().rfind(|e| e["kind"] == "takeover").context("no takeover")?;
        let after_ms = event_ms(took_over) - stopped_ms;
        println!("SIGSTOP: the peer took over after {after_ms:.0} ms");
        assert!(after_ms > LEASE_MS - YOUNGER_MS, "the peer took over while the lease ran: {after_ms} ms");
        assert!(!crosses(lab, 9002, 20)?, "{hung} forwards although its lease is over");

        // What the hung one said last is no split brain.
        assert_eq!(pair.node(peer).ctl(&["status"])?["groups"][0].get("also_active"), None);

        // It still has the addresses, and whoever asks for one is told of the peer's alone.
        let addresses = lab.exec(hung.host(), &["ip", "-oneline", "address"])?;
        assert!(addresses.contains(LAN_VIP), "{addresses}");
        let answers = who_has(lab, LAN_VIP.parse()?)?;
        assert_eq!(answers, BTreeSet::from([lab.lan_mac(peer)?]));

        pair.node(hung).cont()?;
        assert_eq!(pair.settle(lab)?, peer, "the one that slept gives way");
        assert!(pair.node(hung).count("drops.lease_expired")? >= 20);
        let addresses = lab.exec(hung.host(), &["ip", "-oneline", "address"])?;
        assert!(!addresses.contains(LAN_VIP), "{addresses}");
        lab.exec(Host::Client, &["ip", "neighbour", "delete", LAN_VIP, "dev", "eth0"])?;
        assert!(crosses(lab, 9003, 250)?, "{peer} forwards");
        Ok(())
    });
}

/// Every pin of the nodes, and the kernel's numbers of what it holds: of a map, of a program, of a link and its program.
fn pinned(lab: &Lab) -> Result<Vec<(PathBuf, String)>> {
    let pins = lab.pins()?;
    let numbers = |pin: &Path| -> Result<String> {
        let path = Path::new("/sys/fs/bpf").join(pin);
        if path.is_dir() {
            return Ok(String::new());
        }
        let object = open_pinned(&path).with_context(|| pin.display().to_string())?;
        let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", object.as_raw_fd()))?;
        let numbers: Vec<&str> = info.lines().filter(|line| line.contains("_id:")).collect();
        Ok(numbers.join(", "))
    };
    lab.in_mounts(|| pins.into_iter().map(|pin| Ok((pin.clone(), numbers(&pin)?))).collect())?
}

#[test]
fn a_daemon_that_is_back_within_its_lease_keeps_its_role_its_term_and_its_data_plane() {
    // Longer than a debug build needs to start on a busy machine.
    with_pair(LabOptions { lease: Some(Duration::from_secs(10)), ..LabOptions::default() }, |lab, pair| {
        let restarted = pair.settle(lab)?;
        let before = (pair.roles()?, pinned(lab)?);
        let numbered = |kind: &str| before.1.iter().any(|(_, numbers)| numbers.contains(kind));
        assert!(["map_id:", "prog_id:", "link_id:"].into_iter().all(numbered), "{:?}", before.1);
        let mut probe = Probe::start(lab)?;

        pair.node_mut(restarted).kill()?;
        let dead_ms = mono_ms();
        pair.restart(lab, restarted)?;
        wait_until_it_answers(lab, pair, restarted)?;
        println!("SIGKILL: back after {:.0} ms", mono_ms() - dead_ms);

        assert_eq!(pair.settle(lab)?, restarted);
        assert_eq!((pair.roles()?, pinned(lab)?), before);
        let events = pair.node(restarted.peer()).ctl_lines(&["events"])?;
        let moved = events.iter().any(|e| e["kind"] == "role" && event_ms(e) > dead_ms);
        assert!(!moved, "the peer's role changed: {events:?}");
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!(
            "restart within the lease: {} of {} probes lost, outage {:.1} ms",
            report.lost, report.sent, report.outage_ms
        );
        assert_eq!(report.lost, 0, "{report:?}");
        Ok(())
    });
}

fn wait_until_it_answers(lab: &Lab, pair: &Pair, node: Node) -> Result<()> {
    lab.wait_for("the restarted daemon to answer", PATIENCE, || {
        let status = pair.node(node).ctl(&["status"])?;
        Ok(role(&status).is_some().then_some(()))
    })
}

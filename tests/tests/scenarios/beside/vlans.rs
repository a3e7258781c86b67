//! A zone that is a VLAN of a trunk without a VLAN device. Nor has any host of the lab one: its client speaks in tagged frames itself.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use fwha_tests::lab::{Attach, CLIENT, Host, LAN_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;
use fwha_tests::sys::{ask_for_tags, packet_socket, receive};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::vlan_devices::leave_tags_on;

const VLAN: u16 = 100;
const PORT: u16 = 5000;
const CLIENT_PORT: u16 = 40_000;

/// The client, by frames.
struct Client {
    socket: OwnedFd,
    mac: [u8; 6],
    address: Ipv4Addr,
}

/// What came out of the VLAN.
enum Frame {
    /// Sender's MAC and address, and the address asked for.
    Arp([u8; 6], Ipv4Addr, Ipv4Addr),
    /// Source MAC and data.
    Datagram([u8; 6], Vec<u8>),
}

impl Client {
    fn open(lab: &Lab) -> Result<Client> {
        let mac = lab.mac(Host::Client, "eth0")?;
        let bytes: Vec<u8> =
            mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
        let socket = lab.within(Host::Client, || packet_socket("eth0"))??;
        ask_for_tags(socket.as_fd())?;
        Ok(Client { socket, mac: bytes[..].try_into()?, address: CLIENT.parse()? })
    }

    /// Sends a frame, given without its tag.
    fn send(&self, frame: &[u8]) -> Result<()> {
        let tag = [0x8100u16.to_be_bytes(), VLAN.to_be_bytes()].concat();
        nix::unistd::write(&self.socket, &[&frame[..12], &tag, &frame[12..]].concat())?;
        Ok(())
    }

    /// An ARP packet: request (1) or reply (2).
    fn arp(&self, operation: u8, to: ([u8; 6], Ipv4Addr)) -> Result<()> {
        let destination = if operation == 1 { [0xff; 6] } else { to.0 };
        let mut frame = [destination, self.mac].concat();
        frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, operation]);
        for part in [&self.mac[..], &self.address.octets(), &to.0, &to.1.octets()] {
            frame.extend(part);
        }
        self.send(&frame)
    }

    fn datagram(&self, to: [u8; 6], data: &[u8]) -> Result<()> {
        let mut frame = Vec::new();
        PacketBuilder::ethernet2(self.mac, to)
            .ipv4(self.address.octets(), SERVER.parse::<Ipv4Addr>()?.octets(), 64)
            .udp(CLIENT_PORT, PORT)
            .write(&mut frame, data)?;
        self.send(&frame)
    }

    /// The first frame of the VLAN that is wanted. Meanwhile who asks for the client's MAC is told.
    fn wait_for<T>(&self, what: &str, wanted: impl Fn(&Frame) -> Option<T>) -> Result<T> {
        let patience = PollTimeout::try_from(PATIENCE)?;
        loop {
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            ensure!(poll(&mut ready, patience)? == 1, "no {what}");
            let Some(received) = receive(self.socket.as_fd())? else { continue };
            let Some(frame) = read(&received.frame) else { continue };
            if let Frame::Arp(mac, sender, target) = frame
                && target == self.address
            {
                self.arp(2, (mac, sender))?;
            }
            if let Some(found) = wanted(&frame) {
                return Ok(found);
            }
        }
    }

    fn wait_for_datagram(&self, data: &[u8]) -> Result<[u8; 6]> {
        let what = format!("datagram {:?}", String::from_utf8_lossy(data));
        self.wait_for(&what, |frame| match frame {
            Frame::Datagram(mac, d) if d == data => Some(*mac),
            _ => None,
        })
    }
}

/// Reads a frame, if it is of the VLAN.
fn read(frame: &[u8]) -> Option<Frame> {
    if frame.get(12..16)? != [0x81, 0, 0, VLAN as u8] {
        return None;
    }
    let untagged = [&frame[..12], &frame[16..]].concat();
    let mac = |at: usize| untagged.get(at..at + 6)?.try_into().ok();
    let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(untagged.get(at..at + 4)?).ok()?));
    if untagged[12..14] == [8, 6] {
        return Some(Frame::Arp(mac(22)?, address(28)?, address(38)?));
    }
    let packet = SlicedPacket::from_ethernet(&untagged).ok()?;
    match (packet.net?, packet.transport?) {
        (NetSlice::Ipv4(_), TransportSlice::Udp(udp)) if udp.destination_port() == CLIENT_PORT => {
            Some(Frame::Datagram(mac(6)?, udp.payload().to_vec()))
        }
        _ => None,
    }
}

/// Makes the zone of the client a VLAN.
fn configure(lab: &Lab) -> Result<()> {
    let text = fs::read_to_string(lab.config_path())?;
    let tagged = text.replace("interfaces = [\"lan\"]", &format!("interfaces = [\"lan.{VLAN}\"]"));
    ensure!(tagged != text);
    fs::write(lab.config_path(), tagged).context("write the config file")
}

/// A datagram there and one back, the MAC that the client sends to, and the one that answered.
fn exchange(client: &Client, server: &UdpSocket, gateway: [u8; 6], data: &[u8]) -> Result<[u8; 6]> {
    client.datagram(gateway, data)?;
    let mut buffer = [0; 64];
    let (len, from): (usize, SocketAddr) =
        server.recv_from(&mut buffer).context("nothing reached the server")?;
    ensure!(buffer[..len] == *data && from.ip() == client.address, "{from}");
    let answer = [b"re: ", data].concat();
    server.send_to(&answer, from)?;
    client.wait_for_datagram(&answer)
}

/// Network cards (`cargo xtask kernels --nic`) may drop tags that the kernel has no device for; `status` says so, and what helps.
fn let_tags_in(lab: &Lab, pair: &Pair) -> Result<()> {
    for node in Node::ALL {
        let warns = || -> Result<bool> {
            Ok(pair.node(node).ctl(&["status"])?["warnings"].to_string().contains("drops VLAN tags"))
        };
        if warns()? {
            lab.ip(node.host(), "link set lan promisc on")?;
            ensure!(!warns()?, "promiscuous, and still");
        }
    }
    Ok(())
}

fn a_flow_survives_its_node(lab: &Lab) -> Result<()> {
    let (mut pair, active) = Pair::settled(lab)?;
    let_tags_in(lab, &pair)?;
    let client = Client::open(lab)?;
    let server = lab.within(Host::Server, || UdpSocket::bind(("0.0.0.0", PORT)))??;
    server.set_read_timeout(Some(PATIENCE))?;
    let vip: Ipv4Addr = LAN_VIP.parse()?;
    client.arp(1, ([0; 6], vip))?;
    let owner = |frame: &Frame| match frame {
        Frame::Arp(mac, sender, _) if *sender == vip => Some(*mac),
        _ => None,
    };
    let gateway = client.wait_for("answer for the VIP", owner)?;
    // What would become of its datagram is told with the tag, and without any that is sent.
    let place = format!("lan.{VLAN}");
    let (from, to) = (format!("{CLIENT}:{CLIENT_PORT}"), format!("{SERVER}:{PORT}"));
    let explain = |more: &[&str]| {
        let explained =
            pair.node(active).ctl(&[&["explain", "packet"], more, &["udp", &from, &to]].concat())?;
        ensure!(
            explained["interface_in"] == place.as_str() && explained["verdict"] == "forwarded",
            "{explained:#}"
        );
        ensure!(explained["steps"][0]["text"].to_string().contains("tagged 100 on lan"), "{explained:#}");
        Ok(explained)
    };
    for more in [&[][..], &["--in", &place], &["--in", "lan"]] {
        ensure!(explain(more)?["flow"].is_null());
    }
    // The answer that carries the flow into the main table, and one that finds it there.
    for data in [&b"one"[..], b"two"] {
        ensure!(exchange(&client, &server, gateway, data)? == gateway);
    }
    ensure!(explain(&[])?["flow"]["zone_out"] == "inet");
    lab.wait_for("the flow on the backup", PATIENCE, || {
        let flows = pair.node(active.peer()).ctl_lines(&["flows", "proto=udp", &format!("dport={PORT}")])?;
        Ok((!flows.is_empty()).then_some(()))
    })?;

    pair.node_mut(active).kill()?;
    let successor = client.wait_for("announcement of the VIP in the VLAN", |frame| {
        owner(frame).filter(|mac| *mac != gateway)
    })?;
    ensure!(exchange(&client, &server, successor, b"three")? == successor);
    let dropped = pair.node(active.peer()).count("drops.vlan")?;
    // Without a tag it is nobody's.
    nix::unistd::write(&client.socket, &[[0xff; 6].as_slice(), &client.mac, &[8, 6], &[0; 46]].concat())?;
    pair.wait_for_count(lab, active.peer(), "drops.vlan", dropped)?;
    Ok(())
}

#[test]
fn a_flow_of_a_vlan_survives_its_node_through_tc() {
    in_lab(LabOptions { attach: Attach::Tc, ..LabOptions::beside() }, |lab| {
        configure(lab)?;
        a_flow_survives_its_node(lab)
    });
}

#[test]
fn a_flow_of_a_vlan_survives_its_node_through_xdp_once_tags_are_left_on_frames() {
    in_lab(LabOptions { attach: Attach::Xdp, ..LabOptions::beside() }, |lab| {
        configure(lab)?;
        leave_tags_on(lab)?;
        a_flow_survives_its_node(lab)
    });
}

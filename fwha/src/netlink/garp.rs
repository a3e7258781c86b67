//! Gratuitous ARP and, for IPv6, unsolicited neighbour advertisements: telling the neighbours that a
//! VIP is here now.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use socket2::Socket;

use crate::sys::socket::{packet_socket, set_option};

/// Length of an ARP packet for IPv4 with its Ethernet header.
const ARP_LEN: usize = 42;

/// Length of a neighbour advertisement with one option and its Ethernet and IPv6 headers.
const ADVERTISEMENT_LEN: usize = 86;

/// Bytes that the kernel keeps for unsent frames: room for a thousand VIPs in one go.
const BUFFER: i32 = 1 << 20;

/// Announces VIPs on one interface. The socket stays open, so that an announcement costs no more
/// than the frames; when and how often to repeat is the caller's to decide.
#[derive(Debug)]
pub struct Garp {
    socket: Socket,
    mac: [u8; 6],
}

impl Garp {
    /// For an interface with this MAC.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_RAW` and `CAP_NET_ADMIN`; `ENODEV` if there is no such interface.
    pub fn open(ifindex: u32, mac: [u8; 6]) -> io::Result<Self> {
        let socket = packet_socket(ifindex, 0)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
        Ok(Self { socket, mac })
    }

    /// Sends one announcement for each VIP and returns how many left; fewer if the interface's queue
    /// is full, which a repetition mends.
    ///
    /// # Errors
    ///
    /// `ENETDOWN` if the interface is down, `ENXIO` if it is gone.
    pub fn announce(&self, vips: impl IntoIterator<Item = IpAddr>) -> io::Result<usize> {
        let mut sent = 0;
        for vip in vips {
            let result = match vip {
                IpAddr::V4(vip) => self.socket.send(&arp(self.mac, vip)),
                IpAddr::V6(vip) => self.socket.send(&neighbour_advertisement(self.mac, vip)),
            };
            match result {
                Ok(_) => sent += 1,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(sent)
    }
}

/// An ARP announcement (RFC 5227, 3; RFC 9568, 8.1.2 with erratum 7949: the VIP in both protocol
/// address fields). It is a request, which old stacks heed better than an unasked reply.
///
/// ```text
///   0  ff:ff:ff:ff:ff:ff      6  MAC          12  0x0806
///  14  1 (Ethernet)  16  0x0800  18  6  19  4  20  1 (request)
///  22  MAC           28  VIP     32  0 (6)     38  VIP          42  end
/// ```
fn arp(mac: [u8; 6], vip: Ipv4Addr) -> [u8; ARP_LEN] {
    let mut frame = [0; ARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&vip.octets());
    frame[38..].copy_from_slice(&vip.octets());
    frame
}

/// An unsolicited neighbour advertisement to all nodes (RFC 4861, 4.4 and 7.2.6; RFC 9568, 6.4.1: flags
/// router and override, not solicited). It comes from the VIP itself, which is an address of the node.
///
/// ```text
///   0  33:33:00:00:00:01      6  MAC           12  0x86dd
///  14  version 6  18  32      20  58 (ICMPv6)  21  hop limit 255  22  VIP   38  ff02::1
///  54  136 (advertisement)    56  checksum     58  flags          62  VIP
///  78  2 (link-layer address) 79  1            80  MAC            86  end
/// ```
fn neighbour_advertisement(mac: [u8; 6], vip: Ipv6Addr) -> [u8; ADVERTISEMENT_LEN] {
    /// Flags: router and override.
    const ROUTER_OVERRIDE: u8 = 0xa0;
    let mut frame = [0; ADVERTISEMENT_LEN];
    frame[..6].copy_from_slice(&[0x33, 0x33, 0, 0, 0, 1]);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
    frame[22..38].copy_from_slice(&vip.octets());
    frame[38..54].copy_from_slice(&Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets());
    frame[54] = 136;
    frame[58] = ROUTER_OVERRIDE;
    frame[62..78].copy_from_slice(&vip.octets());
    frame[78..80].copy_from_slice(&[2, 1]);
    frame[80..].copy_from_slice(&mac);
    let checksum = icmpv6_checksum(&frame[22..]);
    frame[56..58].copy_from_slice(&checksum.to_be_bytes());
    frame
}

/// The checksum of ICMPv6 (RFC 4443, 2.3): over the addresses and the message behind them, whose own
/// checksum is zero so far, its length and its protocol. The number of bytes is even.
fn icmpv6_checksum(addresses_and_message: &[u8]) -> u16 {
    let words = addresses_and_message.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|&w| u32::from(u16::from_be_bytes(w))).sum();
    sum += addresses_and_message.len() as u32 - 32 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_laid_out_as_in_rfc_826() {
        let frame = arp([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 0, 0, 12));
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x06, // Ethernet
            0, 1, 0x08, 0x00, 6, 4, 0, 1, // Ethernet, IPv4, lengths, request
            2, 0, 0, 0, 0, 1, 10, 0, 0, 12, // sender
            0, 0, 0, 0, 0, 0, 10, 0, 0, 12, // target
        ];
        assert_eq!(frame, expected);
    }
    #[test]
    fn an_advertisement_is_laid_out_as_in_rfc_4861() {
        let vip = "fe80::c".parse().unwrap();
        let frame = neighbour_advertisement([2, 0, 0, 0, 0, 1], vip);
        let mut expected = vec![0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]; // Ethernet
        expected.extend([0x60, 0, 0, 0, 0, 32, 58, 255]);
        expected.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12]); // source
        expected.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]); // destination
        // The checksum was worked out by hand: fe80 + c + ff02 + 1 + 20 + 3a + 8800 + a000 + fe80 + c
        // + 201 + 200 + 1 = 42877, folded 287b, inverted.
        expected.extend([136, 0, 0xd7, 0x84, 0xa0, 0, 0, 0]);
        expected.extend([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12]); // target
        expected.extend([2, 1, 2, 0, 0, 0, 0, 1]); // link-layer address
        assert_eq!(frame[..], expected);
    }
}

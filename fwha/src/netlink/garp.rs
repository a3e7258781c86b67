//! Gratuitous ARP: telling the neighbours that a VIP is here now.

use std::{io, net::Ipv4Addr};

use socket2::Socket;

use crate::sys::socket::{packet_socket, set_option};

/// Length of an ARP packet for IPv4 with its Ethernet header.
const FRAME_LEN: usize = 42;

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
    pub fn announce(&self, vips: impl IntoIterator<Item = Ipv4Addr>) -> io::Result<usize> {
        let mut sent = 0;
        for vip in vips {
            match self.socket.send(&frame(self.mac, vip)) {
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
fn frame(mac: [u8; 6], vip: Ipv4Addr) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&vip.octets());
    frame[38..].copy_from_slice(&vip.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_laid_out_as_in_rfc_826() {
        let frame = frame([2, 0, 0, 0, 0, 1], Ipv4Addr::new(10, 0, 0, 12));
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x08, 0x06, // Ethernet
            0, 1, 0x08, 0x00, 6, 4, 0, 1, // Ethernet, IPv4, lengths, request
            2, 0, 0, 0, 0, 1, 10, 0, 0, 12, // sender
            0, 0, 0, 0, 0, 0, 10, 0, 0, 12, // target
        ];
        assert_eq!(frame, expected);
    }
}

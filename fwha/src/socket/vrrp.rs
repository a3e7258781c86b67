//! VRRP over raw IPv4 sockets.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use fwha_common::flow::proto;
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::{PRIORITY_CONTROL, TOS_CONTROL};
use crate::sys::socket::{receive, send_from, set_option};

/// The group that VRRP routers listen to (RFC 9568, 5.1.1.2).
pub const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);

/// The only TTL of VRRP (RFC 9568, 5.1.1.3): it proves that no router was on the way.
pub const TTL: u8 = 255;

/// A received VRRP packet. Only the IP header was looked at, by the kernel: that the TTL is [`TTL`]
/// and that the message is any good is the reader's to check and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VrrpPacket<'a> {
    /// Sender.
    pub source: Ipv4Addr,
    /// [`GROUP`], or this node's address if the sender uses unicast.
    pub destination: Ipv4Addr,
    /// TTL as it arrived.
    pub ttl: u8,
    /// The VRRP message, without the IP header.
    pub message: &'a [u8],
    /// How long it waited in the socket.
    pub waited: Option<Duration>,
}

/// A VRRP socket on one interface.
#[derive(Debug)]
pub struct VrrpSocket {
    socket: Socket,
}

impl VrrpSocket {
    /// Joins [`GROUP`] on an interface. It hears nothing from elsewhere, and not itself.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_RAW`; `ENODEV` if there is no such interface.
    pub fn open(interface: &str, ifindex: u32) -> io::Result<Self> {
        let socket = Socket::new(
            Domain::IPV4,
            Type::RAW.nonblocking().cloexec(),
            Some(Protocol::from(i32::from(proto::VRRP))),
        )?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_multicast_ttl_v4(TTL.into())?;
        socket.set_ttl_v4(TTL.into())?;
        socket.set_multicast_loop_v4(false)?;
        // Only groups that this socket joined, not those that others on this machine did.
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, PRIORITY_CONTROL)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        socket.set_tos_v4(TOS_CONTROL)?;
        socket.join_multicast_v4_n(&GROUP, &InterfaceIndexOrAddress::Index(ifindex))?;
        Ok(Self { socket })
    }

    /// Sends a message to [`GROUP`] from `source`: the interface's primary address, never a VIP, by
    /// which the peers would take it for their own.
    ///
    /// # Errors
    ///
    /// Those of `sendmsg(2)`: `EADDRNOTAVAIL` or `EINVAL` if the node has no such address, `ENETDOWN`
    /// or `ENETUNREACH` if the interface is down.
    pub fn send(&self, source: Ipv4Addr, message: &[u8]) -> io::Result<()> {
        send_from(&self.socket, source, GROUP, message)
    }

    /// The next packet, if there is one. What is not whole, or no IPv4, is skipped.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(2)`; `ENETDOWN` once after the interface went down.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Option<VrrpPacket<'a>>> {
        let (header, arrival) = loop {
            let Some(arrival) = receive(&self.socket, buffer)? else { return Ok(None) };
            // The kernel hands over IPv4 with its header, checked (raw(7)).
            let header = usize::from(buffer[0] & 0xf) * 4;
            if !arrival.truncated && header >= 20 && arrival.len >= header {
                break (header, arrival);
            }
        };
        let buffer = &buffer[..arrival.len];
        let address = |at: usize| Ipv4Addr::new(buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]);
        Ok(Some(VrrpPacket {
            source: address(12),
            destination: address(16),
            ttl: buffer[8],
            message: &buffer[header..],
            waited: arrival.waited,
        }))
    }
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

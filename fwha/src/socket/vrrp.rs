//! VRRP over raw sockets, one for each address family.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use fwha_common::flow::proto;
use fwha_proto::vrrp::packet::{Envelope, GROUP_V4, GROUP_V6, TTL};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::{PRIORITY_CONTROL, Received, TOS_CONTROL};
use crate::sys::socket::{Arrival, receive, send_from, set_option};

/// A received VRRP packet. Only the IP header was looked at, by the kernel: that the TTL is [`TTL`]
/// and that the message is any good is the reader's to check and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VrrpPacket<'a> {
    /// Sender; destination, which is the group or, if the sender uses unicast, this node's address;
    /// TTL as it arrived.
    pub envelope: Envelope,
    /// The VRRP message, without the IP header.
    pub message: &'a [u8],
    /// How long it waited in the socket.
    pub waited: Option<Duration>,
}

/// A VRRP socket on one interface, for one address family.
#[derive(Debug)]
pub struct VrrpSocket {
    socket: Socket,
    ifindex: u32,
    v6: bool,
}

impl VrrpSocket {
    /// Joins the group that VRRP routers listen to (RFC 9568, 5.1.1.2 and 5.1.2.2) on an interface.
    /// It hears nothing from elsewhere, and not itself.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_RAW`; `ENODEV` if there is no such interface, or no IPv6 on it;
    /// `EAFNOSUPPORT` if the kernel has no IPv6.
    pub fn open(interface: &str, ifindex: u32, v6: bool) -> io::Result<Self> {
        let protocol = Some(Protocol::from(i32::from(proto::VRRP)));
        let domain = if v6 { Domain::IPV6 } else { Domain::IPV4 };
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), protocol)?;
        socket.bind_device(Some(interface.as_bytes()))?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, PRIORITY_CONTROL)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        // Below: only groups that this socket joined, not those that others on this machine did.
        if v6 {
            socket.set_multicast_hops_v6(TTL.into())?;
            socket.set_unicast_hops_v6(TTL.into())?;
            socket.set_multicast_loop_v6(false)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_ALL, 0)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
            socket.set_tclass_v6(TOS_CONTROL)?;
            socket.join_multicast_v6(&GROUP_V6, ifindex)?;
        } else {
            socket.set_multicast_ttl_v4(TTL.into())?;
            socket.set_ttl_v4(TTL.into())?;
            socket.set_multicast_loop_v4(false)?;
            set_option(&socket, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, 0)?;
            socket.set_tos_v4(TOS_CONTROL)?;
            socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(ifindex))?;
        }
        Ok(Self { socket, ifindex, v6 })
    }

    /// Whether it is for IPv6.
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// Sends a message to the group, or to a neighbour alone, from `source`: the interface's primary
    /// address, or its link-local one, never a VIP, by which the peers would take it for their own.
    ///
    /// # Errors
    ///
    /// Those of `sendmsg(2)`: `EADDRNOTAVAIL` or `EINVAL` if the node has no such address, `ENETDOWN`
    /// or `ENETUNREACH` if the interface is down.
    pub fn send(&self, source: IpAddr, to: IpAddr, message: &[u8]) -> io::Result<()> {
        send_from(&self.socket, self.ifindex, source, to, message)
    }

    /// The next packet, if there is one. What is not whole, or no IP, is refused.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(2)`; `ENETDOWN` once after the interface went down.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Received<VrrpPacket<'a>>> {
        let read = if self.v6 { unwrap_v6 } else { unwrap_v4 };
        let Some(arrival) = receive(&self.socket, buffer)? else { return Ok(Received::Nothing) };
        let Some((envelope, header)) = read(&arrival, buffer).filter(|_| !arrival.truncated) else {
            return Ok(Received::Refused);
        };
        let message = &buffer[header..arrival.len];
        Ok(Received::Accepted(VrrpPacket { envelope, message, waited: arrival.waited }))
    }
}

/// The kernel hands over IPv4 with its header, checked (raw(7)). Its length is returned, too.
fn unwrap_v4(arrival: &Arrival, buffer: &[u8]) -> Option<(Envelope, usize)> {
    let header = usize::from(buffer[0] & 0xf) * 4;
    let address = |at: usize| Ipv4Addr::new(buffer[at], buffer[at + 1], buffer[at + 2], buffer[at + 3]);
    (header >= 20 && arrival.len >= header).then(|| {
        let envelope = Envelope { src: address(12).into(), dst: address(16).into(), ttl: buffer[8] };
        (envelope, header)
    })
}

/// Of IPv6 it hands over the payload alone, and the header's fields beside it (ipv6(7)).
fn unwrap_v6(arrival: &Arrival, _: &[u8]) -> Option<(Envelope, usize)> {
    let (SocketAddr::V6(source), dst, ttl) = (arrival.source?, arrival.destination?, arrival.ttl?) else {
        return None;
    };
    Some((Envelope { src: IpAddr::V6(*source.ip()), dst: dst.into(), ttl }, 0))
}

impl AsFd for VrrpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! ICMP echo over raw sockets: the witnesses that the election asks.
//!
//! The election's own thread asks and hears, so an answer is not late on a machine that is busy with
//! something else.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{PRIORITY_CONTROL, Received, TOS_CONTROL};
use crate::sys::{
    random::random_u64,
    socket::{receive, set_option, set_option_bytes},
};

/// `ICMP_FILTER` of `SOL_RAW` (raw(7)): a bit for each type that is not wanted.
const ICMP_FILTER: (i32, i32) = (255, 1);
/// `ICMPV6_FILTER` of `IPPROTO_ICMPV6` (RFC 3542, section 3.2): the same, 256 bits.
const ICMPV6_FILTER: (i32, i32) = (libc::IPPROTO_ICMPV6, 1);
/// Length of an ICMP echo message with eight bytes of data.
const ECHO_LEN: usize = 16;
/// An IPv4 header with all options, and the message.
const BUFFER_LEN: usize = 60 + ECHO_LEN;

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EchoReply {
    /// Who answers.
    pub source: IpAddr,
    /// The number that was sent.
    pub nonce: u64,
    /// How long it waited in the socket.
    pub waited: Option<Duration>,
}

/// A socket for echo requests and their replies, for one address family. It is bound to no interface:
/// routes say where a witness is.
#[derive(Debug)]
pub struct EchoSocket {
    socket: Socket,
    v6: bool,
    /// One for all requests: to a firewall on the way they are one flow.
    identifier: u16,
}

impl EchoSocket {
    /// Opens one.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_RAW`; `EAFNOSUPPORT` if the kernel has no IPv6.
    pub fn open(v6: bool) -> io::Result<Self> {
        let (domain, protocol) =
            if v6 { (Domain::IPV6, Protocol::ICMPV6) } else { (Domain::IPV4, Protocol::ICMPV4) };
        let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, PRIORITY_CONTROL)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        let reply = usize::from(reply_type(v6));
        if v6 {
            let mut filter = [0xff; 32];
            // Words in the order of the machine (RFC 3542, section 3.2).
            let word = !(1u32 << (reply % 32));
            filter[reply / 32 * 4..][..4].copy_from_slice(&word.to_ne_bytes());
            set_option_bytes(&socket, ICMPV6_FILTER.0, ICMPV6_FILTER.1, &filter)?;
            socket.set_tclass_v6(TOS_CONTROL)?;
        } else {
            set_option(&socket, ICMP_FILTER.0, ICMP_FILTER.1, !(1 << reply))?;
            socket.set_tos_v4(TOS_CONTROL)?;
        }
        Ok(Self { socket, v6, identifier: random_u64()? as u16 })
    }

    /// Whether it is for IPv6.
    pub const fn is_v6(&self) -> bool {
        self.v6
    }

    /// Sends a request (RFC 792, RFC 4443) that carries a number.
    ///
    /// # Errors
    ///
    /// No route to it.
    pub fn ask(&self, target: IpAddr, nonce: u64) -> io::Result<()> {
        let mut echo = [0; ECHO_LEN];
        echo[0] = if self.v6 { 128 } else { 8 };
        echo[4..6].copy_from_slice(&self.identifier.to_be_bytes());
        echo[6..8].copy_from_slice(&(nonce as u16).to_be_bytes());
        echo[8..].copy_from_slice(&nonce.to_be_bytes());
        if !self.v6 {
            let checksum = super::checksum(&echo);
            echo[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        self.socket.send_to(&echo, &SocketAddr::new(target, 0).into()).map(drop)
    }

    /// The next reply, if there is one. Those to requests of others are refused.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(2)`.
    pub fn receive(&self) -> io::Result<Received<EchoReply>> {
        let mut buffer = [0; BUFFER_LEN];
        let Some(arrival) = receive(&self.socket, &mut buffer)? else { return Ok(Received::Nothing) };
        let packet = &buffer[..arrival.len.min(BUFFER_LEN)];
        // Of IPv4 a raw socket has the header, too.
        let header = if self.v6 { 0 } else { usize::from(packet.first().unwrap_or(&0) & 0xf) * 4 };
        let message = packet.get(header..).unwrap_or(&[]);
        let meant = message.first() == Some(&reply_type(self.v6))
            && message.get(4..6) == Some(&self.identifier.to_be_bytes());
        let nonce = message.get(8..ECHO_LEN).and_then(|data| data.try_into().ok());
        let (true, Some(nonce), Some(source)) = (meant, nonce, arrival.source) else {
            return Ok(Received::Refused);
        };
        let (source, nonce) = (source.ip(), u64::from_be_bytes(nonce));
        Ok(Received::Accepted(EchoReply { source, nonce, waited: arrival.waited }))
    }
}

/// The type of an echo reply.
const fn reply_type(v6: bool) -> u8 {
    if v6 { 129 } else { 0 }
}

impl AsFd for EchoSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

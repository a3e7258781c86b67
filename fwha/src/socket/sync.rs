//! Sealed datagrams over UDP on a sync link.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    ops::Add,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{PRIORITY_CONTROL, Received, TOS_CONTROL};
use crate::sys::socket::{receive, set_option};

/// The TTL of every datagram. A received one with less came from beyond the link.
pub const TTL: u8 = 255;

/// Bytes that the kernel keeps for unread or unsent datagrams, each way.
const BUFFER: i32 = 8 << 20;

/// A received datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Sender.
    pub source: SocketAddrV4,
    /// What it carries.
    pub payload: &'a [u8],
    /// How long it waited in the socket.
    pub waited: Option<Duration>,
}

/// What was refused below the seal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refused {
    /// Datagrams with a TTL below [`TTL`].
    pub ttl: u64,
    /// Datagrams longer than the reader's buffer.
    pub length: u64,
}

impl Add for Refused {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { ttl: self.ttl + other.ttl, length: self.length + other.length }
    }
}

/// A UDP socket on one sync link, or an [`absent`](Self::absent) one. Several threads may use it.
#[derive(Debug)]
pub struct SyncSocket {
    socket: Socket,
    local: SocketAddrV4,
    refused_ttl: AtomicU64,
    refused_length: AtomicU64,
}

impl SyncSocket {
    /// Bound to the link's address and to its interface. Datagrams are sent at control priority, and
    /// whole or not at all (`DF`).
    ///
    /// # Errors
    ///
    /// `EADDRNOTAVAIL` if the interface lacks the address, `EADDRINUSE` if another daemon has it,
    /// `ENODEV` if there is no such interface, `EPERM` without `CAP_NET_ADMIN`.
    pub fn open(interface: &str, local: SocketAddrV4) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        socket.bind_device(Some(interface.as_bytes()))?;
        socket.set_ttl_v4(TTL.into())?;
        socket.set_tos_v4(TOS_CONTROL)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_PRIORITY, PRIORITY_CONTROL)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, BUFFER)?;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
        set_option(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DO)?;
        socket.bind(&local.into())?;
        let local = socket.local_addr()?.as_socket_ipv4().unwrap_or(local);
        Ok(Self { socket, local, refused_ttl: AtomicU64::new(0), refused_length: AtomicU64::new(0) })
    }

    /// Stands for the socket of a link that has no interface or no address yet: nothing arrives, nothing can be sent.
    ///
    /// # Errors
    ///
    /// The kernel has no socket to give.
    pub fn absent() -> io::Result<Self> {
        // Never bound. `poll(2)` wants a descriptor.
        let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        let local = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);
        Ok(Self { socket, local, refused_ttl: AtomicU64::new(0), refused_length: AtomicU64::new(0) })
    }

    /// The address that it is bound to; unspecified if it is absent.
    pub fn local(&self) -> SocketAddrV4 {
        self.local
    }

    /// Sends a datagram; whether it left is told. If the kernel has no room for it now, it did not,
    /// nor if nobody listened when the one before arrived (`ECONNREFUSED`).
    ///
    /// # Errors
    ///
    /// Those of `sendto(2)`: `EMSGSIZE` above the link's MTU, `ENETUNREACH` if it is down or absent.
    pub fn send(&self, to: SocketAddrV4, payload: &[u8]) -> io::Result<bool> {
        if self.local.ip().is_unspecified() {
            return Err(io::Error::from_raw_os_error(libc::ENETUNREACH));
        }
        match self.socket.send_to(payload, &to.into()) {
            Ok(_) => Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ECONNREFUSED)) => {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// The next datagram, if there is one. It is refused, and counted in [`refused`](Self::refused), if it is not from the
    /// link or too long for `buffer`.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(2)`.
    pub fn receive<'a>(&self, buffer: &'a mut [u8]) -> io::Result<Received<Datagram<'a>>> {
        let arrival = match receive(&self.socket, buffer) {
            Ok(Some(arrival)) => arrival,
            Ok(None) => return Ok(Received::Nothing),
            // The peer's kernel said that nobody listens there; not an arrival.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => return Ok(Received::Refused),
            Err(e) => return Err(e),
        };
        if arrival.ttl != Some(TTL) {
            self.refused_ttl.fetch_add(1, Ordering::Relaxed);
        } else if arrival.truncated {
            self.refused_length.fetch_add(1, Ordering::Relaxed);
        } else if let Some(SocketAddr::V4(source)) = arrival.source {
            let payload = &buffer[..arrival.len];
            return Ok(Received::Accepted(Datagram { source, payload, waited: arrival.waited }));
        }
        Ok(Received::Refused)
    }

    /// What was refused so far.
    pub fn refused(&self) -> Refused {
        Refused {
            ttl: self.refused_ttl.load(Ordering::Relaxed),
            length: self.refused_length.load(Ordering::Relaxed),
        }
    }
}

impl AsFd for SyncSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! Rings when routes change.
//!
//! A routing daemon that starts or loses a neighbour changes a million of them in seconds. None is looked at: that there
//! was one says all. So they come by a socket of their own, which is emptied without reading, a hundred times a
//! second at most; they neither cost much nor push out what [`super::Monitor`] waits for, as a carrier that is lost.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt,
    },
};
use rtnetlink::MulticastGroup;
use tokio::time::{Instant, sleep_until};

use crate::sys::{socket::set_option, watch::Watch};

/// What changes the way of packets. Of a next hop that is deleted only [`MulticastGroup::Nexthop`] tells: its routes
/// go without a word (`__remove_nexthop_fib`, net/ipv4/nexthop.c).
const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv6Rule,
    MulticastGroup::Nexthop,
];

/// From one ringing to the next, at least. The first one after a rest comes at once.
const PAUSE: Duration = Duration::from_millis(10);

/// The kernel's buffer for what is not read, in bytes. It may well be full: that rings, too.
const BUFFER: usize = 16 << 10;

/// The socket.
#[derive(Debug)]
pub struct Bell {
    socket: OwnedFd,
    watch: Watch,
    /// Not before that.
    next: Instant,
}

impl Bell {
    /// Listens, on the present tokio runtime.
    ///
    /// # Errors
    ///
    /// No netlink socket.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        for group in GROUPS {
            set_option(&socket, libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, group as i32)?;
        }
        let watch = Watch::new(socket.as_fd())?;
        Ok(Self { socket, watch, next: Instant::now() })
    }

    /// Waits until routes have changed since it last did. The future may be dropped.
    ///
    /// # Errors
    ///
    /// The socket is of no use any more.
    pub async fn rung(&mut self) -> io::Result<()> {
        loop {
            sleep_until(self.next).await;
            let mut readable = self.watch.readable().await?;
            // Whoever drops the future from here on has heard it.
            if self.empty()? {
                self.next = Instant::now() + PAUSE;
                return Ok(());
            }
            readable.clear_ready();
        }
    }

    /// Takes all that is there; returns whether there was anything. What the kernel left out for want of room it did
    /// so before the socket was empty.
    fn empty(&self) -> io::Result<bool> {
        let mut any = false;
        loop {
            match recv(self.socket.as_raw_fd(), &mut [], MsgFlags::empty()) {
                Ok(_) | Err(Errno::ENOBUFS) => any = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(any),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

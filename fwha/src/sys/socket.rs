//! Sockets: link-layer addresses, options that no crate has, and datagrams with what the kernel
//! knows about them.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, SockaddrIn6, sendmsg};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::{check, clock::wall_ns};

/// A nonblocking packet socket (packet(7)) on one interface, for whole Ethernet frames. It receives
/// frames of `ether_type`, or none if that is 0; what it writes leaves by the interface as it is.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_RAW`; `ENODEV` if the interface is gone.
pub fn packet_socket(ifindex: u32, ether_type: u16) -> io::Result<Socket> {
    // Protocol 0: nothing is received before the socket is bound to its interface.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), Some(Protocol::from(0)))?;
    socket.bind(&link_address(ifindex, ether_type))?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    Ok(socket)
}

fn link_address(ifindex: u32, ether_type: u16) -> SockAddr {
    // SAFETY: plain integers, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = ether_type.to_be();
    address.sll_ifindex = ifindex as i32;
    // SAFETY: the storage is larger than a `sockaddr_ll` and suitably aligned, and the length is
    // that of what is written.
    let ((), address) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(address);
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
    }
    .expect("the closure returns Ok");
    address
}

/// Sets an option whose value is an `int`.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option_bytes(socket, level, name, &value.to_ne_bytes())
}

/// Sets an option whose value is these bytes.
///
/// # Errors
///
/// Those of `setsockopt(2)`.
pub fn set_option_bytes(socket: impl AsFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel copies as many bytes as the value has, which outlives the call.
    check(unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, value.as_ptr().cast(), value.len() as u32)
    })
    .map(drop)
}

/// Has an interface take frames to one more MAC for as long as a packet socket is open (`PACKET_MR_UNICAST`).
///
/// # Errors
///
/// `ENODEV` if there is no such interface; `EINVAL` if its addresses are not MACs.
pub fn add_unicast(socket: impl AsFd, ifindex: u32, mac: [u8; 6]) -> io::Result<()> {
    let mut address = [0; 8];
    address[..6].copy_from_slice(&mac);
    let request = libc::packet_mreq {
        mr_ifindex: ifindex as i32,
        mr_type: libc::PACKET_MR_UNICAST as u16,
        mr_alen: 6,
        mr_address: address,
    };
    // SAFETY: the value is a `packet_mreq` of the size given and outlives the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const request).cast(),
            size_of::<libc::packet_mreq>() as u32,
        )
    })
    .map(drop)
}

/// What the kernel knows about a received datagram or frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Bytes of it in the buffer.
    pub len: usize,
    /// Whether it was longer than the buffer.
    pub truncated: bool,
    /// The sender, for IP sockets; the port of a raw socket is 0.
    pub source: Option<SocketAddr>,
    /// Its destination, if an IPv6 socket asks for it (`IPV6_RECVPKTINFO`).
    pub destination: Option<Ipv6Addr>,
    /// Its TTL or hop limit, if the socket asks for it (`IP_RECVTTL`, `IPV6_RECVHOPLIMIT`).
    pub ttl: Option<u8>,
    /// How long it waited in the socket, if the socket asks for stamps (`SO_TIMESTAMPNS`). A step of
    /// the wall clock in between distorts it, so it is never below zero nor above [`MAX_WAIT`].
    pub waited: Option<Duration>,
}

/// The longest wait in a socket that is believed.
pub const MAX_WAIT: Duration = Duration::from_secs(10);

/// Receives one datagram or frame from a nonblocking socket; `None` if there is none.
///
/// # Errors
///
/// Those of `recvmsg(2)` but `EAGAIN` and `EINTR`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Arrival>> {
    /// Room for ancillary data, aligned as `cmsghdr` wants it.
    #[repr(C, align(8))]
    struct Control([u8; 128]);

    // SAFETY: plain integers and pointers, for which zero is valid.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut control = Control([0; 128]);
    let mut iov = [IoSliceMut::new(buffer)];
    // SAFETY: as above; every member that matters is set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut storage).cast();
    message.msg_namelen = size_of::<libc::sockaddr_storage>() as u32;
    // `IoSliceMut` has the layout of `iovec` (its documentation).
    message.msg_iov = iov.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let len = loop {
        // SAFETY: all members of `message` point to live memory of the lengths given.
        match check(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, 0) } as libc::c_long)
        {
            Ok(n) => break n as usize,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
    };
    let mut arrival = Arrival {
        len,
        truncated: message.msg_flags & libc::MSG_TRUNC != 0,
        source: None,
        destination: None,
        ttl: None,
        waited: None,
    };
    if i32::from(storage.ss_family) == libc::AF_INET
        && message.msg_namelen as usize >= size_of::<libc::sockaddr_in>()
    {
        // SAFETY: the kernel wrote a `sockaddr_in`, and the storage is larger and aligned for it.
        let name = unsafe { (&raw const storage).cast::<libc::sockaddr_in>().read() };
        let address = Ipv4Addr::from(u32::from_be(name.sin_addr.s_addr));
        arrival.source = Some(SocketAddrV4::new(address, u16::from_be(name.sin_port)).into());
    }
    if i32::from(storage.ss_family) == libc::AF_INET6
        && message.msg_namelen as usize >= size_of::<libc::sockaddr_in6>()
    {
        // SAFETY: the kernel wrote a `sockaddr_in6`, and the storage is larger and aligned for it.
        let name = unsafe { (&raw const storage).cast::<libc::sockaddr_in6>().read() };
        let address = Ipv6Addr::from(name.sin6_addr.s6_addr);
        arrival.source =
            Some(SocketAddrV6::new(address, u16::from_be(name.sin6_port), 0, name.sin6_scope_id).into());
    }
    // SAFETY: `message` still describes `control`; the kernel set its length.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: a header returned by CMSG_FIRSTHDR or CMSG_NXTHDR lies whole within `control`.
        let head = unsafe { *header };
        // SAFETY: as above.
        let data = unsafe { libc::CMSG_DATA(header) };
        match (head.cmsg_level, head.cmsg_type) {
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: the kernel puts an `in6_pktinfo` there (net/ipv6/datagram.c).
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                arrival.destination = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr));
            }
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                // SAFETY: the kernel puts an `int` there (net/ipv4/ip_sockglue.c, net/ipv6/datagram.c).
                let ttl = unsafe { data.cast::<i32>().read_unaligned() };
                arrival.ttl = u8::try_from(ttl).ok();
            }
            (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) => {
                // SAFETY: the kernel puts a `timespec` there (socket(7)).
                let stamp = unsafe { data.cast::<libc::timespec>().read_unaligned() };
                let stamp_ns = stamp.tv_sec as u64 * 1_000_000_000 + stamp.tv_nsec as u64;
                arrival.waited = Some(Duration::from_nanos(wall_ns().saturating_sub(stamp_ns)).min(MAX_WAIT));
            }
            _ => {}
        }
        // SAFETY: `message` and `header` are those of above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(Some(arrival))
}

/// Sends a datagram from `source`, an address of this node, to `destination`, which is of the same
/// family, by the interface `ifindex`.
///
/// # Errors
///
/// Those of `sendmsg(2)`; `EINVAL` if the families differ.
pub fn send_from(
    socket: impl AsFd,
    ifindex: u32,
    source: IpAddr,
    destination: IpAddr,
    payload: &[u8],
) -> io::Result<()> {
    let (fd, payload_vector) = (socket.as_fd().as_raw_fd(), [IoSlice::new(payload)]);
    let sent = match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let info = libc::in_pktinfo {
                ipi_ifindex: ifindex as i32,
                ipi_spec_dst: libc::in_addr { s_addr: u32::from(source).to_be() },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            let control = [ControlMessage::Ipv4PacketInfo(&info)];
            let to = SockaddrIn::from(SocketAddrV4::new(destination, 0));
            sendmsg(fd, &payload_vector, &control, MsgFlags::empty(), Some(&to))?
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let info = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
                ipi6_ifindex: ifindex,
            };
            let control = [ControlMessage::Ipv6PacketInfo(&info)];
            let to = SockaddrIn6::from(SocketAddrV6::new(destination, 0, 0, ifindex));
            sendmsg(fd, &payload_vector, &control, MsgFlags::empty(), Some(&to))?
        }
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    if sent == payload.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

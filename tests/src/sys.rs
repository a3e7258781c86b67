//! Everything unsafe of this crate: starting a program in other namespaces, ethtool, packet sockets, `TCP_INFO`, signals,
//! BPF maps of any shape.

use std::ffi::c_int;
use std::io;
use std::mem;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};

use aya::maps::{MapData, MapType};
use aya_obj::generated::{bpf_attr, bpf_cmd};
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// Makes `command` start in the network namespace `net` and, if given, the mount namespace `mnt`.
///
/// The descriptors must stay open until the command was spawned. After the change of mount namespace the working
/// directory is `/`.
pub fn start_in(command: &mut Command, net: BorrowedFd<'_>, mnt: Option<BorrowedFd<'_>>) {
    let (net, mnt) = (net.as_raw_fd(), mnt.map(|fd| fd.as_raw_fd()));
    let enter = move |fd: RawFd, kind: CloneFlags| {
        // SAFETY: the caller keeps the descriptor open until the spawn; it is borrowed for this one system call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        nix::sched::setns(fd, kind).map_err(io::Error::from)
    };
    let enter_both = move || {
        enter(net, CloneFlags::CLONE_NEWNET)?;
        mnt.map_or(Ok(()), |mnt| enter(mnt, CloneFlags::CLONE_NEWNS))
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(enter_both) };
}

/// Makes `command` start in a time namespace whose `CLOCK_MONOTONIC` is ahead by so many seconds (`time_namespaces(7)`; since
/// Linux 6.3 a program is in it from its `exec` on).
pub fn start_ahead(command: &mut Command, ahead: std::time::Duration) {
    let offsets = format!("monotonic {} 0\n", ahead.as_secs());
    let enter = move || {
        // SAFETY: takes flags, returns a status.
        if unsafe { libc::unshare(libc::CLONE_NEWTIME) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let file = nix::fcntl::open(
            c"/proc/self/timens_offsets",
            nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )?;
        nix::unistd::write(&file, offsets.as_bytes())?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only: no allocation, no lock.
    unsafe { command.pre_exec(enter) };
}

/// An on/off feature of a network interface, by its ethtool command (`linux/ethtool.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Feature {
    /// `ETHTOOL_STXCSUM`: the device finishes checksums on transmit. Off also ends segmentation offload.
    TxChecksum = 0x17,
    /// `ETHTOOL_SGRO`: receive coalescing. On a veth it also starts the NAPI that an XDP redirect from the peer needs.
    Gro = 0x2c,
}

/// `struct ethtool_value`: command, value.
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// Sets a [`Feature`] of an interface in the network namespace of the calling thread.
///
/// # Errors
///
/// That of the socket or of the `SIOCETHTOOL` call; a name of 16 bytes or more is `InvalidInput`.
pub fn set_feature(interface: &str, feature: Feature, on: bool) -> io::Result<()> {
    ethtool(interface, EthtoolValue { cmd: feature as u32, data: on.into() })
}

/// Has a network interface in the network namespace of the calling thread put VLAN tags on frames and take them off
/// itself, beside the frame, or leave that to the kernel.
///
/// # Errors
///
/// As [`set_feature`].
pub fn set_vlan_offload(interface: &str, on: bool) -> io::Result<()> {
    /// `ETHTOOL_SFLAGS`, and its `ETH_FLAG_TXVLAN` and `ETH_FLAG_RXVLAN`.
    const SFLAGS: u32 = 0x26;
    const VLAN_FLAGS: u32 = 1 << 7 | 1 << 8;
    ethtool(interface, EthtoolValue { cmd: SFLAGS, data: if on { VLAN_FLAGS } else { 0 } })
}

/// `struct ethtool_channels`: command, then maxima and numbers of queues that receive, send, do other things, do both.
#[repr(C)]
struct EthtoolChannels {
    cmd: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// Gives an interface in the network namespace of the calling thread so many queues in each direction.
///
/// # Errors
///
/// As [`set_feature`].
pub fn set_queues(interface: &str, queues: u32) -> io::Result<()> {
    /// `ETHTOOL_SCHANNELS`.
    const SCHANNELS: u32 = 0x3d;
    let (max, other, combined) = ([0; 4], 0, 0);
    ethtool(interface, EthtoolChannels { cmd: SCHANNELS, max, rx: queues, tx: queues, other, combined })
}

/// `value` is the structure that belongs to the command in its first field.
fn ethtool<T>(interface: &str, mut value: T) -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name {interface} is too long"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: `request` is a whole ifreq whose data pointer leads to the live structure that SIOCETHTOOL asks for with
    // this command; both outlive the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A packet socket that sends and receives whole frames at an interface, in the network namespace of the calling thread. It
/// does not receive what leaves there, and never waits.
///
/// # Errors
///
/// That of the system call.
pub fn packet_socket(interface: &str) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

    let ifindex = nix::net::if_::if_nametoindex(interface)?;
    // With no protocol nothing arrives before `bind` names interface and protocol.
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
    let on: c_int = 1;
    // SAFETY: the option's value is a live c_int of the given size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_IGNORE_OUTGOING,
            (&raw const on).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = ifindex as i32;
    let len = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is a whole sockaddr_ll of that length.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

/// A frame that a packet socket received, with the tag that the kernel took off it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The frame as it was on the wire.
    pub frame: Vec<u8>,
    /// How the kernel sees it (`PACKET_HOST` and the like of `linux/if_packet.h`). A frame of a VLAN for which it has
    /// no device is another host's.
    pub kind: u8,
}

/// Has a packet socket say which tag the kernel took off a frame, for [`receive`].
///
/// # Errors
///
/// That of the system call.
pub fn ask_for_tags(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: c_int = 1;
    // SAFETY: the option's value is a live c_int of the given size.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_AUXDATA,
            (&raw const on).cast(),
            mem::size_of::<c_int>() as libc::socklen_t,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a frame, if one is there, from a packet socket of which [`ask_for_tags`] was asked.
///
/// # Errors
///
/// That of the system call.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<Received>> {
    /// Room for ancillary data, aligned as `cmsghdr` wants it.
    #[repr(C, align(8))]
    struct Control([u8; 128]);

    let mut frame = vec![0; 2048];
    let mut control = Control([0; 128]);
    // SAFETY: all-zero bytes are a valid sockaddr_ll.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: all-zero bytes are a valid msghdr; what matters is set below.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: all members of `message` point to live memory of the lengths given.
    let len = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if len < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    }
    frame.truncate(len as usize);
    // SAFETY: `message` still describes `control`; the kernel set its length. A header that is not null lies in it.
    if let Some(header) = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }
        && (header.cmsg_level, header.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA)
    {
        // SAFETY: the kernel puts a `tpacket_auxdata` there (packet(7)).
        let told = unsafe { libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned() };
        if told.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
            let tag = [told.tp_vlan_tpid.to_be_bytes(), told.tp_vlan_tci.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
    }
    Ok(Some(Received { frame, kind: from.sll_pkttype }))
}

/// Segments this end of the connection has sent again so far (`tcpi_total_retrans`).
///
/// # Errors
///
/// That of `getsockopt(TCP_INFO)`.
pub fn retransmissions(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: all-zero bytes are a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut length = mem::size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long; an older kernel writes fewer.
    let done = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(info.tcpi_total_retrans) }
}

/// The write end of the pipe to the thread of [`on_termination`]; -1 until there is one.
static SIGNAL_PIPE: AtomicI32 = AtomicI32::new(-1);

extern "C" fn forward_signal(signal: c_int) {
    let byte = [signal as u8];
    // SAFETY: write(2) is async-signal-safe; the descriptor is never closed and the byte lives on this stack.
    unsafe { libc::write(SIGNAL_PIPE.load(Ordering::Relaxed), byte.as_ptr().cast(), 1) };
}

/// Runs `clean_up` on a thread of its own when SIGINT, SIGTERM or SIGHUP arrives, then ends the process with 128 plus
/// the signal's number. Call it once.
///
/// # Errors
///
/// That of the pipe, the thread, or `sigaction`.
pub fn on_termination(clean_up: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    SIGNAL_PIPE.store(std::os::fd::IntoRawFd::into_raw_fd(writer), Ordering::Relaxed);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let mut byte = [0];
        while !matches!(nix::unistd::read(&reader, &mut byte), Ok(1)) {}
        clean_up();
        std::process::exit(128 + i32::from(byte[0]));
    })?;
    let action = SigAction::new(SigHandler::Handler(forward_signal), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler calls write(2) on an open descriptor and nothing else, so it may run at any moment.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Takes everything out of a BPF map: a table or an array of maps has no elements then, those of another array are zeros.
///
/// # Errors
///
/// When it is of another kind, or the kernel refuses.
pub fn empty_map(map: &MapData) -> io::Result<()> {
    let info = map.info().map_err(io::Error::other)?;
    let per_cpu = match info.map_type().map_err(io::Error::other)? {
        MapType::Hash | MapType::LruHash | MapType::ArrayOfMaps => return delete_all(map, info.key_size()),
        MapType::Array => None,
        MapType::PerCpuArray => Some(aya::util::nr_cpus().map_err(|(_, error)| error)?),
        other => return Err(io::Error::other(format!("a map of kind {other:?}"))),
    };
    let value = info.value_size() as usize;
    // Of an element per CPU, each value takes whole words.
    let element = per_cpu.map_or(value, |cpus| value.next_multiple_of(8) * cpus);
    let indexes: Vec<u32> = (0..info.max_entries()).collect();
    let zeros = vec![0u64; (element * indexes.len()).div_ceil(8)];
    let mut attr = zeroed_attr();
    attr.batch.map_fd = map.fd().as_fd().as_raw_fd() as u32;
    attr.batch.keys = indexes.as_ptr() as u64;
    attr.batch.values = zeros.as_ptr() as u64;
    attr.batch.count = info.max_entries();
    // SAFETY: as many keys of four bytes, which those of arrays have, and elements of the map's size; the kernel reads them.
    unsafe { bpf(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }
}

/// Deletes all elements of a map.
fn delete_all(map: &MapData, key_size: u32) -> io::Result<()> {
    let is_end = |error: &io::Error| error.raw_os_error() == Some(libc::ENOENT);
    let mut keys: Vec<Vec<u8>> = Vec::new();
    loop {
        let mut next = vec![0u8; key_size as usize];
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = keys.last().map_or(0, |key| key.as_ptr() as u64);
        attr.__bindgen_anon_2.__bindgen_anon_1.next_key = next.as_mut_ptr() as u64;
        // SAFETY: a key of the map's size, or none for the first, and room for another.
        match unsafe { bpf(bpf_cmd::BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Ok(()) => keys.push(next),
            Err(error) if is_end(&error) => break,
            Err(error) => return Err(error),
        }
    }
    for key in keys {
        let mut attr = zeroed_attr();
        attr.__bindgen_anon_2.map_fd = map.fd().as_fd().as_raw_fd() as u32;
        attr.__bindgen_anon_2.key = key.as_ptr() as u64;
        // SAFETY: a key of the map's size.
        match unsafe { bpf(bpf_cmd::BPF_MAP_DELETE_ELEM, &mut attr) } {
            // An array of maps has indexes without a map.
            Err(error) if !is_end(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn zeroed_attr() -> bpf_attr {
    // SAFETY: a union of plain integers, for which zero is valid; the kernel demands that unused bytes be zero.
    unsafe { mem::zeroed() }
}

/// Calls `bpf(2)`.
///
/// # Safety
///
/// Addresses and lengths in `attr` must describe memory that the kernel may read or write for `command`.
unsafe fn bpf(command: bpf_cmd, attr: &mut bpf_attr) -> io::Result<()> {
    let size = mem::size_of::<bpf_attr>();
    // SAFETY: `attr` is whole and of that size; the rest is the caller's promise.
    match unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, &raw mut *attr, size) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

//! What only ethtool knows of a network interface.

use std::{io, os::fd::AsRawFd};

use nix::{
    ifaddrs::{InterfaceAddress, getifaddrs},
    net::if_::InterfaceFlags,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::check;

/// `SIOCETHTOOL` of include/uapi/linux/sockios.h.
const SIOCETHTOOL: u64 = 0x8946;
/// `ETHTOOL_GDRVINFO` of include/uapi/linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;

/// `ETHTOOL_GFLAGS` of include/uapi/linux/ethtool.h.
const ETHTOOL_GFLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN` of include/uapi/linux/ethtool.h.
const ETH_FLAG_RXVLAN: u32 = 1 << 8;

/// `ETHTOOL_SGRO` of include/uapi/linux/ethtool.h.
#[cfg(test)]
const ETHTOOL_SGRO: u32 = 0x2c;
/// `ETHTOOL_SFLAGS` of include/uapi/linux/ethtool.h.
#[cfg(test)]
const ETHTOOL_SFLAGS: u32 = 0x26;

/// `ETHTOOL_GSSET_INFO`, `ETHTOOL_GSTRINGS` and `ETHTOOL_GFEATURES` of include/uapi/linux/ethtool.h.
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GFEATURES: u32 = 0x3a;
/// `ETH_SS_FEATURES` of include/uapi/linux/ethtool.h.
const ETH_SS_FEATURES: u32 = 4;
/// More features than any kernel has: `netdev_features_t` of Linux 6.18 has 64 bits (include/linux/netdev_features.h).
const FEATURES: usize = 256;
/// Words of 32 features each.
const WORDS: usize = FEATURES / 32;

/// `struct ethtool_value` of include/uapi/linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ethtool_drvinfo` of include/uapi/linux/ethtool.h, as far as it is read here.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_sset_info` of include/uapi/linux/ethtool.h, for one set.
#[repr(C)]
struct SetInfo {
    command: u32,
    reserved: u32,
    sets: u64,
    count: u32,
    padding: u32,
}

/// `struct ethtool_gstrings` of include/uapi/linux/ethtool.h.
#[repr(C)]
struct Names {
    command: u32,
    set: u32,
    count: u32,
    names: [[u8; 32]; FEATURES],
}

/// `struct ethtool_gfeatures` of include/uapi/linux/ethtool.h. Of 32 features each: available, requested, active, never
/// changed.
#[repr(C)]
struct Features {
    command: u32,
    size: u32,
    words: [[u32; 4]; WORDS],
}

/// `struct ifreq` (netdevice(7)) with the pointer member of its union.
#[repr(C)]
struct Request<T> {
    name: [u8; libc::IFNAMSIZ],
    data: *mut T,
    rest: [u8; 16],
}

const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<Request<Value>>() == 40);

/// A structure that begins with an ethtool command and is all that this command reads and fills.
///
/// # Safety
///
/// It is.
unsafe trait Command {}

// SAFETY: made for `ETHTOOL_GDRVINFO` only.
unsafe impl Command for DriverInfo {}
// SAFETY: made for `ETHTOOL_GFLAGS`, `ETHTOOL_SFLAGS` and `ETHTOOL_SGRO` only.
unsafe impl Command for Value {}

// SAFETY: made for `ETHTOOL_GSSET_INFO` with one set only.
unsafe impl Command for SetInfo {}
// SAFETY: made for `ETHTOOL_GSTRINGS` only, of a set of no more than `FEATURES`.
unsafe impl Command for Names {}
// SAFETY: made for `ETHTOOL_GFEATURES` only, which fills no more than `size` words.
unsafe impl Command for Features {}

/// Runs an ethtool command on an interface of this network namespace.
fn ethtool<T: Command>(name: &str, mut command: T) -> io::Result<T> {
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut command, rest: [0; 16] };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `request` has the layout and at least the size of `struct ifreq`; it points to all that the
    // command fills (`Command`), and both outlive the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(command)
}

/// Name of the driver of an interface of this network namespace, as `ethtool -i` prints it.
///
/// # Errors
///
/// `ENODEV` if there is no such interface; `EOPNOTSUPP` if its driver does not tell.
pub fn driver(name: &str) -> io::Result<String> {
    let info = ethtool(name, DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] })?;
    let end = info.driver.iter().position(|b| *b == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

/// Whether an interface of this network namespace takes the VLAN tag off what it receives (`rx-vlan-offload` of
/// `ethtool -k`).
///
/// # Errors
///
/// `ENODEV` if there is no such interface; `EOPNOTSUPP` if its driver does not tell.
pub fn takes_tags_off(name: &str) -> io::Result<bool> {
    Ok(ethtool(name, Value { command: ETHTOOL_GFLAGS, data: 0 })?.data & ETH_FLAG_RXVLAN != 0)
}

/// Whether an interface of this network namespace drops frames with tags of VLANs that no device of the kernel has
/// (`rx-vlan-filter` of `ethtool -k`), as it does while it is not promiscuous.
///
/// # Errors
///
/// As of [`driver`].
pub fn filters_tags(name: &str) -> io::Result<bool> {
    let info = SetInfo {
        command: ETHTOOL_GSSET_INFO,
        reserved: 0,
        sets: 1 << ETH_SS_FEATURES,
        count: 0,
        padding: 0,
    };
    if ethtool(name, info)?.count as usize > FEATURES {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let names =
        Names { command: ETHTOOL_GSTRINGS, set: ETH_SS_FEATURES, count: 0, names: [[0; 32]; FEATURES] };
    let names = ethtool(name, names)?.names;
    let features = Features { command: ETHTOOL_GFEATURES, size: WORDS as u32, words: [[0; 4]; WORDS] };
    let features = ethtool(name, features)?.words;
    let is_it = |name: &[u8; 32]| name.starts_with(b"rx-vlan-filter\0");
    if names.iter().position(is_it).is_none_or(|n| features[n / 32][2] & 1 << (n % 32) == 0) {
        return Ok(false);
    }
    let promiscuous =
        |i: InterfaceAddress| i.interface_name == name && i.flags.contains(InterfaceFlags::IFF_PROMISC);
    Ok(!getifaddrs()?.any(promiscuous))
}

/// Has an interface of this network namespace take VLAN tags off what it receives (`ethtool -K DEV rxvlan on`), or not.
#[cfg(test)]
pub fn take_tags_off(name: &str, on: bool) -> io::Result<()> {
    let flags = ethtool(name, Value { command: ETHTOOL_GFLAGS, data: 0 })?.data & !ETH_FLAG_RXVLAN;
    let data = flags | if on { ETH_FLAG_RXVLAN } else { 0 };
    ethtool(name, Value { command: ETHTOOL_SFLAGS, data }).map(drop)
}

/// Has an interface of this network namespace coalesce what it receives (`ethtool -K DEV gro on`), or not. A veth polls while it
/// does, without which its other end cannot send what XDP redirects.
#[cfg(test)]
pub fn coalesce(name: &str, on: bool) -> io::Result<()> {
    ethtool(name, Value { command: ETHTOOL_SGRO, data: on.into() }).map(drop)
}

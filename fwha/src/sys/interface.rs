//! What only ethtool knows of a network interface.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

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
// SAFETY: made for `ETHTOOL_GFLAGS` and `ETHTOOL_SGRO` only.
unsafe impl Command for Value {}

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

/// Has an interface of this network namespace coalesce what it receives (`ethtool -K DEV gro on`), or not. A veth polls while it
/// does, without which its other end cannot send what XDP redirects.
#[cfg(test)]
pub fn coalesce(name: &str, on: bool) -> io::Result<()> {
    ethtool(name, Value { command: ETHTOOL_SGRO, data: on.into() }).map(drop)
}

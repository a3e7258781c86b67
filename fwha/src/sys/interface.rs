//! What only ethtool knows of a network interface.

use std::{io, os::fd::AsRawFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::check;

/// `SIOCETHTOOL` of include/uapi/linux/sockios.h.
const SIOCETHTOOL: u64 = 0x8946;
/// `ETHTOOL_GDRVINFO` of include/uapi/linux/ethtool.h.
const ETHTOOL_GDRVINFO: u32 = 3;

/// `struct ethtool_drvinfo` of include/uapi/linux/ethtool.h, as far as it is read here.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ifreq` (netdevice(7)) with the pointer member of its union.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut DriverInfo,
    rest: [u8; 16],
}

const _: () = assert!(size_of::<DriverInfo>() == 196 && size_of::<Request>() == 40);

/// Name of the driver of an interface of this network namespace, as `ethtool -i` prints it.
///
/// # Errors
///
/// `ENODEV` if there is no such interface; `EOPNOTSUPP` if its driver does not tell.
pub fn driver(name: &str) -> io::Result<String> {
    let mut info = DriverInfo { command: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut info, rest: [0; 16] };
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: `request` has the layout and at least the size of `struct ifreq`; it points to a whole
    // `ethtool_drvinfo`, which is what this command fills, and both outlive the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    let end = info.driver.iter().position(|b| *b == 0).unwrap_or(info.driver.len());
    Ok(String::from_utf8_lossy(&info.driver[..end]).into_owned())
}

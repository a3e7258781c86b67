//! Further MACs by which an interface can be reached.

use std::io;

use socket2::Socket;

use crate::sys::socket::{add_unicast, packet_socket};

/// Has an interface take frames to more MACs than its own (`PACKET_MR_UNICAST` of packet(7)): its driver filters for
/// them, or takes all frames if it cannot. That ends with this value, or with the process.
#[derive(Debug)]
pub struct Macs {
    _socket: Socket,
}

impl Macs {
    /// For an interface.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_RAW`; `ENODEV` if the interface is gone; `EINVAL` if its addresses are not MACs.
    pub fn open(ifindex: u32, macs: impl IntoIterator<Item = [u8; 6]>) -> io::Result<Self> {
        let socket = packet_socket(ifindex, 0)?;
        for mac in macs {
            add_unicast(&socket, ifindex, mac)?;
        }
        Ok(Self { _socket: socket })
    }
}

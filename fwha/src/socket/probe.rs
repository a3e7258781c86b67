//! Probes over packet sockets.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use fwha_common::probe::{ETHERTYPE, FRAME_LEN, Probe};
use socket2::Socket;

use super::Received;
use crate::sys::{
    bytes_of, from_bytes,
    socket::{packet_socket, receive},
};

/// Length of an Ethernet header.
const ETHERNET: usize = 14;

/// The MAC to which everybody listens: for a peer whose MAC is not known yet.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// A received probe. Its tag is the reader's to check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeFrame {
    /// MAC of the sender.
    pub source: [u8; 6],
    /// The probe.
    pub probe: Probe,
    /// How long it waited in the socket.
    pub waited: Option<Duration>,
}

/// A socket for probes on one interface. Requests to this node never come here while the data plane
/// answers them; replies do.
#[derive(Debug)]
pub struct ProbeSocket {
    socket: Socket,
    mac: [u8; 6],
}

impl ProbeSocket {
    /// For an interface with this MAC.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_RAW`; `ENODEV` if there is no such interface.
    pub fn open(ifindex: u32, mac: [u8; 6]) -> io::Result<Self> {
        Ok(Self { socket: packet_socket(ifindex, ETHERTYPE)?, mac })
    }

    /// Sends a probe to a MAC.
    ///
    /// # Errors
    ///
    /// `ENETDOWN` if the interface is down, `ENOBUFS` or `EAGAIN` if its queue is full.
    pub fn send(&self, destination: [u8; 6], probe: &Probe) -> io::Result<()> {
        let mut frame = [0; FRAME_LEN];
        frame[..6].copy_from_slice(&destination);
        frame[6..12].copy_from_slice(&self.mac);
        frame[12..ETHERNET].copy_from_slice(&ETHERTYPE.to_be_bytes());
        frame[ETHERNET..].copy_from_slice(bytes_of(probe));
        self.socket.send(&frame).map(drop)
    }

    /// The next probe, if there is one. Frames that are too short are refused; padding is ignored.
    ///
    /// # Errors
    ///
    /// Those of `recvmsg(2)`; `ENETDOWN` once after the interface went down.
    pub fn receive(&self) -> io::Result<Received<ProbeFrame>> {
        let mut frame = [0; FRAME_LEN];
        let Some(arrival) = receive(&self.socket, &mut frame)? else { return Ok(Received::Nothing) };
        let (true, Some(probe), Ok(source)) =
            (arrival.len >= FRAME_LEN, from_bytes(&frame[ETHERNET..]), frame[6..12].try_into())
        else {
            return Ok(Received::Refused);
        };
        Ok(Received::Accepted(ProbeFrame { source, probe, waited: arrival.waited }))
    }
}

impl AsFd for ProbeSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

//! The sockets by which nodes speak with each other. All are nonblocking and can be polled; the
//! election's thread owns them, outside of any runtime.
//!
//! | module | speaks | authority |
//! |---|---|---|
//! | [`vrrp`] | VRRP on zone interfaces (raw IP) | none: it is forgeable |
//! | [`probe`] | keyed frames that the peer's data plane answers (packet socket) | says who is alive |
//! | [`echo`] | ICMP echo with witnesses (raw IP) | says who is cut off |
//! | [`sync`] | sealed datagrams on sync links (UDP) | all |

pub mod echo;
pub mod probe;
pub mod sync;
#[cfg(test)]
mod tests;
pub mod vrrp;

pub use echo::EchoSocket;
pub use probe::ProbeSocket;
pub use sync::{Refused, SyncSocket};
pub use vrrp::VrrpSocket;

/// What a look into a socket found. What is refused counts as a look: whoever sends much of it would hold a thread that
/// waits for the next one that is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<T> {
    /// Nothing, for now.
    Nothing,
    /// Something that is not for the reader; there may be more.
    Refused,
    /// What the reader wants.
    Accepted(T),
}

impl<T> Received<T> {
    /// What the reader wants, if it is that.
    pub fn accepted(self) -> Option<T> {
        match self {
            Self::Accepted(wanted) => Some(wanted),
            Self::Nothing | Self::Refused => None,
        }
    }
}

/// Class selector 6, "internetwork control" (RFC 4594), as a TOS byte.
const TOS_CONTROL: u32 = 0xc0;

/// `TC_PRIO_CONTROL`: ahead of everything else in the interface's queue.
const PRIORITY_CONTROL: i32 = 7;

/// The checksum of ICMP (RFC 1071) over a message of whole words, whose own is zero so far.
pub(crate) fn checksum(message: &[u8]) -> u16 {
    let words = message.as_chunks::<2>().0.iter();
    let sum: u32 = words.map(|&word| u32::from(u16::from_be_bytes(word))).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

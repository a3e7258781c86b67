//! IPsec policies of the kernel, which what the programs forward never meets.

use std::io;

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::socket::receive;

/// `XFRM_MSG_GETSPDINFO`, and the answer's `XFRM_MSG_NEWSPDINFO` (include/uapi/linux/xfrm.h).
const GET: u16 = 0x25;
const NEW: u16 = 0x24;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;

/// How many policies there are for what leaves or is forwarded, in this thread's network namespace; none in a kernel
/// without IPsec.
///
/// # Errors
///
/// Those of `socket(2)` and `sendmsg(2)`, or an answer that is none.
pub fn policies() -> io::Result<u32> {
    let kind = (Type::RAW.nonblocking().cloexec(), Protocol::from(libc::NETLINK_XFRM));
    let socket = match Socket::new(Domain::from(libc::AF_NETLINK), kind.0, Some(kind.1)) {
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(0),
        opened => opened?,
    };
    // The kernel answers before this returns.
    socket.send(&request())?;
    let mut answer = [0; 256];
    let len = receive(&socket, &mut answer)?.map_or(0, |arrival| arrival.len);
    read(&answer[..len]).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// ```text
///   0  length 20   4  type   6  flags   8  sequence   12  port   16  flags of the request, unused   20  end
/// ```
fn request() -> [u8; 20] {
    let mut message = [0; 20];
    message[..4].copy_from_slice(&20u32.to_ne_bytes());
    message[4..6].copy_from_slice(&GET.to_ne_bytes());
    message[6..8].copy_from_slice(&REQUEST.to_ne_bytes());
    message
}

/// ```text
///   0  header, as above   16  flags   20  length of the attribute   22  1 (XFRMA_SPD_INFO)
///  24  policies in   28  out   32  forwarded   36  the same of sockets, three times   48  end
/// ```
fn read(answer: &[u8]) -> Option<u32> {
    let half = |at: usize| Some(u16::from_ne_bytes(answer.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(answer.get(at..at + 4)?.try_into().ok()?));
    if half(4)? != NEW || half(22)? != 1 {
        return None;
    }
    Some(word(28)?.saturating_add(word(32)?))
}

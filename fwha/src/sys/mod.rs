//! The kernel's interfaces that no crate wraps.
//!
//! This is the only place in the crate with `unsafe`: raw `bpf(2)`, sockets with ancillary data,
//! scheduling, memory, ethtool, the runtime's view of descriptors, and views of plain data as bytes. What it exports is safe.
//!
//! | module | holds |
//! |---|---|
//! | [`bpf`] | typed maps with batch operations, links, pins |
//! | [`clock`] | the monotonic clock that BPF programs see |
//! | [`interface`] | driver of a network interface |
//! | [`kernel`] | which one runs |
//! | [`memory`] | large allocations on huge pages |
//! | [`mount`] | bpffs |
//! | [`random`] | random numbers from the kernel |
//! | [`sched`] | real-time scheduling, locked memory, limits |
//! | [`socket`] | link-layer addresses and ancillary data |
//! | [`watch`] | descriptors that the runtime watches |

use std::{ffi::c_long, io, mem, slice};

pub use aya::Pod;

pub mod bpf;
pub mod clock;
pub mod interface;
pub mod kernel;
pub mod memory;
pub mod mount;
pub mod random;
pub mod sched;
pub mod socket;
pub mod watch;

/// The bytes of a plain value, as the kernel and the wire see them.
pub fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` promises that every byte of `T` is initialised and may be looked at; the slice
    // covers exactly `value` and borrows it.
    unsafe { slice::from_raw_parts((&raw const *value).cast(), size_of::<T>()) }
}

/// A plain value from its bytes; `None` unless there are exactly as many as it has.
pub fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: `Pod` promises that any bits are a valid `T`; the length is checked first, and the
    // read does not ask for alignment.
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A plain value of zero bits.
pub fn zeroed<T: Pod>() -> T {
    // SAFETY: `Pod` promises that any bits are a valid `T`.
    unsafe { mem::zeroed() }
}

/// The result of a system call that reports errors by -1 and `errno`.
fn check(result: impl Into<c_long>) -> io::Result<c_long> {
    match result.into() {
        -1 => Err(io::Error::last_os_error()),
        n => Ok(n),
    }
}

#[cfg(test)]
mod tests {
    use fwha_common::flow::{Flow, FlowKey};

    use super::*;

    #[test]
    fn plain_values_survive_their_bytes() {
        let flow = Flow { version: 7, bucket: 3, ..Flow::default() };
        assert_eq!(from_bytes::<Flow>(bytes_of(&flow)), Some(flow));
        assert_eq!(from_bytes::<Flow>(&bytes_of(&flow)[1..]), None);
        assert_eq!(from_bytes::<FlowKey>(bytes_of(&flow)), None);
    }
}

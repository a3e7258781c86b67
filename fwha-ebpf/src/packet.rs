//! Access to a packet: one trait, so that the engine is written once and runs at XDP and at tc.
//!
//! Headers are read through a [`Window`], after one bounds check each.

use fwha_common::{drop::DropReason, flow::NextHop};

/// Length of an Ethernet header without VLAN tag.
pub const ETH_LEN: usize = 14;

/// What the engine needs to know of a packet, whatever hook it came by.
pub trait Packet {
    /// Address of the frame's first byte.
    fn start(&self) -> usize;
    /// Address behind the last byte that can be read directly.
    fn end(&self) -> usize;
    /// Length of the frame in bytes, together with what cannot be read directly.
    fn len(&self) -> u32;
    /// The interface it came in by; at egress the one it leaves by.
    fn ifindex(&self) -> u32;
    /// Packets on the wire that this one stands for: more than one for a super-packet (GSO, GRO).
    fn segments(&self) -> u32;
    /// L4 payload of each segment of a super-packet, in bytes; 0 for a packet that is none.
    fn segment_size(&self) -> u32;
    /// Whether the driver took a VLAN tag off the frame.
    fn tagged(&self) -> bool;
    /// Notes the interface to leave by, for [`crate::Verdict::Forward`]. (Not part of the verdict: where
    /// a verdict has no interface the compiler leaves there what it finds, and the verifier refuses
    /// to see a pointer there.)
    fn leave_by(&mut self, ifindex: u32);
    /// Looks up the next hop for `query`; fills in what it finds, but for the generation.
    fn route(&self, query: &RouteQuery, hop: &mut NextHop) -> RouteKind;
}

/// What a route lookup is asked.
pub struct RouteQuery {
    /// Source address, network byte order.
    pub src: u32,
    /// Destination address, network byte order.
    pub dst: u32,
    /// Type of service.
    pub tos: u8,
    /// IP protocol.
    pub proto: u8,
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
}

/// What a route lookup answers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Next hop and its MAC are known.
    Resolved,
    /// The next hop's MAC is not known yet.
    Unresolved,
    /// Not for forwarding: an own address, broadcast, multicast, or no route at all.
    Local,
    /// Blackhole, unreachable, prohibit, or forwarding is off.
    None,
}

/// A MAC address: its bytes in the low 48 bits, in the order of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(u64);

impl Mac {
    /// From its bytes.
    #[inline(always)]
    pub const fn new(b: [u8; 6]) -> Self {
        Self(u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0]))
    }

    /// Whether it stands for several stations: multicast or broadcast.
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it is one of those that no bridge forwards (IEEE 802.1Q, 8.6.3): 01:80:c2:00:00:0x.
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        self.0 & 0xf0ff_ffff_ffff == 0xc2_8001
    }
}

const _: () = assert!(cfg!(target_endian = "little"), "`Mac` is written for little-endian");

/// A window of `N` bytes of a packet, checked against its end once. What is read and written in it
/// has a constant offset, checked by the compiler. Network byte order stays as it is.
///
/// Packets have no alignment. The compiler would take a field apart into bytes on this target,
/// although the kernel loads it at once on every machine that matters, so for the kernel each access
/// is the one instruction it should be.
#[derive(Clone, Copy)]
pub struct Window<const N: usize>(usize);

/// The window of `N` bytes at `offset`.
///
/// # Errors
///
/// The packet ends before.
#[inline(always)]
pub fn window<const N: usize>(packet: &impl Packet, offset: usize) -> Result<Window<N>, DropReason> {
    let at = packet.start() + offset;
    if at + N > packet.end() { Err(DropReason::Truncated) } else { Ok(Window(at)) }
}

macro_rules! access {
    ($($load:ident $store:ident $type:ident $kernel:literal;)+) => {$(
        /// The field at `OFFSET`.
        #[inline(always)]
        pub fn $load<const OFFSET: usize>(self) -> $type {
            const { assert!(OFFSET + size_of::<$type>() <= N) };
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                // SAFETY: within the window, which was checked against the packet's end.
                unsafe {
                    core::arch::asm!(
                        concat!("{value} = *(", $kernel, " *)({at} + {offset})"),
                        value = out(reg) value,
                        at = in(reg) self.0,
                        offset = const OFFSET,
                        options(readonly, nostack, preserves_flags),
                    );
                }
                value as $type
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: as above.
            unsafe {
                ((self.0 + OFFSET) as *const $type).read_unaligned()
            }
        }

        /// Writes the field at `OFFSET`.
        #[inline(always)]
        pub fn $store<const OFFSET: usize>(self, value: $type) {
            const { assert!(OFFSET + size_of::<$type>() <= N) };
            #[cfg(target_arch = "bpf")]
            // SAFETY: within the window, which was checked against the packet's end.
            unsafe {
                core::arch::asm!(
                    concat!("*(", $kernel, " *)({at} + {offset}) = {value}"),
                    value = in(reg) value as u64,
                    at = in(reg) self.0,
                    offset = const OFFSET,
                    options(nostack, preserves_flags),
                );
            }
            #[cfg(not(target_arch = "bpf"))]
            // SAFETY: as above.
            unsafe {
                ((self.0 + OFFSET) as *mut $type).write_unaligned(value)
            }
        }
    )+};
}

impl<const N: usize> Window<N> {
    access! {
        u8 set_u8 u8 "u8";
        u16 set_u16 u16 "u16";
        u32 set_u32 u32 "u32";
        u64 set_u64 u64 "u64";
    }

    /// The MAC address whose first four bytes are at `OFFSET` and last two at `LAST`, which is
    /// `OFFSET + 4`.
    #[inline(always)]
    pub fn mac<const OFFSET: usize, const LAST: usize>(self) -> Mac {
        const { assert!(LAST == OFFSET + 4) };
        Mac(self.u32::<OFFSET>() as u64 | (self.u16::<LAST>() as u64) << 32)
    }

    /// Writes a MAC address there.
    #[inline(always)]
    pub fn set_mac<const OFFSET: usize, const LAST: usize>(self, mac: Mac) {
        const { assert!(LAST == OFFSET + 4) };
        self.set_u32::<OFFSET>(mac.0 as u32);
        self.set_u16::<LAST>((mac.0 >> 32) as u16);
    }
}

/// An Ethernet header.
#[derive(Clone, Copy)]
pub struct Eth {
    /// Destination.
    pub dst: Mac,
    /// EtherType, network byte order.
    pub ethertype: u16,
}

impl Eth {
    /// The header of a frame.
    ///
    /// # Errors
    ///
    /// The frame is too short.
    #[inline(always)]
    pub fn read(packet: &impl Packet) -> Result<Self, DropReason> {
        let eth = window::<ETH_LEN>(packet, 0)?;
        Ok(Self { dst: eth.mac::<0, 4>(), ethertype: eth.u16::<12>() })
    }

    /// Writes both addresses.
    ///
    /// # Errors
    ///
    /// The frame is too short.
    #[inline(always)]
    pub fn address(packet: &mut impl Packet, dst: Mac, src: Mac) -> Result<(), DropReason> {
        let eth = window::<ETH_LEN>(packet, 0)?;
        eth.set_mac::<0, 4>(dst);
        eth.set_mac::<6, 10>(src);
        Ok(())
    }

    /// The source address.
    ///
    /// # Errors
    ///
    /// The frame is too short.
    #[inline(always)]
    pub fn src(packet: &impl Packet) -> Result<Mac, DropReason> {
        Ok(window::<ETH_LEN>(packet, 0)?.mac::<6, 10>())
    }
}

/// A frame in memory, for unit tests.
#[cfg(test)]
pub struct Frame(pub Vec<u8>);

#[cfg(test)]
impl Packet for Frame {
    fn start(&self) -> usize {
        self.0.as_ptr() as usize
    }
    fn end(&self) -> usize {
        self.0.as_ptr() as usize + self.0.len()
    }
    fn len(&self) -> u32 {
        self.0.len() as u32
    }
    fn ifindex(&self) -> u32 {
        1
    }
    fn segments(&self) -> u32 {
        1
    }
    fn segment_size(&self) -> u32 {
        0
    }
    fn tagged(&self) -> bool {
        false
    }
    fn leave_by(&mut self, _: u32) {}
    fn route(&self, _: &RouteQuery, _: &mut NextHop) -> RouteKind {
        RouteKind::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_never_reaches_beyond_the_packet() {
        let frame = Frame((0..20).collect());
        assert!(window::<20>(&frame, 0).is_ok());
        assert!(window::<20>(&frame, 1).is_err());
        assert!(window::<21>(&frame, 0).is_err());
    }

    #[test]
    fn fields_are_where_they_are_said_to_be() {
        let mut frame = Frame((0..20).collect());
        let bytes = window::<20>(&frame, 0).unwrap();
        assert_eq!(bytes.u8::<3>(), 3);
        assert_eq!(bytes.u16::<1>(), u16::from_ne_bytes([1, 2]));
        assert_eq!(bytes.u32::<5>(), u32::from_ne_bytes([5, 6, 7, 8]));
        assert_eq!(bytes.u64::<9>(), u64::from_ne_bytes([9, 10, 11, 12, 13, 14, 15, 16]));
        let (dst, src) = (Mac::new([2, 0, 0, 0, 0, 1]), Mac::new([2, 0, 0, 0, 0, 2]));
        Eth::address(&mut frame, dst, src).unwrap();
        assert_eq!(frame.0[..12], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        assert_eq!(Eth::read(&frame).unwrap().dst, dst);
        assert_eq!(Eth::src(&frame).unwrap(), src);
    }

    #[test]
    fn kinds_of_mac_addresses() {
        assert!(Mac::new([0xff; 6]).is_group());
        assert!(!Mac::new([2, 1, 1, 1, 1, 1]).is_group());
        assert!(Mac::new([1, 0x80, 0xc2, 0, 0, 0x0e]).is_link_local());
        assert!(!Mac::new([1, 0x80, 0xc2, 0, 0, 0x10]).is_link_local());
        assert!(!Mac::new([0, 0x80, 0xc2, 0, 0, 0]).is_link_local());
    }
}

//! Access to a packet: one trait, so that the engine is written once and runs at XDP and at tc.
//!
//! Headers are read through a [`Window`], after one bounds check each.

use fwha_common::{drop::DropReason, flow::NextHop, rule::Tag};

use crate::parse::Ip;

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
    /// How it came in, as the module `vlan` found.
    fn arrival(&mut self) -> &mut Arrival;
    /// The interface whose zone and routes count for it ([`Arrival::device`]).
    fn device(&self) -> u32;
    /// The outer tag, if the kernel took it off the frame and keeps it beside.
    fn taken_tag(&self) -> Tag;
    /// Takes the outer tag off. Windows into the frame end; whether it could.
    fn pop_tag(&mut self) -> bool;
    /// Puts a tag in front of those that are there. Windows into the frame end; whether it could.
    fn push_tag(&mut self, tag: Tag) -> bool;
    /// Whether it can be sent to where [`NextHop::out`] says by the hook that it is at.
    fn can_leave_by(&self, out: u32) -> bool;
    /// Notes where to leave ([`NextHop::out`]), for [`crate::Verdict::Forward`]. (Not part of the verdict:
    /// where a verdict has no interface the compiler leaves there what it finds, and the verifier refuses
    /// to see a pointer there.)
    fn leave_by(&mut self, out: u32);
    /// What [`Packet::leave_by`] noted.
    fn out(&self) -> u32;
    /// Copies `bytes.len()` bytes from `offset` of the frame; whether they are there.
    fn load(&self, offset: u32, bytes: &mut [u8]) -> bool;
    /// Replaces two bytes of data at `at` that the checksum at `checksum_at` (RFC 1071) covers, both
    /// offsets in the frame. Windows into the frame end with it.
    ///
    /// # Errors
    ///
    /// They are not there.
    fn replace(&mut self, at: u32, checksum_at: u32, from: u16, to: u16) -> Result<(), DropReason>;
    /// Writes the checksum at `at` of a segment that was written anew, from the sums (RFC 1071) of its pseudo-header
    /// and of the rest. Windows into the frame end with it.
    ///
    /// # Errors
    ///
    /// It is not there.
    fn checksum(&mut self, at: u32, pseudo: u16, rest: u16) -> Result<(), DropReason>;
    /// Gives the frame another length, to be written anew: what is in it is undefined, and windows into it end. Whether
    /// it could.
    fn resize(&mut self, len: u32) -> bool;
    /// Makes the kernel's stack take it as one for this machine, if the driver has compared addresses already. Most
    /// compare them after XDP (`eth_type_trans` in net/ethernet/eth.c); for the others there is `vip::settle`.
    fn for_this_host(&mut self) {}
    /// Looks up the next hop to the destination of a packet (`false`), or back to its source. Fills in
    /// what it finds but for the generation; `out` is the interface's index.
    fn route(&self, ip: &Ip, back: bool, hop: &mut NextHop) -> RouteKind;
}

/// How the present packet came in, and how it leaves.
pub struct Arrival {
    /// The interface whose zone and routes count for it: the one that it came by, or the VLAN's device.
    pub device: u32,
    /// The tags that were taken off it, the outer first. Without an outer one, the inner one and `bare` mean nothing.
    pub tags: [Tag; 2],
    /// Whether the kernel's stack is to have it without them.
    pub bare: bool,
    /// See [`Packet::leave_by`].
    pub out: u32,
}

impl Arrival {
    /// By this interface, without tags.
    #[inline(always)]
    pub const fn begin(&mut self, ifindex: u32) {
        self.device = ifindex;
        self.tags[0] = Tag::NONE;
        self.out = 0;
    }
}

/// What a route lookup answers.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Next hop and its MAC are known.
    Resolved,
    /// The next hop's MAC is not known yet.
    Unresolved,
    /// Not for forwarding: an own address, broadcast, multicast, link-local, or no route at all.
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

    /// No address.
    pub const NONE: Self = Self(0);

    /// Whether it is one of a virtual router (RFC 9568, 7.3): 00:00:5e:00:01:xx, 00:00:5e:00:02:xx.
    #[inline(always)]
    pub const fn is_virtual(self) -> bool {
        let family = self.0 & 0xff_ffff_ffff;
        family == 0x1_005e_0000 || family == 0x2_005e_0000
    }

    /// Its bytes.
    #[inline(always)]
    pub const fn bytes(self) -> [u8; 6] {
        let b = self.0.to_ne_bytes();
        [b[0], b[1], b[2], b[3], b[4], b[5]]
    }

    /// The last two bytes.
    #[inline(always)]
    pub const fn last_two(self) -> [u8; 2] {
        [(self.0 >> 32) as u8, (self.0 >> 40) as u8]
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

/// `n`, which is not larger than `MASK` (a power of two less 1), in a way that the verifier sees: the
/// compiler drops a mask that it knows to change nothing.
#[inline(always)]
pub fn bounded<const MASK: u32>(n: u32) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut n = n as u64;
        // SAFETY: arithmetic.
        unsafe {
            core::arch::asm!("{n} &= {mask}", n = inout(reg) n, mask = const MASK, options(pure, nomem, nostack));
        }
        n as usize
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        (n & MASK) as usize
    }
}

/// The word at `at`, which has no alignment: one instruction, as in [`Window`].
///
/// # Safety
///
/// Four bytes can be read there.
#[inline(always)]
pub unsafe fn unaligned(at: *const u8) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let value: u64;
        // SAFETY: promised.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({at} + 0)",
                value = out(reg) value,
                at = in(reg) at,
                options(readonly, nostack, preserves_flags),
            );
        }
        value as u32
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: promised.
    unsafe {
        at.cast::<u32>().read_unaligned()
    }
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
    fn arrival(&mut self) -> &mut Arrival {
        unreachable!("nothing that is tested here asks")
    }
    fn device(&self) -> u32 {
        1
    }
    fn taken_tag(&self) -> Tag {
        Tag::NONE
    }
    fn pop_tag(&mut self) -> bool {
        false
    }
    fn push_tag(&mut self, _: Tag) -> bool {
        false
    }
    fn can_leave_by(&self, _: u32) -> bool {
        true
    }
    fn leave_by(&mut self, _: u32) {}
    fn out(&self) -> u32 {
        0
    }
    fn load(&self, offset: u32, bytes: &mut [u8]) -> bool {
        match self.0.get(offset as usize..offset as usize + bytes.len()) {
            Some(there) => bytes.copy_from_slice(there),
            None => return false,
        }
        true
    }
    fn replace(&mut self, _: u32, _: u32, _: u16, _: u16) -> Result<(), DropReason> {
        Ok(())
    }
    fn checksum(&mut self, _: u32, _: u16, _: u16) -> Result<(), DropReason> {
        Ok(())
    }
    fn resize(&mut self, len: u32) -> bool {
        self.0.resize(len as usize, 0);
        true
    }
    fn route(&self, _: &Ip, _: bool, _: &mut NextHop) -> RouteKind {
        RouteKind::None
    }
}

#[cfg(test)]
mod tests {
    use fwha_common::group::{Vip, VirtualMacKey};

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
        let virtual_mac = Mac::new(Vip::mac(62, true));
        assert!(virtual_mac.is_virtual() && Mac::new(Vip::mac(1, false)).is_virtual());
        assert_eq!(virtual_mac.last_two(), VirtualMacKey::new(1, 62, true).router);
        assert!(
            !Mac::new([0, 0, 0x5e, 0, 3, 1]).is_virtual() && !Mac::new([2, 0, 0x5e, 0, 1, 1]).is_virtual()
        );
    }
}

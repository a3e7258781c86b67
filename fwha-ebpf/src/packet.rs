//! Access to a packet: one trait, so that the engine is written once and runs at XDP and at tc.
//!
//! Headers are read as packed structs, whose references need no alignment, after one bounds check
//! each. Fields in network byte order stay so unless the name says otherwise.

use core::mem::size_of;

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

/// A header type that may lie at any address and holds any bits.
///
/// # Safety
///
/// The type has alignment 1 and every bit pattern is a valid value.
pub unsafe trait Header: Copy {}

/// Ethernet header.
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Eth {
    /// Destination.
    pub dst: [u8; 6],
    /// Source.
    pub src: [u8; 6],
    /// EtherType.
    pub ethertype: u16,
}

/// IPv4 header without options (RFC 791).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    /// Version (4 bits) and header length in words (4 bits).
    pub version_ihl: u8,
    /// Type of service.
    pub tos: u8,
    /// Length of header and data.
    pub total_len: u16,
    /// Identification.
    pub id: u16,
    /// Flags (3 bits) and fragment offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub proto: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

/// IPv6 header (RFC 8200).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub version_flow: [u8; 4],
    /// Length of what follows.
    pub payload_len: u16,
    /// Type of the next header.
    pub next: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: [u8; 16],
    /// Destination.
    pub dst: [u8; 16],
}

/// TCP header without options (RFC 9293).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Tcp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// Header length in words in the high 4 bits.
    pub offset: u8,
    /// Flags.
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

/// UDP header (RFC 768).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Udp {
    /// Source port.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// Length of header and data.
    pub len: u16,
    /// Checksum.
    pub checksum: u16,
}

/// First eight bytes of an ICMP message (RFC 792).
#[repr(C, packed)]
#[derive(Clone, Copy)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum.
    pub checksum: u16,
    /// Identifier of an echo.
    pub id: u16,
    /// Sequence number of an echo.
    pub seq: u16,
}

// SAFETY: packed and made of integers only; so are the following.
unsafe impl Header for Eth {}
// SAFETY: as above.
unsafe impl Header for Ipv4 {}
// SAFETY: as above.
unsafe impl Header for Ipv6 {}
// SAFETY: as above.
unsafe impl Header for Tcp {}
// SAFETY: as above.
unsafe impl Header for Udp {}
// SAFETY: as above.
unsafe impl Header for Icmp {}
// SAFETY: an array of bytes has alignment 1 and any bits.
unsafe impl<const N: usize> Header for [u8; N] {}
// SAFETY: made of byte arrays only, alignment 1 is asserted where it is defined.
unsafe impl Header for fwha_common::probe::Probe {}

/// A copy of the header at `offset`.
#[inline(always)]
pub fn read<T: Header>(packet: &impl Packet, offset: usize) -> Result<T, DropReason> {
    let at = check::<T>(packet, offset)?;
    // SAFETY: the bytes lie within the packet, `Header` needs no alignment and takes any bits.
    Ok(unsafe { core::ptr::read_unaligned(at as *const T) })
}

/// The header at `offset`, to be changed in place.
#[inline(always)]
pub fn header_mut<T: Header>(packet: &mut impl Packet, offset: usize) -> Result<&mut T, DropReason> {
    let at = check::<T>(packet, offset)?;
    // SAFETY: as in `read`; the packet is borrowed for as long as the reference lives.
    Ok(unsafe { &mut *(at as *mut T) })
}

#[inline(always)]
fn check<T: Header>(packet: &impl Packet, offset: usize) -> Result<usize, DropReason> {
    let at = packet.start() + offset;
    if at + size_of::<T>() > packet.end() { Err(DropReason::Truncated) } else { Ok(at) }
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
    fn route(&self, _: &RouteQuery, _: &mut NextHop) -> RouteKind {
        RouteKind::None
    }
}

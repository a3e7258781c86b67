//! Frames as the generator writes them: whole headers, every time, valid to the last checksum.
//!
//! Each field is one store, at least as wide as any program will load it: a load that has to wait for several stores to
//! reach the cache would be charged to the program under test.

use fwha_common::flow::proto;

use crate::order::Order;

/// Length of an IPv4 frame: the shortest on Ethernet, without checksum. It holds a TCP header and six bytes.
pub const V4_LEN: usize = 60;
/// Length of an IPv6 frame: the same behind a longer header.
pub const V6_LEN: usize = 80;

const SYN: u64 = 0x02;
/// No-operation, window scale 14.
const WINDOW_SCALE: u32 = u32::from_ne_bytes([1, 3, 3, 14]);

/// Memory from an address on.
#[derive(Clone, Copy)]
pub struct Frame(pub usize);

macro_rules! loads {
    ($($load:ident $type:ident $kernel:literal;)+) => {$(
        /// The field at `OFFSET`.
        ///
        /// # Safety
        ///
        /// It lies in memory that may be read.
        #[inline(always)]
        pub unsafe fn $load<const OFFSET: usize>(self) -> $type {
            #[cfg(target_arch = "bpf")]
            {
                let value: u64;
                // SAFETY: promised by the caller. Assembly, as the compiler would take a field apart into bytes.
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
            // SAFETY: promised by the caller.
            unsafe {
                ((self.0 + OFFSET) as *const $type).read_unaligned()
            }
        }
    )+};
}

macro_rules! stores {
    ($($store:ident $type:ident $kernel:literal;)+) => {$(
        /// Writes the field at `OFFSET`.
        ///
        /// # Safety
        ///
        /// It lies in memory that may be written.
        #[inline(always)]
        pub unsafe fn $store<const OFFSET: usize>(self, value: $type) {
            #[cfg(target_arch = "bpf")]
            // SAFETY: promised by the caller.
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
            // SAFETY: promised by the caller.
            unsafe {
                ((self.0 + OFFSET) as *mut $type).write_unaligned(value)
            }
        }
    )+};
}

#[cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "on the host only tests use it"))]
impl Frame {
    loads! {
        u8 u8 "u8";
        u16 u16 "u16";
        u32 u32 "u32";
        u64 u64 "u64";
    }
    stores! {
        set_u8 u8 "u8";
        set_u16 u16 "u16";
        set_u32 u32 "u32";
        set_u64 u64 "u64";
    }

    /// Writes a MAC address whose last two bytes are at `LAST`, which is `OFFSET + 4`.
    ///
    /// # Safety
    ///
    /// As of `set_u64`.
    #[inline(always)]
    pub unsafe fn set_mac<const OFFSET: usize, const LAST: usize>(self, mac: u64) {
        const { assert!(LAST == OFFSET + 4) };
        // SAFETY: promised by the caller.
        unsafe {
            self.set_u32::<OFFSET>(mac as u32);
            self.set_u16::<LAST>((mac >> 32) as u16);
        }
    }

    /// Writes an IPv4 packet of `flow`; the conversation is `moved` bytes further than where the order began. UDP begins with
    /// the stamp.
    ///
    /// # Safety
    ///
    /// [`V4_LEN`] bytes may be written.
    #[inline(always)]
    pub unsafe fn write_v4(self, order: &Order, flow: u32, moved: u32, stamp: u64) {
        let l4 = L4::new(order, flow, moved);
        let (client, server) = ends(flow);
        let (client, server) = ((V4_CLIENTS + client).to_be(), (V4_SERVERS + server).to_be());
        let (src, dst) = if order.reply != 0 { (server, client) } else { (client, server) };
        let addresses = src as u64 + dst as u64;
        // Version and length, total length; don't fragment; TTL 64 and protocol.
        let first = 0x45 | ((20 + l4.len as u16).to_be() as u32) << 16;
        let second = 0x0040 << 16;
        let third = 64 | (order.proto as u32) << 8;
        let checksum = fold(first as u64 + second as u64 + third as u64 + addresses);
        // SAFETY: promised by the caller.
        unsafe {
            self.write_eth(order, 0x0800);
            self.set_u32::<14>(first);
            self.set_u32::<18>(second);
            self.set_u32::<22>(third | (checksum as u32) << 16);
            self.set_u32::<26>(src);
            self.set_u32::<30>(dst);
            Frame(self.0 + 34).write_l4(order, &l4, addresses, stamp);
        }
    }

    /// Writes an IPv6 packet of `flow`.
    ///
    /// # Safety
    ///
    /// [`V6_LEN`] bytes may be written.
    #[inline(always)]
    pub unsafe fn write_v6(self, order: &Order, flow: u32, moved: u32, stamp: u64) {
        let l4 = L4::new(order, flow, moved);
        let (client, server) = ends(flow);
        let (client, server) = ((V6_CLIENTS, client.to_be()), (V6_SERVERS, server.to_be()));
        let (src, dst) = if order.reply != 0 { (server, client) } else { (client, server) };
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        let addresses = halves(src.0) + halves(dst.0) + src.1 as u64 + dst.1 as u64;
        let length = (l4.len as u16).to_be() as u32;
        // SAFETY: promised by the caller.
        unsafe {
            self.write_eth(order, 0x86dd);
            self.set_u32::<14>(0x60);
            // Payload length, next header, hop limit 64.
            self.set_u32::<18>(length | (order.proto as u32) << 16 | 64 << 24);
            self.set_u64::<22>(src.0);
            self.set_u64::<30>((src.1 as u64) << 32);
            self.set_u64::<38>(dst.0);
            self.set_u64::<46>((dst.1 as u64) << 32);
            Frame(self.0 + 54).write_l4(order, &l4, addresses, stamp);
        }
    }

    #[inline(always)]
    unsafe fn write_eth(self, order: &Order, ethertype: u16) {
        // SAFETY: the callers' frames are longer.
        unsafe {
            self.set_mac::<0, 4>(order.dst_mac);
            self.set_mac::<6, 10>(order.src_mac);
            self.set_u16::<12>(ethertype.to_be());
        }
    }

    /// Writes the header of TCP or UDP, and zeroes behind it up to the shortest frame; what follows is zero already.
    #[inline(always)]
    unsafe fn write_l4(self, order: &Order, l4: &L4, addresses: u64, stamp: u64) {
        let pseudo = addresses + ((order.proto as u16).to_be() as u64) + (l4.len as u16).to_be() as u64;
        if order.proto == proto::UDP as u64 {
            let length = (l4.len as u16).to_be();
            let words = (stamp & 0xffff_ffff) + (stamp >> 32);
            let checksum = fold(pseudo + l4.ports as u64 + length as u64 + words);
            // SAFETY: the frame has room for a TCP header and six bytes.
            unsafe {
                self.set_u32::<0>(l4.ports);
                self.set_u32::<4>(length as u32 | (checksum as u32) << 16);
                self.set_u64::<8>(stamp);
                self.set_u64::<16>(0);
                self.set_u16::<24>(0);
            }
            return;
        }
        // Behind the flags the whole window of 65535.
        let fourth = l4.header << 2 | (order.flags as u32) << 8 | 0xffff << 16;
        let option = if order.flags & SYN != 0 { WINDOW_SCALE } else { 0 };
        let header = l4.ports as u64 + l4.seq as u64 + l4.ack as u64 + fourth as u64 + option as u64;
        let checksum = fold(pseudo + header);
        // SAFETY: see above.
        unsafe {
            self.set_u32::<0>(l4.ports);
            self.set_u32::<4>(l4.seq);
            self.set_u32::<8>(l4.ack);
            self.set_u32::<12>(fourth);
            self.set_u32::<16>(checksum as u32);
            self.set_u32::<20>(option);
            self.set_u16::<24>(0);
        }
    }
}

/// What differs from packet to packet behind the IP header.
struct L4 {
    /// Length of header and payload.
    len: u32,
    /// Length of the header.
    header: u32,
    /// Source and destination port, network byte order.
    ports: u32,
    seq: u32,
    ack: u32,
}

impl L4 {
    #[inline(always)]
    fn new(order: &Order, flow: u32, moved: u32) -> Self {
        let client = (CLIENT_PORTS + (flow >> 16 & 0x7fff)) as u16;
        let (client, server) = (client.to_be() as u32, SERVER_PORT.to_be() as u32);
        let reply = order.reply != 0;
        let header = match (order.proto == proto::UDP as u64, order.flags & SYN != 0) {
            (true, _) => 8,
            (false, true) => 24,
            (false, false) => 20,
        };
        let heard = if order.flags == SYN {
            0
        } else {
            initial(flow, !reply).wrapping_add(order.heard as u32).wrapping_add(moved)
        };
        Self {
            len: header + order.payload as u32,
            header,
            ports: if reply { server | client << 16 } else { client | server << 16 },
            seq: initial(flow, reply).wrapping_add(order.sent as u32).wrapping_add(moved).to_be(),
            ack: heard.to_be(),
        }
    }
}

/// 10.1.0.0/16 and 10.2.0.0/24.
const V4_CLIENTS: u32 = 0x0a01_0000;
const V4_SERVERS: u32 = 0x0a02_0000;
/// 2001:db8:1::/64 and 2001:db8:2::/64.
const V6_CLIENTS: u64 = u64::from_ne_bytes([0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0]);
const V6_SERVERS: u64 = u64::from_ne_bytes([0x20, 1, 0x0d, 0xb8, 0, 2, 0, 0]);
const CLIENT_PORTS: u32 = 1024;
const SERVER_PORT: u16 = 443;

/// Whether a packet goes from a client to a server or back.
///
/// # Safety
///
/// The header of IPv4 may be read.
#[inline(always)]
pub unsafe fn is_generated_v4(frame: Frame) -> bool {
    // SAFETY: promised by the caller.
    let (src, dst) = unsafe { (u32::from_be(frame.u32::<26>()), u32::from_be(frame.u32::<30>())) };
    let (client, server) = (|a: u32| a >> 16 == V4_CLIENTS >> 16, |a: u32| a >> 8 == V4_SERVERS >> 8);
    (client(src) && server(dst)) || (server(src) && client(dst))
}

/// Whether a packet goes from a client to a server or back.
///
/// # Safety
///
/// The header of IPv6 up to the first half of the destination may be read.
#[inline(always)]
pub unsafe fn is_generated_v6(frame: Frame) -> bool {
    // SAFETY: promised by the caller.
    let ends = unsafe { (frame.u64::<22>(), frame.u64::<38>()) };
    ends == (V6_CLIENTS, V6_SERVERS) || ends == (V6_SERVERS, V6_CLIENTS)
}

/// Which client and which server: a flow's number is spread over 65,536 clients and their ports, and 256 servers.
#[inline(always)]
fn ends(flow: u32) -> (u32, u32) {
    (flow & 0xffff, flow.wrapping_mul(0x9e37_79b1) >> 24)
}

/// The initial sequence number of a side.
#[inline(always)]
fn initial(flow: u32, responder: bool) -> u32 {
    flow.wrapping_mul(if responder { 0x85eb_ca6b } else { 0xc2b2_ae35 })
}

/// The internet checksum (RFC 1071) of what adds up to `sum`.
#[inline(always)]
fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    const ACK: u64 = 0x10;
    const STAMP: u64 = 0x1234_5678_9abc_def0;

    fn frame(order: &Order, flow: u32, moved: u32) -> Vec<u8> {
        let mut bytes = vec![0xaa; if order.family == 4 { V4_LEN } else { V6_LEN }];
        let frame = Frame(bytes.as_mut_ptr() as usize);
        // SAFETY: as long as the family wants it.
        unsafe {
            if order.family == 4 {
                frame.write_v4(order, flow, moved, STAMP);
            } else {
                frame.write_v6(order, flow, moved, STAMP);
            }
        }
        bytes
    }

    #[test]
    fn every_frame_is_valid() {
        for family in [4, 6] {
            for (proto, flags, payload) in [(6, SYN, 0), (6, SYN | ACK, 0), (6, ACK, 6), (17, 0, 12)] {
                for flow in [0, 1, 65_535, 65_536, 4_000_000, u32::MAX] {
                    for reply in [0, 1] {
                        let order = Order { family, proto, flags, payload, reply, ..Order::default() };
                        let bytes = frame(&order, flow, 77);
                        let own = Frame(bytes.as_ptr() as usize);
                        // SAFETY: a whole frame.
                        assert!(unsafe {
                            if family == 4 { is_generated_v4(own) } else { is_generated_v6(own) }
                        });
                        let packet = SlicedPacket::from_ethernet(&bytes).unwrap();
                        let (source, destination) = match packet.net.unwrap() {
                            NetSlice::Ipv4(ip) => {
                                let header = ip.header().to_header();
                                assert_eq!(header.header_checksum, header.calc_header_checksum());
                                (header.source.to_vec(), header.destination.to_vec())
                            }
                            NetSlice::Ipv6(ip) => {
                                (ip.header().source().to_vec(), ip.header().destination().to_vec())
                            }
                            _ => panic!("not IP"),
                        };
                        let v4 = |a: &[u8]| <[u8; 4]>::try_from(a).unwrap();
                        let v6 = |a: &[u8]| <[u8; 16]>::try_from(a).unwrap();
                        match packet.transport.unwrap() {
                            TransportSlice::Tcp(tcp) => {
                                let header = tcp.to_header();
                                let payload = tcp.payload();
                                assert_eq!(payload.len() as u64, order.payload);
                                let sum = if family == 4 {
                                    header.calc_checksum_ipv4_raw(v4(&source), v4(&destination), payload)
                                } else {
                                    header.calc_checksum_ipv6_raw(v6(&source), v6(&destination), payload)
                                };
                                assert_eq!(header.checksum, sum.unwrap());
                            }
                            TransportSlice::Udp(udp) => {
                                let header = udp.to_header();
                                let sum = if family == 4 {
                                    header.calc_checksum_ipv4_raw(
                                        v4(&source),
                                        v4(&destination),
                                        udp.payload(),
                                    )
                                } else {
                                    header.calc_checksum_ipv6_raw(
                                        v6(&source),
                                        v6(&destination),
                                        udp.payload(),
                                    )
                                };
                                assert_eq!(header.checksum, sum.unwrap());
                            }
                            _ => panic!("neither TCP nor UDP"),
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_conversation_is_consistent() {
        let tcp = |flags, reply, sent, heard, moved| {
            let order =
                Order { family: 4, proto: 6, flags, reply, payload: 6, sent, heard, ..Order::default() };
            let bytes = frame(&order, 123_456, moved);
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            (word(38), word(42))
        };
        let (syn, _) = tcp(SYN, 0, 0, 0, 0);
        let (answer, acknowledged) = tcp(SYN | ACK, 1, 0, 1, 0);
        assert_eq!(acknowledged, syn.wrapping_add(1));
        assert_eq!(tcp(ACK, 0, 1, 1, 0), (syn.wrapping_add(1), answer.wrapping_add(1)));
        assert_eq!(tcp(ACK, 1, 11, 1, 6), (answer.wrapping_add(17), syn.wrapping_add(7)));
    }
}

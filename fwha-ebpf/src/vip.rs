//! Virtual addresses: who asks for one is answered by the node alone that owns its group, and who has a virtual MAC
//! is known by no other.
//!
//! The stack answers ARP and neighbour discovery for as long as an address is on an interface, with the MAC of that.
//! A daemon that hangs or was killed takes it off late, when another node has it already, and in a planned move it goes a
//! moment after the other has it; so what asks for an address then is dropped here.
//!
//! The stack knows nothing of virtual MACs (RFC 9568, 7.3). Questions for an address with one are answered here
//! before the stack sees them; frames to it get the interface's own MAC; and what the stack or the daemon says of such
//! an address gets its virtual MAC on the way out, or does not go out: also the questions that the stack itself asks
//! in the name of the address, by which its neighbours would learn the wrong one.

use aya_ebpf::bindings::BPF_ANY;
use fwha_common::{
    drop::DropReason,
    flow::{FlowKey, proto},
    group::{Claim, Group, Vip, VipKey, VirtualMac, VirtualMacKey},
    rule::InterfaceKey,
    settings::Counter,
};

use crate::{
    Verdict,
    hook::{self, Tc},
    maps::{self, Room},
    packet::{ETH_LEN, Eth, Mac, Packet, RouteKind, Window, window},
    parse::{Ip, ethertype},
    reject::{self, Sum, V6},
};

/// An ARP packet (RFC 826) for IPv4 on Ethernet, as far as that makes its first six bytes.
const ARP_KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Its length.
const ARP_LEN: usize = 28;
const REQUEST: u16 = 1u16.to_be();
const REPLY: u16 = 2u16.to_be();

/// Type of a neighbour solicitation (RFC 4861, 4.3).
const SOLICITATION: u8 = 135;
/// Type of a neighbour advertisement (RFC 4861, 4.4).
const ADVERTISEMENT: u8 = 136;
/// Either, up to its options.
const ND_LEN: u32 = 24;
/// The option with a MAC (RFC 4861, 4.6.1).
const ND_OPTION_LEN: u32 = 8;
/// Of all nodes of a link: address and MAC (RFC 4291, 2.7.1; RFC 2464, 7).
const ALL_NODES: [u32; 4] = [u32::from_be(0xff02_0000), 0, 0, u32::from_be(1)];
const ALL_NODES_MAC: Mac = Mac::new([0x33, 0x33, 0, 0, 0, 1]);

/// Takes a frame to a virtual MAC as one to this node.
///
/// # Errors
///
/// Another node owns its group, or the lease is over.
#[inline(always)]
pub fn receive(packet: &mut impl Packet, eth: &mut Eth) -> Result<(), DropReason> {
    let key = VirtualMacKey { device: packet.device(), router: eth.dst.last_two(), zero: [0; 2] };
    // SAFETY: copied at once.
    let Some(found) = (unsafe { maps::VIRTUAL_MACS.get(key).copied() }) else { return Ok(()) };
    match maps::GROUPS.get(found.group as u32) {
        // Neighbours may send here for a moment after a planned move: the successor's frames have not reached them.
        Some(group) if group.role == Group::LEAVING && group.forwards(hook::now_ns()) => {}
        _ => owned(found.group)?,
    }
    eth.dst = Mac::new(found.own);
    window::<ETH_LEN>(packet, 0)?.set_mac::<0, 4>(eth.dst);
    packet.for_this_host();
    Ok(())
}

/// Has the stack take what [`receive`] made a frame to this node at XDP: some drivers (`veth_xdp_rcv_skb` in
/// drivers/net/veth.c) compared addresses before that, and do not change their mind.
#[inline(always)]
pub fn settle(packet: &mut Tc) {
    if let (Ok(eth), Some(interface)) =
        (Eth::read(packet), maps::interface(InterfaceKey::untagged(packet.ifindex())))
        && eth.dst == Mac::new(interface.mac)
    {
        packet.for_this_host();
    }
}

/// Lets ARP pass, or answers it. `ip` is room for what is asked of the routes.
///
/// # Errors
///
/// It asks for an address whose lease here is over.
#[inline(always)]
pub fn arp(packet: &mut impl Packet, ip: &mut Ip) -> Result<Verdict, DropReason> {
    // What is too short is for the stack to look at.
    let Ok(at) = window(packet, ETH_LEN) else { return Ok(Verdict::Pass) };
    let at: Window<ARP_LEN> = at;
    let (sender, target) = (at.u32::<14>(), at.u32::<24>());
    if is_arp(&at) {
        claim(packet.device(), &FlowKey::mapped(sender), at.mac::<8, 12>(), false);
    }
    // A host that announces its address asks for it.
    if at.u16::<6>() != REQUEST || sender == target {
        return Ok(Verdict::Pass);
    }
    let mac = asked(packet, &FlowKey::mapped(target), false)?;
    if mac == Mac::NONE || !is_arp(&at) {
        return Ok(Verdict::Pass);
    }
    let asking = at.mac::<8, 12>();
    (ip.v6, ip.proto, ip.tos, ip.sport, ip.dport) = (false, 0, 0, 0, 0);
    (ip.src, ip.dst) = (FlowKey::mapped(sender), FlowKey::mapped(target));
    if has_moved(packet, ip, asking) {
        return Ok(Verdict::Pass);
    }
    let asker = Eth::src(packet)?;
    Eth::address(packet, asker, mac)?;
    at.set_u16::<6>(REPLY);
    at.set_mac::<8, 12>(mac);
    at.set_u32::<14>(target);
    at.set_mac::<18, 22>(asking);
    at.set_u32::<24>(sender);
    Ok(Verdict::VipAnswer)
}

/// Whether the kernel knows another MAC of the source of a question than the one that it comes from. The stack is to have it
/// then, which learns the new one from it, and answers: nothing else would tell it as long as that neighbour does not announce itself,
/// for what the programs send by the old one does not make the kernel ask.
#[inline(always)]
fn has_moved(packet: &impl Packet, ip: &Ip, asking: Mac) -> bool {
    let Some(hop) = maps::room().map(Room::hop) else { return false };
    packet.route(ip, true, hop) == RouteKind::Resolved
        && hop.out == packet.device()
        && Mac::new(hop.dst_mac) != asking
}

/// Notes that somebody says he has an address with this MAC, if that is one of this node's now, in the zone where he says so: an
/// address conflict (RFC 5227, 2.4). What this node itself has said may come back to it, from a switch with a loop.
#[inline(never)]
fn claim(device: u32, address: &[u32; 4], mac: Mac, v6: bool) {
    let Some(key) = key(device, address) else { return };
    // SAFETY: copied at once.
    let Some(vip) = (unsafe { maps::VIPS.get(key).copied() }) else { return };
    let foreign = maps::interface(InterfaceKey::untagged(device))
        .is_some_and(|interface| interface.zone == vip.zone && mac != Mac::new(interface.mac));
    if !foreign || mac == Mac::new(Vip::mac(vip.vrid, v6)) || owned(vip.group).is_err() {
        return;
    }
    maps::count(Counter::VipClaimed, 1);
    let claim = Claim { at_ns: hook::now_ns(), mac: mac.bytes(), group: vip.group, zone: vip.zone };
    // There is room for all virtual addresses; if memory is short for a moment, the next one tells.
    let _ = maps::CLAIMS.insert(key, claim, BPF_ANY as u64);
}

#[inline(always)]
fn is_arp(at: &Window<ARP_LEN>) -> bool {
    const KIND: (u32, u16) = (
        u32::from_ne_bytes([ARP_KIND[0], ARP_KIND[1], ARP_KIND[2], ARP_KIND[3]]),
        u16::from_ne_bytes([ARP_KIND[4], ARP_KIND[5]]),
    );
    (at.u32::<0>(), at.u16::<4>()) == KIND
}

/// Lets neighbour discovery and other protocols of the node pass, or answers a solicitation.
///
/// # Errors
///
/// As [`arp`].
#[inline(always)]
pub fn nd<P: Packet>(packet: &mut P, ip: &mut Ip) -> Result<Verdict, DropReason> {
    if !ip.v6 || ip.proto != proto::ICMPV6 || !matches!(ip.icmp_type, SOLICITATION | ADVERTISEMENT) {
        return Ok(Verdict::Pass);
    }
    let Some(target) = nd_target(packet, ip) else { return Ok(Verdict::Pass) };
    if ip.icmp_type == ADVERTISEMENT {
        claim(packet.device(), &target, Eth::src(packet)?, true);
        return Ok(Verdict::Pass);
    }
    let mac = asked(packet, &target, true)?;
    let asking = Eth::src(packet)?;
    ip.dst = target;
    if mac == Mac::NONE || has_moved(packet, ip, asking) {
        return Ok(Verdict::Pass);
    }
    match advertise(packet, ip, &target, mac) {
        Some(()) => Ok(Verdict::VipAnswer),
        None => Err(DropReason::Truncated),
    }
}

/// Turns a solicitation into the advertisement that answers it (RFC 4861, 7.2.4; RFC 9568, 8.2.2): from a router, and to
/// override what the asker knew.
#[inline(always)]
fn advertise(packet: &mut impl Packet, ip: &mut Ip, target: &[u32; 4], mac: Mac) -> Option<()> {
    const LEN: u32 = ND_LEN + ND_OPTION_LEN;
    /// Flags: router, override.
    const UNSOLICITED: u32 = 0xa000_0000u32.to_be();
    /// And: solicited.
    const SOLICITED: u32 = 0xe000_0000u32.to_be();
    // Who has no address yet wants to know whether it may have this one.
    let solicited = ip.src[0] | ip.src[1] | ip.src[2] | ip.src[3] != 0;
    if !solicited {
        ip.src = ALL_NODES;
    }
    reject::headers::<V6>(packet, ip, proto::ICMPV6, LEN as u16, true)?;
    let eth: Window<{ ETH_LEN + V6 }> = window(packet, 0).ok()?;
    if !solicited {
        eth.set_mac::<0, 4>(ALL_NODES_MAC);
    }
    eth.set_mac::<6, 10>(mac);
    eth.set_u8::<{ ETH_LEN + 7 }>(255);
    let nd: Window<{ LEN as usize }> = window(packet, ETH_LEN + V6).ok()?;
    nd.set_u32::<0>(u32::from_ne_bytes([ADVERTISEMENT, 0, 0, 0]));
    nd.set_u32::<4>(if solicited { SOLICITED } else { UNSOLICITED });
    nd.set_u32::<8>(target[0]);
    nd.set_u32::<12>(target[1]);
    nd.set_u32::<16>(target[2]);
    nd.set_u32::<20>(target[3]);
    // Target link-layer address, in units of eight bytes.
    nd.set_u16::<24>(u16::from_ne_bytes([2, 1]));
    nd.set_mac::<26, 30>(mac);
    let sum = Sum::pseudo(ip, proto::ICMPV6, LEN as u16)
        .word(nd.u32::<0>())
        .word(nd.u32::<4>())
        .word(nd.u32::<8>())
        .word(nd.u32::<12>())
        .word(nd.u32::<16>())
        .word(nd.u32::<20>())
        .word(nd.u32::<24>())
        .word(nd.u32::<28>());
    nd.set_u16::<2>(!sum.fold());
    Some(())
}

/// The target of a solicitation or an advertisement.
#[inline(always)]
fn nd_target(packet: &impl Packet, ip: &Ip) -> Option<[u32; 4]> {
    let mut target = [0; 16];
    if !packet.load(ETH_LEN as u32 + ip.l4 + 8, &mut target) {
        return None;
    }
    let word = |n: usize| u32::from_ne_bytes([target[n], target[n + 1], target[n + 2], target[n + 3]]);
    Some([word(0), word(4), word(8), word(12)])
}

/// Whether this node takes what is addressed to `ip.dst`, an address of its own.
///
/// # Errors
///
/// It is a virtual one that it does not accept.
#[inline(always)]
pub fn accept(packet: &impl Packet, ip: &Ip) -> Result<(), DropReason> {
    if refused(packet.device(), &ip.dst) { Err(DropReason::VipNotAccepted) } else { Ok(()) }
}

/// Not inlined: the verifier then looks at what follows once, and not once for each way through this.
#[inline(never)]
fn refused(device: u32, address: &[u32; 4]) -> bool {
    find(device, address).is_some_and(|vip| vip.flags & Vip::NOT_ACCEPTED != 0)
}

/// ARP that this node sends: what it says of an address with a virtual MAC has that.
///
/// # Errors
///
/// As [`leaves`].
#[inline(always)]
pub fn arp_leaves(packet: &mut Tc) -> Result<(), DropReason> {
    if !Eth::read(packet).is_ok_and(|eth| eth.ethertype == ethertype::ARP) {
        return Ok(());
    }
    let Ok(at) = window(packet, ETH_LEN) else { return Ok(()) };
    let at: Window<ARP_LEN> = at;
    let mac = said(packet, &FlowKey::mapped(at.u32::<14>()), false)?;
    if mac != Mac::NONE {
        at.set_mac::<8, 12>(mac);
        window::<ETH_LEN>(packet, 0)?.set_mac::<6, 10>(mac);
    }
    Ok(())
}

/// The same for neighbour discovery; and VRRP of a virtual router with a MAC of its own comes from that (RFC 9568, 7.2).
///
/// # Errors
///
/// It speaks for an address that this node does not own now.
#[inline(always)]
pub fn leaves(packet: &mut Tc, ip: &Ip) -> Result<(), DropReason> {
    if ip.is_fragment() {
        return Ok(());
    }
    let at = ETH_LEN as u32 + ip.l4;
    if ip.proto == proto::VRRP {
        let mut head = [0; 2];
        if packet.load(at, &mut head) {
            let vrid = head[1];
            let known = router(packet, vrid, ip.v6).is_some();
            if known {
                window::<ETH_LEN>(packet, 0)?.set_mac::<6, 10>(Mac::new(Vip::mac(vrid, ip.v6)));
            }
        }
        return Ok(());
    }
    if !ip.v6 || ip.proto != proto::ICMPV6 || !matches!(ip.icmp_type, 133..=137) {
        return Ok(());
    }
    let advertises = ip.icmp_type == ADVERTISEMENT;
    let about = if advertises { nd_target(packet, ip).unwrap_or(ip.src) } else { ip.src };
    let mac = said(packet, &about, true)?;
    if mac == Mac::NONE {
        return Ok(());
    }
    window::<ETH_LEN>(packet, 0)?.set_mac::<6, 10>(mac);
    // Its first option: the MAC of the target, or that of the source.
    let mut option = [0; ND_OPTION_LEN as usize];
    let wanted = [if advertises { 2 } else { 1 }, 1];
    if (!advertises && ip.icmp_type != SOLICITATION)
        || !packet.load(at + ND_LEN, &mut option)
        || [option[0], option[1]] != wanted
    {
        return Ok(());
    }
    let bytes = mac.bytes();
    let pair = |b: &[u8], n: usize| u16::from_ne_bytes([b[n], b[n + 1]]);
    packet.replace(at + ND_LEN + 2, at + 2, pair(&option, 2), pair(&bytes, 0))?;
    packet.replace(at + ND_LEN + 4, at + 2, pair(&option, 4), pair(&bytes, 2))?;
    packet.replace(at + ND_LEN + 6, at + 2, pair(&option, 6), pair(&bytes, 4))
}

/// The virtual MAC with which to answer for an address; [`Mac::NONE`] if that is left to the stack: the address is none
/// of ours, has no virtual MAC here, or belongs to another node, whose answer is the one that counts.
///
/// # Errors
///
/// The lease of its group is over.
#[inline(always)]
fn asked(packet: &impl Packet, address: &[u32; 4], v6: bool) -> Result<Mac, DropReason> {
    let Some(vip) = find(packet.device(), address) else { return Ok(Mac::NONE) };
    match owned(vip.group) {
        Ok(()) => Ok(mac_of(packet, &vip, v6)),
        Err(DropReason::NotOwner) => Ok(Mac::NONE),
        Err(reason) => Err(reason),
    }
}

/// The virtual MAC of an address that this node speaks for; [`Mac::NONE`] if it has none.
///
/// # Errors
///
/// It has one, and this node does not own it now.
#[inline(always)]
fn said(packet: &impl Packet, address: &[u32; 4], v6: bool) -> Result<Mac, DropReason> {
    let Some(vip) = find(packet.device(), address) else { return Ok(Mac::NONE) };
    let mac = mac_of(packet, &vip, v6);
    if mac != Mac::NONE {
        owned(vip.group)?;
    }
    Ok(mac)
}

/// What is known of a virtual address, for a packet at this interface.
#[inline(always)]
fn find(device: u32, address: &[u32; 4]) -> Option<Vip> {
    // SAFETY: copied at once.
    unsafe { maps::VIPS.get(key(device, address)?).copied() }
}

/// The key of an address at an interface.
#[inline(always)]
fn key(device: u32, address: &[u32; 4]) -> Option<VipKey> {
    let mut key = VipKey { address: *address, zone: 0 };
    if VipKey::is_link_local(address) {
        key.zone = maps::interface(InterfaceKey::untagged(device))?.zone.into();
    }
    Some(key)
}

/// The virtual MAC of an address at the interface of the packet.
#[inline(always)]
fn mac_of(packet: &impl Packet, vip: &Vip, v6: bool) -> Mac {
    if vip.flags & Vip::VIRTUAL_MAC == 0 {
        return Mac::NONE;
    }
    match router(packet, vip.vrid, v6) {
        // The same number in another zone is another virtual router.
        Some(found) if found.zone == vip.zone => Mac::new(Vip::mac(vip.vrid, v6)),
        _ => Mac::NONE,
    }
}

/// A virtual router with a MAC of its own at the interface of the packet.
#[inline(always)]
fn router(packet: &impl Packet, vrid: u8, v6: bool) -> Option<VirtualMac> {
    // SAFETY: copied at once.
    unsafe { maps::VIRTUAL_MACS.get(VirtualMacKey::new(packet.device(), vrid, v6)).copied() }
}

/// Whether this node owns a group now.
#[inline(always)]
fn owned(group: u8) -> Result<(), DropReason> {
    let Some(group) = maps::GROUPS.get(group as u32) else { return Err(DropReason::NotOwner) };
    let now = hook::now_ns();
    match group.role {
        Group::ACTIVE if group.owned(now) => Ok(()),
        Group::ACTIVE => Err(DropReason::LeaseExpired),
        Group::LEAVING if group.forwards(now) => Err(DropReason::LeaseExpired),
        _ => Err(DropReason::NotOwner),
    }
}

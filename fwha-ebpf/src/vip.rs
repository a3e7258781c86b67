//! Virtual addresses: who asks for one is not answered by a node whose ownership has run out.
//!
//! The stack answers ARP and neighbour discovery for as long as an address is on an interface. A daemon that
//! hangs or was killed takes it off late, when another node has it already; and in a planned move it goes a moment
//! after the other has it.

use fwha_common::{
    drop::DropReason,
    flow::{FlowKey, proto},
    group::{Group, VipKey},
    rule::InterfaceKey,
};

use crate::{
    hook, maps,
    packet::{ETH_LEN, Packet, Window, window},
    parse::Ip,
};

/// An ARP packet for IPv4 on Ethernet (RFC 826).
const ARP_LEN: usize = 28;
const REQUEST: u16 = 1u16.to_be();
/// Type of a neighbour solicitation (RFC 4861, 4.3).
const SOLICITATION: u8 = 135;

/// Lets ARP pass.
///
/// # Errors
///
/// It asks for an address whose lease here is over.
#[inline(always)]
pub fn arp(packet: &impl Packet) -> Result<(), DropReason> {
    // What is too short is for the stack to look at.
    let Ok(at) = window(packet, ETH_LEN) else { return Ok(()) };
    let at: Window<ARP_LEN> = at;
    let (sender, target) = (at.u32::<14>(), at.u32::<24>());
    // A host that announces its address asks for it.
    if at.u16::<6>() != REQUEST || sender == target {
        return Ok(());
    }
    asked(packet, FlowKey::mapped(target))
}

/// Lets neighbour discovery pass.
///
/// # Errors
///
/// As [`arp`].
#[inline(always)]
pub fn nd(packet: &impl Packet, ip: &Ip) -> Result<(), DropReason> {
    let mut target = [0; 16];
    let offset = ETH_LEN as u32 + ip.l4 + 8;
    if !ip.v6
        || ip.proto != proto::ICMPV6
        || ip.icmp_type != SOLICITATION
        || !packet.load(offset, &mut target)
    {
        return Ok(());
    }
    let word = |n: usize| u32::from_ne_bytes([target[n], target[n + 1], target[n + 2], target[n + 3]]);
    asked(packet, [word(0), word(4), word(8), word(12)])
}

#[inline(always)]
fn asked(packet: &impl Packet, address: [u32; 4]) -> Result<(), DropReason> {
    let Some(interface) = maps::interface(InterfaceKey::untagged(packet.device())) else { return Ok(()) };
    let key = VipKey { address, zone: interface.zone.into() };
    // SAFETY: copied at once.
    let Some(group) = (unsafe { maps::VIPS.get(key).copied() }) else { return Ok(()) };
    match maps::GROUPS.get(group) {
        Some(group) => {
            let now = hook::now_ns();
            let late = match group.role {
                Group::ACTIVE => !group.owned(now),
                Group::LEAVING => group.forwards(now),
                _ => false,
            };
            if late { Err(DropReason::LeaseExpired) } else { Ok(()) }
        }
        None => Ok(()),
    }
}

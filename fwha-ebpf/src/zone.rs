//! Zones: which one a packet comes from.

use fwha_common::{drop::DropReason, rule::Interface};

use crate::{
    maps,
    packet::{Eth, Mac, Packet},
};

/// The zone a packet came from.
///
/// # Errors
///
/// The interface is in no zone, or the frame is for another station: a bridge floods frames whose
/// receiver it has not learned, and each of several firewalls behind it would forward them.
#[inline(always)]
pub fn of(packet: &impl Packet, eth: &Eth) -> Result<u8, DropReason> {
    let interface = maps::interface(packet.ifindex()).ok_or(DropReason::NoZone)?;
    if interface.zone == Interface::NO_ZONE {
        return Err(DropReason::NoZone);
    }
    let mac = Mac::new(interface.mac);
    if !eth.dst.is_group() && mac != Mac::new([0; 6]) && mac != eth.dst {
        return Err(DropReason::OtherStation);
    }
    Ok(interface.zone)
}

/// Whether a packet that is to be forwarded comes from `zone`, the zone of its sender.
///
/// # Errors
///
/// As [`of`]; another zone; a multicast or broadcast frame, which routers do not forward (RFC 1812,
/// 5.3.4).
#[inline(always)]
pub fn check(packet: &impl Packet, eth: &Eth, zone: u8) -> Result<(), DropReason> {
    if of(packet, eth)? != zone {
        return Err(DropReason::WrongZone);
    }
    if eth.dst.is_group() { Err(DropReason::OtherStation) } else { Ok(()) }
}

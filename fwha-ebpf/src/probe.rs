//! Probes: "is your data plane alive?", answered here without the daemon.

use fwha_common::{
    MAX_GROUPS,
    drop::DropReason,
    probe::{Probe, ProbeKind},
    rule::InterfaceKey,
    settings::Settings,
};

use crate::{
    Verdict, hook, maps,
    packet::{ETH_LEN, Eth, Mac, Packet, Window, window},
};

/// Length of a probe behind the Ethernet header.
const PROBE_LEN: usize = size_of::<Probe>();

/// Turns a request for this node into its reply, in place. A reply for this node is the daemon's.
///
/// # Errors
///
/// Not a probe of this cluster, wrong tag; or for another node.
#[inline(always)]
pub fn answer(packet: &mut impl Packet, settings: Option<&Settings>) -> Result<Verdict, DropReason> {
    let settings = settings.ok_or(DropReason::BadProbe)?;
    let mut probe = read(packet)?;
    if probe.cluster != settings.cluster.to_le_bytes() || !probe.valid(&settings.probe_key) {
        return Err(DropReason::BadProbe);
    }
    if probe.to != settings.node {
        // Whoever does not know a node's MAC asks it by broadcast.
        return Err(DropReason::OtherStation);
    }
    if probe.kind == ProbeKind::Reply as u8 {
        return Ok(Verdict::Pass);
    }
    if probe.kind != ProbeKind::Request as u8 {
        return Err(DropReason::BadProbe);
    }
    let lease_ms = longest_lease_ms(hook::now_ns());
    probe.kind = ProbeKind::Reply as u8;
    probe.to = probe.from;
    probe.from = settings.node;
    probe.flags = if lease_ms > 0 { Probe::OWNS } else { 0 };
    probe.lease_ms = lease_ms.to_le_bytes();
    probe.seal(&settings.probe_key);
    write(packet, &probe)?;
    let mut own = Eth::read(packet)?.dst;
    if own.is_group() {
        // Asked by broadcast, by somebody who does not know this node's MAC.
        own = Mac::new(
            maps::interface(InterfaceKey::untagged(packet.device())).ok_or(DropReason::BadProbe)?.mac,
        );
    }
    let asker = Eth::src(packet)?;
    Eth::address(packet, asker, own)?;
    Ok(Verdict::Answer)
}

/// Reads the probe behind the Ethernet header.
#[inline(always)]
fn read(packet: &impl Packet) -> Result<Probe, DropReason> {
    let at: Window<PROBE_LEN> = window(packet, ETH_LEN).map_err(|_| DropReason::BadProbe)?;
    Ok(Probe {
        magic: at.u32::<0>().to_ne_bytes(),
        kind: at.u8::<4>(),
        from: at.u8::<5>(),
        to: at.u8::<6>(),
        flags: at.u8::<7>(),
        zero: at.u16::<8>().to_ne_bytes(),
        cluster: at.u32::<10>().to_ne_bytes(),
        lease_ms: at.u32::<14>().to_ne_bytes(),
        nonce: at.u64::<18>().to_ne_bytes(),
        tag: at.u64::<26>().to_ne_bytes(),
    })
}

/// Writes the fields of a probe that a reply changes.
#[inline(always)]
fn write(packet: &mut impl Packet, probe: &Probe) -> Result<(), DropReason> {
    let at: Window<PROBE_LEN> = window(packet, ETH_LEN)?;
    at.set_u8::<4>(probe.kind);
    at.set_u8::<5>(probe.from);
    at.set_u8::<6>(probe.to);
    at.set_u8::<7>(probe.flags);
    at.set_u32::<14>(u32::from_ne_bytes(probe.lease_ms));
    at.set_u64::<26>(u64::from_ne_bytes(probe.tag));
    Ok(())
}

/// How long the longest lease of a group that this node owns still runs; 0 if it owns none.
#[inline(always)]
fn longest_lease_ms(now: u64) -> u32 {
    let mut longest = 0;
    for i in 0..MAX_GROUPS as u32 {
        if let Some(group) = maps::GROUPS.get(i)
            && group.owned(now)
        {
            let left = group.lease_until_ns - now;
            if left > longest {
                longest = left;
            }
        }
    }
    // Rounded up: a lease that still runs is never 0.
    let ms = longest.div_ceil(1_000_000);
    if ms > u32::MAX as u64 { u32::MAX } else { ms as u32 }
}

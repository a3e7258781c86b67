//! VLAN tags. They are taken off a frame before the engine judges it, and what leaves gets those of its way
//! out: the engine sees frames without tags only. What passes to the kernel's stack has its tags back, as
//! its VLAN devices expect.
//!
//! The kernel itself may have taken a tag off already; then it lies beside the packet ([`Packet::taken_tag`]).

use fwha_common::{
    drop::DropReason,
    rule::{Interface, InterfaceKey, Tag},
};

use crate::{
    Outcome, maps,
    packet::{ETH_LEN, Eth, Packet, window},
};

/// Whether a frame carries a tag.
#[inline(always)]
pub fn tagged(packet: &impl Packet) -> bool {
    packet.taken_tag() != Tag::NONE
        || window::<ETH_LEN>(packet, 0).is_ok_and(|eth| Tag::begins(eth.u16::<12>()))
}

/// Finds out which interface a packet came by, and takes its tags off. [`Outcome::JUDGE`] if it is to be
/// judged, else what becomes of it.
#[inline(never)]
pub fn arrive<P: Packet>(packet: &mut P) -> Outcome {
    match look(packet) {
        Ok(found) => found,
        Err(reason) => Outcome(reason as u32),
    }
}

#[inline(always)]
fn look<P: Packet>(packet: &mut P) -> Result<Outcome, DropReason> {
    let tags = read(packet)?;
    let (outer, inner) = (tags[0].plain(), tags[1].plain());
    let key = InterfaceKey { ifindex: packet.ifindex(), vlan: outer.vlan(), inner: inner.vlan() };
    let Some(interface) = maps::interface(key) else {
        return if outer == Tag::NONE { Ok(Outcome(Outcome::JUDGE)) } else { Err(DropReason::Vlan) };
    };
    if interface.flags & Interface::ALONE != 0 {
        return Ok(Outcome(Outcome::PASS));
    }
    if outer == Tag::NONE {
        if interface.flags & Interface::BARE != 0 {
            // The link's own protocols carry no tag.
            let own = tags[0] == Tag::NONE && Eth::read(packet)?.dst.is_link_local();
            return if own { Ok(Outcome(Outcome::PASS)) } else { Err(DropReason::Vlan) };
        }
    } else if interface.tags[0] != outer || interface.tags[1] != inner {
        return Err(DropReason::Vlan);
    }
    if !take_off(packet, &tags) {
        return Err(DropReason::Truncated);
    }
    let arrival = packet.arrival();
    arrival.device = interface.device;
    arrival.tags = tags;
    arrival.bare = interface.flags & Interface::BARE != 0;
    Ok(Outcome(Outcome::JUDGE))
}

/// The tags of a frame. A third one is nobody's.
#[inline(always)]
fn read(packet: &impl Packet) -> Result<[Tag; 2], DropReason> {
    let taken = packet.taken_tag();
    let first = tag_at::<12>(packet)?;
    if first == Tag::NONE {
        return Ok([taken, Tag::NONE]);
    }
    let second = tag_at::<16>(packet)?;
    if taken != Tag::NONE {
        return if second == Tag::NONE { Ok([taken, first]) } else { Err(DropReason::Vlan) };
    }
    if second != Tag::NONE && tag_at::<20>(packet)? != Tag::NONE {
        return Err(DropReason::Vlan);
    }
    Ok([first, second])
}

/// The tag at an offset of the frame, if there is one.
#[inline(always)]
fn tag_at<const OFFSET: usize>(packet: &impl Packet) -> Result<Tag, DropReason> {
    if !Tag::begins(window::<2>(packet, OFFSET)?.u16::<0>()) {
        return Ok(Tag::NONE);
    }
    Ok(Tag(window::<4>(packet, OFFSET)?.u32::<0>()))
}

/// Takes as many tags off a frame.
#[inline(always)]
fn take_off(packet: &mut impl Packet, tags: &[Tag; 2]) -> bool {
    (tags[0] == Tag::NONE || packet.pop_tag()) && (tags[1] == Tag::NONE || packet.pop_tag())
}

/// Puts tags on a frame that has none.
#[inline(always)]
fn put_on(packet: &mut impl Packet, tags: [Tag; 2]) -> bool {
    (tags[1] == Tag::NONE || packet.push_tag(tags[1])) && (tags[0] == Tag::NONE || packet.push_tag(tags[0]))
}

/// Gives a frame the tags back that it came with. Whether it could.
#[inline(always)]
pub fn restore<P: Packet>(packet: &mut P) -> bool {
    packet.arrival().tags[0] == Tag::NONE || restore_tags(packet)
}

/// As [`restore`], for a packet that passes to the kernel's stack.
#[inline(always)]
pub fn restore_for_stack<P: Packet>(packet: &mut P) -> bool {
    let arrival = packet.arrival();
    arrival.tags[0] == Tag::NONE || arrival.bare || restore_tags(packet)
}

#[inline(never)]
fn restore_tags<P: Packet>(packet: &mut P) -> bool {
    let tags = packet.arrival().tags;
    put_on(packet, tags)
}

/// Takes them off again.
#[inline(always)]
pub fn strip<P: Packet>(packet: &mut P) -> bool {
    packet.arrival().tags[0] == Tag::NONE || strip_tags(packet)
}

#[inline(never)]
fn strip_tags<P: Packet>(packet: &mut P) -> bool {
    let tags = packet.arrival().tags;
    take_off(packet, &tags)
}

/// Gives a frame the tags of the VLAN that it leaves by. The interface that carries it; 0 if it cannot.
#[inline(never)]
pub fn dress<P: Packet>(packet: &mut P, device: u32) -> u32 {
    match maps::interface(InterfaceKey::untagged(device)) {
        Some(interface) if put_on(packet, interface.tags) => interface.trunk,
        _ => 0,
    }
}

/// Tags what the stack sends by an interface whose VLAN it knows nothing of, but for the link's own protocols.
#[inline(always)]
pub fn dress_bare<P: Packet>(packet: &mut P) {
    if maps::vlans(maps::SETTINGS.get(0))
        && maps::interface(InterfaceKey::untagged(packet.ifindex()))
            .is_some_and(|interface| interface.flags & Interface::BARE != 0)
        && !Eth::read(packet).is_ok_and(|eth| eth.dst.is_link_local())
    {
        dress(packet, packet.ifindex());
    }
}

//! Which interface gets which program, and what the programs are told of interfaces and of the VLANs on them.

use std::collections::{BTreeMap, BTreeSet};

use fwha_common::rule::{Interface, InterfaceKey, Tag};

use super::{Attach, DataplaneError, ZoneInterface};
use crate::netlink::Link;

/// Bytes of a tag in a frame.
const TAG_LEN: u32 = 4;

/// What is to be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The elements of `INTERFACES`.
    pub elements: BTreeMap<InterfaceKey, Interface>,
    /// Whether the programs must look at frames without a tag before they judge them.
    pub look_first: bool,
    /// Interfaces that have XDP for the sake of VLAN devices on them.
    pub trunks: BTreeSet<u32>,
    /// Interfaces with a program of a zone whose frames carry tags.
    pub tagged: BTreeSet<u32>,
}

/// Whether what comes by a VLAN device is judged at its trunk: XDP is only there.
pub(super) fn at_trunk<'a>(link: &Link, zone: &ZoneInterface, present: &'a [Link]) -> Option<&'a Link> {
    if zone.attach != Attach::Xdp { None } else { lineage(link, present).map(|(trunk, _)| trunk) }
}

/// The interface by which frames of a VLAN device leave, and the tags that they carry there.
fn lineage<'a>(link: &Link, present: &'a [Link]) -> Option<(&'a Link, [Tag; 2])> {
    let find = |index| present.iter().find(|l| l.index == index);
    let vlan = link.vlan?;
    let parent = find(vlan.parent)?;
    let above = parent.vlan.and_then(|outer| Some((find(outer.parent)?, [outer.tag, vlan.tag])));
    Some(above.unwrap_or((parent, [vlan.tag, Tag::NONE])))
}

/// The tags by which a trunk's frames belong to a VLAN device, if they do.
fn tags_on(trunk: u32, link: &Link, present: &[Link]) -> Option<[Tag; 2]> {
    let vlan = link.vlan?;
    if vlan.parent == trunk {
        return Some([vlan.tag, Tag::NONE]);
    }
    let parent = present.iter().find(|l| l.index == vlan.parent)?.vlan?;
    (parent.parent == trunk).then_some([parent.tag, vlan.tag])
}

fn key(ifindex: u32, tags: [Tag; 2]) -> InterfaceKey {
    InterfaceKey { ifindex, vlan: tags[0].vlan(), inner: tags[1].vlan() }
}

/// Plans for the interfaces that are wanted, of those that are present. A `problem` is that two of them are to have
/// different programs at one place, or carry the same VLAN, or that a VLAN has a device of another name: the plan goes on
/// as if the second of the two were not there, unless that says no.
///
/// # Errors
///
/// Those of `problem`.
pub(super) fn plan(
    wanted: &[(&Link, Option<&ZoneInterface>)],
    present: &[Link],
    mut problem: impl FnMut(DataplaneError) -> Result<(), DataplaneError>,
) -> Result<Plan, DataplaneError> {
    let mut plan = Plan::default();
    // Where programs of zones will be, by interface.
    let mut programs = BTreeSet::new();
    for (link, zone) in wanted {
        let (trunk, tags) = match zone {
            Some(zone) if zone.tags[0] != Tag::NONE => (*link, zone.tags),
            Some(_) => lineage(link, present).unwrap_or((*link, [Tag::NONE; 2])),
            None => (*link, [Tag::NONE; 2]),
        };
        let element = element(link, *zone, trunk, tags);
        plan.elements.insert(InterfaceKey::untagged(link.index), element);
        let Some(zone) = zone else { continue };
        if zone.tags[0] != Tag::NONE {
            let has = |device: &&Link| {
                tags_on(link.index, device, present).is_some_and(|t| key(0, t) == key(0, tags))
            };
            if let Some(device) = present.iter().find(has) {
                let (trunk, device) = (link.name.clone(), device.name.clone());
                let written = tags.iter().filter(|tag| **tag != Tag::NONE);
                let written = written.fold(trunk.clone(), |name, tag| format!("{name}.{}", tag.vlan()));
                problem(match written == device {
                    true => DataplaneError::LateDevice(trunk, device),
                    false => DataplaneError::HasDevice(trunk, tags[0].vlan(), device),
                })?;
            }
            plan.elements.insert(key(link.index, tags), element);
            plan.tagged.insert(link.index);
            plan.look_first = true;
            programs.insert(link.index);
        } else if let Some(trunk) = at_trunk(link, zone, present) {
            let known = plan.elements.entry(key(trunk.index, tags)).or_insert(element);
            if known.tags != tags {
                problem(DataplaneError::SameVlan(trunk.name.clone(), tags[0].vlan()))?;
            }
            plan.trunks.insert(trunk.index);
            programs.insert(trunk.index);
        } else {
            programs.insert(link.index);
        }
    }
    for (link, zone) in wanted {
        if let Some(zone) = zone
            && plan.trunks.contains(&link.index)
            && zone.attach == Attach::Tc
        {
            problem(DataplaneError::TrunkHook(link.name.clone()))?;
        }
    }
    // What else these programs meet belongs to nobody here, or has a program behind them.
    for index in programs {
        let Some(trunk) = present.iter().find(|l| l.index == index) else { continue };
        let alone = |device| Interface {
            flags: Interface::ALONE,
            ..self::element(device, None, trunk, [Tag::NONE; 2])
        };
        let own = plan.elements.entry(InterfaceKey::untagged(index)).or_insert_with(|| alone(trunk));
        plan.look_first |= own.flags & Interface::ALONE != 0;
        for link in present {
            if let Some(tags) = tags_on(index, link, present) {
                plan.tagged.insert(index);
                plan.elements.entry(key(index, tags)).or_insert(Interface { tags, ..alone(link) });
            }
        }
    }
    Ok(plan)
}

fn element(link: &Link, zone: Option<&ZoneInterface>, trunk: &Link, tags: [Tag; 2]) -> Interface {
    let mut flags = if zone.is_some_and(|z| z.anti_spoofing) { 0 } else { Interface::LOOSE };
    if zone.is_none() {
        flags |= Interface::ALONE;
    }
    if zone.is_some_and(|z| z.tags[0] != Tag::NONE) {
        flags |= Interface::BARE;
    }
    // Drivers have room for one tag beside the MTU, no more.
    let carried = tags.iter().filter(|tag| **tag != Tag::NONE).count() as u32;
    let room = (trunk.mtu + TAG_LEN).saturating_sub(TAG_LEN * carried);
    Interface {
        zone: zone.map_or(Interface::NO_ZONE, |z| z.zone),
        flags,
        mac: link.mac.unwrap_or_default(),
        device: link.index,
        trunk: trunk.index,
        tags,
        mtu: if carried > 0 && room < link.mtu { room as u16 } else { 0 },
        zero: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Vlan;

    const ETH0: u32 = 2;

    fn link(index: u32, name: &str, vlan: Option<(u32, Tag)>) -> Link {
        Link {
            index,
            name: name.into(),
            ethernet: true,
            mac: Some([2, 0, 0, 0, 0, index as u8]),
            mtu: 1500,
            up: true,
            carrier: true,
            xdp_program: None,
            vlan: vlan.map(|(parent, tag)| Vlan { parent, tag }),
        }
    }

    fn tag(vlan: u16) -> Tag {
        Tag::new(Tag::CUSTOMER, vlan)
    }

    fn zone(name: &str, zone: u8, attach: Attach, tags: [Tag; 2]) -> ZoneInterface {
        ZoneInterface { name: name.into(), tags, zone, attach, anti_spoofing: true, virtual_macs: false }
    }

    /// eth0 with VLANs 100, 200 and 300 on it, and one more, 7, on 300.
    fn links() -> Vec<Link> {
        let outer = Tag::new(Tag::SERVICE, 300);
        vec![
            link(ETH0, "eth0", None),
            link(3, "eth0.100", Some((ETH0, tag(100)))),
            link(4, "eth0.200", Some((ETH0, tag(200)))),
            link(5, "eth0.300", Some((ETH0, outer))),
            link(6, "eth0.300.7", Some((5, tag(7)))),
            link(7, "eth1", None),
        ]
    }

    fn planned(zones: &[ZoneInterface]) -> Result<Plan, DataplaneError> {
        let present = links();
        let wanted: Vec<_> =
            zones.iter().map(|z| (present.iter().find(|l| l.name == z.name).unwrap(), Some(z))).collect();
        plan(&wanted, &present, Err)
    }

    const NO_TAGS: [Tag; 2] = [Tag::NONE; 2];

    #[test]
    fn an_interface_without_vlans_is_itself() {
        let plan = planned(&[zone("eth1", 1, Attach::Auto, NO_TAGS)]).unwrap();
        assert_eq!(plan.elements.len(), 1);
        let element = plan.elements[&InterfaceKey::untagged(7)];
        assert_eq!((element.zone, element.flags, element.device, element.trunk), (1, 0, 7, 7));
        assert_eq!((element.tags, element.mtu), (NO_TAGS, 0));
        assert!(!plan.look_first && plan.trunks.is_empty() && plan.tagged.is_empty());
    }

    #[test]
    fn a_vlan_device_is_judged_at_its_trunk_by_xdp_and_by_itself_otherwise() {
        let device = |plan: &Plan| plan.elements[&InterfaceKey::untagged(3)];
        for attach in [Attach::Auto, Attach::Tc] {
            let plan = planned(&[zone("eth0.100", 1, attach, NO_TAGS)]).unwrap();
            assert_eq!(plan.elements.len(), 1);
            let element = device(&plan);
            assert_eq!((element.trunk, element.tags), (ETH0, [tag(100), Tag::NONE]), "it leaves tagged");
            assert!(!plan.look_first && plan.trunks.is_empty());
        }
        let plan = planned(&[zone("eth0.100", 1, Attach::Xdp, NO_TAGS)]).unwrap();
        assert_eq!(plan.trunks, [ETH0].into());
        assert!(plan.look_first, "eth0 itself is in no zone");
        assert_eq!(plan.elements[&InterfaceKey { ifindex: ETH0, vlan: 100, inner: 0 }], device(&plan));
        for (vlan, inner) in [(0, 0), (200, 0), (300, 0), (300, 7)] {
            let left = plan.elements[&InterfaceKey { ifindex: ETH0, vlan, inner }];
            assert_eq!((left.zone, left.flags), (Interface::NO_ZONE, Interface::ALONE), "{vlan} {inner}");
            assert_eq!((left.tags[0].vlan(), left.tags[1].vlan()), (vlan, inner));
        }
        assert_eq!(plan.elements.len(), 6);
    }

    #[test]
    fn two_tags_leave_less_room_than_the_routes_say() {
        let plan = planned(&[zone("eth0.300.7", 1, Attach::Xdp, NO_TAGS)]).unwrap();
        let element = plan.elements[&InterfaceKey { ifindex: ETH0, vlan: 300, inner: 7 }];
        assert_eq!((element.device, element.trunk, element.mtu), (6, ETH0, 1496));
        assert_eq!(element.tags, [Tag::new(Tag::SERVICE, 300), tag(7)]);
        assert_eq!(plan.elements[&InterfaceKey::untagged(6)], element);
    }

    #[test]
    fn a_trunk_in_a_zone_leaves_its_vlan_devices_to_their_own_programs() {
        let zones = [zone("eth0", 1, Attach::Tc, NO_TAGS), zone("eth0.100", 2, Attach::Tc, NO_TAGS)];
        let plan = planned(&zones).unwrap();
        assert_eq!(
            plan.elements[&InterfaceKey { ifindex: ETH0, vlan: 100, inner: 0 }].flags,
            Interface::ALONE
        );
        assert_eq!(plan.elements[&InterfaceKey::untagged(3)].zone, 2);
        assert_eq!(plan.elements[&InterfaceKey::untagged(ETH0)].zone, 1);
        assert!(!plan.look_first && plan.tagged == [ETH0].into());
        let mixed = [zone("eth0", 1, Attach::Tc, NO_TAGS), zone("eth0.100", 2, Attach::Xdp, NO_TAGS)];
        assert!(planned(&mixed).unwrap_err().to_string().contains("eth0"));
    }

    #[test]
    fn a_tag_without_a_device_is_the_trunk_itself() {
        let plan = planned(&[zone("eth1", 1, Attach::Tc, [tag(9), Tag::NONE])]).unwrap();
        let element = plan.elements[&InterfaceKey { ifindex: 7, vlan: 9, inner: 0 }];
        assert_eq!((element.flags, element.device, element.trunk), (Interface::BARE, 7, 7));
        assert_eq!(plan.elements[&InterfaceKey::untagged(7)], element);
        assert!(plan.look_first && plan.tagged == [7].into() && plan.elements.len() == 2);
        let zones = [zone("eth0", 1, Attach::Tc, [tag(100), Tag::NONE])];
        let late = planned(&zones).unwrap_err().to_string();
        assert!(late.starts_with("eth0.100 has come") && late.ends_with("restart fwha"), "{late}");
        let mut other_name = links();
        other_name[1].name = "users".into();
        let wanted = [(&other_name[0], Some(&zones[0]))];
        let named = super::plan(&wanted, &other_name, Err).unwrap_err().to_string();
        assert!(named.contains("has the device users: write that name"), "{named}");

        // The device has come under way: the tag stays the zone's, and the other zone is not concerned.
        let (present, mut problems) = (links(), Vec::new());
        let wanted =
            [(&present[0], Some(&zones[0])), (&present[5], Some(&zone("eth1", 2, Attach::Tc, NO_TAGS)))];
        let note = |problem: DataplaneError| {
            problems.push(problem.to_string());
            Ok(())
        };
        let plan = super::plan(&wanted, &present, note).unwrap();
        assert_eq!(plan.elements[&InterfaceKey { ifindex: ETH0, vlan: 100, inner: 0 }].zone, 1);
        assert_eq!(plan.elements[&InterfaceKey::untagged(7)].zone, 2);
        assert!(matches!(&problems[..], [one] if one.contains("eth0.100")), "{problems:?}");
    }
}

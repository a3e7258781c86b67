//! VLANs in interface names: `eth0.100`, `eth0.100.200`.
//!
//! Such a name means the interface of this name if there is one: a VLAN device, whatever it is a VLAN of. If there is
//! none it means the tag, or the two tags, on the interface before the dot. Then the kernel has no device to tell that
//! VLAN by, and the interface belongs to it as a whole.

use fwha_common::rule::Tag;

use super::value;

/// Where an interface name of the config leads on a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The interface that there is.
    pub interface: String,
    /// The tags that frames carry there, the outer first; none if the name is the interface's.
    pub tags: [Tag; 2],
}

/// The interface before the VLANs of a name, and the VLANs; `None` if it has none.
pub(super) fn split(name: &str) -> Result<Option<(&str, Vec<u16>)>, String> {
    let mut trunk = name;
    let mut vlans = Vec::new();
    while let Some((before, digits)) = trunk.rsplit_once('.')
        && !before.is_empty()
        && !digits.is_empty()
        && digits.bytes().all(|b| b.is_ascii_digit())
    {
        let vlan = digits.parse().ok().filter(|vlan| (1..=4094).contains(vlan));
        vlans.insert(0, vlan.ok_or_else(|| format!("{name:?} has VLAN {digits}, and VLANs are 1 to 4094"))?);
        trunk = before;
    }
    match vlans.len() {
        0 => Ok(None),
        1 | 2 => Ok(Some((trunk, vlans))),
        _ => Err(format!("{name:?} has more than two VLANs")),
    }
}

/// The name of an interface or of VLANs on one.
pub(super) fn interface(text: &str) -> Result<String, String> {
    match split(text)? {
        // Too long for a device, but not for a tag.
        Some((trunk, _)) if value::interface(text).is_err() => value::interface(trunk)?,
        _ => value::interface(text)?,
    };
    Ok(text.into())
}

/// A name as all names for the same VLAN are written: `eth0.0100` is `eth0.100`.
pub(super) fn canonical(name: &str) -> String {
    match split(name) {
        Ok(Some((trunk, vlans))) => {
            vlans.iter().fold(trunk.to_owned(), |name, vlan| format!("{name}.{vlan}"))
        }
        _ => name.to_owned(),
    }
}

/// As [`place`], for what must be an interface.
pub(super) fn device(name: &str, exists: impl Fn(&str) -> bool) -> Option<Place> {
    exists(name).then(|| Place { interface: name.to_owned(), tags: [Tag::NONE; 2] })
}

/// Where a name leads on a machine that has those interfaces for which `exists` is true; `None` if nowhere.
pub fn place(name: &str, exists: impl Fn(&str) -> bool) -> Option<Place> {
    if let Some(device) = device(name, &exists) {
        return Some(device);
    }
    let (_, vlans) = split(name).ok()??;
    let tag = |vlan| Tag::new(Tag::CUSTOMER, vlan);
    let (nearer, _) = name.rsplit_once('.')?;
    if exists(nearer) {
        return Some(Place { interface: nearer.to_owned(), tags: [tag(*vlans.last()?), Tag::NONE] });
    }
    let (trunk, _) = nearer.rsplit_once('.')?;
    match vlans[..] {
        // As service provider and customer do it, whose bridges tell the two kinds of tags apart (IEEE 802.1ad).
        [outer, inner] if exists(trunk) => {
            Some(Place { interface: trunk.to_owned(), tags: [Tag::new(Tag::SERVICE, outer), tag(inner)] })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_in_vlans() {
        assert_eq!(split("eth0"), Ok(None));
        assert_eq!(split("lan.v5"), Ok(None));
        assert_eq!(split("lan."), Ok(None));
        assert_eq!(split(".5"), Ok(None));
        assert_eq!(split("eth0.1"), Ok(Some(("eth0", vec![1]))));
        assert_eq!(split("a.b.4094.0007"), Ok(Some(("a.b", vec![4094, 7]))));
        for (bad, id) in [("eth0.0", "0"), ("eth0.4095", "4095"), ("eth0.1.99999", "99999")] {
            assert_eq!(split(bad), Err(format!("{bad:?} has VLAN {id}, and VLANs are 1 to 4094")));
        }
        assert_eq!(split("eth0.1.2.3"), Err("\"eth0.1.2.3\" has more than two VLANs".into()));
        assert_eq!(canonical("eth0.0100.02"), "eth0.100.2");
        assert_eq!(interface("enp129s0f0np0.100.200"), Ok("enp129s0f0np0.100.200".into()));
        assert!(interface("enp129s0f0np0.wan").is_err() && interface("an-interface-of-x.7").is_err());
    }

    #[test]
    fn a_device_comes_before_a_tag() {
        let on = |present: &'static [&str], name| place(name, |n| present.contains(&n));
        let at = |interface: &str, tags| Some(Place { interface: interface.into(), tags });
        let tag = |vlan| Tag::new(Tag::CUSTOMER, vlan);
        assert_eq!(on(&["eth0", "eth0.100"], "eth0.100"), at("eth0.100", [Tag::NONE; 2]));
        assert_eq!(on(&["eth0"], "eth0.0100"), at("eth0", [tag(100), Tag::NONE]));
        assert_eq!(on(&["eth0", "eth0.1"], "eth0.1.2"), at("eth0.1", [tag(2), Tag::NONE]));
        assert_eq!(on(&["eth0"], "eth0.1.2"), at("eth0", [Tag::new(Tag::SERVICE, 1), tag(2)]));
        assert_eq!(on(&["eth1"], "eth0.100"), None);
        assert_eq!(on(&["eth0"], "eth0.wan"), None);
    }
}

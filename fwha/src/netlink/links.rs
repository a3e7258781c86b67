//! Interfaces.

use futures_util::TryStreamExt;
use fwha_common::rule::Tag;
use rtnetlink::{
    Handle,
    packet_route::link::{
        InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp,
        VlanProtocol,
    },
};

use super::{NetlinkError, blocking, request_error};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether its frames begin with an Ethernet header (`ARPHRD_ETHER`): those of tunnels, PPP and WireGuard do not.
    pub ethernet: bool,
    /// Its MAC, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Its MTU, in bytes.
    pub mtu: u32,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a carrier and is operational.
    pub carrier: bool,
    /// Id of the XDP program attached to it, if one is.
    pub xdp_program: Option<u32>,
    /// What it is a VLAN of, if it is a VLAN device.
    pub vlan: Option<Vlan>,
}

/// A VLAN on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vlan {
    /// Index of the interface whose frames carry the tag.
    pub parent: u32,
    /// The tag.
    pub tag: Tag,
}

impl Link {
    /// Whether frames can leave by it.
    pub fn running(&self) -> bool {
        self.up && self.carrier
    }

    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            ethernet: message.header.link_layer_type == LinkLayerType::Ether,
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp) && flags.contains(LinkFlags::Running),
            xdp_program: None,
            vlan: None,
        };
        let (mut parent, mut tag) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().ok(),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Xdp(attributes) => {
                    link.xdp_program = attributes.iter().find_map(|a| match a {
                        LinkXdp::ProgId(id)
                        | LinkXdp::DrvProgId(id)
                        | LinkXdp::SkbProgId(id)
                        | LinkXdp::HwProgId(id)
                            if *id != 0 =>
                        {
                            Some(*id)
                        }
                        _ => None,
                    });
                }
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::LinkInfo(info) => tag = tag_of(info),
                _ => {}
            }
        }
        // What lies in another namespace is none of this one's interfaces.
        let elsewhere = message.attributes.iter().any(|a| matches!(a, LinkAttribute::LinkNetNsId(_)));
        if let (Some(parent), Some(tag), false) = (parent, tag, elsewhere) {
            link.vlan = Some(Vlan { parent, tag });
        }
        link
    }
}

/// The tag of a VLAN device.
fn tag_of(info: &[LinkInfo]) -> Option<Tag> {
    let data = info.iter().find_map(|i| match i {
        LinkInfo::Data(InfoData::Vlan(data)) => Some(data),
        _ => None,
    })?;
    let id = data.iter().find_map(|d| if let InfoVlan::Id(id) = d { Some(*id) } else { None })?;
    let service = data.iter().any(|d| matches!(d, InfoVlan::Protocol(VlanProtocol::Ieee8021Ad)));
    Some(Tag::new(if service { Tag::SERVICE } else { Tag::CUSTOMER }, id))
}

/// All interfaces of this network namespace.
pub(super) async fn list(handle: &Handle) -> Result<Vec<Link>, NetlinkError> {
    handle
        .link()
        .get()
        .execute()
        .map_ok(|message| Link::from_message(&message))
        .try_collect()
        .await
        .map_err(|e| request_error("list interfaces", e))
}

/// All interfaces of the calling thread's network namespace. Blocks; for the start and for repairs.
///
/// # Errors
///
/// No netlink socket, or the kernel refuses.
pub fn links() -> Result<Vec<Link>, NetlinkError> {
    blocking(async |handle| list(&handle).await)
}

#[cfg(test)]
mod tests {
    use rtnetlink::{
        packet_core::{NetlinkMessage, NetlinkPayload},
        packet_route::RouteNetlinkMessage,
    };

    use super::*;

    const IFLA_IFNAME: u16 = 3;
    const IFLA_LINK: u16 = 5;
    const IFLA_LINKINFO: u16 = 18;
    const IFLA_LINK_NETNSID: u16 = 37;
    const IFLA_INFO_KIND: u16 = 1;
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_VLAN_ID: u16 = 1;
    const IFLA_VLAN_PROTOCOL: u16 = 5;

    /// An attribute (netlink(7)): length, type, value, padding.
    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = [(4 + value.len() as u16).to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// `RTM_NEWLINK` about interface 7, as the kernel writes it.
    fn newlink(attributes: &[Vec<u8>]) -> Link {
        let mut body = vec![0, 0, 1, 0];
        body.extend(7u32.to_ne_bytes());
        body.extend([0; 8]);
        body.extend(attributes.concat());
        let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
        message.extend([16u16.to_ne_bytes(), [0; 2]].concat());
        message.extend([0; 8]);
        message.extend(body);
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&message).unwrap();
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload else {
            panic!("a link")
        };
        Link::from_message(&link)
    }

    fn vlan_info(id: u16, protocol: u16) -> Vec<u8> {
        let data = [
            attribute(IFLA_VLAN_PROTOCOL, &protocol.to_be_bytes()),
            attribute(IFLA_VLAN_ID, &id.to_ne_bytes()),
        ];
        let info = [attribute(IFLA_INFO_KIND, b"vlan\0"), attribute(IFLA_INFO_DATA, &data.concat())];
        attribute(IFLA_LINKINFO, &info.concat())
    }

    #[test]
    fn a_vlan_device_says_its_trunk_and_its_tag() {
        let name = attribute(IFLA_IFNAME, b"eth0.100\0");
        let parent = attribute(IFLA_LINK, &2u32.to_ne_bytes());
        let elsewhere = attribute(IFLA_LINK_NETNSID, &0i32.to_ne_bytes());
        for (protocol, ethertype) in [(0x8100, Tag::CUSTOMER), (0x88a8, Tag::SERVICE)] {
            // In both orders: the kernel promises none.
            for attributes in [
                [name.clone(), parent.clone(), vlan_info(100, protocol)],
                [vlan_info(100, protocol), parent.clone(), name.clone()],
            ] {
                let link = newlink(&attributes);
                assert_eq!((link.index, link.name.as_str()), (7, "eth0.100"));
                assert_eq!(link.vlan, Some(Vlan { parent: 2, tag: Tag::new(ethertype, 100) }));
            }
        }
        let away = newlink(&[name.clone(), parent.clone(), elsewhere, vlan_info(100, 0x8100)]);
        assert_eq!(away.vlan, None, "its trunk is in another namespace");
        let kind = attribute(IFLA_LINKINFO, &attribute(IFLA_INFO_KIND, b"veth\0"));
        assert_eq!(newlink(&[name, parent, kind]).vlan, None, "a veth has a link, too");
    }
}

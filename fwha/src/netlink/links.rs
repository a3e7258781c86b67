//! Interfaces.

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle,
    packet_route::link::{LinkAttribute, LinkFlags, LinkMessage, LinkXdp},
};

use super::{NetlinkError, blocking, request_error};

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
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
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp) && flags.contains(LinkFlags::Running),
            xdp_program: None,
        };
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
                _ => {}
            }
        }
        link
    }
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

//! What interfaces can do with XDP, as their drivers tell by the generic netlink family `netdev` (Linux 6.3;
//! Documentation/netlink/specs/netdev.yaml).

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    io,
    sync::OnceLock,
};

use futures_util::StreamExt;
use netlink_packet_generic::{
    GenlFamily, GenlHeader, GenlMessage,
    ctrl::{GenlCtrl, GenlCtrlCmd, nlas::GenlCtrlAttrs},
};
use rtnetlink::{
    packet_core::{
        DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable, NlasIterator, ParseableParametrized,
    },
    proto,
    sys::{SocketAddr, protocols::NETLINK_GENERIC},
};

use super::{NetlinkError, run};

/// What a driver can do with XDP: bits of `enum netdev_xdp_act` in include/uapi/linux/netdev.h.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures(pub u64);

impl XdpFeatures {
    /// `NETDEV_XDP_ACT_REDIRECT`: what its program redirects goes to another interface.
    pub const REDIRECT: u64 = 2;
    /// `NETDEV_XDP_ACT_NDO_XMIT`: it sends what the program of another interface redirects to it. Most drivers can do so
    /// only while they have a program themselves, a veth only while its other end polls.
    pub const NDO_XMIT: u64 = 4;

    /// [`Self::REDIRECT`].
    pub fn redirects(self) -> bool {
        self.0 & Self::REDIRECT != 0
    }

    /// [`Self::NDO_XMIT`].
    pub fn transmits(self) -> bool {
        self.0 & Self::NDO_XMIT != 0
    }
}

/// What interfaces of the calling thread's network namespace can do now, by index; nothing of those that are gone. Blocks; for
/// the start and for repairs.
///
/// # Errors
///
/// No netlink socket, or a kernel that does not tell.
pub fn xdp_features(of: &BTreeSet<u32>) -> Result<BTreeMap<u32, XdpFeatures>, NetlinkError> {
    run(async || {
        let family = family().await?;
        // One by one: the kernel's lists are not marked as such (`netdev_nl_dev_fill` of its net/core/netdev-genl.c sets no
        // `NLM_F_MULTI`), and would be taken to end with their first part.
        let requests = of.iter().map(|ifindex| {
            let mut request = GenlMessage::from_payload(Device { ifindex: *ifindex, ..Device::default() });
            request.set_resolved_family_id(family);
            request
        });
        let devices = ask(requests).await?;
        Ok(devices.into_iter().map(|device| (device.ifindex, device.xdp_features)).collect())
    })
}

/// The number that the kernel has given the family, which it keeps.
async fn family() -> Result<u16, NetlinkError> {
    static FAMILY: OnceLock<u16> = OnceLock::new();
    if let Some(known) = FAMILY.get() {
        return Ok(*known);
    }
    let name = Device::family_name().to_owned();
    let request = GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(name)] };
    let answers = ask([GenlMessage::from_payload(request)]).await?;
    let id = |attribute: &GenlCtrlAttrs| match attribute {
        GenlCtrlAttrs::FamilyId(id) => Some(*id),
        _ => None,
    };
    let found = answers.iter().flat_map(|answer| &answer.nlas).find_map(id);
    let found = found.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    Ok(*FAMILY.get_or_init(|| found))
}

/// What the kernel answers to these requests; nothing to those about interfaces that are gone.
async fn ask<F>(requests: impl IntoIterator<Item = GenlMessage<F>>) -> Result<Vec<F>, NetlinkError>
where
    F: Debug + Send + 'static,
    GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable + Unpin,
{
    let (connection, handle, _) = proto::new_connection(NETLINK_GENERIC).map_err(NetlinkError::Socket)?;
    tokio::spawn(connection);
    let mut found = Vec::new();
    for request in requests {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST;
        let mut answers = handle
            .request(message, SocketAddr::new(0, 0))
            .map_err(|error| failed(io::Error::other(error)))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(message) => found.push(message.into_parts().1),
                NetlinkPayload::Error(error) if error.raw_code() == -libc::ENODEV => {}
                NetlinkPayload::Error(error) => return Err(failed(error.to_io())),
                _ => {}
            }
        }
    }
    Ok(found)
}

fn failed(source: io::Error) -> NetlinkError {
    NetlinkError::Request { what: "ask what interfaces can do with XDP".into(), source }
}

/// A message of the family about an interface, as far as it is read here. A request has the index alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Device {
    ifindex: u32,
    xdp_features: XdpFeatures,
}

impl Device {
    /// `NETDEV_CMD_DEV_GET`.
    const GET: u8 = 1;
    /// `NETDEV_FAMILY_VERSION`.
    const VERSION: u8 = 1;
    /// `NETDEV_A_DEV_IFINDEX`, 32 bits.
    const IFINDEX: u16 = 1;
    /// `NETDEV_A_DEV_XDP_FEATURES`, 64 bits.
    const XDP_FEATURES: u16 = 3;

    fn request(&self) -> DefaultNla {
        DefaultNla::new(Self::IFINDEX, self.ifindex.to_ne_bytes().to_vec())
    }
}

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        Self::GET
    }

    fn version(&self) -> u8 {
        Self::VERSION
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        self.request().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.request().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(bytes: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let mut device = Self::default();
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute?;
            match attribute.kind() {
                Self::IFINDEX => {
                    device.ifindex = u32::from_ne_bytes(sized(attribute.value())?);
                }
                Self::XDP_FEATURES => {
                    device.xdp_features = XdpFeatures(u64::from_ne_bytes(sized(attribute.value())?));
                }
                _ => {}
            }
        }
        Ok(device)
    }
}

fn sized<const N: usize>(value: &[u8]) -> Result<[u8; N], DecodeError> {
    value.try_into().map_err(|_| DecodeError::from(format!("{} bytes instead of {N}", value.len())))
}

//! Devices under test: each a network namespace with an interface to the inside and one to the outside, alike but for what
//! filters in them.
//!
//! ```text
//!                    this program's packet sockets
//!           NAME-lan                             NAME-wan
//!              |                                    |
//!   10.1, 10.3 via .254 -- lan [ device ] wan -- 10.2 via .254
//! ```
//!
//! The namespaces have no names: they go when this program does, however it ends.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::fwha::{Fwha, Hook, MAX_RETRANS_S, UNACKNOWLEDGED_S};
use super::wire::{Family, NETWORKS, Side, marker};
use crate::lab::space::{in_netns, new_netns};
use crate::lab::wiring::ip;
use crate::sys::{Feature, packet_socket, set_feature};

/// MTU of the inside. More than that of the outside, which is Ethernet's, and less than what native XDP takes.
pub const INSIDE_MTU: u16 = 3000;

/// How long a marker may be under way before something is wrong. Only a broken device ever takes so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// After this time the first markers are sent again: an interface drops what it sends until the kernel, some time after
/// both ends are up, has noticed its carrier.
const CARRIER: Duration = Duration::from_millis(10);

/// What the kernel does as a firewall, in terms of nft: from inside to outside everything that begins a flow, nothing else.
const RULESET: &str = r#"
table inet filter {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state invalid drop
        ct state established,related accept
        ct state new iif "lan" oif "wan" accept
    }
}
"#;

/// Protocols that some kernels track, each with a sysctl that only those have.
const TRACKERS: [(&str, &str); 3] = [
    ("SCTP", "netfilter/nf_conntrack_sctp_timeout_established"),
    ("GRE", "netfilter/nf_conntrack_gre_timeout"),
    ("DCCP", "netfilter/nf_conntrack_dccp_timeout_open"),
];

/// Bytes that fragments may take: those that never become whole pile up, some ten thousand plays of them.
const FRAGMENT_MEMORY: &str = "1000000000";

/// Sysctls of every device, besides forwarding: no packet is lost to a limit, what is no packet filter is off, and nobody
/// complains of a datagram's missing fragments in the middle of another sequence.
const SYSCTLS: [(&str, &str); 14] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/icmp_ratelimit", "0"),
    ("ipv4/icmp_msgs_per_sec", "1000000"),
    ("ipv6/icmp/ratelimit", "0"),
    ("ipv4/ipfrag_time", "3600"),
    ("ipv6/ip6frag_time", "3600"),
    ("ipv4/ipfrag_high_thresh", FRAGMENT_MEMORY),
    ("ipv6/ip6frag_high_thresh", FRAGMENT_MEMORY),
];

/// A device under test.
pub struct Device {
    /// Its name in reports.
    pub name: &'static str,
    namespace: File,
    ports: [OwnedFd; 2],
    markers: u64,
    /// Its programs; the kernel's own filter has none.
    fwha: Option<Fwha>,
}

/// Where the other ends of all devices' cables are.
pub struct World(File);

impl World {
    /// An empty one.
    ///
    /// # Errors
    ///
    /// Without root, and when `ip` or a sysctl fails.
    pub fn new() -> Result<Self> {
        let namespace = new_netns()?;
        in_netns(&namespace, || {
            // It must not say anything by itself.
            sysctl("ipv6/conf/all/disable_ipv6", "1")?;
            sysctl("ipv6/conf/default/disable_ipv6", "1")
        })??;
        Ok(Self(namespace))
    }

    /// The kernel's own filter.
    ///
    /// # Errors
    ///
    /// When nft is missing, or the kernel refuses.
    pub fn kernel(&self) -> Result<Device> {
        self.device("kernel", || {
            nft(RULESET)?;
            // Sequence numbers count: nothing is picked up in mid-stream, no window is ignored.
            sysctl("netfilter/nf_conntrack_tcp_loose", "0")?;
            sysctl("netfilter/nf_conntrack_tcp_be_liberal", "0")?;
            sysctl("netfilter/nf_conntrack_frag6_timeout", "3600")?;
            sysctl("netfilter/nf_conntrack_frag6_high_thresh", FRAGMENT_MEMORY)?;
            sysctl("netfilter/nf_conntrack_tcp_timeout_max_retrans", &MAX_RETRANS_S.to_string())?;
            sysctl("netfilter/nf_conntrack_tcp_timeout_unacknowledged", &UNACKNOWLEDGED_S.to_string())?;
            Ok(None)
        })
    }

    /// fwha at one of its hooks.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the programs.
    pub fn fwha(&self, hook: Hook) -> Result<Device> {
        let name = match hook {
            Hook::Xdp => "xdp",
            Hook::Tc => "tc",
        };
        self.device(name, || Fwha::attach(hook).map(Some))
    }

    fn device(
        &self,
        name: &'static str,
        filter: impl FnOnce() -> Result<Option<Fwha>> + Send,
    ) -> Result<Device> {
        let namespace = new_netns()?;
        in_netns(&namespace, || SYSCTLS.iter().try_for_each(|(name, value)| sysctl(name, value)))??;
        let far = format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd());
        let ports = in_netns(&self.0, || {
            Side::BOTH.map(|side| -> Result<OwnedFd> {
                let (inner, outer) = (side.interface(), format!("{name}-{}", side.interface()));
                let mac = mac(side.router_mac());
                let mtu = if side == Side::Inside { format!("mtu {INSIDE_MTU}") } else { String::new() };
                ip(
                    &["-batch", "-"],
                    &format!(
                        "link add {outer} address {mac} type veth peer name {inner} netns {far}\n\
                         link set {outer} {mtu} up\n"
                    ),
                )?;
                // An XDP program at the other end can redirect into a veth only while this end polls.
                set_feature(&outer, Feature::Gro, true)?;
                packet_socket(&outer).with_context(|| format!("a packet socket at {outer}"))
            })
        })?;
        let [inside, outside] = ports;
        let fwha = in_netns(&namespace, || {
            ip(&["-batch", "-"], &addressing())?;
            filter()
        })??;
        let ports = [inside?, outside?];
        let mut device = Device { name, namespace, ports, markers: 0, fwha };
        // The markers' flow; it is opened from inside.
        for side in Side::BOTH {
            let deadline = Instant::now() + PATIENCE;
            while let Err(error) = device.until_marker(side, CARRIER) {
                if Instant::now() > deadline {
                    return Err(error.context("open the markers' flow"));
                }
            }
        }
        Ok(device)
    }
}

impl Device {
    /// Sends a frame and returns everything that came out because of it: first at the other side, then at the sender's.
    ///
    /// # Errors
    ///
    /// When the device forwards nothing any more.
    pub fn send(&mut self, from: Side, frame: &[u8]) -> Result<Vec<(Side, Vec<u8>)>> {
        self.transmit(from, frame)?;
        let mut heard = self.until_marker(from, PATIENCE)?;
        if heard.is_empty() {
            // A marker that is redirected by XDP overtakes a packet that the same poll of the interface gave to the
            // stack; one that is sent after the first came through does not.
            heard = self.until_marker(from, PATIENCE)?;
        }
        Ok(heard)
    }

    /// What the filter has to say about the last packet: fwha's reasons to drop it.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    pub fn reasons(&mut self) -> Result<Vec<&'static str>> {
        self.fwha.as_mut().map_or(Ok(Vec::new()), Fwha::drop_reasons)
    }

    /// The kernel's conntrack entries with this address, without what changes by the clock.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn entries(&self, address: &str) -> Result<Vec<String>> {
        Ok(self.lines(address)?.iter().map(|line| state(line)).collect())
    }

    /// How long the flow with this address is kept after its last packet, in seconds: the kernel's counts down at once, so
    /// it may be one less.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn timeout_s(&self, address: &str) -> Result<Option<u64>> {
        match &self.fwha {
            Some(fwha) => fwha.timeout_s(address.parse()?),
            None => {
                let lines = self.lines(address)?;
                let word = lines.first().and_then(|line| line.split_whitespace().nth(4));
                Ok(word.map(str::parse).transpose()?)
            }
        }
    }

    /// The lines of nf_conntrack with this address.
    fn lines(&self, address: &str) -> Result<Vec<String>> {
        if self.fwha.is_some() {
            return Ok(Vec::new());
        }
        let table = in_netns(&self.namespace, || {
            std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").context("read nf_conntrack")
        })??;
        let word = format!("src={address}");
        let of_address = table.lines().filter(|line| line.split_whitespace().any(|w| w == word));
        Ok(of_address.map(str::to_owned).collect())
    }

    /// Protocols that this kernel has no tracker for: their packets are known by addresses alone.
    ///
    /// # Errors
    ///
    /// When the namespace cannot be entered.
    pub fn untracked(&self) -> Result<Vec<&'static str>> {
        in_netns(&self.namespace, || {
            let missing =
                TRACKERS.iter().filter(|(_, sysctl)| !Path::new("/proc/sys/net").join(sysctl).exists());
            missing.map(|(protocol, _)| *protocol).collect()
        })
    }

    fn transmit(&self, from: Side, frame: &[u8]) -> Result<()> {
        let port = &self.ports[from as usize];
        nix::unistd::write(port, frame).with_context(|| format!("send {} bytes", frame.len()))?;
        Ok(())
    }

    /// Sends a marker and collects what comes out before it.
    fn until_marker(&mut self, from: Side, patience: Duration) -> Result<Vec<(Side, Vec<u8>)>> {
        /// Behind the MACs and the first of the IP header: from the addresses on a router changes nothing.
        const ADDRESSES: usize = 14 + 12;

        self.markers += 1;
        let sent = marker(from, self.markers);
        self.transmit(from, &sent)?;
        let deadline = Instant::now() + patience;
        let mut heard = Vec::new();
        loop {
            match self.receive(from.other())? {
                Some(frame) if frame.get(ADDRESSES..) == sent.get(ADDRESSES..) => break,
                Some(frame) => heard.push((from.other(), frame)),
                None => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        bail!("{} does not forward any more: a marker was lost", self.name);
                    }
                    let mut port =
                        [PollFd::new(self.ports[from.other() as usize].as_fd(), PollFlags::POLLIN)];
                    poll(&mut port, PollTimeout::try_from(left)?)?;
                }
            }
        }
        while let Some(frame) = self.receive(from)? {
            heard.push((from, frame));
        }
        heard.retain(|(_, frame)| !is_chatter(frame));
        Ok(heard)
    }

    fn receive(&self, side: Side) -> Result<Option<Vec<u8>>> {
        let mut frame = vec![0; 1 << 16];
        match nix::unistd::read(&self.ports[side as usize], &mut frame) {
            Ok(len) => {
                frame.truncate(len);
                Ok(Some(frame))
            }
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error).context("receive"),
        }
    }
}

/// What every Linux box says by itself: ARP, and IPv6 from a link-local or no address.
fn is_chatter(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => false,
        Some([0x86, 0xdd]) => {
            frame.get(22..24).is_none_or(|src| src == [0xfe, 0x80])
                || frame.get(22..38).is_none_or(|src| src == [0; 16])
        }
        _ => true,
    }
}

/// Protocol, state and flags of a line of nf_conntrack.
fn state(line: &str) -> String {
    let words = line.split_whitespace().skip(2);
    let mut state: Vec<&str> = words.clone().take(1).collect();
    state.extend(words.filter(|word| word.starts_with(|c: char| c == '[' || c.is_ascii_uppercase())));
    state.join(" ")
}

fn mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Commands for `ip`: addresses, the routers as neighbours, the networks behind them.
fn addressing() -> String {
    let mut commands = format!("link set lo up\nlink set lan mtu {INSIDE_MTU}\n");
    for side in Side::BOTH {
        let (interface, own) = (side.interface(), mac(side.device_mac()));
        commands += &format!("link set {interface} address {own} up\n");
        for (family, prefix) in [(Family::V4, 24), (Family::V6, 64)] {
            let (own, router) = (side.device_address(family), side.router_address(family));
            commands += &format!(
                "address add {own}/{prefix} dev {interface}\n\
                 neighbour add {router} lladdr {} dev {interface}\n",
                mac(side.router_mac())
            );
        }
    }
    for (side, network) in NETWORKS {
        let family = if network.contains(':') { Family::V6 } else { Family::V4 };
        commands += &format!("route add {network} via {}\n", side.router_address(family));
    }
    commands
}

fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/{name}");
    match std::fs::write(&path, value) {
        // On older kernels this is one limit for all namespaces, and not to be changed in one of them.
        Err(error) if error.kind() == ErrorKind::NotFound && name.ends_with("icmp_msgs_per_sec") => Ok(()),
        result => result.with_context(|| format!("write {path}")),
    }
}

/// Whether there is an `nft` to set the kernel's filter with.
pub fn has_nft() -> bool {
    Command::new("nft")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn nft(ruleset: &str) -> Result<()> {
    let output = Command::new("nft").arg(ruleset).stdin(Stdio::null()).output();
    let output = output.context("start `nft` (Debian package nftables)")?;
    if !output.status.success() {
        bail!("nft: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

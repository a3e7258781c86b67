//! The one config file of the lab's cluster.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::{Attach, INET_VIP, INET_VIP6, LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP, Lab, LabOptions};

/// The shared key's file, beside the config file.
pub const KEY_FILE: &str = "cluster.key";

/// Writes config and key into the lab's directory.
pub fn write(lab: &Lab) -> Result<()> {
    write_key(lab)?;
    write_text(lab)
}

/// Writes the config file anew.
pub fn write_text(lab: &Lab) -> Result<()> {
    fs::write(lab.config_path(), text(lab.options())).context("write the lab's config file")
}

/// A rule more: the lab's own let the client ping the node by IPv4 only.
pub const PING6: &str = r#"
[[rule]]
name = "ping-6"
from = "lan"
to = "node"
services = ["icmpv6"]
action = "accept"
"#;

/// A new key: 32 random bytes in hexadecimal, for root's eyes only.
fn write_key(lab: &Lab) -> Result<()> {
    let mut key = [0u8; 32];
    fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut key)).context("draw a key")?;
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(lab.dir().join(KEY_FILE))?;
    std::io::Write::write_all(&mut file, format!("{hex}\n").as_bytes()).context("write the lab's key")
}

/// The config file of a lab with these options. Its key file is [`KEY_FILE`], beside it.
pub fn text(options: &LabOptions) -> String {
    let time = |name: &str, time: Option<Duration>| {
        time.map_or(String::new(), |time| format!("{name} = \"{}ms\"\n", time.as_millis()))
    };
    let heartbeat = time("heartbeat-interval", options.heartbeat);
    let lease = time("lease", options.lease);
    let attach = match options.attach {
        Attach::Auto => String::new(),
        other => format!("attach = \"{}\"\n", other.name()),
    };
    let replication = if options.replication { "" } else { "\n[replication]\nenabled = false\n" };
    let (max_flows, extra) = (options.max_flows, &options.extra_config);
    let vips = |v4: &str, v6: &str| match options.ipv6 {
        false => format!(r#""{v4}/24""#),
        true => format!(r#""{v4}/24", "{LINK_LOCAL_VIP}/64", "{v6}/64""#),
    };
    let (third, spare) = match options.spare {
        false => ("", ""),
        true => (
            r#", "fw3""#,
            "[[node]]\nname = \"fw3\"\nsync = [{ interface = \"sync\", address = \"172.16.0.3\" }]\n",
        ),
    };
    let (inet_vips, lan_vips) = (vips(INET_VIP, INET_VIP6), vips(LAN_VIP, LAN_VIP6));
    format!(
        r#"[cluster]
name = "edge"
key-file = "{KEY_FILE}"
mode = "active-passive"
max-flows = {max_flows}
{heartbeat}{lease}{replication}
[[node]]
name = "fw1"
sync = [{{ interface = "sync", address = "172.16.0.1" }}]
[[node]]
name = "fw2"
sync = [{{ interface = "sync", address = "172.16.0.2" }}]
{spare}
[[zone]]
name = "inet"
interfaces = ["wan"]
{attach}
[[zone]]
name = "lan"
interfaces = ["lan"]
{attach}
[[group]]
name = "gateway"
nodes = ["fw1", "fw2"{third}]
vips = [
  {{ zone = "inet", vrid = 61, addresses = [{inet_vips}] }},
  {{ zone = "lan",  vrid = 62, addresses = [{lan_vips}] }},
]

[[rule]]
name = "lan-out"
from = "lan"
to = "inet"
action = "accept"

[[rule]]
name = "admin"
from = "lan"
to = "node"
services = ["tcp/22", "icmp"]
action = "accept"
{extra}"#
    )
}

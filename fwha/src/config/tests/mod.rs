//! Good files resolve as documented; each kind of mistake is found where it is.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use fwha_common::{
    flow::{Flow, FlowKey, FlowState, TimeoutClass, proto},
    limit::Limits,
    rule::{self, Action, ZONE_ANY, ZONE_NODE, name_hash},
    settings::Timeouts,
};

use fwha_proto::{
    election::Effect,
    heartbeat::Role,
    seal::ClusterKey,
    vrrp::hmac::{Key, Mode},
};

use super::*;

mod changes;
mod mistakes;
mod ownership;

/// The example that the documentation shows.
const GOOD: &str = r#"
[cluster]
name = "edge"
key-file = "cluster.key"          # relative to this file
mode = "active-passive"
max-flows = 1_000_000
heartbeat-interval = "10ms"

[[node]]
name = "fw1"
sync = [{ interface = "sync", address = "172.16.0.1" }]
[[node]]
name = "fw2"
sync = [{ interface = "sync", address = "172.16.0.2" }]

[[zone]]
name = "inet"
interfaces = ["wan"]
[[zone]]
name = "lan"
interfaces = ["lan"]

[[group]]
name = "gateway"
nodes = ["fw1", "fw2"]
preempt = false
advert-interval = "1s"
vips = [
  { zone = "inet", vrid = 61, addresses = ["10.0.0.12/24"] },
  { zone = "lan",  vrid = 62, addresses = ["192.168.100.12/24"] },
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
"#;

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Source::new("/etc/fwha/f.toml", text), |path| {
        assert_eq!(path, Path::new("/etc/fwha/cluster.key"), "relative to the config file");
        Ok(ClusterKey::new([7; 32]).into())
    })
}

fn good(text: &str) -> Config {
    parse(text).unwrap_or_else(|e| panic!("{e}"))
}

/// The config of the documentation's example.
pub(crate) fn good_config() -> Config {
    good(GOOD)
}

/// `GOOD` with one piece replaced, which must be there.
fn with(old: &str, new: &str) -> String {
    assert!(GOOD.contains(old), "{old}");
    GOOD.replacen(old, new, 1)
}

#[test]
fn hooks_have_defaults_and_no_matter_between_nodes() {
    let hooks = "\n[[hook]]\nname = \"all\"\ncommand = [\"/bin/true\"]\n[[hook]]\nname = \"some\"\n\
                 command = [\"/bin/true\", \"x y\"]\non = [\"fault\"]\ngroups = [\"gateway\"]\ntimeout = \"3s\"\n";
    let config = good(&format!("{GOOD}{hooks}"));
    assert_eq!(config.hash, good(GOOD).hash);
    let [all, some] = &config.hooks[..] else { panic!("{:?}", config.hooks) };
    assert_eq!((all.on.len(), &all.groups[..], all.timeout), (4, &[][..], Duration::from_secs(10)));
    assert_eq!((&some.command[1][..], &some.on[..]), ("x y", &[Role::Fault][..]));
    assert_eq!((&some.groups[..], some.timeout), (&[0][..], Duration::from_secs(3)));
}

#[test]
fn trackers_have_defaults_by_what_they_watch_and_nodes_must_agree_on_them() {
    let trackers = r#"
[[tracker]]
name = "uplink"
ping = "10.0.0.1"
[[tracker]]
name = "neighbour"
arp = "192.168.100.1"
interval = "200ms"
timeout = "150ms"
rise = 4
fall = 5
dampening = "0s"
weight = -50
nodes = ["fw2"]
groups = ["gateway"]
shared = false
[[tracker]]
name = "maintenance"
file = "/run/maintenance"
[[tracker]]
name = "web"
tcp = "[fd00::1]:443"
fault = true
[[tracker]]
name = "peer-link"
arp = "fe80::1"
zone = "lan"
[[tracker]]
name = "check"
command = ["/bin/true", "x y"]
[[tracker]]
name = "transit"
interface = "eth5"
"#;
    let config = good(&format!("{GOOD}{trackers}"));
    assert_ne!(config.hash, good(GOOD).hash);
    let [uplink, neighbour, maintenance, web, link, check, transit] = &config.trackers[..] else {
        panic!("{:?}", config.trackers)
    };
    let (second, half) = (Duration::from_secs(1), Duration::from_millis(500));
    assert_eq!(uplink.watch, Watch::Ping("10.0.0.1".parse().unwrap()));
    assert_eq!((uplink.interval, uplink.timeout, uplink.rise, uplink.fall), (second, half, 2, 3));
    assert_eq!((uplink.effect(), uplink.shared, uplink.runs_on(7)), (Effect::Fault, true, true));
    assert_eq!(uplink.dampening, Duration::from_secs(30));
    let heartbeat = Duration::from_millis(10);
    assert_eq!(uplink.grace(heartbeat), Some(Duration::from_millis(1530)));
    assert_eq!(neighbour.watch, Watch::Arp("192.168.100.1".parse().unwrap(), 2));
    assert_eq!((neighbour.rise, neighbour.fall, neighbour.effect()), (4, 5, Effect::Lowers(50)));
    assert_eq!((neighbour.runs_on(1), neighbour.runs_on(2), &neighbour.groups[..]), (false, true, &[0][..]));
    assert_eq!((neighbour.grace(heartbeat), neighbour.dampening), (None, Duration::ZERO));
    assert_eq!(maintenance.watch, Watch::File("/run/maintenance".into()));
    assert_eq!((maintenance.rise, maintenance.fall, maintenance.shared), (1, 1, false));
    assert_eq!(maintenance.dampening, Duration::ZERO);
    assert_eq!(web.watch, Watch::Tcp("[fd00::1]:443".parse().unwrap()));
    assert_eq!(link.watch, Watch::Arp("fe80::1".parse().unwrap(), 2));
    assert_eq!(check.watch, Watch::Command(vec!["/bin/true".into(), "x y".into()]));
    assert_eq!((check.rise, check.fall, check.shared), (2, 3, false));
    assert_eq!((&transit.watch, transit.fall), (&Watch::Interface("eth5".into()), 1));
    assert_eq!(config.warnings, good(GOOD).warnings);
}

#[test]
fn trackers_that_may_disappoint_are_warned_of() {
    let warnings = |tracker: &str| {
        let mut warnings = good(&format!("{GOOD}\n[[tracker]]\nname = \"t\"\n{tracker}\n")).warnings;
        warnings.retain(|w| w.starts_with("tracker t"));
        warnings.join("\n")
    };
    assert!(warnings("ping = \"10.0.0.1\"\nshared = false").contains("is not shared"));
    assert!(warnings("ping = \"10.0.0.1\"\nweight = -10").contains("10 apart"));
    assert_eq!(warnings("ping = \"10.0.0.1\"\nweight = -11\nshared = false"), "");
}

#[test]
fn witnesses_are_hosts_outside_of_the_cluster() {
    let none = good(GOOD);
    assert!(none.cluster.witness.is_empty());
    let witnesses = |list: &str| {
        good(&with("max-flows = 1_000_000", &format!("max-flows = 1_000_000\nwitness = [{list}]")))
    };
    let config = witnesses("\"10.0.0.254\", \"fd00::1\"");
    assert_eq!(config.cluster.witness.len(), 2);
    assert_ne!(config.hash, none.hash, "nodes must agree on it");
    assert_eq!(config.warnings, none.warnings);
    assert_eq!(witnesses("").hash, none.hash, "what nodes reckon that do not know any");
    let warnings = |list: &str| {
        witnesses(list)
            .warnings
            .iter()
            .filter(|w| w.starts_with("witness"))
            .cloned()
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert!(
        warnings("\"10.0.0.12\"")
            .starts_with("witness 10.0.0.12 is an address of group gateway: it proves nothing")
    );
    assert!(warnings("\"172.16.0.2\"").starts_with("witness 172.16.0.2 is the sync address of fw2"));
    assert!(warnings("\"127.0.0.1\"").starts_with("witness 127.0.0.1 is each node itself"));
}

#[test]
fn an_address_of_half_the_internet_is_doubted() {
    for (net, of) in [("10.0.0.12/2", "0.0.0.0/2"), ("10.0.0.12/7", "10.0.0.0/7")] {
        let said = doubts("10.0.0.12/24", net);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains(&format!("{net} brings a route to all of {of}")), "{said:?}");
    }
    assert_eq!(doubts("10.0.0.12/24", "10.0.0.12/8"), [""; 0]);
}

/// What is warned of when a piece of [`GOOD`] is another, but for what is always.
fn doubts(old: &str, new: &str) -> Vec<String> {
    let config = parse(&with(old, new)).unwrap_or_else(|e| panic!("{e}"));
    let always = good(GOOD).warnings;
    config.warnings.into_iter().filter(|w| !always.contains(w)).collect()
}

#[test]
fn nodes_that_take_nothing_over_are_warned_of() {
    assert_eq!(
        doubts("nodes = [\"fw1\", \"fw2\"]", "nodes = [\"fw1\"]"),
        [
            "group gateway has one node only: nothing takes over when it fails",
            "node fw2 is in no group: it never takes anything over"
        ]
    );
    assert_eq!(
        doubts("[[group]]", "[[zone]]\nname = \"dmz\"\ninterfaces = { fw1 = [\"dmz\"] }\n[[group]]"),
        ["node fw2 has no interface in zone dmz"]
    );
}

#[test]
fn sync_links_that_are_mixed_up_are_warned_of() {
    let link = |interface: &str, address: &str| {
        format!("{{ interface = \"{interface}\", address = \"{address}\" }}")
    };
    let both = |a: &str, b: &str| format!("sync = [{a}, {b}]");
    let [old1, old2] =
        ["172.16.0.1", "172.16.0.2"].map(|address| format!("sync = [{}]", link("sync", address)));
    let text = GOOD
        .replace(&old1, &both(&link("s1", "172.16.0.1"), &link("s2", "172.17.0.1")))
        .replace(&old2, &both(&link("s2", "172.17.0.2"), &link("s1", "172.16.0.2")));
    let warnings = good(&text).warnings;
    assert!(
        warnings[0].starts_with("s2 is sync link 2 of fw1 and 1 of fw2: links are told apart by their order")
    );
    assert!(warnings[1].starts_with("s1 is sync link 1 of fw1 and 2 of fw2"));
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert_eq!(
        doubts("172.16.0.2", "10.0.0.2"),
        [
            "sync address 10.0.0.2 of fw2 is in the network of the vip 10.0.0.12/24: sync links are networks of their own"
        ]
    );
}

#[test]
fn rules_that_cannot_work_are_warned_of() {
    const OUT: &str = "to = \"inet\"\naction = \"accept\"";
    let out = |lines: &str| doubts(OUT, &format!("{OUT}\n{lines}")).join("; ");
    assert!(
        out("destination = [\"10.0.0.12\"]")
            .starts_with("rule lan-out matches nothing: 10.0.0.12 is an address of")
    );
    assert_eq!(out("destination = [\"10.0.0.12\", \"10.0.0.13\"]"), "");
    assert_eq!(
        out("source = [\"192.168.100.0/24\"]\ndestination = [\"2001:db8::/32\"]"),
        "rule lan-out matches nothing: one of source and destination is IPv4, the other IPv6"
    );
    assert_eq!(
        out("source = [\"2001:db8::/32\"]\nservices = [\"icmp\"]"),
        "rule lan-out matches nothing: for its addresses it is icmpv6"
    );
    assert_eq!(
        out("source = [\"10.0.0.0/8\"]\nservices = [\"icmpv6\"]"),
        "rule lan-out matches nothing: for its addresses it is icmp"
    );
    assert_eq!(out("source = [\"10.0.0.0/8\", \"fd00::/8\"]\nservices = [\"icmp\"]"), "");
    assert_eq!(
        out("mss = \"pmtu\"\nservices = [\"udp/53\"]"),
        "rule lan-out has an mss, which is for TCP, but no service of TCP"
    );
    assert_eq!(
        out("services = [\"22\"]"),
        "rule lan-out: service \"22\" is an IP protocol, not a port: write \"tcp/22\" or \"udp/22\" for the port, \
         \"proto/22\" for the protocol"
    );
    assert_eq!(out("services = [\"proto/22\"]"), "");
    let last = |action: &str, lines: &str| {
        let rule = format!("[[rule]]\nname = \"more\"\nfrom = \"lan\"\naction = \"{action}\"\n{lines}\n");
        let mut warnings = good(&format!("{GOOD}\n{rule}")).warnings;
        warnings.retain(|w| w.contains("more"));
        warnings.join("; ")
    };
    let hidden = "rule more is never reached: rule lan-out before it takes all that it matches";
    assert_eq!(
        last("drop", "to = \"inet\"\nservices = [\"tcp/25\"]\nsource = [\"192.168.100.0/24\"]"),
        hidden
    );
    assert_eq!(last("accept", "to = \"inet\""), "", "needless, but right");
    assert_eq!(last("drop", ""), "", "not all of it");
}

#[test]
fn being_locked_out_is_warned_of() {
    const LOCKED: &str = "no rule admits TCP to the node: nobody can log in to it through a zone";
    const ADMIN: &str = "services = [\"tcp/22\", \"icmp\"]\naction = \"accept\"";
    assert_eq!(doubts(ADMIN, "services = [\"icmp\"]\naction = \"accept\""), [LOCKED]);
    assert_eq!(doubts(ADMIN, "action = \"reject\""), [LOCKED]);
    for other in [
        "action = \"accept\"",
        "services = [\"tcp/2222\"]\naction = \"accept\"",
        "services = [\"tcp\"]\nsource = [\"fd00::/8\"]\naction = \"accept\"",
        "destination = [\"fd00::1\"]\naction = \"accept\"",
    ] {
        assert_eq!(doubts(ADMIN, other), [""; 0], "{other}");
    }
    let metrics = |service: &str| {
        let rule = format!("services = [{service}]\naction = \"accept\"");
        let file = with(ADMIN, &rule) + "\n[metrics]\nlisten = \"127.0.0.1:9761\"\n";
        parse(&file).unwrap_or_else(|e| panic!("{e}")).warnings.iter().any(|w| w == LOCKED)
    };
    assert!(metrics("\"tcp/9761\""), "who reads metrics does not log in");
    assert!(!metrics("\"tcp/9761\", \"tcp/2222\""));
    let closed = "[[rule]]\nname = \"none\"\naction = \"drop\"\n\n[[rule]]\nname = \"lan-out\"";
    let warnings = doubts("[[rule]]\nname = \"lan-out\"", closed);
    assert!(warnings.iter().any(|w| w == LOCKED), "{warnings:?}");
}

#[test]
fn addresses_of_the_cluster_are_no_targets_of_its_checks() {
    let warnings = good(&format!("{GOOD}\n[[tracker]]\nname = \"t\"\nping = \"10.0.0.12\"\n")).warnings;
    assert!(
        warnings.iter().any(|w| w.starts_with("tracker t watches 10.0.0.12, an address of group gateway"))
    );
    let peers = |peers: &str| {
        doubts(
            "addresses = [\"10.0.0.12/24\"]",
            &format!("addresses = [\"10.0.0.12/24\"], peers = [{peers}]"),
        )
    };
    assert_eq!(peers("\"10.0.0.2\", \"10.0.0.3\""), [""; 0]);
    assert_eq!(
        peers("\"8.8.8.8\", \"10.0.0.12\""),
        [
            "vrid 61 of group gateway: peer 8.8.8.8 is in none of its networks, and VRRP does not pass routers",
            "vrid 61 of group gateway: peer 10.0.0.12 is its own virtual address"
        ]
    );
}

#[test]
fn metrics_are_nowhere_unless_asked_for_and_no_matter_between_nodes() {
    assert_eq!(good(GOOD).metrics.listen, None);
    let config = good(&format!("{GOOD}\n[metrics]\nlisten = \"[::1]:9761\"\n"));
    assert_eq!(config.metrics.listen, Some("[::1]:9761".parse().unwrap()));
    assert_eq!((config.hash, config.rules_hash), (good(GOOD).hash, good(GOOD).rules_hash));
}

#[test]
fn the_documented_example_resolves() {
    let config = good(GOOD);
    assert_eq!(config.cluster.name, "edge");
    assert_eq!(config.cluster.max_flows, 1_000_000);
    assert_eq!(config.cluster.heartbeat_interval, Duration::from_millis(10));
    assert_eq!(config.cluster.lease, Duration::from_secs(1));
    assert_eq!((config.sync.heartbeat_port(), config.sync.replication_port()), (4761, 4762));
    assert!(config.replication.enabled);
    assert_eq!(config.timeouts, Timeouts::KERNEL);
    assert_eq!(config.keys.id(), ClusterKey::new([7; 32]).id());

    let [fw1, fw2] = &config.nodes[..] else { panic!("two nodes") };
    assert_eq!((fw1.id, fw1.name.as_str(), fw2.id, fw2.name.as_str()), (1, "fw1", 2, "fw2"));
    assert_eq!(fw2.sync[0].address, Ipv4Addr::new(172, 16, 0, 2));

    assert_eq!((config.zone_name(1), config.zone_name(2)), ("inet", "lan"));
    assert_eq!((config.zone_name(ZONE_NODE), config.zone_name(ZONE_ANY)), ("node", "any"));
    let group = &config.groups[0];
    assert_eq!(group.nodes, [(1, 200), (2, 190)]);
    assert_eq!((group.priority(2), group.priority(3)), (Some(190), None));
    assert_eq!((group.preempt, group.advert_interval), (false, Duration::from_secs(1)));
    assert_eq!((group.vips[0].vrid, group.vips[0].zone), (61, 1));
    assert_eq!(config.vip_interface(&group.vips[0], 2), Some("wan"));
    assert_eq!(group.vips[1].addresses, ["192.168.100.12/24".parse().unwrap()]);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
    assert!(config.warnings[0].contains("one sync link only"));
}

#[test]
fn a_group_speaks_the_vrrp_that_it_is_told_to() {
    use fwha_proto::vrrp::packet::{Auth, Checksum, Version};
    let version = |lines: &str| {
        let config = parse(&with("advert-interval = \"1s\"", lines)).unwrap();
        (config.groups[0].version, config.hash)
    };
    let rows = [
        ("", Version::V3 { checksum: Checksum::Message }),
        ("checksum = \"pseudo-header\"", Version::V3 { checksum: Checksum::PseudoHeader }),
        ("vrrp-version = 2", Version::V2 { auth: Auth::None }),
        ("vrrp-version = 2\nauth-pass = \"sesame\"", Version::V2 { auth: Auth::Password(*b"sesame\0\0") }),
    ];
    let mut hashes = std::collections::BTreeSet::new();
    for (lines, expected) in rows {
        let (version, hash) = version(lines);
        assert_eq!(version, expected);
        assert!(hashes.insert(hash), "nodes with another {lines:?} differ");
    }
}

#[test]
fn adverts_are_signed_with_keys_from_files() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str, mode: u32| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        path.display().to_string()
    };
    let hex = file("hex", &format!("hex:{}\n", "0f".repeat(32)), 0o600);
    let plain = file("plain", &"k".repeat(40), 0o600);
    let auth = |more: &str| {
        with("name = \"gateway\"", &format!("name = \"gateway\"\nauth = {{ type = \"hmac\", {more} }}"))
    };
    let config = good(&auth(&format!("key-file = {hex:?}")));
    let hmac = config.groups[0].hmac.clone().unwrap();
    assert_eq!(hmac.keys, [Key::new(1, &[15; 32]).unwrap()]);
    assert_eq!((hmac.mode, hmac.window), (Mode::Enforce, Duration::from_secs(5)));
    let more = format!(
        "key-file = {plain:?}, key-id = 7, mode = \"permissive\", window = \"9s\", accept = [{{ key-file = {hex:?} }}]"
    );
    let hmac = good(&auth(&more)).groups[0].hmac.clone().unwrap();
    assert_eq!(hmac.keys.iter().map(|key| key.id).collect::<Vec<_>>(), [7, 1]);
    assert_eq!((hmac.mode, hmac.window), (Mode::Permissive, Duration::from_secs(9)));
    assert_ne!(config.hash, good(GOOD).hash);
    let open = file("open", &"k".repeat(40), 0o644);
    let short = file("short", "hex:00", 0o600);
    for (more, expected) in [
        (format!("key-file = {open:?}"), "can be read by others".to_owned()),
        (format!("key-file = {short:?}"), "does not hold 32 to 64 bytes".to_owned()),
        (format!("key-file = {hex:?}, mode = \"off\""), "unknown mode \"off\"".to_owned()),
        (format!("key-file = {hex:?}, accept = [{{ key-file = {plain:?} }}]"), "key-id 1 twice".to_owned()),
    ] {
        let errors = parse(&auth(&more)).unwrap_err();
        let found: Vec<String> = errors.headlines().collect();
        assert!(found.len() == 1 && found[0].contains(&expected), "{found:?}");
    }
}

#[test]
fn a_vrid_with_addresses_of_both_families_is_two_virtual_routers() {
    let list = "[\"192.168.100.12/24\", \"fd00::c/64\", \"fe80::c/64\"]";
    let text = with("[\"192.168.100.12/24\"]", list).replace(
        "[\"10.0.0.12/24\"] },",
        "[\"10.0.0.12/24\"] },\n { zone = \"inet\", vrid = 61, addresses = [\"fe80::c/64\"] },",
    );
    let config = parse(&text).unwrap();
    let routers: Vec<(u8, u8, String)> = config.groups[0]
        .vips
        .iter()
        .map(|v| (v.zone, v.vrid, v.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(
        routers,
        [
            (1, 61, "10.0.0.12/24".into()),
            (1, 61, "fe80::c/64".into()),
            (2, 62, "192.168.100.12/24".into()),
            // RFC 9568, 5.2.9: the link-local address is the first.
            (2, 62, "fe80::c/64 fd00::c/64".into()),
        ]
    );
}

#[test]
fn what_may_be_left_out_has_its_default() {
    let short = GOOD
        .replace("mode = \"active-passive\"\n", "")
        .replace("max-flows = 1_000_000\n", "")
        .replace("heartbeat-interval = \"10ms\"\n", "")
        .replace("preempt = false\n", "")
        .replace("advert-interval = \"1s\"\n", "");
    assert_eq!(good(&short).hash, good(GOOD).hash);
}

#[test]
fn the_hash_is_of_the_meaning() {
    let config = good(GOOD);
    let spaced = GOOD.replace(" = ", "  =  ").replace("[[rule]]", "\n# another comment\n[[rule]]");
    assert_eq!(good(&spaced).hash, config.hash);
    let other_key = Config::parse(Source::new("/x", GOOD), |_| Ok(ClusterKey::new([8; 32]).into())).unwrap();
    assert_eq!(other_key.hash, config.hash);

    let more = good(&with("vrid = 61", "vrid = 63"));
    assert_ne!(more.hash, config.hash);
    assert_eq!(more.rules_hash, config.rules_hash);
    let rules = good(&with("tcp/22", "tcp/23"));
    assert_ne!(rules.hash, config.hash);
    assert_ne!(rules.rules_hash, config.rules_hash);
    for (old, new) in [
        ("[[zone]]", "[timeouts]\nudp = \"31s\"\n[[zone]]"),
        ("[[zone]]", "[sync]\nport = 5000\n[[zone]]"),
        ("[[zone]]", "[replication]\nenabled = false\n[[zone]]"),
        ("\"10ms\"", "\"11ms\""),
        ("interfaces = [\"wan\"]", "interfaces = [\"wan\"]\nattach = \"tc\""),
    ] {
        assert_ne!(good(&with(old, new)).hash, config.hash, "{new}");
    }
}

#[test]
fn a_rule_is_one_whatever_lists_it_has() {
    let text = with(
        "to = \"inet\"",
        "to = \"inet\"\nsource = [\"192.168.100.0/24\", \"10.9.9.9\"]\nservices = [\"udp/1000-2000\", \"tcp\"]",
    );
    let compiled = good(&text).dataplane_rules();
    assert_eq!(compiled.len(), 2);
    let [first, admin] = &compiled[..] else { panic!("two rules") };
    let net = |text: &str, len| rule::Network::new(text.parse().unwrap(), len);
    assert_eq!(first.source, [net("192.168.100.0", 24), net("10.9.9.9", 32)]);
    assert_eq!(first.destination, []);
    assert_eq!(
        first.services,
        [rule::Service { proto: proto::UDP, port_min: 1000, port_max: 2000 }, rule::Service::all(proto::TCP)]
    );
    assert_eq!((first.from, first.to, first.decision.action), (2, 1, 1));
    assert_eq!((first.decision.index, first.decision.name_hash), (0, name_hash("lan-out")));
    assert_eq!((admin.to, admin.services[0].port_min, admin.decision.index), (ZONE_NODE, 22, 1));
    assert_eq!(admin.services[1], rule::Service::all(proto::ICMP));

    // The network is what a flow key of that network has.
    let word = |a: [u8; 4]| u32::from_ne_bytes(a);
    let (key, src_is_b) = FlowKey::v4(word([192, 168, 100, 77]), word([1, 1, 1, 1]), 1, 2, proto::UDP);
    assert!(src_is_b);
    assert!(first.source[0].contains(&key.addr_b) && !first.source[0].contains(&key.addr_a));

    let open = &good(&with("from = \"lan\"\nto = \"inet\"\n", "")).dataplane_rules()[0];
    assert_eq!((open.from, open.to, open.services.len()), (ZONE_ANY, ZONE_ANY, 0));
}

#[test]
fn limits_are_none_unless_they_are_set() {
    assert_eq!(good(&with("", "")).limits, Limits::default());
    let text = with("", "") + "[limits]\nnew-flows-per-second = 500\nflows-per-source = 1_000\n";
    let limits = good(&text).limits;
    assert_eq!((limits.interval_ns, limits.flows), (2_000_000, 1000));
    assert_ne!(good(&text).hash, good(&with("", "")).hash);
}

#[test]
fn rules_know_ipv6_all_protocols_and_the_segment_size() {
    let text = with(
        "to = \"inet\"",
        "to = \"inet\"\nsource = [\"2001:db8::/32\"]\nservices = [\"icmpv6\", \"sctp/36412\", \"esp\", \"89\"]\n\
         mss = \"pmtu\"",
    );
    let compiled = good(&text.replace("action = \"accept\"", "action = \"reject\"")).dataplane_rules();
    let key = |last: u8| {
        let mut address = [0; 16];
        (address[0], address[1], address[2], address[3], address[15]) = (0x20, 1, 0xd, 0xb8, last);
        FlowKey::new(address, [0xff; 16], 1, 2, proto::UDP).0.addr_a
    };
    for last in [0, 200] {
        assert!(compiled[0].source[0].contains(&key(last)));
    }
    let protocols: Vec<u8> = compiled[0].services.iter().map(|service| service.proto).collect();
    assert_eq!(protocols, [proto::ICMPV6, proto::SCTP, proto::ESP, 89]);
    assert_eq!((compiled[0].services[1].port_min, compiled[0].services[1].port_max), (36412, 36412));
    let decision = compiled[0].decision;
    assert_eq!((decision.mss, decision.action), (Flow::MSS_PMTU, Action::Reject as u8));
    let of = |text: &str| good(&with("to = \"inet\"", text)).dataplane_rules()[0].decision;
    assert_eq!(of("to = \"inet\"\nmss = 1_400").mss, 1400);
    assert!(!of("to = \"inet\"").syn_proxy());
    assert!(of("to = \"inet\"\nsyn-proxy = true").syn_proxy());
}

#[test]
fn timeouts_and_priorities_and_per_node_interfaces_resolve() {
    let text = with("interfaces = [\"wan\"]", "interfaces = { fw1 = [\"eth0\"], fw2 = [\"enp1s0\"] }")
        .replace("preempt = false", "priority = { fw1 = 100, fw2 = 150 }")
        + "[timeouts]\ntcp-established = \"2h\"\nudp = \"5s\"\ntcp-max-retrans = \"1m\"\n";
    let config = good(&text);
    let ns = |class: TimeoutClass, state: FlowState| config.timeouts.ns[class as usize][state as usize];
    assert_eq!(ns(TimeoutClass::Tcp, FlowState::Established), 7_200_000_000_000);
    assert_eq!(ns(TimeoutClass::Udp, FlowState::Replied), 5_000_000_000);
    assert_eq!(ns(TimeoutClass::Udp, FlowState::Assured), 120_000_000_000);
    assert_eq!(config.timeouts.tcp_max_retrans_ns, 60_000_000_000);
    assert_eq!(config.timeouts.tcp_unacknowledged_ns, 300_000_000_000);
    assert_eq!(config.groups[0].nodes, [(2, 150), (1, 100)]);
    assert_eq!(config.vip_interface(&config.groups[0].vips[0], 2), Some("enp1s0"));
}

#[test]
fn this_node_is_named_or_called_like_the_host() {
    let config = good(GOOD);
    assert_eq!(config.node_for(Some("fw2"), "fw1").unwrap().id, 2);
    assert_eq!(config.node_for(None, "fw1").unwrap().id, 1);
    assert_eq!(config.node_for(None, "fw2.example.net").unwrap().id, 2);
    assert_eq!(
        config.node_for(None, "box").unwrap_err().to_string(),
        "this host is called \"box\", like no node in /etc/fwha/f.toml; say which it is with --node (fw1, fw2)"
    );
    assert_eq!(
        config.node_for(Some("fw3"), "fw1").unwrap_err().to_string(),
        "/etc/fwha/f.toml has no node \"fw3\"; it has fw1, fw2"
    );
}

#[test]
fn a_vlan_needs_a_device_or_an_interface_of_its_own() {
    let config = good(&with("interfaces = [\"wan\"]", "interfaces = [\"eth0.5\", \"eth0.6\", \"eth1.7\"]"));
    let check = |present: &[&str]| match config.check_interfaces(1, |name| present.contains(&name)) {
        Ok(()) => Vec::new(),
        Err(errors) => {
            errors.headlines().map(|l| l.strip_prefix("/etc/fwha/f.toml").unwrap().to_owned()).collect()
        }
    };
    assert_eq!(check(&["sync", "lan", "eth0.5", "eth0.6", "eth1.7"]), [""; 0]);
    assert_eq!(check(&["sync", "lan", "eth0.5", "eth0", "eth1"]), [""; 0], "one tag on each");
    assert_eq!(check(&["sync", "lan", "eth0", "eth0.6"]), [":18:35: fw1 has no interface \"eth1.7\""]);
    assert_eq!(
        check(&["sync", "lan", "eth0", "eth1"]),
        [
            ":18:15: fw1 has no VLAN device \"eth0.5\", and \"eth0\" has another use",
            ":18:25: fw1 has no VLAN device \"eth0.6\", and \"eth0\" has another use",
        ]
    );
    let mixed = good(&with("interfaces = [\"wan\"]", "interfaces = [\"sync.5\"]"));
    let errors = mixed.check_interfaces(1, |name| ["sync", "lan"].contains(&name)).unwrap_err().to_string();
    assert!(errors.contains("`ip link add link sync name sync.5 type vlan id 5`"), "{errors}");
}

#[test]
fn a_missing_interface_is_shown_where_it_is_named() {
    let config = good(GOOD);
    config.check_interfaces(1, |_| true).unwrap();
    let errors = config.check_interfaces(2, |name| name == "wan").unwrap_err();
    let lines: Vec<_> = errors.headlines().collect();
    assert_eq!(lines, ["/etc/fwha/f.toml:21:15: fw2 has no interface \"lan\""]);
    config.check_sync_interfaces(2, |name| name == "sync").unwrap();
    let errors = config.check_sync_interfaces(2, |name| name == "wan").unwrap_err();
    let lines: Vec<_> = errors.headlines().collect();
    assert_eq!(lines, ["/etc/fwha/f.toml:14:23: fw2 has no interface \"sync\""]);
}

#[test]
fn resources_and_routes_resolve_and_nodes_must_agree_on_them() {
    let resources = r#"
[[resource]]
name = "vpn"
group = "gateway"
systemd = "openvpn-server@site.service"
[[resource]]
name = "source"
group = "gateway"
ocf = "ocf:heartbeat:IPsrcaddr"
parameters = { ipaddress = "10.0.0.12", cidr_netmask = 24, trace_ra = false }
timeout = "3s"
interval = "0s"
restarts = 0
restart-window = "1m"
retry-after = "0s"
on-fail = "fault"
"#;
    let config = good(&format!("{GOOD}{resources}"));
    assert_ne!(config.hash, good(GOOD).hash);
    let [vpn, source] = &config.resources[..] else { panic!("{:?}", config.resources) };
    assert_eq!(vpn.service, ResourceService::Systemd("openvpn-server@site.service".into()));
    let (seconds, times) = (Duration::from_secs, &vpn.settings);
    assert_eq!((vpn.group, vpn.timeout, times.interval, times.restarts), (0, seconds(20), seconds(10), 3));
    assert_eq!((times.window, times.retry_after, vpn.tracker()), (seconds(300), seconds(600), None));
    let ResourceService::Ocf { root, provider, agent, parameters } = &source.service else {
        panic!("{:?}", source.service)
    };
    assert_eq!((root.to_str(), &provider[..], &agent[..]), (Some("/usr/lib/ocf"), "heartbeat", "IPsrcaddr"));
    let given: Vec<(&str, &str)> = parameters.iter().map(|(k, v)| (&k[..], &v[..])).collect();
    assert_eq!(given, [("cidr_netmask", "24"), ("ipaddress", "10.0.0.12"), ("trace_ra", "false")]);
    assert_eq!((source.timeout, source.settings.interval), (seconds(3), Duration::ZERO));
    assert_eq!(source.tracker().map(|(_, name)| name).as_deref(), Some("resource source"));
    let other = resources.replace("\"1m\"", "\"2m\"");
    assert_ne!(config.hash, good(&format!("{GOOD}{other}")).hash);

    let routes = "preempt = false\nroutes = [{ to = \"10.9.0.0/16\", via = \"10.0.0.254\", zone = \"inet\" }, \
                  { to = \"fd00:9::/64\", via = \"fd00::1\", zone = \"lan\", table = 1000, metric = 5 }]\n\
                  rules = [{ from = \"10.1.0.0/16\", table = 1000 }]";
    let config = good(&GOOD.replacen("preempt = false", routes, 1));
    assert_ne!(config.hash, good(GOOD).hash);
    let group = &config.groups[0];
    let shown: Vec<String> = group.routes.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.9.0.0/16 via 10.0.0.254", "fd00:9::/64 via fd00::1 table 1000 metric 5"]);
    assert_eq!((group.routes[0].zone, group.routes[1].zone), (1, 2));
    assert_eq!(group.routing_rules[0].to_string(), "from 10.1.0.0/16 table 1000 priority 1000");
}

#[test]
fn every_key_is_documented_and_the_example_has_no_surprise() {
    const EXAMPLE: &str = include_str!("../../../../docs/fwha.toml");
    const OPERATIONS: &str = include_str!("../../../../docs/operations.md");
    let example = good(EXAMPLE);
    assert_eq!(example.warnings, good(GOOD).warnings);
    assert_eq!(
        (example.cluster.witness.len(), example.limits),
        (0, good(GOOD).limits),
        "nothing but defaults"
    );
    // What it has commented out, so that its keys are asked for, too.
    let more = r#"
        [[tracker]]
        name = "uplink"
        ping = "10.0.0.254"
        [[hook]]
        name = "notify"
        command = ["/bin/true"]
        [[resource]]
        name = "vpn"
        group = "gateway"
        command = { start = ["/bin/true"], stop = ["/bin/true"], monitor = ["/bin/true"] }
    "#;
    let routes = "routes = [{ to = \"10.9.0.0/16\", via = \"10.0.0.254\", zone = \"inet\" }]\n\
                  rules = [{ from = \"10.1.0.0/16\", table = 100 }]\nvips = [";
    good(&format!("{}\n{more}", EXAMPLE.replacen("vips = [", routes, 1)));
    let asked = section::ASKED.take();
    assert!(asked.len() > 100, "{asked:?}");
    for (table, key) in asked {
        for (name, text) in [("fwha.toml", EXAMPLE), ("operations.md", OPERATIONS)] {
            assert!(text.contains(key), "{key} of {table} is not in {name}");
        }
    }
}

//! Each kind of mistake is found, where it is, and every one of them at once.

use std::path::Path;

use fwha_common::ruleset::MAX_RULES;

use super::{GOOD, good, parse, with};
use crate::config::{Config, KeyError, Source, key};

/// The headlines without the path.
fn mistakes(text: &str) -> Vec<String> {
    let errors = parse(text).expect_err("mistakes are found");
    errors.headlines().map(|l| l.strip_prefix("/etc/fwha/f.toml").unwrap().to_owned()).collect()
}

#[test]
fn a_mistake_is_shown_with_line_caret_and_remedy() {
    let text = with("max-flows", "max-flow").replace("\"10.0.0.12/24\"", "\"10.0.0.12\"");
    let expected = "\
/etc/fwha/f.toml:6:1: unknown key \"max-flow\" in [cluster]
  |
6 | max-flow = 1_000_000
  | ^^^^^^^^ did you mean \"max-flows\"?
/etc/fwha/f.toml:29:44: vip: \"10.0.0.12\" lacks its prefix length, like \"10.0.0.12/24\"
   |
29 |   { zone = \"inet\", vrid = 61, addresses = [\"10.0.0.12\"] },
   |                                            ^^^^^^^^^^^";
    assert_eq!(parse(&text).unwrap_err().to_string(), expected);
}

#[test]
fn places_count_characters_and_survive_odd_lines() {
    let text = with("name = \"lan-out\"", "\tname = \"lan-out\" # übel\r")
        .replace("to = \"inet\"", "to\t= \"ïnet\"");
    let shown = parse(&text).unwrap_err().to_string();
    assert_eq!(
        shown,
        "/etc/fwha/f.toml:36:6: unknown zone \"ïnet\"\n   |\n36 | to = \"ïnet\"\n   |      ^^^^^^ did you mean \"inet\"?"
    );
}

/// Each row: what is replaced in the good file, by what, and the mistakes found, without the path.
type Row = (&'static str, &'static str, &'static [&'static str]);

/// Every row that differs is shown, not only the first.
fn check_rows(rows: &[Row]) {
    let mut differing = Vec::new();
    for (old, new, expected) in rows {
        let found = mistakes(&with(old, new));
        if found != *expected {
            differing.push(format!("{new}\n  expected {expected:#?}\n  found {found:#?}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}

#[test]
fn broken_toml_is_shown_alone() {
    check_rows(&[
        ("name = \"edge\"", "name = edge", &[":3:8: string values must be quoted, expected literal string"]),
        ("name = \"edge\"", "name = \"edge\"\nname = \"x\"", &[":4:1: duplicate key"]),
        ("[[group]]", "[[group]", &[":23:9: unclosed array table, expected `]`"]),
    ]);
}

#[test]
fn mistakes_of_form_are_found() {
    check_rows(&[
        ("[cluster]", "[clusters]", &[":2:2: unknown key \"clusters\" in the file", ": no [cluster]"]),
        ("name = \"edge\"", "", &[":2:1: [cluster] has no \"name\""]),
        ("name = \"edge\"", "name = 7", &[":3:8: name is an integer, not a string"]),
        (
            "name = \"edge\"",
            "name = \"../x\"",
            &[
                ":3:8: cluster: \"../x\" is not a name: letters, digits, \"-\", \"_\" and \".\", beginning with a letter or digit",
            ],
        ),
        ("key-file = \"cluster.key\"", "key-file = \"\"", &[":4:12: key-file is empty"]),
        ("key-file = \"cluster.key\"", "", &[":2:1: [cluster] has no \"key-file\""]),
        ("\"active-passive\"", "\"active-active\"", &[":5:8: mode \"active-active\" is not supported yet"]),
        ("\"active-passive\"", "\"passive\"", &[":5:8: unknown mode \"passive\""]),
        ("1_000_000", "0", &[":6:13: max-flows 0 is out of range"]),
        ("1_000_000", "-1", &[":6:13: max-flows -1 is out of range"]),
        (
            "1_000_000",
            "0xffff_ffff_ffff_ffff_ffff",
            &[":6:13: max-flows 0xffffffffffffffffffff is out of range"],
        ),
        ("1_000_000", "\"1000000\"", &[":6:13: max-flows is a string, not an integer"]),
        (
            "\"10ms\"",
            "10",
            &[":7:22: heartbeat-interval is an integer, not a duration in quotes, like \"10ms\" or \"5m\""],
        ),
        ("\"10ms\"", "\"10\"", &[":7:22: heartbeat-interval: \"10\" has no unit"]),
        ("\"10ms\"", "\"10 parsecs\"", &[":7:22: heartbeat-interval: \"10 parsecs\" is not a duration"]),
        ("\"10ms\"", "\"0ms\"", &[":7:22: heartbeat-interval \"0ms\" is out of range"]),
        (
            "\"10ms\"",
            "\"99999999999999999999d\"",
            &[":7:22: heartbeat-interval: \"99999999999999999999d\" is not a duration"],
        ),
        (
            "\"10ms\"",
            "\"10ms\"\nwitness = [\"10.0.0.254\", \"fe80::1\", \"10.0.0.254\", \"x\"]",
            &[
                ":8:26: witness: fe80::1 is the same on every link",
                ":8:37: witness 10.0.0.254 twice",
                ":8:51: witness: \"x\" is not an address",
            ],
        ),
        ("\"10ms\"", "\"500ms\"", &[":7:22: a lease of 1s is too short for heartbeats every 500ms"]),
        (
            "\"10ms\"",
            "\"50ms\"\nlease = \"100ms\"",
            &[":8:9: a lease of 100ms is too short for heartbeats every 50ms"],
        ),
        ("preempt = false", "preempt = 0", &[":26:11: preempt is an integer, not true or false"]),
        (
            "[[zone]]",
            "[sync]\nport = 65535\nprot = 1\n[[zone]]",
            &[":17:8: port 65535 is out of range", ":18:1: unknown key \"prot\" in [sync]"],
        ),
        (
            "[[zone]]",
            "[replication]\nenabled = \"no\"\n[[zone]]",
            &[":17:11: enabled is a string, not true or false"],
        ),
        (
            "[[zone]]",
            "[timeouts]\ntcp-establishd = \"5d\"\nudp = \"0s\"\n[[zone]]",
            &[":17:1: unknown key \"tcp-establishd\" in [timeouts]", ":18:7: udp \"0s\" is out of range"],
        ),
    ]);
}

#[test]
fn mistakes_about_nodes_are_found() {
    check_rows(&[
        (
            "[[node]]",
            "[[nodes]]",
            &[":9:3: unknown key \"nodes\" in the file", ":25:10: unknown node \"fw1\""],
        ),
        (
            "name = \"fw2\"",
            "name = \"fw1\"",
            &[":13:8: node \"fw1\" is there twice", ":25:17: unknown node \"fw2\""],
        ),
        (
            "name = \"fw2\"\nsync = [{ interface = \"sync\", address = \"172.16.0.2\" }]",
            "name = \"fw2\"",
            &[":12:1: node \"fw2\" has no sync link"],
        ),
        (
            "sync = [{ interface = \"sync\", address = \"172.16.0.2\" }]",
            "sync = []",
            &[":14:8: node \"fw2\" has no sync link"],
        ),
        ("172.16.0.2", "172.16.0.1", &[":14:41: sync address 172.16.0.1 is there twice"]),
        (
            "172.16.0.2",
            "172.16.0.2/24",
            &[":14:41: address: \"172.16.0.2/24\" is a prefix; write the address alone"],
        ),
        ("172.16.0.2", "172.16.0.300", &[":14:41: address: \"172.16.0.300\" is not an IPv4 address"]),
        ("172.16.0.2", "224.0.0.1", &[":14:41: address: \"224.0.0.1\" is a multicast address"]),
        ("172.16.0.2", "fd00::2", &[":14:41: address: \"fd00::2\" is IPv6, which is not supported yet"]),
        (
            "\"sync\", address = \"172.16.0.2\" }",
            "\"sync\", address = \"172.16.0.2\" }, { interface = \"sync\", address = \"172.17.0.2\" }",
            &[
                ":14:8: node \"fw2\" has 2 sync links, \"fw1\" has 1",
                ":14:71: interface \"sync\" has two sync links of this node",
            ],
        ),
        (
            "interface = \"sync\", address = \"172.16.0.2\"",
            "interface = \"a/b\", adress = \"172.16.0.2\"",
            &[
                ":14:9: sync has no \"address\"",
                ":14:23: interface: \"a/b\" is not the name of an interface",
                ":14:30: unknown key \"adress\" in sync",
            ],
        ),
    ]);
}

#[test]
fn mistakes_about_zones_are_found() {
    check_rows(&[
        (
            "name = \"inet\"",
            "name = \"node\"",
            &[
                ":17:8: zone name \"node\" is reserved",
                ":29:12: unknown zone \"inet\"",
                ":36:6: unknown zone \"inet\"",
            ],
        ),
        (
            "name = \"inet\"",
            "name = \"any\"",
            &[
                ":17:8: zone name \"any\" is reserved",
                ":29:12: unknown zone \"inet\"",
                ":36:6: unknown zone \"inet\"",
            ],
        ),
        (
            "name = \"inet\"",
            "name = \"lan\"",
            &[
                ":20:8: zone \"lan\" is there twice",
                ":29:12: unknown zone \"inet\"",
                ":36:6: unknown zone \"inet\"",
            ],
        ),
        ("[\"wan\"]", "[\"lan\"]", &[":21:15: interface \"lan\" is already in zone \"inet\""]),
        ("[\"wan\"]", "[\"wan\", \"wan\"]", &[":18:22: interface \"wan\" is there twice"]),
        (
            "[\"wan\"]",
            "[\"sync\"]",
            &[
                ":18:15: interface \"sync\" is a sync link of \"fw1\"",
                ":18:15: interface \"sync\" is a sync link of \"fw2\"",
            ],
        ),
        (
            "[\"wan\"]",
            "[]",
            &[
                ":18:14: zone \"inet\" has no interfaces",
                ":29:12: node \"fw1\" has no interface in zone \"inet\"",
                ":29:12: node \"fw2\" has no interface in zone \"inet\"",
            ],
        ),
        (
            "[\"wan\"]",
            "{ fw1 = [\"wan\"], fw3 = [\"wan\"] }",
            &[":18:31: unknown node \"fw3\"", ":29:12: node \"fw2\" has no interface in zone \"inet\""],
        ),
        (
            "[\"wan\"]",
            "\"wan\"",
            &[
                ":18:14: interfaces is a string, not a list like [\"eth0\"] or a table like { fw1 = [\"eth0\"], fw2 = [\"eth1\"] }",
                ":29:12: node \"fw1\" has no interface in zone \"inet\"",
                ":29:12: node \"fw2\" has no interface in zone \"inet\"",
            ],
        ),
        (
            "[\"wan\"]",
            "[\"an-interface-name\"]",
            &[
                ":18:15: interface: \"an-interface-name\" is not the name of an interface",
                ":29:12: node \"fw1\" has no interface in zone \"inet\"",
                ":29:12: node \"fw2\" has no interface in zone \"inet\"",
            ],
        ),
        (
            "[\"wan\"]",
            "[\"wan\", \"wan.0\", \"wan.4095\", \"wan.1.2.3\"]",
            &[
                ":18:22: interface: \"wan.0\" has VLAN 0, and VLANs are 1 to 4094",
                ":18:31: interface: \"wan.4095\" has VLAN 4095, and VLANs are 1 to 4094",
                ":18:43: interface: \"wan.1.2.3\" has more than two VLANs",
            ],
        ),
        ("[\"wan\"]", "[\"wan.5\", \"wan.05\"]", &[":18:24: interface \"wan.05\" is there twice"]),
        ("[\"wan\"]", "[\"wan\"]\nattach = \"xpd\"", &[":19:10: unknown attachment \"xpd\""]),
    ]);
}

#[test]
fn mistakes_about_groups_are_found() {
    check_rows(&[
        ("[[group]]", "[group]", &[":23:1: [group] can be there several times"]),
        ("[\"fw1\", \"fw2\"]", "[\"fw1\", \"fw4\"]", &[":25:17: unknown node \"fw4\""]),
        ("[\"fw1\", \"fw2\"]", "[\"fw1\", \"fw1\"]", &[":25:17: node \"fw1\" is there twice"]),
        ("[\"fw1\", \"fw2\"]", "[]", &[":25:9: nodes is empty"]),
        ("[\"fw1\", \"fw2\"]", "\"fw1\"", &[":25:9: nodes is a string, not a list"]),
        (
            "preempt = false",
            "priority = { fw1 = 100, fw2 = 100 }",
            &[":26:31: node \"fw2\" has the priority of \"fw1\", 100"],
        ),
        (
            "preempt = false",
            "priority = { fw2 = 100, fw1 = 100 }",
            &[":26:31: node \"fw1\" has the priority of \"fw2\", 100"],
        ),
        (
            "preempt = false",
            "priority = { fw1 = 256, fw2 = 0 }",
            &[":26:20: priority 256 is out of range", ":26:31: priority 0 is out of range"],
        ),
        (
            "preempt = false",
            "priority = { fw1 = 255, fw2 = 255 }",
            &[":26:31: node \"fw2\" has the priority of \"fw1\", 255"],
        ),
        ("preempt = false", "priority = { fw1 = 150 }", &[":26:12: node \"fw2\" has no priority"]),
        (
            "preempt = false",
            "priority = { fw1 = 150, fw2 = 100, fw5 = 1 }",
            &[":26:36: unknown node \"fw5\""],
        ),
        (
            "[\"fw1\", \"fw2\"]",
            "[\"fw1\"]\npriority = { fw1 = 150, fw2 = 100 }",
            &[":26:25: node \"fw2\" is not in this group's nodes"],
        ),
        ("\"1s\"", "\"5ms\"", &[":27:19: advert-interval \"5ms\" is out of range"]),
        ("\"1s\"", "\"41s\"", &[":27:19: advert-interval \"41s\" is out of range"]),
        ("\"1s\"", "\"15ms\"", &[":27:19: advert-interval 15ms is not a whole number of centiseconds"]),
        ("\"1s\"", "\"1s\"\nvrrp-version = 4", &[":28:16: vrrp-version 4 is out of range"]),
        ("\"1s\"", "\"1s\"\nauth-pass = \"x\"", &[":28:13: auth-pass without vrrp-version = 2"]),
        ("\"1s\"", "\"1s\"\nchecksum = \"pseudo\"", &[":28:12: unknown checksum \"pseudo\""]),
        (
            "\"1s\"",
            "\"1500ms\"\nvrrp-version = 2\nchecksum = \"message\"\nauth-pass = \"too long a one\"",
            &[
                ":27:19: advert-interval 1500ms is not a whole number of seconds",
                ":29:12: checksum with vrrp-version = 2",
                ":30:13: auth-pass does not have 1 to 8 bytes",
            ],
        ),
        ("\"1s\"", "\"256s\"\nvrrp-version = 2", &[":27:19: advert-interval \"256s\" is out of range"]),
        (
            "\"1s\"\nvips = [",
            "\"1s\"\nvrrp-version = 2\nvips = [\n{ zone = \"lan\", vrid = 1, addresses = [\"fe80::1/64\"] },",
            &[":30:1: VRRP version 2 has no IPv6"],
        ),
        ("zone = \"inet\"", "zone = \"internet\"", &[":29:12: unknown zone \"internet\""]),
        ("vrid = 61", "vrid = 0", &[":29:27: vrid 0 is out of range"]),
        ("vrid = 61", "vrid = 256", &[":29:27: vrid 256 is out of range"]),
        ("vrid = 61, ", "", &[":29:3: vips has no \"vrid\""]),
        (
            "  { zone = \"lan\",  vrid = 62",
            "  { zone = \"inet\", vrid = 61",
            &[":30:27: vrid 61 is there twice in zone \"inet\""],
        ),
        ("192.168.100.12/24", "10.0.0.12/24", &[":30:44: vip 10.0.0.12 is there twice"]),
        (
            "192.168.100.12/24",
            "10.0.0.13/16",
            &[":30:44: vip 10.0.0.13/16 overlaps vip 10.0.0.12/24 of zone \"inet\""],
        ),
        (
            "192.168.100.12/24",
            "10.0.0.13/32",
            &[":30:44: vip 10.0.0.13/32 overlaps vip 10.0.0.12/24 of zone \"inet\""],
        ),
        ("192.168.100.12/24", "172.16.0.1/24", &[":30:44: vip 172.16.0.1 is a node's sync address"]),
        (
            "192.168.100.12/24",
            "192.168.100.0/24",
            &[":30:44: vip: \"192.168.100.0/24\" is the address of the network, not of a host in it"],
        ),
        (
            "192.168.100.12/24",
            "192.168.100.255/24",
            &[":30:44: vip: \"192.168.100.255/24\" is the broadcast address of its network"],
        ),
        (
            "192.168.100.12/24",
            "192.168.100.12/33",
            &[":30:44: vip: \"192.168.100.12/33\" is not an address with prefix length"],
        ),
        (
            "192.168.100.12/24",
            "fd00::1",
            &[":30:44: vip: \"fd00::1\" lacks its prefix length, like \"fd00::1/64\""],
        ),
        (
            "[\"192.168.100.12/24\"]",
            "[\"fd00::1/64\"]",
            &[":30:43: addresses of IPv6 without a link-local one"],
        ),
        (
            "192.168.100.12/24",
            "fd00::/64",
            &[":30:44: vip: \"fd00::/64\" is the address of the network, not of a host in it"],
        ),
        ("192.168.100.12/24", "ff02::12/64", &[":30:44: vip: \"ff02::12\" is a multicast address"]),
        (
            "192.168.100.12/24\"]",
            "fe80::1/64\"] },\n { zone = \"lan\", vrid = 62, addresses = [\"fe80::1/64\", \"fe80::2/64\"]",
            &[":31:25: vrid 62 is there twice in zone \"lan\"", ":31:42: vip fe80::1 is there twice"],
        ),
        ("[\"192.168.100.12/24\"]", "[]", &[":30:43: addresses is empty"]),
        (
            "[[rule]]",
            "[[group]]\nname = \"second\"\nnodes = [\"fw1\"]\nvips = [\n\
             { zone = \"inet\", vrid = 1, addresses = [\"10.0.0.13/24\"] },\n\
             { zone = \"lan\", vrid = 2, addresses = [\"192.168.100.13/24\"] },\n]\n[[rule]]",
            &[":33:1: groups \"gateway\" and \"second\" both have vips in zones \"inet\" and \"lan\""],
        ),
    ]);
    // Beside another in the same zone and network is where a further VIP belongs.
    good(&with("\"10.0.0.12/24\"", "\"10.0.0.12/24\", \"10.0.0.13/24\", \"10.0.0.14/32\""));
}

#[test]
fn mistakes_about_rules_are_found() {
    check_rows(&[
        ("name = \"admin\"", "name = \"lan-out\"", &[":40:8: rule \"lan-out\" is there twice"]),
        (
            "from = \"lan\"\nto = \"inet\"",
            "from = \"lna\"\nto = \"nodes\"",
            &[":35:8: unknown zone \"lna\"", ":36:6: unknown zone \"nodes\""],
        ),
        ("from = \"lan\"", "from = \"node\"", &[":35:8: rules from \"node\" are not supported yet"]),
        (
            "to = \"inet\"\naction = \"accept\"",
            "to = \"inet\"\naction = \"allow\"",
            &[":37:10: unknown action \"allow\""],
        ),
        ("to = \"inet\"\naction = \"accept\"", "to = \"inet\"", &[":33:1: [[rule]] has no \"action\""]),
        (
            "to = \"inet\"",
            "to = \"inet\"\nsource = [\"10.0.0.1/8\", \"x\", \"fd00::1/8\"]",
            &[
                ":37:11: source: \"10.0.0.1/8\" has bits set behind its prefix; the network is \"10.0.0.0/8\"",
                ":37:25: source: \"x\" is neither a prefix nor an address",
                ":37:30: source: \"fd00::1/8\" has bits set behind its prefix; the network is \"fd00::/8\"",
            ],
        ),
        ("to = \"inet\"", "to = \"inet\"\nmss = \"large\"", &[":37:7: mss is not a maximum segment size"]),
        (
            "to = \"inet\"",
            "to = \"inet\"\nsyn-proxy = 1",
            &[":37:13: syn-proxy is an integer, not true or false"],
        ),
        (
            "to = \"inet\"",
            "to = \"inet\"\nservices = [\"udp\"]\nsyn-proxy = true",
            &[":33:1: syn-proxy of rule \"lan-out\" has nothing to do"],
        ),
        ("to = \"inet\"", "to = \"inet\"\nmss = 100", &[":37:7: mss is not a maximum segment size"]),
        (
            "to = \"inet\"",
            "to = \"inet\"\ndestination = []",
            &[":37:15: destination is empty, so the rule would match nothing"],
        ),
        (
            "\"tcp/22\", \"icmp\"",
            "\"tcp/0\", \"ssh\", \"tcp/9-1\", \"icmp/8\", \"udp/70000\", 22, \"tcp/+1\"",
            &[
                ":43:13: services: \"0\" in \"tcp/0\" is not a port from 1 to 65535",
                ":43:22: services: unknown service \"ssh\"",
                ":43:29: services: in \"tcp/9-1\" the first port is higher than the last",
                ":43:40: services: \"icmp\" has no ports",
                ":43:50: services: \"70000\" in \"udp/70000\" is not a port from 1 to 65535",
                ":43:63: services is an integer, not a string",
                ":43:67: services: \"+1\" in \"tcp/+1\" is not a port from 1 to 65535",
            ],
        ),
    ]);
}

/// The file with so many more rules.
fn with_rules(count: usize, rule: impl Fn(usize) -> String) -> String {
    with("", "") + &(0..count).map(rule).collect::<String>()
}

#[test]
fn too_many_rules_are_refused_where_the_limit_is_passed() {
    let rule = |i| format!("[[rule]]\nname = \"r{i}\"\naction = \"drop\"\n");
    let fits = with_rules(MAX_RULES - 2, rule);
    let line = fits.lines().count() + 1;
    assert_eq!(good(&fits).rules.len(), MAX_RULES);
    let more = fits + &rule(MAX_RULES) + &rule(MAX_RULES + 1);
    assert_eq!(
        mistakes(&more),
        [format!(
            ":{line}:1: with rule \"r{MAX_RULES}\" the ruleset is too large: 16386 rules are more than 16384"
        )]
    );
}

#[test]
fn a_ruleset_that_takes_too_much_memory_is_refused_where_it_does() {
    // Each host is in a set of rules of its own, two of which name it; those without hosts are in all sets, and so there
    // is no word of rules that a set does not have.
    let text = with_rules(MAX_RULES - 2, |i| {
        let host = |i: usize, step: usize| format!("\"{}.{}.{}.1\"", 10 + step, i >> 8, i & 255);
        let hosts = (2..=10).step_by(2).filter(|step| i >= *step);
        let hosts: Vec<String> = hosts.flat_map(|step| [host(i, step), host(i - step, step)]).collect();
        let source = match i % 2 {
            0 if !hosts.is_empty() => format!("source = [{}]\n", hosts.join(", ")),
            _ => String::new(),
        };
        format!("[[rule]]\nname = \"r{i}\"\n{source}action = \"drop\"\n")
    });
    let found = mistakes(&text);
    let [mistake] = &found[..] else { panic!("{found:?}") };
    let (place, what) = mistake.split_once(": with rule \"r").expect("a rule");
    let line: usize = place.trim_start_matches(':').trim_end_matches(":1").parse().unwrap();
    let (number, what) = what.split_once('"').unwrap();
    assert_eq!(what, " the ruleset is too large: the compiled rules need more than 64 MiB");
    assert_eq!(text.lines().nth(line - 1), Some("[[rule]]"));
    assert_eq!(text.lines().nth(line), Some(format!("name = \"r{number}\"").as_str()));
    // The rules before it are accepted.
    let before: Vec<&str> = text.lines().take(line - 1).collect();
    good(&before.join("\n"));
}

#[test]
fn what_is_missing_as_a_whole_is_named() {
    assert_eq!(mistakes(""), [": no [cluster]", ": no [[node]]", ": no [[zone]]", ": no [[group]]"]);
}

#[test]
fn a_key_file_that_cannot_be_used_is_a_mistake_of_its_line() {
    for (error, expected) in [
        (KeyError::Missing, "does not exist"),
        (KeyError::Exposed(0o644), "can be read by others (mode 0644)"),
        (KeyError::TooShort(10), "is too short: 10 of 64 hexadecimal digits"),
    ] {
        let errors = Config::parse(Source::new("/d/f.toml", GOOD), |_| Err(error)).unwrap_err();
        let lines: Vec<_> = errors.headlines().collect();
        assert_eq!(lines, [format!("/d/f.toml:4:12: key file /d/cluster.key {expected}")]);
    }
    let errors = Config::parse(Source::new("f.toml", GOOD), |_| Err(KeyError::Exposed(0o644))).unwrap_err();
    assert!(errors.to_string().contains("chmod 600 cluster.key"), "{errors}");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fwha.toml");
    let message = |path: &Path| Config::load(path).unwrap_err().to_string();
    assert!(message(&path).contains("fwha.toml: cannot read the config file: No such file"));
    assert!(message(dir.path()).contains("cannot read the config file: Is a directory"));
    std::fs::write(&path, [0xff, 0xfe]).unwrap();
    assert!(message(&path).contains("the config file is not UTF-8 text"));
    std::fs::write(&path, GOOD).unwrap();
    assert!(message(&path).contains("cluster.key does not exist"));
    key::generate(&dir.path().join("cluster.key")).unwrap();
    assert_eq!(Config::load(&path).unwrap().hash, good(GOOD).hash);
}

#[test]
fn no_damaged_file_is_worse_than_a_mistake() {
    let read = |text: String| match Config::parse(Source::new("f", text), |_| Err(KeyError::Missing)) {
        Ok(_) => panic!("without a key it cannot be right"),
        Err(errors) => assert!(errors.to_string().starts_with("f:"), "{errors}"),
    };
    for (place, char) in GOOD.char_indices() {
        read(GOOD[..place].to_owned());
        for other in ['"', '[', '}', '\n', '\u{1b}', '9', 'ï'] {
            read(format!("{}{other}{}", &GOOD[..place], &GOOD[place + char.len_utf8()..]));
        }
    }
    read("x = ".to_owned() + &"[".repeat(100_000));
}

#[test]
fn the_mistakes_shown_have_an_end() {
    let text: String = (0..150).map(|i| format!("x{i} = 1\n")).collect();
    let errors = parse(&text).unwrap_err();
    assert_eq!(errors.mistakes().len(), 154);
    let shown = errors.to_string();
    assert!(shown.contains("unknown key \"x99\"") && shown.ends_with("\n… and 54 more"), "{shown}");
}

#[test]
fn names_that_cannot_be_told_apart_in_a_flow_are_refused() {
    let (a, b) = colliding_names();
    let text =
        with("name = \"lan-out\"", &format!("name = \"{a}\"")).replace("\"admin\"", &format!("\"{b}\""));
    assert_eq!(mistakes(&text), [format!(":39:1: rules {b:?} and {a:?} have the same hash")]);
}

/// Two names with the same hash: by the birthday bound, some 80,000 tries.
fn colliding_names() -> (String, String) {
    let mut seen = std::collections::HashMap::new();
    (0u32..)
        .find_map(|n| {
            let name = format!("rule-{n:x}");
            seen.insert(fwha_common::rule::name_hash(&name), name.clone()).map(|other| (other, name))
        })
        .expect("names do not run out")
}

#[test]
fn what_a_heartbeat_has_no_room_for_is_refused() {
    let links: Vec<String> =
        (1..=9).map(|n| format!("{{ interface = \"s{n}\", address = \"172.16.{n}.1\" }}")).collect();
    let text =
        with("[{ interface = \"sync\", address = \"172.16.0.1\" }]", &format!("[{}]", links.join(", ")));
    assert!(mistakes(&text).iter().any(|m| m.ends_with("more than 8 sync links")));
    let vips: Vec<String> = (1..=33)
        .map(|n| format!("{{ zone = \"lan\", vrid = {n}, addresses = [\"192.168.100.{n}/24\"] }},"))
        .collect();
    let text = with("vips = [", &format!("vips = [{}", vips.join(" ")));
    assert!(mistakes(&text).iter().any(|m| m.ends_with("more than 32 vrids in one group")));
    let addresses = |n| if n < 16 { ", \"fe80::1:12/64\"" } else { "" };
    let vips: Vec<String> = (1..=16)
        .map(|n| {
            format!("{{ zone = \"lan\", vrid = {n}, addresses = [\"192.168.1.{n}/24\"{}] }},", addresses(n))
        })
        .collect();
    let text = with("vips = [", &format!("vips = [{}", vips.join(" ")));
    assert!(mistakes(&text).iter().any(|m| m.ends_with("more than 32 vrids in one group")), "both families");
}

#[test]
fn a_port_for_metrics_has_an_address() {
    check_rows(&[
        (
            "[[group]]",
            "[metrics]\nlisten = \"9761\"\n[[group]]",
            &[":24:10: listen \"9761\" is not an address with a port"],
        ),
        ("[[group]]", "[metrics]\nport = 9761\n[[group]]", &[":24:1: unknown key \"port\" in [metrics]"]),
    ]);
}

#[test]
fn mistakes_about_what_is_replicated_are_found() {
    check_rows(&[
        (
            "[cluster]",
            "[replication]\nprotocols = [\"tpc\"]\nignore = [\"10.0.0.1/8\"]\n[cluster]",
            &[
                ":3:14: unknown protocol \"tpc\"",
                ":4:11: ignore: \"10.0.0.1/8\" has bits set behind its prefix; the network is \"10.0.0.0/8\"",
            ],
        ),
        (
            "[cluster]",
            "[replication]\nmin-age = \"2h\"\npeer-flows = 1\n[cluster]",
            &[":3:11: min-age \"2h\" is out of range", ":4:14: peer-flows 1 is out of range"],
        ),
    ]);
}

#[test]
fn what_a_takeover_loses_by_choice_is_said() {
    let two = "[[node]]\nname = \"fw2\"\nsync = [{ interface = \"sync\", address = \"172.16.0.2\" }]\n";
    assert!(GOOD.contains(two), "two nodes");
    let said = |old: &str, new: &str| good(&with(old, new)).warnings.join("\n");
    let chosen = said(
        "[cluster]",
        "[replication]\nprotocols = [\"tcp\", \"89\"]\nignore = [\"10.0.0.0/8\"]\nmin-age = \"5s\"\n[cluster]",
    );
    assert!(chosen.contains("a takeover loses all flows but those of tcp, 89"), "{chosen}");
    assert!(chosen.contains("a takeover loses the flows from and to 10.0.0.0/8"), "{chosen}");
    assert!(chosen.contains("a takeover loses the flows of the last 5s"), "{chosen}");
    let rule = said("name = \"admin\"", "name = \"admin\"\nreplicate = false");
    assert!(rule.contains("a takeover loses the flows of admin"), "{rule}");
}

#[test]
fn mistakes_about_preemption_are_found() {
    check_rows(&[
        (
            "preempt = false",
            "preempt-delay = \"30s\"",
            &[":26:17: preempt-delay without preempt means nothing"],
        ),
        (
            "preempt = false",
            "preempt = true\npreempt-delay = \"2h\"",
            &[":27:17: preempt-delay \"2h\" is out of range"],
        ),
    ]);
    let delayed = good(&with("preempt = false", "preempt = true\npreempt-delay = \"30s\""));
    assert_eq!(delayed.groups[0].preempt_delay.as_secs(), 30);
}

#[test]
fn mistakes_about_announcements_are_found() {
    check_rows(&[
        ("preempt = false", "announce = 5", &[":26:12: announce is an integer, not a table"]),
        (
            "preempt = false",
            "announce = { repeat = [\"1s\", 5, \"1s\", \"2h\"], delay = \"5s\" }",
            &[
                ":26:30: repeat is an integer, not a duration in quotes, like \"10ms\" or \"5m\"",
                ":26:33: repeat is not in order",
                ":26:39: repeat \"2h\" is out of range",
                ":26:46: unknown key \"delay\" in announce",
            ],
        ),
        (
            "preempt = false",
            "announce = { refresh = \"0s\", interval = \"2s\" }",
            &[":26:24: refresh \"0s\" is out of range", ":26:41: interval \"2s\" is out of range"],
        ),
    ]);
    let times: Vec<String> = (1..=17).map(|n| format!("\"{n}s\"")).collect();
    let text = format!("announce = {{ repeat = [{}] }}", times.join(","));
    assert_eq!(mistakes(&with("preempt = false", &text)), [":26:111: more than 16 repetitions"]);
}

#[test]
fn mistakes_about_unicast_peers_are_found() {
    check_rows(&[
        (
            "vrid = 61",
            "vrid = 61, peers = [\"10.0.0.3\", \"10.0.0.3\", \"224.0.0.18\", 7]",
            &[
                ":29:52: peer 10.0.0.3 is there twice",
                ":29:64: peers: \"224.0.0.18\" is a multicast address",
                ":29:78: peers is an integer, not a string",
            ],
        ),
        ("vrid = 61", "vrid = 61, peers = [\"fe80::3\"]", &[":29:39: peers has no address of IPv4"]),
        ("vrid = 61", "vrid = 61, peers = []", &[":29:39: peers has no address of IPv4"]),
    ]);
    let config = good(&with("vrid = 61", "vrid = 61, peers = [\"10.0.0.3\", \"10.0.0.2\"]"));
    let peers: Vec<String> = config.groups[0].vips[0].peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["10.0.0.3", "10.0.0.2"]);
    assert!(config.groups[0].vips[1].peers.is_empty());
}

#[test]
fn mistakes_about_hooks_are_found() {
    check_rows(&[
        ("[cluster]", "[[hook]]\nname = \"notify\"\n[cluster]", &[":2:1: [[hook]] has no \"command\""]),
        (
            "[cluster]",
            "[[hook]]\nname = \"notify\"\ncommand = [\"on-role\", \"x\"]\ntimeout = \"1ms\"\n[cluster]",
            &[":4:12: command \"on-role\" is not an absolute path", ":5:11: timeout \"1ms\" is out of range"],
        ),
        (
            "[cluster]",
            "[[hook]]\nname = \"notify\"\ncommand = []\non = [\"master\"]\ngroups = [\"gatway\"]\n[cluster]",
            &[":4:11: command is empty", ":5:7: unknown role \"master\"", ":6:11: unknown group \"gatway\""],
        ),
    ]);
}

#[test]
fn mistakes_about_trackers_are_found() {
    check_rows(&[
        ("[cluster]", "[[tracker]]\nname = \"t\"\n[cluster]", &[":2:1: [[tracker]] watches nothing"]),
        (
            "[cluster]",
            "[[tracker]]\nname = \"t\"\nping = \"10.0.0.1\"\nfile = \"/x\"\n[cluster]",
            &[":2:1: [[tracker]] watches ping and file at once"],
        ),
        (
            "[cluster]",
            "[[tracker]]\nname = \"t\"\nping = \"10.0.0.256\"\nzone = \"lan\"\nfault = false\n[cluster]",
            &[
                ":4:8: ping: \"10.0.0.256\" is not an address",
                ":5:8: zone without arp",
                ":6:9: a tracker that does nothing",
            ],
        ),
        (
            "[cluster]",
            "[[tracker]]\nname = \"t\"\ntcp = \"10.0.0.1\"\nweight = 50\n[cluster]",
            &[
                ":4:7: tcp: \"10.0.0.1\" is not an address with a port, like \"10.0.0.1:443\" or \"[fd00::1]:443\"",
                ":5:10: weight 50 is out of range",
            ],
        ),
        (
            "[cluster]",
            "[[tracker]]\nname = \"t\"\narp = \"10.9.0.1\"\nweight = -5\nfault = true\n[cluster]",
            &[":4:7: arp: 10.9.0.1 is in the network of no vip", ":5:10: weight beside fault = true"],
        ),
        (
            "[cluster]",
            "[[tracker]]\nname = \"t\"\nfile = \"maintenance\"\ntimeout = \"100ms\"\nnodes = [\"fw3\"]\n[cluster]",
            &[":4:8: file: \"maintenance\" is not an absolute path", ":6:10: unknown node \"fw3\""],
        ),
        (
            "[cluster]",
            "[[tracker]]\nname = \"t\"\nping = \"10.0.0.1\"\ntimeout = \"2s\"\n[[tracker]]\nname = \"t\"\n\
             file = \"/x\"\ntimeout = \"1s\"\n[cluster]",
            &[
                ":5:11: timeout \"2s\" is out of range",
                ":7:8: tracker \"t\" is there twice",
                ":9:11: timeout of something that takes no time",
            ],
        ),
    ]);
}

#[test]
fn mistakes_about_resources_are_found() {
    let resource = |lines: &str| format!("[[resource]]\nname = \"vpn\"\n{lines}\n[cluster]");
    for (lines, expected) in [
        ("group = \"gateway\"", &[":2:1: [[resource]] runs nothing"][..]),
        ("systemd = \"vpn.service\"", &[":2:1: [[resource]] has no \"group\""]),
        (
            "group = \"gatway\"\nsystemd = \"vpn.service\"\nocf = \"ocf:heartbeat:vpn\"",
            &[":2:1: [[resource]] runs systemd and ocf at once", ":4:9: unknown group \"gatway\""],
        ),
        (
            "group = \"gateway\"\nsystemd = \"vpn\"\nparameters = { a = \"b\" }\nocf-root = \"/x\"\non-fail = \"block\"",
            &[
                ":5:11: systemd: \"vpn\" has no suffix of a unit, like \".service\"",
                ":6:14: parameters without ocf",
                ":7:12: ocf-root without ocf",
                ":8:11: unknown on-fail \"block\"",
            ],
        ),
        (
            "group = \"gateway\"\nocf = \"heartbeat:vpn\"\nparameters = { \"a-b\" = 1, c = [] }\nocf-root = \"x\"",
            &[
                ":5:7: ocf: \"heartbeat:vpn\" is not the name of an agent, like \"ocf:heartbeat:IPsrcaddr\"",
                ":6:16: \"a-b\" is not the name of a parameter",
                ":6:31: c is an array, not a string, a number, or true or false",
                ":7:12: ocf-root \"x\" is not an absolute path",
            ],
        ),
        (
            "group = \"gateway\"\ncommand = { start = [\"vpn\"], stop = [] }\nrestarts = 101\ninterval = \"2d\"",
            &[
                ":5:11: command has no \"monitor\"",
                ":5:22: start \"vpn\" is not an absolute path",
                ":5:37: stop is empty",
                ":6:12: restarts 101 is out of range",
                ":7:12: interval \"2d\" is out of range",
            ],
        ),
    ] {
        let lines = resource(lines);
        assert_eq!(mistakes(&with("[cluster]", &lines)), expected, "{lines}");
    }
}

#[test]
fn mistakes_about_routes_are_found() {
    let before = "preempt = false";
    check_rows(&[
        (
            before,
            "routes = [{ to = \"10.9.0.1/16\", via = \"10.0.0.254\", zone = \"wan\", table = 255, metric = 0 }]",
            &[
                ":26:11: table 255 is the kernel's own",
                ":26:18: to: \"10.9.0.1/16\" has bits set behind its prefix; the network is \"10.9.0.0/16\"",
                ":26:60: unknown zone \"wan\"",
                ":26:89: metric 0 is out of range",
            ],
        ),
        (
            before,
            "routes = [{ to = \"10.9.0.0/16\", via = \"fd00::1\", zone = \"inet\" },\n\
             { to = \"10.8.0.0/16\", via = \"10.0.0.1\", zone = \"inet\" },\n\
             { to = \"10.8.0.0/16\", via = \"10.0.0.2\", zone = \"inet\" }]",
            &[":26:39: via is of another family than to", ":28:1: the route to 10.8.0.0/16 is there twice"],
        ),
        (
            before,
            "rules = [{ table = 5 }, { from = \"10.1.0.0/16\" }, { from = \"10.1.0.0/16\", to = \"fd00::/64\", table = 5 }]",
            &[
                ":26:10: a rule for everything",
                ":26:25: rules has no \"table\"",
                ":26:51: to is of another family than from",
            ],
        ),
    ]);
}

//! Differences between two files are told in their words, and those that need a restart are known.

use super::*;
use crate::config::diff::{Change, diff};

/// What `diff` says on fw1 of `GOOD` with pieces replaced; what needs a restart has a `!` in front.
fn changes(pieces: &[(&str, &str)]) -> Vec<String> {
    let mut text = GOOD.to_owned();
    for (old, new) in pieces {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    told(&good(GOOD), &good(&text))
}

fn told(old: &Config, new: &Config) -> Vec<String> {
    let mark = |Change { text, restart }: Change| if restart { format!("!{text}") } else { text };
    diff(old, new, 1).into_iter().map(mark).collect()
}

/// What `diff` says when these lines are added.
fn added(lines: &str) -> Vec<String> {
    told(&good(GOOD), &good(&format!("{GOOD}\n{lines}")))
}

#[test]
fn comments_and_defaults_are_no_changes() {
    assert_eq!(changes(&[("# relative to this file", "# elsewhere"), ("preempt = false\n", "")]), [""; 0]);
    assert_eq!(added("[timeouts]\nudp = \"30s\"\n[replication]\nenabled = true"), [""; 0]);
}

#[test]
fn rules_are_known_by_their_names() {
    assert_eq!(
        changes(&[("name = \"admin\"", "name = \"ssh\"")]),
        ["rule \"admin\" removed", "rule \"ssh\" added"]
    );
    let first = "[[rule]]\nname = \"web\"\nfrom = \"inet\"\nto = \"lan\"\naction = \"reject\"\n";
    let moved = format!("{first}\n[[rule]]\nname = \"lan-out\"");
    assert_eq!(changes(&[("[[rule]]\nname = \"lan-out\"", &moved)]), ["rule \"web\" added"]);
    assert_eq!(
        changes(&[(
            "services = [\"tcp/22\", \"icmp\"]",
            "services = [\"tcp/22\"]\nsource = [\"10.0.0.0/8\"]"
        )]),
        ["rule \"admin\": source: any -> 10.0.0.0/8", "rule \"admin\": services: tcp/22, icmp -> tcp/22"]
    );
    assert_eq!(
        changes(&[("to = \"inet\"\naction = \"accept\"", "to = \"any\"\naction = \"drop\"")]),
        ["rule \"lan-out\": to: inet -> any", "rule \"lan-out\": action: accept -> drop"]
    );
    let swapped = changes(&[
        ("name = \"admin\"", "name = \"x\""),
        ("name = \"lan-out\"", "name = \"admin\""),
        ("name = \"x\"", "name = \"lan-out\""),
    ]);
    assert_eq!(swapped[0], "rules are in another order");
}

#[test]
fn a_node_is_added_at_the_end() {
    const NODE: &str =
        "[[node]]\nname = \"fw3\"\nsync = [{ interface = \"sync\", address = \"172.16.0.3\" }]\n";
    let first = "[[node]]\nname = \"fw1\"";
    let last = "\n[[zone]]\nname = \"inet\"";
    let zones = ["inet\": interfaces of fw3: none -> wan", "lan\": interfaces of fw3: none -> lan"];
    let zones = zones.map(|zone| format!("zone \"{zone}"));
    let end = changes(&[(last, &format!("{NODE}{last}"))]);
    assert_eq!(end[0], "!node \"fw3\" added");
    assert_eq!(end[1..], zones);
    let told = changes(&[(first, &format!("{NODE}{first}"))]);
    assert_eq!(told[0], "!node \"fw3\" added");
    for (text, name) in told[1..].iter().zip(["fw1", "fw2"]) {
        assert!(text.starts_with(&format!("!node {name:?} would have another number")), "{text}");
    }
    assert_eq!(told[3..], zones);
}

#[test]
fn addresses_come_and_go_and_move() {
    const ONE: &str = "\"10.0.0.12/24\"";
    assert_eq!(
        changes(&[(ONE, "\"10.0.0.12/24\", \"10.0.0.13/24\"")]),
        ["vip 10.0.0.13/24 added to group gateway"]
    );
    assert_eq!(
        changes(&[(ONE, "\"10.0.0.13/24\"")]),
        ["vip 10.0.0.12/24 removed from group gateway", "vip 10.0.0.13/24 added to group gateway"]
    );
    assert_eq!(changes(&[("vrid = 61", "vrid = 63")]), ["vip 10.0.0.12/24 of group gateway: vrid: 61 -> 63"]);
}

#[test]
fn settings_of_all_sections_are_told() {
    for key in timeouts::keys() {
        let lines = format!("[timeouts]\n{key} = \"77s\"");
        let told = added(&lines);
        assert!(told.len() == 1 && told[0].starts_with(&format!("[timeouts] {key}: ")), "{key}: {told:?}");
        assert_ne!(good(&format!("{GOOD}\n{lines}")).hash, good(GOOD).hash, "{key}: nodes must agree on it");
    }
    assert_eq!(added("[timeouts]\nudp = \"1m\""), ["[timeouts] udp: 30s -> 1m"]);
    assert_eq!(
        added("[limits]\nnew-flows-per-second = 100\nflows-per-source = 5000"),
        ["[limits] new-flows-per-second: none -> 100", "[limits] flows-per-source: none -> 5000"]
    );
    assert_eq!(
        added("[replication]\nprotocols = [\"tcp\"]\nmin-age = \"1s\"\nstrict = true\npeer-flows = 5000"),
        [
            "[replication] protocols: all -> tcp",
            "[replication] min-age: 0ms -> 1s",
            "[replication] strict: false -> true",
            "[replication] peer-flows: none -> 5000"
        ]
    );
    let two = "interfaces = { fw1 = [\"lan\", \"lan2\"], fw2 = [\"lan\"] }\nanti-spoofing = false";
    assert_eq!(
        changes(&[("interfaces = [\"lan\"]", two)]),
        ["zone \"lan\": interfaces of fw1: lan -> lan, lan2", "zone \"lan\": anti-spoofing: true -> false"]
    );
    assert_eq!(
        changes(&[(
            "preempt = false",
            "routes = [{ to = \"10.9.0.0/16\", via = \"10.0.0.254\", zone = \"inet\" }]\n\
             rules = [{ to = \"10.1.0.0/16\", table = 7 }]"
        )]),
        [
            "route 10.9.0.0/16 via 10.0.0.254 added to group gateway",
            "routing rule to 10.1.0.0/16 table 7 priority 1000 added to group gateway"
        ]
    );
    assert_eq!(
        added("[[resource]]\nname = \"vpn\"\ngroup = \"gateway\"\nsystemd = \"vpn.service\""),
        ["!resource \"vpn\" added"]
    );
    assert_eq!(added("[[hook]]\nname = \"tell\"\ncommand = [\"/bin/true\"]"), ["hook \"tell\" added"]);
    assert_eq!(
        changes(&[("preempt = false\nadvert-interval = \"1s\"", "preempt = true\npreempt-delay = \"5s\"")]),
        ["group \"gateway\": preempt: false -> true", "group \"gateway\": preempt-delay: 0ms -> 5s"]
    );
    assert_eq!(
        changes(&[("preempt = false", "virtual-mac = true\naccept = false")]),
        ["group \"gateway\": virtual-mac: false -> true", "group \"gateway\": accept: true -> false"]
    );
    assert_eq!(
        changes(&[("preempt = false", "priority = { fw1 = 100, fw2 = 150 }")]),
        ["group \"gateway\": priority: fw1 200, fw2 190 -> fw2 150, fw1 100"]
    );
    assert_eq!(
        changes(&[(
            "preempt = false",
            "announce = { repeat = [\"2s\", \"3s\"], refresh = \"1m\", interval = \"5ms\" }"
        )]),
        [
            "group \"gateway\": announce.repeat: 100ms, 1s, 5s -> 2s, 3s",
            "group \"gateway\": announce.refresh: none -> 1m",
            "group \"gateway\": announce.interval: 0ms -> 5ms",
        ]
    );
    assert_eq!(
        changes(&[("vrid = 61", "vrid = 61, peers = [\"10.0.0.3\"]")]),
        ["vrid 61 of group gateway: peers: multicast -> 10.0.0.3"]
    );
}

#[test]
fn trackers_come_change_and_go_under_way() {
    let tracker = "[[tracker]]\nname = \"uplink\"\nping = \"10.0.0.1\"\n";
    assert_eq!(added(tracker), ["tracker \"uplink\" added"]);
    let both = |more: &str| format!("{tracker}{more}");
    let [before, now] = ["", "rise = 5"].map(|more| good(&(GOOD.to_owned() + &both(more))));
    assert_eq!(told(&before, &now), ["tracker \"uplink\" changed"]);
}

#[test]
fn witnesses_come_and_go_under_way() {
    assert_eq!(
        changes(&[("max-flows = 1_000_000", "max-flows = 1_000_000\nwitness = [\"10.0.0.254\"]")]),
        ["[cluster] witness: none -> 10.0.0.254"]
    );
}

#[test]
fn what_a_running_daemon_cannot_take_over_is_marked() {
    assert_eq!(
        changes(&[("max-flows = 1_000_000", "max-flows = 2_000_000\nlease = \"2s\"")]),
        ["![cluster] max-flows: 1000000 -> 2000000", "![cluster] lease: 1s -> 2s"]
    );
    assert_eq!(
        added("[sync]\nport = 5000\n[replication]\nenabled = false"),
        ["![sync] port: 4761 -> 5000", "![replication] enabled: true -> false"]
    );
    assert_eq!(changes(&[("172.16.0.2", "172.16.0.3")]), ["!node \"fw2\": sync"]);
    assert_eq!(
        changes(&[("nodes = [\"fw1\", \"fw2\"]", "nodes = [\"fw1\"]")]),
        ["!group \"gateway\": priority: fw1 200, fw2 190 -> fw1 200"]
    );
    assert_eq!(
        changes(&[("advert-interval = \"1s\"", "vrrp-version = 2")]),
        ["!group \"gateway\": vrrp-version, or what it sends"]
    );
    assert_eq!(
        changes(&[("interfaces = [\"lan\"]", "interfaces = [\"lan2\", \"lan\"]")]),
        [
            "!zone \"lan\": interfaces of fw1: lan -> lan2, lan",
            "zone \"lan\": interfaces of fw2: lan -> lan2, lan"
        ]
    );
    assert_eq!(
        changes(&[("interfaces = [\"lan\"]", "interfaces = [\"lan\"]\nattach = \"tc\"")]),
        ["!zone \"lan\": attach"]
    );
}

#[test]
fn a_rotated_key_is_taken_and_another_one_is_not() {
    let with = |ring: KeyRing| Config { keys: ring, ..good(GOOD) };
    let key = |n| ClusterKey::new([n; 32]);
    let (old, rotated) = (key(7).into(), KeyRing::new(key(8), Some(key(7)), Some(key(7))));
    let said = told(&with(old), &with(rotated.clone()));
    assert!(
        said.len() == 1 && said[0].starts_with("cluster key ") && said[0].ends_with("accepted too"),
        "{said:?}"
    );
    let said = told(&with(rotated), &with(key(8).into()));
    assert!(
        said.len() == 1 && said[0].starts_with("!key file /etc/fwha/cluster.key is that of another"),
        "{said:?}"
    );
}

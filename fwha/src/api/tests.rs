use fwha_common::flow::proto;

use super::*;

fn flow() -> FlowRow {
    FlowRow {
        proto: "tcp".into(),
        src: "192.168.100.100".parse().unwrap(),
        sport: 40000,
        dst: "10.0.0.128".parse().unwrap(),
        dport: 22,
        state: "established".into(),
        zone_in: "lan".into(),
        zone_out: "inet".into(),
        owner: "fw1".into(),
        origin: Origin::Local,
        age_ms: 1,
        idle_ms: 1,
        timeout_ms: 1,
        packets: [1, 1],
        bytes: [1, 1],
        rule: "lan-out".into(),
        syn_proxied: false,
    }
}

#[test]
fn a_flow_is_the_documented_line() {
    let line = r#"{"proto":"tcp","src":"192.168.100.100","sport":40000,"dst":"10.0.0.128","dport":22,"state":"established","zone_in":"lan","zone_out":"inet","owner":"fw1","origin":"local","age_ms":1,"idle_ms":1,"timeout_ms":1,"packets":[1,1],"bytes":[1,1],"rule":"lan-out"}"#;
    assert_eq!(serde_json::to_string(&flow()).unwrap(), line);
    assert_eq!(serde_json::from_str::<FlowRow>(line).unwrap(), flow());
}

#[test]
fn every_term_of_a_filter_can_match_and_can_fail() {
    for (matching, other) in [
        ("origin=local", "origin=peer"),
        ("proto=TCP", "proto=udp"),
        ("src=192.168.100.0/24", "src=192.168.100.101"),
        ("dst=10.0.0.128", "dst=fd00::/8"),
        ("sport=40000", "sport=40001"),
        ("dport=22", "dport=23"),
        ("state=established", "state=time-wait"),
        ("zone=inet", "zone=node"),
    ] {
        for (term, expected) in [(matching, true), (other, false)] {
            let mut filter = FlowFilter::default();
            filter.set(term).unwrap();
            assert_eq!(filter.matches(&flow()), expected, "{term}");
            let query = serde_urlencoded::to_string(&filter).unwrap();
            assert_eq!(serde_urlencoded::from_str::<FlowFilter>(&query).unwrap(), filter, "{query}");
        }
    }
    assert!(FlowFilter::default().matches(&flow()));
    assert_eq!(serde_urlencoded::from_str::<FlowFilter>("").unwrap(), FlowFilter::default());
}

#[test]
fn no_term_of_a_filter_replaces_another() {
    for (key, values) in [
        ("origin", ["local", "peer"]),
        ("proto", ["tcp", "tcp"]),
        ("src", ["10.0.0.1", "10.0.0.2"]),
        ("dst", ["10.0.0.0/8", "10.0.0.0/24"]),
        ("sport", ["1", "2"]),
        ("dport", ["1", "2"]),
        ("state", ["established", "time-wait"]),
        ("zone", ["lan", "inet"]),
    ] {
        let terms = values.map(|value| format!("{key}={value}"));
        let mut filter = FlowFilter::default();
        filter.set(&terms[0]).unwrap();
        assert_eq!(filter.set(&terms[1]).unwrap_err(), format!("{key:?} is given twice"));
        assert!(serde_urlencoded::from_str::<FlowFilter>(&terms.join("&")).is_err(), "nor for the daemon");
    }
}

#[test]
fn a_protocol_is_found_by_its_name_and_by_its_number() {
    let named = proto::NAMES.map(|(number, name)| (number, name.to_owned()));
    for (number, shown) in named.into_iter().chain([(0, "0".into()), (2, "2".into()), (255, "255".into())]) {
        let flow = FlowRow { proto: shown.clone(), ..flow() };
        for text in [shown.to_uppercase(), shown, number.to_string()] {
            let mut filter = FlowFilter::default();
            filter.set(&format!("proto={text}")).unwrap();
            let asked = serde_urlencoded::from_str::<FlowFilter>(&format!("proto={text}")).unwrap();
            let deletion = serde_json::from_str::<FlowFilter>(&format!(r#"{{"proto":"{text}"}}"#)).unwrap();
            for filter in [&filter, &asked, &deletion] {
                assert!(filter.matches(&flow), "{text} is {}", flow.proto);
                assert!(!filter.matches(&FlowRow { proto: "254".into(), ..flow.clone() }), "{text}");
            }
        }
    }
}

#[test]
fn a_bad_term_is_explained() {
    for (term, problem) in [
        ("dport", "\"dport\" is not a term like dport=22"),
        ("port=1", "unknown term \"port\": known are origin, proto, src"),
        ("dport=99999", "dport: \"99999\" is not a port"),
        ("src=10.0.0", "src: \"10.0.0\" is not an address or prefix"),
        ("state=new", "state is one of syn-sent, "),
        ("proto=tpc", "proto is one of icmp, tcp, udp, dccp,"),
        ("proto=256", "proto is one of icmp, tcp, udp, dccp,"),
        ("origin=me", "origin is local or peer"),
    ] {
        let found = FlowFilter::default().set(term).unwrap_err();
        assert!(found.starts_with(problem), "{found}");
    }
    assert!(serde_urlencoded::from_str::<FlowFilter>("dport=x").is_err());
    assert!(serde_urlencoded::from_str::<FlowFilter>("proto=tpc").is_err());
    assert!(serde_urlencoded::from_str::<FlowFilter>("nonsense=1").is_err());
}

#[test]
fn a_group_is_troubled_without_exactly_one_active() {
    let group = |active: Option<&str>, also: &[&str]| GroupStatus {
        name: "gateway".into(),
        active: active.map(Into::into),
        also_active: also.iter().map(|&s| s.into()).collect(),
        ..GroupStatus::default()
    };
    for (group, trouble) in [
        (group(Some("fw1"), &[]), None),
        (group(None, &[]), Some("group gateway: no node is active")),
        (group(Some("fw1"), &["fw2"]), Some("group gateway: split brain, fw1 and fw2 are active")),
        (
            group(Some("fw1"), &["fw2", "fw3"]),
            Some("group gateway: split brain, fw1 and fw2, fw3 are active"),
        ),
    ] {
        assert_eq!(group.trouble().as_deref(), trouble);
        let status = Status { groups: vec![group], ..Status::default() };
        assert_eq!(status.troubled(), trouble.is_some());
    }
}

#[test]
fn a_dropped_packet_is_the_documented_line() {
    let packet = DroppedPacket {
        at_unix_ns: 1_735_689_600_000_000_007,
        interface: "wan".into(),
        hook: "xdp".into(),
        reason: "no_rule".into(),
        length_bytes: 60,
        frame: vec![2, 0, 0xab],
    };
    let line = r#"{"at_unix_ns":1735689600000000007,"interface":"wan","hook":"xdp","reason":"no_rule","length_bytes":60,"frame":"0200ab"}"#;
    assert_eq!(serde_json::to_string(&packet).unwrap(), line);
    let read = |line: &str| serde_json::from_str::<CaptureLine>(line);
    assert_eq!(read(line).unwrap(), CaptureLine::Packet(packet));
    let missed = CaptureLine::Missed(CaptureMissed { skipped: 3, lost: 4 });
    assert_eq!(read(r#"{"skipped":3,"lost":4}"#).unwrap(), missed);
    for broken in ["0200a", "0x", "é"] {
        assert!(read(&line.replace("0200ab", broken)).is_err());
    }
}

#[test]
fn a_capture_is_asked_for_by_names_of_reasons() {
    let query =
        CaptureQuery { reasons: vec!["rule".into(), "no_rule".into()], count: Some(3), snap_len: Some(64) };
    let text = serde_urlencoded::to_string(&query).unwrap();
    assert_eq!(text, "reasons=rule%2Cno_rule&count=3&snap_len=64");
    assert_eq!(serde_urlencoded::from_str::<CaptureQuery>(&text).unwrap(), query);
    assert_eq!(serde_urlencoded::to_string(CaptureQuery::default()).unwrap(), "");
    assert_eq!(serde_urlencoded::from_str::<CaptureQuery>("").unwrap(), CaptureQuery::default());
}

#[test]
fn stats_nest() {
    let mut stats = Stats::default();
    stats.drops.insert("no_rule".into(), 3.into());
    let peers: Stat = [("fw2", [("lost", 1)].into_iter().collect::<Stat>())].into_iter().collect();
    stats.sync.insert("peers".into(), peers);
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!(json["drops"]["no_rule"], 3);
    assert_eq!(json["sync"]["peers"]["fw2"]["lost"], 1);
    assert_eq!(serde_json::from_value::<Stats>(json).unwrap(), stats);
}

//! The bytes of every record, and that no bytes do harm.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const NOW: Time = Time::from_millis(1 << 40);

fn encode(records: &[Record<'_>]) -> Vec<u8> {
    let mut w = Writer::new(vec![], usize::MAX, NOW);
    for record in records {
        assert!(w.push(record));
    }
    w.into_buf()
}

fn mapped(last: [u8; 4]) -> [u8; 16] {
    let mut a = [0; 16];
    a[10..12].fill(0xff);
    a[12..].copy_from_slice(&last);
    a
}

fn tcp_flow() -> (FlowKey, Entry) {
    let (key, originator_is_b) =
        FlowKey::new(mapped([192, 168, 100, 100]), mapped([10, 0, 0, 128]), 40000, 22, 6);
    let entry = Entry {
        created_ns: NOW.as_nanos() - 70_000 * NS_PER_MS,
        last_seen_ns: [NOW.as_nanos() - 5 * NS_PER_MS, 0],
        packets: [3, 200],
        bytes: [180, 300_000],
        version: 7 << 32 | 300,
        id: FlowId { number: 0x0102_0304_0506_0708, epoch: 0xa0b0_c0d0, node: 2, zero: [0; 3] },
        rule_hash: 0x1122_3344,
        state: FlowState::Established as u8,
        bucket: 0xbc,
        zones: [1, 2],
        originator_is_b,
        mss: 1400,
        handshake: [0x0307, 0x0308],
        delta: 0x8000_0001,
    };
    (key, entry)
}

fn samples() -> Vec<(&'static str, Record<'static>)> {
    let (key, entry) = tcp_flow();
    let mut v6_addr = [0; 16];
    (v6_addr[0], v6_addr[15]) = (0xfd, 1);
    let (v6, b6) = FlowKey::new(v6_addr, [0x20; 16], 546, 547, 17);
    let v6_entry = Entry { state: FlowState::Replied as u8, originator_is_b: b6, ..entry };
    let deletion = Deletion {
        key,
        originator_is_b: entry.originator_is_b,
        bucket: entry.bucket,
        id: entry.id,
        version: entry.version,
    };
    let listed = Listed {
        flow: deletion,
        state: FlowState::Established as u8,
        changed_ns: NOW.as_nanos() - 250 * NS_PER_MS,
    };
    let list =
        List { number: 300, bucket: 0xbc, equal: false, offset: 40, total: 42, flows: vec![listed; 2] };
    let some: Buckets = [0, 9, 255].into_iter().collect();
    let hello = Hello {
        version: VERSION,
        enabled: true,
        zones: 2,
        max_flows: 1_000_000,
        config_hash: 0x1111_2222_3333_4444,
        rules_hash: 0x5555_6666_7777_8888,
        name: "fw1".into(),
    };
    vec![
        ("sequence", Record::Sequence { seq: 1000, floor: 990 }),
        ("ack", Record::Ack { cumulative: 999, bitmap: &[0b110, 1] }),
        ("hello", Record::Hello(hello)),
        ("claims", Record::Claims(vec![(3, some), (70_000, Buckets::one(1))])),
        ("term", Record::Term(7)),
        ("flow-v4", Record::Flow(key, entry)),
        ("flow-v6", Record::Flow(v6, v6_entry)),
        ("delete", Record::Delete(deletion)),
        ("begin", Record::Begin { flows: 5000, buckets: some }),
        ("end", Record::End { bucket: 9, start: 1000, count: 17, digest: 0x0102_0304_0506_0708 }),
        ("digests", Record::Digests(vec![(0, 1), (9, u64::MAX), (255, 2)])),
        ("agreed", Record::Agreed { seq: 1000, buckets: some }),
        ("resync", Record::Resync(some)),
        ("zones", Record::Zones(vec![0x0102_0304, 5])),
        ("list-ask", Record::ListAsk(ListAsk { number: 300, bucket: 9, offset: 40, digest: None })),
        (
            "list-ask-digest",
            Record::ListAsk(ListAsk { number: 1, bucket: 9, offset: 0, digest: Some(0x0102_0304_0506_0708) }),
        ),
        ("list", Record::List(list)),
        (
            "list-equal",
            Record::List(List { number: 1, bucket: 9, equal: true, offset: 0, total: 0, flows: vec![] }),
        ),
        ("probe", Record::Probe { id: 300, answer: true }),
    ]
}

#[test]
fn every_record_has_these_bytes() {
    let mut text = String::new();
    for (name, record) in samples() {
        let hex: String = encode(&[record]).iter().map(|b| format!("{b:02x}")).collect();
        text += &format!("{name} {hex}\n");
    }
    assert_eq!(text, include_str!("../../../golden/replication.hex"), "the wire format changed");
}

#[test]
fn records_come_back_as_they_were() {
    let all: Vec<_> = samples().into_iter().map(|(_, r)| r).collect();
    let bytes = encode(&all);
    let back: Result<Vec<_>, _> = records(&bytes, NOW).collect();
    assert_eq!(back.unwrap(), all);
}

#[test]
fn a_list_takes_what_room_there_is() {
    let Some((_, Record::List(list))) = samples().into_iter().find(|(name, _)| *name == "list") else {
        panic!()
    };
    let (head, flows) = (List { flows: vec![], ..list.clone() }, vec![list.flows[0]; 10]);
    let whole = encode(&[Record::List(List { flows: flows.clone(), ..list })]).len();
    for (limit, count) in [(whole, Some(10)), (whole - 1, Some(9)), (20, None), (4, None)] {
        let mut w = Writer::new(vec![], limit, NOW);
        assert_eq!(w.push_list(&head, &flows), count, "{limit}");
        let back: Vec<_> = records(w.payload(), NOW).map(Result::unwrap).collect();
        match count {
            None => assert!(back.is_empty()),
            Some(n) => assert_eq!(back, [Record::List(List { flows: flows[..n].to_vec(), ..head.clone() })]),
        }
    }
    let mut w = Writer::new(vec![], 20, NOW);
    assert_eq!(w.push_list(&head, &[]), Some(0));
}

#[test]
fn what_a_newer_peer_adds_is_skipped() {
    let mut bytes = encode(&[Record::Term(7), Record::Unknown(200), Record::Term(8)]);
    bytes.extend_from_slice(&[5, 3, 0, 9, 0xde, 0xad]);
    let back: Result<Vec<_>, _> = records(&bytes, NOW).collect();
    assert_eq!(back.unwrap(), [Record::Term(7), Record::Unknown(200), Record::Term(8), Record::Term(9)]);
}

#[test]
fn a_flow_of_a_peer_without_a_syn_proxy_has_none() {
    let (key, entry) = tcp_flow();
    let mut bytes = encode(&[Record::Flow(key, entry)]);
    let delta = 5;
    bytes.truncate(bytes.len() - delta);
    bytes[1] -= delta as u8;
    let back: Vec<_> = records(&bytes, NOW).collect();
    assert_eq!(back, [Ok(Record::Flow(key, Entry { delta: 0, ..entry }))]);
}

#[test]
fn a_bad_record_does_not_take_its_neighbours_along() {
    let (key, entry) = tcp_flow();
    let bad = encode(&[Record::Flow(key, Entry { state: 18, ..entry })]);
    let bytes = [encode(&[Record::Term(1)]), bad, encode(&[Record::Term(2)])].concat();
    let back: Vec<_> = records(&bytes, NOW).collect();
    assert_eq!(back, [Ok(Record::Term(1)), Err(Malformed), Ok(Record::Term(2))]);
    for entry in [
        Entry { state: 0, ..entry },
        Entry { id: FlowId { node: 0, ..entry.id }, ..entry },
        Entry { id: FlowId { node: 17, ..entry.id }, ..entry },
    ] {
        let bytes = encode(&[Record::Flow(key, entry)]);
        assert_eq!(records(&bytes, NOW).collect::<Vec<_>>(), [Err(Malformed)]);
    }
    for name in [&b"fw\x1b[2J"[..], "f\u{fc}".as_bytes(), b"a b"] {
        assert!(self::name(name).is_err());
    }
}

#[test]
fn an_age_beyond_this_nodes_uptime_is_the_origin_of_its_clock() {
    let (key, entry) = tcp_flow();
    let bytes = encode(&[Record::Flow(key, entry)]);
    let back = records(&bytes, Time::from_millis(1)).next().unwrap().unwrap();
    let Record::Flow(_, young) = back else { panic!("not a flow") };
    assert_eq!((young.created_ns, young.last_seen_ns), (0, [1, 0]), "0 would mean never seen");
}

#[test]
fn what_does_not_fit_leaves_no_trace() {
    let mut w = Writer::new(vec![], 20, NOW);
    assert!(w.push(&Record::Term(1)));
    let (key, entry) = tcp_flow();
    assert!(!w.push_flow(&key, &entry));
    assert_eq!((w.len(), w.room()), (4, 16));
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in vec(any::<u8>(), 0..200), now in any::<u64>()) {
        for record in records(&bytes, Time::from_nanos(now)) {
            let _ = record;
        }
    }

    #[test]
    fn no_body_makes_the_decoder_panic(kind in 0..14u8, body in vec(any::<u8>(), 0..120), now in any::<u64>()) {
        let _ = decode(kind, &body, Time::from_nanos(now));
    }

    #[test]
    fn a_flow_comes_back_as_it_was(
        (src, dst, ports, proto) in (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u16; 2]>(), any::<u8>()),
        v4 in any::<bool>(),
        (age, idle) in (0..1u64 << 39, any::<[Option<u32>; 2]>()),
        (packets, bytes) in (any::<[u64; 2]>(), any::<[u64; 2]>()),
        (mss, handshake, delta) in (any::<u16>(), any::<[u32; 2]>(), any::<u32>()),
        (number, epoch, node) in (any::<u64>(), any::<u32>(), 1..=16u8),
        (version, rule_hash, state, bucket, zones) in (any::<u64>(), any::<u32>(), 1..18u8, any::<u8>(), any::<[u8; 2]>()),
    ) {
        let family = |a: [u8; 16]| if v4 { mapped([a[0], a[1], a[2], a[3]]) } else { a };
        let (key, originator_is_b) = FlowKey::new(family(src), family(dst), ports[0], ports[1], proto);
        let entry = Entry {
            created_ns: NOW.as_nanos() - age * NS_PER_MS,
            last_seen_ns: idle.map(|i| i.map_or(0, |ms| NOW.as_nanos() - u64::from(ms) * NS_PER_MS)),
            packets,
            bytes,
            version,
            id: FlowId { number, epoch, node, zero: [0; 3] },
            rule_hash,
            state,
            bucket,
            zones,
            originator_is_b,
            mss,
            handshake,
            delta,
        };
        let bytes = encode(&[Record::Flow(key, entry)]);
        prop_assert_eq!(records(&bytes, NOW).next(), Some(Ok(Record::Flow(key, entry))));
    }
}

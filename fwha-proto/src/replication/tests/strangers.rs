//! Those who are not of the cluster, and peers that say what they like.

use super::*;

#[test]
fn strangers_are_refused_counted_and_named() {
    let mut rig = Rig::new(2, 1, |o| {
        if o.identity.node == 2 {
            o.keys = ClusterKey::new([8; 32]).into();
        }
    });
    rig.run(500 * MS);
    assert!(counters(&rig, 1).other_key > 3);
    let status = rig.nodes[0].replication.status(rig.now).next().unwrap();
    assert_eq!(status.state, SyncState::Down);
    assert!(status.refused.unwrap().to_string().starts_with("sealed with another cluster key"));
    let now = rig.now;
    rig.node(1).replication.datagram(now, 0, &mut [0; 100]);
    assert_eq!(rig.nodes[0].replication.counters().garbage, 1);
}

#[test]
fn what_does_not_fit_together_is_warned_about() {
    let mut rig = Rig::new(2, 1, |o| {
        if o.identity.node == 2 {
            o.config_hash = 5;
            o.rules_hash = 5;
            o.name = "fw7".into();
        }
    });
    rig.run(500 * MS);
    let warnings = rig.nodes[0].replication.status(rig.now).next().unwrap().warnings.to_vec();
    let name = Warning::NameDiffers { expected: "fw2".into(), theirs: "fw7".into() };
    assert_eq!(warnings, [Warning::ConfigDiffers, Warning::RulesDiffer, name]);
    let told = rig.node(1).events.iter().filter(|e| matches!(e, Event::Warning { .. })).count();
    assert_eq!(told, 3, "each once");
}

/// A peer that has the key and says what it likes.
fn babble(payloads: &[Vec<u8>]) {
    let mut rig = settled(|_| {});
    (0..20).for_each(|n| rig.create(1, n));
    rig.run(300 * MS);
    let now = rig.now;
    let identity = Identity { cluster: cluster_id("edge"), node: 2, epoch: 99 };
    let mut evil = Channel::new(ClusterKey::new([7; 32]), Purpose::Replication, identity, 1);
    let target = &mut rig.node(1).replication;
    let mut to_target = vec![evil.hello()];
    for _ in 0..4 {
        for mut d in to_target.drain(..) {
            target.datagram(now, 0, &mut d);
        }
        while let Some(output) = target.poll() {
            if let Output::Transmit { mut datagram, .. } = output
                && let Ok(Opened::Hello { reply: true, .. }) = evil.open(&mut datagram)
            {
                to_target.push(evil.hello());
            }
        }
    }
    assert!(evil.is_open());
    for payload in payloads {
        target.datagram(now, 0, &mut evil.seal(payload).unwrap());
        target.tick(now);
        while target.poll().is_some() {}
    }
    assert!(target.len() <= 1000);
    assert_eq!((0..=255).map(|b| target.flows(b).count()).sum::<usize>(), target.len());
}

fn record() -> impl Strategy<Value = Vec<u8>> {
    let body = prop_oneof![
        3 => prop::collection::vec(any::<u8>(), 0..80),
        1 => prop::collection::vec(0..4u8, 0..80),
    ];
    (0..17u8, body).prop_map(|(kind, body)| {
        let mut record = vec![kind];
        record.extend_from_slice(&(body.len() as u16).to_le_bytes());
        record.extend_from_slice(&body);
        record
    })
}

fn numbered(seq: u64, floor: u64, records: &[Vec<u8>]) -> Vec<u8> {
    let mut w = Writer::new(vec![], usize::MAX, Time::ZERO);
    w.push(&Record::Sequence { seq, floor });
    w.push(&Record::Term(7));
    let mut payload = w.into_buf();
    records.iter().for_each(|r| payload.extend_from_slice(r));
    payload
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_payload_of_a_peer_breaks_a_node(
        raw in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..100), 0..4),
        records in prop::collection::vec((1..2000u64, 0..2000u64, prop::collection::vec(record(), 0..8)), 1..24),
    ) {
        let numbered = records.iter().map(|(seq, back, r)| numbered(*seq, seq.saturating_sub(*back).max(1), r));
        babble(&raw.iter().cloned().chain(numbered).collect::<Vec<_>>());
    }
}

#[test]
fn a_flood_of_hellos_is_not_answered_one_by_one() {
    let mut rig = settled(|_| {});
    let options = &rig.node(1).replication.core.options;
    let mut asking = Channel::new(options.keys.clone(), Purpose::Replication, options.identity, 2);
    let hello = asking.hello();
    let sent = rig.carried.0;
    for _ in 0..1_000 {
        let now = rig.now;
        rig.node(2).replication.datagram(now, 0, &mut hello.clone());
        rig.drain(2);
    }
    assert!((1..=8).contains(&(rig.carried.0 - sent)), "{}", rig.carried.0 - sent);
    rig.converge(HEALED_WITHIN);
}

//! The thread on a data plane of its own.

use std::net::Ipv4Addr;
use std::path::Path;

use fwha_common::flow::FlowState;
use fwha_proto::seal::{ClusterKey, Identity};
use socket2::{Domain, Socket, Type};

use super::*;
use crate::config::{Config, Source};
use crate::daemon::{mailbox::mailbox, replication_options};
use crate::dataplane::Dataplane;
use crate::sys::bpf::Write;
use crate::testing::{Net, await_readable, options, root};

const CONFIG: &str = r#"
    [cluster]
    name = "test"
    key-file = "cluster.key"
    [replication]
    protocols = ["tcp"]
    [[node]]
    name = "fw1"
    sync = [{ interface = "near", address = "10.9.0.1" }]
    [[node]]
    name = "fw2"
    sync = [{ interface = "near", address = "10.9.0.2" }]
    [[zone]]
    name = "lan"
    interfaces = ["lan"]
    [[group]]
    name = "gateway"
    nodes = ["fw1", "fw2"]
    vips = [{ zone = "lan", vrid = 61, addresses = ["10.9.1.12/24"] }]
    "#;

fn socket() -> SyncSocket {
    SyncSocket::open("near", SocketAddrV4::new(Ipv4Addr::new(10, 9, 0, 1), 0)).unwrap()
}

/// The thread of fw1, with the ends of its mailboxes, on a data plane and a cable to a namespace that may be fw2's.
fn with_thread(test: impl FnOnce(Thread, Mailbox<Command>, &Letters<election::Command>, &Net) + Send) {
    if !root() {
        return;
    }
    let (here, there) = Net::pair();
    here.with_bpffs(|| {
        let key = |_: &Path| Ok(ClusterKey::new([7; 32]).into());
        let config = Config::parse(Source::new("fwha.toml", CONFIG), key).unwrap();
        let identity = Identity { cluster: config.cluster.id, node: 1, epoch: 1 };
        let node = &config.nodes[0];
        let (dataplane, flow_events) = Dataplane::open(options(64)).unwrap();
        let (letter, letters) = mailbox().unwrap();
        let (election, told) = mailbox().unwrap();
        let options = replication_options(&config, node, identity, &config.keys, 1500);
        let thread = Thread {
            replication: Replication::new(options),
            sockets: vec![socket()],
            peers: BTreeMap::new(),
            flow_events,
            letters,
            election,
            maps: dataplane.maps(),
            bucket_group: config.bucket_groups(),
            owned: Arc::default(),
            clock: KernelClock::new().unwrap(),
            events: Arc::default(),
            names: Arc::new(Names::new(&config, 1)),
            snapshot: Arc::default(),
            unsent: 0,
            refused: Refused::default(),
            adopted: true,
            resumed: BTreeMap::new(),
            finished: BTreeMap::new(),
            diffs: BTreeMap::new(),
        };
        test(thread, letter, &told, &there);
        dataplane.close().unwrap();
    });
}

#[test]
fn what_a_daemon_resumes_is_its_own_before_anything_of_it_is_read() {
    with_thread(|mut thread, letter, told, _| {
        let term = 3;
        let keys = [6, 17].map(|proto| FlowKey { port_a: 1, proto, ..FlowKey::default() });
        for (number, key) in (1..).zip(&keys) {
            let flow = Flow {
                word: Flow::word(FlowState::Established, 0, [1, 1]),
                version: Flow::next_version(0, term),
                ..Flow::of(FlowId { number, epoch: 1, node: 1, zero: [0; 3] })
            };
            thread.maps.flows().update(key, &flow, Write::Any).unwrap();
        }
        thread.resumed = BTreeMap::from([(0, term)]);
        let (maps, snapshot) = (Arc::clone(&thread.maps), Arc::clone(&thread.snapshot));
        // The election has not said anything yet.
        let running = std::thread::spawn(move || thread.run());
        let counted = |name| snapshot.load().counters.iter().find(|c| c.0 == name).map_or(0, |c| c.1);
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while (counted("events"), counted("not_chosen")) != (1, 1) && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        letter.send(Command::Stop);
        running.join().unwrap();
        let left = keys.map(|key| maps.flows().lookup(&key).unwrap().is_some());
        assert_eq!(left, [true; 2], "also the one that peers never hear of");
        assert_eq!((snapshot.load().flows, snapshot.load().at_risk), (1, 1), "it is owned");
        while let Some(told) = told.take() {
            assert!(!matches!(told, election::Command::PastTerm { .. }), "the term is this node's own");
        }
    });
}

#[test]
fn what_a_socket_has_refused_stays_counted_when_another_takes_its_place() {
    with_thread(|mut thread, _, _, there| {
        let to = thread.sockets[0].local();
        there.within(|| {
            let routed = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            routed.set_ttl_v4(254).unwrap();
            routed.send_to(b"forged", &to.into()).unwrap();
        });
        await_readable(&thread.sockets[0]);
        assert!(thread.read_sockets() == Taken::None);
        let refused = Refused { ttl: 1, length: 0 };
        assert_eq!(thread.refused(), refused);
        thread.reopen(0, socket());
        assert_eq!(thread.refused(), refused);
    });
}

#[test]
fn walks_leave_as_much_time_as_they_take() {
    let [began, soon, late] = [10_000, 10_200, 14_000].map(Time::from_millis);
    assert_eq!(next_comparison(began, soon), Time::from_millis(11_200), "not 1 s after it began");
    assert_eq!(next_comparison(began, late), Time::from_millis(18_000));
}

#[test]
fn a_ring_that_fills_as_fast_as_it_is_read_ends() {
    let (mut taken, mut left) = (0, 3);
    take_ring(|| {
        taken += EVENT_BURST;
        Taken::Burst
    });
    assert!((RING_EVENTS..RING_EVENTS + EVENT_BURST).contains(&taken), "{taken}");
    take_ring(|| {
        left -= 1;
        if left == 0 { Taken::Some } else { Taken::Burst }
    });
    assert_eq!(left, 0, "and what it holds is read");
}

//! The shell around the protocols, where it can be tried without a second node.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use futures_util::FutureExt as _;
use fwha_common::flow::NextHop;
use fwha_proto::seal::ClusterKey;
use tokio::sync::mpsc::error::TryRecvError;

use super::*;
use crate::config::Source;
use crate::netlink::{Link, NetworkEvent, links::links};
use crate::testing::{Net, root, running};

const CONFIG: &str = r#"
[cluster]
name = "test"
key-file = "cluster.key"
max-flows = 1000

[[node]]
name = "fw1"
sync = [{ interface = "sync", address = "172.16.0.1" }]
[[node]]
name = "fw2"
sync = [{ interface = "sync", address = "172.16.0.2" }]

[[zone]]
name = "lan"
interfaces = ["near"]

[[group]]
name = "gateway"
nodes = ["fw1", "fw2"]
vips = [{ zone = "lan", vrid = 61, addresses = ["10.9.0.12/24"] }]
"#;

fn config() -> (Arc<Config>, Node) {
    let key = |_: &Path| Ok(ClusterKey::new([7; 32]).into());
    let config = Config::parse(Source::new("fwha.toml", CONFIG), key).unwrap_or_else(|e| panic!("{e}"));
    let node = config.nodes[0].clone();
    (Arc::new(config), node)
}

/// A node's namespace: `near` is its zone, `sync` its sync link.
fn node() -> (Net, Net) {
    let (a, b) = Net::pair();
    a.cable("sync", "sync", &b);
    a.ip("address add 172.16.0.1/24 dev sync");
    (a, b)
}

fn within<T: Send>(net: &Net, test: impl AsyncFnOnce(Dataplane) -> T + Send) -> T {
    net.with_bpffs(|| {
        let (config, node) = config();
        let (dataplane, _events) =
            Dataplane::open(dataplane_options(&config, &node, &links().unwrap())).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(dataplane))
    })
}

fn link(name: &str) -> Link {
    links().unwrap().into_iter().find(|l| l.name == name).unwrap()
}

#[test]
fn a_sync_link_may_lack_its_address_or_its_interface() {
    if !root() {
        return;
    }
    let (a, _b) = node();
    let (config, node) = config();
    let look = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        a.within(|| {
            let mut ports = runtime.block_on(ports::look(&config, &node, &links().unwrap())).unwrap();
            let sockets = ports::sync_sockets(&config, &node, &mut ports).unwrap().remove(0);
            (ports.swap_remove(0), sockets)
        })
    };
    let (port, sockets) = look();
    assert!(!port.gone && !sockets.heartbeats.local().ip().is_unspecified());
    drop(sockets);

    a.ip("address del 172.16.0.1/24 dev sync");
    let (port, sockets) = look();
    let problem = port.problem.as_deref().unwrap();
    assert!(problem.contains("interface sync does not have"), "{problem}");
    assert!(problem.contains("ip address add 172.16.0.1/24 dev sync"), "{problem}");
    assert!(port.gone && !port.carries());
    for absent in [sockets.heartbeats, sockets.replication] {
        let peer = std::net::SocketAddrV4::new([172, 16, 0, 2].into(), 4761);
        let unreachable = std::io::ErrorKind::NetworkUnreachable;
        assert_eq!(absent.send(peer, b"a heartbeat").unwrap_err().kind(), unreachable);
        assert_eq!(absent.receive(&mut [0; 64]).unwrap(), crate::socket::Received::Nothing);
    }

    a.ip("link del sync");
    let (port, _) = look();
    assert!(port.gone && port.link.is_none() && !port.interface().carrier);
    within(&a, async |dataplane| {
        let problems = Attached::of(&dataplane, &[port], 1500).problems;
        assert_eq!(problems, ["there is no interface sync; see `ip link`"]);
        dataplane.close().unwrap();
    });
}

#[test]
fn replication_fits_the_narrowest_sync_link() {
    if !root() {
        return;
    }
    let (a, _b) = node();
    let mtu = |mtu: u32| {
        a.ip(&format!("link set sync mtu {mtu}"));
        let (config, node) = config();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        a.within(|| runtime.block_on(ports::look(&config, &node, &links().unwrap())))
            .map(|ports| ports::sync_mtu(&ports))
            .map_err(|e| e.to_string())
    };
    assert_eq!((mtu(9000), mtu(1500), mtu(1400)), (Ok(1500), Ok(1500), Ok(1400)));
    assert!(mtu(1279).unwrap_err().contains("sync interface sync has an MTU of 1279"));
}

#[test]
fn an_interface_that_is_replaced_gets_new_sockets() {
    if !root() {
        return;
    }
    let (a, b) = node();
    within(&a, async |mut dataplane| {
        let (config, node) = config();
        let ports = ports::look(&config, &node, &links().unwrap()).await.unwrap();
        let (election, told) = mailbox::mailbox().unwrap();
        let (replication, replicates) = mailbox::mailbox().unwrap();
        let (vips, mut moves) = mpsc::unbounded_channel();
        let attached = Arc::default();
        let mut network = Network {
            config,
            node,
            ports,
            mtu: 1500,
            election,
            replication,
            vips,
            macs: Vec::new(),
            attached,
            retry: None,
        };
        let before = (running("near"), running("sync"));

        // A change that leaves the interface what it is opens nothing.
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(before.0.clone())]).await;
        let Some(election::Command::Interface(Via::Zone(1), now)) = told.take() else { panic!() };
        assert!(now.carrier && now.address.octets() == [10, 9, 0, 1]);
        assert!(told.take().is_none());

        // What is lost is told before the kernel is asked for anything, whatever else has changed before.
        let down = Link { up: false, carrier: false, ..before.0.clone() };
        let events = [before.1.clone(), down].map(NetworkEvent::LinkChanged).to_vec();
        let asking = network.handle(&mut dataplane, events).now_or_never();
        assert!(asking.is_none());
        let Some(election::Command::Interface(Via::Zone(1), lost)) = told.take() else { panic!() };
        assert!(!lost.carrier);

        a.ip("link del near");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkRemoved(before.0.clone())]).await;
        let Some(election::Command::Interface(Via::Zone(1), gone)) = told.take() else { panic!() };
        assert!(!gone.carrier);

        a.cable("near", "far", &b);
        a.ip("address add 10.9.0.7/24 dev near");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(running("near"))]).await;
        let Some(election::Command::Interface(Via::Zone(1), now)) = told.take() else { panic!() };
        assert!(now.carrier && now.address.octets() == [10, 9, 0, 7]);
        assert!(matches!(told.take(), Some(election::Command::Opened(Via::Zone(1), Some(_)))));
        assert!(matches!(told.take(), Some(election::Command::Vrrp(1, _))));
        let Ok(vips::Command::Replaced { before: old, now, .. }) = moves.try_recv() else { panic!() };
        assert_eq!((old, now), (before.0.index, link("near").index));
        assert_eq!(
            network.attached.load().interfaces.iter().find(|i| i.name == "near").unwrap().ifindex,
            now
        );

        // It goes away and comes back as what it was.
        let same = link("near");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkRemoved(same.clone())]).await;
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(same)]).await;
        let heard: Vec<_> = std::iter::from_fn(|| told.take()).collect();
        assert!(heard.iter().any(|c| matches!(c, election::Command::Vrrp(1, _))), "dead without an error");
        let replaced = moves.try_recv();
        assert!(matches!(replaced, Ok(vips::Command::Replaced { before, now, .. }) if before == now));

        // One that takes no programs is as good as none until it does.
        assert_eq!((&network.attached.load().problems, network.retry), (&vec![], None));
        let index = NextHop::IFINDEX_LIMIT;
        let link_at = |index| Link { index, ..before.0.clone() };
        a.ip("link del near");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkRemoved(link_at(now))]).await;
        a.ip(&format!("link add near index {index} type veth peer name unused"));
        a.ip("link set unused up");
        a.ip("link set near up");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(running("near"))]).await;
        let carriers = std::iter::from_fn(|| told.take()).filter_map(|command| match command {
            election::Command::Interface(Via::Zone(1), now) => Some(now.carrier),
            _ => None,
        });
        assert_eq!(carriers.collect::<Vec<_>>(), [false, false]);
        assert!(network.attached.load().problems[0].contains("index"));
        assert!(network.retry.is_some());
        a.ip("link del near");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkRemoved(link_at(index))]).await;
        assert_eq!(network.retry, None, "one that is not there tells when it comes");
        a.cable("near", "far", &b);
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(running("near"))]).await;
        let Some(election::Command::Interface(Via::Zone(1), now)) = std::iter::from_fn(|| told.take())
            .find(|c| matches!(c, election::Command::Interface(_, i) if i.carrier))
        else {
            panic!()
        };
        assert!(now.carrier && network.attached.load().problems.is_empty());
        while told.take().is_some() || moves.try_recv().is_ok() {}

        // A sync link waits for its address.
        a.ip("link del sync");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkRemoved(before.1)]).await;
        a.cable("sync", "sync", &b);
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(link("sync"))]).await;
        // Carriers come and go as the kernel finds the time.
        let opened = || {
            std::iter::from_fn(|| replicates.take())
                .find(|c| !matches!(c, replication::Command::Carrier(0, _)))
        };
        assert!(opened().is_none());
        a.ip("address add 172.16.0.1/24 dev sync");
        let ifindex = link("sync").index;
        let address = crate::netlink::Address { ifindex, address: [172, 16, 0, 1].into(), prefix_len: 24 };
        network.handle(&mut dataplane, vec![NetworkEvent::AddressAdded(address)]).await;
        assert!(matches!(opened(), Some(replication::Command::Opened(0, _))));
        let all = || std::iter::from_fn(|| told.take()).collect::<Vec<_>>();
        assert!(all().iter().any(|c| matches!(c, election::Command::Heartbeats(0, _))));
        assert!(matches!(moves.try_recv(), Err(TryRecvError::Empty)));

        // With another MAC probes come from that; the sockets of the address stay.
        a.ip("link set sync address 02:00:00:00:00:99");
        network.handle(&mut dataplane, vec![NetworkEvent::LinkChanged(link("sync"))]).await;
        let heard = all();
        let probes = |c: &election::Command| matches!(c, election::Command::Opened(Via::Sync(0), Some(_)));
        assert!(heard.iter().any(probes));
        assert!(!heard.iter().any(|c| matches!(c, election::Command::Heartbeats(..))) && opened().is_none());
        let port = network.ports.iter().find(|port| port.name == "sync").unwrap();
        assert_eq!(Some(port.opened), port.identity());

        // Many addresses that go at once are looked at once.
        let gone = (1..=9).map(|n| crate::netlink::Address { address: [172, 16, 1, n].into(), ..address });
        network.handle(&mut dataplane, gone.map(NetworkEvent::AddressRemoved).collect()).await;
        assert!(matches!(moves.try_recv(), Ok(vips::Command::Check)));
        assert!(matches!(moves.try_recv(), Err(TryRecvError::Empty)));
        dataplane.close().unwrap();
    });
}

#[test]
fn what_an_earlier_run_owned_is_resumed_or_given_up() {
    if !root() {
        return;
    }
    let (a, b) = node();
    within(&a, async |dataplane| {
        let (config, node) = config();
        let maps = dataplane.maps();
        let now = Time::from_nanos(KernelClock::new().unwrap().now_ns());
        let identity = Identity { cluster: config.cluster.id, node: node.id, epoch: 9 };
        let (since_ns, last_moment) = (now.as_nanos() - 1000, now + Duration::from_millis(1));
        let owned = Group { lease_until_ns: last_moment.as_nanos(), since_ns, role: Group::ACTIVE, term: 7 };
        let start = async |now: Time| {
            let ports = ports::look(&config, &node, &links().unwrap()).await.unwrap();
            let election = election_config(&config, &ports, identity, &config.keys, &maps, now).unwrap();
            let machine = Election::new(now, election).unwrap();
            let resumed = settle_ownership(&config, &maps, &machine, now).unwrap();
            (resumed, maps.group(0).unwrap())
        };
        let given_up = (BTreeMap::new(), Group { term: 7, ..Group::default() });

        maps.write_group(0, &owned).unwrap();
        let whole = Group { lease_until_ns: (now + config.cluster.lease).as_nanos(), ..owned };
        assert_eq!(
            start(now).await,
            (BTreeMap::from([(0, 7)]), whole),
            "the rest of the start takes its time"
        );

        maps.write_group(0, &owned).unwrap();
        assert_eq!(start(last_moment).await, given_up, "the lease is over, a peer may be active");

        maps.write_group(0, &owned).unwrap();
        b.ip("link set far down");
        assert_eq!(start(now).await, given_up, "the node is in fault");
        drop(maps);
        dataplane.close().unwrap();
    });
}

#[test]
fn a_second_daemon_for_a_node_is_refused() {
    if !root() {
        return;
    }
    let (a, _b) = node();
    within(&a, async |dataplane| {
        let (config, node) = config();
        let refusal =
            Dataplane::open(dataplane_options(&config, &node, &links().unwrap())).unwrap_err().to_string();
        assert!(refusal.contains("another fwha daemon runs this node"), "{refusal}");
        drop(dataplane);
        let (dataplane, _) = Dataplane::open(dataplane_options(&config, &node, &links().unwrap())).unwrap();
        assert!(dataplane.adopted());
        dataplane.close().unwrap();
    });
}

#[test]
fn a_worker_that_panics_takes_the_process_with_it() {
    const CHILD: &str = "FWHA_TEST_PANIC";
    let panic_as = |name: &str| {
        let thread = std::thread::Builder::new().name(name.into()).spawn(|| panic!("on purpose"));
        thread.unwrap().join()
    };
    if std::env::var_os(CHILD).is_some() {
        abort_with_workers();
        assert!(panic_as("a request").is_err());
        println!("still here");
        let _ = panic_as("fwha-test");
        std::process::exit(0);
    }
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "daemon::tests::a_worker_that_panics_takes_the_process_with_it", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    assert_eq!(child.status.signal(), Some(libc::SIGABRT));
    assert!(String::from_utf8_lossy(&child.stdout).contains("still here"));
}

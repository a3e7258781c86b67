//! Addresses, announcements and changes, in namespaces of their own.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use fwha_common::route::{MAX_PREFIXES, PlainRoutes, Prefix};
use tokio::time::timeout;

use super::{
    Address, Addresses, Garp, Link, Monitor, NetworkEvent, ipsec, links::links, neighbours,
    plain::plain_routes, use_stale,
};
use crate::{
    sys::socket::{packet_socket, receive},
    testing::{Net, await_readable, root},
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A lifetime that has no end.
const FOREVER: Duration = Duration::MAX;

fn vip(ifindex: u32, n: u32) -> Address {
    Address { ifindex, address: Ipv4Addr::from(0x0a09_0100 + n).into(), prefix_len: 16 }
}

#[test]
fn vips_are_added_recognised_and_removed() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let ifindex = a.ifindex("near");
    a.within(|| {
        // As the data plane sets it. The VIPs have a subnet of their own here.
        std::fs::write("/proc/sys/net/ipv4/conf/near/promote_secondaries", "1").unwrap();
        block_on(async {
            let addresses = Addresses::new().unwrap();
            let vips: Vec<Address> = (0..300).map(|n| vip(ifindex, n)).collect();

            addresses.add(&vips, FOREVER).await.unwrap();
            addresses.add(&vips[..10], FOREVER).await.unwrap();
            let mut listed = addresses.list(&[ifindex]).await.unwrap();
            listed.sort();
            assert_eq!(listed, vips, "the node's own address is not among them");
            assert_eq!(addresses.list(&[ifindex + 1]).await.unwrap(), []);
            assert_eq!(addresses.own(ifindex).await.unwrap().primary, Ipv4Addr::new(10, 9, 0, 1));

            addresses.remove(&vips[..100]).await.unwrap();
            addresses.remove(&vips[..101]).await.unwrap();
            assert_eq!(addresses.list(&[ifindex]).await.unwrap().len(), 199);

            let mut gone = addresses.remove_leftovers(&[ifindex], &vips[150..152]).await.unwrap();
            gone.sort();
            assert_eq!(gone, [&vips[101..150], &vips[152..]].concat());
            assert_eq!(addresses.list(&[ifindex]).await.unwrap(), vips[150..152]);
            assert_eq!(addresses.own(ifindex).await.unwrap().primary, Ipv4Addr::new(10, 9, 0, 1));

            let nowhere = vip(ifindex + 1000, 1);
            let error = addresses.add(&[nowhere], FOREVER).await.unwrap_err().to_string();
            assert!(error.contains("10.9.1.1/16"), "{error}");
            addresses.remove(&[nowhere]).await.unwrap();
        });
    });
}

#[test]
fn an_address_that_is_there_already_is_taken_over() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let ifindex = a.ifindex("near");
    a.ip("address add 10.9.1.1/16 dev near");
    a.within(|| {
        block_on(async {
            let addresses = Addresses::new().unwrap();
            addresses.add(&[vip(ifindex, 1)], FOREVER).await.unwrap();
            assert_eq!(addresses.list(&[ifindex]).await.unwrap(), [vip(ifindex, 1)]);
        });
    });
}

#[test]
fn a_vip_that_nobody_renews_goes_by_itself() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let ifindex = a.ifindex("near");
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            let addresses = Addresses::new().unwrap();
            let (renewed, left) = (vip(ifindex, 1), vip(ifindex, 2));
            addresses.add(&[renewed, left], Duration::from_secs(1)).await.unwrap();
            addresses.add(&[renewed], FOREVER).await.unwrap();
            until(&mut monitor, |e| *e == NetworkEvent::AddressRemoved(left)).await;
            assert_eq!(addresses.list(&[ifindex]).await.unwrap(), [renewed]);
        });
    });
}

fn vip6(ifindex: u32, n: u16) -> Address {
    Address { ifindex, address: Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 1, n).into(), prefix_len: 64 }
}

#[test]
fn vips_of_ipv6_are_usable_at_once_go_by_themselves_and_leave_the_route_alone() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let ifindex = a.ifindex("near");
    a.ip("address add fd00::1/64 dev near nodad");
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            let addresses = Addresses::new().unwrap();
            let (renewed, left) = (vip6(ifindex, 1), vip6(ifindex, 2));
            let link_local = Address {
                ifindex,
                address: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 12).into(),
                prefix_len: 64,
            };
            addresses.add(&[link_local, renewed, left], Duration::from_secs(1)).await.unwrap();
            // Not tentative, or it could not be bound to.
            let IpAddr::V6(address) = renewed.address else { unreachable!() };
            std::net::UdpSocket::bind((address, 0)).unwrap();
            // The node itself speaks from its own address.
            let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
            socket.connect("[fd00::2]:9").unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), "fd00::1".parse::<IpAddr>().unwrap());
            assert_ne!(
                addresses.own(ifindex).await.unwrap().link_local,
                "fe80::c".parse::<Ipv6Addr>().unwrap()
            );

            addresses.add(&[link_local, renewed], FOREVER).await.unwrap();
            until(&mut monitor, |e| *e == NetworkEvent::AddressRemoved(left)).await;
            let mut listed = addresses.list(&[ifindex]).await.unwrap();
            listed.sort();
            assert_eq!(listed, [renewed, link_local]);
            addresses.remove(&[link_local, renewed, left]).await.unwrap();
            assert_eq!(addresses.list(&[ifindex]).await.unwrap(), []);
            // A lifetime of the route would show here.
            assert_eq!(
                a.ip("-6 route show fd00::/64").trim(),
                "fd00::/64 dev near proto kernel metric 256 pref medium"
            );
        });
    });
}

#[test]
fn a_link_local_address_is_spoken_from_when_it_is_known_to_be_the_only_one() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let ifindex = a.ifindex("near");
    a.within(|| {
        block_on(async {
            a.ip("address flush dev near scope link");
            let addresses = Addresses::new().unwrap();
            assert_eq!(addresses.own(ifindex).await.unwrap().link_local, Ipv6Addr::UNSPECIFIED);
            let (mut monitor, _) = Follower::start().await;
            a.ip("address add fe80::77/64 dev near");
            // The kernel tells of it at once, and again when duplicate address detection has ended.
            let wanted = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x77);
            let added = |e: &NetworkEvent| matches!(e, NetworkEvent::AddressAdded(a) if a.address == wanted);
            until(&mut monitor, added).await;
            assert_eq!(addresses.own(ifindex).await.unwrap().link_local, Ipv6Addr::UNSPECIFIED);
            until(&mut monitor, added).await;
            assert_eq!(addresses.own(ifindex).await.unwrap().link_local, wanted);
        });
    });
}

#[test]
fn routes_and_rules_of_ipv6_are_followed() {
    if !root() {
        return;
    }
    for change in ["route add fd00:1::/64 dev near", "rule add from fd00:2::1 table 7"] {
        let (a, _b) = Net::pair();
        a.within(|| {
            block_on(async {
                let (mut monitor, _) = Follower::start().await;
                a.ip(&format!("-6 {change}"));
                until(&mut monitor, |e| *e == NetworkEvent::RouteChanged).await;
            });
        });
    }
}

/// What a neighbour's kernel learns of the announcement of a VIP that it has at another MAC.
#[test]
fn an_unsolicited_advertisement_corrects_the_peers_neighbour_entry() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    let (ia, mac) = (a.ifindex("near"), a.mac("near"));
    b.ip("neighbour add fd00::1:1 lladdr 02:00:00:00:00:77 nud reachable dev far");
    b.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            let garp = a.within(|| Garp::open(ia, mac).unwrap());
            assert_eq!(garp.announce([vip6(ia, 1).address]).unwrap(), 1);
            until(&mut monitor, |e| *e == NetworkEvent::NeighbourMoved).await;
        });
    });
    let text: Vec<String> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
    let entry = b.ip("-6 neighbour show fd00::1:1");
    assert!(entry.contains(&text.join(":")) && entry.contains("router"), "{entry}");
}

#[test]
fn gratuitous_arp_reaches_the_peer() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    let (ia, ib, mac) = (a.ifindex("near"), b.ifindex("far"), a.mac("near"));
    let far = b.within(|| packet_socket(ib, 0x0806).unwrap());
    let garp = a.within(|| Garp::open(ia, mac).unwrap());
    let vips: Vec<Ipv4Addr> = (0..50).map(|n| Ipv4Addr::new(10, 9, 7, n)).collect();

    assert_eq!(garp.announce(vips.iter().copied().map(IpAddr::V4)).unwrap(), 50);

    let mut seen = Vec::new();
    let mut frame = [0; 64];
    while seen.len() < 50 {
        await_readable(&far);
        while let Some(arrival) = receive(&far, &mut frame).unwrap() {
            assert!(arrival.len >= 42);
            // The kernel may ask for addresses of its own between.
            if frame[28..32] == frame[38..42] {
                assert_eq!(
                    (&frame[..6], &frame[6..12], &frame[22..28]),
                    (&[0xff; 6][..], &mac[..], &mac[..])
                );
                seen.push(Ipv4Addr::new(frame[28], frame[29], frame[30], frame[31]));
            }
        }
    }
    assert_eq!(seen, vips);
}

/// A [`Monitor`], change by change.
struct Follower {
    monitor: Monitor,
    events: VecDeque<NetworkEvent>,
}

impl Follower {
    /// Also returns the interfaces as they are.
    async fn start() -> (Self, Vec<Link>) {
        let (monitor, links) = Monitor::start().await.unwrap();
        (Self { monitor, events: VecDeque::new() }, links)
    }
}

/// The next event; only a failing test waits that long.
async fn next(follower: &mut Follower) -> NetworkEvent {
    if follower.events.is_empty() {
        let events = timeout(Duration::from_secs(20), follower.monitor.next()).await;
        follower.events.extend(events.expect("no event came").unwrap());
    }
    follower.events.pop_front().expect("no list of events is empty")
}

/// Makes sure that nothing is pending: an interface that is down is renamed, which is a change of its
/// own that says nothing about routes, and no other event may come before it or with it.
async fn expect_silence(net: &Net, monitor: &mut Follower, from: &str, to: &str) {
    for (from, to) in [(from, to), (to, from)] {
        net.ip(&format!("link set {from} name {to}"));
        match next(monitor).await {
            NetworkEvent::LinkChanged(link) if link.name == to => {}
            other => panic!("{other:?} instead of silence"),
        }
    }
}

/// Takes events until one satisfies the condition.
async fn until(monitor: &mut Follower, condition: impl Fn(&NetworkEvent) -> bool) {
    while !condition(&next(monitor).await) {}
}

#[test]
fn changes_are_seen_and_noise_is_not() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.ip("link add idle type veth peer name idle-peer");
    a.ip("neigh replace 10.9.0.77 lladdr 02:00:00:00:00:77 dev near nud reachable");
    a.within(|| {
        block_on(async {
            let (mut monitor, interfaces) = Follower::start().await;
            assert!(interfaces.iter().any(|l| l.name == "near" && l.running() && l.mtu == 1500));
            assert!(interfaces.iter().any(|l| l.name == "idle" && !l.up));
            // The cable's other messages (IPv6, queueing) are over when its state has settled.
            expect_silence(&a, &mut monitor, "idle", "renamed").await;

            for state in ["stale", "delay", "probe", "reachable", "stale", "permanent"] {
                a.ip(&format!("neigh replace 10.9.0.77 lladdr 02:00:00:00:00:77 dev near nud {state}"));
            }
            a.ip("neigh replace 10.9.0.78 lladdr 02:00:00:00:00:78 dev near nud reachable");
            expect_silence(&a, &mut monitor, "idle", "renamed").await;

            a.ip("neigh replace 10.9.0.77 lladdr 02:00:00:00:00:99 dev near nud reachable");
            assert_eq!(next(&mut monitor).await, NetworkEvent::NeighbourMoved);
            expect_silence(&a, &mut monitor, "idle", "renamed").await;

            a.ip("neigh del 10.9.0.78 dev near");
            assert_eq!(next(&mut monitor).await, NetworkEvent::NeighbourMoved);

            a.ip("route add 10.77.0.0/16 via 10.9.0.2");
            until(&mut monitor, |e| *e == NetworkEvent::RouteChanged).await;

            a.ip("address add 10.9.5.5/32 dev near");
            a.ip("address del 10.9.5.5/32 dev near");
            let ifindex = a.ifindex("near");
            let address = Address { ifindex, address: [10, 9, 5, 5].into(), prefix_len: 32 };
            until(&mut monitor, |e| *e == NetworkEvent::AddressAdded(address)).await;
            until(&mut monitor, |e| *e == NetworkEvent::AddressRemoved(address)).await;

            b.ip("link set far down");
            until(
                &mut monitor,
                |e| matches!(e, NetworkEvent::LinkChanged(l) if l.name == "near" && !l.carrier),
            )
            .await;

            b.ip("link del far");
            until(&mut monitor, |e| matches!(e, NetworkEvent::LinkRemoved(l) if l.name == "near")).await;
        });
    });
}

#[test]
fn lost_events_are_told_and_the_state_is_read_anew() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.ip("link add idle type veth peer name idle-peer");
    let flood: String = (0..20_000u32)
        .map(|n| format!("neigh replace 10.9.0.77 lladdr 02:00:00:00:00:{:02x} dev near\n", n % 2))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), flood).unwrap();
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            // Nothing is read meanwhile: this runtime has one thread, and it waits for `ip`.
            a.ip(&format!("-batch {}", file.path().display()));
            a.ip("link del idle");
            until(&mut monitor, |e| *e == NetworkEvent::EventsLost).await;
            let mut removed = false;
            loop {
                match next(&mut monitor).await {
                    NetworkEvent::LinkRemoved(link) => removed |= link.name == "idle",
                    NetworkEvent::RouteChanged => break,
                    _ => {}
                }
            }
            assert!(removed, "the difference to the state before");
        });
    });
}

#[test]
fn what_was_told_before_events_were_lost_does_not_undo_what_was_read_after() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("busy", "busy-peer", &b);
    let flood = |count: u32| {
        let lines: String = (0..count)
            .map(|n| format!("neigh replace 10.9.0.77 lladdr 02:00:00:00:00:{:02x} dev busy\n", n % 2))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), lines).unwrap();
        a.ip(&format!("-batch {}", file.path().display()));
    };
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            // Of this there is room for all but the end, and it is more than is read at a time.
            flood(300);
            a.ip("link set near down");
            flood(20_000);
            a.ip("link set near up");
            until(&mut monitor, |e| *e == NetworkEvent::EventsLost).await;
            let ifindex = a.ifindex("busy");
            a.ip("address add 10.9.5.5/32 dev busy");
            let address = Address { ifindex, address: [10, 9, 5, 5].into(), prefix_len: 32 };
            let mut up = true;
            loop {
                match next(&mut monitor).await {
                    NetworkEvent::LinkChanged(link) if link.name == "near" => up = link.up,
                    NetworkEvent::AddressAdded(added) if added == address => break,
                    _ => {}
                }
            }
            assert!(up);
        });
    });
}

/// So many routes, by `ip -batch`, as a routing daemon adds them.
fn add_routes(net: &Net, count: u32) {
    let routes: String = (0..count)
        .map(|n| format!("route add {}/32 via 10.9.0.2\n", Ipv4Addr::from(0x1400_0000 + n)))
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), routes).unwrap();
    net.ip(&format!("-batch {}", file.path().display()));
}

/// A pair of which the first has routes of its own only when the test says so: with IPv6 the kernel adds some later.
fn pair_without_ipv6() -> (Net, Net) {
    let (a, b) = Net::pair();
    a.within(|| std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").unwrap());
    (a, b)
}

#[test]
fn neighbours_are_those_that_arp_has_found_the_last_one_first() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    for neighbour in [
        "10.9.0.7 lladdr 02:00:00:00:00:07 dev near nud stale",
        "10.9.0.8 lladdr 02:00:00:00:00:08 dev near nud reachable",
        "10.9.0.9 dev near nud failed",
        "10.9.0.10 lladdr 02:00:00:00:00:10 dev second nud reachable",
        "224.0.0.18 lladdr 01:00:5e:00:00:12 dev near nud noarp",
        "fd00::7 lladdr 02:00:00:00:00:07 dev near nud reachable",
    ] {
        a.ip(&format!("neighbour add {neighbour}"));
    }
    a.within(|| {
        let found = block_on(neighbours(a.ifindex("near"))).unwrap();
        assert_eq!(found, [Ipv4Addr::new(10, 9, 0, 8), Ipv4Addr::new(10, 9, 0, 7)]);
    });
}

/// The state of a neighbour, as `ip` says it, and what else there is behind its MAC.
fn neighbour_words(net: &Net, address: &str) -> String {
    let shown = net.ip(&format!("neighbour show to {address}"));
    let words: Vec<&str> = shown.split_whitespace().skip_while(|word| *word != "lladdr").skip(2).collect();
    words.join(" ")
}

#[test]
fn stale_neighbours_in_use_are_looked_after_and_no_others() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    for neighbour in [
        "10.9.0.7 lladdr 02:00:00:00:00:07 dev near nud stale",
        "10.9.0.8 lladdr 02:00:00:00:00:07 dev near nud stale",
        "fe80::7 lladdr 02:00:00:00:00:07 dev near nud stale router",
        "10.9.0.9 lladdr 02:00:00:00:00:07 dev near nud stale extern_learn",
        "10.9.0.10 lladdr 02:00:00:00:00:07 dev near nud permanent",
        "10.9.0.11 lladdr 02:00:00:00:00:0b dev near nud stale",
        "10.9.7.7 lladdr 02:00:00:00:00:08 dev second nud stale",
        "10.9.0.12 lladdr 02:00:00:00:00:07 dev second nud stale",
    ] {
        a.ip(&format!("neighbour add {neighbour}"));
    }
    a.within(|| {
        // All that happens after this one is before the kernel probes.
        for (family, interface) in [("ipv4", "near"), ("ipv6", "near"), ("ipv4", "second")] {
            let path = format!("/proc/sys/net/{family}/neigh/{interface}/delay_first_probe_time");
            std::fs::write(path, "60").unwrap();
        }
        let mac = |last| [2, 0, 0, 0, 0, last];
        let near = a.ifindex("near");
        let in_use = HashSet::from([(near, mac(7)), (a.ifindex("second"), mac(8)), (near, mac(9))]);
        assert_eq!(block_on(use_stale(&in_use, 2)).unwrap(), 2);
        assert_eq!(block_on(use_stale(&in_use, 100)).unwrap(), 3, "those that are left");
        assert_eq!(block_on(use_stale(&in_use, 100)).unwrap(), 0);
    });
    for (address, words) in [
        ("10.9.0.7", "DELAY"),
        ("10.9.0.8", "DELAY"),
        ("fe80::7", "router DELAY"),
        ("10.9.0.9", "extern_learn DELAY"),
        ("10.9.0.10", "PERMANENT"),
        ("10.9.0.11", "STALE"),
        ("10.9.7.7", "DELAY"),
        ("10.9.0.12", "STALE"),
    ] {
        assert_eq!(neighbour_words(&a, address), words, "{address}");
    }
}

#[test]
fn a_neighbour_that_is_confirmed_changes_no_route_but_one_that_moved_does() {
    if !root() {
        return;
    }
    let (a, b) = pair_without_ipv6();
    a.ip("link add idle type veth peer name idle-peer");
    let (near, mac) = (a.ifindex("near"), b.mac("far"));
    a.within(|| {
        // Half of the first, in ms, is more than the second, in s, or the kernel asks again and again by itself.
        let quick =
            [("base_reachable_time_ms", "3000"), ("delay_first_probe_time", "1"), ("retrans_time_ms", "50")];
        for (name, value) in quick {
            std::fs::write(format!("/proc/sys/net/ipv4/neigh/near/{name}"), value).unwrap();
        }
        let text = mac.map(|byte| format!("{byte:02x}")).join(":");
        a.ip(&format!("neighbour replace 10.9.0.2 lladdr {text} dev near nud stale"));
        let in_use = HashSet::from([(near, mac)]);
        let becomes = async |wanted: &str| {
            let is = async {
                while neighbour_words(&a, "10.9.0.2") != wanted {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(20), is).await.expect(wanted);
        };
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            expect_silence(&a, &mut monitor, "idle", "renamed").await;
            assert_eq!(use_stale(&in_use, 1).await.unwrap(), 1);
            becomes("DELAY").await;
            becomes("REACHABLE").await;
            expect_silence(&a, &mut monitor, "idle", "renamed").await;

            b.ip("link set far address 02:00:00:00:00:99");
            // It has failed: the next packet asks for it anew.
            let event = loop {
                match timeout(Duration::from_millis(50), next(&mut monitor)).await {
                    Ok(event) => break event,
                    // It is stale after some seconds.
                    Err(_) => _ = use_stale(&in_use, 1).await.unwrap(),
                }
            };
            assert_eq!(event, NetworkEvent::NeighbourMoved);
            becomes("").await;
        });
    });
}

#[test]
fn ipsec_policies_are_counted() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let count = || a.within(|| ipsec::policies().unwrap());
    assert_eq!(count(), 0);
    for direction in ["out", "fwd", "in"] {
        a.ip(&format!("xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir {direction}"));
    }
    assert_eq!(count(), 2, "what comes in is not asked for");
    a.ip("xfrm policy flush");
    assert_eq!(count(), 0);
}

#[test]
fn many_routes_ring_once_and_push_out_nothing_else() {
    if !root() {
        return;
    }
    let (a, _b) = pair_without_ipv6();
    a.ip("link add idle type veth peer name idle-peer");
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            // Nothing is read meanwhile, as above.
            add_routes(&a, 20_000);
            until(&mut monitor, |e| *e == NetworkEvent::RouteChanged).await;
            // It goes on after more than there was room for.
            a.ip("route del 20.0.0.0/32");
            until(&mut monitor, |e| *e == NetworkEvent::RouteChanged).await;

            a.ip("route flush root 20.0.0.0/8");
            a.ip("link del idle");
            let mut rung = 0;
            loop {
                match next(&mut monitor).await {
                    NetworkEvent::RouteChanged => rung += 1,
                    NetworkEvent::LinkRemoved(link) if link.name == "idle" => break,
                    NetworkEvent::EventsLost => panic!("routes have pushed out what else there was"),
                    _ => {}
                }
            }
            assert!(rung <= 2, "{rung} times");
        });
    });
}

#[test]
fn a_next_hop_that_is_deleted_changes_routes() {
    if !root() {
        return;
    }
    let (a, _b) = pair_without_ipv6();
    a.ip("nexthop add id 7 via 10.9.0.2 dev near");
    a.ip("route add 10.77.5.0/24 nhid 7");
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            a.ip("nexthop del id 7");
            assert_eq!(a.ip("route show 10.77.5.0/24"), "");
            until(&mut monitor, |e| *e == NetworkEvent::RouteChanged).await;
        });
    });
}

#[test]
fn a_port_that_leaves_its_bridge_is_not_gone() {
    if !root() {
        return;
    }
    let a = Net::new();
    a.ip("link add idle type veth peer name idle-peer");
    a.ip("link add bridge type bridge");
    a.ip("link add port type veth peer name port-peer");
    a.ip("link set port master bridge");
    a.within(|| {
        block_on(async {
            let (mut monitor, _) = Follower::start().await;
            a.ip("link set port nomaster");
            a.ip("link set idle name renamed");
            loop {
                match next(&mut monitor).await {
                    NetworkEvent::LinkRemoved(link) => panic!("{link:?} is still there"),
                    NetworkEvent::LinkChanged(link) if link.name == "renamed" => break,
                    _ => {}
                }
            }
        });
    });
}

#[test]
fn links_can_be_listed_inside_a_runtime_and_without() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.within(|| {
        let outside = links().unwrap();
        let inside = block_on(async { links().unwrap() });
        assert_eq!(outside, inside);
        assert!(outside.iter().any(|l| l.name == "near" && l.xdp_program.is_none()));
        assert_eq!(crate::sys::interface::driver("near").unwrap(), "veth");
        let error = crate::sys::interface::driver("nowhere").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    });
}

/// What the programs would read out of these routes.
fn leads_to(routes: &[Vec<Prefix>; 2], to: &str) -> u32 {
    let to: IpAddr = to.parse().unwrap();
    let mut table = PlainRoutes { generation: 1, ..PlainRoutes::NONE };
    for (place, prefix) in table.prefixes.iter_mut().zip(&routes[usize::from(to.is_ipv6())]) {
        *place = *prefix;
        table.count += 1;
    }
    table.look_up(&Prefix::new(to, if to.is_ipv6() { 128 } else { 32 }, 0).address, to.is_ipv6(), 1)
}

/// Waits until the kernel is asked for a destination.
async fn left_to_the_kernel(to: &str) {
    let asked = async {
        while leads_to(&plain_routes().await.unwrap(), to) != 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), asked).await.expect("the kernel is asked");
}

/// How many netlink sockets this network namespace has for routes and interfaces, without the kernel's own.
fn open_conversations() -> usize {
    let sockets = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    let ours = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[1] == "0" && fields[2] != "0"
    };
    sockets.lines().skip(1).filter(ours).count()
}

#[test]
fn only_what_follows_from_the_destination_is_plain() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    let near = a.ifindex("near");
    a.ip("link set lo up");
    for route in [
        "10.77.0.0/16 via 10.9.0.2",
        "10.77.1.0/24 tos 0x10 via 10.9.0.2",
        "blackhole 10.77.3.0/24",
        "10.77.4.0/24 nexthop via 10.9.0.2 nexthop via 10.9.0.3",
        "10.77.6.0/24 via 10.9.0.2 metric 5",
        "10.77.6.0/24 via 10.9.0.3 metric 6",
        "local 10.77.128.0/17 dev lo",
        "10.77.129.0/24 via 10.9.0.2",
        "10.78.0.0/16 via 10.9.0.2 table 100",
    ] {
        a.ip(&format!("route add {route}"));
    }
    a.ip("nexthop add id 7 via 10.9.0.2 dev near");
    a.ip("route add 10.77.5.0/24 nhid 7");
    a.ip("-6 address add 2001:db8:9::1/64 dev near nodad");
    a.ip("-6 route add 2001:db8:77::/48 via 2001:db8:9::2");
    a.within(|| {
        block_on(async {
            // The kernel adds the route of a new address in its own time.
            left_to_the_kernel("2001:db8:9::1").await;
            let routes = plain_routes().await.unwrap();
            for (to, out) in [
                ("10.9.0.2", near),
                ("10.9.0.1", 0),
                ("10.9.0.255", 0),
                ("192.0.2.1", 0),
                ("10.77.2.1", near),
                ("10.77.1.1", 0),
                ("10.77.3.1", 0),
                ("10.77.4.1", 0),
                ("10.77.5.1", 0),
                ("10.77.6.1", 0),
                ("10.77.129.1", 0),
                ("10.78.0.1", 0),
                ("2001:db8:9::2", near),
                ("2001:db8:9::1", 0),
                ("2001:db8:77::1", near),
                ("2001:db8:78::1", 0),
                ("fe80::1", 0),
            ] {
                assert_eq!(leads_to(&routes, to), out, "{to}");
            }
            a.ip("route add default via 10.9.0.2");
            let routes = plain_routes().await.unwrap();
            assert_eq!(leads_to(&routes, "192.0.2.1"), near);
            assert_eq!(leads_to(&routes, "10.77.3.1"), 0);

            for rule in
                ["from 10.9.7.0/24 table 100", "fwmark 1 table 100", "iif near table 100", "table 100"]
            {
                a.ip(&format!("rule add {rule} priority 100"));
                let routes = plain_routes().await.unwrap();
                assert!(routes[0].is_empty() && !routes[1].is_empty(), "{rule}");
                a.ip("rule del priority 100");
            }
            a.ip("-6 rule add from 2001:db8::/32 table 100");
            let routes = plain_routes().await.unwrap();
            assert!(!routes[0].is_empty() && routes[1].is_empty());

            for n in 0..MAX_PREFIXES {
                a.ip(&format!("route add blackhole 10.80.{n}.0/24"));
            }
            assert!(plain_routes().await.unwrap()[0].is_empty(), "too many");
            a.ip("route flush root 10.80.0.0/16");

            // A full table is not read to its end, neither here nor by what is left of the conversation.
            add_routes(&a, 20_000);
            assert!(plain_routes().await.unwrap()[0].is_empty(), "too many");
            // A program that another test starts has it, too, for the moment before it runs.
            let ended = async {
                while open_conversations() != 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(Duration::from_secs(20), ended).await.expect("the conversation ends");
            a.ip("route flush root 20.0.0.0/8");

            b.ip("link set far down");
            left_to_the_kernel("10.9.0.2").await;
        });
    });
}

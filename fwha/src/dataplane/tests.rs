//! The data plane in a namespace of its own, with a BPF file system of its own.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    net::{SocketAddrV6, UdpSocket},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use fwha_common::{
    BUCKETS, MAX_GROUPS,
    drop::DROP_REASONS,
    flow::{Flow, FlowEventKind, FlowKey},
    group::Group,
    rule::{Action, Decision, Interface, InterfaceKey, Rule, Tag},
    ruleset::{MAX_RULES, TooLarge},
    settings::{COUNTERS, Counter, Timeouts},
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    Attach, AttachKind, Dataplane, DataplaneError, Events, FlowWalk, Leftovers, Options, ZoneInterface,
    pin_dir, stack_forwards_ipv6,
};
use crate::{
    netlink::{Link, Vlan, links::links},
    sys::{
        bpf::{AttachType, Write, tcx_links},
        clock::KernelClock,
        interface::{coalesce, take_tags_off},
    },
    testing::{Net, await_readable, root, running},
};

const NODE: &str = "near";

/// Whether there was something to clean up.
fn clean_up(pin_dir: &Path) -> bool {
    Leftovers::take(pin_dir).and_then(Leftovers::remove).unwrap()
}

fn options(interfaces: &[(&str, Attach)]) -> Options {
    Options {
        pin_dir: pin_dir("test.cluster", "fw1"),
        numbering: 1,
        max_flows: 512,
        max_embryonic: 256,
        interfaces: interfaces
            .iter()
            .map(|(name, attach)| ZoneInterface {
                tags: [Tag::NONE; 2],
                name: (*name).into(),
                zone: 1,
                attach: *attach,
                anti_spoofing: true,
                virtual_macs: false,
            })
            .collect(),
        sync_interfaces: Vec::new(),
    }
}

fn open(options: Options) -> (Dataplane, Events) {
    Dataplane::open(options).unwrap_or_else(|e| panic!("{e}"))
}

fn key(n: u32) -> FlowKey {
    FlowKey { port_a: n as u16, port_b: (n >> 16) as u16, proto: 17, ..FlowKey::default() }
}

fn flow(n: u64) -> Flow {
    Flow { version: n, ..Flow::default() }
}

/// TCX links at ingress and egress, and the XDP program.
fn hooks(interface: &str) -> (Vec<u32>, Vec<u32>, Option<u32>) {
    let link = links().unwrap().into_iter().find(|l| l.name == interface).unwrap();
    (
        tcx_links(link.index, AttachType::BPF_TCX_INGRESS).unwrap(),
        tcx_links(link.index, AttachType::BPF_TCX_EGRESS).unwrap(),
        link.xdp_program,
    )
}

fn sysctl(interface: &str, setting: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{setting}");
    fs::read_to_string(path).unwrap().trim().into()
}

#[test]
fn batches_write_delete_and_take() {
    if !root() {
        return;
    }
    Net::new().with_bpffs(|| {
        let (dataplane, _events) = open(options(&[]));
        let maps = dataplane.maps();
        let flows = maps.flows();
        assert_eq!(flows.max_entries(), 512);
        let keys: Vec<FlowKey> = (0..600).map(key).collect();
        let values: Vec<Flow> = (0..600).map(flow).collect();

        let written = flows.update_batch(&keys[..300], &values[..300]).unwrap();
        assert_eq!((written.done, written.refused.len()), (300, 0));
        assert_eq!(flows.lookup(&key(299)).unwrap(), Some(flow(299)));
        assert_eq!(flows.lookup(&key(300)).unwrap(), None);

        // The table fills up in the middle of the batch; what is there already is still written.
        let mut mixed = keys.clone();
        mixed.rotate_left(300);
        let written = flows.update_batch(&mixed, &vec![flow(7); 600]).unwrap();
        assert_eq!((written.done, written.refused.len()), (512, 88));
        for (n, key) in keys.iter().enumerate() {
            let refused = written.refused.contains(&((n + 300) % 600));
            assert_eq!(flows.lookup(key).unwrap(), (!refused).then_some(flow(7)), "{n}");
        }

        assert_eq!(flows.delete_batch(&keys).unwrap(), 512);
        assert_eq!(flows.delete_batch(&keys).unwrap(), 0);

        flows.update(&key(1), &flow(1), Write::New).unwrap();
        assert_eq!(
            flows.update(&key(1), &flow(2), Write::New).unwrap_err().raw_os_error(),
            Some(libc::EEXIST)
        );
        assert_eq!(
            flows.update(&key(2), &flow(2), Write::Existing).unwrap_err().raw_os_error(),
            Some(libc::ENOENT)
        );
        assert_eq!(flows.take(&key(1)).unwrap(), Some(flow(1)));
        assert_eq!(flows.take(&key(1)).unwrap(), None);
        assert!(!flows.delete(&key(1)).unwrap());
        dataplane.close().unwrap();
    });
}

#[test]
fn a_walk_sees_every_flow_that_stays_once_whatever_else_goes() {
    if !root() {
        return;
    }
    Net::new().with_bpffs(|| {
        let (dataplane, _events) = open(Options { max_flows: 8192, ..options(&[]) });
        let maps = dataplane.maps();
        let flows = maps.flows();
        // A chunk of one is smaller than some buckets: the walk must make itself room.
        for chunk in [1, 7, 1000, 10_000] {
            let keys: Vec<FlowKey> = (0..4000).map(key).collect();
            flows.update_batch(&keys, &vec![flow(1); 4000]).unwrap();
            let (mut walk, mut seen) = (FlowWalk::new(chunk), Vec::new());
            while let Some((found, values)) = walk.next_chunk(flows).unwrap() {
                assert!(values.iter().all(|f| *f == flow(1)));
                seen.extend_from_slice(found);
                // What was just seen goes if odd, and something comes.
                let odd: Vec<FlowKey> = found.iter().filter(|k| k.port_a % 2 == 1).copied().collect();
                flows.delete_batch(&odd).unwrap();
            }
            assert!(walk.next_chunk(flows).unwrap().is_none(), "the end stays the end");
            assert_eq!(seen.len(), 4000, "chunk {chunk}");
            assert_eq!(seen.iter().collect::<HashSet<_>>().len(), 4000);
            assert_eq!(flows.delete_batch(&keys).unwrap(), 2000);
        }
        dataplane.close().unwrap();
    });
}

#[test]
fn settings_rules_groups_and_counters_go_where_they_belong() {
    if !root() {
        return;
    }
    Net::new().with_bpffs(|| {
        let (dataplane, mut events) = open(options(&[]));
        let maps = dataplane.maps();

        assert_eq!(maps.settings().unwrap(), fwha_common::settings::Settings::default());
        maps.update_settings(|s| s.node = 3).unwrap();
        maps.next_route_generation().unwrap();
        maps.next_route_generation().unwrap();
        let settings = maps.settings().unwrap();
        assert_eq!((settings.node, settings.route_generation), (3, 2));
        maps.update_settings(|s| s.route_generation = u32::MAX).unwrap();
        maps.next_route_generation().unwrap();
        assert_eq!(maps.settings().unwrap().route_generation, 1, "0 is never current");

        let rule = |name_hash| Rule::all(Decision { name_hash, index: 9, ..Decision::default() });
        assert_eq!(maps.rule_hits().unwrap(), HashMap::new());
        assert_eq!(maps.load_rules(&vec![rule(0); 5]).unwrap(), 1);
        assert_eq!(maps.load_rules(&[]).unwrap(), 2);
        maps.update_settings(|s| s.ruleset_generation = u32::MAX).unwrap();
        assert_eq!(
            maps.load_rules(&[rule(0)]).unwrap(),
            2,
            "0 is no ruleset, and 1 in the place of the one in force"
        );
        assert_eq!(maps.settings().unwrap().ruleset_generation, 2);
        let error = maps.load_rules(&vec![rule(0); MAX_RULES + 1]).unwrap_err();
        assert!(matches!(error, DataplaneError::Rules(TooLarge::Rules(n)) if n == MAX_RULES + 1), "{error}");
        let many: Vec<Rule> = (1..=MAX_RULES as u32).map(rule).collect();
        maps.load_rules(&many).unwrap();
        assert_eq!(maps.rule_hits().unwrap().len(), MAX_RULES);

        let group = Group { lease_until_ns: 5, since_ns: 4, role: Group::ACTIVE, term: 2 };
        maps.write_group(7, &group).unwrap();
        assert_eq!((maps.group(7).unwrap(), maps.group(8).unwrap()), (group, Group::default()));
        assert!(maps.write_group(MAX_GROUPS as u32, &group).is_err());

        maps.set_timeouts(&Timeouts::KERNEL).unwrap();
        assert_eq!(maps.timeouts().unwrap(), Timeouts::KERNEL);

        assert_eq!(maps.counters().unwrap(), vec![0; COUNTERS]);
        assert_eq!(maps.drops().unwrap(), vec![0; DROP_REASONS]);
        maps.load_rules(&[rule(7)]).unwrap();
        assert_eq!(maps.rule_hits().unwrap(), HashMap::from([(7, 0)]));
        assert_eq!(maps.event_loss().unwrap(), vec![0; BUCKETS]);
        assert_eq!(maps.embryonic_count().unwrap(), 0);
        assert_eq!(events.drain(10, |_| panic!("nothing happened")), 0);
        dataplane.close().unwrap();
    });
}

#[test]
fn a_restarted_daemon_adopts_its_data_plane() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.with_bpffs(|| {
        let (first, _events) = open(options(&[(NODE, Attach::Tc)]));
        assert!(!first.adopted());
        let attached = first.attached().to_vec();
        first.maps().flows().update(&key(1), &flow(1), Write::Any).unwrap();
        first.maps().update_settings(|s| s.node = 2).unwrap();
        let before = hooks(NODE);
        assert_eq!((before.0.len(), before.1.len(), before.2), (1, 1, None));
        drop((first, _events));
        assert_eq!(hooks(NODE), before, "the programs go on without a daemon");

        let (second, _events) = open(options(&[(NODE, Attach::Tc)]));
        assert!(second.adopted());
        assert_eq!(second.attached(), attached);
        assert_eq!(hooks(NODE), before, "the same links");
        assert_eq!(second.maps().flows().lookup(&key(1)).unwrap(), Some(flow(1)));
        assert_eq!(second.maps().settings().unwrap().node, 2);
        second.close().unwrap();
        assert_eq!(hooks(NODE), (vec![], vec![], None));
    });
}

#[test]
fn programs_are_loaded_when_needed_and_once_for_each_build() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.with_bpffs(|| {
        let wanted = options(&[(NODE, Attach::Xdp)]);
        let programs = wanted.pin_dir.join("programs");
        let builds = || fs::read_dir(&programs).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        drop(open(wanted.clone()));
        let (_, _, first) = hooks(NODE);
        let this = builds();
        assert!(first.is_some() && this.len() == 1);

        drop(open(wanted.clone()));
        assert_eq!((hooks(NODE).2, builds()), (first, this.clone()), "the same program");

        // As if another build had run before; and one that was interrupted.
        fs::remove_dir_all(programs.join(&this[0])).unwrap();
        fs::create_dir(programs.join("0123456789abcdef")).unwrap();
        drop(open(wanted.clone()));
        let (_, _, second) = hooks(NODE);
        assert!(second.is_some() && second != first);
        assert_eq!(builds(), this);

        let pinned = || {
            let pins = fs::read_dir(programs.join(&this[0])).unwrap();
            let mut names: Vec<_> = pins.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(pinned(), ["fwha_egress", "fwha_sweep", "fwha_xdp"]);
        fs::remove_file(programs.join(&this[0]).join("fwha_xdp")).unwrap();
        let (mut dataplane, _events) = open(wanted);
        assert_ne!(hooks(NODE).2, second);
        dataplane.set_interfaces(options(&[(NODE, Attach::Tc)]).interfaces).unwrap();
        let (ingress, _, xdp) = hooks(NODE);
        assert_eq!((ingress.len(), xdp), (1, None), "by another program from now on");
        assert_eq!(pinned(), ["fwha_egress", "fwha_sweep", "fwha_tc", "fwha_xdp"]);
        dataplane.close().unwrap();
        assert!(!programs.exists());
    });
}

#[test]
fn maps_of_another_shape_are_not_adopted_but_links_are() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.with_bpffs(|| {
        let (first, _events) = open(options(&[(NODE, Attach::Tc)]));
        first.maps().flows().update(&key(1), &flow(1), Write::Any).unwrap();
        let before = hooks(NODE);
        drop((first, _events));

        let larger = Options { max_flows: 1024, ..options(&[(NODE, Attach::Tc)]) };
        let pins = larger.pin_dir.clone();
        let (second, _events) = open(larger);
        assert!(!second.adopted());
        assert_eq!(second.maps().flows().max_entries(), 1024);
        assert_eq!(second.maps().flows().lookup(&key(1)).unwrap(), None);
        assert_eq!(hooks(NODE), before);
        drop((second, _events));

        fs::remove_file(pins.join(format!("abi{}/GROUPS", fwha_common::ABI_VERSION))).unwrap();
        fs::create_dir(pins.join("abi0")).unwrap();
        let (third, _events) = open(options(&[(NODE, Attach::Tc)]));
        assert!(!third.adopted(), "an incomplete set is of no use");
        assert!(!pins.join("abi0").exists(), "other versions are cleared away");
        third.maps().flows().update(&key(1), &flow(1), Write::Any).unwrap();
        drop((third, _events));

        let renumbered = || Options { numbering: 2, ..options(&[(NODE, Attach::Tc)]) };
        let (fourth, _events) = open(renumbered());
        assert!(!fourth.adopted(), "zones have other numbers");
        assert_eq!(fourth.maps().flows().lookup(&key(1)).unwrap(), None);
        assert_eq!(hooks(NODE), before);
        drop((fourth, _events));
        let (fifth, _events) = open(renumbered());
        assert!(fifth.adopted());
        fifth.close().unwrap();
        assert!(!pins.exists());
    });
}

#[test]
fn a_clean_end_leaves_nothing() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("eth0.5", "other", &b);
    a.cable("sync", "far-sync", &b);
    a.with_bpffs(|| {
        let forwarding_v6 = |name| {
            fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/forwarding"))
                .unwrap()
                .trim()
                .to_owned()
        };
        let settings =
            |name| (sysctl(name, "forwarding"), sysctl(name, "promote_secondaries"), forwarding_v6(name));
        // One was on before and must stay on.
        fs::write("/proc/sys/net/ipv4/conf/eth0.5/forwarding", "1").unwrap();
        fs::write("/proc/sys/net/ipv4/conf/near/forwarding", "0").unwrap();
        let before = (settings("near"), settings("eth0.5"), settings("sync"));
        let mut wanted = options(&[("near", Attach::Xdp), ("eth0.5", Attach::Auto)]);
        wanted.sync_interfaces = vec!["sync".into()];

        for clean in [true, false] {
            let (dataplane, events) = open(wanted.clone());
            let attached = dataplane.attached();
            let kinds: Vec<_> = attached.iter().map(|a| (a.name.as_str(), a.zone, a.kind)).collect();
            assert_eq!(
                kinds,
                [
                    ("near", Some(1), AttachKind::Xdp),
                    ("eth0.5", Some(1), AttachKind::Tc),
                    ("sync", None, AttachKind::Tc)
                ]
            );
            assert!(attached[1].reason.contains("veth"), "{}", attached[1].reason);
            let (ingress, egress, xdp) = hooks("near");
            assert!(ingress.is_empty() && egress.len() == 1 && xdp.is_some());
            let (ingress, egress, xdp) = hooks("eth0.5");
            assert!(ingress.len() == 1 && egress.len() == 1 && xdp.is_none());
            let (ingress, egress, _) = hooks("sync");
            assert!(ingress.len() == 1 && egress.is_empty());
            let on = ("1".to_owned(), "1".to_owned(), "1".to_owned());
            assert_eq!(
                (settings("near"), settings("eth0.5"), settings("sync")),
                (on.clone(), on, before.2.clone())
            );
            let known = dataplane.maps().interfaces().unwrap();
            let near = links().unwrap().into_iter().find(|l| l.name == "near").unwrap();
            assert_eq!(known.len(), 3);
            assert!(known.contains(&(
                InterfaceKey::untagged(near.index),
                Interface {
                    zone: 1,
                    mac: near.mac.unwrap(),
                    device: near.index,
                    trunk: near.index,
                    ..Interface::default()
                }
            )));

            if clean {
                dataplane.close().unwrap();
            } else {
                // Killed, and cleared away by `fwha cleanup`.
                drop(dataplane);
                assert!(clean_up(&wanted.pin_dir));
                assert!(!clean_up(&wanted.pin_dir));
            }
            drop(events);
            for name in ["near", "eth0.5", "sync"] {
                assert_eq!(hooks(name), (vec![], vec![], None));
            }
            assert_eq!((settings("near"), settings("eth0.5"), settings("sync")), before);
            assert!(!Path::new("/sys/fs/bpf/fwha").exists(), "nothing is pinned");
        }
    });
}

/// The value of a setting of IPv6.
fn sysctl_v6(interface: &str, setting: &str) -> String {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/{setting}")).unwrap().trim().into()
}

/// A router advertisement (RFC 4861, 4.2) from an interface of this namespace, whose sender is a default router for half an hour.
fn advertise(interface: &str) {
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap();
    socket.set_multicast_hops_v6(255).unwrap();
    let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let index = nix::net::if_::if_nametoindex(interface).unwrap();
    let to = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, index);
    // It may have no address of the link yet.
    drop(socket.send_to(&message, &to.into()));
}

#[test]
fn who_listens_to_routers_goes_on_and_who_does_not_does_not_begin() {
    if !root() {
        return;
    }
    let (a, b) = (Net::new(), Net::new());
    for net in [&a, &b] {
        net.within(|| fs::write("/proc/sys/net/ipv6/conf/default/dad_transmits", "0")).unwrap();
    }
    // The node's: a host's interface and a router's in zones, and one that is in none.
    for (here, there) in [("near", "far"), ("router", "other"), ("mgmt", "gateway")] {
        a.cable(here, there, &b);
    }
    a.with_bpffs(|| {
        fs::write("/proc/sys/net/ipv6/conf/router/forwarding", "1").unwrap();
        let learned = |interface: &str| {
            let routes = a.ip("-6 route show default");
            routes.lines().any(|route| route.contains(&format!("dev {interface} proto ra")))
        };
        let await_routes = |interfaces: [&str; 2]| {
            let patience = Instant::now() + Duration::from_secs(20);
            while !interfaces.iter().all(|i| learned(i)) {
                assert!(Instant::now() < patience, "{}", a.ip("-6 route show default"));
                // An address of the link may be on its way.
                b.within(|| ["far", "gateway"].map(advertise));
                thread::sleep(Duration::from_millis(10));
            }
        };
        await_routes(["near", "mgmt"]);
        let settings = |name: &str| ["accept_ra", "forwarding"].map(|setting| sysctl_v6(name, setting));
        let names = ["near", "router", "mgmt", "all", "default"];
        let before = names.map(settings);
        let wanted = options(&[("near", Attach::Tc), ("router", Attach::Tc)]);
        let (dataplane, events) = open(wanted.clone());
        // Somebody sets what the system's files say; the next daemon finds it.
        fs::write("/proc/sys/net/ipv6/conf/near/accept_ra", "1").unwrap();
        drop((dataplane, events));
        let (dataplane, _events) = open(wanted);
        assert!(learned("near"), "{}", a.ip("-6 route show default"));
        assert!(learned("mgmt"), "{}", a.ip("-6 route show default"));
        assert_eq!(settings("near"), ["2", "1"]);
        assert_eq!(settings("router"), ["1", "1"], "it did not listen");
        assert_eq!(settings("mgmt"), ["1", "0"]);
        let force = "/proc/sys/net/ipv6/conf/near/force_forwarding";
        let forced = || fs::read_to_string(force).ok();
        assert!(
            forced().is_none_or(|value| value == "1\n"),
            "the stack forwards what the programs leave to it"
        );
        assert_eq!(forced().is_some(), stack_forwards_ipv6());
        dataplane.close().unwrap();
        assert_eq!(names.map(settings), before);
        assert!(forced().is_none_or(|value| value == "0\n"));
    });
}

#[test]
fn the_stack_believes_sources_where_the_programs_do() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    a.with_bpffs(|| {
        fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
        let filters = || ["near", "second"].map(|name| sysctl(name, "rp_filter"));
        let before = filters();
        let mut wanted = options(&[("near", Attach::Tc), ("second", Attach::Tc)]);
        wanted.interfaces[0].anti_spoofing = false;
        let (dataplane, events) = open(wanted);
        assert_eq!(filters(), ["2".to_owned(), before[1].clone()]);
        drop((dataplane, events));
        let (dataplane, _events) = open(options(&[("near", Attach::Tc), ("second", Attach::Tc)]));
        assert_eq!(filters(), before, "no longer configured");
        dataplane.close().unwrap();
        assert_eq!(filters(), before);
    });
}

#[test]
fn what_the_node_sends_to_all_it_hears_itself() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.ip("address change 10.9.0.1/24 broadcast 10.9.0.255 dev near");
    a.with_bpffs(|| {
        for attach in [Attach::Tc, Attach::Xdp] {
            let (dataplane, _events) = open(options(&[("near", attach)]));
            let listener = UdpSocket::bind("0.0.0.0:5353").unwrap();
            let sender = UdpSocket::bind("10.9.0.1:0").unwrap();
            sender.set_broadcast(true).unwrap();
            sender.send_to(b"all", "10.9.0.255:5353").unwrap();
            await_readable(&listener);
            let (_, from) = listener.recv_from(&mut [0; 8]).unwrap();
            assert_eq!(from, sender.local_addr().unwrap());
            dataplane.close().unwrap();
        }
    });
}

#[test]
fn a_change_of_configuration_moves_programs() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    a.with_bpffs(|| {
        let forwards = || fs::read_to_string("/proc/sys/net/ipv4/conf/second/forwarding").unwrap();
        assert_eq!(forwards(), "0\n");
        let (first, events) = open(options(&[("near", Attach::Xdp), ("second", Attach::Tc)]));
        assert_eq!(forwards(), "1\n");
        drop((first, events));
        let (dataplane, _events) = open(options(&[("near", Attach::Tc)]));
        let (ingress, egress, xdp) = hooks("near");
        assert_eq!((ingress.len(), egress.len(), xdp), (1, 1, None), "from XDP to tc");
        assert_eq!(hooks("second"), (vec![], vec![], None), "no longer configured");
        assert_eq!(forwards(), "0\n", "what is not filtered is not forwarded");
        assert_eq!(dataplane.maps().interfaces().unwrap().len(), 1);
        drop(dataplane);
        let (dataplane, _events) = open(options(&[("near", Attach::Xdp)]));
        let (ingress, egress, xdp) = hooks("near");
        assert!(ingress.is_empty() && egress.len() == 1 && xdp.is_some(), "and back");
        dataplane.close().unwrap();
    });
}

#[test]
fn xdp_is_refused_where_it_could_not_forward() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.ip("link add bridge type bridge");
    a.with_bpffs(|| {
        let error = Dataplane::open(options(&[("near", Attach::Tc), ("bridge", Attach::Xdp)])).unwrap_err();
        assert!(matches!(&error, DataplaneError::NoRedirect(name) if name == "bridge"), "{error}");
        b.within(|| coalesce("far", false)).unwrap();
        let error = Dataplane::open(options(&[("near", Attach::Xdp)])).unwrap_err();
        assert!(matches!(&error, DataplaneError::NoXmit(name) if name == "near"), "{error}");
        assert_eq!(hooks("near"), (vec![], vec![], None));

        b.within(|| coalesce("far", true)).unwrap();
        let (mut dataplane, _events) = open(options(&[("near", Attach::Xdp), ("bridge", Attach::Auto)]));
        let link = |name| links().unwrap().into_iter().find(|l| l.name == name).unwrap();
        let no_xmit = |dataplane: &Dataplane, name| {
            let known: BTreeMap<_, _> = dataplane.maps().interfaces().unwrap().into_iter().collect();
            known[&InterfaceKey::untagged(link(name).index)].flags & Interface::NO_XMIT != 0
        };
        assert_eq!((no_xmit(&dataplane, "near"), no_xmit(&dataplane, "bridge")), (false, true));
        let xmit: Vec<bool> = dataplane.attached().iter().map(|attached| attached.xmit).collect();
        assert_eq!(xmit, [true, false]);
        // The other end stops polling: what there is stays, and others go the kernel's way.
        b.within(|| coalesce("far", false)).unwrap();
        dataplane.reconcile();
        assert!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        let xmit: Vec<bool> = dataplane.attached().iter().map(|attached| attached.xmit).collect();
        assert_eq!(xmit, [false, false]);
        assert_eq!(sysctl("near", "forwarding"), "1");
        assert!(hooks("near").2.is_some() && no_xmit(&dataplane, "near"));
        dataplane.close().unwrap();
    });
}

#[test]
fn an_interface_that_can_do_less_than_before_keeps_its_vlan() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.with_bpffs(|| {
        let near = |dataplane: &Dataplane| {
            let attached = dataplane.attached().iter().map(|a| (a.name.clone(), a.kind)).collect::<Vec<_>>();
            (attached, sysctl("near", "forwarding"))
        };
        let kept = (vec![("near".to_owned(), AttachKind::Xdp)], "1".to_owned());
        let mut wanted = options(&[("near", Attach::Xdp)]);
        wanted.interfaces[0].tags[0] = Tag::new(Tag::CUSTOMER, 100);
        let refused = Dataplane::open(wanted.clone()).unwrap_err();
        assert!(matches!(refused, DataplaneError::TagsHidden(_)), "{refused}");
        take_tags_off("near", false).unwrap();
        let (mut dataplane, _events) = open(wanted);
        assert_eq!(near(&dataplane), kept);

        // To forward nothing would be worse than what `status` warns of.
        b.within(|| coalesce("far", false)).unwrap();
        take_tags_off("near", true).unwrap();
        dataplane.reconcile();
        assert!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        assert_eq!(near(&dataplane), kept);

        // A new one has nothing to keep, whatever was tried before.
        a.ip("link del near");
        a.cable("near", "far", &b);
        for _ in 0..2 {
            dataplane.reconcile();
            assert!(
                matches!(dataplane.problems(), [DataplaneError::TagsHidden(_)]),
                "{:?}",
                dataplane.problems()
            );
            assert_eq!(near(&dataplane), (vec![], "0".to_owned()));
        }
        take_tags_off("near", false).unwrap();
        b.within(|| coalesce("far", false)).unwrap();
        running("near");
        for _ in 0..2 {
            dataplane.reconcile();
            assert!(
                matches!(dataplane.problems(), [DataplaneError::NoXmit(_)]),
                "{:?}",
                dataplane.problems()
            );
            assert_eq!(near(&dataplane), (vec![], "0".to_owned()));
        }
        b.within(|| coalesce("far", true)).unwrap();
        dataplane.reconcile();
        assert_eq!(near(&dataplane), kept);
        dataplane.close().unwrap();
    });
}

#[test]
fn an_interface_without_ethernet_is_in_no_zone() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    a.with_bpffs(|| {
        let refused =
            |error: &DataplaneError| matches!(error, DataplaneError::NoEthernet(name) if name == "second");
        let wanted = || options(&[("near", Attach::Tc), ("second", Attach::Auto)]);
        let (mut dataplane, _events) = open(wanted());
        // One comes under the name of another. The others are what they were.
        a.ip("link del second");
        a.ip("tuntap add second mode tun");
        dataplane.reconcile();
        assert!(matches!(dataplane.problems(), [error] if refused(error)), "{:?}", dataplane.problems());
        let here: Vec<&str> = dataplane.attached().iter().map(|a| a.name.as_str()).collect();
        assert_eq!((here, hooks("second")), (vec!["near"], (vec![], vec![], None)));
        assert_eq!(hooks("near").0.len(), 1);
        dataplane.close().unwrap();

        let error = Dataplane::open(wanted()).unwrap_err();
        assert!(refused(&error), "{error}");
        assert_eq!(hooks("near"), (vec![], vec![], None));
        a.ip("link del second");
    });
}

#[test]
fn a_foreign_xdp_program_is_refused_and_nothing_stays_behind() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    a.with_bpffs(|| {
        let mut foreign = options(&[("second", Attach::Xdp)]);
        foreign.pin_dir = pin_dir("another", "fw1");
        let (foreign, _events) = open(foreign);
        let program = hooks("second").2.unwrap();

        for attach in [Attach::Auto, Attach::Xdp, Attach::Tc] {
            let error = Dataplane::open(options(&[("near", Attach::Tc), ("second", attach)])).unwrap_err();
            assert!(
                matches!(&error, DataplaneError::ForeignXdp { interface, program: id } if interface == "second" && *id == program),
                "{error}"
            );
            assert_eq!(hooks("near"), (vec![], vec![], None));
            assert_eq!(sysctl("near", "forwarding"), "0");
            assert!(!options(&[]).pin_dir.exists());
        }
        assert_eq!(hooks("second").2, Some(program));
        foreign.close().unwrap();
    });
}

#[test]
fn a_missing_interface_is_named() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.with_bpffs(|| {
        let error = Dataplane::open(options(&[("near", Attach::Tc), ("wan7", Attach::Auto)])).unwrap_err();
        assert!(error.to_string().contains("wan7"), "{error}");
        assert_eq!(hooks("near"), (vec![], vec![], None));
        assert!(!Path::new("/sys/fs/bpf/fwha").exists());
    });
}

#[test]
fn pins_belong_on_a_bpf_file_system() {
    if !root() {
        return;
    }
    let elsewhere = tempfile::tempdir().unwrap();
    let pin_dir = elsewhere.path().join("pins");
    let error = Dataplane::open(Options { pin_dir: pin_dir.clone(), ..options(&[]) }).unwrap_err();
    assert!(matches!(error, DataplaneError::NotBpffs(_)), "{error}");
    assert!(!pin_dir.exists());
    assert!(!clean_up(Path::new("/nowhere")));
}

#[test]
fn what_is_torn_off_is_put_back() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.with_bpffs(|| {
        let wanted = options(&[("near", Attach::Tc)]);
        let pins = wanted.pin_dir.clone();
        let (mut dataplane, _events) = open(wanted);
        let before = hooks("near");
        dataplane.reconcile();
        assert_eq!(hooks("near"), before, "nothing to do");

        // Interfaces of no zone do not matter, by whatever name they come; those that are wanted do, by name and by index.
        let near = links().unwrap().into_iter().find(|l| l.name == "near").unwrap();
        let stranger = Link { index: near.index + 100, name: "ppp7".into(), ..near.clone() };
        let vlan = Some(Vlan { parent: near.index, tag: Tag::new(Tag::CUSTOMER, 7) });
        let renamed = Link { name: "ppp7".into(), ..near.clone() };
        let new = Link { index: near.index + 100, ..near.clone() };
        assert!(!dataplane.concerns(&stranger));
        for link in [near, renamed, new, Link { vlan, ..stranger }] {
            assert!(dataplane.concerns(&link), "{link:?}");
        }

        // Somebody removes a pin: the program stays, and the pin comes back.
        fs::remove_file(pins.join("links/near:egress")).unwrap();
        assert_eq!(hooks("near"), before);
        dataplane.reconcile();
        assert_eq!(hooks("near"), before);
        assert!(pins.join("links/near:egress").exists());

        // All of them with their directories. Where none can be made, that is said, and the program is there all the same.
        fs::remove_dir_all(&pins).unwrap();
        dataplane.reconcile();
        assert!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        assert_eq!((hooks("near"), dataplane.attached().len()), (before.clone(), 1));
        assert!(pins.join("links/near:egress").exists());
        fs::remove_dir_all(&pins).unwrap();
        std::os::unix::fs::symlink("nowhere", &pins).unwrap();
        dataplane.reconcile();
        assert!(
            matches!(dataplane.problems(), [DataplaneError::Unpinned { .. }]),
            "{:?}",
            dataplane.problems()
        );
        assert_eq!((hooks("near"), dataplane.attached().len()), (before, 1));
        fs::remove_file(&pins).unwrap();
        dataplane.reconcile();
        assert!(dataplane.problems().is_empty() && pins.join("links/near:egress").exists());

        // The interface goes away and another of its name comes.
        a.ip("link del near");
        dataplane.reconcile();
        assert!(matches!(dataplane.problems(), [DataplaneError::NoInterface(name)] if name == "near"));
        assert_eq!(dataplane.attached(), []);
        assert_eq!(dataplane.maps().interfaces().unwrap(), []);
        a.cable("near", "again", &b);
        dataplane.reconcile();
        assert!(dataplane.problems().is_empty());
        let (ingress, egress, _) = hooks("near");
        assert_eq!((ingress.len(), egress.len()), (1, 1));
        assert_eq!(dataplane.attached()[0].ifindex, a.ifindex("near"));
        assert_eq!(dataplane.maps().interfaces().unwrap()[0].0.ifindex, a.ifindex("near"));
        assert_eq!(sysctl("near", "forwarding"), "1");

        // It gets another MAC.
        a.ip("link set near address 02:00:00:00:00:55");
        dataplane.reconcile();
        assert_eq!(dataplane.maps().interfaces().unwrap()[0].1.mac, [2, 0, 0, 0, 0, 0x55]);
        dataplane.close().unwrap();
    });
}

#[test]
fn an_interface_that_takes_no_program_concerns_no_other_and_does_not_forward() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    a.cable("second", "other", &b);
    a.with_bpffs(|| {
        let coalesce = |on| b.within(|| coalesce("far", on)).unwrap();
        coalesce(true);
        let (mut dataplane, _events) = open(options(&[("near", Attach::Xdp), ("second", Attach::Tc)]));
        let names =
            |dataplane: &Dataplane| dataplane.attached().iter().map(|a| a.name.clone()).collect::<Vec<_>>();
        // Both come anew, and one of them cannot do what it is to do.
        a.ip("link del near");
        a.ip("link del second");
        a.cable("near", "far", &b);
        a.cable("second", "other", &b);
        assert_eq!(sysctl("near", "forwarding"), "0");
        coalesce(false);
        // What cannot be known of an interface that is not up yet is not held against it.
        running("near");
        dataplane.reconcile();
        let refused = |e: &DataplaneError| matches!(e, DataplaneError::NoXmit(name) if name == "near");
        assert!(matches!(dataplane.problems(), [error] if refused(error)), "{:?}", dataplane.problems());
        assert_eq!(names(&dataplane), ["second"]);
        assert_eq!((sysctl("near", "forwarding"), sysctl("second", "forwarding")), ("0".into(), "1".into()));
        coalesce(true);
        dataplane.reconcile();
        assert!(dataplane.problems().is_empty(), "{:?}", dataplane.problems());
        assert_eq!(names(&dataplane), ["second", "near"]);
        assert_eq!(sysctl("near", "forwarding"), "1");

        // One that is called otherwise from now on is nobody's, and is as it was before.
        a.ip("link set near down");
        a.ip("link set near name third");
        dataplane.reconcile();
        assert_eq!((names(&dataplane), sysctl("third", "forwarding")), (vec!["second".into()], "0".into()));
        assert_eq!(hooks("third"), (vec![], vec![], None));
        dataplane.close().unwrap();
    });
}

#[test]
fn an_interface_of_another_namespace_with_the_same_index_is_another() {
    if !root() {
        return;
    }
    let (a, b) = (Net::new(), Net::new());
    for net in [&a, &b] {
        net.ip("link add near index 77 type veth peer name far");
        net.ip("link set near up");
        net.ip("link set far up");
        net.within(|| coalesce("far", true)).unwrap();
    }
    a.with_bpffs(|| {
        for attach in [Attach::Tc, Attach::Xdp] {
            // The daemon ran in another namespace, was killed, and its namespace still lives.
            b.within(|| drop(open(options(&[("near", attach)]))));
            let (dataplane, _events) = open(options(&[("near", attach)]));
            let (ingress, egress, xdp) = hooks("near");
            assert_eq!((ingress.len() + usize::from(xdp.is_some()), egress.len()), (1, 1));
            assert_eq!(b.within(|| hooks("near")), (vec![], vec![], None));
            dataplane.close().unwrap();
        }
    });
}

#[test]
fn a_forwarded_flow_is_told_and_counted() {
    if !root() {
        return;
    }
    let (client, node, server) = (Net::new(), Net::new(), Net::new());
    node.cable("lan", "eth", &client);
    node.cable("wan", "eth", &server);
    node.ip("address add 10.1.0.1/24 dev lan");
    node.ip("address add 10.2.0.1/24 dev wan");
    client.ip("address add 10.1.0.2/24 dev eth");
    client.ip("route add default via 10.1.0.1");
    server.ip("address add 10.2.0.2/24 dev eth");
    server.ip("route add default via 10.2.0.1");
    node.with_bpffs(|| {
        let mut wanted = options(&[("lan", Attach::Tc), ("wan", Attach::Tc)]);
        wanted.interfaces[1].zone = 2;
        let (dataplane, mut events) = open(wanted);
        let maps = dataplane.maps();
        let now = KernelClock::new().unwrap().now_ns();
        maps.set_timeouts(&Timeouts::KERNEL).unwrap();
        maps.update_settings(|s| (s.node, s.epoch, s.route_generation) = (1, 5, 1)).unwrap();
        let rule = |name_hash| Rule {
            from: 1,
            to: 2,
            ..Rule::all(Decision { name_hash, action: Action::Accept as u8, ..Decision::default() })
        };
        maps.load_rules(&[rule(7)]).unwrap();
        let owned =
            Group { lease_until_ns: now + 600_000_000_000, since_ns: now, role: Group::ACTIVE, term: 1 };
        maps.write_group(0, &owned).unwrap();

        let far = server.within(|| UdpSocket::bind("10.2.0.2:0").unwrap());
        let near = client.within(|| UdpSocket::bind("10.1.0.2:0").unwrap());
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        }
        let mut buffer = [0; 16];
        let mut ask = || {
            near.send_to(b"ask", far.local_addr().unwrap()).unwrap();
            let (_, from) = far.recv_from(&mut buffer).unwrap();
            assert_eq!(maps.embryonic_count().unwrap(), 1, "not answered yet");
            from
        };
        ask();
        assert_eq!(maps.forget_embryonic(|_, _| true).unwrap(), 1);
        assert_eq!(maps.embryonic_count().unwrap(), 0, "though its place is as it was");
        let from = ask();
        assert_eq!(events.drain(10, |_| ()), 0);
        far.send_to(b"answer", from).unwrap();
        near.recv_from(&mut buffer).unwrap();

        await_readable(&events);
        let mut told = Vec::new();
        assert_eq!(events.drain(1, |events| told.extend_from_slice(events)), 1);
        assert_eq!(told[0].kind, FlowEventKind::Created as u32);
        assert_eq!((told[0].flow.node, told[0].flow.epoch), (1, 5));
        let flow = maps.flows().lookup(&told[0].key).unwrap().unwrap();
        assert_eq!(flow.packets(), [1, 1]);
        assert_eq!(maps.counters().unwrap()[Counter::FlowsCreated as usize], 1);
        assert_eq!(maps.rule_hits().unwrap()[&7], 2);
        // A counter belongs to a name, and a new name has a new one, whoever had it before.
        maps.load_rules(&[rule(8), rule(7)]).unwrap();
        assert_eq!(maps.rule_hits().unwrap(), HashMap::from([(7, 2), (8, 0)]));
        maps.load_rules(&[rule(8)]).unwrap();
        maps.load_rules(&[rule(8), rule(9), rule(7)]).unwrap();
        assert_eq!(maps.rule_hits().unwrap(), HashMap::from([(7, 0), (8, 0), (9, 0)]));
        assert_eq!(events.malformed(), 0);
        dataplane.close().unwrap();
    });
}

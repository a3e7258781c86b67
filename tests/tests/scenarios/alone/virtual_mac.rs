//! Virtual MACs (RFC 9568, 7.3): neighbours know the group's addresses by one MAC for ever, whoever is Active; and what
//! the nodes say of these addresses, and from where, as heard at the switch.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{
    Attach, Cable, Host, LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP, Lab, LabOptions, Node, PING6, SERVER6,
};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;
use fwha_tests::sys::{packet_socket, receive};
use fwha_tests::traffic::Probe;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

type Mac = [u8; 6];

/// Of VRID 62, which has the LAN's addresses in the lab.
const MAC: Mac = [0, 0, 0x5e, 0, 1, 62];
const MAC6: Mac = [0, 0, 0x5e, 0, 2, 62];
/// "No two seconds of nobody", for takeovers after a death.
const OUTAGE_MS: f64 = 2000.0;

/// What one frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// Of a virtual address, by ARP or neighbour discovery: where it is. Nothing, if it does not say.
    Where(IpAddr, Option<Mac>),
    /// VRRP.
    Advert { v6: bool },
    /// Nothing that matters here.
    Other,
}

/// Frames of one node on the LAN that come from a virtual MAC or speak for a virtual address.
struct Ears {
    heard: Arc<Mutex<Vec<(Mac, Said)>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Ears {
    /// Listens at the switch's end of the node's cable.
    fn at(lab: &Lab, node: Node) -> Result<Self> {
        let socket = lab.within(Host::Switch, || packet_socket(&format!("{node}-lan")))??;
        let (heard, stop) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(AtomicBool::new(false)));
        let (list, end) = (Arc::clone(&heard), Arc::clone(&stop));
        let thread = std::thread::spawn(move || -> Result<()> {
            while !end.load(Ordering::Relaxed) {
                let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                poll(&mut ready, PollTimeout::from(50u8))?;
                // The port goes down when the cable is cut.
                while let Ok(Some(received)) = receive(socket.as_fd()) {
                    let from = mac_at(&received.frame, 6).context("a frame without addresses")?;
                    let said = read(&received.frame);
                    if said != Said::Other || from[..5] == MAC[..5] || from[..5] == MAC6[..5] {
                        list.lock().expect("no panic").push((from, said));
                    }
                }
            }
            Ok(())
        });
        Ok(Self { heard, stop, thread: Some(thread) })
    }

    /// What was heard since the last call.
    fn take(&self) -> Vec<(Mac, Said)> {
        std::mem::take(&mut *self.heard.lock().expect("no panic"))
    }

    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().context("a thread")?.join().expect("no panic")
    }
}

impl Drop for Ears {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn mac_at(frame: &[u8], at: usize) -> Option<Mac> {
    frame.get(at..at + 6)?.try_into().ok()
}

fn is_vip(address: IpAddr) -> bool {
    [LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP].iter().any(|vip| vip.parse() == Ok(address))
}

/// What a frame says.
fn read(frame: &[u8]) -> Said {
    let about = |address: Option<IpAddr>, mac| match address {
        Some(address) if is_vip(address) => Said::Where(address, mac),
        _ => Said::Other,
    };
    let v4 = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(frame.get(at..at + 4)?).ok()?).into());
    let v6 = |at: usize| Some(Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(at..at + 16)?).ok()?).into());
    let option =
        |at: usize, kind: u8| (frame.get(at..at + 2)? == [kind, 1]).then(|| mac_at(frame, at + 2))?;
    match (frame.get(12..14), frame.get(23), frame.get(20), frame.get(54)) {
        (Some([8, 6]), ..) => about(v4(28), mac_at(frame, 22)),
        (Some([8, 0]), Some(112), ..) => Said::Advert { v6: false },
        (Some([0x86, 0xdd]), _, Some(112), _) => Said::Advert { v6: true },
        (Some([0x86, 0xdd]), _, Some(58), Some(135)) => about(v6(22), option(78, 1)),
        (Some([0x86, 0xdd]), _, Some(58), Some(136)) => about(v6(62), option(78, 2)),
        _ => Said::Other,
    }
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Gives the lab's group virtual MACs.
fn configure(lab: &Lab) -> Result<()> {
    let text = fs::read_to_string(lab.config_path())?;
    let with = text.replacen("name = \"gateway\"\n", "name = \"gateway\"\nvirtual-mac = true\n", 1);
    ensure!(with != text, "{text}");
    Ok(fs::write(lab.config_path(), with)?)
}

/// Checks that the client knows the group's addresses by their virtual MACs.
fn check_entries(lab: &Lab) -> Result<()> {
    for (vip, mac) in [(LAN_VIP, MAC), (LAN_VIP6, MAC6), (LINK_LOCAL_VIP, MAC6)] {
        let known = lab.neighbour_mac(vip)?;
        ensure!(known == Some(text(mac)), "{vip} is at {known:?}");
    }
    Ok(())
}

/// The group's addresses answer, from a client that asks for each of them anew; and the way through the group works.
fn check_answers(lab: &Lab) -> Result<()> {
    for vip in [LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP] {
        // Not there is as good as deleted.
        lab.try_exec(Host::Client, &["ip", "neighbour", "delete", vip, "dev", "eth0"])?;
        let to = if vip == LINK_LOCAL_VIP { format!("{vip}%eth0") } else { vip.to_owned() };
        lab.wait_for(&format!("an answer of {vip}"), PATIENCE, || {
            Ok(Some(lab.exec(Host::Client, &["ping", "-c1", "-W1", &to])?))
        })?;
    }
    check_entries(lab)?;
    lab.exec(Host::Client, &["ping", "-c1", "-W5", SERVER6])?;
    Ok(())
}

/// Who asks in [`arp_answers`]: nobody else, so that its answers are told from those to the client.
const ASKER: Ipv4Addr = Ipv4Addr::new(192, 168, 100, 99);

/// Asks for the group's address by ARP so often, and counts the answers.
fn arp_answers(lab: &Lab, questions: usize) -> Result<usize> {
    let link = lab.exec(Host::Client, &["ip", "-brief", "link", "show", "eth0"])?;
    let own = link.split_whitespace().nth(2).context("a MAC")?;
    let own: Vec<u8> = own.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let socket = lab.within(Host::Client, || packet_socket("eth0"))??;
    let mut question = [&[0xff; 6], &own[..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &own[..]].concat();
    question.extend(ASKER.octets());
    question.extend([0; 6]);
    question.extend(LAN_VIP.parse::<Ipv4Addr>()?.octets());
    let mut answers = 0;
    for _ in 0..questions {
        nix::unistd::write(&socket, &question)?;
        // Long enough for a second one, which there must not be.
        let until = Instant::now() + Duration::from_millis(100);
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
            poll(&mut ready, PollTimeout::try_from(left)?)?;
            let Some(received) = receive(socket.as_fd())? else { continue };
            let reply = received.frame.get(20..22) == Some(&[0, 2]);
            let to_asker = received.frame.get(38..42) == Some(&ASKER.octets());
            answers += usize::from(reply && to_asker && matches!(read(&received.frame), Said::Where(..)));
        }
    }
    Ok(answers)
}

/// What a node said while it was Active, and that it said nothing wrong.
fn check_active(heard: &[(Mac, Said)]) -> Result<()> {
    for (from, said) in heard {
        let right = match said {
            Said::Where(address, mac) => {
                let expected = if address.is_ipv4() { MAC } else { MAC6 };
                *from == expected && mac.is_none_or(|mac| mac == expected)
            }
            Said::Advert { v6 } => *from == if *v6 { MAC6 } else { MAC },
            Said::Other => false,
        };
        ensure!(right, "{said:?} from {}", text(*from));
    }
    let adverts: BTreeSet<bool> = heard
        .iter()
        .filter_map(|(_, said)| if let Said::Advert { v6 } = said { Some(*v6) } else { None })
        .collect();
    ensure!(adverts == [false, true].into(), "it advertises for both families: {heard:?}");
    ensure!(heard.iter().any(|(_, said)| matches!(said, Said::Where(_, Some(_)))), "it answers: {heard:?}");
    Ok(())
}

/// Lets several adverts pass with all that is said meanwhile, and checks what either node says.
fn check_both(lab: &Lab, pair: &Pair, ears: &[Ears; 2], active: Node) -> Result<()> {
    ears.iter().for_each(|ears| drop(ears.take()));
    let adverts = pair.node(active.peer()).count("vrrp.vrrp_rx.adverts")?;
    let answered = [Node::Fw1, Node::Fw2].map(|node| pair.node(node).count("flows.vip_answered"));
    check_answers(lab)?;
    let answers = arp_answers(lab, 10)?;
    ensure!(answers == 10, "{answers} answers to 10 questions");
    pair.wait_for_count(lab, active.peer(), "vrrp.vrrp_rx.adverts", adverts + 4)?;
    check_active(&ears[active as usize].take())?;
    let backup = ears[active.peer() as usize].take();
    ensure!(backup.is_empty(), "the Backup is silent: {backup:?}");
    for (node, before) in [Node::Fw1, Node::Fw2].into_iter().zip(answered) {
        let more = pair.node(node).count("flows.vip_answered")? - before?;
        ensure!((more >= 10) == (node == active), "{node} answered {more} times");
    }
    Ok(())
}

#[test]
fn neighbours_know_one_mac_for_ever_by_tc() {
    neighbours_know_one_mac_for_ever(Attach::Tc);
}

#[test]
fn neighbours_know_one_mac_for_ever_by_xdp() {
    neighbours_know_one_mac_for_ever(Attach::Xdp);
}

fn neighbours_know_one_mac_for_ever(attach: Attach) {
    let options = LabOptions { attach, ipv6: true, extra_config: PING6.into(), ..LabOptions::default() };
    in_lab(options, |lab| {
        configure(lab)?;
        let ears = [Ears::at(lab, Node::Fw1)?, Ears::at(lab, Node::Fw2)?];
        let (mut pair, first) = Pair::settled(lab)?;
        lab.route6_through_group()?;
        check_both(lab, &pair, &ears, first)?;

        // A planned move, in the middle of traffic.
        let mut probe = Probe::start(lab)?;
        pair.node(first).ctl(&["switchover"])?;
        let second = pair.settle(lab)?;
        ensure!(second == first.peer());
        check_entries(lab)?;
        check_both(lab, &pair, &ears, second)?;
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("switchover: {report:?}");
        ensure!(report.outage_ms < OUTAGE_MS && report.duplicates == 0, "{report:?}");

        // A death.
        let mut probe = Probe::start(lab)?;
        let cut = lab.prepare_cut(second, Cable::All)?;
        cut.now()?;
        pair.node_mut(second).kill()?;
        pair.wait_for_role(lab, first, "active")?;
        check_entries(lab)?;
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("takeover: {report:?}");
        ensure!(report.outage_ms < OUTAGE_MS && report.duplicates == 0, "{report:?}");
        check_answers(lab)?;
        check_active(&ears[first as usize].take())?;
        ears.into_iter().try_for_each(Ears::end)
    });
}

#[test]
fn virtual_macs_come_and_go_with_a_reload() {
    // By XDP, which needs one more program for them.
    in_lab(LabOptions { attach: Attach::Xdp, ..LabOptions::default() }, |lab| {
        let without = fs::read_to_string(lab.config_path())?;
        let (mut pair, active) = Pair::settled(lab)?;
        let own = lab.lan_mac(active)?;
        let mut probe = Probe::start(lab)?;
        let reload = || -> Result<()> {
            for node in Node::ALL {
                let reply = pair.node(node).ctl(&["reload"])?;
                ensure!(reply["applied"] == true, "{reply}");
            }
            Ok(())
        };
        let known = |mac: &str| {
            // Nobody asks: the node says so.
            lab.wait_for("the client to know another MAC", PATIENCE, || {
                Ok((lab.neighbour_mac(LAN_VIP)?.as_deref() == Some(mac)).then_some(()))
            })?;
            lab.exec(Host::Client, &["ping", "-c1", "-W5", LAN_VIP])
        };
        known(&own)?;
        configure(lab)?;
        reload()?;
        known(&text(MAC))?;
        fs::write(lab.config_path(), without)?;
        reload()?;
        known(&own)?;
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("two reloads: {report:?}");
        ensure!(report.outage_ms < OUTAGE_MS && report.duplicates == 0, "{report:?}");
        ensure!(pair.settle(lab)? == active);
        Ok(())
    });
}

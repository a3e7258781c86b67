//! The cluster file is read again under way: what changed changes, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fwha::sys::bpf::{AttachType, tcx_links};
use fwha_tests::lab::{
    CLIENT, Host, INET_VIP, INET_VIP6, LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP, Lab, LabOptions, Node, NodeProcess,
    SERVER, SERVER6,
};
use fwha_tests::pair::{PATIENCE, Pair, in_sync};
use fwha_tests::scenario::{in_lab, with_pair};
use fwha_tests::traffic::Probe;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// How long a connection is tried that must not succeed: long enough for the first SYN to be judged.
const TRY: Duration = Duration::from_millis(300);
const PORT: u16 = 8085;
/// One more address beside [`INET_VIP`].
const NEW_VIP: &str = "10.0.0.13";

/// Admits from the inet zone what the lab's file does not.
const WEB_IN: &str = r#"
[[rule]]
name = "web-in"
from = "inet"
to = "lan"
services = ["tcp/8085", "udp/8085"]
action = "accept"
"#;

/// Admits to the node itself what the lab's file does not.
const NODE_IN: &str = r#"
[[rule]]
name = "node-in"
from = "lan"
to = "node"
services = ["tcp/8085"]
action = "accept"
"#;

/// Writes the cluster file anew, with one piece replaced.
fn edit(lab: &Lab, old: &str, new: &str) -> Result<()> {
    let text = fs::read_to_string(lab.config_path())?;
    ensure!(text.contains(old), "{old} is not in {text}");
    fs::write(lab.config_path(), text.replacen(old, new, 1))?;
    Ok(())
}

/// Standard output, standard error, and the exit code of `fwhactl reload`.
fn reload(node: &NodeProcess, arguments: &[&str]) -> Result<(String, String, i32)> {
    let output = node.ctl_output(&[&["reload"], arguments].concat())?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1)))
}

/// Reloads on both nodes and checks what each says.
fn reload_both(pair: &Pair, arguments: &[&str], expected: &str) -> Result<()> {
    for node in Node::ALL {
        let (said, problem, code) = reload(pair.node(node), arguments)?;
        ensure!((said.as_str(), code) == (expected, 0), "{node}: {code} {said:?} {problem}");
    }
    Ok(())
}

fn warnings(node: &NodeProcess) -> Result<Vec<String>> {
    let status = node.ctl(&["status"])?;
    let warnings = status["warnings"].as_array().context("warnings")?;
    Ok(warnings.iter().filter_map(|w| w.as_str().map(str::to_owned)).collect())
}

fn wait_for_warning(lab: &Lab, node: &NodeProcess, words: &str, there: bool) -> Result<()> {
    let what = format!("{}: a warning {words:?}: {there}", node.node());
    lab.wait_for(&what, PATIENCE, || {
        Ok((warnings(node)?.iter().any(|w| w.contains(words)) == there).then_some(()))
    })
}

/// Whether the client's server on [`PORT`] can be reached from the inet side.
fn connect(lab: &Lab) -> Result<Option<TcpStream>> {
    let to: SocketAddr = format!("{CLIENT}:{PORT}").parse()?;
    match lab.within(Host::Server, || TcpStream::connect_timeout(&to, TRY))? {
        Ok(stream) => Ok(Some(stream)),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Whether a byte gets from one end to the other.
fn carries(from: &mut TcpStream, to: &mut TcpStream) -> Result<bool> {
    to.set_read_timeout(Some(TRY))?;
    from.write_all(b"x")?;
    let mut byte = [0];
    match to.read(&mut byte) {
        Ok(count) => Ok(count == 1),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whether a datagram gets from the inet side to the client, who does not answer.
fn stream(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
    to.set_read_timeout(Some(TRY))?;
    from.send_to(b"x", (CLIENT, PORT))?;
    match to.recv(&mut [0]) {
        Ok(count) => Ok(count == 1),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn flows(node: &NodeProcess) -> Result<u64> {
    let filter = ["flows", "count", "proto=tcp", &format!("dport={PORT}")];
    Ok(node.ctl(&filter)?["count"].as_u64().unwrap_or(0))
}

/// Sessions of replication and role and term, of both nodes: a reload changes none of them.
fn standing(pair: &Pair) -> Result<Vec<(String, u64, u64)>> {
    let sessions = |node: Node| pair.node(node).count(&format!("sync.peers.{}.sessions", node.peer()));
    let roles = pair.roles()?.into_iter().zip(Node::ALL);
    roles.map(|((role, term), node)| Ok((role, term, sessions(node)?))).collect()
}

#[test]
fn rules_change_at_once_and_what_lives_goes_on_until_it_is_judged_again() {
    // The peer refuses what its rules do not admit, until it has the new ones.
    let extra_config = "[replication]\nstrict = true\n".into();
    with_pair(LabOptions { extra_config, ..LabOptions::beside() }, |lab, pair| {
        let active = pair.settle(lab)?;
        let before = standing(pair)?;
        let probe = Probe::start(lab)?;
        let server = lab.within(Host::Client, || TcpListener::bind(("0.0.0.0", PORT)))??;
        ensure!(connect(lab)?.is_none(), "no rule admits it");
        let hits = pair.node(active).count("rules.lan-out")?;
        ensure!(hits > 0, "the probe's flow");

        // First in the file, so that the others have other numbers.
        edit(lab, "\n[[rule]]\nname = \"lan-out\"", &format!("{WEB_IN}\n[[rule]]\nname = \"lan-out\""))?;
        wait_for_warning(lab, pair.node(active), "is not in force: `fwhactl reload`", true)?;
        let (said, _, code) = reload(pair.node(active), &["--dry-run"])?;
        ensure!((said.as_str(), code) == ("rule \"web-in\" added\n", 0), "{code} {said}");
        ensure!(connect(lab)?.is_none(), "a dry run changes nothing");
        let reply = pair.node(active).ctl(&["reload"])?;
        ensure!(
            reply["applied"] == true && reply["changes"][0]["text"] == "rule \"web-in\" added",
            "{reply}"
        );
        let mut from = connect(lab)?.context("it is admitted now")?;
        let (mut to, _) = server.accept()?;
        ensure!(carries(&mut from, &mut to)?, "it carries");
        let listener = lab.within(Host::Client, || UdpSocket::bind(("0.0.0.0", PORT)))??;
        let sender = lab.within(Host::Server, || UdpSocket::bind("0.0.0.0:0"))??;
        ensure!(stream(&sender, &listener)?, "so does what is never answered");

        // The peers run with different files until the other has read it, too.
        for node in Node::ALL {
            wait_for_warning(lab, pair.node(node), "runs with another cluster file", true)?;
        }
        let (said, _, code) = reload(pair.node(active.peer()), &[])?;
        ensure!((said.as_str(), code) == ("rule \"web-in\" added\n", 0), "{code} {said}");
        for node in Node::ALL {
            for words in ["another cluster file", "other rules", "not in force"] {
                wait_for_warning(lab, pair.node(node), words, false)?;
            }
        }
        reload_both(pair, &[], "nothing changed\n")?;

        // A file by which nobody can log in is one without mistakes, and is told of before it is in force.
        const LOGIN: &str = "services = [\"tcp/22\", \"icmp\"]";
        edit(lab, LOGIN, "services = [\"icmp\"]")?;
        let (_, problem, code) = reload(pair.node(active), &["--dry-run"])?;
        ensure!(code == 0 && problem.contains("nobody can log in"), "{code} {problem}");
        edit(lab, "services = [\"icmp\"]", LOGIN)?;
        let (_, problem, _) = reload(pair.node(active), &["--dry-run"])?;
        ensure!(problem.is_empty(), "what is so already is not told again: {problem}");

        // Counters belong to names.
        ensure!(pair.node(active).count("rules.web-in")? == 2, "a connection, a stream");
        ensure!(pair.node(active).count("rules.lan-out")? >= hits, "those before the reload count");
        ensure!(pair.node(active).count("rules.admin")? == 0, "nobody else's");

        // Without the rule nothing new comes in, but what is there goes on, by SIGHUP as well.
        edit(lab, WEB_IN, "")?;
        pair.node(active).reload()?;
        lab.wait_for("the event of the reload", PATIENCE, || {
            let events = pair.node(active).ctl_lines(&["events"])?;
            let removed = |e: &Value| e["kind"] == "reload" && e["text"] == "rule \"web-in\" removed";
            Ok(events.iter().any(removed).then_some(()))
        })?;
        ensure!(connect(lab)?.is_none(), "no rule admits it any more");
        ensure!(carries(&mut from, &mut to)? && carries(&mut to, &mut from)?, "the old one lives on");
        reload(pair.node(active.peer()), &[])?;

        ensure!(stream(&sender, &listener)?, "that nobody answers it changes nothing");

        // Judged again, they end on both nodes, and only they.
        lab.wait_for("the flow on the peer", PATIENCE, || {
            Ok((flows(pair.node(active.peer()))? == 1).then_some(()))
        })?;
        let (said, _, code) = reload(pair.node(active.peer()), &["--revalidate"])?;
        let none = "nothing changed\n0 flows ended that the rules do not admit\n";
        ensure!((said.as_str(), code) == (none, 0), "they belong to the active one: {code} {said}");
        let (said, _, code) = reload(pair.node(active), &["--revalidate"])?;
        let two = "nothing changed\n2 flows ended that the rules do not admit\n";
        ensure!((said.as_str(), code) == (two, 0), "{code} {said}");
        ensure!(!carries(&mut from, &mut to)?, "it is not admitted any more");
        ensure!(!stream(&sender, &listener)?, "nor what nobody answered");
        for node in Node::ALL {
            lab.wait_for("the flow to be gone", PATIENCE, || {
                Ok((flows(pair.node(node))? == 0).then_some(()))
            })?;
        }

        let report = probe.end()?;
        println!("probe through four reloads: {report:?}");
        ensure!((report.lost, report.duplicates) == (0, 0), "{report:?}");
        ensure!(standing(pair)? == before, "{before:?} {:?}", standing(pair)?);
        ensure!(pair.settle(lab)? == active);
        Ok(())
    });
}

#[test]
fn a_connection_to_the_node_itself_ends_though_its_own_end_lives_on() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        edit(lab, "\n[[rule]]\nname = \"admin\"", &format!("{NODE_IN}\n[[rule]]\nname = \"admin\""))?;
        reload_both(pair, &[], "rule \"node-in\" added\n")?;
        let to = (active.lan_addresses()[0], PORT);
        let listener = lab.within(active.host(), || TcpListener::bind(to))??;
        let mut client = lab.within(Host::Client, || TcpStream::connect(to))??;
        let (mut node, _) = listener.accept()?;
        edit(lab, NODE_IN, "")?;
        reload_both(pair, &[], "rule \"node-in\" removed\n")?;
        ensure!(carries(&mut client, &mut node)? && carries(&mut node, &mut client)?, "it lives on");

        let ended = |count| format!("nothing changed\n{count} ended that the rules do not admit\n");
        let judge = |count| -> Result<()> {
            let (said, _, code) = reload(pair.node(active), &["--revalidate"])?;
            ensure!((said.as_str(), code) == (ended(count).as_str(), 0), "{code} {said}");
            Ok(())
        };
        judge("1 flow")?;
        ensure!(carries(&mut node, &mut client)?, "what the node sends leaves");
        // Nobody acknowledges that, so the node sends it again and again.
        for _ in 0..3 {
            ensure!(!carries(&mut client, &mut node)?, "it lets nothing in");
            judge("0 flows")?;
        }
        ensure!(flows(pair.node(active))? == 0, "it is listed no more");
        Ok(())
    });
}

#[test]
fn every_packet_meets_one_ruleset_as_a_whole() {
    const RELOADS: usize = 20;
    const FILLERS: usize = 200;
    with_pair(LabOptions::beside(), |lab, pair| {
        let node = pair.settle(lab)?;
        let node = pair.node(node);
        // One ruleset has the rule that admits first, the other behind many that do not match.
        let short = fs::read_to_string(lab.config_path())?;
        let filler = |n| {
            format!("[[rule]]\nname = \"filler-{n}\"\nfrom = \"inet\"\nto = \"lan\"\naction = \"drop\"\n")
        };
        let fillers: String = (0..FILLERS).map(filler).collect();
        let long = short.replacen("[[rule]]", &format!("{fillers}[[rule]]"), 1);
        let drops = || Ok::<_, anyhow::Error>((node.count("drops.no_rule")?, node.count("drops.rule")?));
        let (before, hits) = (drops()?, node.count("rules.lan-out")?);
        let socket = lab.within(Host::Client, || UdpSocket::bind("0.0.0.0:0"))??;
        let stop = AtomicBool::new(false);
        let took = thread::scope(|scope| -> Result<f64> {
            // Every port is a new flow, and each is judged.
            scope.spawn(|| {
                for port in (10_000..60_000).cycle().take_while(|_| !stop.load(Ordering::Relaxed)) {
                    // That nobody listens is of no interest.
                    let _ = socket.send_to(b"x", (SERVER, port));
                }
            });
            let reloads = || -> Result<f64> {
                let mut took = 0.0;
                for text in [&long, &short].into_iter().cycle().take(RELOADS) {
                    fs::write(lab.config_path(), text)?;
                    let reply = node.ctl(&["reload"])?;
                    ensure!(reply["applied"] == true, "{reply}");
                    took += reply["took_ms"].as_f64().context("a time")?;
                }
                Ok(took)
            };
            let took = reloads();
            stop.store(true, Ordering::Relaxed);
            took
        })?;
        let judged = node.count("rules.lan-out")? - hits;
        println!("{RELOADS} reloads of {took:.1} ms together, {judged} packets judged meanwhile");
        ensure!(judged > 1000, "{judged}");
        ensure!(drops()? == before, "{before:?} {:?}", drops()?);
        Ok(())
    });
}

/// Virtual addresses on an interface, as `ip` tells of them, with all that could change.
fn addresses(lab: &Lab, node: Node, interface: &str) -> Result<Vec<String>> {
    let all = lab.exec(node.host(), &["ip", "-oneline", "-4", "address", "show", "dev", interface])?;
    // What is after the first backslash is how long they live, which is renewed.
    let of = |line: &str| line.split('\\').next().unwrap_or_default().trim().to_owned();
    Ok(all.lines().map(of).collect())
}

/// Sender addresses of the gratuitous ARP that `socket` has heard within `time`.
fn announced(socket: &Socket, time: Duration) -> Result<BTreeSet<Ipv4Addr>> {
    const ARP: usize = 14;
    let mut heard = BTreeSet::new();
    let until = Instant::now() + time;
    let mut frame = [0; 2048];
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        let Ok(length) = (&*socket).read(&mut frame) else { continue };
        if length < ARP + 28 || frame[12..14] != [0x08, 0x06] {
            continue;
        }
        let address = |at: usize| <[u8; 4]>::try_from(&frame[ARP + at..ARP + at + 4]).map(Ipv4Addr::from);
        let (sender, target) = (address(14)?, address(24)?);
        heard.extend((sender == target).then_some(sender));
    }
    Ok(heard)
}

#[test]
fn a_new_address_comes_alone_and_a_removed_one_goes_alone() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        // What a takeover announces is announced several times, for the last time after five seconds.
        let arp = lab.within(Host::Server, || {
            Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(0x0806u16.to_be()))))
        })??;
        lab.wait_for("silence", PATIENCE, || {
            Ok(announced(&arp, Duration::from_secs(5))?.is_empty().then_some(()))
        })?;
        let before = standing(pair)?;
        let mut probe = Probe::start(lab)?;
        let old: Vec<_> =
            ["wan", "lan"].map(|i| addresses(lab, active, i)).into_iter().collect::<Result<_>>()?;

        let (one, two) = (format!("\"{INET_VIP}/24\""), format!("\"{INET_VIP}/24\", \"{NEW_VIP}/24\""));
        edit(lab, &one, &two)?;
        edit(lab, "nodes = [\"fw1\", \"fw2\"]", "nodes = [\"fw1\", \"fw2\"]\nadvert-interval = \"500ms\"")?;
        let told = format!(
            "group \"gateway\": advert-interval: 1s -> 500ms\nvip {NEW_VIP}/24 added to group gateway\n"
        );
        reload_both(pair, &[], &told)?;
        let [wan, lan] = ["wan", "lan"].map(|i| addresses(lab, active, i));
        let wan = wan?;
        ensure!(wan.iter().filter(|a| a.contains(&format!("{NEW_VIP}/24"))).count() == 1, "{wan:?}");
        ensure!(old[0].iter().all(|a| wan.contains(a)) && wan.len() == old[0].len() + 1, "{old:?} {wan:?}");
        ensure!(lan? == old[1], "nothing else");
        let backup = addresses(lab, active.peer(), "wan")?;
        ensure!(!backup.iter().any(|a| a.contains(NEW_VIP) || a.contains(INET_VIP)), "{backup:?}");
        let heard = announced(&arp, Duration::from_secs(2))?;
        ensure!(heard == BTreeSet::from([NEW_VIP.parse()?]), "{heard:?}");
        // Whoever asks is answered.
        let ping = lab.exec(Host::Server, &["ip", "neigh", "show", NEW_VIP])?;
        println!("announced {heard:?}, neighbour {}", ping.trim());
        let status = pair.node(active).ctl(&["status"])?;
        ensure!(status["groups"][0]["vips"].to_string().contains(NEW_VIP), "{status}");
        ensure!(pair.settle(lab)? == active);
        ensure!(standing(pair)? == before, "{before:?} {:?}", standing(pair)?);
        for node in Node::ALL {
            for words in ["another cluster file", "does not hear"] {
                wait_for_warning(lab, pair.node(node), words, false)?;
            }
            let events = pair.node(node).ctl_lines(&["events"])?;
            ensure!(!events.iter().any(|e| e["kind"] == "adverts"), "{events:?}");
        }
        ensure!(
            pair.node(active.peer()).count("vrrp.vrrp_discarded.unknown_vrid")? == 0,
            "it is one virtual router, with one more address"
        );

        // It moves with the group like the others, and goes alone.
        pair.node(active).ctl(&["switchover"])?;
        let active = active.peer();
        ensure!(pair.settle(lab)? == active);
        let before = standing(pair)?;
        let wan = addresses(lab, active, "wan")?;
        ensure!(
            wan.iter().any(|a| a.contains(NEW_VIP)) && wan.iter().any(|a| a.contains(INET_VIP)),
            "{wan:?}"
        );
        lab.wait_for("silence", PATIENCE, || {
            Ok(announced(&arp, Duration::from_secs(5))?.is_empty().then_some(()))
        })?;
        edit(lab, &two, &one)?;
        reload_both(pair, &[], &format!("vip {NEW_VIP}/24 removed from group gateway\n"))?;
        let after = addresses(lab, active, "wan")?;
        let rest: Vec<_> = wan.into_iter().filter(|a| !a.contains(NEW_VIP)).collect();
        ensure!(after == rest, "{after:?} {rest:?}");
        ensure!(announced(&arp, Duration::from_secs(2))?.is_empty(), "nothing is new");

        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("probe: {report:?}");
        ensure!(report.duplicates == 0, "{report:?}");
        ensure!(standing(pair)? == before, "{before:?} {:?}", standing(pair)?);
        Ok(())
    });
}

/// Whether a node has an address on the LAN.
fn has(lab: &Lab, node: Node, address: &str) -> Result<bool> {
    Ok(addresses(lab, node, "lan")?.iter().any(|a| a.contains(&format!(" {address}/"))))
}

/// The node that is Active in a group, as both say.
fn active_in(pair: &Pair, group: &str) -> Result<Option<Node>> {
    let mut said = BTreeSet::new();
    for node in Node::ALL {
        let status = pair.node(node).ctl(&["status"])?;
        let groups = status["groups"].as_array().context("groups")?;
        let group = groups.iter().find(|g| g["name"] == group).context("the group")?;
        said.insert(group["active"].as_str().unwrap_or_default().to_owned());
    }
    Ok(if said.len() == 1 { said.first().and_then(|name| Node::by_name(name)) } else { None })
}

#[test]
fn an_address_moves_from_one_group_to_another_and_is_never_nowhere() {
    const MOVED: &str = "192.168.100.13";
    let other = "\n[[group]]\nname = \"other\"\nnodes = [\"fw2\", \"fw1\"]\npreempt = true\n\
                 vips = [{ zone = \"lan\", vrid = 70, addresses = [\"192.168.100.70/24\"] }]\n";
    in_lab(LabOptions { extra_config: other.into(), ..LabOptions::beside() }, |lab| {
        let in_gateway = (format!("\"{LAN_VIP}/24\""), format!("\"{LAN_VIP}/24\", \"{MOVED}/24\""));
        let in_other = ("\"192.168.100.70/24\"".to_owned(), format!("\"192.168.100.70/24\", \"{MOVED}/24\""));
        edit(lab, &in_gateway.0, &in_gateway.1)?;
        let mut pair = Pair::start(lab)?;
        let holder = pair.settle(lab)?;
        let other = holder.peer();
        if other == Node::Fw1 {
            pair.node(Node::Fw2).ctl(&["switchover", "other"])?;
        }
        lab.wait_for("the groups to be on two nodes", PATIENCE, || {
            let apart =
                active_in(&pair, "gateway")? == Some(holder) && active_in(&pair, "other")? == Some(other);
            Ok((apart && has(lab, holder, MOVED)? && !has(lab, other, MOVED)?).then_some(()))
        })?;
        let told = |from: &str, to: &str| {
            let lines = [
                format!("vip {MOVED}/24 removed from group {from}\n"),
                format!("vip {MOVED}/24 added to group {to}\n"),
            ];
            move |said: &str| lines.iter().all(|line| said.contains(line)) && said.lines().count() == 2
        };
        let known = |node: Node| -> Result<Option<()>> {
            Ok((lab.neighbour_mac(MOVED)? == Some(lab.lan_mac(node)?)).then_some(()))
        };
        let ping = || lab.exec(Host::Client, &["ping", "-c1", "-W5", MOVED]);
        ping()?;
        // The one that has it reads the file first, then the other way round.
        for (from, to, first, last) in
            [("gateway", "other", holder, other), ("other", "gateway", holder, other)]
        {
            let (source, target) = if from == "gateway" { (holder, other) } else { (other, holder) };
            let [old, new] =
                if from == "gateway" { [&in_gateway, &in_other] } else { [&in_other, &in_gateway] };
            edit(lab, &old.1, &old.0)?;
            edit(lab, &new.0, &new.1)?;
            let stop = AtomicBool::new(false);
            thread::scope(|scope| -> Result<()> {
                let watch = scope.spawn(|| -> Result<u32> {
                    let mut looks = 0;
                    while !stop.load(Ordering::Relaxed) {
                        ensure!(has(lab, target, MOVED)? || has(lab, source, MOVED)?, "it is nowhere");
                        looks += 1;
                    }
                    Ok(looks)
                });
                let moves = || -> Result<()> {
                    let (said, problem, code) = reload(pair.node(first), &[])?;
                    ensure!(code == 0 && told(from, to)(&said), "{code} {said} {problem}");
                    if first == source {
                        // Nobody else has it for as long as nobody else has the file.
                        lab.wait_for("a few looks", PATIENCE, || {
                            let events = pair.node(first).ctl_lines(&["events"])?;
                            Ok(events.iter().any(|e| e["kind"] == "vip-moves").then_some(()))
                        })?;
                        ensure!(has(lab, source, MOVED)? && !has(lab, target, MOVED)?);
                        ping()?;
                    } else {
                        ensure!(has(lab, target, MOVED)?, "it is there at once");
                    }
                    let (said, problem, code) = reload(pair.node(last), &[])?;
                    ensure!(code == 0 && told(from, to)(&said), "{code} {said} {problem}");
                    ensure!(has(lab, target, MOVED)?, "it is there");
                    lab.wait_for("the other to let go", PATIENCE, || {
                        Ok((!has(lab, source, MOVED)?).then_some(()))
                    })?;
                    lab.wait_for("the client to know", PATIENCE, || known(target))?;
                    ping()?;
                    Ok(())
                };
                let moved = moves();
                stop.store(true, Ordering::Relaxed);
                let looks = watch.join().expect("no panic")?;
                println!("{from} to {to}: {looks} looks");
                moved
            })?;
        }
        Ok(())
    });
}

#[test]
fn virtual_routers_of_ipv6_come_under_way() {
    in_lab(LabOptions { ipv6: true, ..LabOptions::beside() }, |lab| {
        let whole = fs::read_to_string(lab.config_path())?;
        for vip6 in [INET_VIP6, LAN_VIP6] {
            edit(lab, &format!(", \"{LINK_LOCAL_VIP}/64\", \"{vip6}/64\""), "")?;
        }
        let (mut pair, active) = Pair::settled(lab)?;
        lab.route6_through_group()?;
        let mut probe = Probe::start(lab)?;
        let ping = |to: &str, wait: &str| lab.try_exec(Host::Client, &["ping", "-c1", wait, to]);
        ensure!(!ping(SERVER6, "-W1")?.status.success(), "there is no next hop yet");

        fs::write(lab.config_path(), whole)?;
        for node in Node::ALL {
            let (said, problem, code) = reload(pair.node(node), &[])?;
            ensure!(code == 0 && said.lines().count() == 4, "{code} {said} {problem}");
            ensure!(said.contains(&format!("vip {LAN_VIP6}/64 added to group gateway")), "{said}");
        }
        ensure!(ping(SERVER6, "-W5")?.status.success(), "the new addresses are there, and known");
        let adverts = |node: Node| pair.node(node).count("vrrp.vrrp_rx.adverts");
        let before = adverts(active.peer())?;
        pair.wait_for_count(lab, active.peer(), "vrrp.vrrp_rx.adverts", before + 3)?;
        let stats = pair.node(active).ctl(&["stats", "vrrp"])?;
        ensure!(stats.pointer("/vrrp/vrrp_tx/no_address").is_none(), "{stats}");
        ensure!(pair.settle(lab)? == active);

        // The Backup takes them over as if they had always been there.
        pair.node_mut(active).kill()?;
        pair.wait_for_role(lab, active.peer(), "active")?;
        lab.wait_for_answer(Host::Client, SERVER6)?;
        probe.wait_for_more_answers()?;
        Ok(())
    });
}

#[test]
fn an_interface_comes_into_a_zone_and_goes() {
    const NEW: &str = "lan2";
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let before = standing(pair)?;
        let probe = Probe::start(lab)?;
        let (one, two) = ("interfaces = [\"lan\"]", format!("interfaces = [\"lan\", \"{NEW}\"]"));
        edit(lab, one, &two)?;
        let (_, problem, code) = reload(pair.node(active), &[])?;
        let words = format!("{active} has no interface \"{NEW}\"");
        ensure!(code == 1 && problem.contains(&words) && problem.contains("^^^^^^"), "{code} {problem}");

        let forwarding = format!("net.ipv4.conf.{NEW}.forwarding");
        for node in Node::ALL {
            lab.exec(node.host(), &["ip", "link", "add", NEW, "type", "veth", "peer", "name", "far"])?;
            lab.exec(node.host(), &["ip", "link", "set", NEW, "up"])?;
            lab.exec(node.host(), &["sysctl", "-q", "-w", &format!("{forwarding}=0")])?;
        }
        let change = |node: &Node| format!("zone \"lan\": interfaces of {node}: ");
        let shown = |node: &NodeProcess| -> Result<Option<String>> {
            let status = node.ctl(&["status"])?;
            let interfaces = status["interfaces"].as_array().context("interfaces")?;
            Ok(interfaces.iter().find(|i| i["interface"] == NEW).map(|i| i["zone"].to_string()))
        };
        let forwards = |node: Node| lab.exec(node.host(), &["sysctl", "-n", &forwarding]);
        for node in Node::ALL {
            let (said, problem, code) = reload(pair.node(node), &[])?;
            let words = Node::ALL.map(|node| format!("{}lan -> lan, {NEW}\n", change(&node))).concat();
            ensure!((said.as_str(), code) == (words.as_str(), 0), "{code} {said} {problem}");
            ensure!(shown(pair.node(node))?.as_deref() == Some("\"lan\""));
            ensure!(forwards(node)?.trim() == "1");
        }
        edit(lab, &two, one)?;
        for node in Node::ALL {
            let (said, problem, code) = reload(pair.node(node), &[])?;
            ensure!(said.starts_with(&change(&Node::Fw1)) && code == 0, "{code} {said} {problem}");
            ensure!(shown(pair.node(node))?.is_none() && forwards(node)?.trim() == "0");
            let links = lab.within(node.host(), || -> Result<_> {
                let index = nix::net::if_::if_nametoindex(NEW)?;
                Ok(tcx_links(index, AttachType::BPF_TCX_INGRESS)?.len()
                    + tcx_links(index, AttachType::BPF_TCX_EGRESS)?.len())
            })??;
            ensure!(links == 0, "{links} programs are left");
        }
        let report = probe.end()?;
        ensure!((report.lost, report.duplicates) == (0, 0), "{report:?}");
        ensure!(standing(pair)? == before, "{before:?} {:?}", standing(pair)?);
        Ok(())
    });
}

#[test]
fn timeouts_limits_and_hooks_hold_at_once() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let mut probe = Probe::start(lab)?;
        probe.wait_for_more_answers()?;
        let flow = |node: &NodeProcess| -> Result<Value> {
            node.ctl_lines(&["flows", "proto=udp", "state=assured"])?.pop().context("the probe's flow")
        };
        lab.wait_for("the probe to be a stream", PATIENCE, || Ok(flow(pair.node(active)).ok()))?;
        let told = lab.dir().join("told");
        let text = fs::read_to_string(lab.config_path())?;
        let more = format!(
            "\n[timeouts]\nudp-stream = \"1h\"\n[limits]\nnew-flows-per-second = 1\n[[hook]]\nname = \"tell\"\n\
             command = [\"/bin/sh\", \"-c\", \"echo $FWHA_NODE $FWHA_ROLE >> {}\"]\non = [\"active\"]\n",
            told.display()
        );
        fs::write(lab.config_path(), text.clone() + &more)?;
        let words = "[timeouts] udp-stream: 2m -> 1h\n[limits] new-flows-per-second: none -> 1\nhook \"tell\" added\n";
        reload_both(pair, &[], words)?;
        let left = flow(pair.node(active))?["timeout_ms"].as_u64().context("a timeout")?;
        ensure!(left > 3_500_000, "{left}");
        ensure!(!told.exists(), "nothing has happened yet");
        pair.node(active).ctl(&["switchover"])?;
        let expected = format!("{} active\n", active.peer());
        lab.wait_for("the new hook to run", PATIENCE, || {
            Ok((fs::read_to_string(&told).unwrap_or_default() == expected).then_some(()))
        })?;
        ensure!(pair.settle(lab)? == active.peer());
        // As fast as they come, one source gets one a second.
        let before = pair.node(active.peer()).count("drops.source_rate")?;
        let socket = lab.within(Host::Client, || UdpSocket::bind("0.0.0.0:0"))??;
        for port in 20_000..20_020 {
            socket.send_to(b"x", (SERVER, port))?;
        }
        pair.wait_for_count(lab, active.peer(), "drops.source_rate", before + 10)?;

        fs::write(lab.config_path(), text)?;
        for node in Node::ALL {
            let (said, _, code) = reload(pair.node(node), &[])?;
            ensure!(code == 0 && said.contains("hook \"tell\" removed"), "{said}");
        }
        let left = flow(pair.node(active.peer()))?["timeout_ms"].as_u64().context("a timeout")?;
        ensure!(left <= 120_000, "{left}");
        Ok(())
    });
}

#[test]
fn a_mistake_or_a_change_that_needs_a_restart_changes_nothing() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let before = (standing(pair)?, pair.node(active).ctl(&["status"])?["config_hash"].clone());
        let probe = Probe::start(lab)?;
        let good = fs::read_to_string(lab.config_path())?;

        edit(lab, "services = [\"tcp/22\", \"icmp\"]", "services = [\"tcp/22\", \"icpm\"]")?;
        edit(lab, "to = \"inet\"", "to = \"inett\"")?;
        let (said, problem, code) = reload(pair.node(active), &[])?;
        ensure!(code == 1 && said.is_empty(), "{code} {said}");
        for words in
            ["unknown zone \"inett\"", "did you mean \"inet\"?", "icpm", ":", "^^^", "2 mistakes found"]
        {
            ensure!(problem.contains(words), "{words}: {problem}");
        }
        wait_for_warning(lab, pair.node(active), "is not in force", true)?;

        // All or nothing: the rule is not taken either.
        fs::write(lab.config_path(), &good)?;
        edit(lab, "max-flows = 65536", "max-flows = 70000")?;
        edit(lab, "name = \"lan-out\"", "name = \"outwards\"")?;
        for arguments in [&[][..], &["--dry-run"]] {
            let (said, problem, code) = reload(pair.node(active), arguments)?;
            ensure!(code == 1 && problem.contains("needs a restart"), "{code} {problem}");
            let all = "[cluster] max-flows: 65536 -> 70000 (needs a restart)\n\
                       rule \"lan-out\" removed\nrule \"outwards\" added\n";
            ensure!(said == all, "{said}");
        }
        let now = (standing(pair)?, pair.node(active).ctl(&["status"])?["config_hash"].clone());
        ensure!(now == before, "{before:?} {now:?}");
        ensure!(
            pair.node(active).count("rules.outwards")? == 0 && pair.node(active).count("rules.lan-out")? > 0
        );

        fs::write(lab.config_path(), &good)?;
        reload_both(pair, &[], "nothing changed\n")?;
        wait_for_warning(lab, pair.node(active), "is not in force", false)?;
        let report = probe.end()?;
        ensure!((report.lost, report.duplicates) == (0, 0), "{report:?}");
        let status = pair.node(active).ctl(&["status"])?;
        ensure!(in_sync(&status), "{status}");
        ensure!(status["groups"][0]["vips"].to_string().contains(LAN_VIP), "{status}");
        Ok(())
    });
}

/// As on a file server that is gone: whoever opens the file waits.
#[test]
fn a_file_that_cannot_be_read_holds_up_nothing() {
    in_lab(LabOptions::beside(), |lab| {
        let (mut pair, active) = Pair::settled(lab)?;
        fs::remove_file(lab.config_path())?;
        mkfifo(&lab.config_path(), Mode::S_IRUSR)?;
        let mut reload = pair.node(active).ctl_command(&["reload"]);
        let reload = reload.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        lab.ip(active.host(), "link set lan down")?;
        pair.wait_for_role(lab, active.peer(), "active")?;
        wait_for_warning(lab, pair.node(active), "cannot be read in time", true)?;
        let refused = reload.wait_with_output()?;
        ensure!(String::from_utf8_lossy(&refused.stderr).contains("cannot be read in time"), "{refused:?}");
        let events = pair.node(active).ctl_lines(&["events"])?;
        let last = |kind: &str| events.iter().rposition(|event| event["kind"] == kind);
        let (handed_over, read) = (last("role").context("a role")?, last("reload").context("a reload")?);
        ensure!(handed_over < read, "the carrier was noticed while the file was read: {events:#?}");
        ensure!(pair.node_mut(active).term(PATIENCE)?.success());
        Ok(())
    });
}

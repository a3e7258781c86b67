//! One node beside keepalived (Debian package keepalived), which has the same virtual router on the LAN: who has the
//! address, both ways, and what tcpdump reads in the node's advertisements.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::{
    Cable, Host, KEY_FILE, LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP, Lab, LabOptions, Node, NodeProcess,
};
use fwha_tests::pair::{PATIENCE, role};
use fwha_tests::root::{is_missing, skip_for_kernel};
use fwha_tests::scenario::in_lab;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const KEEPALIVED: &str = "/usr/sbin/keepalived";
const TCPDUMP: &str = "/usr/bin/tcpdump";
const VRID: u8 = 62;
/// The box of the node and that of keepalived.
const NODE: Host = Host::Fw1;
const OTHER: Host = Host::Fw2;

/// A VRRP that both speak.
#[derive(Clone, Copy)]
struct Speech {
    /// Lines of the node's group.
    fwha: &'static str,
    /// Lines of keepalived's instance.
    keepalived: &'static str,
    addresses: &'static [&'static str],
    /// By unicast: the node's own address and that of keepalived.
    unicast: Option<[&'static str; 2]>,
    /// What tcpdump makes of one of the node's advertisements, its priority in braces.
    dump: &'static str,
    /// How often both advertise: a Backup takes silence for death after three of them and its skew.
    interval: Duration,
}

/// Version 2 knows whole seconds only.
const SECOND: Duration = Duration::from_secs(1);
const SHORT: Duration = Duration::from_millis(400);
/// Three of them are longer than any machine is busy.
const LONG: Duration = Duration::from_secs(5);

/// keepalived knows the checksum of RFC 5798 alone, and so does tcpdump.
const V3: Speech = Speech {
    fwha: "checksum = \"pseudo-header\"",
    keepalived: "version 3",
    addresses: &[LAN_VIP],
    unicast: None,
    dump: "VRRPv3, Advertisement, vrid 62, prio {}, intvl 40cs, length 12, addrs: 192.168.100.12",
    interval: SHORT,
};
const V3_IPV6: Speech = Speech {
    fwha: "",
    keepalived: "version 3",
    addresses: &[LINK_LOCAL_VIP, LAN_VIP6],
    unicast: None,
    dump: "VRRPv3, Advertisement, vrid 62, prio {}, intvl 40cs, length 40, addrs(2): fe80::12,fd00:100::12",
    interval: SHORT,
};
const V2: Speech = Speech {
    fwha: "vrrp-version = 2",
    keepalived: "version 2",
    addresses: &[LAN_VIP],
    unicast: None,
    dump: "VRRPv2, Advertisement, vrid 62, prio {}, authtype none, intvl 1s, length 20, addrs: 192.168.100.12",
    interval: SECOND,
};
const V2_PASSWORD: Speech = Speech {
    fwha: "vrrp-version = 2\nauth-pass = \"sesame\"",
    keepalived: "version 2\nauthentication {\nauth_type PASS\nauth_pass sesame\n}",
    dump: "VRRPv2, Advertisement, vrid 62, prio {}, authtype simple, intvl 1s, length 20, addrs: 192.168.100.12 auth \"sesame\"",
    ..V2
};
/// By unicast the destination is in the pseudo-header of the checksum.
const V3_UNICAST: Speech = Speech { unicast: Some(["192.168.100.1", "192.168.100.2"]), ..V3 };
const V2_UNICAST: Speech = Speech { unicast: V3_UNICAST.unicast, ..V2 };

/// With virtual MACs, by which one has `use_vmac`.
const V3_VIRTUAL_MAC: Speech = Speech { fwha: "checksum = \"pseudo-header\"\nvirtual-mac = true", ..V3 };
/// RFC 9568, 7.3, with [`VRID`].
const VIRTUAL_MAC: &str = "00:00:5e:00:01:3e";

impl Speech {
    /// The addresses, each with the length of its network's prefix.
    fn nets(&self) -> impl Iterator<Item = String> {
        self.addresses.iter().map(|a| format!("{a}/{}", if a.contains(':') { 64 } else { 24 }))
    }

    /// The node's config file, as the only one of its cluster.
    fn write_config(&self, lab: &Lab, priority: u8, preempt: bool) -> Result<PathBuf> {
        let addresses: Vec<String> = self.nets().map(|net| format!("{net:?}")).collect();
        let text = format!(
            r#"[cluster]
name = "alone"
key-file = "{KEY_FILE}"
max-flows = 65_536

[[node]]
name = "fw1"

[[zone]]
name = "lan"
interfaces = ["lan"]

[[group]]
name = "gateway"
nodes = ["fw1"]
priority = {{ fw1 = {priority} }}
preempt = {preempt}
advert-interval = "{}ms"
{}
vips = [{{ zone = "lan", vrid = {VRID}, addresses = [{}]{} }}]
"#,
            self.interval.as_millis(),
            self.fwha,
            addresses.join(", "),
            self.unicast.map_or(String::new(), |peers| format!(", peers = {peers:?}")),
        );
        let path = lab.dir().join("alone.toml");
        fs::write(&path, text)?;
        Ok(path)
    }

    fn start_node(&self, lab: &Lab, priority: u8, preempt: bool) -> Result<NodeProcess> {
        lab.start_node_with(Node::Fw1, &self.write_config(lab, priority, preempt)?, "fw1")
    }
}

/// A keepalived in the lab.
struct Keepalived {
    child: Child,
    log: PathBuf,
    /// What others before it said.
    before: usize,
}

impl Keepalived {
    fn start(lab: &Lab, speech: &Speech, priority: u8, more: &str) -> Result<Self> {
        let file = |name: &str| lab.dir().join(format!("keepalived.{name}"));
        let nets: Vec<String> = speech.nets().collect();
        let unicast = speech.unicast.map_or(String::new(), |[node, own]| {
            format!("unicast_src_ip {own}\nunicast_peer {{\n{node}\n}}")
        });
        let text = format!(
            "vrrp_instance gateway {{\nstate BACKUP\ninterface lan\nvirtual_router_id {VRID}\npriority {priority}\n\
             advert_int {}\n{}\n{unicast}\n{more}\nvirtual_ipaddress {{\n{}\n}}\n}}\n",
            speech.interval.as_secs_f64(),
            speech.keepalived,
            nets.join("\n")
        );
        fs::write(file("conf"), text)?;
        let log = File::options().create(true).append(true).open(file("log"))?;
        let before = log.metadata()?.len() as usize;
        let mut command = lab.command(KEEPALIVED);
        command.args(["--dont-fork", "--log-console", "--log-detail", "--no-syslog", "--vrrp", "--use-file"]);
        command.arg(file("conf")).arg("--pid").arg(file("pid")).arg("--vrrp_pid").arg(file("vrrp.pid"));
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self { child: lab.spawn(OTHER, &mut command)?, log: file("log"), before })
    }

    /// Ends it as its service does.
    fn term(self) -> Result<()> {
        self.term_while(|| Ok(()))
    }

    /// As [`Self::term`], with something to see before it has ended, for which it takes a second.
    fn term_while(mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        meanwhile()?;
        ensure!(self.child.wait()?.success(), "{}", self.said()?);
        Ok(())
    }

    /// Starts one that is to be the Backup, and waits until it is.
    fn start_as_backup(lab: &Lab, speech: &Speech, priority: u8, more: &str) -> Result<Self> {
        let keepalived = Self::start(lab, speech, priority, more)?;
        lab.wait_for("keepalived to be Backup", PATIENCE, || {
            Ok(keepalived.said()?.contains("Entering BACKUP STATE").then_some(()))
        })?;
        Ok(keepalived)
    }

    fn said(&self) -> Result<String> {
        let log = fs::read_to_string(&self.log).context("keepalived's log")?;
        Ok(log[self.before..].to_owned())
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        // Both fail only when it has ended already. Its child ends with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a box has all of the addresses.
fn has(lab: &Lab, host: Host, speech: &Speech) -> Result<bool> {
    let shown = lab.exec(host, &["ip", "-oneline", "address", "show", "dev", "lan"])?;
    Ok(speech.addresses.iter().all(|a| shown.contains(&format!(" {a}/"))))
}

fn wait_for_keepalived(lab: &Lab, speech: &Speech) -> Result<()> {
    lab.wait_for("keepalived to have the addresses", PATIENCE, || Ok(has(lab, OTHER, speech)?.then_some(())))
}

/// Waits until one box has the addresses and the other has not, and the node says so, too. Returns how long that took.
fn wait_for_holder(lab: &Lab, node: &NodeProcess, speech: &Speech, holder: Host) -> Result<Duration> {
    let (since, wanted) = (Instant::now(), if holder == NODE { "active" } else { "backup" });
    lab.wait_for(&format!("{} to have the addresses alone", holder.name()), PATIENCE, || {
        let held = [NODE, OTHER].map(|host| has(lab, host, speech));
        let [here, there] = held.map(|held| held.unwrap_or(false));
        let alone = (here, there) == (holder == NODE, holder == OTHER);
        let status = node.ctl(&["status"])?;
        Ok((alone && role(&status) == Some(wanted)).then(|| since.elapsed()))
    })
}

/// Waits until the node has taken several advertisements more, and for the addresses to be where they were: nobody preempts,
/// which would be for good.
fn check_stays(lab: &Lab, node: &NodeProcess, speech: &Speech, holder: Host, counter: &str) -> Result<()> {
    let before = node.count(counter)?;
    lab.wait_for("several advertisements more", PATIENCE, || {
        Ok((node.count(counter)? > before + 5).then_some(()))
    })?;
    wait_for_holder(lab, node, speech, holder).map(drop)
}

const RECEIVED: &str = "vrrp.vrrp_rx.adverts";
const SENT: &str = "vrrp.vrrp_tx.adverts";

fn in_a_lab_beside_keepalived(play: impl FnOnce(&Lab) -> Result<()>) {
    if !is_missing(KEEPALIVED, "keepalived") {
        in_lab(LabOptions { ipv6: true, ..LabOptions::beside() }, |lab| {
            // Both speak from it; before that keepalived's first advertisements are invalid arguments to its kernel.
            let settled =
                ["ip", "-6", "-oneline", "address", "show", "dev", "lan", "scope", "link", "-tentative"];
            for host in [NODE, OTHER] {
                lab.wait_for("the link-local address", PATIENCE, || {
                    Ok((!lab.exec(host, &settled)?.is_empty()).then_some(()))
                })?;
            }
            play(lab)
        });
    }
}

/// What tcpdump reads in one advertisement that arrives at keepalived's box.
fn dump(lab: &Lab) -> Result<String> {
    let argv = "timeout 20 tcpdump -n -vvv -c1 -Q in -i lan ip proto 112 or ip6 proto 112";
    lab.exec(OTHER, &argv.split(' ').collect::<Vec<_>>())
}

/// Starts keepalived, and then the node, which stays its Backup by priority.
fn start_behind_keepalived(lab: &Lab, speech: &Speech) -> Result<(Keepalived, NodeProcess)> {
    let keepalived = Keepalived::start(lab, speech, 200, "")?;
    wait_for_keepalived(lab, speech)?;
    let node = speech.start_node(lab, 100, true)?;
    wait_for_holder(lab, &node, speech, OTHER)?;
    check_stays(lab, &node, speech, OTHER, RECEIVED)?;
    Ok((keepalived, node))
}

/// keepalived says that it goes, with priority 0, and the node takes over. Returns how long that took.
fn release(lab: &Lab, keepalived: Keepalived, node: &NodeProcess, speech: &Speech) -> Result<Duration> {
    let mut took = Duration::MAX;
    keepalived.term_while(|| {
        took = wait_for_holder(lab, node, speech, NODE)?;
        Ok(())
    })?;
    Ok(took)
}

/// The node is the Backup of keepalived, by priority, and takes over from it.
fn keepalived_leads(speech: &Speech) {
    in_a_lab_beside_keepalived(|lab| {
        let (keepalived, node) = start_behind_keepalived(lab, speech)?;

        // It says that it goes, with priority 0.
        release(lab, keepalived, &node, speech)?;

        // It comes back and preempts.
        let keepalived = Keepalived::start(lab, speech, 200, "")?;
        wait_for_holder(lab, &node, speech, OTHER)?;
        check_stays(lab, &node, speech, OTHER, RECEIVED)?;

        // It falls silent: the node cannot know why.
        lab.cut(Node::Fw2, Cable::Lan)?;
        let silent = wait_for_holder(lab, &node, speech, NODE)?;
        println!("keepalived was silent: taken over after {silent:?}");
        lab.heal(Node::Fw2, Cable::Lan)?;
        wait_for_holder(lab, &node, speech, OTHER)?;
        keepalived.term()?;
        wait_for_holder(lab, &node, speech, NODE)?;

        // It would rather have them, but may not take them.
        let keepalived = Keepalived::start_as_backup(lab, speech, 200, "nopreempt")?;
        check_stays(lab, &node, speech, NODE, SENT)?;
        keepalived.term()?;
        check_no_complaint(&node, lab)?;
        let other_reading = node.count("vrrp.vrrp_rx.checksum_pseudo_header")?;
        ensure!((other_reading > 0) == (speech.dump == V3.dump), "{other_reading}");
        Ok(())
    });
}

/// Keepalived is the Backup of the node, by priority, and takes over from it.
fn fwha_leads(speech: &Speech) {
    if is_missing(TCPDUMP, "tcpdump") {
        return;
    }
    in_a_lab_beside_keepalived(|lab| {
        let mut node = speech.start_node(lab, 200, true)?;
        wait_for_holder(lab, &node, speech, NODE)?;
        let keepalived = Keepalived::start_as_backup(lab, speech, 100, "")?;
        check_stays(lab, &node, speech, NODE, SENT)?;
        let read = dump(lab)?;
        let expected = speech.dump.replace("{}", "200");
        ensure!(read.contains(&expected) && !read.contains("bad"), "{read}\nlacks {expected}");
        ensure!(read.contains("ttl 255") || read.contains("hlim 255"), "{read}");

        // It says that it goes, with priority 0.
        node.term(PATIENCE)?;
        wait_for_keepalived(lab, speech)?;

        // It comes back and preempts.
        node = speech.start_node(lab, 200, true)?;
        wait_for_holder(lab, &node, speech, NODE)?;
        check_stays(lab, &node, speech, NODE, SENT)?;
        check_no_complaint(&node, lab)?;

        // It is killed: keepalived cannot know.
        node.kill()?;
        wait_for_keepalived(lab, speech)?;

        // It would rather have them, but may not take them.
        node = speech.start_node(lab, 200, false)?;
        wait_for_holder(lab, &node, speech, OTHER)?;
        check_stays(lab, &node, speech, OTHER, RECEIVED)?;
        check_no_complaint(&node, lab)?;
        keepalived.term()
    });
}

/// Each hears the other: as the Backup, at the end of its reign, and as the one that keeps the role.
fn both_speak(speech: &Speech) {
    if is_missing(TCPDUMP, "tcpdump") {
        return;
    }
    in_a_lab_beside_keepalived(|lab| {
        let (keepalived, node) = start_behind_keepalived(lab, speech)?;
        release(lab, keepalived, &node, speech)?;

        let keepalived = Keepalived::start_as_backup(lab, speech, 200, "nopreempt")?;
        check_stays(lab, &node, speech, NODE, SENT)?;
        let read = dump(lab)?;
        let way = speech.unicast.map_or(String::new(), |[from, to]| format!("{from} > {to}: "));
        let expected = speech.dump.replace("{}", "100");
        ensure!(read.contains(&way) && read.contains(&expected) && !read.contains("bad"), "{read}");
        keepalived.term()?;
        check_no_complaint(&node, lab)
    });
}

/// Who hears priority 0 does not wait for silence, which would be three long intervals.
fn a_release_is_heard(speech: &Speech) {
    let speech = &Speech { interval: LONG, ..*speech };
    in_a_lab_beside_keepalived(|lab| {
        let keepalived = Keepalived::start(lab, speech, 254, "")?;
        wait_for_keepalived(lab, speech)?;
        let mut node = speech.start_node(lab, 250, true)?;
        lab.wait_for("the node to hear keepalived", PATIENCE, || {
            Ok((node.count(RECEIVED)? > 0).then_some(()))
        })?;
        wait_for_holder(lab, &node, speech, OTHER)?;
        let took = release(lab, keepalived, &node, speech)?;
        ensure!(took < 3 * LONG, "{took:?} after priority 0 of keepalived");

        let keepalived = Keepalived::start_as_backup(lab, speech, 249, "")?;
        let sent = node.count(SENT)?;
        lab.wait_for("keepalived to hear the node", PATIENCE, || {
            Ok((node.count(SENT)? > sent).then_some(()))
        })?;
        let at = Instant::now();
        node.term(PATIENCE)?;
        wait_for_keepalived(lab, speech)?;
        ensure!(at.elapsed() < 3 * LONG, "{:?} after priority 0 of the node", at.elapsed());
        keepalived.term()
    });
}

/// Whether keepalived's box can have macvlan devices, which it makes for `use_vmac`; if not, says so.
fn macvlan_is_missing(lab: &Lab) -> Result<bool> {
    let add = ["ip", "link", "add", "link", "lan", "name", "try", "type", "macvlan"];
    let missing = !lab.try_exec(OTHER, &add)?.status.success();
    if missing {
        skip_for_kernel("macvlan devices (CONFIG_MACVLAN)");
    } else {
        lab.exec(OTHER, &["ip", "link", "delete", "try"])?;
    }
    Ok(missing)
}

/// Has the client ask for the address anew, and waits for the virtual MAC. (No rule lets the node answer the ping.)
fn check_virtual_mac(lab: &Lab) -> Result<()> {
    lab.try_exec(Host::Client, &["ip", "neighbour", "delete", LAN_VIP, "dev", "eth0"])?;
    lab.wait_for("the client to know the virtual MAC", PATIENCE, || {
        lab.try_exec(Host::Client, &["ping", "-c1", "-W1", LAN_VIP])?;
        let entry = lab.exec(Host::Client, &["ip", "neighbour", "show", "to", LAN_VIP, "dev", "eth0"])?;
        Ok(entry.contains(VIRTUAL_MAC).then_some(()))
    })
}

#[test]
fn keepalived_has_the_same_virtual_mac() {
    in_a_lab_beside_keepalived(|lab| {
        if macvlan_is_missing(lab)? {
            return Ok(());
        }
        let speech = &V3_VIRTUAL_MAC;
        let keepalived = Keepalived::start(lab, speech, 200, "use_vmac")?;
        lab.wait_for("keepalived to be Active", PATIENCE, || {
            Ok(keepalived.said()?.contains("Entering MASTER STATE").then_some(()))
        })?;
        let node = speech.start_node(lab, 100, true)?;
        lab.wait_for("the node to hear keepalived", PATIENCE, || {
            Ok((node.count(RECEIVED)? > 2).then_some(()))
        })?;
        let status = node.ctl(&["status"])?;
        ensure!(role(&status) == Some("backup"), "{status}");
        check_virtual_mac(lab)?;

        keepalived.term()?;
        wait_for_holder(lab, &node, speech, NODE)?;
        let entry = lab.exec(Host::Client, &["ip", "neighbour", "show", "to", LAN_VIP, "dev", "eth0"])?;
        ensure!(entry.contains(VIRTUAL_MAC), "nothing to learn: {entry}");
        check_virtual_mac(lab)?;
        ensure!(node.count("flows.vip_answered")? > 0);

        // As the Backup keepalived hears the node's advertisements, which come from its own MAC as it were.
        let keepalived = Keepalived::start_as_backup(lab, speech, 200, "use_vmac\nnopreempt")?;
        check_stays(lab, &node, speech, NODE, SENT)?;
        check_virtual_mac(lab)?;
        keepalived.term()?;
        check_no_complaint(&node, lab)
    });
}

/// Neither found anything wrong with the other's advertisements.
fn check_no_complaint(node: &NodeProcess, lab: &Lab) -> Result<()> {
    let stats = node.ctl(&["stats", "vrrp"])?;
    ensure!(stats.pointer("/vrrp/vrrp_discarded").is_none(), "{stats}");
    let said = fs::read_to_string(lab.dir().join("keepalived.log"))?;
    for complaint in ["checksum", "nvalid", "mismatch", "gnoring", "uthentication", "not present"] {
        if let Some(line) = said.lines().find(|line| line.contains(complaint)) {
            bail!("keepalived says: {line}");
        }
    }
    Ok(())
}

#[test]
fn keepalived_leads_by_v3() {
    keepalived_leads(&V3);
}

#[test]
fn keepalived_leads_by_v3_for_ipv6() {
    keepalived_leads(&V3_IPV6);
}

#[test]
fn keepalived_leads_by_v2() {
    keepalived_leads(&V2);
}

#[test]
fn fwha_leads_by_v3() {
    fwha_leads(&V3);
}

#[test]
fn fwha_leads_by_v3_for_ipv6() {
    fwha_leads(&V3_IPV6);
}

#[test]
fn fwha_leads_by_v2() {
    fwha_leads(&V2);
}

#[test]
fn both_speak_v2_with_a_password() {
    both_speak(&V2_PASSWORD);
}

#[test]
fn both_speak_by_unicast_of_v3() {
    both_speak(&V3_UNICAST);
}

#[test]
fn both_speak_by_unicast_of_v2() {
    both_speak(&V2_UNICAST);
}

#[test]
fn a_release_is_heard_by_v3() {
    a_release_is_heard(&V3);
}

#[test]
fn a_release_is_heard_by_v2() {
    a_release_is_heard(&V2);
}

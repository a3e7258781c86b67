//! The lab itself, with the kernel's forwarding in the place of fwha: traffic arrives, loss is told, nothing is left.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use fwha_tests::lab::{self, Cable, Host, INET_VIP, LAN_VIP, Lab, LabOptions, Node, SERVER};
use fwha_tests::needs_root;
use fwha_tests::traffic::{CopyEvent, CopyReport, ProbeEvent, ProbeReport};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PATIENCE: Duration = Duration::from_secs(30);

/// Gives a node both VIPs, as fwha would.
fn own_vips(lab: &Lab, node: Node) -> Result<()> {
    lab.exec(node.host(), &["ip", "address", "add", &format!("{LAN_VIP}/24"), "dev", "lan"])?;
    lab.exec(node.host(), &["ip", "address", "add", &format!("{INET_VIP}/24"), "dev", "wan"])?;
    Ok(())
}

fn arguments(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn ended(event: CopyEvent) -> Option<CopyReport> {
    if let CopyEvent::Ended(report) = event { Some(report) } else { None }
}

fn probed(event: ProbeEvent) -> Option<ProbeReport> {
    if let ProbeEvent::Ended(report) = event { Some(report) } else { None }
}

#[test]
fn a_copy_and_a_probe_cross_the_lab_unharmed() -> Result<()> {
    if fwha_tests::root::needed() {
        return Ok(());
    }
    let lab = Lab::new(LabOptions::default())?;
    own_vips(&lab, Node::Fw1)?;

    let mut echo = lab.traffic::<ProbeEvent>(Host::Server, &arguments("echo --listen 0.0.0.0:7"))?;
    echo.wait_for("listening", PATIENCE, |event| matches!(event, ProbeEvent::Listening).then_some(()))?;
    let mut probe = lab.traffic::<ProbeEvent>(
        Host::Client,
        &arguments(&format!("probe --connect {SERVER}:7 --rate 1000")),
    )?;
    let serve = "serve-file --listen 0.0.0.0:80 --size 16777216 --rate 200000000";
    let mut sender = lab.traffic::<CopyEvent>(Host::Server, &arguments(serve))?;
    sender.wait_for("listening", PATIENCE, |event| matches!(event, CopyEvent::Listening).then_some(()))?;
    let mut receiver =
        lab.traffic::<CopyEvent>(Host::Client, &arguments(&format!("fetch --connect {SERVER}:80")))?;

    let received = receiver.wait_for("the file", PATIENCE, ended)?;
    let sent = sender.wait_for("the end of the sender", PATIENCE, ended)?;
    probe.finish();
    let probed = probe.wait_for("the end of the probe", PATIENCE, probed)?;

    assert_eq!((received.error, sent.error), (None, None));
    assert_eq!((received.bytes, received.expected), (16 << 20, 16 << 20));
    assert_eq!(received.sha256, sent.sha256);
    assert_eq!((probed.lost, probed.lost_forward, probed.duplicates), (0, 0, 0), "{probed:?}");
    assert!(probed.sent > 0);
    lab.remove()
}

#[test]
fn a_pulled_cable_takes_the_carrier_and_the_traffic_until_it_is_plugged_in() -> Result<()> {
    if fwha_tests::root::needed() {
        return Ok(());
    }
    let lab = Lab::new(LabOptions::default())?;
    own_vips(&lab, Node::Fw1)?;
    let mut echo = lab.traffic::<ProbeEvent>(Host::Server, &arguments("echo --listen 0.0.0.0:7"))?;
    echo.wait_for("listening", PATIENCE, |event| matches!(event, ProbeEvent::Listening).then_some(()))?;
    let mut probe =
        lab.traffic::<ProbeEvent>(Host::Client, &arguments(&format!("probe --connect {SERVER}:7")))?;
    let mut answered_beyond = |least: u64| {
        probe.wait_for("answers", PATIENCE, |event| match event {
            ProbeEvent::Progress { answered, sent, .. } if answered > least => Some((sent, answered)),
            _ => None,
        })
    };
    answered_beyond(0)?;

    lab.cut(Node::Fw1, Cable::All)?;
    let carrier = |interface: &str| -> Result<bool> {
        let line = lab.exec(Host::Fw1, &["ip", "-oneline", "link", "show", "dev", interface])?;
        Ok(!line.contains("NO-CARRIER"))
    };
    for interface in ["lan", "wan", "sync"] {
        assert!(!carrier(interface)?, "{interface} still has its carrier");
    }
    let peer = lab.exec(Host::Fw2, &["ip", "-oneline", "link", "show", "dev", "sync"])?;
    assert!(peer.contains("NO-CARRIER"), "the other end of the dedicated link has its carrier: {peer}");
    let (_, before) = answered_beyond(0)?;
    lab.heal(Node::Fw1, Cable::All)?;
    answered_beyond(before)?;
    probe.finish();
    let report = probe.wait_for("the end of the probe", PATIENCE, probed)?;

    assert!(report.lost > 0 && report.outage_ms > 0.0, "{report:?}");
    lab.remove()
}

#[test]
fn a_connection_whose_way_is_gone_dies() -> Result<()> {
    if fwha_tests::root::needed() {
        return Ok(());
    }
    let lab = Lab::new(LabOptions::default())?;
    own_vips(&lab, Node::Fw1)?;
    let serve = "serve-file --listen 0.0.0.0:80 --size 1073741824 --patience-ms 1000";
    let mut sender = lab.traffic::<CopyEvent>(Host::Server, &arguments(serve))?;
    sender.wait_for("listening", PATIENCE, |event| matches!(event, CopyEvent::Listening).then_some(()))?;
    let fetch = format!("fetch --connect {SERVER}:80 --patience-ms 1000");
    let mut receiver = lab.traffic::<CopyEvent>(Host::Client, &arguments(&fetch))?;
    receiver
        .wait_for("progress", PATIENCE, |event| matches!(event, CopyEvent::Progress { .. }).then_some(()))?;

    lab.cut(Node::Fw1, Cable::Wan)?;

    for end in [&mut sender, &mut receiver] {
        let report = end.wait_for("the end", PATIENCE, ended)?;
        assert!(report.error.is_some() && report.bytes < report.expected, "{report:?}");
    }
    lab.remove()
}

#[test]
fn removal_ends_what_still_runs_and_leaves_nothing() {
    needs_root!();
    let lab = Lab::new(LabOptions::default()).expect("a lab");
    let id = lab.id().to_owned();
    let mut echo =
        lab.traffic::<ProbeEvent>(Host::Server, &arguments("echo --listen 0.0.0.0:7")).expect("an echo");
    let event = echo.next(PATIENCE).expect("an event");
    assert!(matches!(event, Some(ProbeEvent::Listening)), "{event:?}");
    assert_eq!(lab.pins().expect("pins"), Vec::<PathBuf>::new());

    lab.remove().expect("a clean removal");

    let namespaces =
        std::process::Command::new("ip").args(["netns", "list"]).output().expect("ip netns list");
    assert!(!String::from_utf8_lossy(&namespaces.stdout).contains(&id));
    assert!(!lab::clean_stale().expect("a clean-up").contains(&id));
    assert!(echo.next(PATIENCE).expect("the end of the output").is_none() && echo.ended());
}

/// Set in the process that plays the owner of a lab in the tests below.
const OWNER: &str = "FWHA_TEST_LAB_OWNER";

/// Runs the calling test once more in a process of its own that lays a lab and waits for its end there. Returns that
/// process and the lab's name; in that process itself, does not return.
fn owner_of_a_lab(test: &str) -> (Child, String) {
    if std::env::var_os(OWNER).is_some() {
        let lab = Lab::new(LabOptions::default()).expect("a lab");
        println!("\n{}", lab.id());
        loop {
            std::thread::park();
        }
    }
    let mut owner = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .env(OWNER, "")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the owner");
    let output = BufReader::new(owner.stdout.take().expect("its output"));
    let id =
        output.lines().map_while(Result::ok).find(|line| line.starts_with("fwha-")).expect("the lab's name");
    assert!(namespaces().contains(&id));
    (owner, id)
}

fn namespaces() -> String {
    let output = Command::new("ip").args(["netns", "list"]).output().expect("ip netns list");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_signal_to_the_owner_removes_the_lab() {
    needs_root!();
    let (mut owner, id) = owner_of_a_lab("alone::lab::a_signal_to_the_owner_removes_the_lab");

    kill(Pid::from_raw(owner.id().cast_signed()), Signal::SIGTERM).expect("SIGTERM");

    assert_eq!(owner.wait().expect("its end").code(), Some(128 + Signal::SIGTERM as i32));
    assert!(!namespaces().contains(&id) && !Path::new("/run/fwha-lab").join(&id).exists());
}

#[test]
fn a_lab_whose_owner_was_killed_goes_before_the_next_is_laid() {
    needs_root!();
    let (mut owner, id) =
        owner_of_a_lab("alone::lab::a_lab_whose_owner_was_killed_goes_before_the_next_is_laid");
    owner.kill().and_then(|()| owner.wait()).expect("its end");

    let lab = Lab::new(LabOptions::default()).expect("another lab");

    assert!(!namespaces().contains(&id) && !Path::new("/run/fwha-lab").join(&id).exists());
    lab.remove().expect("a clean removal");
}

#[test]
fn a_lab_left_standing_stays_until_it_is_asked_for() {
    needs_root!();
    let lab = Lab::new(LabOptions::default()).expect("a lab");
    let id = lab.id().to_owned();
    lab.keep().expect("a mark");
    assert!(namespaces().contains(&id));

    assert!(!lab::clean_stale().expect("a clean-up").contains(&id));
    assert!(namespaces().contains(&id));

    // Others may have been left standing by somebody who wants them.
    assert_eq!(lab::clean_kept(|found| found == id).expect("a clean-up"), [id.as_str()]);
    assert!(!namespaces().contains(&id));
}

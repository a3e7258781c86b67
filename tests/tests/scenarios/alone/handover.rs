//! Planned moves: the peer is Active before the old one lets go, and a node that leaves leaves nothing behind.

use std::process::Output;

use anyhow::{Result, ensure};
use fwha::sys::bpf::{AttachType, tcx_links};
use fwha_tests::lab::{INET_VIP, LAN_VIP, Lab, LabOptions, LineProcess, Node};
use fwha_tests::pair::{PATIENCE, active_node, event_ms, peer_state, role};
use fwha_tests::root::is_missing;
use fwha_tests::scenario::with_pair;
use fwha_tests::traffic::Probe;
use serde_json::Value;

/// "No two seconds of nobody": far above what is measured, far below what a lost node without a handover would cost.
const SMALL_OUTAGE_MS: f64 = 500.0;

/// Everything that a node which has left has left behind.
fn remains(lab: &Lab, node: Node) -> Result<Vec<String>> {
    let host = node.host();
    let mut found = Vec::new();
    let addresses = lab.exec(host, &["ip", "-oneline", "address"])?;
    found
        .extend(addresses.lines().filter(|l| l.contains(LAN_VIP) || l.contains(INET_VIP)).map(str::to_owned));
    let links = lab.exec(host, &["ip", "-details", "-oneline", "link"])?;
    found.extend(links.lines().filter(|l| l.contains("xdp")).map(str::to_owned));
    for interface in ["lan", "wan", "sync"] {
        for hook in [AttachType::BPF_TCX_INGRESS, AttachType::BPF_TCX_EGRESS] {
            let links = lab.within(host, || -> Result<_> {
                Ok(tcx_links(nix::net::if_::if_nametoindex(interface)?, hook)?)
            })??;
            found.extend(links.iter().map(|link| format!("link {link} at {hook:?} of {interface}")));
        }
    }
    let pins = lab.pins()?.into_iter().map(|pin| pin.display().to_string());
    found.extend(pins.filter(|pin| pin.contains(node.name())));
    let socket = lab.dir().join(node.name()).join("fwha.sock");
    found.extend(socket.exists().then(|| socket.display().to_string()));
    Ok(found)
}

/// What `fwhactl` says on standard error.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// When an event said that this node's role became `to`.
fn became(events: &mut LineProcess<Value>, to: &str) -> Result<f64> {
    let arrow = format!("-> {to}");
    events.wait_for(&format!("the event {arrow}"), PATIENCE, |event| {
        let text = event["text"].as_str().unwrap_or_default();
        (event["kind"] == "role" && text.contains(&arrow)).then(|| event_ms(&event))
    })
}

#[test]
fn a_node_that_is_told_to_end_hands_over_first_and_leaves_nothing_behind() {
    with_pair(LabOptions::default(), |lab, pair| {
        let leaver = pair.settle(lab)?;
        let taker = leaver.peer();
        ensure!(!remains(lab, leaver)?.is_empty(), "a running node has programs and addresses");
        let mut probe = Probe::start(lab)?;
        let mut events = pair.node(taker).follow_events(lab)?;

        let status = pair.node_mut(leaver).term(PATIENCE)?;

        assert!(status.success(), "{status}");
        let after = pair.node(taker).ctl(&["status"])?;
        assert_eq!((role(&after), active_node(&after)), (Some("active"), Some(taker.name())), "{after}");
        assert_eq!(peer_state(&after), Some("left"), "{after}");
        assert_eq!(remains(lab, leaver)?, Vec::<String>::new());
        became(&mut events, "active")?;
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("SIGTERM to the active: outage {:.1} ms, {} probes lost", report.outage_ms, report.lost);
        assert!(report.outage_ms < SMALL_OUTAGE_MS, "{report:?}");

        // The last one has nobody to hand over to, and goes as cleanly and in good time.
        let status = pair.node_mut(taker).term(PATIENCE)?;
        assert!(status.success(), "{status}");
        assert_eq!(remains(lab, taker)?, Vec::<String>::new());
        assert_eq!(lab.pins()?, Vec::<std::path::PathBuf>::new());
        Ok(())
    });
}

#[test]
fn a_switchover_moves_the_group_and_back_and_tells_its_steps() {
    with_pair(LabOptions::default(), |lab, pair| {
        let first = pair.settle(lab)?;
        let mut probe = Probe::start(lab)?;
        for from in [first, first.peer()] {
            let to = from.peer();
            let mut events = pair.node(to).follow_events(lab)?;
            let reply = pair.node(from).ctl(&["switchover"])?;
            assert_eq!((reply["from"].as_str(), reply["to"].as_str()), (Some(from.name()), Some(to.name())));
            println!("switchover from {from} to {to}: {} ms", reply["took_ms"]);
            // The follower gets it without asking again.
            let steps = events.wait_for("the takeover's steps", PATIENCE, |event| {
                let new = event_ms(&event) > 0.0 && event["kind"] == "takeover";
                new.then(|| event["steps"].as_array().cloned().unwrap_or_default())
            })?;
            let names: Vec<&str> = steps.iter().filter_map(|step| step["name"].as_str()).collect();
            assert_eq!(names, ["advert", "own", "vips", "announce"], "commit before VIP");
            assert_eq!(pair.settle(lab)?, to);
        }
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!("two switchovers: outage {:.1} ms, {} probes lost", report.outage_ms, report.lost);
        assert!(report.outage_ms < SMALL_OUTAGE_MS, "{report:?}");

        let explained = pair.node(first).ctl(&["explain", "role"])?;
        let because = explained["because"].to_string();
        assert!(because.contains(&format!("if it is lost, {} takes over", first.peer())), "{explained}");
        assert!(because.contains("an operator moved the group here"), "{explained}");

        // Only the Active can give away what it has, and only to somebody that exists.
        let backup = pair.node(first.peer());
        let refused = backup.ctl_output(&["switchover"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(
            said.contains(&format!("give the command on {first}")) && said.lines().count() == 1,
            "{said}"
        );
        let refused = pair.node(first).ctl_output(&["switchover", "--to", "fw9"])?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(said.contains("there is no node \"fw9\": known are fw1, fw2"), "{said}");
        Ok(())
    });
}

#[test]
fn a_group_moves_to_a_node_that_is_not_in_sync_only_by_force() {
    if is_missing("/usr/sbin/nft", "nftables") {
        return;
    }
    with_pair(LabOptions::default(), |lab, pair| {
        let active = pair.settle(lab)?;
        let taker = active.peer();
        let in_sync = |holds: bool| move |status: &Value| status["peers"][0]["in_sync"] == holds;
        pair.wait_for_status(lab, active, "the peer to be in sync", in_sync(true))?;
        // Replication does not get there any more, and heartbeats do.
        let deaf = "add table inet deaf; add chain inet deaf in { type filter hook input priority 0; }; \
                    add rule inet deaf in udp dport 4762 drop";
        lab.exec(taker.host(), &["nft", deaf])?;
        let status = pair.wait_for_status(lab, active, "the peer to say that it does not", in_sync(false))?;
        assert_eq!(peer_state(&status), Some("alive"), "{status}");

        for command in [&["switchover"][..], &["switchover", "--to", taker.name()], &["standby", "on"]] {
            let refused = pair.node(active).ctl_output(command)?;
            assert_eq!(refused.status.code(), Some(1), "{command:?}: {}", said(&refused));
            let reason = format!("{taker} is not in sync with {active}");
            assert!(said(&refused).contains(&reason), "{command:?}: {}", said(&refused));
            assert!(said(&refused).contains("--force"), "{command:?}: {}", said(&refused));
        }
        let status = pair.node(active).ctl(&["status"])?;
        assert_eq!((role(&status), status["standby"] == true), (Some("active"), false), "{status}");

        let reply = pair.node(active).ctl(&["switchover", "--force"])?;
        assert_eq!(reply["to"].as_str(), Some(taker.name()));
        Ok(())
    });
}

#[test]
fn standby_hands_over_and_holds_over_restarts_until_it_is_taken_back() {
    with_pair(LabOptions::default(), |lab, pair| {
        let idle = pair.settle(lab)?;
        let taker = idle.peer();
        let mut probe = Probe::start(lab)?;

        let reply = pair.node(idle).ctl(&["standby", "on"])?;

        assert_eq!(
            (reply["on"].as_bool(), reply["moved"][0]["to"].as_str()),
            (Some(true), Some(taker.name()))
        );
        probe.wait_for_more_answers()?;
        let report = probe.end()?;
        println!(
            "standby: {} ms, outage {:.1} ms, {} probes lost",
            reply["took_ms"], report.outage_ms, report.lost
        );
        assert!(report.outage_ms < SMALL_OUTAGE_MS, "{report:?}");
        let warned = |status: &Value| {
            let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
            let text = format!("{idle} is on standby");
            warnings.iter().any(|w| w.as_str().is_some_and(|w| w.starts_with(&text)))
        };
        pair.wait_for_status(lab, taker, "the peer to say so", warned)?;

        // The other one has to stay, and says why.
        let refused = pair.node(taker).ctl_output(&["standby", "on"])?;
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        assert!(said(&refused).contains(&format!("({idle} is standby)")), "{}", said(&refused));
        let refused = pair.node(taker).ctl_output(&["switchover"])?;
        assert!(said(&refused).contains("no other node can take the group"), "{}", said(&refused));

        // Neither a crash nor a clean end is the operator's word.
        pair.node_mut(idle).kill()?;
        pair.restart(lab, idle)?;
        let stands_by = |status: &Value| status["standby"] == true && role(status) == Some("standby");
        pair.wait_for_status(lab, idle, "standby after a crash", stands_by)?;
        pair.node_mut(idle).term(PATIENCE)?;
        pair.restart(lab, idle)?;
        pair.wait_for_status(lab, idle, "standby after a clean end", |s| stands_by(s) && warned(s))?;
        for verb in ["status", "stats", "events"] {
            let output = pair.node(idle).ctl_output(&[verb])?;
            assert!(
                said(&output).contains(&format!("warning: {idle} is on standby")),
                "{verb}: {}",
                said(&output)
            );
            assert_eq!(said(&output).lines().count(), 1, "{verb}: {}", said(&output));
        }

        pair.node(idle).ctl(&["standby", "off"])?;
        assert_eq!(said(&pair.node(idle).ctl_output(&["stats"])?), "");
        assert_eq!(pair.settle(lab)?, taker, "it takes part again, and nothing moves for that");
        let reply = pair.node(taker).ctl(&["switchover", "--wait"])?;
        assert_eq!(reply["to"].as_str(), Some(idle.name()));
        Ok(())
    });
}

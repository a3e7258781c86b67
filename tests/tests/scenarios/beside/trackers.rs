//! What nodes watch moves the group when it fails on one of them, and not when it fails on all.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Attach, Host, Lab, LabOptions, Node, SERVER, SERVER6};
use fwha_tests::pair::{Pair, role, term};
use fwha_tests::scenario::{in_lab, with_pair};
use serde_json::Value;

/// A second address of the server's, that can be taken away from it.
const TARGET: &str = "10.0.0.129";
const PORT: u16 = 8085;
/// Checks after which whatever was to happen has happened: a grace is not as long.
const MANY: u64 = 15;

/// A lab whose nodes have these trackers, and its pair, settled.
fn tracked(
    options: LabOptions,
    trackers: impl FnOnce(&Lab) -> String,
    play: impl FnOnce(&Lab, &mut Pair, Node) -> Result<()>,
) {
    in_lab(options, |lab| {
        let config = fs::read_to_string(lab.config_path())?;
        fs::write(lab.config_path(), config + &trackers(lab))?;
        let (mut pair, active) = Pair::settled(lab)?;
        for node in Node::ALL {
            pair.wait_for_status(lab, node, "all trackers to be up", |status| {
                let trackers = status.pointer("/groups/0/trackers").and_then(Value::as_array);
                trackers.is_some_and(|all| !all.is_empty() && all.iter().all(|t| t["state"] == "up"))
            })?;
        }
        play(lab, &mut pair, active)
    });
}

/// A tracker of a node's `status`.
fn tracker<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    let trackers = status.pointer("/groups/0/trackers")?.as_array()?;
    trackers.iter().find(|tracker| tracker["name"] == name)
}

/// Waits until a tracker has a verdict and an effect that begins like this.
fn wait_for(lab: &Lab, pair: &Pair, node: Node, name: &str, state: &str, effect: &str) -> Result<Value> {
    let what = format!("tracker {name} of {node} to be {state}: {effect}");
    let status = pair.wait_for_status(lab, node, &what, |status| {
        tracker(status, name).is_some_and(|tracker| {
            tracker["state"] == state && tracker["effect"].as_str().is_some_and(|e| e.starts_with(effect))
        })
    })?;
    tracker(&status, name).cloned().context("a tracker")
}

/// Waits for [`MANY`] more checks of a tracker on both nodes.
fn wait_for_many(lab: &Lab, pair: &Pair, name: &str) -> Result<()> {
    let checks = |status: &Value| {
        let count = |of: &str| tracker(status, name).and_then(|t| t[of].as_u64()).unwrap_or(0);
        count("good") + count("bad")
    };
    for node in Node::ALL {
        let before = checks(&pair.node(node).ctl(&["status"])?);
        pair.wait_for_status(lab, node, "more checks", |status| checks(status) >= before + MANY)?;
    }
    Ok(())
}

/// What the server sends to a node gets there, or is dropped.
fn cut_answers(lab: &Lab, node: Node, cut: bool) -> Result<()> {
    let verb = if cut { "add" } else { "del" };
    lab.exec(Host::Server, &["ip", "route", verb, "blackhole", node.wan_addresses()[0]]).map(drop)
}

#[test]
fn a_ping_that_fails_on_one_node_moves_the_group_and_on_both_it_does_not() {
    let ping = |_: &Lab| {
        format!(
            r#"
[[tracker]]
name = "uplink"
ping = "{SERVER}"
interval = "300ms"
timeout = "250ms"
dampening = "0s"
"#
        )
    };
    tracked(LabOptions::beside(), ping, |lab, pair, first| {
        let second = first.peer();
        cut_answers(lab, first, true)?;
        let cut = Instant::now();
        pair.wait_for_role(lab, second, "active")?;
        println!("the group has moved {:.1} s after the cut", cut.elapsed().as_secs_f64());
        pair.wait_for_role(lab, first, "fault")?;
        let failing = wait_for(lab, pair, first, "uplink", "down", "forbids the role")?;
        ensure!(failing["result"] == format!("no answer from {SERVER} within 250 ms"), "{failing}");
        wait_for(lab, pair, second, "uplink", "up", "none")?;
        let explained = pair.node(first).ctl_output(&["explain", "role"])?;
        let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
        ensure!(
            explained.contains("it must not be active: uplink: no answer from")
                && explained.contains("TRACKER")
                && explained.contains("forbids the role"),
            "{explained}"
        );
        println!("{explained}");
        let status = pair.node(first).ctl(&["status"])?;
        let warnings = status["warnings"].to_string();
        ensure!(warnings.contains("tracker uplink fails"), "{warnings}");

        cut_answers(lab, first, false)?;
        ensure!(pair.settle(lab)? == second);
        let before = pair.roles()?;
        for node in Node::ALL {
            cut_answers(lab, node, true)?;
        }
        for node in Node::ALL {
            wait_for(lab, pair, node, "uplink", "down", "none: no node that could be active is better off")?;
        }
        wait_for_many(lab, pair, "uplink")?;
        ensure!(pair.roles()? == before, "{:?} was {before:?}", pair.roles()?);
        let metrics = pair.node(second).ctl_output(&["stats", "--prometheus"])?;
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        for line in [
            "fwha_tracker_state{tracker=\"uplink\",state=\"down\"} 1",
            "fwha_tracker_counts{group=\"gateway\",tracker=\"uplink\"} 0",
        ] {
            ensure!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }
        for node in Node::ALL {
            cut_answers(lab, node, false)?;
        }
        for node in Node::ALL {
            wait_for(lab, pair, node, "uplink", "up", "none")?;
        }
        wait_for_many(lab, pair, "uplink")?;
        ensure!(pair.roles()? == before, "{:?} was {before:?}", pair.roles()?);

        let mut events = pair.node(first).ctl_lines(&["events"])?;
        events.retain(|event| event["kind"] == "tracker");
        let beginnings = [
            "uplink is up: ",
            "uplink is down: no answer",
            "uplink forbids the role",
            "uplink is up: ",
            "uplink does not count any more: none",
            "uplink is down: no answer",
            "uplink is up: ",
        ];
        let texts: Vec<&str> = events.iter().filter_map(|event| event["text"].as_str()).collect();
        let as_told = texts.iter().zip(beginnings).all(|(text, begins)| text.starts_with(begins));
        ensure!(texts.len() == beginnings.len() && as_told, "{texts:?}");
        Ok(())
    });
}

/// The files of a node that make its command or its file tracker fail.
fn bad(lab: &Lab, node: Node, kind: &str) -> PathBuf {
    lab.dir().join(format!("{node}.{kind}"))
}

#[test]
fn every_kind_of_tracker_fails_when_it_should() {
    let trackers = |lab: &Lab| {
        let dir = lab.dir().display();
        let head = |name: &str, what: String| {
            format!("\n[[tracker]]\nname = \"{name}\"\n{what}\ninterval = \"200ms\"\ndampening = \"0s\"\n")
        };
        let hang = "while [ -e $0/$FWHA_NODE.hang ]; do sleep 0.1; done";
        [
            head("neighbour", format!("arp = \"{TARGET}\"\ntimeout = \"190ms\"")),
            head("service", format!("tcp = \"{TARGET}:{PORT}\"\ntimeout = \"190ms\"")),
            head("ping6", format!("ping = \"{SERVER6}\"\ntimeout = \"190ms\"")),
            head("neighbour6", format!("arp = \"{SERVER6}\"\ntimeout = \"190ms\"")),
            head("service6", format!("tcp = \"[{SERVER6}]:{PORT}\"\ntimeout = \"190ms\"")),
            head("cable", "interface = \"cable\"".into()),
            head(
                "script",
                format!(
                    "command = [\"/bin/sh\", \"-c\", \"{hang}; [ ! -e $0/$FWHA_NODE.exit ]\", \"{dir}\"]\n\
                     weight = -50\ntimeout = \"190ms\""
                ),
            ),
            head("fw1-maintenance", format!("file = \"{dir}/fw1.file\"\nnodes = [\"fw1\"]")),
            head("fw2-maintenance", format!("file = \"{dir}/fw2.file\"\nnodes = [\"fw2\"]")),
        ]
        .concat()
    };
    // Its data plane is at XDP, the other test's at tc: the answers pass both.
    let options = LabOptions { attach: Attach::Xdp, ipv6: true, ..LabOptions::beside() };
    in_lab_with_targets(options, trackers, |lab, pair, first| {
        let second = first.peer();
        let moved = |from: Node| -> Result<()> {
            pair.wait_for_role(lab, from.peer(), "active")?;
            pair.wait_for_status(lab, from, "the role to be gone", |s| role(s) != Some("active")).map(drop)
        };

        // A file: an operator says so, and why.
        fs::write(bad(lab, first, "file"), "the switch is replaced\nand more\n")?;
        moved(first)?;
        let name = format!("{first}-maintenance");
        let failing = wait_for(lab, pair, first, &name, "down", "forbids the role")?;
        ensure!(
            failing["result"].as_str().is_some_and(|r| r.ends_with("is there: the switch is replaced")),
            "{failing}"
        );
        ensure!(tracker(&pair.node(second).ctl(&["status"])?, &name).is_none(), "it is of the other node");
        fs::remove_file(bad(lab, first, "file"))?;
        pair.wait_for_role(lab, first, "backup")?;

        // A cable that is pulled is known at once, whatever the interval is.
        lab.exec(second.host(), &["ip", "link", "set", "socket", "down"])?;
        moved(second)?;
        lab.exec(second.host(), &["ip", "link", "set", "socket", "up"])?;
        pair.wait_for_role(lab, second, "backup")?;

        // A command that fails lowers the priority, and so does one that hangs; it is killed.
        fs::write(bad(lab, first, "exit"), "")?;
        moved(first)?;
        let failing = wait_for(lab, pair, first, "script", "down", "lowers the priority by 50")?;
        ensure!(failing["result"] == "/bin/sh: exit status: 1", "{failing}");
        ensure!(pair.node(first).ctl(&["status"])?["groups"][0]["role"] == "backup", "it is no fault");
        fs::write(bad(lab, second, "hang"), "")?;
        wait_for(lab, pair, second, "script", "down", "lowers the priority by 50")?;
        // Both are lowered alike: the configured order decides between them.
        let preferred = Node::Fw1;
        pair.wait_for_role(lab, preferred, "active")?;
        let hung = tracker(&pair.node(second).ctl(&["status"])?, "script").cloned().context("script")?;
        ensure!(hung["result"] == "/bin/sh was killed after 190 ms", "{hung}");
        fs::remove_file(bad(lab, second, "hang"))?;
        fs::remove_file(bad(lab, first, "exit"))?;
        for node in Node::ALL {
            wait_for(lab, pair, node, "script", "up", "none")?;
        }
        pair.settle(lab)?;

        // The target is gone for everybody.
        let before = pair.roles()?;
        lab.exec(Host::Server, &["ip", "address", "del", &format!("{TARGET}/24"), "dev", "eth0"])?;
        for node in Node::ALL {
            for name in ["neighbour", "service"] {
                wait_for(lab, pair, node, name, "down", "none: ")?;
            }
        }
        wait_for_many(lab, pair, "neighbour")?;
        ensure!(pair.roles()? == before, "{:?} was {before:?}", pair.roles()?);
        ensure!(before.iter().all(|(_, term)| *term == term_of(pair, first).unwrap_or(0)), "{before:?}");
        Ok(())
    });
}

fn term_of(pair: &Pair, node: Node) -> Result<u64> {
    Ok(term(&pair.node(node).ctl(&["status"])?))
}

/// As [`tracked`], with [`TARGET`] and [`PORT`] on the server and an interface `cable` on both nodes.
fn in_lab_with_targets(
    options: LabOptions,
    trackers: impl FnOnce(&Lab) -> String,
    play: impl FnOnce(&Lab, &mut Pair, Node) -> Result<()>,
) {
    let server = std::cell::OnceCell::new();
    let targets = |lab: &Lab| {
        let made = (|| {
            lab.exec(Host::Server, &["ip", "address", "add", &format!("{TARGET}/24"), "dev", "eth0"])?;
            let listener = lab.within(Host::Server, || TcpListener::bind(("::", PORT)))??;
            server.set(listener).expect("once");
            for node in Node::ALL {
                lab.exec(
                    node.host(),
                    &["ip", "link", "add", "cable", "up", "type", "veth", "peer", "socket"],
                )?;
                lab.exec(node.host(), &["ip", "link", "set", "socket", "up"])?;
            }
            anyhow::Ok(())
        })();
        made.unwrap_or_else(|error| panic!("{error:?}"));
        trackers(lab)
    };
    tracked(options, targets, play);
}

/// A tracker that fails where there is a file, with a line more.
fn maintenance(lab: &Lab, node: Node, more: &str) -> String {
    let file = bad(lab, node, "file");
    format!(
        "\n[[tracker]]\nname = \"maintenance\"\nfile = {file:?}\nnodes = [\"{node}\"]\ninterval = \"100ms\"\n{more}\n"
    )
}

#[test]
fn trackers_come_change_and_go_by_reloads() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let first = pair.settle(lab)?;
        let plain = fs::read_to_string(lab.config_path())?;
        let reload = |pair: &Pair, trackers: &[String], expected: &str| -> Result<()> {
            fs::write(lab.config_path(), plain.clone() + &trackers.concat())?;
            for node in Node::ALL {
                let output = pair.node(node).ctl_output(&["reload"])?;
                let said = String::from_utf8_lossy(&output.stdout).into_owned();
                ensure!(output.status.success() && said == expected, "{node}: {said}");
            }
            Ok(())
        };
        reload(pair, &[maintenance(lab, first, "")], "tracker \"maintenance\" added\n")?;
        wait_for(lab, pair, first, "maintenance", "up", "none")?;
        fs::write(bad(lab, first, "file"), "a fan is loud")?;
        pair.wait_for_role(lab, first, "fault")?;
        pair.wait_for_role(lab, first.peer(), "active")?;

        // What its failure does is another thing; that it fails is known already.
        let before = wait_for(lab, pair, first, "maintenance", "down", "forbids the role")?;
        reload(pair, &[maintenance(lab, first, "weight = -90")], "tracker \"maintenance\" changed\n")?;
        let now = wait_for(lab, pair, first, "maintenance", "down", "lowers the priority by 90")?;
        ensure!(
            now["good"].as_u64() >= before["good"].as_u64() && before["good"].as_u64() > Some(0),
            "{now}"
        );
        pair.wait_for_role(lab, first, "backup")?;

        // It looks elsewhere.
        let elsewhere = maintenance(lab, first, "").replace(".file", ".other-file");
        reload(pair, &[elsewhere], "tracker \"maintenance\" changed\n")?;
        wait_for(lab, pair, first, "maintenance", "up", "none")?;
        reload(pair, &[], "tracker \"maintenance\" removed\n")?;
        let status = pair.wait_for_status(lab, first, "the tracker to be gone", |status| {
            tracker(status, "maintenance").is_none()
        })?;
        ensure!(!status["warnings"].to_string().contains("tracker"), "{status}");
        Ok(())
    });
}

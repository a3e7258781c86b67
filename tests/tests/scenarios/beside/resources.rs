//! Resources run where their group is Active, in their order, and what fails too often moves the group.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Lab, LabOptions, Node};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::root::is_missing;
use fwha_tests::scenario::in_lab;
use serde_json::Value;

/// An agent whose service is a file: `dir/NODE.INSTANCE`. It wants a parameter, and fails if told to.
const AGENT: &str = r#"#!/bin/sh
[ -n "$OCF_RESKEY_dir" ] || exit 6
[ "$OCF_RA_VERSION_MAJOR" = 1 ] && [ -d "$OCF_ROOT" ] || exit 2
state=$OCF_RESKEY_dir/$FWHA_NODE.$OCF_RESOURCE_INSTANCE
case $1 in
    start) touch "$state" ;;
    stop) rm -f "$state" ;;
    monitor) [ -e "$state" ] || exit 7 ;;
    *) exit 3 ;;
esac
echo "$OCF_RESOURCE_INSTANCE $1" >> "$OCF_RESKEY_dir/$FWHA_NODE.done"
"#;

fn service(lab: &Lab, node: Node, name: &str) -> PathBuf {
    lab.dir().join(format!("{node}.{name}"))
}

/// Writes what the nodes run: an agent, then a command that needs it.
fn write(lab: &Lab, settings: &str) -> Result<()> {
    let dir = lab.dir();
    let agent = dir.join("ocf/resource.d/test/file");
    fs::create_dir_all(agent.parent().context("a directory")?)?;
    fs::write(&agent, AGENT)?;
    fs::set_permissions(&agent, fs::Permissions::from_mode(0o755))?;
    let config = fs::read_to_string(lab.config_path())?;
    fs::write(lab.config_path(), config + &resources(dir, settings))?;
    Ok(())
}

fn resources(dir: &Path, settings: &str) -> String {
    let dir = dir.display();
    let shell = |verb: &str, script: &str| {
        let log = format!("echo second {verb} >> $0/$FWHA_NODE.done");
        format!(r#"{verb} = ["/bin/sh", "-c", "{script} && {log}", "{dir}"]"#)
    };
    let [start, stop, monitor] = [
        shell("start", "[ -e $0/$FWHA_NODE.first ] && touch $0/$FWHA_NODE.second"),
        shell("stop", "rm -f $0/$FWHA_NODE.second"),
        shell("monitor", "{ [ -e $0/$FWHA_NODE.second ] || exit 7; }"),
    ];
    format!(
        r#"
[[resource]]
name = "first"
group = "gateway"
ocf = "ocf:test:file"
ocf-root = "{dir}/ocf"
parameters = {{ dir = "{dir}" }}
{settings}
[[resource]]
name = "second"
group = "gateway"
command = {{ {start}, {stop}, {monitor} }}
interval = "200ms"
"#
    )
}

/// A resource of a node's `status`.
fn resource<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status.pointer("/groups/0/resources")?.as_array()?.iter().find(|r| r["name"] == name)
}

fn wait_for_states(lab: &Lab, pair: &Pair, node: Node, states: [&str; 2]) -> Result<Value> {
    pair.wait_for_status(lab, node, &format!("the resources of {node} to be {states:?}"), |status| {
        let is = |name, state| resource(status, name).is_some_and(|r| r["state"] == state);
        is("first", states[0]) && is("second", states[1])
    })
}

/// What has been started and stopped on a node, in order.
fn changes(lab: &Lab, node: Node) -> Result<Vec<String>> {
    let log = fs::read_to_string(service(lab, node, "done")).unwrap_or_default();
    Ok(log.lines().filter(|line| !line.ends_with("monitor")).map(str::to_owned).collect())
}

#[test]
fn resources_follow_their_group_in_order_over_a_switchover_and_a_kill() {
    in_lab(LabOptions::beside(), |lab| {
        write(lab, r#"interval = "200ms""#)?;
        let (mut pair, first) = Pair::settled(lab)?;
        let second = first.peer();
        wait_for_states(lab, &pair, first, ["running"; 2])?;
        wait_for_states(lab, &pair, second, ["stopped"; 2])?;
        ensure!(changes(lab, first)? == ["first start", "second start"], "{:?}", changes(lab, first)?);
        ensure!(changes(lab, second)?.is_empty(), "{:?}", changes(lab, second)?);

        let reply = pair.node(first).ctl(&["switchover", "--wait"])?;
        println!("{reply}");
        // A move that is planned waits for what runs here to stop.
        ensure!(changes(lab, first)?[2..] == ["second stop", "first stop"], "{:?}", changes(lab, first)?);
        wait_for_states(lab, &pair, second, ["running"; 2])?;
        let status = wait_for_states(lab, &pair, first, ["stopped"; 2])?;
        ensure!(!status["warnings"].to_string().contains("resource"), "{status}");

        // Back within its lease: nothing is started again.
        pair.node_mut(second).kill()?;
        pair.restart(lab, second)?;
        wait_for_states(lab, &pair, second, ["running"; 2])?;
        let active = pair.settle(lab)?;
        ensure!(active == second, "{active} is active");
        ensure!(changes(lab, second)? == ["first start", "second start"], "{:?}", changes(lab, second)?);

        // Gone for longer: the other takes over, and what was left running is stopped when it is back.
        pair.node_mut(second).kill()?;
        pair.wait_for_role(lab, first, "active")?;
        wait_for_states(lab, &pair, first, ["running"; 2])?;
        ensure!(service(lab, second, "second").exists(), "nobody could stop it");
        pair.restart(lab, second)?;
        wait_for_states(lab, &pair, second, ["stopped"; 2])?;
        ensure!(changes(lab, second)?[2..] == ["second stop", "first stop"], "{:?}", changes(lab, second)?);

        // At the end of the daemon nothing is left.
        ensure!(pair.node_mut(first).term(PATIENCE)?.success());
        ensure!(changes(lab, first)?.ends_with(&["second stop".into(), "first stop".into()]));
        Ok(())
    });
}

#[test]
fn a_resource_that_fails_is_restarted_up_to_its_limit_and_then_moves_the_group() {
    let settings = r#"interval = "200ms"
restarts = 2
on-fail = "fault""#;
    in_lab(LabOptions::beside(), |lab| {
        write(lab, settings)?;
        let (pair, first) = Pair::settled(lab)?;
        let second = first.peer();
        wait_for_states(lab, &pair, first, ["running"; 2])?;
        for restarts in 1..=2 {
            fs::remove_file(service(lab, first, "first"))?;
            pair.wait_for_status(lab, first, "a restart", |status| {
                resource(status, "first")
                    .is_some_and(|r| r["restarts"] == restarts && r["state"] == "running")
            })?;
        }
        ensure!(pair.wait_for_role(lab, first, "active").is_ok());

        fs::remove_file(service(lab, first, "first"))?;
        pair.wait_for_role(lab, second, "active")?;
        wait_for_states(lab, &pair, second, ["running"; 2])?;
        let status = wait_for_states(lab, &pair, first, ["failed", "stopped"])?;
        ensure!(pair.wait_for_role(lab, first, "fault").is_ok());
        let warnings = status["warnings"].to_string();
        ensure!(
            warnings.contains("resource first is failed: it does not run; `fwhactl resource cleanup first`"),
            "{warnings}"
        );
        let metrics = pair.node(first).ctl_output(&["stats", "--prometheus"])?;
        let metrics = String::from_utf8_lossy(&metrics.stdout).into_owned();
        for line in [
            "fwha_resource_state{group=\"gateway\",resource=\"first\",state=\"failed\"} 1",
            "fwha_resource_restarts_total{group=\"gateway\",resource=\"first\"} 2",
        ] {
            ensure!(metrics.lines().any(|l| l == line), "{line} is not in\n{metrics}");
        }
        let text = pair.node(first).ctl_output(&["status"])?;
        println!("{}", String::from_utf8_lossy(&text.stdout));

        pair.node(first).ctl(&["resource", "cleanup", "first"])?;
        pair.wait_for_role(lab, first, "backup")?;
        wait_for_states(lab, &pair, first, ["stopped"; 2])?;
        let unknown = pair.node(first).ctl_output(&["resource", "cleanup", "third"])?;
        ensure!(!unknown.status.success());
        let told = String::from_utf8_lossy(&unknown.stderr).into_owned();
        ensure!(told.contains("there is no resource \"third\": known are first, second"), "{told}");
        let events = pair.node(first).ctl_lines(&["events"])?;
        let texts: Vec<&str> =
            events.iter().filter(|e| e["kind"] == "resource").filter_map(|e| e["text"].as_str()).collect();
        ensure!(texts.iter().any(|t| t.starts_with("first has failed: ")), "{texts:?}");
        Ok(())
    });
}

/// How long a planned move waits for resources, as the manual says; much less than the stop of [`HANGS`] may take.
const RELEASE_WAIT_MS: f64 = 4000.0;

/// A resource whose stop hangs, and for each node a file that brings it into fault; all in the directory `DIR`.
const HANGS: &str = r#"
[[resource]]
name = "hangs"
group = "gateway"
command = { start = ["/bin/sh", "-c", "touch DIR/$FWHA_NODE.runs"], stop = ["/bin/sleep", "600"], monitor = ["/bin/sh", "-c", "[ -e DIR/$FWHA_NODE.runs ] || exit 7"] }
timeout = "300s"
[[tracker]]
name = "fw1-by-hand"
file = "DIR/fw1.down"
nodes = ["fw1"]
[[tracker]]
name = "fw2-by-hand"
file = "DIR/fw2.down"
nodes = ["fw2"]
"#;

#[test]
fn a_stop_that_hangs_holds_up_no_move_for_long_and_no_fault_at_all() {
    in_lab(LabOptions::beside(), |lab| {
        let config = fs::read_to_string(lab.config_path())?;
        fs::write(lab.config_path(), config + &HANGS.replace("DIR", &lab.dir().display().to_string()))?;
        let (pair, first) = Pair::settled(lab)?;
        let second = first.peer();
        let is = |wanted: &'static str| {
            move |status: &Value| resource(status, "hangs").is_some_and(|r| r["state"] == wanted)
        };
        pair.wait_for_status(lab, first, "the resource to run", is("running"))?;

        let reply = pair.node(first).ctl(&["switchover"])?;
        ensure!(reply["took_ms"].as_f64().is_some_and(|took_ms| took_ms >= RELEASE_WAIT_MS), "{reply}");
        pair.wait_for_role(lab, second, "active")?;
        pair.wait_for_status(lab, first, "the stop to go on", is("stopping"))?;
        pair.wait_for_status(lab, second, "the resource to run", is("running"))?;

        // A role that is lost is lost at once.
        fs::write(service(lab, second, "down"), "")?;
        pair.wait_for_role(lab, first, "active")?;
        let status = pair.wait_for_status(lab, second, "the stop to begin", is("stopping"))?;
        ensure!(status.pointer("/groups/0/role") == Some(&Value::from("fault")), "{status}");
        let addresses = lab.exec(second.host(), &["ip", "-oneline", "address"])?;
        ensure!(!addresses.contains(fwha_tests::lab::LAN_VIP), "{addresses}");
        Ok(())
    });
}

/// Where Debian's package resource-agents puts what it brings.
const ROUTE_AGENT: &str = "/usr/lib/ocf/resource.d/heartbeat/Route";

/// An agent that others wrote, as Pacemaker would run it: a route that is where the group is Active, and is put back.
#[test]
fn an_agent_of_resource_agents_follows_its_group() {
    if is_missing(ROUTE_AGENT, "resource-agents") {
        return;
    }
    const DESTINATION: &str = "198.51.100.0/24";
    in_lab(LabOptions::beside(), |lab| {
        let route = format!(
            r#"
[[resource]]
name = "upstream"
group = "gateway"
ocf = "ocf:heartbeat:Route"
parameters = {{ destination = "{DESTINATION}", device = "wan" }}
interval = "200ms"
restarts = 5
"#
        );
        let config = fs::read_to_string(lab.config_path())?;
        fs::write(lab.config_path(), config + &route)?;
        let (pair, first) = Pair::settled(lab)?;
        let second = first.peer();
        let routed = |node: Node| -> Result<bool> {
            Ok(!lab.exec(node.host(), &["ip", "route", "show", DESTINATION])?.trim().is_empty())
        };
        let wait_for = |node: Node, wanted: &'static str| {
            pair.wait_for_status(lab, node, &format!("the route of {node} to be {wanted}"), |status| {
                resource(status, "upstream").is_some_and(|r| r["state"] == wanted)
            })
        };
        wait_for(first, "running")?;
        wait_for(second, "stopped")?;
        ensure!(routed(first)? && !routed(second)?);

        lab.exec(first.host(), &["ip", "route", "del", DESTINATION])?;
        lab.wait_for("the route to be put back", PATIENCE, || Ok(routed(first)?.then_some(())))?;

        pair.node(first).ctl(&["switchover", "--wait"])?;
        wait_for(second, "running")?;
        wait_for(first, "stopped")?;
        ensure!(routed(second)? && !routed(first)?);
        Ok(())
    });
}

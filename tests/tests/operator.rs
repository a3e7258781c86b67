//! What an operator sees of replication, and can do about it.

use std::net::{TcpListener, TcpStream};

use anyhow::{Result, ensure};
use fwha_tests::lab::{Cable, Host, Lab, LabOptions, NodeProcess, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::with_pair;
use serde_json::Value;

const PORT: u16 = 8083;
const CONNECTIONS: usize = 20;

/// Connections through the firewall, which both nodes know of.
struct Connections {
    _server: TcpListener,
    _clients: Vec<TcpStream>,
}

impl Connections {
    fn open(lab: &Lab, pair: &Pair) -> Result<Self> {
        let server = lab.within(Host::Server, || TcpListener::bind(("0.0.0.0", PORT)))??;
        let connect = || lab.within(Host::Client, || TcpStream::connect((SERVER, PORT)))?.map_err(Into::into);
        let clients = (0..CONNECTIONS).map(|_| connect()).collect::<Result<Vec<TcpStream>>>()?;
        for node in fwha_tests::lab::Node::ALL {
            lab.wait_for("the flows on both nodes", PATIENCE, || {
                Ok((count(pair.node(node))? == CONNECTIONS as u64).then_some(()))
            })?;
        }
        Ok(Self { _server: server, _clients: clients })
    }
}

/// The connections that a node knows of.
fn count(node: &NodeProcess) -> Result<u64> {
    let filter = ["flows", "count", "proto=tcp", &format!("dport={PORT}"), "state=established"];
    Ok(node.ctl(&filter)?["count"].as_u64().unwrap_or(0))
}

/// Standard output and error, and the exit code, of a `fwhactl` for people.
fn ctl(node: &NodeProcess, arguments: &[&str]) -> Result<(String, String, i32)> {
    let output = node.ctl_output(arguments)?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok((text(&output.stdout), text(&output.stderr), output.status.code().unwrap_or(-1)))
}

#[test]
fn everything_is_sent_or_asked_for_at_an_operators_word() {
    with_pair(LabOptions::default(), |lab, pair| {
        let active = pair.settle(lab)?;
        let _connections = Connections::open(lab, pair)?;
        let (owner, replica) = (pair.node(active), pair.node(active.peer()));

        for (node, verb, state) in [(owner, "bulk", "sending"), (replica, "resync", "receiving")] {
            let lines = node.ctl_lines(&[verb, "--wait", "--peer", node.node().peer().name()])?;
            let (first, last) = (&lines[0], &lines[lines.len() - 1]);
            ensure!(first["state"] == "running" && first["direction"] == state, "{lines:?}");
            ensure!(
                last["state"] == "done" && last["flows_done"].as_u64() >= Some(CONNECTIONS as u64),
                "{lines:?}"
            );
        }
        let events = owner.ctl_lines(&["events"])?;
        let sent =
            |e: &&Value| e["kind"] == "bulk" && e["text"].as_str().is_some_and(|t| t.starts_with("sent "));
        ensure!(events.iter().filter(sent).count() >= 2, "{events:?}");

        // Whoever owns nothing has nothing to send, and a stranger is no peer.
        for (node, arguments, words) in [
            (replica, &["bulk", "--wait"][..], "owns no flows"),
            (owner, &["resync"], "owns no flows"),
            (owner, &["bulk", "--peer", "fw9"], "there is no node \"fw9\""),
            (owner, &["bulk", "--peer", active.name()], "is this node itself"),
        ] {
            let (_, stderr, code) = ctl(node, arguments)?;
            ensure!(code == 1 && stderr.contains(words), "{arguments:?}: {code} {stderr}");
        }

        lab.cut(active, Cable::Sync)?;
        pair.wait_for_status(lab, active, "replication to be silent", |status| {
            status.pointer("/peers/0/sync/state").is_some_and(|state| state == "silent")
        })?;
        let (_, stderr, code) = ctl(pair.node(active), &["bulk", "--wait"])?;
        ensure!(code == 1 && stderr.contains("does not answer"), "{code} {stderr}");
        Ok(())
    });
}

//! What the Active knows of connections, the Backup knows soon after.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Result;
use fwha_tests::lab::{Host, Lab, LabOptions, NodeProcess, SERVER};
use fwha_tests::pair::PATIENCE;
use fwha_tests::scenario::with_pair;
use serde_json::Value;

const PORT: u16 = 8082;
const CONNECTIONS: usize = 20;
/// The product promises 100 ms; a debug build on a busy machine, asked by a program that has to be started first, may
/// take a little longer.
const SOON: Duration = Duration::from_secs(1);

/// The established TCP flows to the test's port.
fn established(node: &NodeProcess) -> Result<Vec<Value>> {
    node.ctl_lines(&["flows", "proto=tcp", &format!("dport={PORT}"), "state=established"])
}

/// What is the same on both nodes.
fn identity(flow: &Value) -> String {
    ["proto", "src", "sport", "dst", "dport", "state", "zone_in", "zone_out", "owner", "rule"]
        .map(|field| flow[field].to_string())
        .join(" ")
}

fn connect(lab: &Lab) -> Result<TcpStream> {
    Ok(lab.within(Host::Client, || TcpStream::connect((SERVER, PORT)))??)
}

#[test]
fn the_backup_lists_the_flows_of_the_active_soon_after_they_began() {
    with_pair(LabOptions::default(), |lab, pair| {
        let active = pair.settle(lab)?;
        let (owner, replica) = (pair.node(active), pair.node(active.peer()));
        let _server = lab.within(Host::Server, || TcpListener::bind(("0.0.0.0", PORT)))??;

        let mut connections = Vec::new();
        let mut delays = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(connect(lab)?);
            let began = Instant::now();
            let port = u64::from(connections[connections.len() - 1].local_addr()?.port());
            lab.wait_for("the flow on the backup", PATIENCE, || {
                Ok(established(replica)?.iter().any(|flow| flow["sport"] == port).then_some(()))
            })?;
            delays.push(began.elapsed());
        }
        delays.sort();
        println!(
            "a new flow is listed by `fwhactl` on the backup after {:?} (median of {CONNECTIONS}), {:?} at most",
            delays[CONNECTIONS / 2],
            delays[CONNECTIONS - 1]
        );
        assert!(delays[CONNECTIONS - 1] < SOON, "{delays:?}");

        let (owned, replicated) = (established(owner)?, established(replica)?);
        assert_eq!(owned.len(), CONNECTIONS);
        let identities = |flows: &[Value]| flows.iter().map(identity).collect::<BTreeSet<_>>();
        assert_eq!(identities(&owned), identities(&replicated));
        assert!(owned.iter().all(|flow| flow["origin"] == "local" && flow["owner"] == active.name()));
        assert!(replicated.iter().all(|flow| flow["origin"] == "peer"));

        // What ends on the Active ends on the Backup.
        drop(connections);
        drop(_server);
        lab.wait_for("no established flow on the backup", PATIENCE, || {
            Ok(established(replica)?.is_empty().then_some(()))
        })
    });
}

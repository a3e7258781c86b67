//! What an operator sees of replication, and can do about it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use fwha_common::flow::{Flow, FlowKey};
use fwha_tests::lab::{Cable, Host, Lab, LabOptions, Node, NodeProcess, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::{in_lab, with_pair};
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
        for node in Node::ALL {
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
    with_pair(LabOptions::beside(), |lab, pair| {
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

/// The address of `[metrics]`, in each node's own network namespace.
const METRICS: &str = "127.0.0.1:9761";

/// What a node answers to a scrape.
fn scrape(lab: &Lab, host: Host) -> Result<String> {
    let mut stream = lab.within(host, || TcpStream::connect(METRICS))??;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("a head and a body")?;
    ensure!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain; version=0.0.4"), "{head}");
    Ok(body.to_owned())
}

/// Checks that every sample belongs to the metric above it and is there once.
fn check_metrics(text: &str) -> Result<()> {
    let (mut metric, mut seen) = (String::new(), BTreeSet::new());
    for line in text.lines() {
        if let Some(named) = line.strip_prefix("# TYPE ") {
            let (name, kind) = named.split_once(' ').context("a type")?;
            ensure!(name.starts_with("fwha_") && name.ends_with("_total") == (kind == "counter"), "{line}");
            metric = name.to_owned();
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').context("a value")?;
            let name = sample.split('{').next().unwrap_or_default();
            let suffix = name.strip_prefix(&metric).context("a sample of another metric")?;
            ensure!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
            ensure!(value.parse::<f64>().is_ok() && seen.insert(sample.to_owned()), "{line}");
        }
    }
    Ok(())
}

#[test]
fn counters_and_lag_are_told_to_people_and_to_prometheus() {
    let extra_config = format!("\n[metrics]\nlisten = \"{METRICS}\"\n");
    with_pair(LabOptions { extra_config, ..LabOptions::beside() }, |lab, pair| {
        let active = pair.settle(lab)?;
        let _connections = Connections::open(lab, pair)?;
        let status = pair.wait_for_status(lab, active, "nothing at risk, one link used", |status| {
            let link = |field| status.pointer(&format!("/peers/0/links/0/{field}"));
            status["flows"]["at_risk"] == 0
                && link("used").is_some_and(|used| used == true)
                && link("replication").is_some_and(|state| state == "up")
                && link("loss_per_mille").is_some_and(|loss| loss == 0)
        })?;
        let since = &status["peers"][0]["sync"]["since_ms"];
        ensure!(since.as_u64() < status["uptime_ms"].as_u64(), "in sync since {since}");

        let owner = pair.node(active);
        let peer = active.peer();
        let lag = |share: &str| owner.count(&format!("sync.peers.{peer}.lag_{share}_us"));
        let (p50, p99, max) = (lag("p50")?, lag("p99")?, lag("max")?);
        println!("a change is acknowledged after {p50} us (median), {p99} us (99 %), {max} us at most");
        ensure!(0 < p50 && p50 <= p99 && p99 <= max && max < 2_000_000, "{p50} {p99} {max}");
        ensure!(owner.count(&format!("link.replication_{peer}.sync.probes_sent"))? > 0, "links are counted");

        let text = scrape(lab, active.host())?;
        check_metrics(&text)?;
        let created = owner.count(&format!("sync.peers.{peer}.created_sent"))?;
        for expected in [
            format!("fwha_sync_state{{peer=\"{peer}\",state=\"in-sync\"}} 1"),
            format!("fwha_sync_created_sent_total{{peer=\"{peer}\"}} {created}"),
            format!("fwha_link_up{{peer=\"{peer}\",interface=\"sync\"}} 1"),
            "fwha_group_role{group=\"gateway\",role=\"active\"} 1".into(),
            "fwha_flows_at_risk 0".into(),
            format!("fwha_rule_flows_total{{rule=\"lan-out\"}} {}", owner.count("rules.lan-out")?),
            "fwha_dropped_packets_total{reason=\"malformed\"} 0".into(),
        ] {
            ensure!(text.lines().any(|line| line == expected), "{expected} is not in\n{text}");
        }
        let (printed, _, code) = ctl(owner, &["stats", "--prometheus"])?;
        ensure!(code == 0, "{printed}");
        check_metrics(&printed)
    });
}

#[test]
fn a_port_for_metrics_that_is_taken_is_a_warning_and_no_more() {
    let extra_config = format!("\n[metrics]\nlisten = \"{METRICS}\"\n");
    in_lab(LabOptions { extra_config, ..LabOptions::beside() }, |lab| {
        let _taken = lab.within(Host::Fw1, || TcpListener::bind(METRICS))??;
        let (pair, _) = Pair::settled(lab)?;
        let status = pair.node(Node::Fw1).ctl(&["status"])?;
        let warned = |w: &Value| {
            w.as_str().is_some_and(|w| w.starts_with("no metrics: cannot listen on 127.0.0.1:9761"))
        };
        ensure!(status["warnings"].as_array().is_some_and(|w| w.iter().any(warned)), "{status}");
        check_metrics(&scrape(lab, Host::Fw2)?)
    });
}

#[test]
fn nodes_in_sync_do_not_differ_and_deleted_flows_are_gone_on_both() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let _connections = Connections::open(lab, pair)?;
        let (owner, replica) = (pair.node(active), pair.node(active.peer()));
        for node in [owner, replica] {
            let (said, complaint, code) = ctl(node, &["flows", "diff"])?;
            ensure!(code == 0 && said.contains("no flow differs"), "{code} {said} {complaint}");
            let lines = node.ctl_lines(&["flows", "diff", "--all", "--peer", node.node().peer().name()])?;
            let end = &lines[lines.len() - 1];
            ensure!(lines.iter().all(|line| line["in_flight"] != false), "{lines:?}");
            ensure!(end["differences"] == 0 && end["buckets_listed"] == 256, "{end}");
            ensure!(end["flows_listed"].as_u64() >= Some(CONNECTIONS as u64), "{end}");
        }
        let (_, complaint, code) = ctl(owner, &["flows", "diff", "--peer", "fw9"])?;
        ensure!(code == 1 && complaint.contains("there is no node"), "{code} {complaint}");

        let filter = format!("dport={PORT}");
        let (_, complaint, code) = ctl(replica, &["flows", "delete", &filter])?;
        ensure!(code == 1 && complaint.contains("delete them on the active node"), "{code} {complaint}");
        ensure!(
            owner.ctl(&["flows", "delete", &filter])?["deleted"] == CONNECTIONS,
            "all of them, and no other"
        );
        for node in [owner, replica] {
            lab.wait_for("the flows gone", PATIENCE, || Ok((count(node)? == 0).then_some(())))?;
        }
        let (said, _, code) = ctl(owner, &["flows", "diff"])?;
        ensure!(code == 0, "{said}");
        Ok(())
    });
}

/// What `fwhactl flows diff --local` lists of a node: kinds, and ports of the client.
fn differs_from_kernel(node: &NodeProcess) -> Result<Vec<(String, u64)>> {
    let output = node.ctl_command(&["-o", "json", "flows", "diff", "--local"]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    ensure!(lines.iter().all(|line| line["peer"] == "kernel"), "{text}");
    let real = lines.iter().filter(|line| line["in_flight"] == false);
    let words = |line: &Value| Some((line["kind"].as_str()?.to_owned(), line["sport"].as_u64()?));
    let mut found = real.map(|line| words(line).context("a kind and a port")).collect::<Result<Vec<_>>>()?;
    ensure!(lines.last().is_some_and(|end| end["differences"] == found.len()), "{text}");
    ensure!(found.is_empty() == output.status.success(), "{:?} {text}", output.status);
    found.sort();
    Ok(found)
}

#[test]
fn what_somebody_changed_in_the_kernels_table_is_named_and_put_right() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let _connections = Connections::open(lab, pair)?;
        for node in [active.peer(), active] {
            let daemon = pair.node(node);
            ensure!(differs_from_kernel(daemon)?.is_empty(), "nobody has changed anything");
            let mut table = lab.flow_table(node)?;
            let flows = table.iter().collect::<Result<Vec<(FlowKey, Flow)>, _>>()?;
            let of_test = |(key, _): &&(FlowKey, Flow)| [key.port_a, key.port_b].contains(&PORT.to_be());
            let mut flows = flows.iter().filter(of_test);
            let mut any = || flows.next().copied().context("a flow");
            let client =
                |key: &FlowKey| key.ends(false).map(|(_, port)| port).into_iter().find(|p| *p != PORT);
            // One is gone, one was there before, one has missed a change, and one is another now.
            let (gone, copied, late, other) = (any()?, any()?, any()?, any()?);
            table.remove(&gone.0)?;
            let strange = FlowKey { addr_a: FlowKey::mapped(u32::from_ne_bytes([9, 9, 9, 9])), ..copied.0 };
            table.insert(strange, Flow { number: copied.1.number + 256, ..copied.1 }, 0)?;
            table.insert(late.0, Flow { version: late.1.version - 1, ..late.1 }, 0)?;
            table.insert(other.0, Flow { number: other.1.number + 256, ..other.1 }, 0)?;
            let mut expected = Vec::new();
            for (kind, key) in [
                ("only-here", &gone.0),
                ("only-there", &strange),
                ("version", &late.0),
                ("identity", &other.0),
            ] {
                expected.push((kind.to_owned(), u64::from(client(key).context("a port of the client")?)));
            }
            expected.sort();
            let found = differs_from_kernel(daemon)?;
            ensure!(found == expected, "{found:?}, not {expected:?}");
            lab.wait_for("table and replica to agree", PATIENCE, || {
                Ok((differs_from_kernel(daemon)?.is_empty()).then_some(()))
            })?;
            lab.wait_for("the nodes to agree", PATIENCE, || {
                Ok((ctl(daemon, &["flows", "diff"])?.2 == 0).then_some(()))
            })?;
        }
        Ok(())
    });
}

/// Flows by UDP, each with an answer, from as many ports of the client.
fn exchange(lab: &Lab, flows: usize) -> Result<()> {
    let server = lab.within(Host::Server, || UdpSocket::bind((SERVER, PORT)))??;
    server.set_read_timeout(Some(Duration::from_secs(5)))?;
    for n in 0..flows {
        let client = lab.within(Host::Client, || UdpSocket::bind(("0.0.0.0", 20_000 + n as u16)))??;
        client.set_read_timeout(Some(Duration::from_secs(5)))?;
        client.send_to(b"?", (SERVER, PORT))?;
        let mut byte = [0];
        let (_, from) = server.recv_from(&mut byte).context("the question at the server")?;
        server.send_to(b"!", from)?;
        client.recv_from(&mut byte).context("the answer at the client")?;
    }
    Ok(())
}

#[test]
fn flows_that_do_not_fit_into_the_peers_table_are_shown() {
    in_lab(LabOptions::beside(), |lab| {
        const ROOM: usize = 1000;
        const TOO_MANY: usize = 100;
        let small = lab.dir().join("small.toml");
        let text = fs::read_to_string(lab.config_path())?;
        ensure!(text.contains("max-flows = 65536"), "{text}");
        fs::write(&small, text.replace("max-flows = 65536", &format!("max-flows = {ROOM}")))?;
        let fw1 = lab.start_node(Node::Fw1)?;
        lab.wait_for("fw1 to be active", PATIENCE, || {
            Ok((fw1.ctl(&["status"])?["groups"][0]["role"] == "active").then_some(()))
        })?;
        let fw2 = lab.start_node_with(Node::Fw2, &small, "fw2")?;
        let mut pair = Pair::of(fw1, fw2);
        ensure!(pair.settle(lab)? == Node::Fw1, "the one that came first");
        exchange(lab, ROOM + TOO_MANY)?;

        let owner = pair.node(Node::Fw1);
        let mut command = owner.ctl_command(&["-o", "json", "flows", "diff"]);
        let lines = lab.wait_for("the flows that are too many", PATIENCE, || {
            let output = command.output()?;
            let text = String::from_utf8(output.stdout)?;
            let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
            let real = lines.iter().filter(|line| line["in_flight"] == false);
            let missing = real.filter(|line| line["kind"] == "only-here" && line["there"].is_null()).count();
            ensure!((missing == 0) == (output.status.code() == Some(0)), "{:?} {text}", output.status);
            Ok((missing >= TOO_MANY).then_some(lines))
        })?;
        let end = &lines[lines.len() - 1];
        println!("{end}");
        ensure!(end["differences"].as_u64() >= Some(TOO_MANY as u64), "{end}");
        let (said, _, code) = ctl(owner, &["flows", "diff"])?;
        ensure!(code == 1 && said.contains("only-here") && said.contains("flows differ"), "{code} {said}");
        Ok(())
    });
}

//! Routes and rules of a group are where it is Active, and nowhere else.

use std::fs;

use anyhow::{Result, ensure};
use fwha_tests::lab::{Lab, LabOptions, Node, SERVER, SERVER6};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;

const TO: &str = "10.9.0.0/16";
/// From there the other table is asked.
const FROM: &str = "192.168.100.0/24";
const TO6: &str = "fd00:9::/64";
/// A routing table of its own.
const TABLE: u32 = 1000;

fn write(lab: &Lab, routes: &str) -> Result<()> {
    let config = fs::read_to_string(lab.config_path())?;
    let config = config
        .lines()
        .filter(|line| !line.starts_with("routes =") && !line.starts_with("rules ="))
        .collect::<Vec<_>>()
        .join("\n");
    fs::write(
        lab.config_path(),
        config.replace("name = \"gateway\"", &format!("name = \"gateway\"\n{routes}")),
    )?;
    Ok(())
}

/// The routes and rules of a node that fwha has added.
fn routes(lab: &Lab, node: Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for family in ["-4", "-6"] {
        let text = lab.exec(node.host(), &["ip", family, "route", "show", "table", "all", "proto", "70"])?;
        found.extend(text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    for family in ["-4", "-6"] {
        let text = lab.exec(node.host(), &["ip", family, "rule", "show"])?;
        let ours = text.lines().filter(|line| line.contains("proto 70"));
        found.extend(ours.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    Ok(found)
}

fn wait_for_routes(lab: &Lab, node: Node, wanted: &[String]) -> Result<()> {
    lab.wait_for(&format!("the routes of {node} to be {wanted:?}"), PATIENCE, || {
        let found = routes(lab, node)?;
        Ok((found == wanted).then_some(())).inspect(|is: &Option<()>| {
            if is.is_none() {
                println!("{node}: {found:?}");
            }
        })
    })
}

#[test]
fn routes_follow_their_group() {
    in_lab(LabOptions { ipv6: true, ..LabOptions::beside() }, |lab| {
        write(
            lab,
            &format!(
                r#"routes = [{{ to = "{TO}", via = "{SERVER}", zone = "inet" }}, {{ to = "{TO}", via = "{SERVER}", zone = "inet", table = {TABLE}, metric = 5 }}, {{ to = "{TO6}", via = "{SERVER6}", zone = "inet" }}]
rules = [{{ from = "{FROM}", table = {TABLE} }}, {{ to = "{TO6}", table = {TABLE}, priority = 77 }}]"#
            ),
        )?;
        let all = [
            format!("{TO} via {SERVER} dev wan table {TABLE} metric 5"),
            format!("{TO} via {SERVER} dev wan"),
            format!("{TO6} via {SERVER6} dev wan metric 1024 pref medium"),
            format!("1000: from {FROM} lookup {TABLE} proto 70"),
            format!("77: from all to {TO6} lookup {TABLE} proto 70"),
        ];
        let (mut pair, first) = Pair::settled(lab)?;
        let second = first.peer();
        wait_for_routes(lab, first, &all)?;
        wait_for_routes(lab, second, &[])?;

        pair.node(first).ctl(&["switchover", "--wait"])?;
        wait_for_routes(lab, first, &[])?;
        wait_for_routes(lab, second, &all)?;

        // What somebody removes comes back.
        lab.exec(second.host(), &["ip", "route", "del", TO])?;
        wait_for_routes(lab, second, &all)?;

        // What a killed daemon leaves is removed by the next one, which is not active. And what another has added
        // stays, as long as it is there.
        lab.exec(first.host(), &["ip", "route", "add", TO, "via", SERVER])?;
        pair.node_mut(second).kill()?;
        let but_one: Vec<String> = all.iter().filter(|route| **route != all[1]).cloned().collect();
        wait_for_routes(lab, first, &but_one)?;
        lab.wait_for("a word of the route in the way", PATIENCE, || {
            let events = pair.node(first).ctl_lines(&["events"])?;
            let told = |event: &serde_json::Value| {
                let text = event["text"].as_str().unwrap_or_default();
                event["kind"] == "route-error"
                    && text.starts_with(&format!("another is in the way of route {TO}"))
            };
            Ok(events.iter().any(told).then_some(()))
        })?;
        lab.exec(first.host(), &["ip", "route", "del", TO])?;
        wait_for_routes(lab, first, &all)?;
        ensure!(routes(lab, second)? == all, "{:?}", routes(lab, second)?);
        pair.restart(lab, second)?;
        wait_for_routes(lab, second, &[])?;
        pair.settle(lab)?;

        // By a reload one goes; the others are not touched.
        write(lab, &format!(r#"routes = [{{ to = "{TO6}", via = "{SERVER6}", zone = "inet" }}]"#))?;
        for node in Node::ALL {
            pair.node(node).ctl(&["reload"])?;
        }
        wait_for_routes(lab, first, &all[2..3])?;
        wait_for_routes(lab, second, &[])?;

        // Or by a cleanup.
        for node in Node::ALL {
            pair.node_mut(node).kill()?;
        }
        ensure!(routes(lab, first)? == all[2..3], "{:?}", routes(lab, first)?);
        let cleaned = lab.cleanup(first)?;
        let said = String::from_utf8_lossy(&cleaned.stdout);
        ensure!(said.contains(&format!("removed route {TO6}")), "{said}");
        wait_for_routes(lab, first, &[])?;
        Ok(())
    });
}

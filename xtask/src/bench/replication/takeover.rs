//! From the decision to take over until the flows are this node's: with few flows and with many, and how long conntrackd
//! needs to put as many into its kernel's table.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Lab, Node};
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::conntrackd::{Conntrackd, States};
use super::pair::{Fwha, LONG};
use super::traffic::{OPENING, Wire};
use super::{LOAD_RATE, Plan};
use crate::bench::contender::tracked_max;
use crate::bench::figures::Series;

/// The steps of a takeover that are shown, as `fwhactl events` names them.
const STEPS: [(&str, &str); 3] = [
    ("own", "the flows are its own"),
    ("vips", "the addresses are on its interfaces"),
    ("announce", "all neighbours are told"),
];

/// Takeovers with one number of flows.
struct Row {
    flows: u32,
    /// By step, ms since the decision.
    steps: [Series; STEPS.len()],
}

/// Commits of one number of flows.
struct Commit {
    flows: u32,
    ms: Series,
}

/// Measures it.
pub fn run(lab: &Lab, plan: &Plan, spinner: &ProgressBar) -> Result<(String, Value)> {
    let mut rows = Vec::new();
    for &flows in &plan.takeover_flows {
        spinner.set_message(format!("takeovers with {flows} flows"));
        rows.push(fwha(lab, flows, plan.takeovers).context("fwha")?);
    }
    let mut commits = Vec::new();
    if plan.rival {
        let most = tracked_max()?;
        for &flows in &plan.takeover_flows {
            let flows = flows.min(most);
            spinner.set_message(format!("conntrackd's commit of {flows} flows"));
            commits.push(conntrackd(lab, flows, plan.takeovers).context("conntrackd")?);
        }
    }
    Ok((text(&rows, &commits), json(&rows, &commits)))
}

fn fwha(lab: &Lab, flows: u32, takeovers: u32) -> Result<Row> {
    let mut fwha = Fwha::start(lab)?;
    fwha.load(lab, flows)?;
    let mut row = Row { flows, steps: Default::default() };
    let mut active = Node::Fw1;
    for _ in 0..takeovers {
        let next = active.peer();
        fwha.pair().node(active).ctl_output(&["switchover"])?;
        ensure!(fwha.settle(lab)? == next, "{next} did not take over");
        let events = fwha.pair().node(next).ctl_lines(&["events"])?;
        let takeover = events.iter().rfind(|event| event["kind"] == "takeover").context("no takeover")?;
        for ((name, _), series) in STEPS.iter().zip(&mut row.steps) {
            let step = takeover["steps"].as_array().and_then(|s| s.iter().find(|s| s["name"] == *name));
            series.push(step.and_then(|s| s["ms"].as_f64()).with_context(|| format!("no step {name}"))?);
        }
        active = next;
    }
    let left = fwha.flows(active)?;
    ensure!(left >= u64::from(flows), "only {left} of {flows} flows outlived the takeovers");
    fwha.stop()?;
    Ok(row)
}

fn conntrackd(lab: &Lab, flows: u32, commits: u32) -> Result<Commit> {
    let mut pair = Conntrackd::start(lab, States::All)?;
    Wire::through(lab, Node::Fw1)?.play(0..flows, LOAD_RATE, &OPENING)?;
    // The kernel may have dropped a packet where fwha did not: what is there is what is committed.
    let there = lab.wait_for("all flows to be replicated", LONG, || {
        let (own, there) = (pair.flows(lab)?, pair.replicated(lab)?.0);
        Ok((own == there && there >= u64::from(flows) * 99 / 100).then_some(there))
    })?;
    let mut row = Commit { flows: there as u32, ms: Series::default() };
    for _ in 0..commits {
        let began = Instant::now();
        pair.commit(lab)?;
        // The command returns when the daemon has taken note of it, or when it is done, by version.
        lab.wait_for("the flows to be in the kernel", LONG, || {
            Ok((pair.tracked(lab, Node::Fw2)? >= there).then_some(()))
        })?;
        row.ms.push(began.elapsed().as_secs_f64() * 1e3);
        pair.flush(lab, Node::Fw2)?;
    }
    pair.stop(lab)?;
    Ok(row)
}

fn text(rows: &[Row], commits: &[Commit]) -> String {
    let mut text = format!(
        "Takeovers, {} with each number of flows; ms since the decision; median (quartiles)\n\n{:<46}",
        rows.first().map_or(0, |row| row.steps[0].len()),
        ""
    );
    for row in rows {
        let _ = write!(text, " {:>22}", format!("{} flows", row.flows));
    }
    let _ = writeln!(text, " {:>22}", "difference of medians");
    for (i, (_, what)) in STEPS.iter().enumerate() {
        let _ = write!(text, "fwha: {what:<40}");
        for row in rows {
            let _ = write!(text, " {:>22}", row.steps[i].spread(2));
        }
        if let [few, .., many] = rows {
            let _ = write!(text, " {:>22.2}", many.steps[i].median() - few.steps[i].median());
        }
        text.push('\n');
    }
    for commit in commits {
        let what = format!("conntrackd -c, {} flows", commit.flows);
        let _ = writeln!(text, "{what:<46} {:>22}", commit.ms.spread(1));
    }
    text
}

fn json(rows: &[Row], commits: &[Commit]) -> Value {
    let rows = rows.iter().map(|row| {
        let steps = STEPS.iter().zip(&row.steps);
        let steps: serde_json::Map<String, Value> =
            steps.map(|((name, _), series)| (format!("{name}_ms"), series.json())).collect();
        json!({ "flows": row.flows, "steps": steps })
    });
    let commits = commits.iter().map(|c| json!({ "flows": c.flows, "commit_ms": c.ms.json() }));
    json!({ "fwha": rows.collect::<Vec<_>>(), "conntrackd": commits.collect::<Vec<_>>() })
}

//! A big table to a peer that has nothing, while connections go on.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Lab, Node};
use fwha_tests::pair::PATIENCE;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::Plan;
use super::lag::Lag;
use super::pair::{Fwha, LONG};
use super::traffic::{Wire, conversation};
use super::usage::resident;
use crate::bench::figures::Series;

/// Changes of one connection: five of its states, and its end.
const CHANGES: u32 = 6;

/// What is measured.
const FIGURES: [(&str, &str, usize); 5] = [
    ("seconds", "bulk, s", 2),
    ("flows_per_s", "flows a second", 0),
    ("lag_p50_ms", "lag of live changes meanwhile, median, ms", 1),
    ("lag_p99_ms", "lag of live changes meanwhile, 99 %, ms", 1),
    ("resident_mb", "memory of the receiving daemon afterwards, MB", 0),
];

/// Measures it.
pub fn run(lab: &Lab, plan: &Plan, spinner: &ProgressBar) -> Result<(String, Value)> {
    let mut fwha = Fwha::start(lab)?;
    spinner.set_message(format!("loading {} flows", plan.bulk_flows));
    fwha.load(lab, plan.bulk_flows)?;
    let wire = Wire::through(lab, Node::Fw1)?;
    let mut figures: [Series; FIGURES.len()] = Default::default();
    let mut next = plan.bulk_flows;
    for round in 0..plan.bulks {
        spinner.set_message(format!("bulk {} of {}", round + 1, plan.bulks));
        ensure!(fwha.pair().node_mut(Node::Fw2).term(PATIENCE)?.success(), "fw2 failed");
        let done = AtomicBool::new(false);
        let (end, lasted) = std::thread::scope(|scope| -> Result<_> {
            let (wire, done) = (&wire, &done);
            let live = scope.spawn(move || {
                let go_on = || !done.load(Ordering::Acquire);
                wire.play_while(next..u32::MAX, plan.live_rate / CHANGES, &conversation(), go_on)
            });
            let result = transfer(lab, &mut fwha);
            done.store(true, Ordering::Release);
            let end = live.join().ok().context("the traffic panicked")??;
            Ok((end, result?))
        })?;
        next = end;
        let (seconds, flows, lag) = lasted;
        // Live connections are among them, and what has changed meanwhile may have come twice.
        let all = f64::from(plan.bulk_flows);
        ensure!(flows >= all, "of {all} flows only {flows} were received");
        let resident = resident(fwha.pid(Node::Fw2))? as f64 / 1e6;
        let ms = |part| lag.quantile(part);
        for (series, figure) in figures.iter_mut().zip([seconds, all / seconds, ms(0.5), ms(0.99), resident])
        {
            series.push(figure);
        }
    }
    fwha.settle(lab)?;
    fwha.stop()?;
    let mut text = format!(
        "Bulk of {} flows to a peer that has none, {} times, while {} changes a second go on; median (quartiles)\n\n",
        plan.bulk_flows, plan.bulks, plan.live_rate
    );
    for ((_, what, decimals), series) in FIGURES.iter().zip(&figures) {
        let _ = writeln!(text, "{what:<46} {:>22}", series.spread(*decimals));
    }
    let figures: serde_json::Map<String, Value> =
        FIGURES.iter().zip(&figures).map(|((name, ..), s)| ((*name).to_owned(), s.json())).collect();
    Ok((text, json!({ "flows": plan.bulk_flows, "live_changes_per_s": plan.live_rate, "figures": figures })))
}

/// Starts fw2 and waits for the bulk: how long it took, how many flows it was, and the lag meanwhile.
fn transfer(lab: &Lab, fwha: &mut Fwha) -> Result<(f64, f64, Lag)> {
    fwha.pair().restart(lab, Node::Fw2)?;
    let before = Lag::of(fwha.pair().node(Node::Fw1))?;
    let (began, ended, flows) = lab.wait_for("the bulk", LONG, || {
        let events = fwha.pair().node(Node::Fw2).ctl_lines(&["events"])?;
        let bulks: Vec<&Value> = events.iter().filter(|event| event["kind"] == "bulk").collect();
        let at = |event: &Value| event["at_mono_ms"].as_f64();
        let text = |event: &Value| event["text"].as_str().unwrap_or_default().to_owned();
        let first = bulks.iter().find(|event| text(event).contains(" sends "));
        let last = bulks.iter().rfind(|event| text(event).starts_with("received "));
        let Some((first, last)) = first.zip(last) else { return Ok(None) };
        let flows = text(last).split(' ').nth(1).and_then(|flows| flows.parse::<f64>().ok());
        Ok(at(first).zip(at(last)).zip(flows).map(|((began, ended), flows)| (began, ended, flows)))
    })?;
    let lag = Lag::of(fwha.pair().node(Node::Fw1))?.since(&before);
    Ok(((ended - began) / 1e3, flows, lag))
}

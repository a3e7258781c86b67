//! What a run of the demo looked like, for people.

use fwha_tests::pair::event_ms;
use fwha_tests::takeover::Outcome;
use serde_json::Value;

use super::Run;

/// Prints one run: the survivor's events since the loss, then what the traffic saw.
pub fn print(outcome: &Outcome) {
    let Outcome { lost, received, sent, probe, .. } = outcome;
    let since = |at_ms: f64| at_ms - outcome.lost_at_mono_ms;
    println!("   before     {lost} active, {} backup", outcome.survivor());
    line(0.0, &format!("every cable of {lost} is pulled, its daemon killed"));
    for event in &outcome.events {
        line(since(event_ms(event)), &format!("{}: {}", outcome.survivor(), describe(event)));
        for step in event["steps"].as_array().into_iter().flatten() {
            let ms = step["ms"].as_f64().unwrap_or(0.0);
            println!("{:14}  {ms:8.3} ms  {}", "", step["name"].as_str().unwrap_or("?"));
        }
    }
    match &received.error {
        None => line(since(received.ended_at_mono_ms), "the copy is complete"),
        Some(error) => {
            line(since(received.ended_at_mono_ms), &format!("the copy's last byte; then: {error}"))
        }
    }

    println!(
        "   copy       {} of {} MiB over one TCP connection in {:.1} s; longest standstill {:.0} ms; \
         {} segments sent again by the server, {} by the client",
        received.bytes >> 20,
        received.expected >> 20,
        received.duration_ms / 1000.0,
        received.longest_gap_ms,
        sent.retransmissions,
        received.retransmissions,
    );
    println!(
        "   probe      1 kHz UDP: outage {:.1} ms; {} of {} lost, {} of them on the way out; {} duplicates",
        probe.outage_ms, probe.lost, probe.sent, probe.lost_forward, probe.duplicates,
    );
    let same =
        if received.sha256 == sent.sha256 { "the same at both ends" } else { "DIFFERENT at the server" };
    if received.error.is_none() {
        println!("   sha256     {}: {same}", received.sha256);
    } else {
        println!("   refused    {} packets of unknown TCP connections (not_syn)", outcome.not_syn);
    }
}

fn line(at_ms: f64, text: &str) {
    println!("{at_ms:+10.1} ms  {text}");
}

/// An event in words: its kind, then its plain fields.
fn describe(event: &Value) -> String {
    let mut text = event["kind"].as_str().unwrap_or("event").replace('_', " ");
    for (name, value) in event.as_object().into_iter().flatten() {
        let value = match value {
            _ if matches!(name.as_str(), "kind" | "at_mono_ms" | "at" | "steps" | "seq") => continue,
            Value::String(value) => value.clone(),
            Value::Number(value) => value.to_string(),
            Value::Bool(value) => value.to_string(),
            _ => continue,
        };
        text.push_str(&format!(", {} {value}", name.replace('_', " ")));
    }
    text
}

/// Prints several runs: one a line, then median and worst.
pub fn table(runs: &[Run]) {
    println!("\n    run  verdict  lost  probe outage ms  copy standstill ms  sent again");
    for (index, Run { outcome, passed }) in runs.iter().enumerate() {
        print!("{:7}  {:7}", index + 1, if *passed { "pass" } else { "FAIL" });
        match outcome {
            Some(Outcome { lost, probe, received, sent, .. }) => println!(
                "  {lost}   {:15.1}  {:18.0}  {:10}",
                probe.outage_ms, received.longest_gap_ms, sent.retransmissions
            ),
            None => println!("  broke off"),
        }
    }
    let column = |of: fn(&Outcome) -> f64| {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run.outcome.as_ref()).map(of).collect();
        values.sort_by(f64::total_cmp);
        values.last().map(|worst| (values[values.len() / 2], *worst))
    };
    if let (Some(probe), Some(copy)) =
        (column(|run| run.probe.outage_ms), column(|run| run.received.longest_gap_ms))
    {
        println!(" median                 {:15.1}  {:18.0}", probe.0, copy.0);
        println!("  worst                 {:15.1}  {:18.0}", probe.1, copy.1);
    }
    println!("{} of {} passed", runs.iter().filter(|run| run.passed).count(), runs.len());
}

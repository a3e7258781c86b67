//! What a run of the demo looked like, for people.

use fwha_tests::pair::event_ms;
use fwha_tests::takeover::Outcome;
use serde_json::Value;

use super::Run;

/// Prints one run: what happened since the loss, in its order, then what the traffic saw.
pub fn print(outcome: &Outcome) {
    let Outcome { received, sent, probe, .. } = outcome;
    println!("     time ms");
    for (at_ms, text) in moments(outcome) {
        println!("{:+12.1}  {text}", at_ms - outcome.lost_at_mono_ms);
    }

    println!(
        "\ncopy      {} of {} MiB over one TCP connection in {:.1} s; it stood still for {:.0} ms at most,\n\
         \u{20}         of which TCP itself waits 200 or more before it sends again; {} segments were sent again",
        received.bytes >> 20,
        received.expected >> 20,
        received.duration_ms / 1000.0,
        received.longest_gap_ms,
        sent.retransmissions + received.retransmissions,
    );
    println!(
        "probe     1000 UDP datagrams a second to the server and back: none answered for {:.1} ms;\n\
         \u{20}         {} of {} lost, {} twice",
        probe.outage_ms, probe.lost, probe.sent, probe.duplicates,
    );
    match &received.error {
        None if received.sha256 == sent.sha256 => {
            println!("sha256    {}, at the client as at the server", received.sha256);
        }
        None => println!("sha256    {} at the client, {} at the server", received.sha256, sent.sha256),
        Some(_) => println!(
            "refused   {} packets of connections that {} does not know (not_syn)",
            outcome.not_syn,
            outcome.survivor()
        ),
    }
}

/// What happened and when (ms of `CLOCK_MONOTONIC`), in that order.
fn moments(outcome: &Outcome) -> Vec<(f64, String)> {
    let Outcome { lost, received, probe, .. } = outcome;
    let mut moments =
        vec![(outcome.lost_at_mono_ms, format!("{lost} is lost: its daemon is killed, every cable pulled"))];
    for event in &outcome.events {
        moments.push((event_ms(event), format!("{}: {}", outcome.survivor(), text(event))));
        for step in event["steps"].as_array().into_iter().flatten() {
            let took_ms = step["ms"].as_f64().unwrap_or(0.0);
            let name = step["name"].as_str().unwrap_or("?");
            moments.push((event_ms(event) + took_ms, format!("{:5}{name}", "")));
        }
    }
    if probe.lost > 0 {
        moments.push((probe.outage_at_mono_ms, "probe: unanswered from here".into()));
        moments.push((probe.outage_at_mono_ms + probe.outage_ms, "probe: answered again".into()));
    }
    if received.longest_gap_at_mono_ms + received.longest_gap_ms > outcome.lost_at_mono_ms {
        moments.push((received.longest_gap_at_mono_ms, "copy: stands still from here".into()));
    }
    match &received.error {
        None => {
            let goes_on = received.longest_gap_at_mono_ms + received.longest_gap_ms;
            moments.push((goes_on, "copy: goes on".into()));
            moments.push((received.ended_at_mono_ms, "copy: complete".into()));
        }
        Some(error) => {
            let given_up = received.longest_gap_at_mono_ms + received.longest_gap_ms;
            moments.push((given_up, format!("copy: dead: {error}")));
        }
    }
    moments.sort_by(|a, b| a.0.total_cmp(&b.0));
    moments
}

/// An event as `fwhactl events` shows it.
fn text(event: &Value) -> String {
    let field = |name: &str| event[name].as_str().unwrap_or_default();
    let group = if field("group").is_empty() { String::new() } else { format!("{}: ", field("group")) };
    format!("{:9} {group}{}", field("kind"), field("text"))
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

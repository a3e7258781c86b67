//! The main job: the Active node dies in the middle of a copy.

use std::fs;
use std::time::Duration;

use fwha_tests::lab::{Attach, LabOptions};
use fwha_tests::pair::Pair;
use fwha_tests::scenario::{in_lab, with_pair};
use fwha_tests::takeover::{self, Outcome};
use fwha_tests::traffic::Plan;
use serde_json::Value;

/// Small, and slow enough that half of it is left when the Active dies.
fn small() -> Plan {
    Plan { size: 32 << 20, rate: 32 << 20, ..Plan::default() }
}

fn figures(name: &str, outcome: &Outcome) {
    println!(
        "{name}: probe outage {:.1} ms, copy standstill {:.0} ms, {} segments sent again",
        outcome.probe.outage_ms, outcome.received.longest_gap_ms, outcome.sent.retransmissions
    );
}

fn a_copy_survives_by(attach: Attach) {
    with_pair(LabOptions { attach, ..LabOptions::default() }, |lab, pair| {
        let outcome = takeover::run(lab, pair, small(), |_| ())?;
        figures(attach.name(), &outcome);
        outcome.check_survived()?;
        let interfaces = outcome.status["interfaces"].as_array().cloned().unwrap_or_default();
        let zones: Vec<&Value> = interfaces.iter().filter(|i| i["interface"] != "sync").collect();
        assert_eq!(zones.len(), 2, "{interfaces:?}");
        assert!(zones.iter().all(|i| i["attach"] == attach.name()), "{interfaces:?}");
        Ok(())
    });
}

#[test]
fn a_copy_survives_the_loss_of_the_active_by_tc() {
    a_copy_survives_by(Attach::Tc);
}

#[test]
fn a_copy_survives_the_loss_of_the_active_by_xdp() {
    a_copy_survives_by(Attach::Xdp);
}

/// Sequence numbers are translated, by a difference that the survivor knows.
fn a_proxied_copy_survives_by(attach: Attach) {
    in_lab(LabOptions { attach, ..LabOptions::default() }, |lab| {
        let config = fs::read_to_string(lab.config_path())?;
        fs::write(lab.config_path(), config.replacen("[[rule]]", "[[rule]]\nsyn-proxy = true", 1))?;
        let mut pair = Pair::start(lab)?;
        let outcome = takeover::run(lab, &mut pair, small(), |_| ())?;
        figures(&format!("{}, SYN proxy", attach.name()), &outcome);
        outcome.check_survived()?;
        let flows = pair.node(outcome.survivor()).ctl_lines(&["flows"])?;
        assert!(flows.iter().any(|flow| flow["syn_proxied"] == true), "{flows:?}");
        Ok(())
    });
}

#[test]
fn a_copy_by_way_of_the_syn_proxy_survives_by_tc() {
    a_proxied_copy_survives_by(Attach::Tc);
}

#[test]
fn a_copy_by_way_of_the_syn_proxy_survives_by_xdp() {
    a_proxied_copy_survives_by(Attach::Xdp);
}

#[test]
fn without_replication_the_copy_dies_with_the_active() {
    with_pair(LabOptions { replication: false, ..LabOptions::default() }, |lab, pair| {
        let plan = Plan { patience: Duration::from_secs(3), ..small() };
        let outcome = takeover::run(lab, pair, plan, |_| ())?;
        figures("without replication", &outcome);
        println!("refused by the survivor as not_syn: {}", outcome.not_syn);
        outcome.check_died()
    });
}

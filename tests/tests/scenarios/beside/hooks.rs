//! Hooks are told what a node has become, when it is so, and nobody waits for them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use fwha_tests::lab::{LAN_VIP, Lab, LabOptions, Node};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;

/// Longer than a move may take with a hook that hangs.
const HANG_MS: f64 = 3000.0;

fn told_file(lab: &Lab, node: Node) -> PathBuf {
    lab.dir().join(format!("{node}.told"))
}

/// Appends from, role, and how many virtual addresses the LAN's interface has at that moment.
fn hooks(dir: &Path) -> String {
    let (dir, hang_s) = (dir.display(), HANG_MS / 1000.0 * 2.0);
    format!(
        r#"
[[hook]]
name = "tell"
command = ["/bin/sh", "-c", "echo $FWHA_FROM $FWHA_ROLE $(ip -oneline -4 address show dev lan | grep -c {LAN_VIP}/) >> {dir}/$FWHA_NODE.told"]
[[hook]]
name = "hang"
command = ["/bin/sh", "-c", "sleep {hang_s}"]
on = ["active", "backup"]
timeout = "{HANG_MS}ms"
"#
    )
}

/// Waits until the last that a hook was told on a node ends like this.
fn wait_for_told(lab: &Lab, node: Node, last: &str) -> Result<()> {
    lab.wait_for(&format!("{node} to be told {last:?}"), PATIENCE, || {
        let told = fs::read_to_string(told_file(lab, node))?;
        Ok(told.trim_end().ends_with(last).then_some(()))
    })
}

#[test]
fn hooks_are_told_the_role_when_the_addresses_are_there_or_gone() {
    in_lab(LabOptions::beside(), |lab| {
        let config = fs::read_to_string(lab.config_path())?;
        fs::write(lab.config_path(), config + &hooks(lab.dir()))?;
        let (mut pair, first) = Pair::settled(lab)?;
        let second = first.peer();
        // How it came to that may have been too quick to be told.
        wait_for_told(lab, first, " active 1")?;
        wait_for_told(lab, second, " backup 0")?;
        let mut events = pair.node(second).follow_events(lab)?;

        let reply = pair.node(first).ctl(&["switchover", "--wait"])?;

        assert!(reply["took_ms"].as_f64().is_some_and(|took_ms| took_ms < HANG_MS), "{reply}");
        wait_for_told(lab, first, "active backup 0")?;
        wait_for_told(lab, second, "backup active 1")?;
        for text in ["tell for active: done after ", "hang for active: killed after "] {
            events.wait_for(text, PATIENCE, |event| {
                let said = event["text"].as_str().is_some_and(|t| t.starts_with(text));
                (event["kind"] == "hook" && event["group"] == "gateway" && said).then_some(())
            })?;
        }

        // The last state is told before the daemon ends.
        assert!(pair.node_mut(second).term(PATIENCE)?.success());
        let told = fs::read_to_string(told_file(lab, second))?;
        assert!(told.ends_with("active standby 0\n"), "{told}");
        wait_for_told(lab, first, "backup active 1")?;
        Ok(())
    });
}

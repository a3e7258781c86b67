//! Hooks are told what a node has become, when it is so, and nobody waits for them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use fwha_tests::lab::{LAN_VIP, Lab, LabOptions, Node};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;

fn told_file(lab: &Lab, node: Node) -> PathBuf {
    lab.dir().join(format!("{node}.told"))
}

/// One appends from, role, and how many virtual addresses the LAN's interface has at that moment. One hangs, and one waits
/// for the file `go`.
fn hooks(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        r#"
[[hook]]
name = "tell"
command = ["/bin/sh", "-c", "echo $FWHA_FROM $FWHA_ROLE $(ip -oneline -4 address show dev lan | grep -c {LAN_VIP}/) >> {dir}/$FWHA_NODE.told"]
[[hook]]
name = "hang"
command = ["/bin/sleep", "600"]
on = ["active", "backup"]
timeout = "1s"
[[hook]]
name = "wait"
command = ["/bin/sh", "-c", "until [ -e {dir}/go ]; do sleep 0.1; done"]
on = ["active", "backup"]
timeout = "300s"
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

/// What has come of a node's hooks.
fn hook_texts(pair: &Pair, node: Node) -> Result<Vec<String>> {
    let events = pair.node(node).ctl_lines(&["events"])?;
    let hooks = events.iter().filter(|event| event["kind"] == "hook" && event["group"] == "gateway");
    Ok(hooks.filter_map(|event| event["text"].as_str()).map(str::to_owned).collect())
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

        pair.node(first).ctl(&["switchover", "--wait"])?;

        wait_for_told(lab, first, "active backup 0")?;
        wait_for_told(lab, second, "backup active 1")?;
        for node in Node::ALL {
            let texts = hook_texts(&pair, node)?;
            ensure!(
                !texts.iter().any(|text| text.starts_with("wait for ")),
                "nobody waits for it: {texts:?}"
            );
        }
        fs::write(lab.dir().join("go"), "")?;
        for text in
            ["tell for active: done after ", "hang for active: killed after ", "wait for active: done after "]
        {
            lab.wait_for(text, PATIENCE, || {
                Ok(hook_texts(&pair, second)?.iter().any(|t| t.starts_with(text)).then_some(()))
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

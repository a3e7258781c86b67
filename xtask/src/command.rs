//! Runs other programs for the verbs.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs a command and returns what it printed.
///
/// # Errors
///
/// It cannot be started, or fails; the message holds what it said.
pub fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("start {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

//! Runs cargo for the other verbs: the same one that runs this, in the workspace's root.

use std::env;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

/// The workspace's root.
pub fn root() -> PathBuf {
    let own = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    own.parent().map_or(own.clone(), Path::to_path_buf)
}

/// A cargo command in the root.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Builds the programs of some packages, quietly but for errors, and returns the directory they are in. Those of a debug
/// build are not built when `FWHA_BIN_DIR` says where they are.
///
/// # Errors
///
/// When the build fails; cargo has said why.
pub fn build_bins(packages: &[&str], release: bool) -> Result<PathBuf> {
    if let Some(dir) = env::var_os("FWHA_BIN_DIR").filter(|_| !release) {
        return Ok(dir.into());
    }
    let mut command = cargo();
    command.args(["build", "--bins"]);
    packages.iter().for_each(|package| {
        command.args(["--package", package]);
    });
    if release {
        command.arg("--release");
    }
    let programs = build_executables(command)?;
    let dir = programs.first().and_then(|program| program.parent());
    dir.map(Path::to_path_buf).context("cargo built no program")
}

/// Runs a `cargo build`, quietly but for errors, and returns the programs that it makes.
///
/// # Errors
///
/// When the build fails; cargo has said why.
pub fn build_executables(mut command: Command) -> Result<Vec<PathBuf>> {
    command.args(["--quiet", "--message-format=json-render-diagnostics"]);
    let mut child = command.stdout(Stdio::piped()).spawn().context("start cargo")?;
    let output = child.stdout.take().context("standard output of cargo")?;

    let spinner = spinner("building");
    if spinner.is_hidden() {
        eprintln!("building; the first time takes some minutes");
    }
    let mut programs = Vec::new();
    for line in BufReader::new(output).lines() {
        let message: Value = serde_json::from_str(&line?).unwrap_or_default();
        if message["reason"] == "compiler-artifact" {
            spinner
                .set_message(format!("building: {}", message["target"]["name"].as_str().unwrap_or_default()));
            programs.extend(message["executable"].as_str().map(PathBuf::from));
        }
    }
    spinner.finish_and_clear();
    ensure!(child.wait()?.success(), "the build failed");
    Ok(programs)
}

/// A spinner that turns by itself; invisible when standard error is no terminal.
pub fn spinner(message: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg}").expect("a valid template");
    let spinner = ProgressBar::new_spinner().with_style(style).with_message(message.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}

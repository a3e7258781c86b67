//! `fwha run`.

use std::path::PathBuf;

/// What the command line of `fwha run` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// The config file.
    pub config: PathBuf,
    /// The node to be; the host's name decides if there is none.
    pub node: Option<String>,
    /// Where the control socket is made.
    pub run_dir: PathBuf,
}

/// Runs the node that `options` name until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting.
pub fn run(options: RunOptions) -> anyhow::Result<()> {
    let _ = options;
    anyhow::bail!("this build has no daemon")
}

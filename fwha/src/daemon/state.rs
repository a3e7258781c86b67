//! What a node keeps over restarts and reboots: whether an operator has put it on standby.
//!
//! It is an empty file whose presence says yes, in a directory of this node's own. Without content it needs no room on a
//! disk that is full.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The file that says standby.
const STANDBY: &str = "standby";

/// A node's directory for state.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

impl State {
    /// The directory of a node below `base`: `<cluster>-<node>`. It is made when there is something to
    /// keep.
    pub fn of(base: &Path, cluster: &str, node: &str) -> Self {
        Self { dir: base.join(format!("{cluster}-{node}")) }
    }

    /// Whether the node is on standby.
    ///
    /// # Errors
    /// If that cannot be found out: a guess might undo an operator's word.
    pub fn standby(&self) -> Result<bool> {
        let path = self.dir.join(STANDBY);
        path.try_exists().with_context(|| format!("cannot look for {}", path.display()))
    }

    /// Keeps whether the node is on standby; on disk when this returns.
    ///
    /// # Errors
    /// If the file system refuses.
    pub fn set_standby(&self, on: bool) -> Result<()> {
        let path = self.dir.join(STANDBY);
        let write = || -> io::Result<()> {
            if on {
                fs::create_dir_all(&self.dir)?;
                File::create(&path)?.sync_all()?;
            } else {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    removed => removed?,
                }
            }
            File::open(&self.dir)?.sync_all()
        };
        let what = if on { "write" } else { "remove" };
        write().with_context(|| format!("cannot {what} {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standby_is_kept_by_node_until_it_is_over() {
        let base = tempfile::tempdir().unwrap();
        let state = |node| State::of(&base.path().join("made"), "edge", node);
        assert!(!state("fw1").standby().unwrap());
        state("fw1").set_standby(false).unwrap();
        state("fw1").set_standby(true).unwrap();
        state("fw1").set_standby(true).unwrap();
        assert!(state("fw1").standby().unwrap());
        let file = base.path().join("made/edge-fw1/standby");
        assert_eq!(fs::metadata(file).unwrap().len(), 0, "a full disk has room for it");
        assert!(!state("fw2").standby().unwrap());
        state("fw1").set_standby(false).unwrap();
        assert!(!state("fw1").standby().unwrap());
    }

    #[test]
    fn a_directory_that_cannot_be_is_told_with_its_path() {
        let base = tempfile::NamedTempFile::new().unwrap();
        let state = State::of(base.path(), "edge", "fw1");
        let error = format!("{:#}", state.set_standby(true).unwrap_err());
        assert!(error.contains("edge-fw1/standby"), "{error}");
        assert!(state.standby().is_err());
    }
}

//! One daemon for one node: the run directory, its lock, and the control socket in it.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Name of the control socket in the run directory.
pub const SOCKET: &str = "fwha.sock";

/// The run directory, held by this process alone until dropped. The kernel lets go of the lock when
/// the process ends, however it ends; a file left behind blocks nobody.
pub struct RunDir {
    path: PathBuf,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes the directory if need be and takes it.
    ///
    /// # Errors
    /// If another daemon has it (its process id is named), or the file system refuses.
    pub fn take(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
        let file = path.join("lock");
        let lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&file)
            .with_context(|| format!("cannot open {}", file.display()))?;
        let mut lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut held, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let _ = held.read_to_string(&mut pid);
                bail!(
                    "another fwha daemon (pid {}) uses {}: stop it, or give this node its own --run-dir",
                    pid.trim(),
                    path.display()
                );
            }
            Err((_, errno)) => {
                return Err(io::Error::from(errno))
                    .with_context(|| format!("cannot lock {}", file.display()));
            }
        };
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Binds the control socket, for root only. A socket file that a killed daemon left is replaced;
    /// holding the lock proves that nobody listens on it.
    ///
    /// # Errors
    /// If the path is something else than a socket, too long, or cannot be bound.
    pub fn bind_socket(&self) -> Result<tokio::net::UnixListener> {
        let path = self.path.join(SOCKET);
        match fs::symlink_metadata(&path) {
            Ok(found) if std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
                fs::remove_file(&path).with_context(|| format!("cannot replace {}", path.display()))?;
            }
            Ok(_) => bail!("{} is in the way and is not a socket: remove it", path.display()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", path.display())),
        }
        let listener = tokio::net::UnixListener::bind(&path)
            .with_context(|| format!("cannot bind the control socket {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// The directory of a daemon that is gone, if it is there at all.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_existing(path: &Path) -> Result<Option<Self>> {
        if path.is_dir() { Self::take(path).map(Some) } else { Ok(None) }
    }

    /// Removes what this node keeps here, and says whether there was something; the lock file stays, as removing it would let two daemons
    /// lock two files of one name.
    pub fn clean(&self) -> bool {
        fs::remove_file(self.path.join(SOCKET)).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_refused_and_told_the_first_ones_pid() {
        let dir = tempfile::tempdir().unwrap();
        let first = RunDir::take(dir.path()).unwrap();
        let refusal = RunDir::take(dir.path()).err().unwrap().to_string();
        assert!(refusal.contains(&format!("pid {}", std::process::id())), "{refusal}");
        drop(first);
        RunDir::take(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::take(dir.path()).unwrap();
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET)).unwrap());
        drop(run_dir.bind_socket().unwrap());
        run_dir.clean();
        fs::write(dir.path().join(SOCKET), "mine").unwrap();
        let refusal = run_dir.bind_socket().err().unwrap().to_string();
        assert!(refusal.contains("not a socket"), "{refusal}");
    }
}

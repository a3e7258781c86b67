//! Programs that the daemon runs for the operator: hooks, and checks of trackers.
//!
//! A run that takes too long is killed with all the processes that it has started, and so is one
//! that nobody waits for any more. What waits for a dead disk or file server does not die of that, and may not even start:
//! nobody waits for it either, and a [`Runner`] begins no other run while there is one.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};

/// What a program finds others by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// For how long a run that was killed is waited for.
const KILLED: Duration = Duration::from_millis(100);

/// One run.
pub struct Run<'a> {
    /// The program, an absolute path, and its arguments.
    pub command: &'a [String],
    /// Its environment, beside `PATH`.
    pub variables: &'a [(&'a str, &'a str)],
    /// Its standard input. With it, what the program says goes to the daemon's log; without, nowhere.
    pub input: Option<String>,
    /// How long it may take.
    pub timeout: Duration,
}

/// Who runs a program, once at a time.
#[derive(Clone, Debug)]
pub struct Runner(Arc<Semaphore>);

impl Default for Runner {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Runner {
    /// Waits until no run is left, also of those that were killed.
    pub async fn free(&self) {
        // That is never closed.
        drop(self.0.acquire().await);
    }

    /// As long as what is returned lives, a run lives that was killed.
    #[cfg(test)]
    pub async fn stuck(&self) -> tokio::sync::OwnedSemaphorePermit {
        Arc::clone(&self.0).acquire_owned().await.unwrap()
    }

    /// Runs it to its end, or to that of its time (`None`).
    ///
    /// # Errors
    /// Those of [`check_program`], and of starting it; [`io::ErrorKind::ResourceBusy`] if a run before was killed and has
    /// not ended.
    pub async fn run(&self, run: Run<'_>) -> io::Result<Option<ExitStatus>> {
        let busy =
            || io::Error::new(io::ErrorKind::ResourceBusy, "the run before was killed, and lives still");
        let alone = Arc::clone(&self.0).try_acquire_owned().map_err(|_| busy())?;
        let end = Instant::now() + run.timeout;
        let mut command = run.command()?;
        let program = run.command[0].clone();
        let mut started = tokio::task::spawn_blocking(move || {
            check_program(&program)?;
            command.spawn()
        });
        let Ok(child) = timeout_at(end, &mut started).await else {
            tokio::spawn(async move {
                if let Ok(Ok(mut child)) = started.await {
                    drop(Processes::of(&child));
                    // Nobody wants to know.
                    let _ = child.wait().await;
                }
                drop(alone);
            });
            return Ok(None);
        };
        let mut child = child.map_err(io::Error::other)??;
        let processes = Processes::of(&child);
        // The daemon may be among the last that the kernel kills when memory is short; what it starts is not.
        if let Some(pid) = child.id() {
            // It may have ended already.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
        }
        let to_its_end = async {
            if let (Some(mut stdin), Some(input)) = (child.stdin.take(), run.input) {
                // It need not read.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait().await
        };
        if let Ok(status) = timeout_at(end, to_its_end).await {
            // What it leaves in the background on purpose is its own.
            std::mem::forget(processes);
            return status.map(Some);
        }
        drop(processes);
        if timeout(KILLED, child.wait()).await.is_err() {
            tokio::spawn(async move {
                let _ = child.wait().await;
                drop(alone);
            });
        }
        Ok(None)
    }
}

impl Run<'_> {
    fn command(&self) -> io::Result<Command> {
        let (stdin, stdout, stderr) = match self.input {
            Some(_) => (Stdio::piped(), io::stderr().as_fd().try_clone_to_owned()?.into(), Stdio::inherit()),
            None => (Stdio::null(), Stdio::null(), Stdio::null()),
        };
        let mut command = Command::new(&self.command[0]);
        command
            .args(&self.command[1..])
            // Nothing of the daemon's own: its service manager would take the program for it.
            .env_clear()
            .env("PATH", PATH)
            .envs(self.variables.iter().copied())
            .current_dir("/")
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr)
            .process_group(0)
            // Should nobody wait for its start any more.
            .kill_on_drop(true);
        Ok(command)
    }
}

/// Whether a program may be run as root.
///
/// # Errors
/// It is not there, or somebody else than root could have written it.
pub fn check_program(program: &str) -> io::Result<()> {
    let file = std::fs::metadata(program)?;
    if file.uid() != 0 || file.mode() & 0o022 != 0 {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "others than root can write to it"));
    }
    Ok(())
}

/// The processes of a run, killed when dropped.
struct Processes(Pid);

impl Processes {
    fn of(child: &Child) -> Option<Self> {
        child.id().map(|pid| Self(Pid::from_raw(pid.cast_signed())))
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // Not reaped yet, so the number is still that of the run. One that has just ended is fine.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};

    use super::*;
    use crate::testing::{Net, root};

    /// A file system that answers no question but the first, until it is dropped. Who waits for it cannot be killed
    /// (`request_wait_answer` in the kernel's fs/fuse/dev.c).
    struct DeadMount<'a>(&'a Path);

    impl<'a> DeadMount<'a> {
        fn new(dir: &'a Path) -> Self {
            let mut device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
            let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
            mount(Some("dead"), dir, Some("fuse"), MsFlags::empty(), Some(data.as_str())).unwrap();
            std::thread::spawn(move || {
                let mut question = [0; 1 << 16];
                // FUSE_INIT: protocol 7.31, and nothing that is optional.
                let _ = device.read(&mut question).unwrap();
                let mut answer = [0; 80];
                answer[..4].copy_from_slice(&80u32.to_ne_bytes());
                answer[8..16].copy_from_slice(&question[8..16]);
                answer[16..20].copy_from_slice(&7u32.to_ne_bytes());
                answer[20..24].copy_from_slice(&31u32.to_ne_bytes());
                device.write_all(&answer).unwrap();
                while device.read(&mut question).is_ok() {}
            });
            Self(dir)
        }
    }

    impl Drop for DeadMount<'_> {
        fn drop(&mut self) {
            umount2(self.0, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH).unwrap();
        }
    }

    #[test]
    fn what_does_not_die_is_not_waited_for_and_is_alone() {
        if !root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("file").display().to_string();
        // In a mount namespace of its own.
        Net::new().with_bpffs(|| {
            let dead = DeadMount::new(dir.path());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let runner = Runner::default();
            let run = |program: &str, argument: &str| {
                let command = [program.to_owned(), argument.to_owned()];
                let run = Run {
                    command: &command,
                    variables: &[],
                    input: None,
                    timeout: Duration::from_millis(50),
                };
                let ended = async { timeout(Duration::from_secs(10), runner.run(run)).await };
                runtime.block_on(ended).expect("comes to an end")
            };
            assert!(run("/bin/cat", &inside).unwrap().is_none(), "it took too long");
            let refused = run("/bin/echo", "again").unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ResourceBusy);
            drop(dead);
            runtime.block_on(async { timeout(Duration::from_secs(10), runner.free()).await }).unwrap();
            assert!(run("/bin/echo", "again").unwrap().is_some_and(|status| status.success()));
            // Nor is one waited for that does not even start.
            let dead = DeadMount::new(dir.path());
            assert!(run(&inside, "").unwrap().is_none());
            assert_eq!(run("/bin/echo", "again").unwrap_err().kind(), io::ErrorKind::ResourceBusy);
            drop(dead);
        });
    }

    #[tokio::test]
    async fn what_the_daemon_starts_has_not_its_place_among_those_that_are_killed_last() {
        if !root() {
            return;
        }
        // Another one than usual; less would need a capability.
        let own = "/proc/self/oom_score_adj";
        std::fs::write(own, "300").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let said = dir.path().join("said").display().to_string();
        // It is like the daemon for a moment, before it is told.
        let script = format!("until grep -qx 0 {own}; do sleep 0.01; done; cat {own} > {said}");
        let command = ["/bin/sh", "-c", &script].map(str::to_owned);
        let timeout = Duration::from_secs(10);
        let run = Run { command: &command, variables: &[], input: None, timeout };
        let status = Runner::default().run(run).await;
        std::fs::write(own, "0").unwrap();
        assert!(status.unwrap().is_some_and(|status| status.success()));
        assert_eq!(std::fs::read_to_string(said).unwrap(), "0\n");
    }
}

//! Programs that the daemon runs for the operator: hooks, and checks of trackers.
//!
//! A run that takes too long is killed with all the processes that it has started, and so is one
//! that nobody waits for any more.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// What a program finds others by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

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

impl Run<'_> {
    /// Runs it to its end, or to that of its time (`None`).
    ///
    /// # Errors
    /// Those of [`check_program`], and of starting it.
    pub async fn to_its_end(self) -> io::Result<Option<ExitStatus>> {
        let program = &self.command[0];
        check_program(program)?;
        let (stdin, stdout, stderr) = match self.input {
            Some(_) => (Stdio::piped(), io::stderr().as_fd().try_clone_to_owned()?.into(), Stdio::inherit()),
            None => (Stdio::null(), Stdio::null(), Stdio::null()),
        };
        let mut child = Command::new(program)
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
            .spawn()?;
        // The daemon may be among the last that the kernel kills when memory is short; what it starts is not.
        if let Some(pid) = child.id() {
            // It may have ended already.
            let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), "0");
        }
        let processes = child.id().map(|pid| Processes(Pid::from_raw(pid.cast_signed())));
        let run = async {
            if let (Some(mut stdin), Some(input)) = (child.stdin.take(), self.input) {
                // It need not read.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
            child.wait().await
        };
        match tokio::time::timeout(self.timeout, run).await {
            Ok(status) => {
                // What it leaves in the background on purpose is its own.
                std::mem::forget(processes);
                status.map(Some)
            }
            Err(_) => {
                drop(processes);
                child.wait().await?;
                Ok(None)
            }
        }
    }
}

/// Whether a program may be run as root.
///
/// # Errors
/// It is not there, or somebody else than root could have written it.
pub fn check_program(program: &str) -> io::Result<()> {
    let file = std::fs::metadata(program)?;
    if file.uid() != 0 || file.mode() & 0o022 != 0 {
        return Err(io::Error::other("others than root can write to it"));
    }
    Ok(())
}

/// The processes of a run, killed when dropped.
struct Processes(Pid);

impl Drop for Processes {
    fn drop(&mut self) {
        // Not reaped yet, so the number is still that of the run. One that has just ended is fine.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::root;

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
        let status = run.to_its_end().await;
        std::fs::write(own, "0").unwrap();
        assert!(status.unwrap().is_some_and(|status| status.success()));
        assert_eq!(std::fs::read_to_string(said).unwrap(), "0\n");
    }
}

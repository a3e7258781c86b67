//! Programs of the lab: where they are, how they are started, and those that report in JSON lines.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use super::{Host, Lab};

/// The path of one of our programs: in `dir`, else in `$FWHA_BIN_DIR`, else where cargo puts programs beside the
/// running one.
///
/// # Errors
///
/// When it is not there, with the command that builds it.
pub fn binary(name: &str, dir: Option<&Path>) -> Result<PathBuf> {
    let dir = match (dir, std::env::var_os("FWHA_BIN_DIR")) {
        (Some(dir), _) => dir.to_path_buf(),
        (None, Some(dir)) => PathBuf::from(dir),
        (None, None) => {
            let own = std::env::current_exe().context("find the running program")?;
            let dir = own.parent().context("the running program has no directory")?;
            // Test programs are in target/PROFILE/deps, the others one up.
            if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_path_buf() } else { dir.to_path_buf() }
        }
    };
    let path = dir.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing: run `cargo build --workspace --bins`, or the tests with `cargo xtask test`",
            path.display()
        );
    }
    // A path from the root: the lab's mount namespace starts programs in `/`.
    std::path::absolute(path).context("find the program")
}

/// A command with empty standard input and in a process group of its own: Ctrl-C is for the lab's owner alone, who then
/// ends what it started in good order.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).process_group(0);
    command
}

/// A program that prints one JSON object a line, read on a thread. Closing its standard input asks it to end; dropping
/// it kills it.
pub struct LineProcess<E> {
    child: Child,
    lines: Receiver<Result<E>>,
    seen: VecDeque<E>,
    ended: bool,
}

impl<E: DeserializeOwned + Send + 'static> LineProcess<E> {
    /// Starts a command on a box.
    pub(super) fn start(lab: &Lab, host: Host, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = lab.spawn(host, &mut command)?;
        let output = child.stdout.take().context("standard output of the program")?;
        let (sender, lines) = mpsc::channel();
        std::thread::Builder::new().name("lines".into()).spawn(move || {
            for line in BufReader::new(output).lines() {
                let event = line.map_err(anyhow::Error::from).and_then(|line| {
                    serde_json::from_str(&line).with_context(|| format!("unexpected output: {line}"))
                });
                if sender.send(event).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { child, lines, seen: VecDeque::new(), ended: false })
    }

    /// The next event, waiting for at most `timeout`; `None` when there was none in time or the program has closed its
    /// output.
    ///
    /// # Errors
    ///
    /// When a line is not such an event.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<E>> {
        if let Some(event) = self.seen.pop_front() {
            return Ok(Some(event));
        }
        match self.lines.recv_timeout(timeout) {
            Ok(event) => event.map(Some),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                self.ended = true;
                Ok(None)
            }
        }
    }

    /// Takes events until `pick` makes something of one.
    ///
    /// # Errors
    ///
    /// When none did in time, when the output ended, or when a line is not such an event.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut pick: impl FnMut(E) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.next(deadline.saturating_duration_since(Instant::now()))? {
                Some(event) => {
                    if let Some(value) = pick(event) {
                        return Ok(value);
                    }
                }
                None if self.ended => {
                    bail!("the program ended before {what}: {}", describe(self.child.wait()?))
                }
                None => bail!("waited {timeout:?} in vain: {what}"),
            }
        }
    }

    /// Whether the program has closed its output and every event was taken.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// Asks the program to end, by closing its standard input.
    pub fn finish(&mut self) {
        drop(self.child.stdin.take());
    }
}

impl<E> Drop for LineProcess<E> {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

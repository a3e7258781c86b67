//! A running firewall node: its daemon's process, and questions to it through `fwhactl`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::process::{LineProcess, binary, command, describe};
use super::{Lab, Node};

/// A `fwha run` in the lab. It runs until it is told to end or the lab goes; dropping this alone does not end it.
pub struct NodeProcess {
    node: Node,
    child: Child,
    run_dir: PathBuf,
    log: PathBuf,
    fwhactl: PathBuf,
}

impl NodeProcess {
    pub(super) fn start(
        lab: &Lab,
        node: Node,
        config: &Path,
        run_name: &str,
        clock_ahead: Duration,
    ) -> Result<Self> {
        let bin_dir = lab.options().bin_dir.as_deref();
        let run_dir = lab.dir().join(run_name);
        let log = lab.dir().join(format!("{run_name}.log"));
        // A restarted node adds to its log.
        let output = File::options().create(true).append(true).open(&log)?;
        let mut daemon = command(binary("fwha", bin_dir)?);
        daemon
            .arg("run")
            .arg("--config")
            .arg(config)
            .args(["--node", node.name(), "--run-dir"])
            .arg(&run_dir)
            .arg("--state-dir")
            .arg(lab.dir().join("state"));
        daemon.env("RUST_BACKTRACE", "1").stdout(output.try_clone()?).stderr(output);
        if !clock_ahead.is_zero() {
            crate::sys::start_ahead(&mut daemon, clock_ahead);
        }
        let child = lab.spawn(node.host(), &mut daemon)?;
        Ok(Self { node, child, run_dir, log, fwhactl: binary("fwhactl", bin_dir)? })
    }

    /// Which node it is.
    pub fn node(&self) -> Node {
        self.node
    }

    /// The daemon's process number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.run_dir.join("fwha.sock")
    }

    /// All that the daemon has logged.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    /// Kills the daemon with SIGKILL and does not wait for its end; [`NodeProcess::kill`] does.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn send_kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)
    }

    /// Kills the daemon with SIGKILL and waits for its end.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().and_then(|()| self.child.wait()).with_context(|| format!("kill {}", self.node))?;
        Ok(())
    }

    /// Ends the daemon with SIGTERM and waits for its end.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled or does not end within `timeout`.
    pub fn term(&mut self, timeout: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Tells the daemon to read its key file again (SIGHUP).
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn reload(&self) -> Result<()> {
        self.signal(Signal::SIGHUP)
    }

    /// Stops the daemon in its tracks (SIGSTOP): it hangs, but its data plane runs on.
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a stopped daemon go on (SIGCONT).
    ///
    /// # Errors
    ///
    /// When it cannot be signalled.
    pub fn cont(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Waits for the daemon to end by itself.
    ///
    /// # Errors
    ///
    /// When it does not within `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} did not end within {timeout:?}", self.node);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Whether the daemon has not ended.
    ///
    /// # Errors
    ///
    /// When the process cannot be asked.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        // Not reaped yet, so the number is still this process's.
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .with_context(|| format!("send {signal} to {}", self.node))
    }

    /// The `fwhactl` command line for this node.
    pub fn ctl_command(&self, arguments: &[&str]) -> Command {
        let mut ctl = command(&self.fwhactl);
        ctl.arg("--socket").arg(self.socket()).args(arguments);
        ctl
    }

    /// Runs `fwhactl` to its end, well or not.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn ctl_output(&self, arguments: &[&str]) -> Result<Output> {
        let mut ctl = self.ctl_command(arguments);
        ctl.stdout(Stdio::piped()).stderr(Stdio::piped()).output().context("run fwhactl")
    }

    /// Asks with `fwhactl -o json`: every object of the answer. The exit code 3 of `status` (a group without exactly
    /// one Active) is an answer as well.
    ///
    /// # Errors
    ///
    /// When the command fails, with what it said, or its output is not JSON.
    pub fn ctl_lines(&self, arguments: &[&str]) -> Result<Vec<Value>> {
        let output = self.ctl_output(&[&["-o", "json"], arguments].concat())?;
        if !output.status.success() && output.status.code() != Some(3) {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!(
                "fwhactl {} on {}: {}: {}",
                arguments.join(" "),
                self.node,
                describe(output.status),
                said.trim()
            );
        }
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        values.collect::<Result<_, _>>().with_context(|| format!("JSON of fwhactl {}", arguments.join(" ")))
    }

    /// As [`NodeProcess::ctl_lines`], for verbs that answer with one object.
    ///
    /// # Errors
    ///
    /// As there, and when there is not exactly one object.
    pub fn ctl(&self, arguments: &[&str]) -> Result<Value> {
        let mut values = self.ctl_lines(arguments)?;
        match (values.pop(), values.is_empty()) {
            (Some(value), true) => Ok(value),
            _ => bail!("fwhactl {} did not answer with one object", arguments.join(" ")),
        }
    }

    /// A counter by its path in `fwhactl stats`: `drops.no_rule`. One that is not there has not counted yet.
    ///
    /// # Errors
    ///
    /// When the node does not answer.
    pub fn count(&self, counter: &str) -> Result<u64> {
        let stats = self.ctl(&["stats"])?;
        let pointer = format!("/{}", counter.replace('.', "/"));
        Ok(stats.pointer(&pointer).and_then(Value::as_u64).unwrap_or(0))
    }

    /// Follows the node's events, from its first.
    ///
    /// # Errors
    ///
    /// When `fwhactl` cannot be started.
    pub fn follow_events(&self, lab: &Lab) -> Result<LineProcess<Value>> {
        let ctl = self.ctl_command(&["-o", "json", "events", "--follow"]);
        LineProcess::start(lab, self.node.host(), ctl)
    }
}

/// The last lines of every log in a lab's directory.
pub fn log_tails(dir: &Path, lines: usize) -> String {
    let mut logs: Vec<PathBuf> = fs::read_dir(dir)
        .map(|entries| {
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.extension() == Some("log".as_ref()))
        })
        .map(Iterator::collect)
        .unwrap_or_default();
    logs.sort();
    let mut text = String::new();
    for log in logs {
        let content = fs::read_to_string(&log).unwrap_or_default();
        let all: Vec<&str> = content.lines().collect();
        let tail = &all[all.len().saturating_sub(lines)..];
        text.push_str(&format!("---- {}, last {} of {} lines\n", log.display(), tail.len(), all.len()));
        tail.iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
    }
    text
}

//! The lab's copy and probe while they run between client and server, seen from outside.

use std::time::Duration;

use anyhow::{Result, anyhow};

use super::{ConnectionEvent, CopyEvent, CopyReport, DialledReport, HeldReport, ProbeEvent, ProbeReport};
use crate::lab::{Host, Lab, LineProcess, SERVER};

/// How long any program may take to do its next step.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest copy there may be.
const COPY_MAX: Duration = Duration::from_secs(600);
const COPY_PORT: u16 = 8080;
const PROBE_PORT: u16 = 8081;
const CONNECTION_PORT: u16 = 8082;

/// What is copied, and how.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Bytes.
    pub size: u64,
    /// Bytes a second.
    pub rate: u64,
    /// The file's contents follow from it.
    pub seed: u64,
    /// How long a connection may stand still before it counts as dead.
    pub patience: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self { size: 256 << 20, rate: 64 << 20, seed: 1, patience: Duration::from_secs(10) }
    }
}

/// A UDP probe at 1 kHz from client to server and back.
pub struct Probe {
    probe: LineProcess<ProbeEvent>,
    /// Ended when dropped.
    _echo: LineProcess<ProbeEvent>,
}

impl Probe {
    /// Starts it and waits for the first answers.
    ///
    /// # Errors
    ///
    /// When there are none.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut echo: LineProcess<ProbeEvent> =
            lab.traffic(Host::Server, &words(&format!("echo --listen 0.0.0.0:{PROBE_PORT}")))?;
        echo.wait_for("the echo to listen", PATIENCE, |event| {
            matches!(event, ProbeEvent::Listening).then_some(())
        })?;
        let connect = format!("probe --connect {SERVER}:{PROBE_PORT} --count 3600000");
        let mut probe = Self { probe: lab.traffic(Host::Client, &words(&connect))?, _echo: echo };
        probe.wait_for_answers(0)?;
        Ok(probe)
    }

    /// Waits until more than `least` probes have been answered, and returns how many.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn wait_for_answers(&mut self, least: u64) -> Result<u64> {
        self.probe.wait_for("answers to the probe", PATIENCE, |event| match event {
            ProbeEvent::Progress { answered, .. } if answered > least => Some(answered),
            _ => None,
        })
    }

    /// Waits for probes sent after now to be answered.
    ///
    /// # Errors
    ///
    /// When they are not.
    pub fn wait_for_more_answers(&mut self) -> Result<()> {
        let now_ms = super::mono_ms();
        let mut before = None;
        self.probe.wait_for("more answers to the probe", PATIENCE, |event| match event {
            ProbeEvent::Progress { at_mono_ms, answered, .. } if at_mono_ms > now_ms => {
                (*before.get_or_insert(answered) < answered).then_some(())
            }
            _ => None,
        })
    }

    /// Ends it.
    ///
    /// # Errors
    ///
    /// When it does not report.
    pub fn end(mut self) -> Result<ProbeReport> {
        self.probe.finish();
        self.probe.wait_for("the probe's report", PATIENCE, |event| match event {
            ProbeEvent::Ended(report) => Some(report),
            _ => None,
        })
    }
}

/// TCP connections from client to server: some that are held, and new ones at a steady rate.
pub struct Connections {
    held: LineProcess<ConnectionEvent>,
    dialled: LineProcess<ConnectionEvent>,
    /// Ended when dropped.
    _answer: LineProcess<ConnectionEvent>,
}

impl Connections {
    /// Opens `held` connections, and begins to open `rate` a second.
    ///
    /// # Errors
    ///
    /// When the server does not listen, or one of those to be held cannot be opened.
    pub fn start(lab: &Lab, held: u32, rate: u32) -> Result<Self> {
        let mut answer: LineProcess<ConnectionEvent> =
            lab.traffic(Host::Server, &words(&format!("answer --listen 0.0.0.0:{CONNECTION_PORT}")))?;
        answer.wait_for("the server to listen", PATIENCE, |event| {
            matches!(event, ConnectionEvent::Listening).then_some(())
        })?;
        let connect = format!("--connect {SERVER}:{CONNECTION_PORT}");
        let mut held: LineProcess<ConnectionEvent> =
            lab.traffic(Host::Client, &words(&format!("hold {connect} --count {held}")))?;
        held.wait_for("the connections to be open", PATIENCE, |event| {
            matches!(event, ConnectionEvent::Open).then_some(())
        })?;
        let dialled = lab.traffic(Host::Client, &words(&format!("dial {connect} --rate {rate}")))?;
        Ok(Self { held, dialled, _answer: answer })
    }

    /// Ends them.
    ///
    /// # Errors
    ///
    /// When one does not report.
    pub fn end(mut self) -> Result<(HeldReport, DialledReport)> {
        self.held.finish();
        self.dialled.finish();
        let held = self.held.wait_for("the report on held connections", PATIENCE, |event| match event {
            ConnectionEvent::Held(report) => Some(report),
            _ => None,
        })?;
        let dialled =
            self.dialled.wait_for("the report on new connections", PATIENCE, |event| match event {
                ConnectionEvent::Dialled(report) => Some(report),
                _ => None,
            })?;
        Ok((held, dialled))
    }
}

/// A file on its way from server to client over one TCP connection that the client opened.
pub struct Copy {
    sender: LineProcess<CopyEvent>,
    receiver: LineProcess<CopyEvent>,
}

impl Copy {
    /// Starts it.
    ///
    /// # Errors
    ///
    /// When the server does not listen.
    pub fn start(lab: &Lab, plan: Plan) -> Result<Self> {
        let Plan { size, rate, seed, patience } = plan;
        let patience = patience.as_millis();
        let serve = format!(
            "serve-file --listen 0.0.0.0:{COPY_PORT} --size {size} --rate {rate} --seed {seed} --patience-ms {patience}"
        );
        let mut sender: LineProcess<CopyEvent> = lab.traffic(Host::Server, &words(&serve))?;
        sender.wait_for("the server to listen", PATIENCE, |event| {
            matches!(event, CopyEvent::Listening).then_some(())
        })?;
        let fetch = format!("fetch --connect {SERVER}:{COPY_PORT} --patience-ms {patience}");
        Ok(Self { sender, receiver: lab.traffic(Host::Client, &words(&fetch))? })
    }

    /// Waits until the client has some bytes; tells how many it has meanwhile.
    ///
    /// # Errors
    ///
    /// When the copy ends before.
    pub fn wait_for_bytes(&mut self, least: u64, mut tell: impl FnMut(u64)) -> Result<()> {
        self.receiver.wait_for("bytes of the copy", COPY_MAX, |event| match event {
            CopyEvent::Progress { bytes, .. } => {
                tell(bytes);
                (bytes >= least).then_some(Ok(()))
            }
            CopyEvent::Ended(report) => Some(Err(anyhow!("the copy ended too early: {report:?}"))),
            _ => None,
        })?
    }

    /// Waits for its end, however it ends; tells how many bytes the client has meanwhile. Returns what the client and
    /// what the server saw.
    ///
    /// # Errors
    ///
    /// When an end does not report.
    pub fn end(mut self, mut tell: impl FnMut(u64)) -> Result<(CopyReport, CopyReport)> {
        let received = self.receiver.wait_for("the end of the copy", COPY_MAX, |event| match event {
            CopyEvent::Progress { bytes, .. } => {
                tell(bytes);
                None
            }
            CopyEvent::Ended(report) => Some(report),
            _ => None,
        })?;
        let sent = self.sender.wait_for("the server's end of the copy", PATIENCE, |event| match event {
            CopyEvent::Ended(report) => Some(report),
            _ => None,
        })?;
        Ok((received, sent))
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

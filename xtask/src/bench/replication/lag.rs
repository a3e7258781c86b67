//! The lag of replication, watched from outside: the age of the oldest change that the peer has not acknowledged, as the
//! daemon's `status` tells it. That is no less than what single changes waited.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use fwha_tests::lab::NodeProcess;
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;

use crate::bench::figures::Series;

/// Between two looks: the daemon makes a new picture this often.
const LOOK: Duration = Duration::from_millis(100);

/// A thread that watches.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<(f64, f64)>>>,
}

impl Watch {
    /// Begins to watch the peer of a node.
    pub fn start(node: &NodeProcess) -> Result<Self> {
        let socket = node.socket();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("lag".into()).spawn(move || {
            let mut seen = Vec::new();
            while !stopped.load(Ordering::Acquire) {
                std::thread::sleep(LOOK);
                let status = status(&socket)?;
                let lag = status.pointer("/peers/0/sync/lag_ms").and_then(Value::as_f64);
                seen.push((now_ms()?, lag.context("no lag in status")?));
            }
            Ok(seen)
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it: what was seen between these two moments, in ms of `CLOCK_MONOTONIC`.
    pub fn end(self, from_ms: f64, to_ms: f64) -> Result<Series> {
        self.stop.store(true, Ordering::Release);
        let seen = self.thread.join().ok().context("the watch panicked")??;
        let mut lag = Series::default();
        seen.iter().filter(|(at, _)| (from_ms..=to_ms).contains(at)).for_each(|(_, ms)| lag.push(*ms));
        Ok(lag)
    }
}

/// Now, in ms of `CLOCK_MONOTONIC`.
pub fn now_ms() -> Result<f64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(now.tv_sec() as f64 * 1e3 + now.tv_nsec() as f64 / 1e6)
}

/// Asks the daemon itself: starting `fwhactl` fifty times a second would cost more than what is measured.
fn status(socket: &PathBuf) -> Result<Value> {
    let mut stream = UnixStream::connect(socket).context("connect to the daemon")?;
    stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: fwha\r\nConnection: close\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut line = String::new();
    while answer.read_line(&mut line)? > 2 {
        line.clear();
    }
    let mut body = String::new();
    answer.read_to_string(&mut body)?;
    serde_json::from_str(&body).context("JSON of status")
}

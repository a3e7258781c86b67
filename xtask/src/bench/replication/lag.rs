//! The lag of replication, as the daemon counts it for Prometheus: from where it has read a change out of the ring buffer to
//! the peer's acknowledgement, of every change.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, Result};
use fwha_tests::lab::NodeProcess;

/// Changes so far by their lag.
pub struct Lag(Vec<Bucket>);

struct Bucket {
    /// All with a lag of at most so many ms.
    until_ms: f64,
    count: f64,
}

impl Lag {
    /// Of a node's changes, with its only peer.
    ///
    /// # Errors
    ///
    /// When it does not answer.
    pub fn of(node: &NodeProcess) -> Result<Self> {
        let mut stream = UnixStream::connect(node.socket()).context("connect to the daemon")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: fwha\r\nConnection: close\r\n\r\n")?;
        let mut buckets = Vec::new();
        for line in BufReader::new(stream).lines() {
            let line = line.context("read metrics")?;
            buckets.extend(bucket(&line));
        }
        Ok(Self(buckets))
    }

    /// Those since then.
    pub fn since(&self, before: &Self) -> Self {
        let rise = self
            .0
            .iter()
            .zip(&before.0)
            .map(|(now, then)| Bucket { until_ms: now.until_ms, count: now.count - then.count });
        Self(rise.collect())
    }

    /// What a part of them do not exceed, in ms; within a bucket all lags count as equally frequent.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = self.0.last().map_or(f64::NAN, |all| all.count) * part;
        let mut below = Bucket { until_ms: 0.0, count: 0.0 };
        for bucket in &self.0 {
            if bucket.count >= rank && bucket.count > below.count {
                let place = (rank - below.count) / (bucket.count - below.count);
                return below.until_ms + (bucket.until_ms - below.until_ms) * place;
            }
            below = Bucket { ..*bucket };
        }
        f64::NAN
    }
}

/// A line of the histogram.
fn bucket(line: &str) -> Option<Bucket> {
    let sample = line.strip_prefix("fwha_sync_acknowledged_seconds_bucket{")?;
    let (labels, count) = sample.rsplit_once("} ")?;
    let until = labels.split("le=\"").nth(1)?.split('"').next()?;
    Some(Bucket { until_ms: until.parse::<f64>().ok()? * 1e3, count: count.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lag(lines: &[&str]) -> Lag {
        let name = "fwha_sync_acknowledged_seconds_bucket";
        Lag(lines.iter().filter_map(|line| bucket(&format!("{name}{line}"))).collect())
    }

    #[test]
    fn quantiles_are_those_of_the_changes_since_then() {
        let before = lag(&[r#"{peer="fw2",le="0.001"} 100"#, r#"{peer="fw2",le="0.002"} 100"#, "_sum 3"]);
        let now = lag(&[r#"{peer="fw2",le="0.001"} 150"#, r#"{peer="fw2",le="0.002"} 200"#, "_sum 4"]);
        let since = now.since(&before);
        assert_eq!([0.25, 0.5, 0.75, 1.0].map(|part| since.quantile(part)), [0.5, 1.0, 1.5, 2.0]);
        assert!(before.since(&before).quantile(0.5).is_nan());
    }
}

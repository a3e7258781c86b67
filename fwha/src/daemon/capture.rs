//! `GET /v1/capture`: dropped packets as the data plane samples them.
//!
//! There is no queue between the ring buffer and the client: an answer is read from the ring as fast
//! as the client takes it. A client that is slow, or stops, loses samples, which the programs count;
//! nothing else waits for it. A client that goes away ends its capture.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use futures_util::stream;
use fwha_common::capture::{Capture, DropHook, DropSample, SNAP_LEN};
use fwha_common::drop::DropReason;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::server::{Problem, Server, ndjson, push_line};
use crate::api;
use crate::dataplane::capture::{DropCapture, Missed};
use crate::sys::clock::wall_ns;
use crate::sys::watch::Watch;

/// Samples in one piece of the answer.
const CHUNK: usize = 64;
/// Bytes of the two addresses that an Ethernet frame begins with.
const MACS_LEN: usize = 12;
/// EtherTypes of VLAN tags (IEEE 802.1Q, 9.6).
const CUSTOMER_TAG: u16 = 0x8100;
const SERVICE_TAG: u16 = 0x88a8;
/// Between two looks at what was missed while no sample comes.
const LOOK: Duration = Duration::from_millis(200);

/// Begins a capture and answers with its packets until the client has enough.
pub(super) async fn capture(
    State(server): State<Arc<Server>>,
    query: Result<Query<api::CaptureQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query?;
    let reasons = reasons(&query.reasons)?;
    let capture = DropCapture::begin(Arc::clone(&server.maps), reasons)?;
    let watch = Watch::new(capture.as_fd())?;
    tracing::info!("a capture of dropped packets begins");
    let mut look = interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed {
        server,
        capture,
        watch,
        snap_len: query.snap_len.map_or(SNAP_LEN, |len| SNAP_LEN.min(len as usize)),
        left: query.count.unwrap_or(u64::MAX),
        told: Missed::default(),
        ended: false,
        look,
    };
    let lines = stream::try_unfold(feed, async |mut feed| {
        let lines = feed.next().await?;
        Ok::<_, io::Error>(lines.map(|lines| (Bytes::from(lines), feed)))
    });
    Ok(ndjson(Body::from_stream(lines)))
}

/// The bits of reasons by their names; of all if none is named.
fn reasons(names: &[String]) -> Result<u64, Problem> {
    if names.is_empty() {
        return Ok(Capture::ALL);
    }
    names.iter().try_fold(0, |bits, name| {
        let known = DropReason::ALL.iter().find(|reason| reason.as_str() == name);
        let unknown = || {
            Problem(
                StatusCode::BAD_REQUEST,
                format!("there is no drop reason {name:?}: see `fwhactl stats drops`"),
            )
        };
        Ok(bits | Capture::bit(*known.ok_or_else(unknown)?))
    })
}

/// A capture under way.
struct Feed {
    server: Arc<Server>,
    capture: DropCapture,
    watch: Watch,
    snap_len: usize,
    /// Packets that the client still wants.
    left: u64,
    /// What the client was told that it missed.
    told: Missed,
    /// It has the last line.
    ended: bool,
    look: Interval,
}

impl Drop for Feed {
    fn drop(&mut self) {
        let Missed { skipped, lost } = self.capture.missed().unwrap_or_default();
        tracing::info!(skipped, lost, "the capture of dropped packets is over");
    }
}

impl Feed {
    /// The next lines, as soon as there are any; `None` when the client has all that it wanted.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        while !self.ended {
            let mut lines = Vec::new();
            tokio::select! {
                ready = self.watch.readable(), if self.left > 0 => {
                    let mut ready = ready?;
                    // The ring's clock is not the wall clock, which may be set at any time.
                    let epoch_ns = wall_ns().saturating_sub(self.server.clock.now_ns());
                    for _ in 0..self.left.min(CHUNK as u64) {
                        let Some(sample) = self.capture.next_sample() else {
                            ready.clear_ready();
                            break;
                        };
                        push_line(&mut lines, &self.server.dropped_packet(&sample, epoch_ns, self.snap_len));
                        self.left -= 1;
                    }
                }
                _ = self.look.tick() => {}
            }
            let missed = self.capture.missed().map_err(io::Error::other)?;
            self.ended = self.left == 0;
            if missed != self.told || self.ended {
                self.told = missed;
                let Missed { skipped, lost } = missed;
                push_line(&mut lines, &api::CaptureLine::Missed(api::CaptureMissed { skipped, lost }));
            }
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
        Ok(None)
    }
}

impl Server {
    /// A sample as the API shows it. `epoch_ns` is what the wall clock says when the ring's says 0.
    fn dropped_packet(&self, sample: &DropSample, epoch_ns: u64, snap_len: usize) -> api::CaptureLine {
        let attached = self.attached.load();
        let interface =
            attached.interfaces.iter().find(|a| a.ifindex == sample.ifindex).map(|a| a.name.clone());
        let mut frame = sample.bytes[..usize::from(sample.captured).min(SNAP_LEN)].to_vec();
        let mut length_bytes = sample.len;
        if sample.flags & DropSample::TAGGED != 0 && frame.len() >= MACS_LEN {
            // Back to where the driver took it from.
            let service = sample.flags & DropSample::SERVICE_TAG != 0;
            let ethertype: u16 = if service { SERVICE_TAG } else { CUSTOMER_TAG };
            let tag = [ethertype.to_be_bytes(), sample.vlan_tci.to_be_bytes()];
            frame.splice(MACS_LEN..MACS_LEN, tag.concat());
            length_bytes += 4;
        }
        frame.truncate(snap_len);
        api::CaptureLine::Packet(api::DroppedPacket {
            at_unix_ns: epoch_ns + sample.time_ns,
            interface: interface.unwrap_or_else(|| format!("#{}", sample.ifindex)),
            hook: DropHook::from_u8(sample.hook).map_or("?", DropHook::as_str).to_owned(),
            reason: DropReason::ALL.get(usize::from(sample.reason)).map_or("?", |r| r.as_str()).to_owned(),
            length_bytes,
            frame,
        })
    }
}

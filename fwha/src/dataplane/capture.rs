//! Captures of dropped packets.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
};

use aya::maps::{Map, MapData, RingBuf};
use fwha_common::{
    capture::{Capture, DropSample},
    settings::{Counter, name},
};

use super::{DataplaneError, Maps, maps::map_error};
use crate::sys::{bpf::Write, from_bytes};

/// Samples in [`WINDOW_NS`](fwha_common::capture::WINDOW_NS) on one CPU: 1000 a second.
const SAMPLES_MAX: u32 = 100;

/// A capture of dropped packets; there is one at a time. While it lives the programs write samples,
/// and when it is dropped they stop. Nobody but its reader waits: a ring that is not read fills up,
/// and what finds no room is [`Missed`].
pub struct DropCapture {
    maps: Arc<Maps>,
    ring: RingBuf<MapData>,
    reasons: u64,
    /// The counters when it began.
    before: Missed,
}

/// Drops that a capture asked for and does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Missed {
    /// There were too many.
    pub skipped: u64,
    /// The ring was full.
    pub lost: u64,
}

impl DropCapture {
    /// Begins a capture of packets that are dropped for `reasons`, as [`Capture::bit`]s.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::CaptureRuns`]; those of the maps.
    pub fn begin(maps: Arc<Maps>, reasons: u64) -> Result<Self, DataplaneError> {
        if maps.capturing.swap(true, Ordering::AcqRel) {
            return Err(DataplaneError::CaptureRuns);
        }
        let begun = ring(&maps).and_then(|ring| Ok((ring, Missed::counted(&maps)?)));
        let (ring, before) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                maps.capturing.store(false, Ordering::Release);
                return Err(error);
            }
        };
        let mut capture = Self { maps, ring, reasons, before };
        // What an earlier one left unread.
        while capture.ring.next().is_some() {}
        capture.maps.set_capture(&Capture { reasons, samples_max: SAMPLES_MAX, zero: 0 })?;
        Ok(capture)
    }

    /// The oldest sample that was not read yet.
    pub fn next_sample(&mut self) -> Option<DropSample> {
        while let Some(item) = self.ring.next() {
            // The last of the capture before may have been written when this one had begun.
            let asked = |sample: &DropSample| {
                self.reasons.checked_shr(sample.reason.into()).is_some_and(|bits| bits & 1 != 0)
            };
            if let Some(sample) = from_bytes::<DropSample>(&item).filter(asked) {
                return Some(sample);
            }
        }
        None
    }

    /// What was missed since it began.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn missed(&self) -> Result<Missed, DataplaneError> {
        let now = Missed::counted(&self.maps)?;
        Ok(Missed {
            skipped: now.skipped.saturating_sub(self.before.skipped),
            lost: now.lost.saturating_sub(self.before.lost),
        })
    }
}

impl Drop for DropCapture {
    fn drop(&mut self) {
        if let Err(error) = self.maps.set_capture(&Capture::default()) {
            tracing::warn!("dropped packets are sampled until the next start: {error}");
        }
        self.maps.capturing.store(false, Ordering::Release);
    }
}

impl AsFd for DropCapture {
    /// Readable when there are samples.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Missed {
    fn counted(maps: &Maps) -> Result<Self, DataplaneError> {
        let counters = maps.counters()?;
        let count = |counter: Counter| counters.get(counter as usize).copied().unwrap_or(0);
        Ok(Self { skipped: count(Counter::CaptureSkipped), lost: count(Counter::CaptureLost) })
    }
}

/// The ring buffer of samples, mapped for as long as somebody reads it.
fn ring(maps: &Maps) -> Result<RingBuf<MapData>, DataplaneError> {
    let fd = maps.drop_samples.as_fd().try_clone_to_owned().map_err(map_error(name::DROP_SAMPLES))?;
    let ring = MapData::from_fd(fd).and_then(Map::from_map_data).and_then(RingBuf::try_from);
    ring.map_err(|error| DataplaneError::Load(error.into()))
}

impl Maps {
    /// Has the programs sample drops, or with the default no more.
    pub(super) fn set_capture(&self, capture: &Capture) -> Result<(), DataplaneError> {
        self.capture.update(&0, capture, Write::Any).map_err(map_error(name::CAPTURE))
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use fwha_common::{capture::DropHook, drop::DropReason};

    use super::*;
    use crate::{
        dataplane::{Attach, Dataplane, Options, ZoneInterface},
        testing::{Net, await_readable, options, root},
    };

    /// A data plane that drops all of IPv4, because it has no settings.
    fn dataplane() -> Dataplane {
        let near = ZoneInterface {
            name: "near".into(),
            tags: Default::default(),
            zone: 1,
            attach: Attach::Tc,
            anti_spoofing: true,
            virtual_macs: false,
        };
        let options = Options { interfaces: vec![near], ..options(64) };
        Dataplane::open(options).unwrap().0
    }

    fn send(from: &Net, payload: u8) {
        from.within(|| {
            let socket = UdpSocket::bind("10.9.0.2:0").unwrap();
            socket.send_to(&[payload], "10.9.0.1:9").unwrap();
        });
    }

    /// Reason, hook and payload of the next sample.
    fn next(capture: &mut DropCapture) -> (u8, u8, u8) {
        await_readable(&*capture);
        let sample = capture.next_sample().unwrap();
        let headers = 14 + 20 + 8;
        assert!(usize::from(sample.captured) > headers);
        (sample.reason, sample.hook, sample.bytes[headers])
    }

    const REASONS: u64 = Capture::bit(DropReason::NoSettings);
    const SENT: (u8, u8) = (DropReason::NoSettings as u8, DropHook::Ingress as u8);

    #[test]
    fn a_capture_has_what_is_dropped_while_it_lives() {
        if !root() {
            return;
        }
        let (node, other) = Net::pair();
        node.with_bpffs(|| {
            let dataplane = dataplane();
            let begin = || DropCapture::begin(dataplane.maps(), REASONS);
            let mut capture = begin().unwrap();
            assert!(matches!(begin().err(), Some(DataplaneError::CaptureRuns)));
            send(&other, 1);
            assert_eq!(next(&mut capture), (SENT.0, SENT.1, 1));
            send(&other, 2);
            await_readable(&capture);
            drop(capture);
            send(&other, 3);

            let mut capture = begin().unwrap();
            send(&other, 4);
            assert_eq!(next(&mut capture), (SENT.0, SENT.1, 4), "nothing of the one before, or in between");
            assert_eq!(capture.missed().unwrap(), Missed::default());
            drop(capture);
            dataplane.close().unwrap();
        });
    }

    #[test]
    fn a_capture_does_not_outlive_its_daemon() {
        if !root() {
            return;
        }
        let (node, _other) = Net::pair();
        node.with_bpffs(|| {
            let first = dataplane();
            // As if it was killed.
            std::mem::forget(DropCapture::begin(first.maps(), REASONS).unwrap());
            let asked = |dataplane: &Dataplane| dataplane.maps().capture.lookup(&0).unwrap().unwrap().reasons;
            assert_eq!(asked(&first), REASONS);
            drop(first);
            let second = dataplane();
            assert!(second.adopted());
            assert_eq!(asked(&second), 0);
            drop(DropCapture::begin(second.maps(), REASONS).unwrap());
            assert_eq!(asked(&second), 0);
            second.close().unwrap();
        });
    }
}

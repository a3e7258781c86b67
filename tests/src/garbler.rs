//! Something in the middle of the dedicated link that loses, repeats, delays and garbles frames.
//!
//! The two ends of the link are taken out of their bridge, and a thread carries frames from one to the other. What it
//! does to them follows from a seed and from the order in which frames come.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, recv, send};

use crate::frames::Random;
use crate::lab::{Host, Lab, Node};
use crate::sys::{Feature, packet_socket, set_feature};

/// The longest frame.
const FRAME_MAX: usize = 9216;
/// The longest wait for a frame: a change of orders is seen no later.
const TURN: Duration = Duration::from_millis(20);
const ETHERNET: usize = 14;
const IPV4_UDP: usize = 28;

/// What is done to frames. Chances are in percent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Orders {
    /// Frames that are lost.
    pub loss: usize,
    /// Frames that come twice.
    pub duplicate: usize,
    /// Frames in which a bit is turned over, under a checksum that does not tell.
    pub garble: usize,
    /// Frames are late by up to so much, so that they overtake each other.
    pub jitter: Duration,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Frames taken.
    pub frames: u64,
    /// Of these, lost.
    pub lost: u64,
    /// Twice.
    pub duplicated: u64,
    /// Garbled.
    pub garbled: u64,
}

#[derive(Default)]
struct Shared {
    orders: Mutex<Orders>,
    done: Mutex<Done>,
    over: AtomicBool,
}

/// See the module.
pub struct Garbler {
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

impl Garbler {
    /// Goes between the ends of the dedicated link, and does nothing to frames yet.
    ///
    /// # Errors
    ///
    /// When the ends cannot be had.
    pub fn start(lab: &Lab, seed: u64) -> Result<Self> {
        let mut ends = Vec::new();
        for node in Node::ALL {
            let port = format!("{node}-sync");
            lab.exec(Host::Switch, &["ip", "link", "set", &port, "nomaster"])?;
            // A frame that was read here has no second chance to get its checksum.
            lab.within(node.host(), || set_feature("sync", Feature::TxChecksum, false))?
                .context("have checksums finished on the sync interface")?;
            ends.push(lab.within(Host::Switch, || packet_socket(&port))?.context("take the end of a cable")?);
        }
        let ends: [OwnedFd; 2] = ends.try_into().map_err(|_| anyhow!("a link has two ends"))?;
        let shared = Arc::new(Shared::default());
        let air = BinaryHeap::new();
        let carrier = Carrier { shared: Arc::clone(&shared), ends, random: Random(seed), air, taken: 0 };
        let thread = std::thread::Builder::new().name("garbler".into()).spawn(move || carrier.run())?;
        Ok(Self { shared, thread })
    }

    /// What is to be done to frames from now on.
    pub fn order(&self, orders: Orders) {
        *self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner) = orders;
    }

    /// What has been done so far.
    pub fn done(&self) -> Done {
        *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends it, and with it the link.
    ///
    /// # Errors
    ///
    /// When it has ended badly before.
    pub fn end(self) -> Result<Done> {
        self.shared.over.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the garbler panicked"))?;
        let done = *self.shared.done.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(done)
    }
}

/// A frame on its way: when it is due, its place among all, the end it goes to.
type Late = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Carrier {
    shared: Arc<Shared>,
    ends: [OwnedFd; 2],
    random: Random,
    air: BinaryHeap<Late>,
    taken: u64,
}

impl Carrier {
    fn run(mut self) {
        let mut frame = vec![0; FRAME_MAX];
        while !self.shared.over.load(Ordering::Relaxed) {
            self.wait();
            for from in 0..self.ends.len() {
                // An end without a carrier has nothing to say; it is asked again.
                while let Ok(length) = recv(self.ends[from].as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                    self.take(1 - from, &frame[..length]);
                }
            }
            let now = Instant::now();
            while self.air.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
                let Some(Reverse((_, _, to, frame))) = self.air.pop() else { break };
                // What an end does not take is lost, as on any link.
                let _ = send(self.ends[to].as_raw_fd(), &frame, MsgFlags::MSG_DONTWAIT);
            }
        }
    }

    fn wait(&self) {
        let due = self.air.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
        let wait = PollTimeout::try_from(due.unwrap_or(TURN).min(TURN)).unwrap_or(PollTimeout::ZERO);
        let mut ends = self.ends.each_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
        // A signal costs one turn.
        let _ = poll(&mut ends, wait);
    }

    fn take(&mut self, to: usize, frame: &[u8]) {
        let orders = *self.shared.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let lost = self.random.below(100) < orders.loss;
        let twice = !lost && self.random.below(100) < orders.duplicate;
        let mut garbled = 0;
        for _ in 0..usize::from(!lost) + usize::from(twice) {
            let mut frame = frame.to_vec();
            if self.random.below(100) < orders.garble {
                garble(&mut frame, &mut self.random);
                garbled += 1;
            }
            let late = self.random.below(orders.jitter.as_micros() as usize + 1);
            self.taken += 1;
            self.air.push(Reverse((
                Instant::now() + Duration::from_micros(late as u64),
                self.taken,
                to,
                frame,
            )));
        }
        let mut done = self.shared.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.frames += 1;
        done.lost += u64::from(lost);
        done.duplicated += u64::from(twice);
        done.garbled += garbled;
    }
}

/// Turns a bit over. In UDP over IPv4 it is one of the payload, and the checksum says that there is none.
fn garble(frame: &mut [u8], random: &mut Random) {
    let udp = frame.len() > ETHERNET + IPV4_UDP && frame[12..15] == [8, 0, 0x45] && frame[23] == 17;
    let first = if udp { ETHERNET + IPV4_UDP } else { ETHERNET };
    if udp {
        frame[first - 2..first].fill(0);
    }
    if frame.len() > first {
        let at = first + random.below(frame.len() - first);
        frame[at] ^= 1 << random.below(8);
    }
}

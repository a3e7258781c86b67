//! A file copied over one TCP connection, at a steady pace, hashed at both ends.
//!
//! The receiver connects. The sender answers with the length (8 bytes, little endian) and that many bytes of seeded
//! pseudo-random data. The pace leaves time to do something to the connection while it lasts; the longest time without
//! progress is the outage as the receiver saw it. An end that hears nothing for its `patience` gives the connection up.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use socket2::{Domain, SockRef, Socket, Type};

use super::{emit, mono, mono_ms};
use crate::sys::retransmissions;

/// Bytes written in one go: about a millisecond's worth at the default pace.
const CHUNK: usize = 64 * 1024;
/// How often progress is told.
const PROGRESS_MS: f64 = 100.0;
/// What the sender may catch up at once after it could not send.
const CATCH_UP: Duration = Duration::from_millis(50);

/// A line of `fwha-traffic serve-file` and `fwha-traffic fetch`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum CopyEvent {
    /// The sender can be connected to.
    Listening,
    /// The connection stands.
    Connected,
    /// Told every 100 ms while bytes move.
    Progress {
        /// When.
        at_mono_ms: f64,
        /// Bytes sent or received so far.
        bytes: u64,
    },
    /// The last line.
    Ended(CopyReport),
}

/// How the copy went, as one end saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CopyReport {
    /// Bytes sent or received.
    pub bytes: u64,
    /// Bytes there were to send.
    pub expected: u64,
    /// SHA-256 of `bytes`, in hexadecimal.
    pub sha256: String,
    /// From the start of the connection to the last byte.
    pub duration_ms: f64,
    /// When the last byte moved.
    pub ended_at_mono_ms: f64,
    /// Segments this end sent again.
    pub retransmissions: u32,
    /// The longest time without progress.
    pub longest_gap_ms: f64,
    /// When the longest gap began.
    pub longest_gap_at_mono_ms: f64,
    /// Why the connection ended early; `None` when all bytes moved.
    pub error: Option<String>,
}

/// What the sender sends.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Bytes.
    pub size: u64,
    /// The data follows from it.
    pub seed: u64,
    /// Bytes a second.
    pub rate: u64,
}

/// Waits for one connection and sends a file over it.
///
/// # Errors
///
/// When the address cannot be bound or nobody connects within `patience`. A connection that dies is a report.
pub fn serve(listen: SocketAddr, file: File, patience: Duration) -> Result<()> {
    ensure!(file.rate > 0, "the rate must be at least 1 byte a second");
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    emit(&CopyEvent::Listening);
    let timeout = PollTimeout::try_from(patience).context("patience")?;
    let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
    ensure!(poll(&mut waiting, timeout)? > 0, "nobody connected within {patience:?}");
    let (stream, _) = listener.accept()?;
    run(stream, patience, file.size, |stream, meter| send(stream, file, meter))
}

/// Connects and receives a file.
///
/// # Errors
///
/// When the connection cannot be made. One that dies later is a report.
pub fn fetch(connect: SocketAddr, patience: Duration) -> Result<()> {
    let socket = Socket::new(Domain::for_address(connect), Type::STREAM, None)?;
    socket.connect_timeout(&connect.into(), patience).with_context(|| format!("connect to {connect}"))?;
    run(socket.into(), patience, 0, receive)
}

fn run(
    mut stream: TcpStream,
    patience: Duration,
    expected: u64,
    copy: impl FnOnce(&mut TcpStream, &mut Meter) -> io::Result<()>,
) -> Result<()> {
    emit(&CopyEvent::Connected);
    SockRef::from(&stream).set_tcp_user_timeout(Some(patience)).context("set TCP_USER_TIMEOUT")?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    let mut meter = Meter::new(expected);
    let error = copy(&mut stream, &mut meter).err().map(|error| match error.kind() {
        // What a socket timeout looks like (socket(7), SO_RCVTIMEO).
        io::ErrorKind::WouldBlock => format!("nothing moved for {patience:?}"),
        _ => error.to_string(),
    });
    emit(&CopyEvent::Ended(meter.report(retransmissions(&stream)?, error)));
    Ok(())
}

fn send(stream: &mut TcpStream, file: File, meter: &mut Meter) -> io::Result<()> {
    stream.write_all(&file.size.to_le_bytes())?;
    let mut data = Stream(file.seed);
    let mut chunk = vec![0; CHUNK];
    let pause = Duration::from_secs_f64(CHUNK as f64 / file.rate as f64);
    let mut due = mono();
    while meter.bytes < file.size {
        let now = mono();
        if due > now {
            std::thread::sleep(due - now);
        }
        due = due.max(now.saturating_sub(CATCH_UP)) + pause;

        let length = (file.size - meter.bytes).min(CHUNK as u64) as usize;
        data.fill(&mut chunk[..length]);
        stream.write_all(&chunk[..length])?;
        meter.moved(&chunk[..length]);
    }
    // The copy is done when the receiver has it: it closes then.
    stream.shutdown(std::net::Shutdown::Write)?;
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the receiver sent data")),
    }
}

fn receive(stream: &mut TcpStream, meter: &mut Meter) -> io::Result<()> {
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    meter.expected = u64::from_le_bytes(length);
    let mut chunk = vec![0; 4 * CHUNK];
    loop {
        match stream.read(&mut chunk) {
            Ok(0) if meter.bytes == meter.expected => return Ok(()),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => meter.moved(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Counts, hashes, and keeps the longest gap.
struct Meter {
    expected: u64,
    bytes: u64,
    hash: Sha256,
    started_ms: f64,
    moved_ms: f64,
    told_ms: f64,
    gap: (f64, f64),
}

impl Meter {
    fn new(expected: u64) -> Self {
        let now = mono_ms();
        Self {
            expected,
            bytes: 0,
            hash: Sha256::new(),
            started_ms: now,
            moved_ms: now,
            told_ms: now,
            gap: (0.0, now),
        }
    }

    fn moved(&mut self, data: &[u8]) {
        let now = self.note_gap();
        self.moved_ms = now;
        self.bytes += data.len() as u64;
        self.hash.update(data);
        if now - self.told_ms >= PROGRESS_MS {
            self.told_ms = now;
            emit(&CopyEvent::Progress { at_mono_ms: now, bytes: self.bytes });
        }
    }

    fn note_gap(&mut self) -> f64 {
        let now = mono_ms();
        if now - self.moved_ms > self.gap.0 {
            self.gap = (now - self.moved_ms, self.moved_ms);
        }
        now
    }

    fn report(mut self, retransmissions: u32, error: Option<String>) -> CopyReport {
        if error.is_some() {
            self.note_gap();
        }
        let sha256 = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        CopyReport {
            bytes: self.bytes,
            expected: self.expected,
            sha256,
            duration_ms: self.moved_ms - self.started_ms,
            ended_at_mono_ms: self.moved_ms,
            retransmissions,
            longest_gap_ms: self.gap.0,
            longest_gap_at_mono_ms: self.gap.1,
            error,
        }
    }
}

/// Pseudo-random data: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
struct Stream(u64);

impl Stream {
    fn fill(&mut self, data: &mut [u8]) {
        for word in data.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            let length = word.len();
            word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..length]);
        }
    }
}

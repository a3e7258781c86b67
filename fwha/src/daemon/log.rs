//! The daemon's log, written by a thread of its own.
//!
//! Whoever reads standard error may stop doing so: a terminal that is held, a full disk, a log
//! service that hangs. A thread that writes to it then stands still, and the election must not.
//! So lines go into a queue; what finds it full is counted, and the count is written in its place.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Lines that wait at most.
const QUEUE: usize = 4096;
/// How long the last lines may take at the end.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before has been written: say so.
    Flush(SyncSender<()>),
}

/// A way into the log; each write is a line.
#[derive(Clone)]
pub struct Log {
    queue: SyncSender<Item>,
    lost: Arc<AtomicU64>,
}

impl Log {
    /// Starts the thread that writes to `out`.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub fn start(out: impl Write + Send + 'static) -> Result<Self> {
        let (queue, items) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let log = Self { queue, lost: Arc::clone(&lost) };
        let thread = thread::Builder::new().name("fwha-log".into());
        thread.spawn(move || write_out(&items, &lost, out)).context("cannot start the thread that logs")?;
        Ok(log)
    }

    /// Waits until what was logged so far is written, but not for ever.
    pub fn flush(&self) {
        let (done, written) = sync_channel(1);
        if self.queue.try_send(Item::Flush(done)).is_ok() {
            // Too slow is as good as lost now.
            let _ = written.recv_timeout(FLUSH_WAIT);
        }
    }
}

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.queue.try_send(Item::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_out(items: &Receiver<Item>, lost: &AtomicU64, mut out: impl Write) {
    let tell_lost = |out: &mut dyn Write| {
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let _ = writeln!(out, "{lost} lines of the log were lost: nobody read them in time");
        }
    };
    for item in items {
        // Neither a reader that is gone nor a waiter that gave up is anybody's trouble here.
        match item {
            Item::Line(line) => _ = out.write_all(&line),
            Item::Flush(done) => _ = done.send(()),
        }
        tell_lost(&mut out);
    }
    tell_lost(&mut out);
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, pipe};

    use super::*;

    #[test]
    fn a_reader_that_stops_holds_nobody_up_and_is_told_what_it_missed() {
        let (reader, writer) = pipe().unwrap();
        let mut log = Log::start(writer).unwrap();
        // More than the pipe and the queue hold; this would never end if a write could wait.
        let line = [[b'x'; 99].as_slice(), b"\n"].concat();
        for _ in 0..3 * QUEUE {
            log.write_all(&line).unwrap();
        }
        // The last way into the log is gone: its thread writes what is queued and closes the pipe.
        drop(log);
        let (mut read, mut lost) = (0, 0);
        for line in BufReader::new(reader).lines().map(Result::unwrap) {
            match line.split_once(" lines of the log were lost") {
                // The count comes in parts when lines are lost before and after the thread writes one.
                Some((count, _)) => lost += count.parse::<usize>().unwrap(),
                None => read += usize::from(line.starts_with('x')),
            }
        }
        assert!(lost > 0, "nothing was lost of {read} lines");
        assert_eq!(read + lost, 3 * QUEUE);
    }

    #[test]
    fn a_flush_ends_when_everything_is_written() {
        let (mut reader, writer) = pipe().unwrap();
        let mut log = Log::start(writer).unwrap();
        log.write_all(b"the last words\n").unwrap();
        Log::flush(&log);
        let mut read = [0; 15];
        io::Read::read_exact(&mut reader, &mut read).unwrap();
        assert_eq!(&read, b"the last words\n");
    }
}

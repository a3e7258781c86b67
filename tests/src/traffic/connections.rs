//! TCP connections whose fate can be told one by one: many that are held open and talk now and then, and new ones at a
//! steady rate.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{emit, mono};

/// What is said in either direction.
const WORD: [u8; 8] = *b"are you?";
/// Connections that are held, at most: each has a thread.
pub const HELD_MAX: u32 = 1000;
/// Stack of a thread that holds one connection.
const STACK: usize = 128 << 10;

/// A line of `fwha-traffic answer`, `hold` and `dial`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ConnectionEvent {
    /// The server can be reached.
    Listening,
    /// All connections that are to be held are open.
    Open,
    /// The last line of `hold`.
    Held(HeldReport),
    /// The last line of `dial`.
    Dialled(DialledReport),
}

/// What became of connections that were held.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq)]
pub struct HeldReport {
    /// How many were open.
    pub held: u64,
    /// Of those, how many broke, or had no answer for as long as `patience`.
    pub lost: u64,
    /// The longest wait for an answer.
    pub wait_max_ms: f64,
}

/// What became of new connections.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, PartialEq)]
pub struct DialledReport {
    /// How many were begun.
    pub dialled: u64,
    /// Of those, how many were not open, or had no answer, for as long as `patience`.
    pub failed: u64,
    /// How many took longer than half a second: their first packet, or its answer, was lost.
    pub slow: u64,
    /// The longest time from beginning to answer.
    pub took_max_ms: f64,
}

/// Answers every word on every connection, until the process is ended.
///
/// # Errors
///
/// When the address cannot be bound.
pub fn answer(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    emit(&ConnectionEvent::Listening);
    for stream in listener.incoming() {
        // One that is gone already is the other end's loss, which counts it.
        let Ok(mut stream) = stream else { continue };
        thread::Builder::new().stack_size(STACK).spawn(move || {
            let _ = stream.set_nodelay(true);
            let mut word = WORD;
            while stream.read_exact(&mut word).is_ok() && stream.write_all(&word).is_ok() {}
        })?;
    }
    Ok(())
}

/// Opens `count` connections and says a word on each every `interval`, until `stop`.
///
/// # Errors
///
/// When one cannot be opened, or a thread cannot be had.
pub fn hold(
    connect: SocketAddr,
    count: u32,
    interval: Duration,
    patience: Duration,
    stop: &AtomicBool,
) -> Result<()> {
    ensure!(count <= HELD_MAX, "at most {HELD_MAX} connections");
    let streams = (0..count)
        .map(|_| {
            let stream = TcpStream::connect_timeout(&connect, patience).context("open a connection")?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(patience))?;
            stream.set_write_timeout(Some(patience))?;
            Ok(stream)
        })
        .collect::<Result<Vec<_>>>()?;
    emit(&ConnectionEvent::Open);
    let (lost, wait_max_ns) = (AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| -> Result<()> {
        for (nth, mut stream) in streams.into_iter().enumerate() {
            let (lost, wait_max_ns) = (&lost, &wait_max_ns);
            // Not all at the same moment.
            let mut due = mono() + interval * nth as u32 / count.max(1);
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || {
                while !stop.load(Ordering::Relaxed) {
                    thread::sleep(due.saturating_sub(mono()));
                    let asked = mono();
                    let answered = ask(&mut stream);
                    wait_max_ns.fetch_max((mono() - asked).as_nanos() as u64, Ordering::Relaxed);
                    if !answered {
                        lost.fetch_add(1, Ordering::Relaxed);
                        return;
                    }
                    due = (due + interval).max(mono());
                }
            })?;
        }
        Ok(())
    })?;
    emit(&ConnectionEvent::Held(HeldReport {
        held: count.into(),
        lost: lost.into_inner(),
        wait_max_ms: wait_max_ns.into_inner() as f64 / 1e6,
    }));
    Ok(())
}

/// Opens `rate` connections a second, says a word on each and closes it, until `stop`.
///
/// # Errors
///
/// When a thread cannot be had.
pub fn dial(connect: SocketAddr, rate: u32, patience: Duration, stop: &AtomicBool) -> Result<()> {
    ensure!((1..=10_000).contains(&rate), "the rate must be 1 to 10000 a second");
    let (failed, slow, took_max_ns) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let mut dialled = 0;
    thread::scope(|scope| -> Result<()> {
        let interval = Duration::from_secs(1) / rate;
        let mut due = mono();
        while !stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_sub(mono()));
            due = (due + interval).max(mono());
            dialled += 1;
            let (failed, slow, took_max_ns) = (&failed, &slow, &took_max_ns);
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, move || {
                let begun = mono();
                let answered = TcpStream::connect_timeout(&connect, patience).is_ok_and(|mut stream| {
                    stream.set_read_timeout(Some(patience)).is_ok() && ask(&mut stream)
                });
                let took = mono() - begun;
                took_max_ns.fetch_max(took.as_nanos() as u64, Ordering::Relaxed);
                failed.fetch_add(u64::from(!answered), Ordering::Relaxed);
                slow.fetch_add(u64::from(answered && took > Duration::from_millis(500)), Ordering::Relaxed);
            })?;
        }
        Ok(())
    })?;
    emit(&ConnectionEvent::Dialled(DialledReport {
        dialled,
        failed: failed.into_inner(),
        slow: slow.into_inner(),
        took_max_ms: took_max_ns.into_inner() as f64 / 1e6,
    }));
    Ok(())
}

/// Says a word and waits for the answer.
fn ask(stream: &mut TcpStream) -> bool {
    let mut word = [0; WORD.len()];
    if stream.write_all(&WORD).is_err() {
        return false;
    }
    loop {
        match stream.read_exact(&mut word) {
            Ok(()) => return word == WORD,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_answered_until_the_other_end_goes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let echo = thread::spawn(move || {
            let mut word = WORD;
            server.read_exact(&mut word).unwrap();
            server.write_all(&word).unwrap();
        });
        assert!(ask(&mut client));
        echo.join().unwrap();
        assert!(!ask(&mut client));
    }
}

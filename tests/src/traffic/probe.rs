//! A UDP echo probe at a steady rate: what was lost, in which direction, and for how long.
//!
//! ```text
//!  0       8        16        24         32
//!  +-------+---------+---------+----------+
//!  |  seq  | sent_ns | arrived | dark_ns  |   little endian
//!  +-------+---------+---------+----------+
//! ```
//!
//! The probe sends `seq` and `sent_ns` with zeroes behind them; the echo fills in how many different probes have arrived
//! so far and the longest time without an arrival, so that the probe knows each direction's loss without a second
//! channel.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{emit, mono, mono_ms};

const LENGTH: usize = 32;
/// How long answers may come after the last probe.
const LINGER: Duration = Duration::from_millis(300);
/// How often progress is told.
const PROGRESS: Duration = Duration::from_millis(100);
/// The most probes of one run: an hour at 1 kHz.
pub const COUNT_MAX: u64 = 3_600_000;

/// A line of `fwha-traffic probe` and `fwha-traffic echo`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ProbeEvent {
    /// The echo can be reached.
    Listening,
    /// Told every 100 ms.
    Progress {
        /// When.
        at_mono_ms: f64,
        /// Probes sent so far.
        sent: u64,
        /// Answers so far.
        answered: u64,
    },
    /// The last line.
    Ended(ProbeReport),
}

/// What became of the probes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
pub struct ProbeReport {
    /// Probes sent.
    pub sent: u64,
    /// Different probes answered.
    pub answered: u64,
    /// When the last one of these was sent.
    pub answered_at_mono_ms: f64,
    /// Probes without an answer.
    pub lost: u64,
    /// Of those, the ones that did not reach the echo. Known up to the last answer.
    pub lost_forward: u64,
    /// Answers beyond the first to the same probe.
    pub duplicates: u64,
    /// The longest outage: from the sending of the first lost probe to that of the next answered one.
    pub outage_ms: f64,
    /// When the longest outage began.
    pub outage_at_mono_ms: f64,
    /// The longest outage of the forward direction alone, by the sending times of what arrived at the echo.
    pub outage_forward_ms: f64,
    /// How late the sender was at worst: an outage is known no better than this.
    pub sender_late_ms: f64,
    /// The longest round trip.
    pub rtt_max_ms: f64,
}

/// Answers probes until the process is ended.
///
/// # Errors
///
/// When the address cannot be bound or the socket fails.
pub fn echo(listen: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(listen).with_context(|| format!("listen on {listen}"))?;
    emit(&ProbeEvent::Listening);
    let mut seen: Vec<u64> = Vec::new();
    let (mut arrived, mut last_sent, mut dark) = (0u64, None::<u64>, 0u64);
    let mut packet = [0; LENGTH];
    loop {
        let (length, from) = match socket.recv_from(&mut packet) {
            Ok(received) => received,
            // An ICMP error for an earlier answer.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error.into()),
        };
        let (seq, sent) = (field(&packet, 0), field(&packet, 1));
        if length != LENGTH || seq >= COUNT_MAX {
            continue;
        }
        if note(&mut seen, seq) {
            arrived += 1;
            dark = dark.max(last_sent.map_or(0, |last| sent.saturating_sub(last)));
            last_sent = last_sent.max(Some(sent));
        }
        set_field(&mut packet, 2, arrived);
        set_field(&mut packet, 3, dark);
        // An answer that cannot be sent is a lost one, which the probe counts.
        let _ = socket.send_to(&packet, from);
    }
}

/// Sends `count` probes, or fewer when `stop` becomes true, and reports.
///
/// # Errors
///
/// When the socket cannot be made or the count is above [`COUNT_MAX`].
pub fn probe(connect: SocketAddr, rate: u32, count: u64, stop: &AtomicBool) -> Result<()> {
    ensure!(count <= COUNT_MAX, "at most {COUNT_MAX} probes in one run");
    ensure!((1..=10_000).contains(&rate), "the rate must be 1 to 10000 a second");
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(connect)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    let interval = Duration::from_secs(1) / rate;
    let (answered, sending) = (AtomicU64::new(0), AtomicBool::new(true));

    let (sent, late, answers) = thread::scope(|scope| {
        let receiver = scope.spawn(|| collect(&socket, &answered, &sending));
        let mut sent_ns: Vec<u64> = Vec::new();
        let (mut late, mut told) = (Duration::ZERO, mono());
        let mut due = mono();
        while (sent_ns.len() as u64) < count && !stop.load(Ordering::Relaxed) {
            let now = mono();
            if due > now {
                thread::sleep(due - now);
            }
            let now = mono();
            late = late.max(now.saturating_sub(due));
            // What was missed while the thread did not run is not sent in a burst: it would blur the outage.
            due = (due + interval).max(now);

            let mut packet = [0; LENGTH];
            set_field(&mut packet, 0, sent_ns.len() as u64);
            set_field(&mut packet, 1, now.as_nanos() as u64);
            sent_ns.push(now.as_nanos() as u64);
            // A probe that cannot be sent (no carrier, an ICMP error for an earlier one) is a lost one.
            let _ = socket.send(&packet);
            if now - told >= PROGRESS {
                told = now;
                let (sent, answered) = (sent_ns.len() as u64, answered.load(Ordering::Relaxed));
                emit(&ProbeEvent::Progress { at_mono_ms: mono_ms(), sent, answered });
            }
        }
        thread::sleep(LINGER);
        sending.store(false, Ordering::Relaxed);
        let answers = receiver.join().unwrap_or_default();
        (sent_ns, late, answers)
    });
    emit(&ProbeEvent::Ended(summarise(&sent, &answers, interval, late)));
    Ok(())
}

/// What the receiving thread saw.
#[derive(Default)]
struct Answers {
    seen: Vec<u64>,
    unique: u64,
    duplicates: u64,
    rtt_max_ns: u64,
    /// The echo's figures in the answer to the highest probe so far: probe, arrived, dark.
    echo: (u64, u64, u64),
}

fn collect(socket: &UdpSocket, answered: &AtomicU64, sending: &AtomicBool) -> Answers {
    let mut answers = Answers::default();
    let mut packet = [0; LENGTH];
    while sending.load(Ordering::Relaxed) {
        let Ok(LENGTH) = socket.recv(&mut packet) else { continue };
        let seq = field(&packet, 0);
        if seq >= COUNT_MAX {
            continue;
        }
        if !note(&mut answers.seen, seq) {
            answers.duplicates += 1;
            continue;
        }
        answers.unique += 1;
        answered.store(answers.unique, Ordering::Relaxed);
        let rtt = (mono().as_nanos() as u64).saturating_sub(field(&packet, 1));
        answers.rtt_max_ns = answers.rtt_max_ns.max(rtt);
        if seq >= answers.echo.0 {
            answers.echo = (seq, field(&packet, 2), field(&packet, 3));
        }
    }
    answers
}

fn summarise(sent_ns: &[u64], answers: &Answers, interval: Duration, late: Duration) -> ProbeReport {
    let (mut outage, mut outage_at, mut first_lost, mut last_answered) = (0, 0, None, 0);
    for (seq, &at) in sent_ns.iter().enumerate() {
        if !is_noted(&answers.seen, seq as u64) {
            first_lost.get_or_insert(at);
            continue;
        }
        last_answered = at;
        if let Some(from) = first_lost.take()
            && at - from > outage
        {
            (outage, outage_at) = (at - from, from);
        }
    }
    // Still dark at the end.
    if let (Some(from), Some(last)) = (first_lost, sent_ns.last())
        && last - from >= outage
    {
        (outage, outage_at) = (last - from, from);
    }
    let sent = sent_ns.len() as u64;
    let (highest, arrived, dark) = answers.echo;
    let ms = |ns: u64| ns as f64 / 1e6;
    ProbeReport {
        sent,
        answered: answers.unique,
        answered_at_mono_ms: ms(last_answered),
        lost: sent.saturating_sub(answers.unique),
        lost_forward: if answers.unique == 0 { 0 } else { (highest + 1).saturating_sub(arrived) },
        duplicates: answers.duplicates,
        outage_ms: ms(outage),
        outage_at_mono_ms: ms(outage_at),
        // Two arrivals one interval apart are no outage.
        outage_forward_ms: ms(dark.saturating_sub(interval.as_nanos() as u64)),
        sender_late_ms: late.as_secs_f64() * 1000.0,
        rtt_max_ms: ms(answers.rtt_max_ns),
    }
}

/// Sets a bit; true when it was not set.
fn note(bits: &mut Vec<u64>, seq: u64) -> bool {
    let (word, bit) = ((seq / 64) as usize, 1 << (seq % 64));
    if bits.len() <= word {
        bits.resize(word + 1, 0);
    }
    let new = bits[word] & bit == 0;
    bits[word] |= bit;
    new
}

fn is_noted(bits: &[u64], seq: u64) -> bool {
    bits.get((seq / 64) as usize).is_some_and(|word| word & (1 << (seq % 64)) != 0)
}

fn field(packet: &[u8; LENGTH], index: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| packet[index * 8 + byte]))
}

fn set_field(packet: &mut [u8; LENGTH], index: usize, value: u64) {
    packet[index * 8..index * 8 + 8].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn report(sent: u64, answered: impl Fn(u64) -> bool) -> ProbeReport {
        let sent_ns: Vec<u64> = (0..sent).map(|seq| seq * MS).collect();
        let mut answers = Answers::default();
        for seq in (0..sent).filter(|&seq| answered(seq)) {
            note(&mut answers.seen, seq);
            answers.unique += 1;
            answers.echo = (seq, answers.unique, 0);
        }
        summarise(&sent_ns, &answers, Duration::from_millis(1), Duration::ZERO)
    }

    #[test]
    fn nothing_lost_is_no_outage() {
        let report = report(200, |_| true);
        assert_eq!((report.lost, report.lost_forward, report.outage_ms), (0, 0, 0.0));
    }

    #[test]
    fn the_outage_lasts_from_the_first_lost_probe_to_the_next_answered_one() {
        let report = report(200, |seq| !(50..90).contains(&seq) && seq != 120);
        assert_eq!((report.lost, report.lost_forward), (41, 41));
        assert_eq!((report.outage_ms, report.outage_at_mono_ms), (40.0, 50.0));
    }

    #[test]
    fn an_outage_that_does_not_end_counts_to_the_last_probe() {
        let report = report(200, |seq| seq < 100);
        assert_eq!((report.lost, report.outage_ms, report.outage_at_mono_ms), (100, 99.0, 100.0));
        assert_eq!(report.answered_at_mono_ms, 99.0);
    }

    #[test]
    fn no_answer_at_all_is_all_lost() {
        let report = report(10, |_| false);
        assert_eq!((report.lost, report.lost_forward, report.outage_ms), (10, 0, 9.0));
    }
}

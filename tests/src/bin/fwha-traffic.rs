//! The lab's traffic: runs inside a box and prints one JSON object a line. See `fwha_tests::traffic`.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use fwha_tests::traffic::{connections, copy, probe};

#[derive(Parser)]
#[command(about = "traffic whose loss can be told exactly")]
enum Command {
    /// Send seeded data to the first that connects.
    ServeFile {
        /// Address and port.
        #[arg(long)]
        listen: SocketAddr,
        /// Bytes.
        #[arg(long)]
        size: u64,
        /// The data follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Bytes a second.
        #[arg(long, default_value_t = 64 << 20)]
        rate: u64,
        /// Give up after this time without progress.
        #[arg(long, default_value_t = 10_000)]
        patience_ms: u64,
    },
    /// Connect and receive.
    Fetch {
        /// Address and port.
        #[arg(long)]
        connect: SocketAddr,
        /// Give up after this time without progress.
        #[arg(long, default_value_t = 10_000)]
        patience_ms: u64,
    },
    /// Answer probes until ended.
    Echo {
        /// Address and port.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Send probes until standard input closes or all are sent.
    Probe {
        /// Address and port.
        #[arg(long)]
        connect: SocketAddr,
        /// Probes a second.
        #[arg(long, default_value_t = 1000)]
        rate: u32,
        /// Probes at most.
        #[arg(long, default_value_t = 120_000)]
        count: u64,
    },
    /// Answer every word on every TCP connection until ended.
    Answer {
        /// Address and port.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Hold TCP connections until standard input closes.
    Hold {
        /// Address and port.
        #[arg(long)]
        connect: SocketAddr,
        /// How many.
        #[arg(long, default_value_t = 200)]
        count: u32,
        /// Between two words on each.
        #[arg(long, default_value_t = 100)]
        interval_ms: u64,
        /// Without an answer for so long it counts as lost.
        #[arg(long, default_value_t = 8000)]
        patience_ms: u64,
    },
    /// Open TCP connections one after the other until standard input closes.
    Dial {
        /// Address and port.
        #[arg(long)]
        connect: SocketAddr,
        /// Connections a second.
        #[arg(long, default_value_t = 500)]
        rate: u32,
        /// Without an answer for so long it counts as failed.
        #[arg(long, default_value_t = 8000)]
        patience_ms: u64,
    },
}

/// Becomes true when standard input closes.
fn closed_input() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    std::thread::spawn(move || {
        // End of file, or an error: either way nobody is there any more.
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        told.store(true, Ordering::Relaxed);
    });
    stop
}

fn main() -> Result<()> {
    match Command::parse() {
        Command::ServeFile { listen, size, seed, rate, patience_ms } => {
            copy::serve(listen, copy::File { size, seed, rate }, Duration::from_millis(patience_ms))
        }
        Command::Fetch { connect, patience_ms } => copy::fetch(connect, Duration::from_millis(patience_ms)),
        Command::Echo { listen } => probe::echo(listen),
        Command::Probe { connect, rate, count } => probe::probe(connect, rate, count, &closed_input()),
        Command::Answer { listen } => connections::answer(listen),
        Command::Hold { connect, count, interval_ms, patience_ms } => connections::hold(
            connect,
            count,
            Duration::from_millis(interval_ms),
            Duration::from_millis(patience_ms),
            &closed_input(),
        ),
        Command::Dial { connect, rate, patience_ms } => {
            connections::dial(connect, rate, Duration::from_millis(patience_ms), &closed_input())
        }
    }
}

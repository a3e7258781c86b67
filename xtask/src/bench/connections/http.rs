//! Requests over HTTP, a connection for each, many at a time: as `ab -n 100000 -c 1000` does it, in threads of the bench.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{Host, Lab, SERVER};

use super::{Args, Contender, Figure, Policy, Report, Stage, Table};

const PORT: u16 = 80;
/// Bytes of a page.
const PAGE: usize = 1_024;
/// Stack of a thread.
const STACK: usize = 128 << 10;
/// A connection without progress for so long has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Measures it.
pub fn run(stage: &mut Stage, args: &Args, report: &mut Report) -> Result<()> {
    let (requests, at_a_time): (u32, u32) = if args.options.quick { (500, 20) } else { (20_000, 200) };
    let mut contenders = args.options.contenders(&[
        Contender::Router,
        Contender::Nftables,
        Contender::Conntrackd,
        Contender::Iptables,
        Contender::Tc,
        Contender::Xdp,
        Contender::Replicating,
    ])?;
    if args.options.quick {
        // At tc it is as at XDP; `rate` has the pairs.
        contenders.retain(|contender| !contender.replicates() && *contender != Contender::Xdp);
    }
    let mut table = Table {
        name: "http",
        title: format!(
            "{requests} requests over HTTP, {at_a_time} connections at a time, a page of {PAGE} bytes each"
        ),
        figures: vec![
            Figure { name: "per_s", heading: "requests a second", decimals: 0 },
            Figure { name: "failed", heading: "failed", decimals: 0 },
        ],
        rivals: vec![Contender::Router.name(), Contender::Nftables.name(), Contender::Conntrackd.name()],
        ..Table::default()
    };
    stage.live.set_sink(&stage.lab, false)?;
    stage.rounds(&contenders, args.options.rounds(), |stage, contender, _| {
        stage.live.put(&stage.lab, None)?;
        let mut running = contender.start(&mut stage.lab, Policy::default())?;
        let (took, failed) = ask(&stage.lab, requests, at_a_time)?;
        ensure!(failed < requests / 100, "{failed} of {requests} requests failed");
        let done = f64::from(requests - failed);
        table.push(&[], contender.name(), &[done / took.as_secs_f64(), failed.into()]);
        running.stop(&stage.lab)
    })?;
    stage.live.set_sink(&stage.lab, true)?;
    report.tables.push(table);
    Ok(())
}

/// Asks the server so often, and says how long that took and how many requests failed.
fn ask(lab: &Lab, requests: u32, at_a_time: u32) -> Result<(Duration, u32)> {
    let listener = lab.within(Host::Server, || TcpListener::bind((SERVER, PORT)))?.context("listen")?;
    let (left, failed, done) = (AtomicU32::new(requests), AtomicU32::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..at_a_time {
            thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
                while let Ok((stream, _)) = listener.accept() {
                    if done.load(Ordering::Acquire) {
                        break;
                    }
                    // Who asked counts it, if it fails.
                    let _ = answer(stream);
                }
            })?;
        }
        let began = Instant::now();
        let result = lab.within(Host::Client, || {
            thread::scope(|scope| -> Result<()> {
                for _ in 0..at_a_time {
                    // A thread is in the namespace of the one that starts it.
                    thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || {
                        let take = |left: u32| left.checked_sub(1);
                        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                            if request().is_err() {
                                failed.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    })?;
                }
                Ok(())
            })
        });
        let took = began.elapsed();
        done.store(true, Ordering::Release);
        // Each wakes one that listens.
        lab.within(Host::Server, || {
            for _ in 0..at_a_time {
                drop(TcpStream::connect((SERVER, PORT)));
            }
        })?;
        result??;
        Ok((took, failed.load(Ordering::Relaxed)))
    })
}

fn request() -> Result<()> {
    let address = (SERVER.parse::<std::net::IpAddr>()?, PORT).into();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: server\r\n\r\n")?;
    let mut page = Vec::new();
    stream.read_to_end(&mut page)?;
    ensure!(page.starts_with(b"HTTP/1.0 200") && page.len() > PAGE, "not the page");
    Ok(())
}

fn answer(mut stream: TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut asked = Vec::new();
    let mut buffer = [0; 256];
    while !asked.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => asked.extend_from_slice(&buffer[..length]),
        }
    }
    let mut page = format!("HTTP/1.0 200 OK\r\nContent-Length: {PAGE}\r\n\r\n").into_bytes();
    page.resize(page.len() + PAGE, b'.');
    stream.write_all(&page)?;
    Ok(stream.shutdown(Shutdown::Both)?)
}

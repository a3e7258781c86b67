//! What the suites with live frames share: options, the lab with generator and sink on it, turns of contenders.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::{CLIENT, CLIENT6, Host, Lab, LabOptions, Node, SERVER, SERVER6};
use fwha_tests::root::is_root;
use indicatif::ProgressBar;

use super::contender::{Contender, MAX_FLOWS, Policy, Running};
use super::dataplane::order::STEPS;
use super::dataplane::traffic::{Kind, Place};
use super::live::{Bare, Live, Sent, Size};
use super::replication::traffic::{lay_routes, mac};
use super::report::Report;
use crate::cargo::{build_bins, spinner};

/// Options of such a suite.
#[derive(clap::Args, Default)]
pub struct Options {
    /// Few and short runs of a debug build, to see that all of it works; the figures mean nothing
    #[arg(long)]
    pub quick: bool,
    /// How often each contender has its turn
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: Option<u32>,
    /// Only contenders whose name contains this
    #[arg(long, value_name = "TEXT")]
    pub only: Option<String>,
    /// Programs of `fwha` that are built already are here
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Write the figures to a file
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw a picture into a directory
    #[arg(long, value_name = "DIR")]
    pub plot: Option<PathBuf>,
}

impl Options {
    /// The shortest that there is.
    pub fn quick() -> Self {
        Self { quick: true, ..Self::default() }
    }

    /// How often each contender has its turn.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// Those of the contenders that were asked for, and that can be measured here.
    ///
    /// # Errors
    ///
    /// When there are none.
    pub fn contenders(&self, all: &[Contender]) -> Result<Vec<Contender>> {
        let asked: Vec<_> = all
            .iter()
            .copied()
            .filter(|contender| self.only.as_ref().is_none_or(|text| contender.name().contains(text)))
            .collect();
        let present = Contender::present(&asked);
        ensure!(!present.is_empty(), "no contender of such a name");
        Ok(present)
    }

    /// Prints a report, and writes what was asked for.
    ///
    /// # Errors
    ///
    /// When a file cannot be written.
    pub fn publish(&self, report: &Report) -> Result<()> {
        report.publish(self.json.as_deref(), self.plot.as_deref())?;
        if self.quick {
            println!(
                "\nQuick: all that was run works, but the figures are those of runs that are too short."
            );
        }
        println!();
        Ok(())
    }
}

/// The lab with generator and sink.
pub struct Stage {
    pub lab: Lab,
    pub live: Live,
    pub spinner: ProgressBar,
    quick: bool,
}

/// Flows that are opened at a time: few enough that another node can be told of them.
const CHUNK: u32 = 8_192;
/// Flows that another node can be told of in a second.
const TOLD_PER_S: u32 = 30_000;
/// What may be lost of a flow's opening: the kernel drops packets when there are many.
const ARRIVED_MIN: f64 = 0.99;
/// Packets of a handshake; what follows them in an opening is far ahead in the conversation.
pub const HANDSHAKE: usize = 3;
/// How often packets are sent at most whose loss is nobody's fault: what else the machine does may hold the kernel up, and it
/// drops what does not fit its queues meanwhile. Hosts send again, too.
const ATTEMPTS: usize = 4;

impl Stage {
    /// Lays it, with nodes that hold as many flows as any suite opens.
    ///
    /// # Errors
    ///
    /// When the machine refuses.
    pub fn lay(options: &Options, suite: &str) -> Result<Self> {
        Self::lay_for(options, suite, MAX_FLOWS)
    }

    /// Lays it, with nodes that hold so many flows, if the suite is not a quick one.
    ///
    /// # Errors
    ///
    /// When the machine refuses.
    pub fn lay_for(options: &Options, suite: &str, max_flows: u32) -> Result<Self> {
        if !is_root() {
            bail!(
                "the bench needs root: it makes network namespaces; run `sudo -E cargo xtask bench {suite}`"
            );
        }
        let bin_dir = match &options.bin_dir {
            Some(dir) => dir.clone(),
            None => build_bins(&["fwha", "fwha-tests"], !options.quick)?,
        };
        let spinner = spinner("laying the lab");
        let lab = Lab::new(LabOptions {
            bin_dir: Some(bin_dir),
            max_flows: if options.quick { 65_536 } else { max_flows },
            ipv6: true,
            ..LabOptions::default()
        })
        .context("lay the lab")?;
        lay_routes(&lab)?;
        for (address, host, interface) in [
            (CLIENT, Host::Client, "lan"),
            (CLIENT6, Host::Client, "lan"),
            (SERVER, Host::Server, "wan"),
            (SERVER6, Host::Server, "wan"),
        ] {
            let mac = mac(&lab, host, "eth0")?.map(|byte| format!("{byte:02x}")).join(":");
            lab.exec(
                Host::Fw1,
                &[
                    "ip",
                    "neighbour",
                    "replace",
                    address,
                    "lladdr",
                    &mac,
                    "dev",
                    interface,
                    "nud",
                    "permanent",
                ],
            )?;
        }
        for (network, via, interface) in
            [("2001:db8:1::/64", CLIENT6, "lan"), ("2001:db8:2::/64", SERVER6, "wan")]
        {
            lab.exec(Host::Fw1, &["ip", "route", "replace", network, "via", via, "dev", interface])?;
        }
        let live = Live::new(&lab)?;
        Ok(Self { lab, live, spinner, quick: options.quick })
    }

    /// Gives each contender its turn, one after the other, and that again and again; every other round in the opposite
    /// order. A turn begins with a contender that has no flows.
    ///
    /// # Errors
    ///
    /// Those of a turn.
    pub fn rounds(
        &mut self,
        contenders: &[Contender],
        rounds: u32,
        mut turn: impl FnMut(&mut Self, Contender, u32) -> Result<()>,
    ) -> Result<()> {
        for round in 0..rounds {
            let mut order = contenders.to_vec();
            if round % 2 == 1 {
                order.reverse();
            }
            for contender in order {
                self.spinner.set_message(format!("round {} of {rounds}: {}", round + 1, contender.name()));
                turn(self, contender, round).with_context(|| contender.name())?;
            }
        }
        Ok(())
    }

    /// Puts a contender on the node, whose interfaces coalesce nothing then.
    ///
    /// # Errors
    ///
    /// When it does not begin to work.
    pub fn start(&mut self, contender: Contender, policy: Policy) -> Result<Running> {
        self.live.put(&self.lab, None)?;
        let running = contender.start(&mut self.lab, policy)?;
        self.live.put(&self.lab, contender.bare())?;
        Live::end_coalescing(&self.lab)?;
        Ok(running)
    }

    /// Gives the node's cables so many queues; see [`Lab::set_queues`]. No contender is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_queues(&mut self, queues: usize) -> Result<()> {
        self.live.put(&self.lab, None)?;
        self.live.set_sink(&self.lab, false)?;
        self.lab.set_queues(Node::Fw1, queues)?;
        self.live.set_sink(&self.lab, true)
    }

    /// Measures with nothing on the node but such a program: what the bench itself costs.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn base<T>(&mut self, bare: Bare, measure: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.live.put(&self.lab, Some(bare))?;
        measure(self).with_context(|| format!("{bare:?} alone on the node"))
    }

    /// Packets of established flows, half of them there, half back.
    ///
    /// # Errors
    ///
    /// Those of [`Self::again`].
    pub fn both_ways(&mut self, kind: Kind, size: Size, flows: u32, packets: u32, seed: u32) -> Result<Sent> {
        let place = Place::Random { flows, packets: packets / 2, seed };
        self.again(|stage| {
            let Self { lab, live, .. } = stage;
            let [there, back] = kind.both_ways().map(|traffic| live.send(lab, &traffic, size, &place));
            Ok(there?.and(back?))
        })
    }

    /// Sends packets, and that again if so many were lost that what one has cost is not known.
    ///
    /// # Errors
    ///
    /// When the kernel refuses, or they are lost every time.
    pub fn again(&mut self, mut send: impl FnMut(&mut Self) -> Result<Sent>) -> Result<Sent> {
        for _ in 1..ATTEMPTS {
            let sent = send(self)?;
            if sent.accounted() {
                return Ok(sent);
            }
        }
        let sent = send(self)?;
        self.enough(sent)
    }

    /// These packets, if so few were lost that what one has cost is known. A quick run's figures mean nothing, and it is
    /// enough that some arrived.
    ///
    /// # Errors
    ///
    /// When it is not.
    pub fn enough(&self, sent: Sent) -> Result<Sent> {
        let Sent { packets, arrived, at_home, .. } = sent;
        ensure!(
            sent.accounted() || self.quick && arrived > 0,
            "of {packets} packets {arrived} arrived, {at_home} of them on the CPU that sent them"
        );
        Ok(sent)
    }

    /// Opens flows with these numbers.
    ///
    /// # Errors
    ///
    /// When their packets do not get through.
    pub fn open(&mut self, contender: Contender, kind: Kind, flows: Range<u32>) -> Result<()> {
        let mut sent = Sent::default();
        for start in flows.clone().step_by(CHUNK as usize) {
            let chunk = start..flows.end.min(start + CHUNK);
            for steps in [0..HANDSHAKE, HANDSHAKE..STEPS] {
                let mut opened = Sent::default();
                for _ in 0..ATTEMPTS {
                    opened = self.live.open(&self.lab, kind, chunk.clone(), steps.clone())?;
                    if opened.arrived >= opened.packets {
                        break;
                    }
                }
                sent = sent.and(opened);
            }
            if contender.replicates() {
                std::thread::sleep(Duration::from_secs(1) * (chunk.end - chunk.start) / TOLD_PER_S);
            }
        }
        ensure!(
            sent.packets == 0 || sent.part() >= ARRIVED_MIN,
            "of {} packets that open flows ({}) only {} got through",
            sent.packets,
            kind.name(),
            sent.arrived
        );
        Ok(())
    }

    /// Removes it.
    ///
    /// # Errors
    ///
    /// When something is left.
    pub fn remove(self) -> Result<()> {
        drop(self.live);
        self.lab.remove()?;
        self.spinner.finish_and_clear();
        Ok(())
    }
}

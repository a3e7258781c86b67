//! `fwhactl capture` in the running cluster: what was denied can be looked at.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use etherparse::{EtherType, Ethernet2Header, SlicedPacket, TransportSlice};
use fwha_tests::lab::{Attach, CLIENT, Host, Lab, LabOptions, Node, SERVER};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::with_pair;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A port that no rule admits.
const DENIED: u16 = 80;

/// A `fwhactl capture --drops` that has begun. Killed when dropped.
struct Capture {
    child: Child,
    said: BufReader<ChildStderr>,
    /// Reads what it prints, so that it never waits.
    printed: Option<JoinHandle<std::io::Result<String>>>,
}

impl Drop for Capture {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Capture {
    /// Begins one; an error is what it says instead.
    fn begin(pair: &Pair, node: Node, arguments: &[&str]) -> Result<Self> {
        let mut ctl = pair.node(node).ctl_command(&["-o", "json", "capture", "--drops"]);
        let mut child = ctl.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let said = BufReader::new(child.stderr.take().context("its standard error")?);
        let mut output = child.stdout.take().context("its standard output")?;
        let printed = thread::spawn(move || {
            let mut text = String::new();
            output.read_to_string(&mut text).map(|_| text)
        });
        let mut capture = Self { child, said, printed: Some(printed) };
        let mut line = String::new();
        capture.said.read_line(&mut line)?;
        ensure!(line.starts_with("fwhactl: capturing"), "{line}");
        Ok(capture)
    }

    /// Waits until it ends because it has enough, doing something again and again. Returns what it captured and said.
    fn end(mut self, lab: &Lab, mut meanwhile: impl FnMut() -> Result<()>) -> Result<(Vec<Value>, String)> {
        let status = lab.wait_for("the end of the capture", PATIENCE, || {
            meanwhile()?;
            Ok(self.child.try_wait()?)
        })?;
        let mut said = String::new();
        self.said.read_to_string(&mut said)?;
        let printed = self.printed.take().context("what it printed")?;
        let printed = printed.join().map_err(|_| anyhow!("the reader of its output panicked"))??;
        ensure!(status.success(), "{said}");
        let packets = printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok((packets, said))
    }
}

/// Tries to connect from the server to the client, which no rule admits.
fn knock(lab: &Lab) -> Result<()> {
    let to: SocketAddr = format!("{CLIENT}:{DENIED}").parse()?;
    let tried = lab.within(Host::Server, || TcpStream::connect_timeout(&to, Duration::from_millis(50)))?;
    ensure!(tried.is_err(), "it was admitted");
    Ok(())
}

/// Whether this frame is the SYN of [`knock`].
fn is_knock(frame: &[u8]) -> Result<bool> {
    let packet = SlicedPacket::from_ethernet(frame)?;
    let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { return Ok(false) };
    let (from, to) = (ip.header().source_addr().to_string(), ip.header().destination_addr().to_string());
    let syn = matches!(packet.transport, Some(TransportSlice::Tcp(tcp)) if tcp.syn() && tcp.destination_port() == DENIED);
    Ok(syn && from == SERVER && to == CLIENT)
}

fn unhex(text: &Value) -> Result<Vec<u8>> {
    let digits = text.as_str().context("a string")?;
    let pairs = (0..digits.len()).step_by(2);
    Ok(pairs.map(|at| u8::from_str_radix(&digits[at..at + 2], 16)).collect::<Result<_, _>>()?)
}

/// The blocks of a pcapng file: type, and what is between the lengths.
fn blocks(file: &[u8]) -> Result<Vec<(u32, &[u8])>> {
    let u32 = |at: usize| -> Result<u32> {
        Ok(u32::from_le_bytes(file.get(at..at + 4).context("the file is cut off")?.try_into()?))
    };
    let (mut blocks, mut at) = (Vec::new(), 0);
    while at < file.len() {
        let length = u32(at + 4)? as usize;
        ensure!(length >= 12 && length.is_multiple_of(4) && u32(at + length - 4)? as usize == length);
        blocks.push((u32(at)?, &file[at + 8..at + length - 4]));
        at += length;
    }
    Ok(blocks)
}

/// Types of blocks, and where in a packet's its bytes begin.
const BLOCKS: [u32; 3] = [0x0a0d_0d0a, 1, 6];
const PACKET_BYTES: usize = 20;

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn a_denied_packet_can_be_looked_at_at_tc() {
    with_pair(LabOptions { attach: Attach::Tc, ..LabOptions::beside() }, |lab, pair| {
        let active = pair.settle(lab)?;
        a_file_has_the_knocks(lab, pair, active, "ingress")?;
        whoever_goes_away_ends_it(lab, pair, active, "ingress")?;
        a_tag_is_where_it_was(lab, pair, active)?;
        a_flood_is_skipped(lab, pair, active)
    });
}

#[test]
fn a_denied_packet_can_be_looked_at_at_xdp() {
    with_pair(LabOptions { attach: Attach::Xdp, ..LabOptions::beside() }, |lab, pair| {
        let active = pair.settle(lab)?;
        a_file_has_the_knocks(lab, pair, active, "xdp")?;
        whoever_goes_away_ends_it(lab, pair, active, "xdp")?;
        a_daemon_does_not_wait_for_it(pair, active)
    });
}

/// A file has the packets that were denied, their reason and their interface.
fn a_file_has_the_knocks(lab: &Lab, pair: &Pair, active: Node, hook: &str) -> Result<()> {
    let file = lab.dir().join("drops.pcapng");
    let name = file.to_str().context("a name")?;
    let capture = Capture::begin(pair, active, &["--reason", "no_rule", "-c", "2", "-w", name])?;

    // There is one at a time.
    let second = Capture::begin(pair, active, &[]).err().context("a second capture began")?;
    ensure!(second.to_string().contains("another capture"), "{second}");

    let (_, said) = capture.end(lab, || knock(lab))?;
    ensure!(said.starts_with("fwhactl: 2 packets captured, 0 skipped"), "{said}");
    let bytes = fs::read(&file)?;
    let blocks = blocks(&bytes)?;
    let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
    ensure!(kinds == [&BLOCKS[..], &BLOCKS[2..]].concat(), "{kinds:x?}");
    ensure!(contains(blocks[1].1, "wan"), "the interface has its name");
    for (_, packet) in &blocks[2..] {
        let length = u32::from_le_bytes(packet[12..16].try_into()?) as usize;
        ensure!(is_knock(&packet[PACKET_BYTES..PACKET_BYTES + length])?, "{packet:x?}");
        ensure!(contains(packet, &format!("no_rule at {hook}: No rule admits the flow")), "{packet:x?}");
    }
    read_by_tcpdump(name)
}

/// Whoever goes away ends the capture, and another may begin.
fn whoever_goes_away_ends_it(lab: &Lab, pair: &Pair, active: Node, hook: &str) -> Result<()> {
    drop(Capture::begin(pair, active, &[])?);
    let capture = lab.wait_for("the next capture to begin", PATIENCE, || {
        Ok(Some(Capture::begin(pair, active, &["--reason", "no_rule", "-c", "1", "--snaplen", "60"])?))
    })?;
    let (packets, _) = capture.end(lab, || knock(lab))?;
    let [packet] = &packets[..] else { bail!("one packet was asked for: {packets:?}") };
    ensure!(
        packet["interface"] == "wan" && packet["hook"] == hook && packet["reason"] == "no_rule",
        "{packet}"
    );
    let frame = unhex(&packet["frame"])?;
    ensure!(frame.len() == 60 && packet["length_bytes"].as_u64() > Some(60), "{packet}");
    Ok(())
}

/// Has tcpdump read the file of [`knock`]s, if it is there; in CI it must be.
fn read_by_tcpdump(file: &str) -> Result<()> {
    let dump = match Command::new("tcpdump").args(["-n", "-r", file]).output() {
        Ok(dump) => dump,
        Err(error) if std::env::var("CI").as_deref() == Ok("true") => return Err(error).context("tcpdump"),
        Err(_) => {
            println!("skipped: needs tcpdump");
            return Ok(());
        }
    };
    let said = String::from_utf8_lossy(&dump.stderr);
    ensure!(dump.status.success(), "{said}");
    let lines = String::from_utf8_lossy(&dump.stdout);
    let expected = format!("> {CLIENT}.{DENIED}: Flags [S]");
    ensure!(lines.lines().count() == 2 && lines.lines().all(|line| line.contains(&expected)), "{lines}");
    Ok(())
}

/// A daemon that is told to end does not wait for a capture, which ends with it and says so.
fn a_daemon_does_not_wait_for_it(pair: &mut Pair, active: Node) -> Result<()> {
    let mut capture = Capture::begin(pair, active, &[])?;
    let status = pair.node_mut(active).term(PATIENCE)?;
    ensure!(status.success(), "{status}");
    let mut said = String::new();
    capture.said.read_to_string(&mut said)?;
    // It may still be about to end when it is looked for.
    let gone = said.contains("has gone") || said.contains("broke off");
    ensure!(said.contains("packets captured") && gone, "{said}");
    ensure!(capture.child.wait()?.code() == Some(1));
    Ok(())
}

/// The kernel takes VLAN tags off before tc sees a frame; in a capture they are back.
fn a_tag_is_where_it_was(lab: &Lab, pair: &Pair, active: Node) -> Result<()> {
    let frames = [EtherType::VLAN_TAGGED_FRAME, EtherType::PROVIDER_BRIDGING].map(|tag| {
        let header = Ethernet2Header { source: [2; 6], destination: [0xff; 6], ether_type: tag };
        [&header.to_bytes()[..], &[0x20, 5, 0x08, 0x06], &[0xab; 46]].concat()
    });
    let capture = Capture::begin(pair, active, &["--reason", "vlan", "-c", "2"])?;
    let (packets, _) = capture.end(lab, || {
        lab.within(Host::Client, || {
            let index = nix::net::if_::if_nametoindex("eth0")?;
            let socket = fwha::sys::socket::packet_socket(index, 0)?;
            frames.iter().try_for_each(|frame| socket.send(frame).map(drop))?;
            Ok(())
        })?
    })?;
    let captured = packets.iter().map(|packet| unhex(&packet["frame"])).collect::<Result<Vec<_>>>()?;
    ensure!(captured == frames, "{packets:?}");
    ensure!(packets.iter().all(|packet| packet["length_bytes"] == frames[0].len()), "{packets:?}");
    Ok(())
}

/// More than is sampled in a moment is counted, and the client is told.
fn a_flood_is_skipped(lab: &Lab, pair: &Pair, active: Node) -> Result<()> {
    // More than one window has of them.
    const ENOUGH: &str = "500";
    let capture = Capture::begin(pair, active, &["-c", ENOUGH])?;
    let (packets, said) = capture.end(lab, || flood(lab))?;
    ensure!(packets.len().to_string() == ENOUGH && packets.iter().all(|p| p["reason"] == "no_rule"));
    let skipped = number_before(&said, "skipped")?;
    ensure!(skipped > 0 && pair.node(active).count("flows.capture_skipped")? >= skipped, "{said}");
    Ok(())
}

/// Sends more packets that no rule admits than are sampled in a window.
fn flood(lab: &Lab) -> Result<()> {
    lab.within(Host::Server, || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for _ in 0..500 {
            socket.send_to(&[0; 1000], (CLIENT, DENIED))?;
        }
        Ok(())
    })?
}

/// The number before a word of what a capture says at its end.
fn number_before(said: &str, word: &str) -> Result<u64> {
    let number = said.split(' ').zip(said.split(' ').skip(1)).find(|(_, next)| *next == word);
    Ok(number.with_context(|| said.to_owned())?.0.parse()?)
}

#[test]
fn a_capture_that_is_not_read_loses_packets_and_says_how_many() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let before = pair.roles()?;
        let file = lab.dir().join("drops.pcapng");
        let arguments = ["-c", "10000", "-w", file.to_str().context("a name")?];
        let mut capture = Capture::begin(pair, active, &arguments)?;
        let pid = Pid::from_raw(capture.child.id().cast_signed());
        kill(pid, Signal::SIGSTOP)?;
        let lost = lab.wait_for("a packet that found no room", PATIENCE, || {
            flood(lab)?;
            let lost = pair.node(active).count("flows.capture_lost")?;
            Ok((lost > 0).then_some(lost))
        })?;
        kill(pid, Signal::SIGCONT)?;
        // It reads again, and is told.
        lab.wait_for("what was waiting to be written", PATIENCE, || {
            flood(lab)?;
            Ok((fs::metadata(&file)?.len() > 1 << 20).then_some(()))
        })?;
        kill(pid, Signal::SIGINT)?;
        ensure!(capture.child.wait()?.success());
        let mut said = String::new();
        capture.said.read_to_string(&mut said)?;
        ensure!(number_before(&said, "lost")? >= lost, "{said}");
        ensure!(pair.roles()? == before, "nothing moved");
        Ok(())
    });
}

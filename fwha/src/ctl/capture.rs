//! `fwhactl capture`: dropped packets as they are dropped, a line each or as a pcapng file.

mod decode;
mod pcapng;

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
    process,
    sync::Arc,
    thread,
};

use anyhow::{Context, bail};
use fwha_common::drop::DropReason;
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::Notify;

use super::{
    Ctl,
    client::Lines,
    print_json, tell,
    term::{self, Paint},
};
use crate::{
    api::{CaptureLine, CaptureMissed, CaptureQuery, DroppedPacket, path},
    args::{CaptureArgs, Output},
};

pub(super) async fn run(ctl: &Ctl, args: &CaptureArgs) -> anyhow::Result<()> {
    let interrupted = interruption()?;
    let query =
        CaptureQuery { reasons: args.reasons.clone(), count: args.count, snap_len: Some(args.snap_len) };
    let mut lines = ctl.client.follow(path::CAPTURE, &query).await?;
    // Not before: a capture that cannot be must not cost the file of an earlier one.
    let mut sink = Sink::open(ctl, args)?;
    tell(format_args!("capturing dropped packets, up to {} bytes of each", args.snap_len));

    let mut tally = Tally::default();
    let ended = follow(ctl, args, &mut lines, &interrupted, &mut sink, &mut tally).await;
    let finished = sink.finish().with_context(|| cannot_write(args));
    let Tally { packets, missed: CaptureMissed { skipped, lost } } = tally;
    tell(format_args!(
        "{packets} packets captured, {skipped} skipped (too many at a time), {lost} lost (read too slowly)"
    ));
    ended.and(finished)
}

/// What is said at the end, however that comes.
#[derive(Default)]
struct Tally {
    packets: u64,
    missed: CaptureMissed,
}

/// Writes packets as they come, until there are no more or somebody interrupts.
async fn follow(
    ctl: &Ctl,
    args: &CaptureArgs,
    lines: &mut Lines,
    interrupted: &Notify,
    sink: &mut Sink,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    loop {
        if !lines.more_is_here() {
            sink.flush().with_context(|| cannot_write(args))?;
        }
        let line = tokio::select! {
            line = lines.next() => line?,
            () = interrupted.notified() => return Ok(()),
        };
        let Some(line) = line else { return Ok(()) };
        match serde_json::from_slice(line)? {
            CaptureLine::Packet(packet) => {
                sink.packet(ctl, &packet).with_context(|| cannot_write(args))?;
                tally.packets += 1;
            }
            CaptureLine::Missed(missed) => tally.missed = missed,
        }
    }
}

fn cannot_write(args: &CaptureArgs) -> String {
    match &args.write {
        Some(file) if file != Path::new("-") => format!("cannot write {}", file.display()),
        _ => "cannot write to standard output".to_owned(),
    }
}

/// Tells of the first SIGINT or SIGTERM, on which the capture ends in good order. The second one ends the process, for a
/// thread whose output takes nothing more (a pipe that nobody reads, a file server that is gone) hears of neither.
fn interruption() -> anyhow::Result<Arc<Notify>> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    signals.thread_block()?;
    let interrupted = Arc::new(Notify::new());
    let first = Arc::clone(&interrupted);
    thread::Builder::new().spawn(move || {
        // That cannot fail for signals that there are.
        let _ = signals.wait();
        first.notify_one();
        let second = signals.wait().map_or(0, |signal| signal as i32);
        process::exit(128 + second)
    })?;
    Ok(interrupted)
}

/// Opens a file that only its owner may read, for it holds what other people sent each other, and empties it. What somebody
/// else has laid there, in `/tmp` for example, is not followed. Pipes and devices are taken as they are.
fn private(path: &Path) -> io::Result<File> {
    // The kernel's own links lead to what this process has open.
    let open = ["/dev/stdout", "/dev/stderr", "/dev/fd", "/proc"].iter().any(|own| path.starts_with(own));
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    if !open {
        options.custom_flags(libc::O_NOFOLLOW);
    }
    let file = options.open(path)?;
    let found = file.metadata()?;
    if found.is_file() && !open {
        // Who else owns it could read it whatever its mode.
        if found.uid() != nix::unistd::geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    if found.is_file() {
        file.set_len(0)?;
    }
    Ok(file)
}

/// Where packets go.
enum Sink {
    /// To standard output, a line each.
    Lines(BufWriter<io::Stdout>),
    /// Into a file.
    File(pcapng::Writer<BufWriter<Box<dyn Write>>>),
}

impl Sink {
    fn open(ctl: &Ctl, args: &CaptureArgs) -> anyhow::Result<Self> {
        let Some(file) = &args.write else { return Ok(Self::Lines(BufWriter::new(io::stdout()))) };
        let out: Box<dyn Write> = if file == Path::new("-") {
            if ctl.style.terminal {
                bail!("a pcapng file is not for a terminal: pipe it into `tcpdump -r -`, or name a file");
            }
            Box::new(io::stdout())
        } else {
            Box::new(private(file).with_context(|| cannot_write(args))?)
        };
        let application = concat!("fwhactl ", env!("CARGO_PKG_VERSION"));
        Ok(Self::File(pcapng::Writer::new(BufWriter::new(out), application, args.snap_len)?))
    }

    fn packet(&mut self, ctl: &Ctl, packet: &DroppedPacket) -> anyhow::Result<()> {
        match self {
            Self::Lines(out) => match ctl.output {
                Output::Json => print_json(out, packet)?,
                Output::Table => print(out, ctl, packet)?,
            },
            Self::File(writer) => writer.packet(&pcapng::Packet {
                interface: &packet.interface,
                at_unix_ns: packet.at_unix_ns,
                length: packet.length_bytes,
                bytes: &packet.frame,
                comment: &comment(packet),
                direction: match packet.hook.as_str() {
                    "egress" => pcapng::Direction::Out,
                    _ => pcapng::Direction::In,
                },
            })?,
        }
        Ok(())
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Lines(out) => out.flush(),
            Self::File(writer) => writer.finish(),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Lines(out) => out.flush(),
            Self::File(writer) => writer.flush(),
        }
    }
}

/// Time, interface, reason, length, what it is.
fn print(out: &mut impl Write, ctl: &Ctl, packet: &DroppedPacket) -> io::Result<()> {
    let style = ctl.style;
    writeln!(
        out,
        "{}  {}  {}  {:5}  {}",
        style.paint(Paint::Dim, &term::timestamp(packet.at_unix_ns / 1_000_000)),
        style.paint(Paint::Plain, &format!("{:8}", packet.interface)),
        style.paint(Paint::Bold, &format!("{:12}", packet.reason)),
        packet.length_bytes,
        style.paint(Paint::Plain, &decode::describe(&packet.frame)),
    )
}

/// What a pcapng file says of a packet: `no_rule at xdp: No rule admits the flow`.
fn comment(packet: &DroppedPacket) -> String {
    let reason = DropReason::ALL.iter().find(|reason| reason.as_str() == packet.reason);
    let explanation = reason.map_or(String::new(), |reason| format!(": {}", reason.explain()));
    format!("{} at {}{explanation}", packet.reason, packet.hook)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn a_file_of_packets_is_private_and_no_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "of an earlier capture").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o644)).unwrap();
        symlink(&file, &link).unwrap();
        assert_eq!(private(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
        private(&file).unwrap();
        let found = fs::metadata(&file).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (0, 0o600));
        private(Path::new("/dev/null")).unwrap();
    }
}

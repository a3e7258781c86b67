//! The generator and the sink on the cables of the lab's first node: frames that go through the node as if clients and
//! servers had sent them, and that end where they leave it.
//!
//! ```text
//!  generator -> fw1-lan ═══ lan [ fw1 ] wan ═══ fw1-wan -> sink
//!       sink <- fw1-lan ═══ lan [ fw1 ] wan ═══ fw1-wan <- generator
//! ```
//!
//! All of a packet's way is gone on one CPU, by the generator's thread: it makes a batch, and in the same system call the
//! kernel polls one veth after the other. What a packet has cost is the CPU time of that thread divided by the packets.

use std::fs;
use std::ops::Range;
use std::process::Command;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, PerCpuArray};
use aya::programs::xdp::{XdpLinkId, XdpMode};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use fwha_tests::lab::{Host, Lab};
use fwha_tests::sys::{Feature, set_feature};
use nix::net::if_::if_nametoindex;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::dataplane::order::{BUCKETS, Order, shortest};
use super::dataplane::rig::{Words, mac};
use super::dataplane::traffic::{Kind, LEAP, Place, Traffic};
use super::figures::Series;
use super::replication::traffic::mac as mac_of;
use crate::build_ebpf;

/// Frames in a batch, as many as the kernel polls at a time.
const BATCH: u32 = 64;
/// Packets are sent in so many runs of which the median counts: now and then one holds what the machine did for others.
const RUNS: u32 = 5;
/// Fewer packets are sent in one: before and after each the kernel waits for all CPUs, some tens of ms.
const RUN_MIN: u32 = 10_000;
/// Where a smaller part of the packets arrives, or does on the generator's CPU, what one has cost is not known at all. Of a
/// larger one the tables tell; see [`super::report::ARRIVED`].
const ARRIVED_MIN: f64 = 0.9;
/// The longest frame: 1500 bytes of IP on Ethernet.
const FRAME_MAX: usize = 1_514;

/// How long a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// As short as the headers allow; on Ethernet 64 bytes with IPv4.
    Shortest,
    /// So many bytes on Ethernet, checksum included.
    Frame(u16),
    /// So many bytes of IP.
    Packet(u16),
    /// Seven packets of 40 bytes, four of 576, one of 1500 ("simple IMIX"); UDP over IPv4.
    Mix,
}

impl Size {
    /// Its name in a table.
    pub fn name(self) -> String {
        match self {
            Self::Shortest => "shortest".to_owned(),
            Self::Frame(bytes) | Self::Packet(bytes) => bytes.to_string(),
            Self::Mix => "IMIX".to_owned(),
        }
    }

    /// Length of the frame without checksum, and of the L4 payload.
    fn bytes(self, traffic: &Traffic) -> (usize, u64) {
        let l3 = if traffic.family == 4 { 20 } else { 40 };
        let l4 = if traffic.proto == 17 { 8 } else { 20 };
        let headers = 14 + l3 + l4;
        match self {
            Self::Shortest => ((headers + traffic.payload as usize).max(26 + 14 + l3), traffic.payload),
            Self::Frame(bytes) => (usize::from(bytes) - 4, (usize::from(bytes) - 4 - headers) as u64),
            Self::Packet(bytes) => (usize::from(bytes) + 14, (usize::from(bytes) + 14 - headers) as u64),
            Self::Mix => (FRAME_MAX, 0),
        }
    }
}

/// What became of the packets that were sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Sent.
    pub packets: u64,
    /// Of them, arrived at the sink.
    pub arrived: u64,
    /// Of these, on the generator's CPU.
    pub at_home: u64,
    /// CPU time, of the generator and of all that the packets met.
    pub busy: Duration,
}

impl Sent {
    /// CPU time of one packet, in ns.
    pub fn ns(self) -> f64 {
        self.busy.as_secs_f64() * 1e9 / self.packets as f64
    }

    /// The part that arrived.
    pub fn part(self) -> f64 {
        self.arrived as f64 / self.packets as f64
    }

    /// Whether so many arrived, and on the generator's CPU, that what a packet has cost is known. A veth's packets are polled
    /// on another CPU as long as it has some to poll there, and wait for what else that CPU has to do.
    pub fn accounted(self) -> bool {
        self.part() >= ARRIVED_MIN && self.at_home as f64 >= self.arrived as f64 * ARRIVED_MIN
    }

    /// Both together.
    pub fn and(self, other: Self) -> Self {
        Self {
            packets: self.packets + other.packets,
            arrived: self.arrived + other.arrived,
            at_home: self.at_home + other.at_home,
            busy: self.busy + other.busy,
        }
    }
}

/// A side of the node.
#[derive(Clone, Copy)]
struct End {
    /// Index of the switch's port.
    port: u32,
    /// MACs of the node's interface and of the host that is the router there.
    node: [u8; 6],
    host: [u8; 6],
}

/// A program of the bench on the node's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bare {
    /// Forwards by the kernel's routing table; no firewall.
    Router,
    /// Gives all packets to the kernel.
    Pass,
    /// Counts and drops the generator's packets.
    Sink,
    /// Drops all packets without a look.
    Drop,
}

impl Bare {
    fn function(self) -> &'static str {
        match self {
            Self::Router => "router_xdp",
            Self::Pass => "pass_xdp",
            Self::Sink => "sink",
            Self::Drop => "empty_xdp",
        }
    }
}

/// The node's interfaces, and the switch's ports at the other ends.
const CABLES: [(&str, &str, Host); 2] = [("lan", "fw1-lan", Host::Client), ("wan", "fw1-wan", Host::Server)];

/// Generator and sink of a lab.
pub struct Live {
    bench: Ebpf,
    order: Array<MapData, Words>,
    arrived: PerCpuArray<MapData, [u64; 2]>,
    delays: PerCpuArray<MapData, u64>,
    ends: [End; 2],
    /// Of the sink at the far ends.
    sinks: Vec<XdpLinkId>,
    cpu: usize,
    /// On the node's interfaces.
    bare: Option<(Bare, Vec<XdpLinkId>)>,
    /// How far conversations have moved, in bytes.
    moved: u64,
    /// Flows that were opened only to be new.
    fresh: u64,
}

impl Live {
    /// Loads both, and puts the sink at the far ends of the first node's cables.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn new(lab: &Lab) -> Result<Self> {
        let object = build_ebpf::build_package("fwha-bench-ebpf")?;
        let mut bench = EbpfLoader::new()
            .map_max_entries("TABLE", 1)
            .map_max_entries("TABLE_SHORT", 1)
            .load_file(&object)
            .context("load the generator's object")?;
        for name in ["generate_live", "sink", "pass_xdp", "router_xdp", "empty_xdp"] {
            let program: &mut Xdp = bench.program_mut(name).context("no such program")?.try_into()?;
            program.load().with_context(|| format!("load {name}"))?;
        }
        let end = |(interface, port, host)| -> Result<End> {
            Ok(End {
                port: lab.within(Host::Switch, || if_nametoindex(port))??,
                node: mac_of(lab, Host::Fw1, interface)?,
                host: mac_of(lab, host, "eth0")?,
            })
        };
        let mut live = Self {
            order: bench.take_map("ORDER").context("no map ORDER")?.try_into()?,
            arrived: bench.take_map("ARRIVED").context("no map ARRIVED")?.try_into()?,
            delays: bench.take_map("DELAYS").context("no map DELAYS")?.try_into()?,
            bench,
            ends: [end(CABLES[0])?, end(CABLES[1])?],
            sinks: Vec::new(),
            cpu: std::thread::available_parallelism()?.get() - 1,
            bare: None,
            moved: 0,
            fresh: 0,
        };
        live.set_sink(lab, true)?;
        Ok(live)
    }

    /// Puts the sink at the far ends of the cables, or takes it away: it slows other traffic down.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_sink(&mut self, lab: &Lab, on: bool) -> Result<()> {
        let links = std::mem::take(&mut self.sinks);
        self.detach(Bare::Sink, links)?;
        if on {
            self.sinks = self.attach(lab, Host::Switch, Bare::Sink)?;
        }
        Ok(())
    }

    /// The CPU that it runs on.
    pub const fn cpu(&self) -> usize {
        self.cpu
    }

    /// Puts a program on the node's interfaces, or takes it away. Flows that were there are new ones again.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn put(&mut self, lab: &Lab, bare: Option<Bare>) -> Result<()> {
        if let Some((bare, links)) = self.bare.take() {
            self.detach(bare, links)?;
        }
        if let Some(bare) = bare {
            self.bare = Some((bare, self.attach(lab, Host::Fw1, bare)?));
        }
        self.moved = 0;
        Ok(())
    }

    /// Has the node's interfaces hand up each packet by itself. A veth may turn receive coalescing on when an XDP program comes, by
    /// the kernel (6.18 does not), so this is for when it is there.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn end_coalescing(lab: &Lab) -> Result<()> {
        lab.within(Host::Fw1, || {
            CABLES.iter().try_for_each(|(name, ..)| set_feature(name, Feature::Gro, false))
        })?
        .context("turn receive coalescing off on the node")
    }

    fn detach(&mut self, bare: Bare, links: Vec<XdpLinkId>) -> Result<()> {
        let program: &mut Xdp = self.bench.program_mut(bare.function()).context("no program")?.try_into()?;
        Ok(links.into_iter().try_for_each(|link| program.detach(link))?)
    }

    fn attach(&mut self, lab: &Lab, host: Host, bare: Bare) -> Result<Vec<XdpLinkId>> {
        let program: &mut Xdp = self.bench.program_mut(bare.function()).context("no program")?.try_into()?;
        lab.within(host, || {
            let names =
                CABLES.iter().map(|(interface, port, _)| if host == Host::Fw1 { interface } else { port });
            let links = names.map(|name| Ok(program.attach(name, XdpMode::Driver)?));
            links.collect::<Result<_>>()
        })?
        .with_context(|| format!("put {bare:?} on {}", host.name()))
    }

    /// Sends so many packets as fast as it goes.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn send(&mut self, lab: &Lab, traffic: &Traffic, size: Size, place: &Place) -> Result<Sent> {
        self.run(lab, traffic, size, place, None)
    }

    /// Sends packets in bursts at a rate, and says how long each took to the sink.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pace(
        &mut self,
        lab: &Lab,
        traffic: &Traffic,
        size: Size,
        place: &Place,
        pace: Pace,
    ) -> Result<(Sent, Delays)> {
        let before = Delays::of(&self.delays)?;
        let sent = self.run(lab, traffic, size, place, Some(pace))?;
        Ok((sent, Delays::of(&self.delays)?.since(&before)))
    }

    /// Opens flows with these numbers as fast as it goes, by these packets of [`Kind::opening`], as far as there are so many.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn open(&mut self, lab: &Lab, kind: Kind, flows: Range<u32>, steps: Range<usize>) -> Result<Sent> {
        let opening = kind.opening();
        let opening = &opening[steps.start.min(opening.len())..steps.end.min(opening.len())];
        if opening.is_empty() {
            return Ok(Sent::default());
        }
        let way = |end: End| [mac(end.node), mac(end.host), end.port.into()];
        let traffic = &opening[0].traffic;
        let mut order = Order {
            family: traffic.family,
            proto: traffic.proto,
            steps: opening.len() as u64,
            block: BATCH.into(),
            first_step: traffic.first + u64::from(flows.start),
            flows: flows.len() as u64,
            way: self.ends.map(way),
            ..Order::default()
        };
        for (i, Traffic { flags, reply, payload, sent, heard, .. }) in
            opening.iter().map(|opening| opening.traffic).enumerate()
        {
            order.step[i] = flags | u64::from(reply) << 8 | payload << 16;
            order.step_sequence[i] = sent << 32 | heard;
        }
        let packets = flows.len() as u64 * opening.len() as u64;
        // The last block may have room for more flows.
        let made = (flows.len() as u64).next_multiple_of(order.block) * opening.len() as u64;
        let sent = self.play(lab, &order, Size::Shortest.bytes(traffic).0, made as u32, BATCH, 1)?;
        Ok(Sent { packets, ..sent })
    }

    fn run(
        &mut self,
        lab: &Lab,
        traffic: &Traffic,
        size: Size,
        place: &Place,
        pace: Option<Pace>,
    ) -> Result<Sent> {
        let (first, random, packets, seed) = match place {
            Place::Sequence(flows) => (flows.start, 0, flows.end - flows.start, 0),
            Place::Random { packets, .. } if traffic.fresh.is_some() => (0, 0, *packets, 0),
            Place::Random { flows, packets, seed } => (0, *flows, *packets, *seed),
        };
        let (length, payload) = size.bytes(traffic);
        let moved = if traffic.moving { self.moved } else { 0 };
        let from = self.ends[usize::from(traffic.reply)];
        let order = Order {
            dst_mac: mac(from.node),
            src_mac: mac(from.host),
            family: traffic.family,
            proto: traffic.proto,
            flags: traffic.flags,
            reply: traffic.reply.into(),
            first: traffic.first + u64::from(first) + if traffic.fresh.is_some() { self.fresh } else { 0 },
            random: random.into(),
            payload,
            advance: traffic.payload,
            sent: traffic.sent + moved,
            heard: traffic.heard + moved,
            seed: seed.into(),
            device: from.port.into(),
            mix: (size == Size::Mix).into(),
            burst: pace.map_or(0, |pace| pace.burst.into()),
            every: pace.map_or(0, |pace| pace.every.as_nanos() as u64),
            ..Order::default()
        };
        if traffic.moving {
            self.moved += u64::from(packets) * traffic.payload;
            ensure!(self.moved < LEAP, "more packets than the conversations have room for; fewer will do");
        }
        if traffic.fresh.is_some() {
            self.fresh += u64::from(packets);
        }
        let batch = pace.map_or(BATCH, |pace| pace.burst);
        let one = random == 0 || pace.is_some() || packets < RUNS * RUN_MIN;
        let runs = if one { 1 } else { RUNS };
        let packets = packets / runs * runs;
        self.play(lab, &order, length, packets, batch, runs)
    }

    /// Has the generator carry out an order.
    fn play(
        &mut self,
        lab: &Lab,
        order: &Order,
        length: usize,
        packets: u32,
        batch: u32,
        runs: u32,
    ) -> Result<Sent> {
        self.order.set(0, order.words(), 0)?;
        let mut frame = vec![0; length];
        frame[12..14].copy_from_slice(if order.family == 4 { &[8, 0] } else { &[0x86, 0xdd] });

        let before = self.arrived()?;
        let program: &Xdp = self.bench.program("generate_live").context("no generator")?.try_into()?;
        let cpu = self.cpu;
        let busy = lab.within(Host::Switch, || -> Result<Duration> {
            let mut cpus = CpuSet::new();
            cpus.set(cpu)?;
            sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("run on CPU {cpu}"))?;
            let mut times = Series::default();
            for _ in 0..runs {
                let clock = Clock::start(cpu)?;
                let options = TestRunOptions {
                    data_in: Some(&frame),
                    repeat: packets / runs,
                    attrs: TestRunAttrs::new().xdp_live_frames(batch),
                    ..TestRunOptions::default()
                };
                let result = program.test_run(options).context("send live frames")?;
                times.push(clock.stop(result.duration * (packets / runs))?.as_secs_f64());
            }
            Ok(Duration::from_secs_f64(times.median() * f64::from(runs)))
        })??;
        let arrived: Vec<_> = self.arrived()?.iter().zip(&before).map(|(now, then)| now - then).collect();
        let at_home = arrived.get(cpu).copied().unwrap_or(0);
        Ok(Sent { packets: packets.into(), arrived: arrived.iter().sum(), at_home, busy })
    }

    /// Packets that the node has received from its cables so far, whatever it did with them.
    ///
    /// # Errors
    ///
    /// When the kernel does not say.
    pub fn received(&self, lab: &Lab) -> Result<u64> {
        let counters = lab.within(Host::Fw1, || fs::read_to_string("/proc/thread-self/net/dev"))?;
        let counters = counters.context("read the counters of interfaces")?;
        let received = |interface: &str| -> Option<u64> {
            let line =
                counters.lines().find_map(|line| line.trim().strip_prefix(interface)?.strip_prefix(':'))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        CABLES.iter().map(|(name, ..)| received(name).with_context(|| format!("no counters of {name}"))).sum()
    }

    /// Packets that have arrived so far, by CPU.
    fn arrived(&self) -> Result<Vec<u64>> {
        Ok(self.arrived.get(&0, 0)?.iter().map(|[packets, _]| *packets).collect())
    }
}

/// How bursts follow each other.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Packets in one.
    pub burst: u32,
    /// From the begin of one to that of the next.
    pub every: Duration,
}

/// Packets by their time from generator to sink.
pub struct Delays(Vec<u64>);

impl Delays {
    fn of(map: &PerCpuArray<MapData, u64>) -> Result<Self> {
        let sum = |bucket| Ok(map.get(&bucket, 0)?.iter().sum());
        Ok(Self((0..BUCKETS as u32).map(sum).collect::<Result<_>>()?))
    }

    fn since(&self, before: &Self) -> Self {
        Self(self.0.iter().zip(&before.0).map(|(now, then)| now - then).collect())
    }

    /// What a part of the packets do not exceed, in µs, to an eighth.
    pub fn quantile(&self, part: f64) -> f64 {
        let rank = self.0.iter().sum::<u64>() as f64 * part;
        let mut below = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            below += count;
            if below as f64 >= rank && below > 0 {
                return shortest(bucket + 1) as f64 / 1e3;
            }
        }
        f64::NAN
    }
}

/// CPU time of the calling thread, with what the kernel's own thread for packets on this CPU takes over from it.
struct Clock {
    own: Duration,
    softirq: String,
    softirq_ns: u64,
}

impl Clock {
    fn start(cpu: usize) -> Result<Self> {
        let softirq = softirq_thread(cpu)?;
        Ok(Self { softirq_ns: ran(&softirq)?, softirq, own: thread_time()? })
    }

    /// Where the kernel charges packets to nobody, it is the time of its own stopwatch, which runs on while others run.
    fn stop(self, stopwatch: Duration) -> Result<Duration> {
        let own = thread_time()? - self.own;
        let softirq = Duration::from_nanos(ran(&self.softirq)? - self.softirq_ns);
        Ok(if *IRQ_TIME { stopwatch } else { own + softirq })
    }
}

fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Whether the kernel keeps time in interrupts apart from that of threads (`CONFIG_IRQ_TIME_ACCOUNTING`), or does not tell.
static IRQ_TIME: LazyLock<bool> = LazyLock::new(|| {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let boot = format!("/boot/config-{}", release.trim());
    let config = fs::read_to_string(boot).ok().or_else(|| {
        let output = Command::new("zcat").arg("/proc/config.gz").output().ok()?;
        String::from_utf8(output.stdout).ok()
    });
    !config.is_some_and(|config| config.contains("# CONFIG_IRQ_TIME_ACCOUNTING is not set"))
});

/// The directory of `ksoftirqd` of a CPU in `/proc`.
fn softirq_thread(cpu: usize) -> Result<String> {
    let name = format!("ksoftirqd/{cpu}");
    // A kernel thread; its number is among the first.
    let is_it =
        |dir: &String| fs::read_to_string(format!("{dir}/comm")).is_ok_and(|comm| comm.trim() == name);
    (2..1_000).map(|pid| format!("/proc/{pid}")).find(is_it).with_context(|| format!("no {name}"))
}

/// Nanoseconds that a thread has run.
fn ran(dir: &str) -> Result<u64> {
    let stat =
        fs::read_to_string(format!("{dir}/schedstat")).with_context(|| format!("read schedstat of {dir}"))?;
    stat.split(' ').next().unwrap_or_default().parse().context("schedstat")
}

#[cfg(test)]
mod tests {
    use super::super::dataplane::order::bucket;
    use super::*;

    #[test]
    fn frames_have_the_size_that_is_asked_for_and_room_for_what_the_generator_writes() {
        let [tcp4, tcp6, udp4] = [Kind::Tcp4, Kind::Tcp6, Kind::Udp4].map(|kind| kind.both_ways()[0]);
        assert_eq!(Size::Shortest.bytes(&tcp4), (60, tcp4.payload));
        assert_eq!(Size::Shortest.bytes(&tcp6), (80, tcp6.payload));
        assert_eq!(Size::Frame(64).bytes(&udp4), (60, 64 - 4 - 14 - 20 - 8));
        assert_eq!(Size::Packet(1500).bytes(&tcp4), (1514, 1500 - 20 - 20));
    }

    #[test]
    fn a_quantile_is_the_end_of_the_bucket_that_it_is_in() {
        let mut counts = vec![0; BUCKETS];
        counts[bucket(1_000)] = 98;
        counts[bucket(50_000)] = 2;
        let delays = Delays(counts);
        assert_eq!(delays.quantile(0.5), shortest(bucket(1_000) + 1) as f64 / 1e3);
        assert!((50.0..57.0).contains(&delays.quantile(0.99)));
        assert!(Delays(vec![0; BUCKETS]).quantile(0.5).is_nan());
    }
}

//! The generator and the programs under test, in a network namespace of their own, and one timed run of them.
//!
//! ```text
//!  clients ── 192.0.2.2 ── lan [this machine] wan ── 198.51.100.2 ── servers
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{Program as Loaded, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use fwha_common::drop::DropReason;
use fwha_common::route::{PlainRoutes, Prefix};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use super::firewall::{Firewall, ROUTE_GENERATION};
use super::order::Order;
use super::report::Size;
use super::traffic::{Kind, LEAP, Place, Traffic};
use crate::bench::report::machine;

/// MACs of the node's interfaces.
pub const LAN_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const WAN_MAC: [u8; 6] = [2, 0, 0, 0, 2, 1];
/// MACs of the routers beside it.
const LAN_ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 2];
const WAN_ROUTER: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// The daemon's default of `max-flows`: the table is not smaller.
const MAX_FLOWS: u32 = 1_000_000;

/// Lengths of frames, as the generator writes them.
pub const V4_LEN: usize = 60;
const V6_LEN: usize = 80;

/// Where programs are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "XDP",
            Self::Tc => "tc",
        }
    }
}

/// Programs under test; the number is their slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    Empty,
    Router,
    Fwha,
    Parse,
    Lookup,
    LookupShort,
    Touch,
    Ticks,
    CoarseClock,
    ExactClock,
    Counters,
    Settings,
    Rewrite,
    Insert,
}

impl Program {
    const ALL: [Self; 14] = [
        Self::Empty,
        Self::Router,
        Self::Fwha,
        Self::Parse,
        Self::Lookup,
        Self::LookupShort,
        Self::Touch,
        Self::Ticks,
        Self::CoarseClock,
        Self::ExactClock,
        Self::Counters,
        Self::Settings,
        Self::Rewrite,
        Self::Insert,
    ];

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty, with the generator",
            Self::Router => "bare router",
            Self::Fwha => "fwha",
            Self::Parse => "parse, build the key",
            Self::Lookup => "parse, key, lookup",
            Self::LookupShort => "parse, 12-byte key, lookup",
            Self::Touch => "parse, key, lookup, count in the flow",
            Self::Ticks => "count of ticks",
            Self::CoarseClock => "clock of the last tick",
            Self::ExactClock => "exact clock",
            Self::Counters => "two counters per CPU",
            Self::Settings => "four array elements in a row",
            Self::Rewrite => "rewrite, redirect",
            Self::Insert => "insert",
        }
    }

    /// Its function at a hook, but for fwha's own.
    fn function(self, hook: Hook) -> Option<&'static str> {
        Some(match (self, hook) {
            (Self::Empty, Hook::Xdp) => "empty_xdp",
            (Self::Empty, Hook::Tc) => "empty_tc",
            (Self::Router, Hook::Xdp) => "router_xdp",
            (Self::Router, Hook::Tc) => "router_tc",
            (Self::Parse, Hook::Xdp) => "step_parse",
            (Self::Lookup, Hook::Xdp) => "step_lookup",
            (Self::LookupShort, Hook::Xdp) => "step_lookup_short",
            (Self::Touch, Hook::Xdp) => "step_touch",
            (Self::Ticks, Hook::Xdp) => "step_ticks",
            (Self::CoarseClock, Hook::Xdp) => "step_coarse_clock",
            (Self::ExactClock, Hook::Xdp) => "step_exact_clock",
            (Self::Counters, Hook::Xdp) => "step_counters",
            (Self::Settings, Hook::Xdp) => "step_settings",
            (Self::Rewrite, Hook::Xdp) => "step_rewrite",
            (Self::Insert, Hook::Xdp) => "insert",
            _ => return None,
        })
    }

    /// What it must do with a packet.
    pub fn action(self, traffic: &Traffic) -> Action {
        match self {
            Self::Fwha if traffic.forwarded => Action::Redirect,
            Self::Router | Self::Rewrite => Action::Redirect,
            _ => Action::Drop,
        }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Drop,
    Redirect,
    /// Passed, aborted, or the generator failed.
    Other(u32),
}

impl Action {
    /// What a program's return value at a hook means.
    pub fn of(hook: Hook, returned: u32) -> Self {
        // XDP_DROP, XDP_REDIRECT, TCX_DROP, TCX_REDIRECT.
        match (hook, returned) {
            (Hook::Xdp, 1) | (Hook::Tc, 2) => Self::Drop,
            (Hook::Xdp, 4) | (Hook::Tc, 7) => Self::Redirect,
            (_, other) => Self::Other(other),
        }
    }
}

/// A timed run.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Mean time of a packet, with the generator, in ns.
    pub ns: f64,
    /// What became of the last packet; with fwha, of all of them.
    pub action: Action,
    /// Why fwha dropped them, if it did.
    pub reason: Option<DropReason>,
}

/// The loaded programs.
pub struct Rig {
    pub firewall: Firewall,
    bench: Ebpf,
    order: Array<MapData, Words>,
    /// Where programs lie for tail calls: they go with it.
    _slots: [ProgramArray<MapData>; 2],
    sizes: Vec<Size>,
    ifindex: [u32; 2],
    cpu: usize,
    /// How far conversations have moved, in bytes, by family.
    moved: BTreeMap<u64, u64>,
    /// Flows that were opened only to be new.
    fresh: u64,
}

impl Rig {
    /// Loads everything into a new network namespace of the calling thread, which is bound to a CPU; with room for so
    /// many flows of each kind, and in the tables of the steps if there are any.
    pub fn new(cpu: Option<usize>, object: &[u8], fwha: &[u8], flows: u32, steps: bool) -> Result<Self> {
        let cpu = cpu.unwrap_or(std::thread::available_parallelism()?.get() - 1);
        let mut cpus = CpuSet::new();
        cpus.set(cpu)?;
        sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("run on CPU {cpu}"))?;
        unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        lay_interfaces()?;
        let ifindex = [nix::net::if_::if_nametoindex("lan")?, nix::net::if_::if_nametoindex("wan")?];

        let table = MAX_FLOWS.max(Kind::ALL.len() as u32 * flows);
        let firewall = Firewall::new(fwha, table, ifindex[0], ifindex[1])?;
        // As many hash buckets as there, which the kernel makes the next power of two, for fewer flows.
        let fewer = if steps { table.next_power_of_two() / 2 + 1 } else { 1 };
        let mut bench = EbpfLoader::new()
            .map_max_entries("TABLE", fewer)
            .map_max_entries("TABLE_SHORT", fewer)
            .load(object)
            .context("load the generator's object")?;
        let mut load = BTreeMap::new();
        for (name, program) in bench.programs_mut() {
            let start = Instant::now();
            match program {
                Loaded::Xdp(program) => program.load(),
                Loaded::SchedClassifier(program) => program.load(),
                _ => continue,
            }
            .with_context(|| format!("load {name}"))?;
            load.insert(name.to_owned(), start.elapsed());
        }
        let order = bench.take_map("ORDER").context("no map ORDER")?.try_into()?;
        let mut slots: [ProgramArray<MapData>; 2] = [
            bench.take_map("XDP_PROGRAMS").context("no map XDP_PROGRAMS")?.try_into()?,
            bench.take_map("TC_PROGRAMS").context("no map TC_PROGRAMS")?.try_into()?,
        ];
        let mut sizes = firewall.sizes()?;
        for (hook, slots) in [Hook::Xdp, Hook::Tc].into_iter().zip(&mut slots) {
            for program in Program::ALL {
                let Some(name) = program.function(hook) else {
                    continue;
                };
                let loaded = bench.program(name).with_context(|| format!("no program {name}"))?;
                let (fd, info) = match loaded {
                    Loaded::Xdp(loaded) => (loaded.fd()?, loaded.info()?),
                    Loaded::SchedClassifier(loaded) => (loaded.fd()?, loaded.info()?),
                    _ => continue,
                };
                slots.set(program as u32, fd, 0).with_context(|| format!("a place for {name}"))?;
                if program == Program::Router {
                    sizes.push(Size::new(name, &info, load.get(name).copied().unwrap_or_default()));
                }
            }
            slots.set(Program::Fwha as u32, firewall.programs()?[hook as usize], 0)?;
        }
        Ok(Self {
            firewall,
            bench,
            order,
            _slots: slots,
            sizes,
            ifindex,
            cpu,
            moved: BTreeMap::new(),
            fresh: 0,
        })
    }

    /// Sizes of the programs.
    pub fn sizes(&self) -> Vec<Size> {
        self.sizes.clone()
    }

    /// The machine, in a line.
    pub fn machine(&self) -> String {
        format!("{}; on CPU {}", machine(), self.cpu)
    }

    /// Gives `program` packets, and returns the mean time of one.
    ///
    /// # Errors
    ///
    /// Those of a test run; the firewall did not treat all packets as `traffic` says.
    pub fn run(&mut self, program: Program, hook: Hook, traffic: &Traffic, place: Place) -> Result<Run> {
        let (first, random, packets, seed) = match place {
            Place::Sequence(flows) => (flows.start, 0, flows.end - flows.start, 0),
            Place::Random { packets, .. } if traffic.fresh.is_some() => (0, 0, packets, 0),
            Place::Random { flows, packets, seed } => (0, flows, packets, seed),
        };
        let moved = *self.moved.entry(traffic.family).or_default();
        let moved = if traffic.moving { moved } else { 0 };
        let order = Order {
            program: program as u64,
            dst_mac: mac(if traffic.reply { WAN_MAC } else { LAN_MAC }),
            src_mac: mac(if traffic.reply { WAN_ROUTER } else { LAN_ROUTER }),
            family: traffic.family,
            proto: traffic.proto,
            flags: traffic.flags,
            reply: traffic.reply.into(),
            first: traffic.first + u64::from(first) + if traffic.fresh.is_some() { self.fresh } else { 0 },
            random: random.into(),
            payload: traffic.payload,
            advance: traffic.payload,
            sent: traffic.sent + moved,
            heard: traffic.heard + moved,
            made: 0,
            seed: seed.into(),
            ..Order::default()
        };
        if program == Program::Fwha {
            if traffic.moving {
                let moved = moved + u64::from(packets) * traffic.payload;
                ensure!(
                    moved < LEAP,
                    "more packets than the conversations have room for; fewer rounds will do"
                );
                self.moved.insert(traffic.family, moved);
            }
            if traffic.fresh.is_some() {
                self.fresh += u64::from(packets);
            }
        }
        self.order.set(0, order.words(), 0)?;
        let before = self.firewall.verdicts()?;
        let mut run = self.test_run(hook, traffic, packets)?;
        if program == Program::Fwha {
            let verdicts = self.firewall.verdicts()?.since(&before);
            run.reason = verdicts.dropped.first().map(|(reason, _)| *reason);
            let alike = match run.action {
                Action::Redirect => verdicts.forwarded == u64::from(packets) && verdicts.dropped.is_empty(),
                Action::Drop => verdicts.forwarded == 0 && verdicts.dropped.len() == 1,
                Action::Other(_) => false,
            };
            ensure!(alike, "{packets} packets not treated alike, {verdicts:?}: {traffic:?}");
        }
        Ok(run)
    }

    fn test_run(&self, hook: Hook, traffic: &Traffic, packets: u32) -> Result<Run> {
        let mut frame = vec![0; if traffic.family == 4 { V4_LEN } else { V6_LEN }];
        // The kernel looks at the type only, before the generator has its turn.
        frame[12..14].copy_from_slice(if traffic.family == 4 { &[8, 0] } else { &[0x86, 0xdd] });
        let ifindex = self.ifindex[usize::from(traffic.reply)];
        let context = match hook {
            Hook::Xdp => xdp_context(frame.len() as u32, ifindex),
            Hook::Tc => tc_context(ifindex),
        };
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let result = match hook {
            Hook::Xdp => {
                let program: &Xdp = self.bench.program("generate_xdp").context("no generator")?.try_into()?;
                program.test_run(options)
            }
            Hook::Tc => {
                let program: &SchedClassifier =
                    self.bench.program("generate_tc").context("no generator")?.try_into()?;
                program.test_run(options)
            }
        }
        .context("a test run")?;
        let action = Action::of(hook, result.return_value);
        Ok(Run { ns: result.duration.as_secs_f64() * 1e9, action, reason: None })
    }
}

/// An [`Order`] as the map has it.
pub type Words = [u64; size_of::<Order>() / 8];

impl Order {
    /// The words, in the order of its fields.
    pub fn words(&self) -> Words {
        let mut words = [0; size_of::<Words>() / 8];
        let mut place = 0;
        let mut put = |fields: &[u64]| {
            words[place..place + fields.len()].copy_from_slice(fields);
            place += fields.len();
        };
        put(&[self.program, self.dst_mac, self.src_mac, self.family, self.proto, self.flags, self.reply]);
        put(&[self.first, self.random, self.payload, self.advance, self.sent, self.heard, self.made]);
        put(&[self.seed, self.device, self.mix, self.burst, self.every, self.due, self.steps]);
        put(&[self.block, self.first_step, self.flows]);
        put(&self.step);
        put(&self.step_sequence);
        self.way.iter().for_each(|way| put(way));
        words
    }
}

pub fn mac(b: [u8; 6]) -> u64 {
    u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], 0, 0])
}

/// A `struct xdp_md` of `linux/bpf.h`: `data_end` and `ingress_ifindex`.
fn xdp_context(len: u32, ifindex: u32) -> Vec<u8> {
    [0, len, 0, ifindex, 0, 0].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}

/// A `struct __sk_buff` of `linux/bpf.h`, up to `ifindex`: `ingress_ifindex` and `ifindex`.
pub fn tc_context(ifindex: u32) -> Vec<u8> {
    let mut words = [0u32; 11];
    words[9] = ifindex;
    words[10] = ifindex;
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn lay_interfaces() -> Result<()> {
    for family in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{family}"), "1").with_context(|| format!("set {family}"))?;
    }
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start ip")?;
    let commands = "link add lan type veth peer name lan-peer
link add wan type veth peer name wan-peer
link set lan address 02:00:00:00:01:01 up
link set wan address 02:00:00:00:02:01 up
link set lan-peer up
link set wan-peer up
address add 192.0.2.1/24 dev lan
address add 198.51.100.1/24 dev wan
address add 2001:db8:a::1/64 dev lan nodad
address add 2001:db8:b::1/64 dev wan nodad
neighbour add 192.0.2.2 lladdr 02:00:00:00:01:02 dev lan
neighbour add 198.51.100.2 lladdr 02:00:00:00:02:02 dev wan
neighbour add 2001:db8:a::2 lladdr 02:00:00:00:01:02 dev lan
neighbour add 2001:db8:b::2 lladdr 02:00:00:00:02:02 dev wan
route add 10.1.0.0/16 via 192.0.2.2
route add 10.2.0.0/24 via 198.51.100.2
route add 2001:db8:1::/64 via 2001:db8:a::2
route add 2001:db8:2::/64 via 2001:db8:b::2
";
    child.stdin.take().context("input of ip")?.write_all(commands.as_bytes()).context("tell ip")?;
    let output = child.wait_with_output().context("wait for ip")?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What the daemon would say of the routes of a family: the node's own addresses first, which are for the kernel.
pub fn plain_routes(v6: bool, lan: u32, wan: u32) -> PlainRoutes {
    let listed: &[(&str, u32, u32)] = if v6 {
        &[
            ("2001:db8:a::1", 128, 0),
            ("2001:db8:a::", 128, 0),
            ("2001:db8:b::1", 128, 0),
            ("2001:db8:b::", 128, 0),
            ("2001:db8:a::", 64, lan),
            ("2001:db8:b::", 64, wan),
            ("2001:db8:1::", 64, lan),
            ("2001:db8:2::", 64, wan),
            ("fe80::", 64, 0),
            ("ff00::", 8, 0),
        ]
    } else {
        &[
            ("192.0.2.1", 32, 0),
            ("192.0.2.255", 32, 0),
            ("198.51.100.1", 32, 0),
            ("198.51.100.255", 32, 0),
            ("192.0.2.0", 24, lan),
            ("198.51.100.0", 24, wan),
            ("10.2.0.0", 24, wan),
            ("10.1.0.0", 16, lan),
        ]
    };
    let mut routes = PlainRoutes { generation: ROUTE_GENERATION, ..PlainRoutes::NONE };
    for ((address, len, ifindex), prefix) in listed.iter().zip(&mut routes.prefixes) {
        let address: IpAddr = address.parse().expect("an address");
        *prefix = Prefix::new(address, *len as u8, *ifindex);
        routes.count += 1;
    }
    routes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_in_the_order_of_the_fields() {
        let order = Order {
            program: 1,
            dst_mac: 2,
            src_mac: 3,
            family: 4,
            proto: 5,
            flags: 6,
            reply: 7,
            first: 8,
            random: 9,
            payload: 10,
            advance: 11,
            sent: 12,
            heard: 13,
            made: 14,
            seed: 15,
            device: 16,
            mix: 17,
            burst: 18,
            every: 19,
            due: 20,
            steps: 21,
            block: 22,
            first_step: 23,
            flows: 24,
            step: [25, 26, 27, 28, 29],
            step_sequence: [30, 31, 32, 33, 34],
            way: [[35, 36, 37], [38, 39, 40]],
        };
        assert_eq!(std::mem::offset_of!(Order, way) / 8, 34);
        assert!(order.words().iter().zip(1..).all(|(word, number)| *word == number));
    }
}

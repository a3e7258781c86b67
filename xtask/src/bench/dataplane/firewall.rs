//! fwha's own programs, set up as the daemon would: the only place here that knows their maps.

use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, RingBuf};
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use fwha_common::bloom;
use fwha_common::drop::DropReason;
use fwha_common::embryonic::{EmbryonicSet, Fingerprints};
use fwha_common::flow::{FLOW_STATES, TIMEOUT_CLASSES};
use fwha_common::group::Group;
use fwha_common::route::PlainRoutes;
use fwha_common::rule::{Action, Decision, Interface, InterfaceKey, Rule};
use fwha_common::ruleset::{self, Ruleset, RulesetMap};
use fwha_common::settings::{COUNTERS, Counter, Settings, Timeouts, name};

use super::report::{Memory, Size};
use super::rig::{LAN_MAC, WAN_MAC, plain_routes};

/// No flow expires while others are measured: five days.
const TIMEOUT_NS: u64 = 432_000 * 1_000_000_000;

/// The route generation, in which all is measured.
pub const ROUTE_GENERATION: u32 = 1;

/// Zones.
const LAN: u8 = 1;
const WAN: u8 = 2;

/// The loaded programs.
pub struct Firewall {
    bpf: Ebpf,
    events: Option<RingBuf<MapData>>,
    embryonic: Array<MapData, EmbryonicSet>,
    /// An older build, to compare with, has none.
    fingerprints: Option<Array<MapData, Fingerprints>>,
    counters: PerCpuArray<MapData, [u64; COUNTERS]>,
    drops: PerCpuArray<MapData, u64>,
    /// How long the verifier and the compiler of the kernel took.
    load: [(&'static str, Duration); 2],
}

impl Firewall {
    /// Loads the programs, with room for so many flows, a zone on each interface, and a rule that lets clients out.
    pub fn new(object: &[u8], flows: u32, lan: u32, wan: u32) -> Result<Self> {
        let last_word = bloom::last_word(flows);
        let mut bpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, flows)
            // An older build, to compare with, has no filter.
            .map_max_entries(name::BLOOM, last_word + 1)
            .map_max_entries(name::BLOOM_RECENT, last_word + 1)
            .override_global(name::BLOOM_LAST, &last_word, false)
            .load(object)
            .context("load the firewall's object")?;
        let start = Instant::now();
        let xdp: &mut Xdp = bpf.program_mut(name::XDP_INGRESS).context("no XDP program")?.try_into()?;
        xdp.load().context("load the firewall's XDP program")?;
        let xdp_time = start.elapsed();
        let start = Instant::now();
        let tc: &mut SchedClassifier =
            bpf.program_mut(name::TC_INGRESS).context("no tc program")?.try_into()?;
        tc.load().context("load the firewall's tc program")?;
        let tc_time = start.elapsed();

        let mut timeouts: Array<_, Timeouts> = map(&mut bpf, name::TIMEOUTS)?.try_into()?;
        let kept = Timeouts {
            ns: [[TIMEOUT_NS; FLOW_STATES]; TIMEOUT_CLASSES],
            tcp_max_retrans_ns: TIMEOUT_NS,
            tcp_unacknowledged_ns: TIMEOUT_NS,
        };
        timeouts.set(0, kept, 0)?;
        let mut groups: Array<_, Group> = map(&mut bpf, name::GROUPS)?.try_into()?;
        let group = Group { lease_until_ns: u64::MAX, since_ns: 0, role: Group::ACTIVE, term: 1 };
        groups.set(0, group, 0)?;
        let mut interfaces: HashMap<_, InterfaceKey, Interface> =
            map(&mut bpf, name::INTERFACES)?.try_into()?;
        for (ifindex, zone, mac) in [(lan, LAN, LAN_MAC), (wan, WAN, WAN_MAC)] {
            let interface = Interface { zone, mac, device: ifindex, trunk: ifindex, ..Interface::default() };
            interfaces.insert(InterfaceKey::untagged(ifindex), interface, 0)?;
        }
        let rule =
            Rule { from: LAN, ..Rule::all(Decision { action: Action::Accept as u8, ..Decision::default() }) };
        let mut rules: RulesetMap = map(&mut bpf, name::RULESETS)?.try_into()?;
        ruleset::load(&mut rules, 1, &Ruleset::compile(&[rule])?).context("load the ruleset")?;
        // An older build, to compare with, has no such map.
        if let Some(routes) = bpf.take_map(name::PLAIN_ROUTES) {
            let mut routes: Array<_, PlainRoutes> = routes.try_into()?;
            for v6 in [false, true] {
                routes.set(PlainRoutes::index(v6, ROUTE_GENERATION), plain_routes(v6, lan, wan), 0)?;
            }
        }
        let mut settings: Array<_, Settings> = map(&mut bpf, name::SETTINGS)?.try_into()?;
        let present = Settings {
            bucket_key: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
            route_generation: ROUTE_GENERATION,
            ruleset_generation: 1,
            node: 1,
            ..Settings::default()
        };
        settings.set(0, present, 0)?;
        Ok(Self {
            events: RingBuf::try_from(map(&mut bpf, name::EVENTS)?).ok(),
            embryonic: map(&mut bpf, name::EMBRYONIC)?.try_into()?,
            fingerprints: bpf.take_map(name::FINGERPRINTS).map(TryInto::try_into).transpose()?,
            counters: map(&mut bpf, name::COUNTERS)?.try_into()?,
            drops: map(&mut bpf, name::DROPS)?.try_into()?,
            load: [(name::XDP_INGRESS, xdp_time), (name::TC_INGRESS, tc_time)],
            bpf,
        })
    }

    /// The programs for zone interfaces, at XDP and at tc.
    pub fn programs(&self) -> Result<[&ProgramFd; 2]> {
        let xdp: &Xdp = self.bpf.program(name::XDP_INGRESS).context("no XDP program")?.try_into()?;
        let tc: &SchedClassifier = self.bpf.program(name::TC_INGRESS).context("no tc program")?.try_into()?;
        Ok([xdp.fd()?, tc.fd()?])
    }

    /// Sizes of the programs.
    pub fn sizes(&self) -> Result<Vec<Size>> {
        let [xdp, tc] = self.load;
        let size = |info, (name, load)| Size::new(name, &info, load);
        let program = |name| self.bpf.program(name).context("no such program");
        let xdp_program: &Xdp = program(xdp.0)?.try_into()?;
        let tc_program: &SchedClassifier = program(tc.0)?.try_into()?;
        Ok(vec![size(xdp_program.info()?, xdp), size(tc_program.info()?, tc)])
    }

    /// Reads the events away, as the daemon would.
    pub fn drain(&mut self) {
        if let Some(events) = &mut self.events {
            while events.next().is_some() {}
        }
    }

    /// Forgets all flows that nobody has answered.
    pub fn clear_embryonic(&mut self) -> Result<()> {
        for set in 0..self.embryonic.len() {
            if let Some(fingerprints) = &mut self.fingerprints {
                fingerprints.set(set, 0, 0)?;
            }
            self.embryonic.set(set, EmbryonicSet::default(), 0).context("forget new flows")?;
        }
        Ok(())
    }

    /// Memory of the table of established flows.
    pub fn flow_memory(&self) -> Result<Memory> {
        let Map::HashMap(flows) = self.bpf.map(name::FLOWS).context("no table of flows")? else {
            bail!("the table of flows is no hash map");
        };
        let fd = flows.fd().as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).context("read fdinfo")?;
        let field = |name: &str| -> Result<u64> {
            let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).with_context(|| format!("{name} in fdinfo"))
        };
        Ok(Memory {
            elements: field("max_entries")?,
            bytes: field("memlock")?,
            key: field("key_size")?,
            value: field("value_size")?,
        })
    }

    /// Packets so far that were forwarded, and that were dropped, by reason.
    pub fn verdicts(&self) -> Result<Verdicts> {
        Ok(Verdicts {
            forwarded: self.counter(Counter::Forwarded)?,
            dropped: DropReason::ALL
                .iter()
                .map(|&reason| Ok((reason, self.drops.get(&(reason as u32), 0)?.iter().sum())))
                .collect::<Result<_>>()?,
        })
    }

    /// Events that found no room.
    pub fn events_lost(&self) -> Result<u64> {
        self.counter(Counter::EventsLost)
    }

    fn counter(&self, counter: Counter) -> Result<u64> {
        Ok(self.counters.get(&0, 0)?.iter().map(|counters| counters[counter as usize]).sum())
    }
}

/// What the firewall did with packets, in packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// Forwarded.
    pub forwarded: u64,
    /// Dropped, by reason.
    pub dropped: Vec<(DropReason, u64)>,
}

impl Verdicts {
    /// What was done since `before`; reasons without a packet are left out.
    pub fn since(&self, before: &Self) -> Self {
        let rise = self.dropped.iter().zip(&before.dropped).map(|(now, then)| (now.0, now.1 - then.1));
        Self {
            forwarded: self.forwarded - before.forwarded,
            dropped: rise.filter(|(_, packets)| *packets > 0).collect(),
        }
    }
}

fn map(bpf: &mut Ebpf, name: &str) -> Result<Map> {
    bpf.take_map(name).with_context(|| format!("no map {name}"))
}

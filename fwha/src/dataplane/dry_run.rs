//! What would become of a packet: the ingress program itself says it.
//!
//! The program is loaded once more, attached to nothing, and the kernel runs it with a frame that nobody sent
//! (`BPF_PROG_TEST_RUN`). What it only reads it has from the maps in force: rules, groups, interfaces, routes, settings. What it
//! writes are tables of its own: flows, counters, sources, events. Into these comes beforehand what is known of the packet's flow
//! and of its ends. So the verdict is that of the data plane, and nothing of it is to be seen there.
//!
//! Loading takes the verifier a second or more, the first time that somebody asks. From then on the tables stay: a MiB or two, and
//! as much again for some CPUs.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aya::{Ebpf, maps};
use fwha_common::{
    drop::DropReason,
    embryonic::{EmbryonicPlace, EmbryonicSet, Fingerprints, Site},
    flow::{Flow, FlowKey},
    limit::Source,
    settings::{Counter, name},
};

use super::{
    DataplaneError, Maps,
    maps::{EmbryonicMap, FlowMap, map_error},
    object,
};
use crate::sys::{
    Pod,
    bpf::{self, Map, PerCpuCounters, Write},
};

/// The maps that the program only reads.
const SHARED: [&str; 10] = [
    name::GROUPS,
    name::ZONE_BUCKETS,
    name::VIPS,
    name::VIRTUAL_MACS,
    name::RULESETS,
    name::INTERFACES,
    name::PLAIN_ROUTES,
    name::SETTINGS,
    name::TIMEOUTS,
    name::LIMITS,
];

/// Elements, or bytes of a ring, of those that it writes and that are larger by default: there is one packet at a time.
const SIZES: [(&str, u32); 8] = [
    (name::CLAIMS, 16),
    (name::FLOWS, 64),
    (name::NODE_FLOWS, 1024),
    (name::NODE_GUESTS, 1024),
    (name::FRAGMENTS, 1024),
    (name::SOURCES, 1024),
    (name::EVENTS, 1 << 16),
    (name::DROP_SAMPLES, 1 << 16),
];

/// A packet that nobody sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The interface that it comes in by.
    pub ifindex: u32,
    /// The frame.
    pub frame: Vec<u8>,
    /// The key of its flow.
    pub key: FlowKey,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The program sends it on.
    Forwarded,
    /// The kernel's stack has it.
    Passed,
    /// The SYN proxy answers it.
    SynAnswered,
    /// It is dropped.
    Dropped(DropReason),
}

/// What the program says of a packet, and what it leaves in its tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What becomes of it.
    pub exit: Exit,
    /// The counter of the rule that decided, if one did: [`fwha_common::rule::Decision::index`].
    pub rule: Option<u32>,
    /// The flow through this node that it belongs to, as it is afterwards.
    pub flow: Option<Flow>,
    /// The flow of the node itself that it belongs to, as it is afterwards.
    pub node_flow: Option<Flow>,
}

/// Judges packets that nobody sent.
#[derive(Debug)]
pub struct DryRun {
    /// Where the maps in force are pinned.
    pins: PathBuf,
    maps: Arc<Maps>,
    stage: Mutex<Option<Stage>>,
}

impl DryRun {
    pub(super) fn new(pins: PathBuf, maps: Arc<Maps>) -> Self {
        Self { pins, maps, stage: Mutex::new(None) }
    }

    /// Has a packet judged. Blocks, for a second or so the first time.
    ///
    /// # Errors
    ///
    /// The program cannot be loaded, or the kernel does not run it: `ENODEV` if there is no such interface.
    pub fn judge(&self, packet: &Packet) -> Result<Outcome, DataplaneError> {
        // What a panic could have left half-done is cleared before the next packet.
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        let stage = match &mut *stage {
            Some(stage) => stage,
            none => none.insert(Stage::load(&self.pins)?),
        };
        stage.set(packet, &self.maps)?;
        stage.run(packet)
    }
}

/// The program, and the tables that it has for itself.
#[derive(Debug)]
struct Stage {
    program: OwnedFd,
    flows: FlowMap,
    embryonic: EmbryonicMap,
    fingerprints: Map<u32, Fingerprints>,
    node_tables: [FlowMap; 2],
    sources: Map<[u32; 4], Source>,
    rule_hits: PerCpuCounters,
    counters: PerCpuCounters,
    drops: PerCpuCounters,
}

impl Stage {
    fn load(pins: &Path) -> Result<Self, DataplaneError> {
        let (program, ebpf) = object::load_apart(pins, &SHARED, &SIZES)?;
        // The main table is asked about every packet.
        table(&ebpf, name::BLOOM)?.update(&0u32, &u64::MAX, Write::Any).map_err(map_error(name::BLOOM))?;
        Ok(Self {
            program,
            flows: table(&ebpf, name::FLOWS)?,
            embryonic: table(&ebpf, name::EMBRYONIC)?,
            fingerprints: table(&ebpf, name::FINGERPRINTS)?,
            node_tables: [table(&ebpf, name::NODE_GUESTS)?, table(&ebpf, name::NODE_FLOWS)?],
            sources: table(&ebpf, name::SOURCES)?,
            rule_hits: counters(&ebpf, name::RULE_HITS)?,
            counters: counters(&ebpf, name::COUNTERS)?,
            drops: counters(&ebpf, name::DROPS)?,
        })
    }

    /// Makes the tables those that the packet would find, as far as they concern it.
    fn set(&self, packet: &Packet, live: &Maps) -> Result<(), DataplaneError> {
        let key = &packet.key;
        copy(&self.flows, key, live.flows().lookup(key).map_err(map_error(name::FLOWS))?, name::FLOWS)?;
        for (table, live) in self.node_tables.iter().zip(live.node_tables()) {
            let flow = live.lookup(key).map_err(map_error(name::NODE_FLOWS))?;
            copy(table, key, flow, name::NODE_FLOWS)?;
        }
        for end in [&key.addr_a, &key.addr_b] {
            copy(&self.sources, end, live.source(end)?, name::SOURCES)?;
        }
        let (mut fingerprints, mut set) = (0, EmbryonicSet::default());
        if let Some(flow) = live.embryonic_flow(key)? {
            let site = Site::new(key.hash(&live.settings()?.bucket_key), self.embryonic.max_entries() - 1);
            fingerprints = Fingerprints::from(site.fingerprint);
            set.places[0] = EmbryonicPlace { key: *key, flow, ..EmbryonicPlace::default() };
        }
        copy(&self.fingerprints, &0, Some(fingerprints), name::FINGERPRINTS)?;
        copy(&self.embryonic, &0, Some(set), name::EMBRYONIC)
    }

    fn run(&self, packet: &Packet) -> Result<Outcome, DataplaneError> {
        let counted = || -> Result<[Vec<u64>; 3], DataplaneError> {
            Ok([
                self.counters.sums().map_err(map_error(name::COUNTERS))?,
                self.drops.sums().map_err(map_error(name::DROPS))?,
                self.rule_hits.sums().map_err(map_error(name::RULE_HITS))?,
            ])
        };
        let before = counted()?;
        bpf::test_run(self.program.as_fd(), &packet.frame, packet.ifindex)
            .map_err(DataplaneError::TestRun)?;
        let after = counted()?;
        let risen = |of: usize| before[of].iter().zip(&after[of]).position(|(before, after)| before != after);
        let counts = |counter: Counter| before[0].get(counter as usize) != after[0].get(counter as usize);
        let exit = match risen(1).and_then(|reason| DropReason::from_u32(reason as u32)) {
            Some(reason) => Exit::Dropped(reason),
            None if counts(Counter::Forwarded) => Exit::Forwarded,
            None if counts(Counter::SynAnswered) => Exit::SynAnswered,
            None if counts(Counter::Passed) => Exit::Passed,
            None => return Err(DataplaneError::TestRun(io::Error::other("it counts no exit"))),
        };
        let key = &packet.key;
        let main = self.flows.lookup(key).map_err(map_error(name::FLOWS))?;
        let set = self.embryonic.lookup(&0).map_err(map_error(name::EMBRYONIC))?;
        let young = set.and_then(|set| set.flows().find_map(|(k, flow)| (k == key).then_some(*flow)));
        let [guests, own] = &self.node_tables;
        let of_node = |table: &FlowMap| table.lookup(key).map_err(map_error(name::NODE_FLOWS));
        let node_flow = of_node(own)?.or(of_node(guests)?);
        Ok(Outcome {
            exit,
            rule: risen(2).map(|index| index as u32),
            flow: main.or(young),
            node_flow: node_flow.filter(|flow| !flow.is_ended()),
        })
    }
}

/// Makes an element of a map what it is elsewhere, or that it is not there.
fn copy<K: Pod, V: Pod>(
    map: &Map<K, V>,
    key: &K,
    value: Option<V>,
    name: &'static str,
) -> Result<(), DataplaneError> {
    match value {
        Some(value) => map.update(key, &value, Write::Any),
        None => map.delete(key).map(drop),
    }
    .map_err(map_error(name))
}

fn fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, DataplaneError> {
    use maps::Map::{Array, HashMap, LruHashMap, PerCpuArray};
    match ebpf.map(name) {
        Some(Array(map) | HashMap(map) | LruHashMap(map) | PerCpuArray(map)) => {
            map.fd().as_fd().try_clone_to_owned().map_err(map_error(name))
        }
        _ => Err(DataplaneError::Object(name.into())),
    }
}

fn table<K: Pod, V: Pod>(ebpf: &Ebpf, name: &'static str) -> Result<Map<K, V>, DataplaneError> {
    Map::new(fd(ebpf, name)?.as_fd()).map_err(map_error(name))
}

fn counters(ebpf: &Ebpf, name: &'static str) -> Result<PerCpuCounters, DataplaneError> {
    PerCpuCounters::new(fd(ebpf, name)?.as_fd()).map_err(map_error(name))
}

//! Typed access to the maps: each call one system call, from any thread.

use std::{
    collections::{HashMap, HashSet},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use aya::maps::{MapData, MapError};
use fwha_common::{
    MAX_GROUPS,
    capture::Capture,
    embryonic::{EmbryonicSet, Fingerprints, PLACES, Site},
    flow::{Flow, FlowKey, proto},
    group::{BucketRange, Claim, Group, Vip, VipKey, VirtualMac, VirtualMacKey, ZONE_PAIRS},
    limit::{Limits, Source},
    route::{PlainRoutes, Prefix},
    rule::{Decision, Interface, InterfaceKey, Rule},
    ruleset::{self, MAX_RULES, Ruleset, RulesetMap},
    settings::{Settings, Timeouts, name},
    sweep::{Doomed, SWEEP_MAX, Sweep},
};
use tracing::warn;

use super::{Bloom, DataplaneError, pins::PinDir};
use crate::sys::{
    Pod,
    bpf::{self, Map, PerCpuCounters, Walk, Write, Written},
    zeroed,
};

/// The least that `BPF_PROG_TEST_RUN` takes, in bytes.
const FRAME_LEN: usize = 64;

/// The loopback interface of every network namespace (`LOOPBACK_IFINDEX` in include/net/flow.h).
const LOOPBACK: u32 = 1;

/// A table of flows.
pub type FlowMap = Map<FlowKey, Flow>;

/// An incremental walk over a table of flows.
pub type FlowWalk = Walk<FlowKey, Flow>;

/// The table of flows that nobody has answered.
pub(super) type EmbryonicMap = Map<u32, EmbryonicSet>;

/// An incremental walk over it, set by set.
type EmbryonicWalk = Walk<u32, EmbryonicSet>;

/// What is known of sources, by address as in a flow key.
type SourceMap = Map<[u32; 4], Source>;

/// The route generation that follows; 0 is none, of next hops that were never looked up.
pub fn route_generation_after(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

/// The maps of a data plane.
#[derive(Debug)]
pub struct Maps {
    flows: FlowMap,
    bloom: Bloom,
    embryonic: EmbryonicMap,
    fingerprints: Map<u32, Fingerprints>,
    node_tables: [FlowMap; 2],
    groups: Map<u32, Group>,
    zone_buckets: Map<u32, BucketRange>,
    vips: Map<VipKey, Vip>,
    claims: Map<VipKey, Claim>,
    virtual_macs: Map<VirtualMacKey, VirtualMac>,
    rulesets: Mutex<RulesetMap>,
    interfaces: Map<InterfaceKey, Interface>,
    plain_routes: Map<u32, PlainRoutes>,
    settings: Map<u32, Settings>,
    timeouts: Map<u32, Timeouts>,
    limits: Map<u32, Limits>,
    sources: SourceMap,
    rule_hits: PerCpuCounters,
    counters: PerCpuCounters,
    drops: PerCpuCounters,
    event_loss: PerCpuCounters,
    /// Orders to the program beside, one at a time.
    sweep: Mutex<Map<u32, Sweep>>,
    sweeper: OwnedFd,
    pub(super) capture: Map<u32, Capture>,
    pub(super) drop_samples: OwnedFd,
    /// Whether there is a capture, of which there is one at a time.
    pub(super) capturing: AtomicBool,
    /// Several threads change settings; each change is read, modify, write.
    settings_lock: Mutex<()>,
}

/// The flows of a set of embryonic ones that programs find there by its fingerprints.
fn found(set: &EmbryonicSet, known: Fingerprints) -> impl Iterator<Item = (&FlowKey, &Flow)> {
    let places = set.places.iter().zip(known.to_le_bytes());
    places.filter(|(_, fingerprint)| *fingerprint != 0).filter_map(|(place, _)| place.get())
}

/// Makes these the elements of a map, and no others. Those that stay are there all the time.
fn replace<K: Pod + PartialEq, V: Pod>(map: &Map<K, V>, elements: &[(K, V)]) -> io::Result<()> {
    for (key, value) in elements {
        map.update(key, value, Write::Any)?;
    }
    let mut gone = Vec::new();
    let mut walk = Walk::new(map.max_entries() as usize);
    while let Some((known, _)) = walk.next_chunk(map)? {
        gone.extend(known.iter().filter(|k| elements.iter().all(|(i, _)| i != *k)));
    }
    map.delete_batch(&gone).map(drop)
}

fn rulesets(pins: &PinDir) -> Result<RulesetMap, MapError> {
    aya::maps::Map::ArrayOfMaps(MapData::from_pin(pins.map(name::RULESETS))?).try_into()
}

/// What the rules of a generation say; nothing of generation 0.
fn decisions_of(rulesets: &RulesetMap, generation: u32) -> Result<Vec<Decision>, DataplaneError> {
    if generation == 0 {
        Ok(Vec::new())
    } else {
        ruleset::decisions_of(rulesets, generation).map_err(ruleset_error)
    }
}

fn ruleset_error(error: MapError) -> DataplaneError {
    map_error(name::RULESETS)(io::Error::other(error))
}

impl Maps {
    pub(super) fn open(pins: &PinDir, sweeper: BorrowedFd<'_>) -> Result<Self, DataplaneError> {
        fn map<K: Pod, V: Pod>(pins: &PinDir, name: &'static str) -> Result<Map<K, V>, DataplaneError> {
            bpf::open_pinned(&pins.map(name)).and_then(|fd| Map::new(fd.as_fd())).map_err(map_error(name))
        }
        let counters = |name| {
            bpf::open_pinned(&pins.map(name))
                .and_then(|fd| PerCpuCounters::new(fd.as_fd()))
                .map_err(map_error(name))
        };
        let settings: Map<u32, Settings> = map(pins, name::SETTINGS)?;
        let in_force = settings.lookup(&0).map_err(map_error(name::SETTINGS))?.unwrap_or_default();
        Ok(Self {
            flows: map(pins, name::FLOWS)?,
            bloom: Bloom::open(pins, in_force.bucket_key)?,
            embryonic: map(pins, name::EMBRYONIC)?,
            fingerprints: map(pins, name::FINGERPRINTS)?,
            node_tables: [map(pins, name::NODE_GUESTS)?, map(pins, name::NODE_FLOWS)?],
            groups: map(pins, name::GROUPS)?,
            zone_buckets: map(pins, name::ZONE_BUCKETS)?,
            vips: map(pins, name::VIPS)?,
            claims: map(pins, name::CLAIMS)?,
            virtual_macs: map(pins, name::VIRTUAL_MACS)?,
            rulesets: Mutex::new(rulesets(pins).map_err(ruleset_error)?),
            interfaces: map(pins, name::INTERFACES)?,
            plain_routes: map(pins, name::PLAIN_ROUTES)?,
            settings,
            timeouts: map(pins, name::TIMEOUTS)?,
            limits: map(pins, name::LIMITS)?,
            sources: map(pins, name::SOURCES)?,
            rule_hits: counters(name::RULE_HITS)?,
            counters: counters(name::COUNTERS)?,
            drops: counters(name::DROPS)?,
            event_loss: counters(name::EVENT_LOSS)?,
            sweep: Mutex::new(map(pins, name::SWEEP)?),
            sweeper: sweeper.try_clone_to_owned().map_err(map_error(name::SWEEP))?,
            capture: map(pins, name::CAPTURE)?,
            drop_samples: bpf::open_pinned(&pins.map(name::DROP_SAMPLES))
                .map_err(map_error(name::DROP_SAMPLES))?,
            capturing: AtomicBool::new(false),
            settings_lock: Mutex::new(()),
        })
    }

    /// The main table: lookups, walks, deletions. Flows come into it by [`Self::put_flow`] and [`Self::put_flows`].
    pub fn flows(&self) -> &FlowMap {
        &self.flows
    }

    /// Which TCP flows there may be in the main table.
    pub fn bloom(&self) -> &Bloom {
        &self.bloom
    }

    /// Puts a flow into the main table.
    ///
    /// # Errors
    ///
    /// Those of [`Map::update`]: `E2BIG` if there is no room.
    pub fn put_flow(&self, key: &FlowKey, flow: &Flow, write: Write) -> io::Result<()> {
        self.bloom.around([key], || self.flows.update(key, flow, write))
    }

    /// Puts flows into the main table, in place of others of their keys.
    ///
    /// # Errors
    ///
    /// Those of [`Map::update_batch`].
    pub fn put_flows(&self, keys: &[FlowKey], flows: &[Flow]) -> io::Result<Written> {
        self.bloom.around(keys, || self.flows.update_batch(keys, flows))
    }

    /// Deletes flows from the main table, each if it still is as it was: cheaper than one by one. Says of each whether this
    /// deleted it.
    ///
    /// Between the look at a flow and its deletion another one may come under its key, and is deleted in its place. The
    /// event that tells of that one is written before, or some nanoseconds later.
    ///
    /// # Errors
    ///
    /// Those of the system calls. What was deleted until then is not known.
    pub fn sweep(&self, flows: &[Doomed]) -> Result<Vec<bool>, DataplaneError> {
        let map = self.sweep.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gone = Vec::with_capacity(flows.len());
        let mut sweep: Box<Sweep> = Box::new(zeroed());
        for flows in flows.chunks(SWEEP_MAX) {
            sweep.count = flows.len() as u32;
            sweep.flows[..flows.len()].copy_from_slice(flows);
            map.update(&0, &sweep, Write::Any).map_err(map_error(name::SWEEP))?;
            // A frame and an interface there must be; the program looks at neither.
            bpf::test_run(self.sweeper.as_fd(), &[0; FRAME_LEN], LOOPBACK)
                .map_err(DataplaneError::TestRun)?;
            if let Some(answer) = map.lookup(&0).map_err(map_error(name::SWEEP))? {
                gone.extend(answer.flows[..flows.len()].iter().map(|doomed| doomed.gone != 0));
            }
        }
        Ok(gone)
    }

    /// Flows that begin or end at this node: its guests', and its own. In this order: a connection that is established while
    /// they are walked moves from the first table to the second.
    pub fn node_tables(&self) -> &[FlowMap; 2] {
        &self.node_tables
    }

    /// The flow of this node with a key.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn node_flow(&self, key: &FlowKey) -> io::Result<Option<Flow>> {
        let [guests, own] = &self.node_tables;
        let guest = guests.lookup(key)?;
        Ok(own.lookup(key)?.or(guest))
    }

    /// Number of embryonic flows. Walks the table: for `status`, not for a loop.
    ///
    /// # Errors
    ///
    /// Those of the walk.
    pub fn embryonic_count(&self) -> Result<usize, DataplaneError> {
        let mut n = 0;
        let counted = self.each_embryonic(1024, |flows| {
            n += flows.count();
            true
        });
        counted.map_err(map_error(name::EMBRYONIC))?;
        Ok(n)
    }

    /// Calls `see` with the flows that nobody has answered yet and that programs find, some at a time, of `chunk` places; until it
    /// says that it has seen enough. One that is just being written may be seen with a part of that which was in its place.
    ///
    /// # Errors
    ///
    /// Those of the walks.
    pub fn each_embryonic(
        &self,
        chunk: usize,
        mut see: impl FnMut(&mut dyn Iterator<Item = (&FlowKey, &Flow)>) -> bool,
    ) -> io::Result<()> {
        let sets = (chunk / PLACES as usize).max(1);
        // Two arrays of as many elements, in steps of as many.
        let (mut walk, mut beside) = (EmbryonicWalk::new(sets), Walk::new(sets));
        while let (Some((_, sets)), Some((_, known))) =
            (walk.next_chunk(&self.embryonic)?, beside.next_chunk(&self.fingerprints)?)
        {
            if !see(&mut sets.iter().zip(known).flat_map(|(set, known)| found(set, *known))) {
                break;
            }
        }
        Ok(())
    }

    /// Puts a flow that nobody has answered into a set, alone, under a fingerprint that is not its own.
    #[cfg(test)]
    pub fn put_embryonic(&self, set: u32, key: &FlowKey, flow: &Flow) -> io::Result<()> {
        let mut places = EmbryonicSet::default();
        (places.places[7].key, places.places[7].flow) = (*key, *flow);
        self.embryonic.update(&set, &places, Write::Any)?;
        self.fingerprints.update(&set, &(1 << 56), Write::Any)
    }

    /// Has a flow of the node itself ended, if it is still this one. One whose packets do not tell that they begin it (TCP, SCTP)
    /// stays in its table, and nothing belongs to it; others are deleted, as their next packet begins anew either way. Whether
    /// this did so. What the programs write into it in the same moment may be lost.
    ///
    /// # Errors
    ///
    /// Those of the lookup and the update.
    pub fn end_node_flow(&self, key: &FlowKey, seen: &Flow) -> io::Result<bool> {
        let mut done = false;
        // In both: it may be moving from one to the other.
        for table in &self.node_tables {
            let Some(flow) = table.lookup(key)?.filter(|flow| flow.id() == seen.id()) else {
                continue;
            };
            if !matches!(key.proto, proto::TCP | proto::SCTP) {
                done |= table.delete(key)?;
                continue;
            }
            let ended = Flow { word: Flow::ended(flow.word), ..flow };
            match table.update(key, &ended, Write::Existing) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                written => {
                    written?;
                    done = true;
                }
            }
        }
        Ok(done)
    }

    /// Writes a group's ownership: the one write of a takeover, and of each renewal of the lease.
    ///
    /// # Errors
    ///
    /// Those of the update; `E2BIG` for a group of [`MAX_GROUPS`] or above.
    pub fn write_group(&self, group: u32, value: &Group) -> Result<(), DataplaneError> {
        self.groups.update(&group, value, Write::Any).map_err(map_error(name::GROUPS))
    }

    /// A group's ownership as the data plane sees it.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn group(&self, group: u32) -> Result<Group, DataplaneError> {
        debug_assert!((group as usize) < MAX_GROUPS);
        Ok(self.groups.lookup(&group).map_err(map_error(name::GROUPS))?.unwrap_or_default())
    }

    /// Says which buckets new flows from zone to zone fall into.
    ///
    /// # Errors
    ///
    /// Those of the update.
    pub fn set_zone_buckets(&self, ranges: &[BucketRange; ZONE_PAIRS]) -> Result<(), DataplaneError> {
        let keys: Vec<u32> = (0..ZONE_PAIRS as u32).collect();
        self.zone_buckets.update_batch(&keys, ranges).map(drop).map_err(map_error(name::ZONE_BUCKETS))
    }

    /// The bucket of a new flow from one zone to another, by its hash.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn bucket(&self, zones: [u8; 2], hash: u64) -> Result<u8, DataplaneError> {
        let index = BucketRange::index(zones[0], zones[1]);
        let range = self.zone_buckets.lookup(&index).map_err(map_error(name::ZONE_BUCKETS))?;
        Ok(range.unwrap_or_default().bucket(hash))
    }

    /// The settings in force; all zero before the first [`update_settings`](Self::update_settings).
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn settings(&self) -> Result<Settings, DataplaneError> {
        Ok(self.settings.lookup(&0).map_err(map_error(name::SETTINGS))?.unwrap_or_default())
    }

    /// Changes the settings, in one write. Concurrent changes follow one another.
    ///
    /// # Errors
    ///
    /// Those of the update.
    pub fn update_settings(&self, change: impl FnOnce(&mut Settings)) -> Result<(), DataplaneError> {
        let lock = self.lock_settings();
        self.change_settings(&lock, change)
    }

    /// Makes every cached next hop out of date: routes, neighbours, addresses or links changed.
    ///
    /// # Errors
    ///
    /// Those of the update.
    pub fn next_route_generation(&self) -> Result<(), DataplaneError> {
        self.update_settings(|s| s.route_generation = route_generation_after(s.route_generation))
    }

    /// Puts a ruleset in force. It is written to a map of its own and takes the place of the present one in one
    /// write: every packet is judged by the one or by the other as a whole. Rules that were in force under the same
    /// name keep their counters. Returns its generation.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::Rules`]; those of the updates, and then the present one stays.
    pub fn load_rules(&self, rules: &[Rule]) -> Result<u32, DataplaneError> {
        let lock = self.lock_settings();
        let mut rulesets = self.lock_rulesets();
        let before = self.settings()?.ruleset_generation;
        let generation = match before.wrapping_add(1) {
            // 0 is no ruleset, and 1 would be in the place of the one in force.
            0 => 2,
            n => n,
        };
        let (rules, new) = with_counters(rules, &decisions_of(&rulesets, before)?);
        let ruleset = Ruleset::compile(&rules)?;
        new.iter().try_for_each(|&n| self.rule_hits.reset(n)).map_err(map_error(name::RULE_HITS))?;
        ruleset::load(&mut rulesets, generation, &ruleset).map_err(ruleset_error)?;
        // As long as packets may be judged by a ruleset with a SYN proxy, cookies are looked for.
        let proxied = ruleset.has_syn_proxy();
        self.change_settings(&lock, |s| s.flags |= if proxied { Settings::SYN_PROXY } else { 0 })?;
        self.change_settings(&lock, |s| {
            s.ruleset_generation = generation;
            s.flags &= if proxied { u8::MAX } else { !Settings::SYN_PROXY };
        })?;
        if let Err(error) = ruleset::retire(&mut rulesets, generation) {
            warn!("the ruleset that was in force keeps its memory until the next reload: {error}");
        }
        Ok(generation)
    }

    /// Sets the limits by source.
    ///
    /// # Errors
    ///
    /// Those of the update.
    pub fn set_limits(&self, limits: &Limits) -> Result<(), DataplaneError> {
        self.limits.update(&0, limits, Write::Any).map_err(map_error(name::LIMITS))
    }

    /// The limits in force.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn limits(&self) -> Result<Limits, DataplaneError> {
        Ok(self.limits.lookup(&0).map_err(map_error(name::LIMITS))?.unwrap_or_else(zeroed))
    }

    /// How many flows of a source the programs know to be in the main table; 0 if they know nothing of it.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn source_flows(&self, address: &[u32; 4]) -> Result<u32, DataplaneError> {
        Ok(self.source(address)?.map_or(0, |source| source.flows))
    }

    /// What the programs know of a source.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn source(&self, address: &[u32; 4]) -> Result<Option<Source>, DataplaneError> {
        self.sources.lookup(address).map_err(map_error(name::SOURCES))
    }

    /// How many flows each source has in the main table, as far as the programs know.
    ///
    /// # Errors
    ///
    /// Those of the walk.
    pub fn flows_of_sources(&self) -> Result<HashMap<[u32; 4], u32>, DataplaneError> {
        let mut known = HashMap::new();
        let mut walk = Walk::new(4096);
        while let Some((addresses, sources)) =
            walk.next_chunk(&self.sources).map_err(map_error(name::SOURCES))?
        {
            known.extend(addresses.iter().zip(sources).map(|(address, source)| (*address, source.flows)));
        }
        Ok(known)
    }

    /// Tells the programs how many flows each source has in the main table: so many as were `counted`, and those that came
    /// since they knew of so many as `before`.
    ///
    /// # Errors
    ///
    /// Those of the walk and the updates; what was told before stays told.
    pub fn set_source_flows(
        &self,
        mut counted: HashMap<[u32; 4], u32>,
        before: &HashMap<[u32; 4], u32>,
    ) -> Result<(), DataplaneError> {
        let mut tell = || -> io::Result<()> {
            let write =
                |address: &[u32; 4], source: &Source| self.sources.update(address, source, Write::Any);
            let mut walk = Walk::new(4096);
            while let Some((addresses, sources)) = walk.next_chunk(&self.sources)? {
                for (address, source) in addresses.iter().zip(sources) {
                    let since = source.flows.saturating_sub(before.get(address).copied().unwrap_or(0));
                    let flows = counted.remove(address).unwrap_or(0).saturating_add(since);
                    if flows != source.flows {
                        write(address, &Source { flows, ..*source })?;
                    }
                }
            }
            counted.iter().try_for_each(|(address, flows)| {
                write(address, &Source { flows: *flows, ..Source::default() })
            })
        };
        tell().map_err(map_error(name::SOURCES))
    }

    /// Sets the timeouts.
    ///
    /// # Errors
    ///
    /// Those of the update.
    pub fn set_timeouts(&self, timeouts: &Timeouts) -> Result<(), DataplaneError> {
        self.timeouts.update(&0, timeouts, Write::Any).map_err(map_error(name::TIMEOUTS))
    }

    /// The timeouts in force.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn timeouts(&self) -> Result<Timeouts, DataplaneError> {
        Ok(self.timeouts.lookup(&0).map_err(map_error(name::TIMEOUTS))?.unwrap_or_else(zeroed))
    }

    /// Makes the programs know exactly these interfaces. What they remember of others is out of date then.
    pub(super) fn set_interfaces(
        &self,
        interfaces: &[(InterfaceKey, Interface)],
    ) -> Result<(), DataplaneError> {
        let mut new = interfaces.to_vec();
        new.sort_by_key(|(key, _)| *key);
        let old = self.interfaces()?;
        if old == new {
            return Ok(());
        }
        let replaced = replace(&self.interfaces, interfaces).map_err(map_error(name::INTERFACES));
        self.next_route_generation()?;
        replaced
    }

    /// Says by which interfaces the destinations of a family are reached, in a route generation: the first prefix that
    /// an address is in counts, and the kernel is asked where there is none. No more than
    /// [`fwha_common::route::MAX_PREFIXES`] are taken.
    ///
    /// # Errors
    ///
    /// Those of the update; the kernel is asked then.
    pub fn set_plain_routes(
        &self,
        v6: bool,
        generation: u32,
        prefixes: &[Prefix],
    ) -> Result<(), DataplaneError> {
        let mut routes = PlainRoutes::NONE;
        for (place, prefix) in routes.prefixes.iter_mut().zip(prefixes) {
            *place = *prefix;
            routes.count += 1;
        }
        let index = PlainRoutes::index(v6, generation);
        // It counts from the moment that it has its generation, and must be there as a whole then.
        for generation in [0, generation] {
            routes.generation = generation;
            self.plain_routes.update(&index, &routes, Write::Any).map_err(map_error(name::PLAIN_ROUTES))?;
        }
        Ok(())
    }

    /// Says which virtual addresses there are; others are forgotten.
    ///
    /// # Errors
    ///
    /// Those of the update; `E2BIG` for more than [`fwha_common::group::MAX_VIPS`].
    pub fn set_vips(&self, vips: &[(VipKey, Vip)]) -> Result<(), DataplaneError> {
        replace(&self.vips, vips).map_err(map_error(name::VIPS))
    }

    /// What others have said of virtual addresses that were this node's.
    ///
    /// # Errors
    ///
    /// Those of the walk.
    pub fn claims(&self) -> Result<Vec<(VipKey, Claim)>, DataplaneError> {
        let (mut all, mut walk) = (Vec::new(), Walk::new(64));
        while let Some((keys, claims)) = walk.next_chunk(&self.claims).map_err(map_error(name::CLAIMS))? {
            all.extend(keys.iter().copied().zip(claims.iter().copied()));
        }
        Ok(all)
    }

    /// Says which virtual routers have a MAC of their own, and where; others are forgotten.
    ///
    /// # Errors
    ///
    /// Those of the update.
    pub fn set_virtual_macs(
        &self,
        virtual_macs: &[(VirtualMacKey, VirtualMac)],
    ) -> Result<(), DataplaneError> {
        replace(&self.virtual_macs, virtual_macs).map_err(map_error(name::VIRTUAL_MACS))
    }

    /// The interfaces that the programs know.
    ///
    /// # Errors
    ///
    /// Those of the walk.
    pub fn interfaces(&self) -> Result<Vec<(InterfaceKey, Interface)>, DataplaneError> {
        let mut all = Vec::new();
        let mut walk = Walk::new(self.interfaces.max_entries() as usize);
        while let Some((keys, values)) =
            walk.next_chunk(&self.interfaces).map_err(map_error(name::INTERFACES))?
        {
            all.extend(keys.iter().copied().zip(values.iter().copied()));
        }
        all.sort_by_key(|(key, _)| (key.ifindex, key.vlan, key.inner));
        Ok(all)
    }

    /// By [`Counter`](fwha_common::settings::Counter), summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn counters(&self) -> Result<Vec<u64>, DataplaneError> {
        self.counters.sums().map_err(map_error(name::COUNTERS))
    }

    /// By [`DropReason`](fwha_common::drop::DropReason), summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn drops(&self) -> Result<Vec<u64>, DataplaneError> {
        self.drops.sums().map_err(map_error(name::DROPS))
    }

    /// Hits of the rules in force, by [`Decision::name_hash`], summed over the CPUs.
    ///
    /// # Errors
    ///
    /// Those of the lookups.
    pub fn rule_hits(&self) -> Result<HashMap<u32, u64>, DataplaneError> {
        let hits = self.rule_hits.sums().map_err(map_error(name::RULE_HITS))?;
        let rules = self.decisions()?.into_iter();
        Ok(rules.map(|r| (r.name_hash, hits.get(r.index as usize).copied().unwrap_or(0))).collect())
    }

    /// What the rules in force say, in their order.
    ///
    /// # Errors
    ///
    /// Those of the lookups.
    pub fn decisions(&self) -> Result<Vec<Decision>, DataplaneError> {
        let rulesets = self.lock_rulesets();
        decisions_of(&rulesets, self.settings()?.ruleset_generation)
    }

    /// The flow of this key that nobody has answered yet, if there is one.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn embryonic_flow(&self, key: &FlowKey) -> Result<Option<Flow>, DataplaneError> {
        let site = Site::new(key.hash(&self.settings()?.bucket_key), self.embryonic.max_entries() - 1);
        let Some(set) = self.embryonic.lookup(&site.set).map_err(map_error(name::EMBRYONIC))? else {
            return Ok(None);
        };
        let flow = self.known(site.set, &set)?.find_map(|(known, flow)| (known == key).then_some(*flow));
        Ok(flow)
    }

    /// The flows of a set of embryonic ones that programs find there.
    fn known<'a>(
        &self,
        number: u32,
        set: &'a EmbryonicSet,
    ) -> Result<impl Iterator<Item = (&'a FlowKey, &'a Flow)> + use<'a>, DataplaneError> {
        let known = self.fingerprints.lookup(&number).map_err(map_error(name::FINGERPRINTS))?;
        Ok(found(set, known.unwrap_or(0)))
    }

    /// Has the programs forget each flow that nobody has answered yet and for which `ends` is true, with those that share a set
    /// with it: the next packet is judged as a first one. How many these were.
    ///
    /// The places stay as they are; without their fingerprints nobody finds them. A flow that a program puts in or takes out in
    /// the same moment may be lost, or stay if it was just judged.
    ///
    /// # Errors
    ///
    /// Those of the walk and of the updates.
    pub fn forget_embryonic(&self, ends: impl Fn(&FlowKey, &Flow) -> bool) -> Result<u64, DataplaneError> {
        let (mut forgotten, mut walk) = (0, EmbryonicWalk::new(128));
        while let Some((numbers, sets)) =
            walk.next_chunk(&self.embryonic).map_err(map_error(name::EMBRYONIC))?
        {
            for (&number, set) in numbers.iter().zip(sets) {
                if !set.flows().any(|(key, flow)| ends(key, flow)) {
                    continue;
                }
                let count = self.known(number, set)?.filter(|(key, flow)| ends(key, flow)).count();
                if count > 0 {
                    let none = self.fingerprints.update(&number, &0, Write::Any);
                    none.map_err(map_error(name::FINGERPRINTS))?;
                    forgotten += count as u64;
                }
            }
        }
        Ok(forgotten)
    }

    /// Events lost because the ring was full, by bucket, summed over the CPUs. Whoever sees a count
    /// rise resyncs that bucket.
    ///
    /// # Errors
    ///
    /// Those of the lookup.
    pub fn event_loss(&self) -> Result<Vec<u64>, DataplaneError> {
        self.event_loss.sums().map_err(map_error(name::EVENT_LOSS))
    }

    fn lock_rulesets(&self) -> MutexGuard<'_, RulesetMap> {
        self.rulesets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_settings(&self) -> MutexGuard<'_, ()> {
        // The lock guards no data of its own that a panic could have left half-done.
        self.settings_lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_settings(
        &self,
        _lock: &MutexGuard<'_, ()>,
        change: impl FnOnce(&mut Settings),
    ) -> Result<(), DataplaneError> {
        let mut settings = self.settings()?;
        change(&mut settings);
        self.bloom.set_key(settings.bucket_key);
        self.settings.update(&0, &settings, Write::Any).map_err(map_error(name::SETTINGS))
    }
}

/// Rules with counters: those that they had under the same name, else free ones, which are listed.
fn with_counters(rules: &[Rule], before: &[Decision]) -> (Vec<Rule>, Vec<u32>) {
    let known: HashMap<u32, u32> = before.iter().map(|d| (d.name_hash, d.index)).collect();
    let mut counters: HashMap<u32, u32> = rules
        .iter()
        .filter_map(|r| Some((r.decision.name_hash, *known.get(&r.decision.name_hash)?)))
        .collect();
    let kept: HashSet<u32> = counters.values().copied().collect();
    let going: HashSet<u32> = known.values().copied().filter(|n| !kept.contains(n)).collect();
    let all = || 0..MAX_RULES as u32;
    // Those of rules that go count until the end: they come last.
    let unused = all().filter(|n| !kept.contains(n) && !going.contains(n));
    let mut free = unused.chain(all().filter(|n| going.contains(n)));
    let mut new = Vec::new();
    let mut rules = rules.to_vec();
    for rule in &mut rules {
        let decision = &mut rule.decision;
        decision.index = *counters.entry(decision.name_hash).or_insert_with(|| {
            let counter = free.next().unwrap_or(0);
            new.push(counter);
            counter
        });
    }
    (rules, new)
}

pub(super) fn map_error(name: &'static str) -> impl FnOnce(io::Error) -> DataplaneError {
    move |source| DataplaneError::Map { name, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(names: &[u32]) -> Vec<Rule> {
        let rule = |&name_hash| Rule::all(Decision { name_hash, ..Decision::default() });
        names.iter().map(rule).collect()
    }

    fn decisions(rules: &[Rule]) -> Vec<Decision> {
        rules.iter().map(|rule| rule.decision).collect()
    }

    fn counters(rules: &[Rule]) -> Vec<u32> {
        rules.iter().map(|rule| rule.decision.index).collect()
    }

    #[test]
    fn a_rule_keeps_its_counter_under_its_name() {
        let (first, new) = with_counters(&rules(&[7, 8, 8, 9]), &[]);
        assert_eq!((counters(&first), new), (vec![0, 1, 1, 2], vec![0, 1, 2]));
        let (second, new) = with_counters(&rules(&[9, 5, 7]), &decisions(&first));
        assert_eq!((counters(&second), new), (vec![2, 3, 0], vec![3]), "8 counts until it goes");
        let all: Vec<u32> = (1000..1000 + MAX_RULES as u32).collect();
        let (third, new) = with_counters(&rules(&all), &decisions(&second));
        assert_eq!(new.len(), MAX_RULES);
        let mut used = counters(&third);
        used.sort_unstable();
        assert_eq!(used, (0..MAX_RULES as u32).collect::<Vec<_>>());
    }
}

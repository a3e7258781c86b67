//! What the programs write: flows, events, samples, counters.

use super::*;

/// What a test looks at in a [`FlowEvent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: u32,
    pub key: FlowKey,
    pub state: u8,
    pub version: u64,
    pub number: u64,
}

impl Event {
    fn read(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), size_of::<FlowEvent>());
        let u16 = |at: usize| u16::from_ne_bytes(bytes[at..at + 2].try_into().expect("two"));
        let u32 = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four"));
        let u64 = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight"));
        let key = offset_of!(FlowEvent, key);
        let flow = offset_of!(FlowEvent, flow);
        Self {
            kind: u32(offset_of!(FlowEvent, kind)),
            key: FlowKey {
                addr_a: [0, 4, 8, 12].map(|i| u32(key + i)),
                addr_b: [16, 20, 24, 28].map(|i| u32(key + i)),
                port_a: u16(key + 32),
                port_b: u16(key + 34),
                proto: bytes[key + 36],
                zero: 0,
                zeros: 0,
            },
            state: Flow::state_of(u32(flow + offset_of!(Flow, word))),
            version: u64(flow + offset_of!(Flow, version)),
            number: u64(flow + offset_of!(Flow, number)),
        }
    }
}

/// The table of embryonic flows.
pub struct Embryonic {
    pub(super) sets: Array<MapData, EmbryonicSet>,
    pub(super) uses: Array<MapData, EmbryonicUses>,
    pub(super) fingerprints: Array<MapData, Fingerprints>,
}

impl Embryonic {
    fn sets(&self) -> impl Iterator<Item = (u32, EmbryonicSet)> {
        (0..self.sets.len()).map(|n| (n, self.sets.get(&n, 0).expect("a set")))
    }

    /// Holds what is known of the places against what is in them.
    pub fn check(&self) {
        let mut keys = HashSet::new();
        for (n, set) in self.sets() {
            let uses = self.uses.get(&n, 0).expect("what is known of it");
            let fingerprints = self.fingerprints.get(&n, 0).expect("what is known of it").to_le_bytes();
            assert_eq!(uses.zero, [0; 7]);
            for (fingerprint, place) in fingerprints.into_iter().zip(set.places) {
                assert_eq!(place.zeros, [0; 6]);
                assert_eq!(
                    fingerprint != 0,
                    place.get().is_some(),
                    "{:?} is marked as {fingerprint:x}",
                    place.key
                );
                if fingerprint != 0 {
                    let site = Site::new(place.key.hash(&SETTINGS.bucket_key), LAST_SET);
                    assert_eq!((site.set, site.fingerprint), (n, fingerprint));
                    assert!(keys.insert(place.key), "{:?} is there twice", place.key);
                }
            }
        }
    }

    fn clear(&mut self) {
        let used: Vec<_> = self.sets().filter(|(_, set)| *set != EmbryonicSet::default()).collect();
        for (n, _) in used {
            self.sets.set(n, EmbryonicSet::default(), 0).expect("a set");
            self.uses.set(n, EmbryonicUses::default(), 0).expect("what is known of it");
            self.fingerprints.set(n, 0, 0).expect("what is known of it");
        }
    }
}

/// A table of flows from user space.
pub trait Table {
    /// Its flows.
    fn flows(&self) -> Vec<(FlowKey, Flow)>;
    /// Changes a flow.
    fn change(&mut self, key: &FlowKey, flow: Flow);

    /// One of them.
    fn flow(&self, key: &FlowKey) -> Option<Flow> {
        self.flows().into_iter().find_map(|(found, flow)| (found == *key).then_some(flow))
    }
}

impl Table for HashMap<MapData, FlowKey, Flow> {
    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        keys(self).into_iter().map(|key| (key, self.get(&key, 0).expect("a flow"))).collect()
    }
    fn change(&mut self, key: &FlowKey, flow: Flow) {
        self.insert(key, flow, 0).expect("a flow");
    }
}

impl Table for Embryonic {
    fn flows(&self) -> Vec<(FlowKey, Flow)> {
        let flows =
            |(_, set): (u32, EmbryonicSet)| set.flows().map(|(key, flow)| (*key, *flow)).collect::<Vec<_>>();
        self.sets().flat_map(flows).collect()
    }
    fn change(&mut self, key: &FlowKey, flow: Flow) {
        for (n, mut set) in self.sets().collect::<Vec<_>>() {
            if let Some(place) =
                set.places.iter_mut().find(|place| place.get().is_some() && place.key == *key)
            {
                place.flow = flow;
                return self.sets.set(n, set, 0).expect("a set");
            }
        }
        panic!("no such flow");
    }
}

impl Rig {
    /// A counter, over all CPUs.
    pub fn counter(&self, counter: Counter) -> u64 {
        let of_cpus = self.counters.get(&0, 0).expect("the counters");
        of_cpus.iter().map(|counters| counters[counter as usize]).sum()
    }

    /// Drops for a reason, over all CPUs.
    pub fn drop_count(&self, reason: DropReason) -> u64 {
        sum(&self.drops, reason as u32)
    }

    /// Hits of a rule.
    pub fn hits(&self, rule: u32) -> u64 {
        sum(&self.rule_hits, rule)
    }

    /// Events that were lost in a bucket.
    pub fn lost(&self, bucket: u8) -> u64 {
        sum(&self.event_loss, bucket.into())
    }

    /// All drops, by reason.
    pub fn drops(&self) -> u64 {
        DropReason::ALL.iter().map(|&reason| self.drop_count(reason)).sum()
    }

    /// The events written since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            events.push(Event::read(&item));
        }
        events
    }

    /// The samples written since the last call.
    pub fn samples(&mut self) -> Vec<DropSample> {
        let mut samples = Vec::new();
        while let Some(item) = self.samples.next() {
            let (header, bytes) = item.split_at(offset_of!(DropSample, bytes));
            let u16 = |at: usize| u16::from_ne_bytes(header[at..at + 2].try_into().expect("two"));
            let u32 = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four"));
            samples.push(DropSample {
                time_ns: u64::from_ne_bytes(header[..8].try_into().expect("eight")),
                ifindex: u32(8),
                len: u32(12),
                captured: u16(16),
                vlan_tci: u16(18),
                reason: header[20],
                hook: header[21],
                flags: header[22],
                zero: header[23],
                bytes: bytes.try_into().expect("a sample's bytes"),
            });
        }
        samples
    }

    /// What the filter says of the flow of a key: there may be one, and it was noted since the last renewal.
    pub fn noted(&self, key: &FlowKey) -> [bool; 2] {
        let bit = Bit::new(key.hash(&self.now.bucket_key), LAST_WORD);
        self.bloom.each_ref().map(|words| words.get(&bit.word, 0).expect("a word") & bit.mask != 0)
    }

    /// Sets all bits of the filter, or none; of those that were set since the renewal began, none.
    pub fn set_bloom(&mut self, all: bool) {
        for (words, bits) in self.bloom.iter_mut().zip([if all { u64::MAX } else { 0 }, 0]) {
            (0..=LAST_WORD).for_each(|n| words.set(n, bits, 0).expect("a word"));
        }
    }

    /// Holds the filter of flows that there may be against those that there are.
    pub(super) fn check_bloom(&self) {
        for (key, _) in self.flows.flows() {
            assert!(key.proto != proto::TCP || self.noted(&key)[0], "a SYN would not find {key:?}");
        }
    }

    /// Changes a flow of the main table from user space.
    pub fn edit(&mut self, key: &FlowKey, change: impl FnOnce(&mut Flow)) {
        let mut flow = self.flows.get(key, 0).expect("the flow");
        change(&mut flow);
        self.flows.insert(key, flow, 0).expect("the flow");
    }

    /// Removes all flows.
    pub fn clear_flows(&mut self) {
        clear(&mut self.flows);
        self.embryonic.clear();
        clear(&mut self.node_flows);
        clear(&mut self.node_guests);
    }

    /// The flow of the node itself with a key, and whether it is a guest's.
    pub fn node_flow(&self, key: &FlowKey) -> Option<(Flow, bool)> {
        let own = self.node_flows.get(key, 0).ok().map(|flow| (flow, false));
        let guest = self.node_guests.get(key, 0).ok().map(|flow| (flow, true));
        assert!(own.is_none() || guest.is_none(), "in one table at most");
        own.or(guest)
    }

    /// Forgets all datagrams in fragments.
    pub fn clear_fragments(&mut self) {
        clear(&mut self.fragments);
    }

    /// The state of a flow of the main table.
    pub fn state(&self, key: &FlowKey) -> Option<FlowState> {
        Some(self.flows.get(key, 0).ok()?.state())
    }
}

/// The keys of a table.
pub fn keys<K: Pod, V: Pod>(table: &HashMap<MapData, K, V>) -> Vec<K> {
    table.keys().map(|key| key.expect("a key")).collect()
}

/// Removes all elements of a table.
pub fn clear<K: Pod, V: Pod>(table: &mut HashMap<MapData, K, V>) {
    for key in keys(table) {
        table.remove(&key).expect("an element");
    }
}

fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).expect("a counter").iter().sum()
}

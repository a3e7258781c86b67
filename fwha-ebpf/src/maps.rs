//! The maps. Their names and meanings are the contract with user space, see
//! [`fwha_common::settings::name`]; sizes given here are defaults, which the loader overrides.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, bpf_fib_lookup as FibLookup},
    btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use fwha_common::{
    BUCKETS, MAX_GROUPS,
    bloom::WORDS,
    capture::{Capture, DropSample},
    drop::DROP_REASONS,
    embryonic::{CAPACITY, EmbryonicSet, EmbryonicUses, Fingerprints, PLACES},
    flow::{Flow, FlowEvent, FlowKey, NextHop},
    group::{
        BucketRange, Claim, Group, MAX_VIPS, MAX_VIRTUAL_MACS, Vip, VipKey, VirtualMac, VirtualMacKey,
        ZONE_PAIRS,
    },
    limit::{Limits, Source},
    route::{PlainRoutes, TABLES},
    rule::{Interface, InterfaceKey, MAX_INTERFACES},
    ruleset::{Block, GENERATIONS, MAX_RULES},
    settings::{COUNTERS as COUNTER_COUNT, Counter, Settings, Timeouts},
    sweep::Sweep,
};

use crate::{
    capture::Share,
    forward::KnownRoute,
    fragment::{Datagram, DatagramKey},
    hook::Clock,
    packet::Arrival,
    parse::Ip,
    reject,
    rules::Search,
    synproxy::Task,
    tcp::{Options, Scan},
};

#[btf_map]
pub static FLOWS: HashMap<FlowKey, Flow, 65_536> = HashMap::new();

#[btf_map]
pub static FINGERPRINTS: Array<Fingerprints, { (CAPACITY / PLACES) as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

#[btf_map]
pub static EMBRYONIC_USES: Array<
    EmbryonicUses,
    { (CAPACITY / PLACES) as usize },
    { BPF_F_MMAPABLE as usize },
> = Array::new();

/// Its elements begin at a page, so that a set lies in one.
#[btf_map]
pub static EMBRYONIC: Array<EmbryonicSet, { (CAPACITY / PLACES) as usize }, { BPF_F_MMAPABLE as usize }> =
    Array::new();

#[btf_map]
pub static BLOOM: Array<u64, { WORDS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
pub static BLOOM_RECENT: Array<u64, { WORDS as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();

#[btf_map]
pub static NODE_FLOWS: LruHashMap<FlowKey, Flow, 16_384> = LruHashMap::new();

/// What comes from outside and may be anybody's: apart, so that a flood of it pushes out none of the node's sessions.
#[btf_map]
pub static NODE_GUESTS: LruHashMap<FlowKey, Flow, 16_384> = LruHashMap::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<DatagramKey, Datagram, 8_192> = LruHashMap::new();

#[btf_map]
pub static EVENTS: RingBuf<FlowEvent, { 4 << 20 }> = RingBuf::new();

#[btf_map]
pub static EVENT_LOSS: PerCpuArray<u64, BUCKETS> = PerCpuArray::new();

#[btf_map]
pub static SWEEP: Array<Sweep, 1> = Array::new();

#[btf_map]
pub static GROUPS: Array<Group, MAX_GROUPS> = Array::new();

#[btf_map]
pub static ZONE_BUCKETS: Array<BucketRange, ZONE_PAIRS> = Array::new();

#[btf_map]
pub static VIPS: HashMap<VipKey, Vip, MAX_VIPS> = HashMap::new();

#[btf_map]
pub static CLAIMS: HashMap<VipKey, Claim, MAX_VIPS> = HashMap::new();

#[btf_map]
pub static VIRTUAL_MACS: HashMap<VirtualMacKey, VirtualMac, MAX_VIRTUAL_MACS> = HashMap::new();

/// The blocks of a ruleset, as many as it has.
type Ruleset = Array<Block, 1, { BPF_F_INNER_MAP as usize }>;

#[btf_map]
pub static RULESETS: ArrayOfMaps<Ruleset, { GENERATIONS as usize }> = ArrayOfMaps::new();

#[btf_map]
pub static RULE_HITS: PerCpuArray<u64, MAX_RULES> = PerCpuArray::new();

#[btf_map]
pub static INTERFACES: HashMap<InterfaceKey, Interface, MAX_INTERFACES> = HashMap::new();

#[btf_map]
static PLAIN_ROUTES: Array<PlainRoutes, TABLES> = Array::new();

/// Routes that a CPU has looked up a moment ago, by destination.
#[btf_map]
static KNOWN_ROUTES: PerCpuArray<KnownRoute, { 1 << KNOWN_ROUTES_BITS }> = PerCpuArray::new();

const KNOWN_ROUTES_BITS: u32 = 10;

/// Interfaces that a CPU has looked up in the present route generation, by index: in one half those by which packets came, in the
/// other those to which plain routes lead.
#[btf_map]
static KNOWN_INTERFACES: PerCpuArray<KnownInterface, { 2 * KNOWN_INTERFACES_LEN as usize }> =
    PerCpuArray::new();

const KNOWN_INTERFACES_LEN: u32 = 64;

/// An element of `KNOWN_INTERFACES`.
struct KnownInterface {
    /// The route generation in which it holds.
    generation: u32,
    ifindex: u32,
    interface: Interface,
}

#[btf_map]
pub static SETTINGS: Array<Settings, 1> = Array::new();

#[btf_map]
pub static TIMEOUTS: Array<Timeouts, 1> = Array::new();

#[btf_map]
static COUNTERS: PerCpuArray<Counters, 1> = PerCpuArray::new();

#[btf_map]
pub static DROPS: PerCpuArray<u64, DROP_REASONS> = PerCpuArray::new();

#[btf_map]
pub static CAPTURE: Array<Capture, 1> = Array::new();

#[btf_map]
pub static DROP_SAMPLES: RingBuf<DropSample, { 512 << 10 }> = RingBuf::new();

#[btf_map]
pub static CAPTURE_SHARE: PerCpuArray<Share, 1> = PerCpuArray::new();

#[btf_map]
pub static LIMITS: Array<Limits, 1> = Array::new();

#[btf_map]
pub static SOURCES: LruHashMap<[u32; 4], Source, 65_536> = LruHashMap::new();

#[btf_map]
pub static REJECT_SHARE: PerCpuArray<reject::Share, 1> = PerCpuArray::new();

macro_rules! scratch {
    ($($(#[doc = $doc:literal])+ $field:ident: $type:ty,)+) => {
        struct Scratch {
            $($(#[doc = $doc])+ $field: $type,)+
        }

        impl Room {
            $(
                $(#[doc = $doc])+
                #[inline(always)]
                pub fn $field(self) -> &'static mut $type {
                    // SAFETY: the element belongs to this CPU, which runs one of our programs at a time, and each of
                    // those asks for a field in one place at a time.
                    unsafe { &mut (*self.0).$field }
                }
            )+
        }
    };
}

/// Room of this CPU for what the stack (512 bytes) does not have. Nobody else reads it.
#[btf_map]
static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// [`SCRATCH`], looked up.
#[derive(Clone, Copy)]
pub struct Room(*mut Scratch);

/// The room of this CPU.
#[inline(always)]
pub fn room() -> Option<Room> {
    SCRATCH.get_ptr_mut(0).map(Room)
}

scratch! {
    /// The packet.
    ip: Ip,
    /// The key of its flow.
    key: FlowKey,
    /// The word of the flow that it was judged by.
    word: u32,
    /// Its TCP options.
    options: Options,
    /// What reads them.
    scan: Scan,
    /// A search for a rule.
    search: Search,
    /// A flow under construction.
    flow: Flow,
    /// The packet inside an ICMP error.
    inner: Ip,
    /// A datagram that is about to be remembered.
    datagram: Datagram,
    /// A next hop.
    hop: NextHop,
    /// The clock.
    clock: Clock,
    /// How the packet came in.
    arrival: Arrival,
    /// What the SYN proxy is to do.
    task: Task,
    /// The parameters of a route lookup.
    fib: FibLookup,
    /// See [`forget`].
    number: u32,
}

/// A reference of which the compiler knows nothing, so that what it refers to is read from memory.
///
/// What the parser finds lies in a map, and is read from there by what follows it. To the verifier a
/// value from a map may be anything: it looks at the engine once, and not once more for each way
/// through the parser.
#[inline(always)]
pub fn opaque<T>(reference: &'static mut T) -> &'static mut T {
    let mut pointer: *mut T = reference;
    // SAFETY: the same pointer, and the only one.
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) pointer);
        &mut *pointer
    }
}

/// A number of which the verifier knows nothing: it was kept in a map for a moment. Where paths differ in a number only, the
/// verifier then looks at what follows them once.
#[inline(always)]
pub fn forget(number: u32) -> u32 {
    let Some(kept) = room().map(Room::number) else {
        return number;
    };
    // SAFETY: a reference; volatile, so that the compiler does not remember it either.
    unsafe {
        (&raw mut *kept).write_volatile(number);
        (&raw const *kept).read_volatile()
    }
}

/// By [`Counter`].
pub type Counters = [u64; COUNTER_COUNT];

/// The counters of this CPU.
#[inline(always)]
pub fn counters() -> Option<&'static mut Counters> {
    // SAFETY: the element belongs to this CPU, which runs one of our programs at a time, and each of those adds in one
    // place at a time.
    COUNTERS.get_ptr_mut(0).map(|counters| unsafe { &mut *counters })
}

/// Adds to a counter.
#[inline(always)]
pub fn count(counter: Counter, n: u64) {
    if let Some(counters) = counters() {
        counters[counter as usize] += n;
    }
}

/// Adds to an element of a per-CPU array of counters; an index out of range adds nothing.
#[inline(always)]
pub fn add<const N: usize>(counters: &PerCpuArray<u64, N>, index: u32, n: u64) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the element belongs to this CPU, which runs one of our programs at a time.
        unsafe { *counter += n }
    }
}

/// The settings, or nothing while user space has written none.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    written(SETTINGS.get(0))
}

/// What [`SETTINGS`] has, if user space has written it.
#[inline(always)]
pub fn written(settings: Option<&'static Settings>) -> Option<&'static Settings> {
    match settings {
        Some(settings) if settings.node != 0 => Some(settings),
        _ => None,
    }
}

/// Whether an interface with a program carries VLANs.
#[inline(always)]
pub fn vlans(settings: Option<&Settings>) -> bool {
    settings.is_some_and(|settings| settings.vlans != 0)
}

/// The route generation. To be read before a lookup whose result is to be kept: a route that changes
/// after the lookup then raises what the result is kept under.
#[inline(always)]
pub fn route_generation(settings: &Settings) -> u32 {
    // SAFETY: a reference; volatile, because user space writes it.
    unsafe { (&raw const settings.route_generation).read_volatile() }
}

/// The interface, if it is one of ours.
#[inline(always)]
pub fn interface(key: InterfaceKey) -> Option<Interface> {
    // SAFETY: copied at once; user space replaces elements as a whole, and a stale one is as good as
    // one read a moment earlier.
    unsafe { INTERFACES.get(key).copied() }
}

/// The interface that the present packet came by, if it is one of ours. What a CPU has found out holds for a route generation:
/// user space raises that when interfaces change, too.
#[inline(always)]
pub fn known_interface(ifindex: u32, settings: &Settings) -> Option<&'static Interface> {
    known_in(ifindex % KNOWN_INTERFACES_LEN, ifindex, settings)
}

/// As [`known_interface`], for one that a plain route leads to. It has places of its own: the one that the packet came by is
/// looked at still.
#[inline(always)]
pub fn interface_there(ifindex: u32, settings: &Settings) -> Option<&'static Interface> {
    known_in(KNOWN_INTERFACES_LEN + ifindex % KNOWN_INTERFACES_LEN, ifindex, settings)
}

#[inline(always)]
fn known_in(place: u32, ifindex: u32, settings: &Settings) -> Option<&'static Interface> {
    let generation = route_generation(settings);
    let known = KNOWN_INTERFACES.get_ptr_mut(place)?;
    // SAFETY: the element belongs to this CPU, which runs one of our programs at a time.
    unsafe {
        let is_it = (*known).generation == generation && (*known).ifindex == ifindex;
        if is_it || get_to_know(place, ifindex, generation) { Some(&(*known).interface) } else { None }
    }
}

/// Looks up an interface for [`known_in`]; whether it is one of ours. Not inlined, so that the verifier looks at what
/// follows once.
#[inline(never)]
fn get_to_know(place: u32, ifindex: u32, generation: u32) -> bool {
    let (Some(interface), Some(known)) =
        (interface(InterfaceKey::untagged(ifindex)), KNOWN_INTERFACES.get_ptr_mut(place))
    else {
        return false;
    };
    // SAFETY: as above.
    unsafe { *known = KnownInterface { generation, ifindex, interface } };
    true
}

/// The interface that leads to an address by a plain route of this generation; 0 if the kernel has to be asked. Not
/// inlined: it is asked for both ends.
#[inline(never)]
pub fn plain_route(address: &[u32; 4], v6: bool, generation: u32) -> u32 {
    match PLAIN_ROUTES.get(PlainRoutes::index(v6, generation)) {
        Some(routes) => routes.look_up(address, v6, generation),
        None => 0,
    }
}

/// Where a route to this address is known from, or will be.
#[inline(always)]
pub fn known_route(address: &[u32; 4]) -> Option<&'static mut KnownRoute> {
    let mixed = (address[0] ^ address[1] ^ address[2] ^ address[3]).wrapping_mul(0x9e37_79b1);
    // SAFETY: the element belongs to this CPU, which runs one of our programs at a time.
    KNOWN_ROUTES.get_ptr_mut(mixed >> (32 - KNOWN_ROUTES_BITS)).map(|route| unsafe { &mut *route })
}

/// The group that has this bucket.
#[inline(always)]
pub fn group(settings: &Settings, bucket: u8) -> Option<&'static Group> {
    GROUPS.get(settings.bucket_group[bucket as usize] as u32)
}

/// The bucket of a new flow from one zone to another, by its hash.
#[inline(always)]
pub fn bucket(zones: [u8; 2], hash: u64) -> u8 {
    ZONE_BUCKETS.get(BucketRange::index(zones[0], zones[1])).copied().unwrap_or_default().bucket(hash)
}

//! The table of embryonic flows, see [`fwha_common::embryonic`].
//!
//! # What two CPUs may do to one set at once
//!
//! - Putting in: one at a time, which marks its place as [`FILLED`] with compare-and-exchange over all fingerprints of the
//!   set, so that no flow is there twice. Others wait for it, some ten ns; who does not come to it gives up: its packet is
//!   dropped, and sent again by its sender.
//! - Taking out: by who marked the place as [`CLAIMED`] in the same way.
//! - Looking for a flow waits for nobody. A place that is written anew has no fingerprint meanwhile; who found the fingerprint
//!   just before sees another key, no state, or the old flow. Who holds a flow while its place gets another
//!   one may count a packet in that, as with an element of any map that is deleted under way. Who claims a place that just
//!   got another flow of the same fingerprint has that one forgotten.
//! - `clock` and `used` are written by all. At worst a set forgets the wrong one of two flows that were used in the same moment.

use core::mem;

use fwha_common::{
    embryonic::{
        CAPACITY, CLAIMED, EmbryonicPlace, EmbryonicUses, FILLED, Fingerprints, PLACES, Site, first_of,
        last_set, places_of,
    },
    flow::{Flow, FlowKey},
};

use crate::{atomic::compare_exchange_u64, maps, packet::bounded};

/// Attempts at the fingerprints of a set. Each failure means that another CPU got on.
const ATTEMPTS: u32 = 4;

/// The same of a claim, whose packet is lost if none succeeds: of 100,000 that two CPUs made in one set some lost four times.
const CLAIM_ATTEMPTS: u32 = 16;

/// How often they are looked at for the CPU that puts in another flow to be done.
const LOOKS: u32 = 64;

/// Flows of one fingerprint that a set may have.
const TWINS: u32 = 2;

/// The number of the last set; the loader overwrites it when it makes the table smaller.
#[unsafe(no_mangle)]
static EMBRYONIC_LAST: u32 = last_set(CAPACITY);

/// A flow from its version on.
type Rest = [u64; (size_of::<Flow>() - mem::offset_of!(Flow, version)) / size_of::<u64>()];

/// The set that a flow belongs to.
struct Set {
    site: Site,
    fingerprints: *mut Fingerprints,
}

impl Set {
    #[inline(always)]
    fn of(hash: u64) -> Option<Self> {
        // SAFETY: a reference; volatile, because the loader may have changed it.
        let last = unsafe { (&raw const EMBRYONIC_LAST).read_volatile() };
        let site = Site::new(hash, last);
        Some(Self { site, fingerprints: maps::FINGERPRINTS.get_ptr_mut(site.set)? })
    }

    #[inline(always)]
    fn uses(&self) -> Option<*mut EmbryonicUses> {
        maps::EMBRYONIC_USES.get_ptr_mut(self.site.set)
    }

    #[inline(always)]
    fn element(&self, n: u32) -> Option<*mut EmbryonicPlace> {
        let set = maps::EMBRYONIC.get_ptr_mut(self.site.set)?;
        // SAFETY: in bounds.
        Some(unsafe { (&raw mut (*set).places).cast::<EmbryonicPlace>().add(bounded::<{ PLACES - 1 }>(n)) })
    }

    /// Those of its places now.
    #[inline(always)]
    fn fingerprints(&self) -> Fingerprints {
        // SAFETY: a map element; volatile, because others write it.
        unsafe { self.fingerprints.read_volatile() }
    }

    /// The place for a new flow in a set of these fingerprints: a free one, or that of the flow which was used longest ago;
    /// [`PLACES`] if all are claimed. There are no more than [`TWINS`] flows of a fingerprint: the new one replaces one of
    /// them.
    #[inline(always)]
    fn choose(&self, fingerprints: Fingerprints) -> u32 {
        let twins = places_of(fingerprints, self.site.fingerprint);
        if twins & twins.wrapping_sub(1) != 0 {
            return first_of(twins);
        }
        let free = places_of(fingerprints, 0);
        if free != 0 {
            return first_of(free);
        }
        let Some(uses) = self.uses() else {
            return PLACES;
        };
        let (mut chosen, mut most) = (PLACES, 0);
        let mut n = 0;
        while n < PLACES {
            if !matches!((fingerprints >> (8 * n)) as u8, CLAIMED | FILLED) {
                // SAFETY: a map element; what races do is said above.
                let age = unsafe { (*uses).clock.wrapping_sub((*uses).used[n as usize]) };
                if age >= most {
                    (chosen, most) = (n, age);
                }
            }
            n += 1;
        }
        chosen
    }

    /// Marks a place as this CPU's, if the fingerprints of the set are still `old`; otherwise gives what they are.
    #[inline(always)]
    fn take(&self, n: u32, old: Fingerprints, mark: u8) -> Result<(), Fingerprints> {
        let shift = 8 * bounded::<{ PLACES - 1 }>(n);
        let new = old & !(0xff << shift) | u64::from(mark) << shift;
        // SAFETY: a map element, 8-byte aligned.
        unsafe { compare_exchange_u64(self.fingerprints, old, new) }
    }

    /// Gives a place that is this CPU's a fingerprint, or frees it.
    #[inline(always)]
    fn mark(&self, n: u32, fingerprint: u8) {
        // SAFETY: a map element, in bounds.
        unsafe {
            let at = self.fingerprints.cast::<u8>().add(bounded::<{ PLACES - 1 }>(n));
            at.write_volatile(fingerprint);
        }
    }
}

/// Notes that the flow of a place, which may be `new`, is used.
///
/// # Safety
///
/// `uses` is a map element.
#[inline(always)]
unsafe fn touch(uses: *mut EmbryonicUses, n: u32, new: bool) {
    // SAFETY: promised by the caller; in bounds; what races do is said above.
    unsafe {
        let used = (&raw mut (*uses).used).cast::<u8>().add(bounded::<{ PLACES - 1 }>(n));
        let clock = (*uses).clock;
        if new || *used != clock {
            (*uses).clock = clock.wrapping_add(1);
            *used = clock.wrapping_add(1);
        }
    }
}

/// Keeps the compiler from moving a write across it. The processor (x86-64) keeps writes in their order.
#[inline(always)]
fn ordered() {
    // SAFETY: does nothing.
    unsafe { core::arch::asm!("") }
}

/// The hash of a key. Not inlined: a function of its own needs fewer registers.
#[inline(never)]
pub fn hash(key: &FlowKey) -> u64 {
    maps::settings().map_or(0, |settings| key.hash(&settings.bucket_key))
}

/// The flow with this key and hash.
#[inline(always)]
pub fn find(key: &FlowKey, hash: u64) -> Option<*mut Flow> {
    let set = Set::of(hash)?;
    let places = places_of(set.fingerprints(), set.site.fingerprint);
    if places == 0 { None } else { look_up(key, hash) }
}

#[inline(never)]
fn look_up(key: &FlowKey, hash: u64) -> Option<*mut Flow> {
    let set = Set::of(hash)?;
    let n = search(key, hash, set.fingerprints());
    if n == PLACES {
        return None;
    }
    // SAFETY: a map element.
    unsafe { touch(set.uses()?, n, false) };
    let element = set.element(n)?;
    // SAFETY: as above.
    Some(unsafe { &raw mut (*element).flow })
}

/// The place of the flow with this key in its set, which has these fingerprints; [`PLACES`] if it has none. Of a full set, one
/// in 30 flows that are not there has a fingerprint that is.
#[inline(never)]
fn search(key: &FlowKey, hash: u64, fingerprints: Fingerprints) -> u32 {
    let Some(set) = Set::of(hash) else {
        return PLACES;
    };
    let mut places = places_of(fingerprints, set.site.fingerprint);
    for _ in 0..TWINS {
        if places == 0 {
            break;
        }
        let n = maps::forget(first_of(places));
        // SAFETY: a map element.
        if set.element(n).is_some_and(|element| same(unsafe { &(*element).key }, key)) {
            return n;
        }
        places &= places - 1;
    }
    PLACES
}

/// Whether two keys are the same, in one comparison: each further one is a way more for the verifier to follow.
#[inline(always)]
fn same(a: &FlowKey, b: &FlowKey) -> bool {
    const WORDS: usize = size_of::<FlowKey>() / size_of::<u64>();
    let (a, b) = ((&raw const *a).cast::<u64>(), (&raw const *b).cast::<u64>());
    let mut differs = 0;
    let mut n = 0;
    while n < WORDS {
        // SAFETY: in bounds; both lie in map elements, where they are 8-byte aligned. Volatile, because others write them.
        differs |= unsafe { a.add(n).read_volatile() ^ b.add(n).read_volatile() };
        n += 1;
    }
    differs == 0
}

/// Puts a flow into the table; `false` if other CPUs do so all the time.
#[inline(always)]
pub fn insert(key: &FlowKey, hash: u64, flow: &Flow) -> bool {
    let n = reserve(key, hash);
    n != PLACES && fill(key, hash, flow, n)
}

/// Takes a place for a flow: the one that it has, or another; [`PLACES`] if that does not succeed.
#[inline(never)]
fn reserve(key: &FlowKey, hash: u64) -> u32 {
    let Some(set) = Set::of(hash) else {
        return PLACES;
    };
    for _ in 0..LOOKS {
        if places_of(set.fingerprints(), FILLED) == 0 {
            break;
        }
    }
    for _ in 0..ATTEMPTS {
        let old = set.fingerprints();
        let mut n = search(key, hash, old);
        if n == PLACES {
            n = set.choose(old);
        }
        let n = maps::forget(n);
        if n != PLACES && places_of(old, FILLED) == 0 && set.take(n, old, FILLED).is_ok() {
            return n;
        }
    }
    PLACES
}

/// Fills a place that was reserved.
#[inline(never)]
fn fill(key: &FlowKey, hash: u64, flow: &Flow, n: u32) -> bool {
    let Some(set) = Set::of(hash) else {
        return false;
    };
    let (Some(element), Some(uses)) = (set.element(n), set.uses()) else {
        return false;
    };
    // SAFETY: map elements; the place is this CPU's.
    unsafe {
        write(element, key, flow);
        set.mark(n, set.site.fingerprint);
        touch(uses, n, true);
    }
    true
}

/// Writes a place: its state last, and nothing is read of what was just written, for that would wait until all of it has
/// arrived.
///
/// # Safety
///
/// `element` is a map element, and this CPU's.
#[inline(always)]
unsafe fn write(element: *mut EmbryonicPlace, key: &FlowKey, flow: &Flow) {
    // SAFETY: promised by the caller; `Rest` is what a flow is from there on.
    unsafe {
        (&raw mut (*element).flow.word).write_volatile(0);
        ordered();
        (*element).key = *key;
        (*element).flow.rule_hash = flow.rule_hash;
        let rest = mem::offset_of!(Flow, version);
        let from = (&raw const *flow).cast::<u8>().add(rest).cast::<Rest>();
        *(&raw mut (*element).flow).cast::<u8>().add(rest).cast::<Rest>() = *from;
        ordered();
        (&raw mut (*element).flow.word).write_volatile(flow.word);
        ordered();
    }
}

/// Claims a flow that is to leave the table: until [`settle`], nobody else finds it, or takes its place. Of several CPUs
/// one gets it. Returns its place in the set, or [`PLACES`] if it is not there.
#[inline(never)]
pub fn claim(key: &FlowKey, hash: u64) -> u32 {
    let Some(set) = Set::of(hash) else {
        return PLACES;
    };
    let mut old = set.fingerprints();
    let n = maps::forget(search(key, hash, old));
    if n == PLACES {
        return PLACES;
    }
    for _ in 0..CLAIM_ATTEMPTS {
        match set.take(n, old, CLAIMED) {
            Ok(()) => return n,
            // Another CPU works in the set. What was found is in this one's cache now, and hardly changes before the next
            // attempt.
            Err(now) if (now >> (8 * bounded::<{ PLACES - 1 }>(n))) as u8 == set.site.fingerprint => {
                old = now
            }
            Err(_) => break,
        }
    }
    PLACES
}

/// Ends a claim: the flow stays as it is, or is gone.
#[inline(never)]
pub fn settle(hash: u64, n: u32, stays: bool) {
    let Some(set) = Set::of(hash) else {
        return;
    };
    if !stays && let Some(element) = set.element(n) {
        // SAFETY: a map element.
        unsafe { (&raw mut (*element).flow.word).write_volatile(0) }
    }
    ordered();
    set.mark(n, if stays { set.site.fingerprint } else { 0 });
}

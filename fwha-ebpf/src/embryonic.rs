//! The table of embryonic flows, see [`fwha_common::embryonic`].
//!
//! # What two CPUs may do to one set at once
//!
//! - Putting in: under the lock, which is held for some ten ns, so that no flow is there twice. Who does not get
//!   it in [`ATTEMPTS`] gives up: its packet is dropped, and sent again by its sender.
//! - Writing a place, its fingerprint too, or taking its flow out: by who changed its tag to [`CLAIMED`] with
//!   compare-and-exchange.
//! - Looking for a flow takes no lock. A place that is written anew has no tag meanwhile; who found the tag
//!   just before sees another key, no state, or the old flow. Who holds a flow while its place gets another
//!   one may count a packet in that, as with an element of any map that is deleted under way.
//! - `clock` and `used` are written without the lock as well. At worst a set forgets the wrong one of two flows
//!   that were used in the same moment.

use fwha_common::{
    embryonic::{CAPACITY, EmbryonicPlace, EmbryonicTags, PLACES, Site, last_set},
    flow::{Flow, FlowKey},
};

use crate::{atomic::compare_exchange_u32, maps, packet::bounded};

/// Attempts at the lock of a set.
const ATTEMPTS: u32 = 64;

/// The tag of a place that one CPU has for itself. Those of flows are odd.
const CLAIMED: u32 = 2;

/// The number of the last set; the loader overwrites it when it makes the table smaller.
#[unsafe(no_mangle)]
static EMBRYONIC_LAST: u32 = last_set(CAPACITY);

/// The set that a flow belongs to, and what its place is marked with.
struct Place {
    site: Site,
    set: *mut EmbryonicTags,
}

impl Place {
    #[inline(always)]
    fn of(hash: u64) -> Option<Self> {
        // SAFETY: a reference; volatile, because the loader may have changed it.
        let last = unsafe { (&raw const EMBRYONIC_LAST).read_volatile() };
        let site = Site::new(hash, last);
        Some(Self { site, set: maps::EMBRYONIC_TAGS.get_ptr_mut(site.set)? })
    }

    /// Where the tag of a place is.
    #[inline(always)]
    fn tag_at(&self, n: u32) -> *mut u32 {
        // SAFETY: in bounds.
        unsafe { (&raw mut (*self.set).tags).cast::<u32>().add(bounded::<{ PLACES - 1 }>(n)) }
    }

    /// The place with the flow's tag; [`PLACES`] if there is none.
    #[inline(always)]
    fn search(&self) -> u32 {
        let mut found = PLACES;
        let mut n = 0;
        while n < PLACES {
            // SAFETY: a map element; volatile, because others write it.
            if unsafe { self.tag_at(n).read_volatile() } == self.site.tag {
                found = n;
            }
            n += 1;
        }
        found
    }

    /// The place to put the flow: the one that it has, a free one, or that of the flow which was used longest ago;
    /// [`PLACES`] if all are claimed.
    #[inline(always)]
    fn choose(&self) -> u32 {
        // SAFETY: a map element.
        let set = unsafe { &*self.set };
        let (mut chosen, mut most) = (PLACES, 0);
        let mut n = 0;
        while n < PLACES {
            let age = match set.tags[n as usize] {
                tag if tag == self.site.tag => u32::MAX,
                0 => u32::MAX - 1,
                CLAIMED => {
                    n += 1;
                    continue;
                }
                _ => set.clock.wrapping_sub(set.used[n as usize]) as u32,
            };
            if age >= most {
                (chosen, most) = (n, age);
            }
            n += 1;
        }
        chosen
    }

    /// Claims a place that has this tag.
    #[inline(always)]
    fn take(&self, n: u32, tag: u32) -> bool {
        // SAFETY: a map element, in bounds, 4-byte aligned.
        unsafe { compare_exchange_u32(self.tag_at(n), tag, CLAIMED) }.is_ok()
    }

    /// Writes the fingerprint of a place that this CPU has claimed.
    #[inline(always)]
    fn mark(&self, n: u32, fingerprint: u8) {
        let Some(fingerprints) = maps::FINGERPRINTS.get_ptr_mut(self.site.set) else {
            return;
        };
        // SAFETY: a map element, in bounds; volatile, because others read it.
        unsafe { fingerprints.cast::<u8>().add(bounded::<{ PLACES - 1 }>(n)).write_volatile(fingerprint) }
    }

    /// Notes that the flow of a place is used.
    #[inline(always)]
    fn touch(&self, n: u32) {
        // SAFETY: a map element, in bounds; what races do is said above.
        unsafe {
            let clock = (*self.set).clock.wrapping_add(1);
            (*self.set).clock = clock;
            *(&raw mut (*self.set).used).cast::<u16>().add(bounded::<{ PLACES - 1 }>(n)) = clock;
        }
    }

    #[inline(always)]
    fn element(&self, n: u32) -> Option<*mut EmbryonicPlace> {
        let set = maps::EMBRYONIC.get_ptr_mut(self.site.set)?;
        // SAFETY: in bounds.
        Some(unsafe { (&raw mut (*set).places).cast::<EmbryonicPlace>().add(bounded::<{ PLACES - 1 }>(n)) })
    }

    #[inline(always)]
    fn lock(&self) -> bool {
        for _ in 0..ATTEMPTS {
            // SAFETY: a map element, 4-byte aligned.
            if unsafe { compare_exchange_u32(&raw mut (*self.set).lock, 0, 1) }.is_ok() {
                return true;
            }
        }
        false
    }

    #[inline(always)]
    fn unlock(&self) {
        ordered();
        // SAFETY: a map element; held by this CPU.
        unsafe { (&raw mut (*self.set).lock).write_volatile(0) }
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

/// Has the processor fetch what is known of the set of a flow, which is needed soon: a load whose value nobody waits for.
#[inline(always)]
pub fn fetch(hash: u64) {
    if let Some(place) = Place::of(hash) {
        // SAFETY: a map element; volatile, because nobody reads the value.
        unsafe { (&raw const (*place.set).tags[0]).read_volatile() };
    }
}

/// The flow with this key and hash.
#[inline(always)]
pub fn find(key: &FlowKey, hash: u64) -> Option<*mut Flow> {
    if may_hold(hash) { look_up(key, hash) } else { None }
}

/// Whether there may be a flow with this hash: of a full table, one in 30 that are not there.
#[inline(always)]
fn may_hold(hash: u64) -> bool {
    // SAFETY: a reference; volatile, because the loader may have changed it.
    let last = unsafe { (&raw const EMBRYONIC_LAST).read_volatile() };
    let site = Site::new(hash, last);
    // SAFETY: a map element; volatile, because others write it.
    maps::FINGERPRINTS.get_ptr(site.set).is_some_and(|at| site.may_be_among(unsafe { at.read_volatile() }))
}

#[inline(never)]
fn look_up(key: &FlowKey, hash: u64) -> Option<*mut Flow> {
    let place = Place::of(hash)?;
    let n = maps::forget(place.search());
    if n == PLACES {
        return None;
    }
    let element = place.element(n)?;
    // SAFETY: a map element.
    if unsafe { (*element).key != *key } {
        return None;
    }
    place.touch(n);
    // SAFETY: as above.
    Some(unsafe { &raw mut (*element).flow })
}

/// Puts a flow into the table; `false` if other CPUs do so all the time.
#[inline(never)]
pub fn insert(key: &FlowKey, hash: u64, flow: &mut Flow) -> bool {
    let Some(place) = Place::of(hash) else {
        return false;
    };
    if !place.lock() {
        return false;
    }
    let n = maps::forget(place.choose());
    // SAFETY: a map element, in bounds.
    let tag = unsafe { place.tag_at(n).read_volatile() };
    let Some(element) = place.element(n).filter(|_| n != PLACES && tag != CLAIMED && place.take(n, tag))
    else {
        place.unlock();
        return false;
    };
    let word = flow.word;
    // SAFETY: map elements.
    unsafe {
        (&raw mut (*element).flow.word).write_volatile(0);
        ordered();
        flow.word = 0;
        (*element).key = *key;
        (*element).flow = *flow;
        flow.word = word;
        ordered();
        (&raw mut (*element).flow.word).write_volatile(word);
        place.mark(n, place.site.fingerprint);
        place.tag_at(n).write_volatile(place.site.tag);
    }
    place.touch(n);
    place.unlock();
    true
}

/// Claims a flow that is to leave the table: until [`settle`], nobody else finds it, or takes its place. Of several CPUs
/// one gets it. Returns its place in the set, or [`PLACES`] if it is not there.
#[inline(never)]
pub fn claim(key: &FlowKey, hash: u64) -> u32 {
    if let Some(place) = Place::of(hash)
        && let n = maps::forget(place.search())
        && n != PLACES
        && let Some(element) = place.element(n)
        // SAFETY: a map element.
        && unsafe { (*element).key == *key }
        && place.take(n, place.site.tag)
    {
        n
    } else {
        PLACES
    }
}

/// Ends a claim: the flow stays as it is, or is gone.
#[inline(never)]
pub fn settle(hash: u64, n: u32, stays: bool) {
    let Some(place) = Place::of(hash) else {
        return;
    };
    if !stays && let Some(element) = place.element(n) {
        // SAFETY: a map element.
        unsafe { (&raw mut (*element).flow.word).write_volatile(0) }
        place.mark(n, 0);
    }
    ordered();
    // SAFETY: as above.
    unsafe { place.tag_at(n).write_volatile(if stays { place.site.tag } else { 0 }) }
}

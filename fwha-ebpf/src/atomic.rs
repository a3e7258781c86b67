//! Atomic read-modify-write. `core::sync::atomic` offers none for this target, so these are the
//! compiler's intrinsics. Sequentially consistent without exception: with a weaker order LLVM 22
//! miscompiles operations whose result is used (llvm issue 210280).

#[cfg(target_arch = "bpf")]
use core::intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_or};
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Writes `new` if `old` is there; otherwise gives what is.
///
/// # Safety
///
/// `at` is aligned and points to a map value, or on the host to anything that lives.
#[inline(always)]
pub unsafe fn compare_exchange_u32(at: *mut u32, old: u32, new: u32) -> Result<(), u32> {
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: promised by the caller.
    return unsafe { AtomicU32::from_ptr(at) }.compare_exchange(old, new, SeqCst, SeqCst).map(drop);
    #[cfg(target_arch = "bpf")]
    // SAFETY: promised by the caller.
    match unsafe { atomic_cxchg::<u32, { SeqCst }, { SeqCst }>(at, old, new) } {
        (_, true) => Ok(()),
        (found, false) => Err(found),
    }
}

/// Writes `new` if `old` is there; otherwise gives what is.
///
/// # Safety
///
/// `at` is aligned and points to a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn compare_exchange_u64(at: *mut u64, old: u64, new: u64) -> Result<(), u64> {
    // SAFETY: promised by the caller.
    match unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(at, old, new) } {
        (_, true) => Ok(()),
        (found, false) => Err(found),
    }
}

/// Sets bits.
///
/// # Safety
///
/// `at` is aligned and points to a map value.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub unsafe fn or_u64(at: *mut u64, bits: u64) {
    // SAFETY: promised by the caller.
    unsafe { atomic_or::<u64, u64, { SeqCst }>(at, bits) };
}

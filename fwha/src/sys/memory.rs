//! Large allocations on huge pages.
//!
//! The replica is hundreds of megabytes that are looked at here and there, a flow at a time. On pages of 4 KiB nearly every look
//! waits for the page tables before it waits for the memory itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr;

/// A huge page, in bytes: what a middle level of the page tables covers on x86-64, and on arm64 with pages of 4 KiB. Where it
/// is another number, nothing is gained and nothing is lost.
const HUGE_PAGE: usize = 2 << 20;

/// The system's allocator, which gives whole huge pages to what is large enough for them, if the kernel has them for those who
/// ask (`/sys/kernel/mm/transparent_hugepage/enabled`). Such an allocation occupies its memory by huge pages, too; what is
/// behind the last whole one is of ordinary pages.
#[derive(Debug)]
pub struct HugePages;

/// The layout that is asked for of the system.
const fn aligned(layout: Layout) -> Layout {
    match layout.align_to(HUGE_PAGE) {
        Ok(aligned) if layout.size() >= HUGE_PAGE => aligned,
        _ => layout,
    }
}

fn advise(memory: *mut u8, layout: Layout) {
    let whole = layout.size() / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 && !memory.is_null() {
        // SAFETY: the range begins at a page and lies within the allocation; the advice does not change what is in it. That
        // the kernel does not take it is no error: it is about time alone.
        unsafe { libc::madvise(memory.cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

// SAFETY: memory is the system allocator's, and goes back to it with the layout that it was asked for with, which is the same
// function of the caller's layout each time.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract; `aligned` does not change the size.
        let memory = unsafe { System.alloc(aligned(layout)) };
        advise(memory, layout);
        memory
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let layout_aligned = aligned(layout);
        // SAFETY: as above.
        let memory = unsafe { System.alloc_zeroed(layout_aligned) };
        advise(memory, layout);
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: it was allocated with this layout.
        unsafe { System.dealloc(memory, aligned(layout)) };
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if layout.size() < HUGE_PAGE && size < HUGE_PAGE {
            // SAFETY: the caller's contract; neither layout is changed.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: the caller's contract: a size that is not zero and, rounded up to the alignment, no overflow.
        let new = unsafe { self.alloc(Layout::from_size_align_unchecked(size, layout.align())) };
        if !new.is_null() {
            // SAFETY: both are as long as what is copied, and the new one was just allocated; the old one is not used again.
            unsafe {
                ptr::copy_nonoverlapping(memory, new, layout.size().min(size));
                self.dealloc(memory, layout);
            }
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_its_content_as_it_grows_and_shrinks_over_a_huge_page() {
        let layout = |size| Layout::from_size_align(size, 8).unwrap();
        let sizes = [100, HUGE_PAGE - 1, HUGE_PAGE, 5 * HUGE_PAGE + 7, 3 * HUGE_PAGE, 64];
        // SAFETY: each layout is that of the size before, and nothing is used beyond it.
        unsafe {
            let mut memory = HugePages.alloc_zeroed(layout(sizes[0]));
            for n in 0..64 {
                memory.add(n).write(n as u8 + 1);
            }
            for pair in sizes.windows(2) {
                memory = HugePages.realloc(memory, layout(pair[0]), pair[1]);
                assert!(!memory.is_null());
                assert_eq!(memory.addr() % if pair[1] < HUGE_PAGE { 8 } else { HUGE_PAGE }, 0);
                assert!((0..64).all(|n| memory.add(n).read() == n as u8 + 1), "{pair:?}");
                memory.add(pair[1] - 1).write(if pair[1] == 64 { 64 } else { 9 });
            }
            HugePages.dealloc(memory, layout(64));
            let zeros = HugePages.alloc_zeroed(layout(3 * HUGE_PAGE));
            assert!((0..3 * HUGE_PAGE).all(|n| zeros.add(n).read() == 0));
            HugePages.dealloc(zeros, layout(3 * HUGE_PAGE));
        }
    }
}

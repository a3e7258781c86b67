//! What `cargo xtask bench` runs in the kernel beside fwha's own programs.
//!
//! | module | holds |
//! |---|---|
//! | `generator` | makes a packet of another flow each time, and calls the program under test with it, or sends it |
//! | `sink` | counts what it has sent where it arrives |
//! | [`order`], [`frame`] | what it is asked for; how a frame is written |
//! | `rivals` | programs to compare with: one that does nothing, one that only forwards |
//! | `steps` | programs that do one step of a firewall's work each |
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
#![cfg_attr(not(any(target_arch = "bpf", test)), expect(dead_code, reason = "on the host only tests use it"))]

mod frame;
mod order;

#[cfg(target_arch = "bpf")]
mod generator;
#[cfg(target_arch = "bpf")]
mod rivals;
#[cfg(target_arch = "bpf")]
mod sink;
#[cfg(target_arch = "bpf")]
mod steps;

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for programs under a GPL-compatible licence only.
#[cfg(target_arch = "bpf")]
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this runs in the kernel; `cargo xtask bench` builds it");
}

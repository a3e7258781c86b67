//! fwha in the kernel: what happens to every packet that meets the firewall.
//!
//! This file holds the entry points and, for each, the one place where a verdict becomes an action.
//! Whatever is not expressly let through is dropped under a name.
//!
//! | module | holds |
//! |---|---|
//! | `engine` | the packet's way at ingress |
//! | `egress` | what leaves: the node's own flows, and the guard |
//! | `packet`, `hook`, `parse` | access to a packet, at XDP and at tc; from bytes to fields |
//! | `vlan` | tags: off before the engine, on behind it |
//! | `own` | protocols of the node and its links that always pass |
//! | `fragment` | fragments, held to what the first of them said |
//! | `probe` | probes, answered here |
//! | `embryonic` | the table of flows that nobody has answered |
//! | `bloom` | which TCP flows there may be: a SYN of none needs no look at the main table |
//! | `flow`, `tcp`, `sctp`, `icmp` | flows, their states and windows, errors about them |
//! | `vip` | virtual addresses: who answers for one, and with which MAC |
//! | `rules` | the rule that decides on a new flow |
//! | `zone`, `limit` | where a packet comes from; limits by source |
//! | `forward`, `reject` | next hop and rewrite; answers to what a rule rejects |
//! | `sweep` | flows that expired, deleted |
//! | `synproxy` | cookies in answer to SYNs, and what follows from them |
//! | `capture` | samples of what is dropped |
//! | `maps`, `atomic` | the maps; atomic operations |
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch, core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "core::sync::atomic lacks these"))]
#![cfg_attr(not(target_arch = "bpf"), expect(dead_code, reason = "on the host only tests use it"))]

use fwha_common::drop::{DROP_REASONS, DropReason};

mod atomic;
mod own;
mod packet;
mod parse;
mod sctp;
mod tcp;

#[cfg(target_arch = "bpf")]
mod bloom;
#[cfg(target_arch = "bpf")]
mod capture;
#[cfg(target_arch = "bpf")]
mod egress;
#[cfg(target_arch = "bpf")]
mod embryonic;
#[cfg(target_arch = "bpf")]
mod engine;
#[cfg(target_arch = "bpf")]
mod flow;
#[cfg(target_arch = "bpf")]
mod forward;
#[cfg(target_arch = "bpf")]
mod fragment;
#[cfg(target_arch = "bpf")]
mod hook;
#[cfg(target_arch = "bpf")]
mod icmp;
#[cfg(target_arch = "bpf")]
mod limit;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod probe;
#[cfg(target_arch = "bpf")]
mod reject;
#[cfg(target_arch = "bpf")]
mod rules;
#[cfg(target_arch = "bpf")]
mod sweep;
#[cfg(target_arch = "bpf")]
mod synproxy;
#[cfg(target_arch = "bpf")]
mod vip;
#[cfg(target_arch = "bpf")]
mod vlan;
#[cfg(target_arch = "bpf")]
mod zone;

#[cfg(target_arch = "bpf")]
mod entry {
    //! Entry points.

    use aya_ebpf::{
        bindings::{
            __sk_buff,
            tcx_action_base::{TCX_DROP, TCX_NEXT},
            xdp_action::{XDP_DROP, XDP_PASS},
            xdp_md,
        },
        helpers::generated::bpf_redirect,
    };
    use fwha_common::{capture::DropHook, drop::DropReason, flow::NextHop, settings::Counter};

    use crate::{
        Outcome, Verdict, capture, egress, engine,
        hook::{Tc, Xdp},
        maps::{self, Counters, Room},
        packet::{Eth, Packet},
        parse::ethertype,
        probe, reject, sweep, synproxy, vip, vlan,
    };

    const REJECT: u32 = DropReason::Reject as u32;

    /// XDP on a zone interface.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "xdp")]
    fn fwha_xdp(ctx: *mut xdp_md) -> u32 {
        let (Some(room), Some(counters)) = (maps::room(), maps::counters()) else {
            return XDP_DROP;
        };
        let mut packet = Xdp::new(ctx, room);
        enter(&packet, counters);
        let outcome = judge(&mut packet, room);
        match leave(&packet, outcome, counters) {
            Ok(Verdict::Forward | Verdict::ProxyForward) => match way_out(&mut packet) {
                0 => XDP_DROP,
                ifindex => redirect(ifindex),
            },
            Ok(Verdict::Answer | Verdict::SynAnswer | Verdict::VipAnswer) => answer_xdp(&mut packet),
            Ok(Verdict::Pass | Verdict::ProxyPass) if vlan::restore_for_stack(&mut packet) => XDP_PASS,
            Ok(Verdict::Pass | Verdict::ProxyPass) => XDP_DROP,
            Err(reason) => {
                if capture::wanted(reason) && vlan::restore(&mut packet) {
                    capture::xdp(ctx, reason);
                    vlan::strip(&mut packet);
                }
                if reason == REJECT && reject::answer(&mut packet) {
                    answer_xdp(&mut packet)
                } else {
                    XDP_DROP
                }
            }
        }
    }

    /// Sends a packet back to where it came from.
    ///
    /// Not XDP_TX: a veth whose other end has no XDP program does not wake that end, and the answer would lie
    /// there until something else comes (`veth_xdp_flush` in drivers/net/veth.c).
    #[inline(always)]
    fn answer_xdp(packet: &mut Xdp) -> u32 {
        if vlan::restore(packet) { redirect(packet.ifindex()) } else { XDP_DROP }
    }

    /// tc ingress (TCX) on a zone interface.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "classifier")]
    fn fwha_tc(ctx: *mut __sk_buff) -> i32 {
        let (Some(room), Some(counters)) = (maps::room(), maps::counters()) else {
            return TCX_DROP;
        };
        let mut packet = Tc::new(ctx, room);
        if packet.is_looped_back() {
            return TCX_NEXT;
        }
        enter(&packet, counters);
        let outcome = judge(&mut packet, room);
        match leave(&packet, outcome, counters) {
            Ok(Verdict::Forward | Verdict::ProxyForward) => match way_out(&mut packet) {
                0 => TCX_DROP,
                ifindex => send(&packet, ifindex),
            },
            Ok(Verdict::Answer | Verdict::SynAnswer | Verdict::VipAnswer) => answer_tc(&mut packet),
            Ok(Verdict::Pass | Verdict::ProxyPass) => {
                if !vlan::restore_for_stack(&mut packet) {
                    return TCX_DROP;
                }
                // A mark that somebody else set must not look like ours.
                if packet.mark() == egress::mark(maps::settings()) {
                    packet.set_mark(0);
                }
                TCX_NEXT
            }
            Err(reason) => {
                if capture::wanted(reason) && vlan::restore(&mut packet) {
                    capture::tc(ctx, DropHook::Ingress, reason);
                    vlan::strip(&mut packet);
                }
                if reason == REJECT && reject::answer(&mut packet) {
                    answer_tc(&mut packet)
                } else {
                    TCX_DROP
                }
            }
        }
    }

    /// Sends a packet back to where it came from.
    #[inline(always)]
    fn answer_tc(packet: &mut Tc) -> i32 {
        if vlan::restore(packet) { send(packet, packet.ifindex()) } else { TCX_DROP }
    }

    /// tc egress (TCX) on a zone interface.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "classifier")]
    fn fwha_egress(ctx: *mut __sk_buff) -> i32 {
        let Some(room) = maps::room() else {
            return TCX_DROP;
        };
        let mut packet = Tc::new(ctx, room);
        match egress::egress(&mut packet) {
            Ok(()) => TCX_NEXT,
            Err(reason) => {
                let reason = reason as u32;
                let n = packet.segments() as u64;
                maps::count(Counter::Dropped, n);
                maps::add(&maps::DROPS, reason, n);
                if capture::wanted(reason) {
                    capture::tc(ctx, DropHook::Egress, reason);
                }
                TCX_DROP
            }
        }
    }

    /// tc ingress (TCX) on a sync interface: answers probes and lets everything else pass.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "classifier")]
    fn fwha_sync(ctx: *mut __sk_buff) -> i32 {
        let (Some(room), Some(counters)) = (maps::room(), maps::counters()) else {
            return TCX_NEXT;
        };
        let mut packet = Tc::new(ctx, room);
        match Eth::read(&packet) {
            Ok(eth) if eth.ethertype == ethertype::PROBE => {}
            _ => return TCX_NEXT,
        }
        enter(&packet, counters);
        let outcome = probe::answer(&mut packet, maps::settings()).into();
        match leave(&packet, outcome, counters) {
            Ok(Verdict::Answer) => send(&packet, packet.ifindex()),
            Ok(_) => TCX_NEXT,
            Err(reason) => {
                if capture::wanted(reason) {
                    capture::tc(ctx, DropHook::Sync, reason);
                }
                TCX_DROP
            }
        }
    }

    /// tc ingress (TCX) on a zone interface that has XDP and virtual MACs: what XDP passed to the stack.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "classifier")]
    fn fwha_host(ctx: *mut __sk_buff) -> i32 {
        if let Some(room) = maps::room() {
            vip::settle(&mut Tc::new(ctx, room));
        }
        TCX_NEXT
    }

    /// Attached nowhere: user space runs it to have flows that expired deleted.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "classifier")]
    fn fwha_sweep(_: *mut __sk_buff) -> i32 {
        sweep::sweep();
        TCX_NEXT
    }

    /// The interface by which a packet leaves, which it now has the tags for; 0 if it cannot.
    #[inline(always)]
    fn way_out<P: Packet>(packet: &mut P) -> u32 {
        let out = packet.out();
        let device = NextHop::ifindex(out);
        if NextHop::tagged(out) { vlan::dress(packet, device) } else { device }
    }

    /// Sends a packet out of an interface, past the guard there.
    #[inline(always)]
    fn send(packet: &Tc, ifindex: u32) -> i32 {
        packet.set_mark(egress::mark(maps::settings()));
        // SAFETY: takes and returns numbers.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Sends a packet out of an interface.
    #[inline(always)]
    fn redirect(ifindex: u32) -> u32 {
        // SAFETY: takes and returns numbers.
        unsafe { bpf_redirect(ifindex, 0) as u32 }
    }

    /// Judges a packet that came in, and does to it what the SYN proxy has to.
    #[inline(always)]
    fn judge<P: Packet>(packet: &mut P, room: Room) -> Outcome {
        let outcome = engine::ingress(packet, room);
        synproxy::finish(packet, outcome)
    }

    /// Counts a packet that came in.
    #[inline(always)]
    fn enter(packet: &impl Packet, counters: &mut Counters) {
        counters[Counter::PacketsIn as usize] += packet.segments() as u64;
    }

    /// Counts what became of a packet. A drop is the number of its [`DropReason`].
    #[inline(always)]
    fn leave(packet: &impl Packet, outcome: Outcome, counters: &mut Counters) -> Result<Verdict, u32> {
        let n = packet.segments();
        let (counter, verdict) = match outcome.0 {
            Outcome::FORWARD => (Counter::Forwarded, Verdict::Forward),
            Outcome::PASS => (Counter::Passed, Verdict::Pass),
            Outcome::ANSWER => (Counter::ProbesAnswered, Verdict::Answer),
            Outcome::SYN_ANSWER => (Counter::SynAnswered, Verdict::SynAnswer),
            Outcome::VIP_ANSWER => (Counter::VipAnswered, Verdict::VipAnswer),
            reason => {
                counters[Counter::Dropped as usize] += n as u64;
                maps::add(&maps::DROPS, reason, n as u64);
                return Err(reason);
            }
        };
        counters[counter as usize] += n as u64;
        Ok(verdict)
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {}
    }

    /// Some helpers are for programs under a GPL-compatible licence only.
    #[unsafe(no_mangle)]
    #[unsafe(link_section = "license")]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// What becomes of a packet that is not dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It leaves by the interface noted with it; its headers are rewritten.
    Forward,
    /// The kernel's stack has it.
    Pass,
    /// It was a question and is now the answer, to leave by where it came in.
    Answer,
    /// A SYN, for the SYN proxy to answer, to leave by where it came in.
    SynAnswer,
    /// It was a question for a virtual address and is now the answer, to leave by where it came in.
    VipAnswer,
    /// As [`Verdict::Forward`], once the SYN proxy has changed it.
    ProxyForward,
    /// As [`Verdict::Pass`], once the SYN proxy has changed it.
    ProxyPass,
}

/// What becomes of a packet, as one number: that of a [`DropReason`], or one behind them for a
/// [`Verdict`]. A `Result` leaves in the rest of its register what the compiler finds there, and the
/// verifier refuses to see a pointer.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Outcome(u32);

impl Outcome {
    const FORWARD: u32 = DROP_REASONS as u32;
    const PASS: u32 = Self::FORWARD + 1;
    const ANSWER: u32 = Self::FORWARD + 2;
    const SYN_ANSWER: u32 = Self::FORWARD + 3;
    const VIP_ANSWER: u32 = Self::FORWARD + 4;
    const PROXY_FORWARD: u32 = Self::FORWARD + 5;
    const PROXY_PASS: u32 = Self::FORWARD + 6;
    /// Nothing is decided yet.
    const JUDGE: u32 = Self::FORWARD + 7;
}

impl From<Result<Verdict, DropReason>> for Outcome {
    #[inline(always)]
    fn from(result: Result<Verdict, DropReason>) -> Self {
        Self(match result {
            Ok(Verdict::Forward) => Self::FORWARD,
            Ok(Verdict::Pass) => Self::PASS,
            Ok(Verdict::Answer) => Self::ANSWER,
            Ok(Verdict::SynAnswer) => Self::SYN_ANSWER,
            Ok(Verdict::VipAnswer) => Self::VIP_ANSWER,
            Ok(Verdict::ProxyForward) => Self::PROXY_FORWARD,
            Ok(Verdict::ProxyPass) => Self::PROXY_PASS,
            Err(reason) => reason as u32,
        })
    }
}

#[cfg(not(target_arch = "bpf"))]
fn main() {
    eprintln!("this runs in the kernel; build it with `cargo xtask build-ebpf`");
}

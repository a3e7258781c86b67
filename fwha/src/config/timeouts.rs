//! `[timeouts]`: how long an idle flow is kept. Names and defaults are the kernel's
//! (Documentation/networking/nf_conntrack-sysctl.rst).

use std::time::Duration;

use fwha_common::{
    flow::{FlowState, TimeoutClass},
    settings::Timeouts,
};

use super::{
    section::{self, Section},
    source::Mistakes,
};

/// Each key, its protocol class and the states that it sets.
const KEYS: [(&str, TimeoutClass, &[FlowState]); 25] = {
    use FlowState::{
        Assured, Close, CloseWait, CookieEchoed, CookieWait, Established, FinWait, LastAck, Replied,
        ShutdownAckSent, ShutdownRecd, ShutdownSent, SynRecv, SynSent, SynSent2, TimeWait, Unreplied,
    };
    use TimeoutClass::{Dccp, Gre, Icmp, Icmpv6, Other, Sctp, Tcp, Udp};
    const ANY: &[FlowState] = &[Unreplied, Replied, Assured];
    [
        ("tcp-syn-sent", Tcp, &[SynSent, SynSent2]),
        ("tcp-syn-recv", Tcp, &[SynRecv]),
        ("tcp-established", Tcp, &[Established]),
        ("tcp-fin-wait", Tcp, &[FinWait]),
        ("tcp-close-wait", Tcp, &[CloseWait]),
        ("tcp-last-ack", Tcp, &[LastAck]),
        ("tcp-time-wait", Tcp, &[TimeWait]),
        ("tcp-close", Tcp, &[Close]),
        ("udp", Udp, &[Unreplied, Replied]),
        ("udp-stream", Udp, &[Assured]),
        ("icmp", Icmp, ANY),
        ("icmpv6", Icmpv6, ANY),
        ("sctp-closed", Sctp, &[Close]),
        ("sctp-cookie-wait", Sctp, &[CookieWait]),
        ("sctp-cookie-echoed", Sctp, &[CookieEchoed]),
        ("sctp-established", Sctp, &[Established]),
        ("sctp-shutdown-sent", Sctp, &[ShutdownSent]),
        ("sctp-shutdown-recd", Sctp, &[ShutdownRecd]),
        ("sctp-shutdown-ack-sent", Sctp, &[ShutdownAckSent]),
        ("dccp-request", Dccp, &[Unreplied]),
        ("dccp-respond", Dccp, &[Replied]),
        ("dccp-open", Dccp, &[Assured]),
        ("gre", Gre, &[Unreplied]),
        ("gre-stream", Gre, &[Replied, Assured]),
        ("generic", Other, ANY),
    ]
};

/// What shortens the timeouts of TCP.
const CAPS: [&str; 2] = ["tcp-max-retrans", "tcp-unacknowledged"];

/// The values of [`CAPS`], in ns.
pub(super) fn caps(timeouts: &Timeouts) -> [u64; CAPS.len()] {
    let mut timeouts = *timeouts;
    caps_mut(&mut timeouts).map(|ns| *ns)
}

fn caps_mut(timeouts: &mut Timeouts) -> [&mut u64; CAPS.len()] {
    [&mut timeouts.tcp_max_retrans_ns, &mut timeouts.tcp_unacknowledged_ns]
}

pub(super) fn read(root: &mut Section<'_>, mistakes: &mut Mistakes) -> Timeouts {
    let mut timeouts = Timeouts::KERNEL;
    let Some(mut section) = root.get("timeouts").and_then(|t| section::table(t, "[timeouts]", mistakes))
    else {
        return timeouts;
    };
    let range = Duration::from_nanos(Timeouts::LEAST_NS)..=Duration::from_secs(365 * 86_400);
    for (key, class, states) in KEYS {
        if let Some(timeout) = section.duration(key, range.clone(), mistakes) {
            for &state in states {
                timeouts.ns[class as usize][state as usize] = timeout.get_ref().as_nanos() as u64;
            }
        }
    }
    for (key, ns) in CAPS.into_iter().zip(caps_mut(&mut timeouts)) {
        if let Some(timeout) = section.duration(key, range.clone(), mistakes) {
            *ns = timeout.get_ref().as_nanos() as u64;
        }
    }
    section.finish(mistakes);
    timeouts
}

/// Each key whose timeout is another one: what it was and what it is, in ns.
pub(super) fn differences<'a>(
    old: &'a Timeouts,
    new: &'a Timeouts,
) -> impl Iterator<Item = (&'static str, u64, u64)> + 'a {
    let keys = KEYS.iter().filter_map(|&(key, class, states)| {
        let state = *states.first()?;
        let of = |timeouts: &Timeouts| timeouts.ns[class as usize][state as usize];
        Some((key, of(old), of(new)))
    });
    let caps = CAPS.into_iter().zip(caps(old)).zip(caps(new)).map(|((key, old), new)| (key, old, new));
    keys.chain(caps).filter(|(_, old, new)| old != new)
}

/// All keys.
#[cfg(test)]
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.iter().map(|(key, ..)| *key).chain(CAPS)
}

//! The differences that are meant. Each is described in `docs/conntrack-differences.md` under its id.

use super::Difference;
use super::script::Verdict;

/// A difference that is meant.
pub struct Known {
    /// Its name in the documentation.
    pub id: &'static str,
    /// Why fwha does not do what the kernel does, in a line.
    pub reason: &'static str,
    /// Whether it explains a difference of a conversation that the models do not have.
    pub explains: fn(&Difference) -> bool,
}

/// Rows whose cause lies in what was known of a connection before a packet: [`forecast`](super::forecast) tells them, and
/// also `sctp` and `fragments` of whatever it can foresee.
pub const FORESEEN: &[&str] = &[
    "begun-beside",
    "challenged-reset",
    "closed-before-it-was-answered",
    "closing-reset",
    "refused-answer",
    "reset-after-syn",
    "reset-behind-data",
];

/// All others.
pub const KNOWN: &[Known] = &[
    Known {
        id: "transport-checksum",
        reason: "a checksum that covers the data is proved by the end that receives them",
        explains: |d| verdicts(d) == (Verdict::Drop, Verdict::Pass) && has_oddity(d, "csum bad"),
    },
    Known {
        id: "answer-before-rules",
        reason: "what no rule admits is dropped in silence, whatever its TTL and destination",
        explains: |d| {
            verdicts(d) == (Verdict::Icmp, Verdict::Drop)
                && !d.fwha.reasons.is_empty()
                && d.fwha.reasons.iter().all(|reason| POLICY.contains(reason))
        },
    },
    Known {
        id: "wrong-zone",
        reason: "a packet of a flow comes from its sender's zone or is forged",
        explains: |d| d.fwha.verdict == Verdict::Drop && d.fwha.reasons == ["wrong_zone"],
    },
    Known {
        id: "redirect",
        reason: "a redirect is for a neighbour; one that comes from afar is an attack",
        explains: |d| verdicts(d) == (Verdict::Pass, Verdict::Drop) && sends(d, "redirect"),
    },
    Known {
        id: "source-quench",
        reason: "hosts must ignore it (RFC 6633)",
        explains: |d| verdicts(d) == (Verdict::Pass, Verdict::Drop) && sends(d, "source-quench"),
    },
    Known {
        id: "udplite-checksum",
        reason: "the kernel takes a right checksum of UDP-Lite for wrong",
        explains: |d| verdicts(d) == (Verdict::Drop, Verdict::Pass) && sends(d, "udplite"),
    },
    Known {
        id: "source-address",
        reason: "no host has this source, or its way back is another",
        explains: |d| drops_for(d, &["spoofed", "martian", "land"]),
    },
    Known {
        id: "extension-headers",
        reason: "what a router has no use for is a way around a filter",
        explains: |d| drops_for(d, &["extension_header"]),
    },
    Known {
        id: "obsolete-icmp",
        reason: "nobody asks these any more but to find out about hosts",
        explains: |d| drops_for(d, &["icmp"]) && !sends(d, "redirect"),
    },
    Known {
        id: "icmp-about-nothing-sent",
        reason: "an error about a segment that was not sent, or with less of it than ports and number, is forged",
        explains: |d| {
            // What was sent as it is quoted, and quoted to the number, is none of these.
            let sent = |quoted: &str| d.before.iter().any(|sent| sent == quoted);
            let whole = |(error, quoted): (&str, &str)| !error.contains("{quote") && sent(quoted);
            drops_for(d, &["icmp_unrelated"])
                && d.text.split_once(" about ").is_some_and(|parts| !whole(parts))
        },
    },
    Known {
        id: "fragments",
        reason: "nothing is put together: a fragment comes behind its first one, once, and the first has the whole header",
        explains: |d| {
            FRAGMENTS.iter().any(|(sequence, packets, both, reasons)| {
                d.sequence == *sequence
                    && packets.contains(&d.packet)
                    && verdicts(d) == *both
                    && d.fwha.reasons == *reasons
            })
        },
    },
    Known {
        id: "sctp",
        reason: "every packet but an INIT has its association's tag, and none is picked up in mid-stream",
        explains: |d| drops_for(d, &["sctp_tag", "sctp_state"]),
    },
    Known {
        id: "gre",
        reason: "tunnels between the same ends are told apart by their keys, so the header must be there",
        explains: |d| {
            d.text.contains(" gre")
                && (drops_for(d, &["no_rule", "malformed"])
                    || d.sequence == "gre_pptp" && verdicts(d) == (Verdict::Drop, Verdict::Pass))
        },
    },
    Known {
        id: "vrrp",
        reason: "VRRP stays on its link",
        explains: |d| drops_for(d, &["unfiltered"]) && d.text.contains("proto 112"),
    },
    Known {
        id: "icmp-query-kind",
        reason: "an identifier stands for a conversation, whatever is asked in it",
        explains: |d| {
            verdicts(d) == (Verdict::Drop, Verdict::Pass)
                && d.sequence == "icmp_timestamp"
                && sends(d, "echo-reply")
        },
    },
    Known {
        id: "no-next-header",
        reason: "RFC 8200 has routers forward it",
        explains: |d| verdicts(d) == (Verdict::Drop, Verdict::Pass) && has_oddity(d, "ext none"),
    },
];

/// Packets of a sequence, what the kernel and fwha do with them, and fwha's drop reasons.
type Fragments = (&'static str, &'static [usize], (Verdict, Verdict), &'static [&'static str]);

/// The datagrams in fragments, or what comes of them, that are treated differently.
const FRAGMENTS: &[Fragments] = &[
    // A later fragment before the first one.
    ("fragments_out_of_order", &[1, 2, 3, 4], (Verdict::Pass, Verdict::Drop), &["fragment"]),
    ("fragments_twice", &[3], (Verdict::Pass, Verdict::Drop), &["fragment"]),
    // A first fragment without the whole header, and what answers the SYN in it.
    ("fragments_tiny", &[2, 4], (Verdict::Pass, Verdict::Drop), &["fragment_tiny"]),
    ("fragments_tiny", &[3], (Verdict::Pass, Verdict::Drop), &["fragment", "fragment_tiny"]),
    ("fragments_tiny", &[5], (Verdict::Pass, Verdict::Drop), &["not_syn"]),
    ("fragments_tcp", &[6], (Verdict::Pass, Verdict::Drop), &["fragment_tiny", "fragment_overlap"]),
    ("fragments_odd_length", &[2], (Verdict::Pass, Verdict::Drop), &["malformed", "fragment"]),
    ("fragments_of_an_error", &[2], (Verdict::Pass, Verdict::Drop), &["fragment", "icmp_unrelated"]),
    // An answer to each fragment, or about the first one, instead of one about the datagram.
    ("fragments_too_large_for_the_way_out", &[2], (Verdict::Icmp, Verdict::Icmp), &[]),
    ("fragments_too_large_for_the_way_out_v6", &[1], (Verdict::Icmp, Verdict::Icmp), &[]),
    ("fragments_ttl", &[1], (Verdict::Icmp, Verdict::Icmp), &["fragment"]),
    // What only who puts the datagram together can see.
    ("fragments_overlapping", &[4], (Verdict::Drop, Verdict::Pass), &[]),
    ("fragments_after_an_overlap", &[3], (Verdict::Drop, Verdict::Pass), &[]),
    ("fragments_empty", &[2], (Verdict::Drop, Verdict::Other), &["malformed"]),
    ("fragments_last_flag_wrong", &[1], (Verdict::Drop, Verdict::Pass), &[]),
    ("fragments_udp_length_too_large", &[1], (Verdict::Drop, Verdict::Pass), &[]),
    ("fragments_id_of_another_protocol", &[2], (Verdict::Drop, Verdict::Pass), &[]),
];

/// Drop reasons for what the policy does not admit, and nothing is wrong with.
const POLICY: [&str; 6] = ["no_rule", "rule", "no_ruleset", "not_syn", "icmp", "no_route"];

/// The one that explains a difference.
pub fn known(difference: &Difference) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.explains)(difference))
}

fn verdicts(difference: &Difference) -> (Verdict, Verdict) {
    (difference.kernel.verdict, difference.fwha.verdict)
}

/// Whether fwha drops, for one of these reasons, what the kernel forwards.
fn drops_for(difference: &Difference, reasons: &[&str]) -> bool {
    verdicts(difference) == (Verdict::Pass, Verdict::Drop)
        && !difference.fwha.reasons.is_empty()
        && difference.fwha.reasons.iter().all(|reason| reasons.contains(reason))
}

/// Whether the packet itself is of this kind.
fn sends(difference: &Difference, kind: &str) -> bool {
    difference.text.split_whitespace().nth(1) == Some(kind)
}

/// Whether the packet has this in its braces.
fn has_oddity(difference: &Difference, oddity: &str) -> bool {
    let braces = difference.text.split('{').skip(1).filter_map(|rest| rest.split('}').next());
    braces.flat_map(|braces| braces.split(',')).any(|found| found.trim() == oddity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Answer;
    use crate::conformance::wire::Family;

    /// The row of a packet with which the kernel and fwha do this.
    fn row(
        sequence: &str,
        packet: usize,
        both: (Verdict, Verdict),
        reasons: &[&'static str],
    ) -> Option<&'static str> {
        let answer = |verdict, reasons: &[&'static str]| Answer {
            verdict,
            outputs: Vec::new(),
            words: String::new(),
            reasons: reasons.into(),
            entries: Vec::new(),
            timeout_s: None,
        };
        let difference = Difference {
            sequence: sequence.into(),
            family: Family::V4,
            packet,
            text: "> udp 2000 {frag 0+800 800+}".into(),
            kernel: answer(both.0, &[]),
            fwha: answer(both.1, reasons),
            hooks: vec!["xdp", "tc"],
            before: Vec::new(),
        };
        known(&difference).map(|known| known.id)
    }

    #[test]
    fn fragments_are_known_packet_by_packet() {
        use Verdict::{Drop, Icmp, Pass};
        assert_eq!(row("fragments_twice", 3, (Pass, Drop), &["fragment"]), Some("fragments"));
        // Without a reason, for another, in another packet, and the other way round.
        assert_eq!(row("fragments_twice", 3, (Pass, Drop), &[]), None);
        assert_eq!(row("fragments_twice", 3, (Pass, Drop), &["fragment", "no_rule"]), None);
        assert_eq!(row("fragments_twice", 1, (Pass, Drop), &["fragment"]), None);
        assert_eq!(row("fragments_twice", 3, (Drop, Pass), &[]), None);
        assert_eq!(row("fragments_overlapping", 4, (Drop, Pass), &[]), Some("fragments"));
        assert_eq!(row("fragments_overlapping", 1, (Drop, Pass), &[]), None);
        assert_eq!(row("ttl", 1, (Icmp, Drop), &["no_rule"]), Some("answer-before-rules"));
        assert_eq!(row("ttl", 1, (Icmp, Drop), &[]), None);
    }

    #[test]
    fn every_known_difference_is_described() {
        let text = include_str!("../../../docs/conntrack-differences.md");
        let all = || KNOWN.iter().map(|known| known.id).chain(FORESEEN.iter().copied());
        for id in all() {
            assert!(text.contains(&format!("| `{id}` |")), "{id} is not described");
        }
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, all().count(), "described and no longer known");
    }
}

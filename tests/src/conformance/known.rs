//! The differences that are meant. Each is described in `docs/conntrack-differences.md` under its id.

use super::Difference;
use super::script::Verdict;

/// A difference that is meant.
pub struct Known {
    /// Its name in the documentation.
    pub id: &'static str,
    /// Why fwha does not do what the kernel does, in a line.
    pub reason: &'static str,
    /// Whether it explains a difference.
    pub explains: fn(&Difference) -> bool,
}

/// All of them.
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

    #[test]
    fn every_known_difference_is_described() {
        let text = include_str!("../../../docs/conntrack-differences.md");
        for known in KNOWN {
            assert!(text.contains(&format!("| `{}` |", known.id)), "{} is not described", known.id);
        }
        let rows = text.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, KNOWN.len(), "described and no longer known");
    }
}

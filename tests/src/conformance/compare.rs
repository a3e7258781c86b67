//! What came out of a device, in a form in which two devices can be compared: frames without padding, IPv4 checksums
//! proved, fragments put together.

use super::script::Verdict;
use super::wire::{Family, Side, internet_checksum, octets};

/// Length of an Ethernet header.
const ETH: usize = 14;

/// A frame that came out, in its plain form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Where.
    pub side: Side,
    /// The frame: padding cut off, a right IPv4 checksum replaced by zero, a datagram whole.
    pub frame: Vec<u8>,
}

impl Output {
    /// Whether the device itself sent this, as an ICMP error.
    pub fn is_own_error(&self) -> bool {
        own_source(&self.frame).is_some() && icmp(&self.frame).is_some()
    }

    /// In words; `whole` is what a router would have made of the packet.
    pub fn describe(&self, whole: &[Output]) -> String {
        if whole.contains(self) {
            return "forwarded".into();
        }
        let mut text = match icmp(&self.frame) {
            Some((kind, code)) if self.is_own_error() => format!("ICMP {kind}/{code} of its own"),
            _ => format!("{} bytes", self.frame.len() - ETH),
        };
        text += match self.side {
            Side::Inside => " to inside",
            Side::Outside => " to outside",
        };
        if !self.is_own_error() {
            let hex: Vec<String> = self.frame.iter().take(120).map(|byte| format!("{byte:02x}")).collect();
            text += &format!(": {}", hex.concat());
        }
        text
    }
}

/// The verdict in one word, from what came out and what a router would have made of the packet.
pub fn verdict(outputs: &[Output], whole: &[Output]) -> Verdict {
    if outputs.is_empty() {
        Verdict::Drop
    } else if outputs == whole {
        Verdict::Pass
    } else if outputs.iter().all(Output::is_own_error) {
        Verdict::Icmp
    } else {
        Verdict::Other
    }
}

/// What a router makes of a frame that it forwards: next hop's MACs, TTL one lower.
pub fn routed(from: Side, frame: &[u8]) -> Vec<u8> {
    let to = from.other();
    let mut frame = frame.to_vec();
    frame[..6].copy_from_slice(&to.router_mac());
    frame[6..12].copy_from_slice(&to.device_mac());
    let v6 = frame[12..ETH] == [0x86, 0xdd];
    let ttl = ETH + if v6 { 7 } else { 8 };
    if let Some(ttl) = frame.get_mut(ttl) {
        *ttl = ttl.wrapping_sub(1);
    }
    if !v6 && let Some(sum) = frame.get(ETH + 10..ETH + 12) {
        // RFC 1624: the high byte of that word went down by one.
        let sum = u32::from(u16::from_be_bytes([sum[0], sum[1]])) + 0x100;
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        frame[ETH + 10..ETH + 12].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// Puts fragments together, over a whole sequence: a datagram counts in the step in which it becomes complete.
#[derive(Default)]
pub struct Plain {
    datagrams: Vec<Datagram>,
}

/// A datagram of which not all has been seen.
struct Datagram {
    side: Side,
    key: Vec<u8>,
    /// Frame up to the fragmented part, of the first fragment.
    head: Option<Vec<u8>>,
    parts: Vec<(usize, Vec<u8>)>,
    len: Option<usize>,
}

impl Plain {
    /// Brings frames into their plain form. Fragments of a datagram that is not complete yet are kept; such that overlap
    /// others in part stay as they are.
    pub fn take(&mut self, frames: Vec<(Side, Vec<u8>)>) -> Vec<Output> {
        frames.into_iter().filter_map(|(side, frame)| self.one(side, plain(frame))).collect()
    }

    fn one(&mut self, side: Side, frame: Vec<u8>) -> Option<Output> {
        let Some(fragment) = Fragment::read(&frame) else {
            return Some(Output { side, frame });
        };
        let known = self.datagrams.iter().position(|d| d.side == side && d.key == fragment.key);
        let at = known.unwrap_or_else(|| {
            let key = fragment.key.clone();
            self.datagrams.push(Datagram { side, key, head: None, parts: Vec::new(), len: None });
            self.datagrams.len() - 1
        });
        let datagram = &mut self.datagrams[at];
        // Only the last may end anywhere; Linux cuts the others to where the next can begin.
        let len = if fragment.more { fragment.data.len() / 8 * 8 } else { fragment.data.len() };
        let data = &fragment.data[..len];
        let (from, to) = (fragment.from, fragment.from + len);
        // What is there already, wholly, is a duplicate (RFC 8200, 4.5; erratum 3089 to RFC 5722).
        let covered: usize = datagram
            .parts
            .iter()
            .map(|(at, part)| to.min(at + part.len()).saturating_sub(from.max(*at)))
            .sum();
        if covered == len && len > 0 {
            return None;
        }
        if covered > 0 {
            return Some(Output { side, frame });
        }
        if from == 0 {
            datagram.head = Some(fragment.head);
        }
        if !fragment.more {
            datagram.len = Some(to);
        }
        datagram.parts.push((from, data.to_vec()));
        let have: usize = datagram.parts.iter().map(|(_, part)| part.len()).sum();
        if datagram.len != Some(have) || datagram.head.is_none() {
            return None;
        }
        let datagram = self.datagrams.swap_remove(at);
        let mut parts = datagram.parts;
        parts.sort();
        let mut frame = datagram.head?;
        parts.iter().for_each(|(_, part)| frame.extend(part));
        let (at, len) =
            if frame[12..ETH] == [0x08, 0x00] { (2, frame.len() - ETH) } else { (4, frame.len() - ETH - 40) };
        frame[ETH + at..ETH + at + 2].copy_from_slice(&(len as u16).to_be_bytes());
        Some(Output { side, frame })
    }
}

/// A frame with a fragment.
struct Fragment<'a> {
    key: Vec<u8>,
    head: Vec<u8>,
    from: usize,
    more: bool,
    data: &'a [u8],
}

impl<'a> Fragment<'a> {
    fn read(frame: &'a [u8]) -> Option<Self> {
        let ip = frame.get(ETH..)?;
        if frame[12..ETH] == [0x08, 0x00] {
            let field = u16::from_be_bytes([*ip.get(6)?, *ip.get(7)?]);
            let header_len = usize::from(ip[0] & 0x0f) * 4;
            if field & 0x3fff == 0 || ip.len() < header_len.max(20) {
                return None;
            }
            let mut head = frame[..ETH + header_len].to_vec();
            // Whether the fragments may be fragmented says nothing about the whole; Linux forgets it.
            head[ETH + 6] &= 0x80;
            head[ETH + 7] = 0;
            return Some(Self {
                key: [&ip[4..6], &ip[9..10], &ip[12..20]].concat(),
                head,
                from: usize::from(field & 0x1fff) * 8,
                more: field & 0x2000 != 0,
                data: &ip[header_len..],
            });
        }
        // Behind hop-by-hop options, routing header and destination options.
        let (mut at, mut next_at) = (40, 6);
        while matches!(ip.get(next_at)?, 0 | 43 | 60) {
            next_at = at;
            at += 8 + usize::from(*ip.get(at + 1)?) * 8;
        }
        if ip[next_at] != 44 || ip.len() < at + 8 {
            return None;
        }
        let field = u16::from_be_bytes([ip[at + 2], ip[at + 3]]);
        let mut head = frame[..ETH + at].to_vec();
        head[ETH + next_at] = ip[at];
        // One in one piece (RFC 6946) is a datagram as any other: Linux takes the header away.
        Some(Self {
            key: [&ip[at + 4..at + 8], &ip[8..40]].concat(),
            head,
            from: usize::from(field >> 3) * 8,
            more: field & 1 != 0,
            data: &ip[at + 8..],
        })
    }
}

/// A frame without what may differ: padding; a checksum that is right; in what the device itself sent over IPv4, the
/// identification.
fn plain(mut frame: Vec<u8>) -> Vec<u8> {
    let own = own_source(&frame);
    let Some(ip) = frame.get_mut(ETH..) else {
        return frame;
    };
    match ip.first().map(|first| first >> 4) {
        Some(4) if ip.len() >= 20 => {
            let header_len = (usize::from(ip[0] & 0x0f) * 4).clamp(20, ip.len());
            if internet_checksum(&[&ip[..header_len]]) == 0 {
                ip[10..12].fill(0);
                if own == Some(Family::V4) {
                    ip[4..6].fill(0);
                }
            }
            let len = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
            frame.truncate(ETH + len.max(20));
        }
        Some(6) if ip.len() >= 40 => {
            let len = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
            frame.truncate(ETH + 40 + len);
        }
        _ => {}
    }
    frame
}

/// The family, if the source is an address of the device.
fn own_source(frame: &[u8]) -> Option<Family> {
    [Family::V4, Family::V6].into_iter().find(|family| {
        let range = match family {
            Family::V4 => ETH + 12..ETH + 16,
            Family::V6 => ETH + 8..ETH + 24,
        };
        frame.get(range).is_some_and(|source| {
            Side::BOTH.iter().any(|side| octets(side.device_address(*family)) == source)
        })
    })
}

/// Type and code, if the frame is ICMP.
fn icmp(frame: &[u8]) -> Option<(u8, u8)> {
    let at = match (frame.get(12..ETH)?, frame.get(ETH + 9)?, frame.get(ETH + 6)?) {
        ([0x08, 0x00], 1, _) => ETH + usize::from(frame[ETH] & 0x0f) * 4,
        ([0x86, 0xdd], _, 58) => ETH + 40,
        _ => return None,
    };
    Some((*frame.get(at)?, *frame.get(at + 1)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::script::parse;
    use crate::conformance::wire::{Ends, frames};

    /// What comes out if the packets of this script are routed.
    fn routed_script(lines: &str) -> Vec<Output> {
        let sequence = parse(&format!("== x\n{lines}")).unwrap().remove(0);
        let ends = Ends::new(Family::V4, 1, sequence.isn);
        let mut plain = Plain::default();
        let steps = sequence.steps.iter();
        let sent = steps.flat_map(|step| frames(&step.message, &ends));
        plain.take(sent.map(|frame| (Side::Outside, routed(Side::Inside, &frame))).collect())
    }

    #[test]
    fn a_datagram_is_the_same_whole_and_in_fragments_of_any_order() {
        let whole = routed_script("> udp 1000");
        assert_eq!(whole.len(), 1);
        for pieces in ["0+400 400+", "400+ 0+400", "800+ 0+400 400+400", "0+400 0+400 400+"] {
            assert_eq!(routed_script(&format!("> udp 1000 {{frag {pieces}}}")), whole, "{pieces}");
        }
        assert_eq!(routed_script("> udp 1000 {frag 0+400}\n> udp 1000 {frag 400+}"), whole);
    }

    #[test]
    fn what_cannot_be_put_together_is_no_datagram() {
        assert!(routed_script("> udp 1000 {frag 0+400 408+}").is_empty());
        assert!(routed_script("> udp 1000 {frag 0+400}\n> udp 1000 {id 1,frag 400+}").is_empty());
        let overlapping = routed_script("> udp 1000 {frag 0+408 400+}");
        assert!(overlapping.len() == 1 && overlapping != routed_script("> udp 1000"));
    }

    #[test]
    fn padding_does_not_count_but_a_changed_byte_does() {
        let sent = routed_script("> udp 10");
        assert_eq!(routed_script("> udp 10 {pad 9}"), sent);
        assert_ne!(routed_script("> udp 10 {tos 1}"), sent);
        assert_ne!(routed_script("> udp 10 {ipcsum bad}"), sent);
        assert_eq!(verdict(&sent, &sent), Verdict::Pass);
        assert_eq!(verdict(&routed_script("> udp 10 {ttl 9}"), &sent), Verdict::Other);
    }
}

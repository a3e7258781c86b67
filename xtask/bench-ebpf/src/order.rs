// What the generator is asked to make, in the one element of its map `ORDER`. Included by the generator and by the
// bench, which writes it.

/// Kinds of traffic and how far it has come.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    /// Slot of the program that gets the packets.
    pub program: u64,
    /// Destination MAC, its bytes in the low 48 bits in the order of memory.
    pub dst_mac: u64,
    /// Source MAC.
    pub src_mac: u64,
    /// 4 or 6.
    pub family: u64,
    /// IP protocol: TCP or UDP.
    pub proto: u64,
    /// Flags of TCP. With SYN, the segment offers the largest window scale (RFC 7323).
    pub flags: u64,
    /// 0 from client to server, 1 back.
    pub reply: u64,
    /// Number of the first flow.
    pub first: u64,
    /// 0 for one flow after the other; else flows at random, of this many.
    pub random: u64,
    /// Bytes of L4 payload in each packet.
    pub payload: u64,
    /// Bytes by which the conversation moves on with each packet.
    pub advance: u64,
    /// What the sender has sent of the sequence space when this begins, its SYN included.
    pub sent: u64,
    /// What the sender has heard of the other side's sequence space, and acknowledges.
    pub heard: u64,
    /// Packets made so far.
    pub made: u64,
    /// State of the pseudo-random numbers.
    pub seed: u64,
    /// Index of the interface on which live frames go out.
    pub device: u64,
    /// 0 for packets of one size; else for the lengths of [`mix`].
    pub mix: u64,
    /// 0 for packets as fast as it goes; else so many in a burst, and the time at which each was made is in the first eight
    /// bytes of its payload (UDP).
    pub burst: u64,
    /// From the begin of one burst to that of the next, in ns.
    pub every: u64,
    /// When the next burst begins, by the kernel's monotonic clock.
    pub due: u64,
    /// 0 for one kind of packet; else so many of `step` for each flow: the first of all flows of a block, then the second of
    /// them, and so on.
    pub steps: u64,
    /// Flows in a block.
    pub block: u64,
    /// Number of the first flow that gets its steps, and how many do.
    pub first_step: u64,
    pub flows: u64,
    /// Packets of a conversation: TCP flags, from bit 8 on whether it goes back, from bit 16 on bytes of payload.
    pub step: [u64; STEPS],
    /// What their sender has sent, in the upper half, and heard.
    pub step_sequence: [u64; STEPS],
    /// `dst_mac`, `src_mac` and `device` from client to server, and back.
    pub way: [[u64; 3]; 2],
}

/// Packets of a conversation at most.
pub const STEPS: usize = 5;
/// Bytes of L4 payload of a packet of "simple IMIX" in UDP over IPv4: of twelve, seven are 40 bytes long, four 576, one 1500.
pub const fn mix(packet: u64) -> u64 {
    // No table: the kernel's verifier would not know that the place is in it.
    match packet % 12 {
        6 => 1_472,
        1 | 4 | 8 | 10 => 548,
        _ => 12,
    }
}

/// Times in ns up to some seconds, each bucket at most an eighth wide.
pub const BUCKETS: usize = 256;

/// The bucket of a time in ns: three bits behind the first one.
pub const fn bucket(ns: u64) -> usize {
    if ns < 8 {
        return ns as usize;
    }
    let exponent = 63 - ns.leading_zeros() as usize;
    let bucket = (exponent - 2) * 8 + (ns >> (exponent - 3) & 7) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The shortest time of a bucket, in ns.
#[cfg_attr(target_arch = "bpf", expect(dead_code, reason = "for who reads the counts"))]
pub const fn shortest(bucket: usize) -> u64 {
    if bucket < 8 { bucket as u64 } else { (8 + bucket as u64 % 8) << (bucket / 8 - 1) }
}

#[cfg(test)]
mod tests {
    use super::{BUCKETS, bucket, mix, shortest};

    #[test]
    fn buckets_follow_each_other_and_are_an_eighth_wide_at_most() {
        for number in 0..BUCKETS - 1 {
            let (first, next) = (shortest(number), shortest(number + 1));
            assert_eq!((bucket(first), bucket(next - 1), bucket(next)), (number, number, number + 1));
            assert!(next - first <= (first / 8).max(1));
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn the_mix_is_simple_imix() {
        let packets = |length| (0..12).filter(|packet| mix(*packet) + 28 == length).count();
        assert_eq!([40, 576, 1500].map(packets), [7, 4, 1]);
    }
}

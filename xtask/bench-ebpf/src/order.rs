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
    /// Bytes of L4 payload in each packet, by which the conversation moves on with each.
    pub payload: u64,
    /// What the sender has sent of the sequence space when this begins, its SYN included.
    pub sent: u64,
    /// What the sender has heard of the other side's sequence space, and acknowledges.
    pub heard: u64,
    /// Packets made so far.
    pub made: u64,
    /// State of the pseudo-random numbers.
    pub seed: u64,
}

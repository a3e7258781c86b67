//! The probe: a small keyed Ethernet frame that a node's data plane answers without its daemon.
//!
//! A node whose heartbeats stop is asked on every interface that the two nodes share. A box that is
//! dead answers nowhere; one whose daemon hangs answers everywhere; one that lost its sync link
//! answers on its zone interfaces.
//!
//! ```text
//!   0  destination MAC   6  source MAC   12  EtherType 0x88b5
//!  14  magic "FWHP"      18  kind  19  from node  20  to node  21  flags  22  zero (2)
//!  24  cluster (u32)     28  lease_ms (u32)
//!  32  nonce (u64)       40  tag (u64)          48  end; all numbers little-endian
//!
//!  tag = SipHash-2-4(key, magic kind from to flags | cluster << 32 + lease_ms | nonce)
//! ```
//!
//! The EtherType is the one IEEE 802 sets aside for local experiments. A bridge forwards the frame
//! like any other; a router does not.

use crate::siphash::siphash24;

/// EtherType of probes: IEEE 802 local experimental 1.
pub const ETHERTYPE: u16 = 0x88b5;
/// Length of the frame without padding and checksum.
pub const FRAME_LEN: usize = 48;
/// First bytes of the payload.
pub const MAGIC: [u8; 4] = *b"FWHP";

/// What a probe is.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// "Are you there?"
    Request = 1,
    /// "My data plane is."
    Reply = 2,
}

/// Everything behind the Ethernet header.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// [`MAGIC`].
    pub magic: [u8; 4],
    /// A [`ProbeKind`].
    pub kind: u8,
    /// Node that sent this frame.
    pub from: u8,
    /// Node that it is for.
    pub to: u8,
    /// Bits; in a reply [`Probe::OWNS`].
    pub flags: u8,
    /// Always zero.
    pub zero: [u8; 2],
    /// The cluster's id, little-endian.
    pub cluster: [u8; 4],
    /// In a reply: how long the longest lease of an owned group still runs, ms, little-endian.
    pub lease_ms: [u8; 4],
    /// Chosen by the prober, repeated in the reply, little-endian.
    pub nonce: [u8; 8],
    /// The tag, little-endian.
    pub tag: [u8; 8],
}

impl Probe {
    /// Flag of a reply: the data plane owns at least one group, under a valid lease.
    pub const OWNS: u8 = 1;

    /// A request, sealed.
    pub fn request(key: &[u64; 2], cluster: u32, from: u8, to: u8, nonce: u64) -> Self {
        let mut probe = Self {
            magic: MAGIC,
            kind: ProbeKind::Request as u8,
            from,
            to,
            flags: 0,
            zero: [0; 2],
            cluster: cluster.to_le_bytes(),
            lease_ms: [0; 4],
            nonce: nonce.to_le_bytes(),
            tag: [0; 8],
        };
        probe.seal(key);
        probe
    }

    /// The tag that this probe must carry under `key`.
    #[inline(always)]
    pub fn expected_tag(&self, key: &[u64; 2]) -> u64 {
        let head = u64::from_le_bytes([
            self.magic[0],
            self.magic[1],
            self.magic[2],
            self.magic[3],
            self.kind,
            self.from,
            self.to,
            self.flags,
        ]);
        let middle =
            (u32::from_le_bytes(self.cluster) as u64) << 32 | u32::from_le_bytes(self.lease_ms) as u64;
        siphash24(key, &[head, middle, u64::from_le_bytes(self.nonce)])
    }

    /// Writes the tag.
    #[inline(always)]
    pub fn seal(&mut self, key: &[u64; 2]) {
        self.tag = self.expected_tag(key).to_le_bytes();
    }

    /// Whether magic and tag are right.
    #[inline(always)]
    pub fn valid(&self, key: &[u64; 2]) -> bool {
        self.magic == MAGIC && u64::from_le_bytes(self.tag) == self.expected_tag(key)
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `repr(C)`, made of bytes only, without padding (asserted below), valid for any bits.
    unsafe impl aya::Pod for super::Probe {}
}

const _: () = assert!(size_of::<Probe>() == FRAME_LEN - 14 && align_of::<Probe>() == 1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_or_key_spoils_the_tag() {
        let key = [1, 2];
        let probe = Probe::request(&key, 7, 1, 2, 99);
        assert!(probe.valid(&key));
        assert!(!probe.valid(&[1, 3]));
        for change in [
            |p: &mut Probe| p.magic[0] ^= 1,
            |p: &mut Probe| p.kind ^= 1,
            |p: &mut Probe| p.from ^= 1,
            |p: &mut Probe| p.to ^= 1,
            |p: &mut Probe| p.flags ^= 1,
            |p: &mut Probe| p.cluster[3] ^= 1,
            |p: &mut Probe| p.lease_ms[0] ^= 1,
            |p: &mut Probe| p.nonce[7] ^= 1,
            |p: &mut Probe| p.tag[0] ^= 1,
        ] {
            let mut spoilt = probe;
            change(&mut spoilt);
            assert!(!spoilt.valid(&key));
        }
    }
}

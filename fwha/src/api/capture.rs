//! Packets that were dropped.

use serde::{Deserialize, Serialize};

/// What `GET /v1/capture` takes. The capture ends when the client goes away; there is one at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CaptureQuery {
    /// Reasons, by the names in [`Stats::drops`](super::Stats::drops), with commas between them; all if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty", with = "commas")]
    pub reasons: Vec<String>,
    /// End after so many packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// Bytes of each packet, at most; there are never more than 256.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snap_len: Option<u32>,
}

/// A line of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum CaptureLine {
    /// A packet that was dropped.
    Packet(DroppedPacket),
    /// What was missed so far; told when it changes, and as the last line.
    Missed(CaptureMissed),
}

/// A packet that was dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DroppedPacket {
    /// When, in ns since 1970, by this node's wall clock.
    pub at_unix_ns: u64,
    /// The interface it came in by; at the hook `egress` the one it was to leave by.
    pub interface: String,
    /// Where it was dropped: `xdp` or (tc) `ingress` of a zone's interface, `egress`, or `sync` on a sync interface.
    pub hook: String,
    /// Why, by the names in [`Stats::drops`](super::Stats::drops).
    pub reason: String,
    /// Its length on the wire, from the Ethernet header on; of a super-packet, the whole of it.
    pub length_bytes: u32,
    /// Its first bytes, in hexadecimal digits.
    #[serde(with = "hex")]
    pub frame: Vec<u8>,
}

/// Drops that a capture asked for and does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureMissed {
    /// There were more than are sampled in that time.
    pub skipped: u64,
    /// The client read too slowly.
    pub lost: u64,
}

/// Words in a query: a key may come only once there.
mod commas {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(words: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&words.join(","))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let text = String::deserialize(deserializer)?;
        Ok(text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }
}

/// Bytes as hexadecimal digits.
mod hex {
    use std::fmt::Write as _;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(2 * bytes.len());
        for byte in bytes {
            // Writing to memory does not fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits: Option<Vec<u8>> = text.chars().map(|c| Some(c.to_digit(16)? as u8)).collect();
        match digits {
            Some(digits) if digits.len().is_multiple_of(2) => {
                Ok(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
            }
            _ => Err(D::Error::custom("not pairs of hexadecimal digits")),
        }
    }
}

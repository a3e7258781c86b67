//! A node with the cluster's key that may say anything: hellos with any content, data with any payload.
//!
//! It seals by the description of the format in `fwha_proto::seal`, not by its code, and with another implementation of the
//! cipher.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce};
use fwha_proto::NodeId;
use fwha_proto::seal::{ClusterKey, Identity, Purpose};
use hkdf::Hkdf;
use sha2::Sha256;

/// The cluster's key, as bytes.
pub const KEY: [u8; 32] = [7; 32];

/// The cluster's key.
pub const fn key() -> ClusterKey {
    ClusterKey::new(KEY)
}

fn aead(info: &[&[u8]]) -> ChaCha20Poly1305 {
    let mut key = [0; 32];
    Hkdf::<Sha256>::new(Some(b"fwha 1"), &KEY).expand_multi_info(info, &mut key).expect("32 bytes");
    ChaCha20Poly1305::new(&Key::from(key))
}

fn seal(
    aead: &ChaCha20Poly1305,
    kind: u8,
    header: (Identity, NodeId, Purpose, u64),
    plain: &[u8],
) -> Vec<u8> {
    let (from, to, purpose, counter) = header;
    let mut datagram = Vec::from(*b"FW\x01");
    datagram.push(kind);
    datagram.extend(from.cluster.to_le_bytes());
    datagram.extend([from.node, to, purpose as u8, 0]);
    datagram.extend(key().id().to_le_bytes());
    datagram.extend(from.epoch.to_le_bytes());
    datagram.extend(counter.to_le_bytes());
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    let sealed = aead.encrypt(&Nonce::from(nonce), Payload { msg: plain, aad: &datagram });
    datagram.extend(sealed.expect("less than 64 GiB"));
    datagram
}

/// A hello of `from`, with any content.
pub fn hello(from: Identity, to: NodeId, purpose: Purpose, counter: u64, plain: &[u8]) -> Vec<u8> {
    let ends = [purpose as u8, from.node, to];
    let aead = aead(&[b"hello", &from.cluster.to_le_bytes(), &ends, &from.epoch.to_le_bytes()]);
    seal(&aead, 1, (from, to, purpose, counter), plain)
}

/// Data of `from` for a node of this epoch.
pub fn data(from: Identity, to: Identity, purpose: Purpose, counter: u64, plain: &[u8]) -> Vec<u8> {
    let (ends, epochs) =
        ([purpose as u8, from.node, to.node], [from.epoch.to_le_bytes(), to.epoch.to_le_bytes()]);
    let aead = aead(&[b"data", &from.cluster.to_le_bytes(), &ends, &epochs[0], &epochs[1]]);
    seal(&aead, 2, (from, to.node, purpose, counter), plain)
}

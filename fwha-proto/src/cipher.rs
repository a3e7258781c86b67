//! What seals a datagram: ChaCha20-Poly1305 (RFC 8439).
//!
//! With the feature `simulation`, which no program for use has, there is a second one, for keys that ask for it
//! (`ClusterKey::simulated`): it encrypts nothing, and its tag is a quick hash under the same derived key, over the same
//! bytes. Whatever is refused is refused by the same code, of the same datagrams; a simulated cluster spends more than half
//! its time on the cipher otherwise.

use chacha20poly1305::aead::{AeadInOut, KeyInit};
use chacha20poly1305::{ChaCha20Poly1305, Key, Nonce, Tag};

/// Bytes of a tag.
pub const TAG_LEN: usize = 16;

/// See the module.
pub enum Cipher {
    /// ChaCha20-Poly1305.
    Sealing(ChaCha20Poly1305),
    /// A tag alone.
    #[cfg(feature = "simulation")]
    Tagging([u64; 4]),
}

impl Cipher {
    /// ChaCha20-Poly1305 with a key.
    pub fn new(key: &Key) -> Self {
        Self::Sealing(ChaCha20Poly1305::new(key))
    }

    /// A tag alone, with a key.
    #[cfg(feature = "simulation")]
    pub fn tagging(key: &Key) -> Self {
        let word = |i: usize| u64::from_le_bytes(std::array::from_fn(|b| key[8 * i + b]));
        Self::Tagging(std::array::from_fn(word))
    }

    /// Encrypts the body in place; the tag, which is also of the header.
    pub fn seal(&self, counter: u64, header: &[u8], body: &mut [u8]) -> [u8; TAG_LEN] {
        match self {
            Self::Sealing(aead) => aead
                .encrypt_inout_detached(&nonce(counter), header, body.into())
                .expect("a datagram is far below the cipher's limit of 256 GiB")
                .into(),
            #[cfg(feature = "simulation")]
            Self::Tagging(key) => tag(key, counter, header, body),
        }
    }

    /// Decrypts the body in place; whether header, body and tag are what was sealed.
    pub fn open(&self, counter: u64, header: &[u8], body: &mut [u8], tag: [u8; TAG_LEN]) -> bool {
        match self {
            Self::Sealing(aead) => {
                aead.decrypt_inout_detached(&nonce(counter), header, body.into(), &Tag::from(tag)).is_ok()
            }
            #[cfg(feature = "simulation")]
            Self::Tagging(key) => self::tag(key, counter, header, body) == tag,
        }
    }
}

fn nonce(counter: u64) -> Nonce {
    let mut nonce = Nonce::default();
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    nonce
}

/// No two datagrams that differ in one word have the same: each word goes in by a bijection.
#[cfg(feature = "simulation")]
fn tag(key: &[u64; 4], counter: u64, header: &[u8], body: &[u8]) -> [u8; TAG_LEN] {
    let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    let mut hash = [key[0], key[1], key[2], counter, body.len() as u64].into_iter().fold(key[3], mix);
    for part in [header, body] {
        let (words, rest) = part.as_chunks::<8>();
        hash = words.iter().fold(hash, |hash, word| mix(hash, u64::from_le_bytes(*word)));
        hash = rest.iter().fold(hash, |hash, &byte| mix(hash, byte.into()));
    }
    let halves = [mix(hash, key[1]), mix(mix(hash, key[2]), key[0])];
    let mut tag = [0; TAG_LEN];
    tag[..8].copy_from_slice(&halves[0].to_le_bytes());
    tag[8..].copy_from_slice(&halves[1].to_le_bytes());
    tag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ciphers() -> Vec<[Cipher; 2]> {
        let keys = [Key::from([7; 32]), Key::from([8; 32])];
        vec![
            keys.map(|key| Cipher::new(&key)),
            #[cfg(feature = "simulation")]
            keys.map(|key| Cipher::tagging(&key)),
        ]
    }

    #[test]
    fn what_was_sealed_opens_and_nothing_else() {
        let (header, plain) = ([3; 32], *b"what one node tells another");
        for [cipher, other] in ciphers() {
            let mut sealed = plain;
            let tag = cipher.seal(5, &header, &mut sealed);
            let opens = |cipher: &Cipher, counter, header: &[u8], body: &[u8], tag| {
                let mut body = body.to_vec();
                cipher.open(counter, header, &mut body, tag).then_some(body)
            };
            assert_eq!(opens(&cipher, 5, &header, &sealed, tag).as_deref(), Some(&plain[..]));
            assert_eq!(opens(&other, 5, &header, &sealed, tag), None);
            assert_eq!(opens(&cipher, 6, &header, &sealed, tag), None);
            assert_eq!(opens(&cipher, 5, &header, &sealed[1..], tag), None);
            assert_eq!(opens(&cipher, 5, &header, &[&sealed[..], &[0]].concat(), tag), None);
            for bit in 0..8 * header.len() {
                let mut header = header;
                header[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opens(&cipher, 5, &header, &sealed, tag), None);
            }
            for bit in 0..8 * sealed.len() {
                let mut body = sealed;
                body[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opens(&cipher, 5, &header, &body, tag), None);
            }
            for bit in 0..8 * TAG_LEN {
                let mut tag = tag;
                tag[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opens(&cipher, 5, &header, &sealed, tag), None);
            }
        }
    }
}

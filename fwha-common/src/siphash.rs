//! SipHash (Aumasson and Bernstein, "SipHash: a fast short-input PRF", 2012) over whole words.
//!
//! SipHash-2-4 proves who sent something. SipHash-1-3, of half the rounds, is for hash tables, whose attacker does not see the
//! hashes: so the kernel (`hsiphash` of include/linux/siphash.h) and Rust's `HashMap` use it.
//!
//! Written here because it must run inside the kernel programs, where the input is always a fixed
//! number of 64-bit words and the loop must unroll.

/// The hash of `words` under `key`, equal to SipHash-1-3 of their little-endian bytes.
#[inline(always)]
pub fn siphash13<const N: usize>(key: &[u64; 2], words: &[u64; N]) -> u64 {
    siphash::<N, 1, 3>(key, words)
}

/// The hash of `words` under `key`, equal to SipHash-2-4 of their little-endian bytes.
#[inline(always)]
pub fn siphash24<const N: usize>(key: &[u64; 2], words: &[u64; N]) -> u64 {
    siphash::<N, 2, 4>(key, words)
}

/// With `C` rounds for each word, and `D` at the end.
#[inline(always)]
fn siphash<const N: usize, const C: u32, const D: u32>(key: &[u64; 2], words: &[u64; N]) -> u64 {
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    let mut i = 0;
    while i < N {
        absorb::<C>(&mut v, words[i]);
        i += 1;
    }
    absorb::<C>(&mut v, ((N as u64 * 8) & 0xff) << 56);
    v[2] ^= 0xff;
    rounds::<D>(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn absorb<const C: u32>(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    rounds::<C>(v);
    v[0] ^= word;
}

#[inline(always)]
fn rounds<const R: u32>(v: &mut [u64; 4]) {
    let mut n = 0;
    while n < R {
        round(v);
        n += 1;
    }
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher;

    use siphasher::sip::{SipHasher13, SipHasher24};

    use super::{siphash13, siphash24};

    #[test]
    fn equals_other_implementations() {
        for n in 0..64u64 {
            let key = [n.wrapping_mul(0x9e37_79b9_7f4a_7c15), !n];
            let words = [n, n << 7, !n, 0, u64::MAX];
            let mut of_24 = SipHasher24::new_with_keys(key[0], key[1]);
            let mut of_13 = SipHasher13::new_with_keys(key[0], key[1]);
            for w in words {
                of_24.write(&w.to_le_bytes());
                of_13.write(&w.to_le_bytes());
            }
            assert_eq!(siphash24(&key, &words), of_24.finish());
            assert_eq!(siphash13(&key, &words), of_13.finish());
        }
    }
}

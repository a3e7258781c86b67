//! Random numbers from the kernel.

use std::io;

use super::check;

/// A random 64-bit number, for boot epochs and nonces.
///
/// # Errors
///
/// Those of `getrandom(2)`.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: the buffer has the length given; up to 256 bytes come whole (getrandom(2)).
    check(unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
    Ok(u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ() {
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
    }
}

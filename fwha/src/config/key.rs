//! The cluster key: 32 random bytes that all nodes share. Whoever has them can write flows into the
//! tables of every node, so the file must be its owner's alone.
//!
//! ```text
//! # comment lines and empty lines are skipped
//! 6d0c5f…  64 hexadecimal digits
//! ```

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use fwha_proto::seal::ClusterKey;
use zeroize::Zeroizing;

/// Bytes of a key.
const KEY_LEN: usize = 32;

/// Why a key file cannot be used or made. The texts follow the name of the file.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none.
    #[error("does not exist")]
    Missing,
    /// Others than the owner can read or write it.
    #[error("can be read by others (mode {0:04o})")]
    Exposed(u32),
    /// It is no regular file.
    #[error("is not a regular file")]
    NotAFile,
    /// Fewer digits than a key has.
    #[error("is too short: {0} of 64 hexadecimal digits")]
    TooShort(usize),
    /// Something other than one line of hexadecimal digits.
    #[error("does not hold one line of 64 hexadecimal digits")]
    Malformed,
    /// It exists already, so no key is written to it.
    #[error("exists already; a key is never overwritten")]
    Exists,
    /// The system refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

impl KeyError {
    /// What would mend it.
    pub fn remedy(&self, path: &Path) -> String {
        let path = path.display();
        match self {
            Self::Missing => format!("make one with `fwhactl keygen {path}`, then copy it to every node"),
            Self::Exposed(_) => format!("chmod 600 {path}"),
            Self::TooShort(_) | Self::Malformed => {
                format!("copy it again from another node, or remove it and run `fwhactl keygen {path}`")
            }
            Self::Exists => "move it away first, or choose another name".into(),
            Self::NotAFile | Self::Io(_) => "check the path and its permissions".into(),
        }
    }
}

/// A key file is not longer than this; a longer one is something else.
const FILE_LEN_MAX: u64 = 4096;

/// Reads the key in the file at `path`.
///
/// # Errors
/// If there is none, if others than its owner may read or write it, or if it holds no key.
pub fn read(path: &Path) -> Result<ClusterKey, KeyError> {
    // Non-blocking: opening a FIFO must not hang the daemon.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(path).map_err(
            |e| match e.kind() {
                std::io::ErrorKind::NotFound => KeyError::Missing,
                _ => KeyError::Io(e),
            },
        )?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(KeyError::NotAFile);
    }
    if meta.mode() & 0o077 != 0 {
        return Err(KeyError::Exposed(meta.mode() & 0o7777));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(FILE_LEN_MAX as usize));
    file.take(FILE_LEN_MAX).read_to_end(&mut bytes)?;
    parse(&bytes)
}

/// The key in the contents of a key file.
fn parse(bytes: &[u8]) -> Result<ClusterKey, KeyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Malformed)?;
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let digits = lines.next().unwrap_or("");
    if lines.next().is_some() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(KeyError::Malformed);
    }
    if digits.len() < 2 * KEY_LEN {
        return Err(KeyError::TooShort(digits.len()));
    }
    if digits.len() > 2 * KEY_LEN {
        return Err(KeyError::Malformed);
    }
    let mut key = Zeroizing::new([0; KEY_LEN]);
    for (byte, pair) in key.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
        *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
    }
    Ok(ClusterKey::new(*key))
}

/// Makes a new key and writes it to a new file at `path`, readable by its owner only.
///
/// # Errors
/// If the file exists, or the system refuses.
pub fn generate(path: &Path) -> Result<(), KeyError> {
    let mut file: File =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| {
            match e.kind() {
                std::io::ErrorKind::AlreadyExists => KeyError::Exists,
                _ => KeyError::Io(e),
            }
        })?;
    let written = write_key(&mut file);
    if written.is_err() {
        // Half a key is no key; the file is ours, made a moment ago.
        let _ = std::fs::remove_file(path);
    }
    written
}

fn write_key(file: &mut File) -> Result<(), KeyError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *key).map_err(|e| KeyError::Io(std::io::Error::other(e.to_string())))?;
    let mut text = Zeroizing::new(String::with_capacity(256));
    text.push_str("# fwha cluster key: the same file on every node, readable by root only\n");
    for byte in *key {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
        }
    }
    text.push('\n');
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_generated_key_reads_back_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        generate(&a).unwrap();
        generate(&b).unwrap();
        assert_eq!(std::fs::metadata(&a).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_ne!(read(&a).unwrap().id(), read(&b).unwrap().id());
        let before = std::fs::read(&a).unwrap();
        assert!(matches!(generate(&a), Err(KeyError::Exists)));
        assert_eq!(std::fs::read(&a).unwrap(), before);
    }

    #[test]
    fn only_one_line_of_64_digits_is_a_key() {
        let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
        let key = parse(format!("# a comment\n\n  {digits}\r\n").as_bytes()).unwrap();
        let half = 0x0123_4567_89ab_cdef_abcd_ef01_2345_6789u128.to_be_bytes();
        let bytes: [u8; KEY_LEN] = [half, half].concat().try_into().unwrap();
        assert_eq!(key.id(), ClusterKey::new(bytes).id());
        assert!(matches!(parse(&digits.as_bytes()[..63]), Err(KeyError::TooShort(63))));
        assert!(matches!(parse(b""), Err(KeyError::TooShort(0))));
        assert!(matches!(parse(format!("{digits}0").as_bytes()), Err(KeyError::Malformed)));
        assert!(matches!(parse(format!("{digits}\n{digits}").as_bytes()), Err(KeyError::Malformed)));
        assert!(matches!(parse(digits.replace('7', "g").as_bytes()), Err(KeyError::Malformed)));
        assert!(matches!(parse(&[0xff; 64]), Err(KeyError::Malformed)));
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        assert!(matches!(read(&path), Err(KeyError::Missing)));
        generate(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert!(matches!(read(&path), Err(KeyError::Exposed(m)) if m == mode), "{mode:o}");
        }
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o400)).unwrap();
        read(&path).unwrap();
        assert!(matches!(read(dir.path()), Err(KeyError::NotAFile)));
    }
}

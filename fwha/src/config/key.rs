//! The cluster key: 32 random bytes that all nodes share. Whoever has them can write flows into the
//! tables of every node, so the file must be its owner's alone.
//!
//! ```text
//! # comment lines and empty lines are skipped
//! 6d0c5f…        64 hexadecimal digits: the key
//! 91b2c0…        the key before, accepted too while the new one is brought to all nodes
//! seed 91b2c0…   what hashes are keyed with, once that is not the key any more
//! ```
//!
//! **Rotation.** [`rotate`] puts a new key before the old one; the file is copied to every node, and each
//! reads it on SIGHUP. When all have, [`finish`] takes the old key out, the same way. Nodes seal with the
//! newest key that the other one has shown to hold, so the order does not matter. The seed stays: it
//! decides which bucket a flow is in, which all nodes must see alike.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use fwha_proto::seal::{ClusterKey, KeyRing};
use zeroize::Zeroizing;

/// Bytes of a key.
const KEY_LEN: usize = 32;

/// Begins the line of the seed.
const SEED: &str = "seed";
/// A key file is not longer than this; a longer one is something else.
const FILE_LEN_MAX: u64 = 4096;

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
    /// It holds two keys already.
    #[error("holds the key before, too: the last rotation is not finished")]
    Rotating,
    /// It holds one key only.
    #[error("holds one key only: no rotation is under way")]
    NotRotating,
    /// It exists already, so no key is written to it.
    #[error("exists already; a key is never overwritten")]
    Exists,
    /// A change of it was begun and has not ended, or goes on now; this file holds what was to be.
    #[error("is changed by somebody else, or was until the machine failed: {} is there", .0.display())]
    Unfinished(PathBuf),
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
            Self::Unfinished(beside) => {
                format!("unless somebody changes it right now, remove {} and do it again", beside.display())
            }
            Self::Exists => "move it away first, or choose another name".into(),
            Self::Rotating => format!("when every node has this file: fwhactl keygen --finish {path}"),
            Self::NotRotating => format!("begin one: fwhactl keygen --rotate {path}"),
            Self::NotAFile | Self::Io(_) => "check the path and its permissions".into(),
        }
    }
}

/// A key's bytes.
type Secret = Zeroizing<[u8; KEY_LEN]>;

/// What a key file holds.
struct Keys {
    key: Secret,
    previous: Option<Secret>,
    seed: Option<Secret>,
}

/// Reads the keys in the file at `path`.
///
/// # Errors
/// If there is none, if others than its owner may read or write it, or if it holds no key.
pub fn read(path: &Path) -> Result<KeyRing, KeyError> {
    let keys = read_keys(path)?;
    let key = |secret: &Secret| ClusterKey::new(**secret);
    Ok(KeyRing::new(key(&keys.key), keys.previous.as_ref().map(key), keys.seed.as_ref().map(key)))
}

fn read_keys(path: &Path) -> Result<Keys, KeyError> {
    parse(&read_secret_file(path)?)
}

/// Reads a key of keepalived's `auth_hmac`: a line `hex:…`, or the key itself.
///
/// # Errors
/// As [`read`].
pub fn read_hmac(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let bytes = read_secret_file(path)?;
    let text = bytes.trim_ascii();
    let Some(digits) = text.strip_prefix(b"hex:") else { return Ok(Zeroizing::new(text.to_vec())) };
    if !digits.len().is_multiple_of(2) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(KeyError::Malformed);
    }
    let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
    let key = digits.as_chunks::<2>().0.iter().map(|[high, low]| nibble(*high) << 4 | nibble(*low));
    Ok(Zeroizing::new(key.collect()))
}

/// The contents of a file that nobody but its owner may read.
fn read_secret_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
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
    Ok(bytes)
}

/// The keys in the contents of a key file.
fn parse(bytes: &[u8]) -> Result<Keys, KeyError> {
    let text = std::str::from_utf8(bytes).map_err(|_| KeyError::Malformed)?;
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')).peekable();
    let key = secret(lines.next().unwrap_or(""))?;
    let previous = lines.next_if(|line| !line.starts_with(SEED)).map(secret).transpose()?;
    let seed = lines.next().map(|line| secret(line.strip_prefix(SEED).unwrap_or(line).trim_start()));
    if lines.next().is_some() {
        return Err(KeyError::Malformed);
    }
    Ok(Keys { key, previous, seed: seed.transpose()? })
}

fn secret(digits: &str) -> Result<Secret, KeyError> {
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(KeyError::Malformed);
    }
    if digits.len() < 2 * KEY_LEN {
        return Err(KeyError::TooShort(digits.len()));
    }
    if digits.len() > 2 * KEY_LEN {
        return Err(KeyError::Malformed);
    }
    let mut secret = Zeroizing::new([0; KEY_LEN]);
    for (byte, pair) in secret.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        let nibble = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
        *byte = nibble(pair[0]) << 4 | nibble(pair[1]);
    }
    Ok(secret)
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
    let written = new_secret().and_then(|key| write(&mut file, &Keys { key, previous: None, seed: None }));
    if written.is_err() {
        // Half a key is no key; the file is ours, made a moment ago.
        let _ = std::fs::remove_file(path);
    }
    written
}

/// Puts a new key into the file at `path`, before the one that is there.
///
/// # Errors
/// If the file cannot be read, or holds a key before already.
pub fn rotate(path: &Path) -> Result<(), KeyError> {
    let old = read_keys(path)?;
    if old.previous.is_some() {
        return Err(KeyError::Rotating);
    }
    let seed = old.seed.or_else(|| Some(old.key.clone()));
    replace(path, &Keys { key: new_secret()?, previous: Some(old.key), seed })
}

/// Takes the key before the newest out of the file at `path`.
///
/// # Errors
/// If the file cannot be read, or holds but one key.
pub fn finish(path: &Path) -> Result<(), KeyError> {
    let keys = read_keys(path)?;
    if keys.previous.is_none() {
        return Err(KeyError::NotRotating);
    }
    replace(path, &Keys { previous: None, ..keys })
}

/// Writes a file beside it first: whoever reads finds all of the old one or all of the new one.
fn replace(path: &Path, keys: &Keys) -> Result<(), KeyError> {
    let name = path.file_name().ok_or(KeyError::NotAFile)?.to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.new"));
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(|e| {
            match e.kind() {
                std::io::ErrorKind::AlreadyExists => KeyError::Unfinished(beside.clone()),
                _ => KeyError::Io(e),
            }
        })?;
    let written = write(&mut file, keys).and_then(|()| Ok(std::fs::rename(&beside, path)?));
    if written.is_err() {
        // As above.
        let _ = std::fs::remove_file(&beside);
    }
    written
}

fn new_secret() -> Result<Secret, KeyError> {
    let mut key = Zeroizing::new([0; KEY_LEN]);
    getrandom::fill(&mut *key).map_err(|e| KeyError::Io(std::io::Error::other(e.to_string())))?;
    Ok(key)
}

fn write(file: &mut File, keys: &Keys) -> Result<(), KeyError> {
    let mut text = Zeroizing::new(String::with_capacity(512));
    text.push_str("# fwha cluster key: the same file on every node, readable by root only\n");
    let lines = [Some(&keys.key), keys.previous.as_ref(), keys.seed.as_ref()];
    for (n, secret) in lines.into_iter().enumerate() {
        let Some(secret) = secret else { continue };
        if n == 2 {
            text.push_str(SEED);
            text.push(' ');
        }
        for byte in **secret {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(nibble.into(), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
    }
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
        assert_eq!(*key.key, bytes);
        assert!(key.previous.is_none() && key.seed.is_none());
        assert!(matches!(parse(&digits.as_bytes()[..63]), Err(KeyError::TooShort(63))));
        assert!(matches!(parse(b""), Err(KeyError::TooShort(0))));
        assert!(matches!(parse(format!("{digits}0").as_bytes()), Err(KeyError::Malformed)));
        let three = format!("{digits}\n{digits}\nseed {digits}\n");
        assert!(parse(three.as_bytes()).is_ok_and(|k| k.previous.is_some() && k.seed.is_some()));
        assert!(matches!(parse(format!("{three}{digits}").as_bytes()), Err(KeyError::Malformed)));
        assert!(matches!(parse(digits.replace('7', "g").as_bytes()), Err(KeyError::Malformed)));
        assert!(matches!(parse(&[0xff; 64]), Err(KeyError::Malformed)));
    }

    #[test]
    fn a_rotation_keeps_the_old_key_until_it_is_finished_and_the_seed_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        generate(&path).unwrap();
        let first = read(&path).unwrap();
        assert!(matches!(finish(&path), Err(KeyError::NotRotating)));
        for _ in 0..2 {
            let before = read(&path).unwrap();
            rotate(&path).unwrap();
            let both = read(&path).unwrap();
            assert!(both.is_rotating() && both.id() != before.id());
            assert!(matches!(rotate(&path), Err(KeyError::Rotating)));
            finish(&path).unwrap();
            let after = read(&path).unwrap();
            assert_eq!((after.id(), after.is_rotating()), (both.id(), false));
            assert!(after.same_seed(&first) && both.same_seed(&first));
            assert_eq!(after.siphash_key("bucket"), first.siphash_key("bucket"));
        }
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let beside = dir.path().join(format!(".{}.new", path.file_name().unwrap().to_string_lossy()));
        std::fs::write(&beside, "half").unwrap();
        let unfinished = rotate(&path).unwrap_err();
        for text in [unfinished.to_string(), unfinished.remedy(&path)] {
            assert!(text.contains(&*beside.to_string_lossy()), "{text}");
        }
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

//! What forwarding needs of the kernel, interface by interface, and setting it back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    DataplaneError,
    pins::{PinDir, entries, escape, file_name, make_dir, unescape},
};

/// Settings of `net.ipv4.conf.<interface>` that an interface of a zone needs.
const NEEDED: [(&str, &str); 2] = [
    // `bpf_fib_lookup` refuses to look up for an interface that does not forward, and the slow path
    // is the kernel's own forwarding.
    ("forwarding", "1"),
    // Should a VIP be the first address of its subnet, its removal must not take the node's own
    // addresses of that subnet with it.
    ("promote_secondaries", "1"),
];

fn file(interface: &str, setting: &str) -> PathBuf {
    // Not `join`ed piece by piece for its own sake: a dot in a name is no separator here.
    Path::new("/proc/sys/net/ipv4/conf").join(interface).join(setting)
}

/// Changes what must be changed, and remembers what it was: an empty directory for each setting,
/// because a BPF file system has no files of its own.
pub(super) fn prepare(pins: &PinDir, interface: &str) -> Result<(), DataplaneError> {
    for (setting, value) in NEEDED {
        let path = file(interface, setting);
        let error =
            |source: io::Error| DataplaneError::Sysctl { path: path.clone(), value: value.into(), source };
        let before = fs::read_to_string(&path).map_err(error)?;
        if before.trim() != value {
            make_dir(&pins.restore().join(format!("{}:{setting}:{}", escape(interface), before.trim())))?;
            fs::write(&path, value).map_err(error)?;
        }
    }
    Ok(())
}

/// Sets everything back and forgets it. Interfaces that are gone need nothing.
pub(super) fn restore(pins: &PinDir) -> Result<(), DataplaneError> {
    let mut result = Ok(());
    for marker in entries(&pins.restore())? {
        let mut parts = file_name(&marker).rsplitn(3, ':');
        let (Some(value), Some(setting), Some(interface)) = (parts.next(), parts.next(), parts.next()) else {
            continue;
        };
        let path = file(&unescape(interface), setting);
        match fs::write(&path, value) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                result = result.and(Err(DataplaneError::Sysctl { path, value: value.into(), source }));
            }
            // Best effort: with the directory above it goes in any case.
            _ => drop(fs::remove_dir(&marker)),
        }
    }
    result
}

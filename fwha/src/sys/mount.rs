//! The BPF file system, where maps and links are pinned.

use std::{io, path::Path};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::statfs,
};

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// Whether `path` is on a BPF file system.
///
/// # Errors
///
/// Those of `statfs(2)`.
pub fn is_bpffs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type().0 as u32 == BPF_FS_MAGIC)
}

/// Mounts a BPF file system on `path` unless there is one.
///
/// # Errors
///
/// Those of `statfs(2)` and `mount(2)`.
pub fn ensure_bpffs(path: &Path) -> io::Result<()> {
    if is_bpffs(path)? {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))?)
}

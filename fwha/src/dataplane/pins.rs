//! The pin directory: its layout, whose it is, and taking it away.

use std::{
    ffi::OsStr,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use fwha_common::ABI_VERSION;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use super::{BPFFS, DataplaneError};
use crate::sys::mount::{ensure_bpffs, is_bpffs};

/// A node's directory on the BPF file system.
#[derive(Clone, Debug)]
pub(super) struct PinDir {
    path: PathBuf,
    /// Keeps other daemons out. The kernel lets go of it when the process ends, however it ends.
    _lock: Option<Arc<Flock<File>>>,
}

impl PinDir {
    /// Makes the directory and those in it, and takes it for this process alone; mounts the BPF file
    /// system if need be.
    pub fn create(path: &Path) -> Result<Self, DataplaneError> {
        if path.starts_with(BPFFS) {
            ensure_bpffs(Path::new(BPFFS)).map_err(DataplaneError::Mount)?;
        }
        // Before anything is made or removed there.
        let Some(mut pins) = Self::on_bpffs(path) else { return Err(DataplaneError::NotBpffs(path.into())) };
        make_dir(path)?;
        pins._lock = Some(Arc::new(lock(path)?));
        for dir in [pins.maps(), pins.links(), pins.restore()] {
            make_dir(&dir)?;
        }
        Ok(pins)
    }

    /// The directory, taken for this process alone, if it exists.
    pub fn existing(path: &Path) -> Result<Option<Self>, DataplaneError> {
        let found = if path.is_dir() { Self::on_bpffs(path) } else { None };
        found.map(|pins| Ok(Self { _lock: Some(Arc::new(lock(path)?)), ..pins })).transpose()
    }

    /// The directory, if it is or would be on a BPF file system: elsewhere nothing is ours to remove.
    fn on_bpffs(path: &Path) -> Option<Self> {
        let there = path.ancestors().find(|p| p.exists())?;
        is_bpffs(there).is_ok_and(|yes| yes).then(|| Self { path: path.into(), _lock: None })
    }

    /// Maps of this version of the layouts.
    pub fn maps(&self) -> PathBuf {
        self.path.join(format!("abi{ABI_VERSION}"))
    }

    /// The pin of a map.
    pub fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Programs, of one build of the object.
    pub fn programs(&self, object: &str) -> PathBuf {
        self.path.join("programs").join(object)
    }

    /// Removes the programs of all builds.
    pub fn clear_programs(&self) -> Result<(), DataplaneError> {
        remove_tree(&self.path.join("programs"))
    }

    /// Links.
    pub fn links(&self) -> PathBuf {
        self.path.join("links")
    }

    /// Makes the directory of links, should somebody have removed it under a running daemon. Not that of maps: new ones
    /// beside those in use must not come about.
    pub fn make_links(&self) -> Result<(), DataplaneError> {
        if self.path.starts_with(BPFFS) {
            ensure_bpffs(Path::new(BPFFS)).map_err(DataplaneError::Mount)?;
        }
        let links = self.links();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&links)
            .map_err(|source| DataplaneError::Unpinned { path: links, source })
    }

    /// What sysctls were.
    pub fn restore(&self) -> PathBuf {
        self.path.join("restore")
    }

    pub fn has_links(&self) -> bool {
        entries(&self.links()).is_ok_and(|e| !e.is_empty())
    }

    /// Whether the maps were made for this numbering, see [`super::Options::numbering`].
    pub fn has_numbering(&self, numbering: u32) -> bool {
        self.numbering(numbering).exists()
    }

    /// Notes for which numbering the maps are made.
    pub fn note_numbering(&self, numbering: u32) -> Result<(), DataplaneError> {
        remove_tree(&self.path.join("numbering"))?;
        make_dir(&self.numbering(numbering))
    }

    fn numbering(&self, numbering: u32) -> PathBuf {
        self.path.join("numbering").join(format!("{numbering:08x}"))
    }

    /// Removes the maps, to begin anew.
    pub fn clear_maps(&self) -> Result<(), DataplaneError> {
        entries(&self.maps())?.iter().try_for_each(|path| remove_file(path))
    }

    /// Removes maps of other versions of the layouts.
    pub fn remove_other_versions(&self) -> Result<(), DataplaneError> {
        let this = self.maps();
        entries(&self.path)?
            .iter()
            .filter(|path| **path != this && file_name(path).starts_with("abi"))
            .try_for_each(|path| remove_tree(path))
    }

    /// Removes the directory with all that is pinned there, and its parent if that is then empty.
    pub fn remove(&self) -> Result<(), DataplaneError> {
        remove_tree(&self.path)?;
        if let Some(parent) = self.path.parent() {
            // Other nodes on this machine have theirs beside.
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

/// Takes a directory for this process alone.
fn lock(dir: &Path) -> Result<Flock<File>, DataplaneError> {
    let opened = File::open(dir).map_err(|e| pin_error("open", dir, e))?;
    let lock = Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => DataplaneError::InUse(dir.into()),
        errno => pin_error("lock", dir, errno.into()),
    })?;
    // The daemon before may have removed it between the two calls, as its last act.
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    match (lock.metadata(), fs::metadata(dir)) {
        (Ok(ours), Ok(there)) if same(&ours, &there) => Ok(lock),
        _ => Err(DataplaneError::InUse(dir.into())),
    }
}

/// The name of an interface as a part of a pin's name: bpffs takes no dots, and an interface's name
/// has no colons (`dev_valid_name` in net/core/dev.c).
pub(super) fn escape(interface: &str) -> String {
    interface.replace('.', "::")
}

/// The opposite of [`escape`].
pub(super) fn unescape(name: &str) -> String {
    name.replace("::", ".")
}

pub(super) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

pub(super) fn pin_error(what: &'static str, path: &Path, source: io::Error) -> DataplaneError {
    DataplaneError::Pin { what, path: path.into(), source }
}

/// What is in a directory, in the order of names; nothing if there is no such directory.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, DataplaneError> {
    let read = || -> io::Result<Vec<PathBuf>> { fs::read_dir(dir)?.map(|e| Ok(e?.path())).collect() };
    match read() {
        Ok(mut paths) => {
            paths.sort();
            Ok(paths)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(pin_error("list", dir, e)),
    }
}

pub(super) fn make_dir(dir: &Path) -> Result<(), DataplaneError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| pin_error("make", dir, e))
}

pub(super) fn remove_file(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path, e)),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<(), DataplaneError> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path, e)),
        _ => Ok(()),
    }
}

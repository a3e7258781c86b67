//! The kernel's spaces: network namespaces by name, and the one mount namespace that all nodes of a lab share.
//!
//! BPF pins live in a bpffs, and a node that is started again must find those it left. `ip netns exec` would give every
//! process a mount namespace and a `/sys` of its own, so nodes are started by hand: in the lab's mount namespace, which
//! has a bpffs of its own on `/sys/fs/bpf`. No other lab and no real cluster on this machine sees those pins, and they
//! go when the last process and descriptor of the namespace goes.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Where `ip netns` keeps its namespaces.
pub const NETNS_DIR: &str = "/run/netns";
/// Where bpffs belongs.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Opens a named network namespace.
pub fn open_netns(name: &str) -> Result<File> {
    let path = Path::new(NETNS_DIR).join(name);
    File::open(&path).with_context(|| format!("open namespace {}", path.display()))
}

/// Makes a network namespace without a name. It lives as long as the descriptor, a socket or a process in it.
pub fn new_netns() -> Result<File> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("unshare the network namespace")?;
        File::open("/proc/thread-self/ns/net").context("open the network namespace")
    })?
}

/// Makes the lab's mount namespace. It lives as long as the descriptor or a process in it.
pub fn new_mount_namespace() -> Result<File> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
        // A slave: what the host mounts and unmounts (namespaces that go, say) arrives here, nothing goes back.
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
            .context("make the mounts private to the lab")?;
        // Also over one that is mounted already: each mount of bpffs is a file system of its own.
        mount(Some("bpffs"), BPFFS, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
            .with_context(|| format!("mount bpffs on {BPFFS}"))?;
        File::open("/proc/thread-self/ns/mnt").context("open the mount namespace")
    })?
}

/// Runs `work` in a network namespace, on a thread of its own.
pub fn in_netns<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    on_thread(|| {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).context("enter the network namespace")?;
        Ok(work())
    })?
}

/// Runs `work` in a mount namespace, on a thread of its own.
pub fn in_mounts<T: Send>(mount_namespace: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    on_thread(|| {
        // A thread may change its mount namespace once it shares root and working directory with no other.
        unshare(CloneFlags::CLONE_FS).context("unshare the working directory")?;
        setns(mount_namespace.as_fd(), CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
        Ok(work())
    })?
}

/// All files below [`BPFFS`] of a mount namespace, relative to it. Directories count only when they are empty: then they
/// are what was left behind.
pub fn pins(mount_namespace: &File) -> Result<Vec<PathBuf>> {
    in_mounts(mount_namespace, || {
        let mut found = Vec::new();
        list(Path::new(BPFFS), &mut found)?;
        for path in &mut found {
            *path = path.strip_prefix(BPFFS).map(Path::to_path_buf).unwrap_or_default();
        }
        // The kernel's own iterators, in every bpffs (kernel/bpf/preload).
        found.retain(|path| !matches!(path.to_str(), Some("maps.debug" | "progs.debug")));
        found.sort();
        Ok(found)
    })?
}

fn list(dir: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            let before = found.len();
            list(&path, found)?;
            if found.len() > before {
                continue;
            }
        }
        found.push(path);
    }
    Ok(())
}

fn on_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    thread::scope(|scope| scope.spawn(work).join()).map_err(|_| anyhow!("the work in the namespace panicked"))
}

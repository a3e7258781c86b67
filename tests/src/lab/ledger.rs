//! What labs there are, and how they go: one entry per lab, made before the first namespace and gone after the last.
//!
//! ```text
//! /run/fwha-lab/fwha-PID-RANDOM/owner     PID and its start time: a stale lab is one whose owner is gone
//! /run/fwha-lab/fwha-PID-RANDOM/kept      present: the owner left it standing on purpose
//! /run/netns/fwha-PID-RANDOM-HOST         the boxes
//! CGROUP2/fwha-PID-RANDOM-HOST            control groups of boxes that have one
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::space::{self, NETNS_DIR};
use super::{Host, wiring};

/// Where labs keep their files; short, for the control sockets' paths are limited to 107 bytes.
const ROOT: &str = "/run/fwha-lab";

/// How long killed processes may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// The labs of this process, for the signal handler.
static OPEN: Mutex<BTreeMap<String, Arc<Entry>>> = Mutex::new(BTreeMap::new());

/// One lab's claim on names, and the descriptors of its spaces.
pub struct Entry {
    id: String,
    dir: PathBuf,
    mounts: File,
    boxes: OnceLock<Vec<File>>,
    /// False once removal began or the lab was left standing. Held while a process is started, so that removal misses
    /// none.
    open: Mutex<bool>,
}

/// Claims a name for a new lab and makes its mount namespace.
pub fn open() -> Result<Arc<Entry>> {
    let id = format!("fwha-{}-{:04x}", std::process::id(), RandomState::new().build_hasher().finish() as u16);
    let dir = Path::new(ROOT).join(&id);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .with_context(|| format!("make {}", dir.display()))?;
    fs::write(dir.join("owner"), owner_line(std::process::id())?).context("note the lab's owner")?;
    let mounts = space::new_mount_namespace()?;
    let entry = Arc::new(Entry { id, dir, mounts, boxes: OnceLock::new(), open: Mutex::new(true) });
    lock(&OPEN).insert(entry.id.clone(), Arc::clone(&entry));
    Ok(entry)
}

impl Entry {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn namespace(&self, host: Host) -> String {
        format!("{}-{}", self.id, host.name())
    }

    /// Makes the boxes with `lay` and opens them. A removal waits until that is done.
    pub fn lay(&self, lay: impl FnOnce() -> Result<()>) -> Result<()> {
        let open = lock(&self.open);
        ensure!(*open, "the lab is being removed");
        lay()?;
        let boxes = Host::ALL.map(|host| space::open_netns(&self.namespace(host)));
        let boxes = boxes.into_iter().collect::<Result<Vec<File>>>()?;
        ensure!(self.boxes.set(boxes).is_ok(), "the lab's boxes are open already");
        Ok(())
    }

    pub fn within<T: Send>(&self, host: Host, work: impl FnOnce() -> T + Send) -> Result<T> {
        space::in_netns(&space::open_netns(&self.namespace(host))?, work)
    }

    pub fn pins(&self) -> Result<Vec<PathBuf>> {
        space::pins(&self.mounts)
    }

    pub fn in_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        space::in_mounts(&self.mounts, work)
    }

    /// Starts a command on a box, in the lab's mount namespace.
    pub fn spawn(&self, host: Host, command: &mut Command) -> Result<Child> {
        let boxes = self.boxes.get().context("the lab is not laid yet")?;
        let open = lock(&self.open);
        ensure!(*open, "the lab is being removed");
        crate::sys::start_in(command, boxes[host as usize].as_fd(), Some(self.mounts.as_fd()));
        command
            .spawn()
            .with_context(|| format!("start {} on {}", command.get_program().display(), host.name()))
    }

    /// Makes a control group (version 2) for a box. It goes with the lab.
    pub fn control_group(&self, host: Host) -> Result<PathBuf> {
        let group = control_groups_dir()?.context("no cgroup2 is mounted")?.join(self.namespace(host));
        let open = lock(&self.open);
        ensure!(*open, "the lab is being removed");
        fs::create_dir(&group).with_context(|| format!("make {}", group.display()))?;
        Ok(group)
    }

    /// Leaves the lab standing.
    pub fn mark_kept(&self) -> Result<()> {
        fs::write(self.dir.join("kept"), "").context("mark the lab as kept")?;
        *lock(&self.open) = false;
        lock(&OPEN).remove(&self.id);
        Ok(())
    }

    /// Removes the lab unless that was done, or it was left standing. If another thread is about it, waits for its end.
    pub fn remove(&self) -> Result<()> {
        let mut open = lock(&self.open);
        if !std::mem::take(&mut *open) {
            return Ok(());
        }
        let result = remove_by_id(&self.id);
        lock(&OPEN).remove(&self.id);
        result
    }
}

/// A signal ends this process: its labs go, and what runs in them fails for no other reason.
static TERMINATING: AtomicBool = AtomicBool::new(false);

/// Does not return if a signal is about to end this process: then what just failed is nobody's business.
pub fn wait_if_terminating() {
    while TERMINATING.load(Ordering::Acquire) {
        std::thread::park();
    }
}

/// Removes all labs of this process when a signal ends it. Does nothing when called again.
pub fn remove_on_termination() -> Result<()> {
    static DONE: Mutex<bool> = Mutex::new(false);
    let mut done = lock(&DONE);
    if !*done {
        crate::sys::on_termination(|| {
            TERMINATING.store(true, Ordering::Release);
            let open: Vec<Arc<Entry>> = lock(&OPEN).values().cloned().collect();
            for entry in open {
                if let Err(error) = entry.remove() {
                    eprintln!("lab {} could not be removed: {error:#}", entry.id);
                }
            }
        })
        .context("watch for signals")?;
        *done = true;
    }
    Ok(())
}

/// Removes labs whose owner is gone and that were not left standing on purpose. Returns their names.
///
/// # Errors
///
/// Naming what could not be removed.
pub fn clean_stale() -> Result<Vec<String>> {
    clean(|id| !kept(id))
}

/// Removes also the labs that were left standing, of `these` names. Returns their names. Labs in use stay.
///
/// # Errors
///
/// Naming what could not be removed.
pub fn clean_kept(these: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    clean(these)
}

fn clean(removable: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let ids: Vec<String> = ids()?.into_iter().filter(|id| !in_use(id) && removable(id)).collect();
    ids.iter().try_for_each(|id| remove_by_id(id))?;
    Ok(ids)
}

fn kept(id: &str) -> bool {
    Path::new(ROOT).join(id).join("kept").exists()
}

/// Verifies that no process, namespace, control group or file of a lab is left.
pub fn check_gone(id: &str) -> Result<()> {
    let left: Vec<String> = ids()?.into_iter().filter(|found| found == id).collect();
    ensure!(left.is_empty(), "something of lab {id} is left in {NETNS_DIR} or {ROOT}");
    let groups = control_groups(id)?;
    ensure!(groups.is_empty(), "{groups:?} of lab {id} are left");
    Ok(())
}

/// The labs that have a directory or a namespace.
fn ids() -> Result<Vec<String>> {
    let mut ids: Vec<String> =
        names(Path::new(ROOT))?.into_iter().filter(|id| owner_of(id).is_some()).collect();
    for name in names(Path::new(NETNS_DIR))? {
        if let Some((id, host)) = name.rsplit_once('-')
            && owner_of(id).is_some()
            && Host::ALL.iter().any(|known| known.name() == host)
        {
            ids.push(id.to_owned());
        }
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", dir.display()))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry?.file_name().into_string());
    }
    Ok(names)
}

/// The PID in a lab's name; `None` when the name is not one of ours.
fn owner_of(id: &str) -> Option<u32> {
    let (pid, random) = id.strip_prefix("fwha-")?.split_once('-')?;
    let hex = random.len() == 4 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| pid.parse().ok()).flatten()
}

/// Whether a lab's owner still runs and has not left it: a process of that PID, and the same one if the lab noted its
/// start.
fn in_use(id: &str) -> bool {
    if kept(id) {
        return false;
    }
    let Some(running) = owner_of(id).and_then(|pid| owner_line(pid).ok()) else { return false };
    // A lab that is just being made has no note yet, or an empty one.
    let noted = fs::read_to_string(Path::new(ROOT).join(id).join("owner")).unwrap_or_default();
    noted.is_empty() || noted == running
}

/// `PID STARTTIME` of a running process (`/proc/PID/stat`, field 22, proc_pid_stat(5)).
fn owner_line(pid: u32) -> Result<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in field 2 may hold anything, so fields are counted from its closing parenthesis: field 3 is the first.
    let start = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(19));
    Ok(format!("{pid} {}", start.context("read the start time of a process")?))
}

/// Ends every process in the lab's boxes, then removes control groups, boxes and files. Goes on after an error and returns the first.
/// Another process may be removing the same stale lab: what is gone is gone.
fn remove_by_id(id: &str) -> Result<()> {
    let namespaces: Vec<String> = Host::ALL
        .iter()
        .map(|host| format!("{id}-{}", host.name()))
        .filter(|name| netns_inode(name).is_some())
        .collect();
    let mut result = end_processes(&namespaces);
    result = result.and(remove_control_groups(id));
    for name in &namespaces {
        let deleted = wiring::ip(&["netns", "delete", name], "");
        result = result.and(if netns_inode(name).is_some() { deleted } else { Ok(()) });
    }
    let dir = Path::new(ROOT).join(id);
    let removed = fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()));
    result = result.and(if dir.exists() { removed } else { Ok(()) });
    // Only when it was the last lab.
    let _ = fs::remove_dir(ROOT);
    result
}

fn end_processes(namespaces: &[String]) -> Result<()> {
    let inodes: Vec<u64> = namespaces.iter().filter_map(|name| netns_inode(name)).collect();
    let deadline = Instant::now() + KILL_TIMEOUT;
    loop {
        let running = processes_in(&inodes)?;
        if running.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("processes {running:?} do not end");
        }
        for pid in running {
            // Gone in the meantime is as good.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Where control groups of version 2 are.
fn control_groups_dir() -> Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read the mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    Ok(fields.find(|f| f.get(2) == Some(&"cgroup2")).map(|f| PathBuf::from(f[1])))
}

/// Those of a lab's boxes.
fn control_groups(id: &str) -> Result<Vec<PathBuf>> {
    let Some(dir) = control_groups_dir()? else { return Ok(Vec::new()) };
    let groups = Host::ALL.iter().map(|host| dir.join(format!("{id}-{}", host.name())));
    Ok(groups.filter(|group| group.exists()).collect())
}

/// Processes leave their groups a moment after they were killed.
fn remove_control_groups(id: &str) -> Result<()> {
    let deadline = Instant::now() + KILL_TIMEOUT;
    for group in control_groups(id)? {
        while let Err(error) = remove_groups(&group) {
            if !group.exists() {
                break;
            }
            if Instant::now() >= deadline {
                return Err(error).with_context(|| format!("remove {}", group.display()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// Removes a control group and those below it.
fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

fn netns_inode(name: &str) -> Option<u64> {
    fs::metadata(Path::new(NETNS_DIR).join(name)).ok().map(|data| data.ino())
}

/// The processes whose network namespace is one of these; a zombie has none any more.
fn processes_in(inodes: &[u64]) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for name in names(Path::new("/proc"))? {
        let Ok(pid) = name.parse::<i32>() else { continue };
        if pid.cast_unsigned() == std::process::id() {
            continue;
        }
        let Ok(link) = fs::read_link(format!("/proc/{pid}/ns/net")) else { continue };
        let inode =
            link.to_str().and_then(|link| link.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok());
        if inode.is_some_and(|inode: u64| inodes.contains(&inode)) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_that_is_just_being_made_is_in_use() {
        if !crate::root::is_root() {
            return;
        }
        let id = format!("fwha-{}-0000", std::process::id());
        let dir = Path::new(ROOT).join(&id);
        fs::create_dir_all(&dir).unwrap();
        let mut seen = vec![in_use(&id)];
        for noted in [String::new(), owner_line(std::process::id()).unwrap(), "1 1".to_owned()] {
            fs::write(dir.join("owner"), noted).unwrap();
            seen.push(in_use(&id));
        }
        remove_by_id(&id).unwrap();
        assert_eq!(seen, [true, true, true, false], "no note, an empty one, its own, another's");
    }
}

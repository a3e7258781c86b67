//! Running on time: real-time scheduling, locked memory, limits.
//!
//! All of this is best effort: in a container much of it is denied, and the daemon runs without.

use std::io;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::check;

/// Descriptors that a busy node may need: sockets, maps, links, clients of the control socket.
const OPEN_FILES: u64 = 65_536;

/// Something that the system did not permit.
#[derive(Debug)]
pub struct Denied {
    /// What was asked for.
    pub what: &'static str,
    /// Why it was refused.
    pub error: io::Error,
}

impl std::fmt::Display for Denied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.what, self.error)
    }
}

/// Puts the calling thread under `SCHED_FIFO` at `priority` (1 to 99). Threads and processes that it
/// starts are ordinary again.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_NICE`; `EINVAL` for another priority.
pub fn run_realtime(priority: u8) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: priority.into() };
    // SAFETY: `param` outlives the call; thread 0 is the calling one.
    check(unsafe {
        libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const param)
    })
    .map(drop)
}

/// Gives the calling thread a larger share of a busy machine (`nice`, -20 to 19; lower is more).
///
/// # Errors
///
/// `EACCES` without `CAP_SYS_NICE`.
pub fn set_nice(nice: i8) -> io::Result<()> {
    // SAFETY: no addresses. To Linux, process 0 is the calling thread.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice.into()) }).map(drop)
}

/// Keeps all memory of the process from being paged out, each page from its first use on.
///
/// # Errors
///
/// `EPERM` or `ENOMEM` without `CAP_IPC_LOCK`.
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: no addresses; locking pages changes nothing that Rust relies on.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) }).map(drop)
}

/// Raises the limits of open files and of locked memory (which kernels before 5.11 apply to maps).
/// Returns what was denied.
pub fn raise_limits() -> Vec<Denied> {
    [
        ("raise the limit of open files", Resource::RLIMIT_NOFILE, OPEN_FILES),
        ("raise the limit of locked memory", Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY),
    ]
    .into_iter()
    .filter_map(|(what, resource, wanted)| {
        let raise = || -> nix::Result<()> {
            let (soft, hard) = getrlimit(resource)?;
            if soft >= wanted {
                return Ok(());
            }
            // Past the hard limit only with CAP_SYS_RESOURCE; otherwise as far as it goes.
            setrlimit(resource, wanted, hard.max(wanted)).or_else(|e| {
                setrlimit(resource, hard, hard)?;
                if hard >= wanted { Ok(()) } else { Err(e) }
            })
        };
        raise().err().map(|e| Denied { what, error: e.into() })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::root;

    #[test]
    fn limits_rise_or_say_why_not() {
        if !root() {
            return;
        }
        let denied = raise_limits();
        let (open_files, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert!(open_files >= OPEN_FILES || denied.iter().any(|d| d.to_string().contains("open files")));
    }

    #[test]
    fn an_impossible_priority_is_an_error() {
        assert_eq!(run_realtime(100).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}

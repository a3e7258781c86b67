//! For tests: network namespaces without names, which go with the last thread and descriptor, and what is put into them.

use std::{
    fs::File,
    os::fd::{AsFd, AsRawFd},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MsFlags, mount},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns, unshare},
    unistd::geteuid,
};

use crate::dataplane::{Options, pin_dir};
use crate::netlink::{Link, links::links};
use crate::sys::interface::coalesce;

/// Whether tests that need root can run. Says so if not; where `CI=true` that is a failure.
pub(crate) fn root() -> bool {
    let root = geteuid().is_root();
    if !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "tests must run as root in CI");
        println!("skipped: needs root");
    }
    root
}

/// An interface of this network namespace, once it has its carrier.
pub(crate) fn running(interface: &str) -> Link {
    let begun = Instant::now();
    loop {
        let found = links().unwrap().into_iter().find(|link| link.name == interface && link.running());
        if let Some(link) = found {
            return link;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{interface} has no carrier");
        thread::yield_now();
    }
}

/// A network namespace.
pub(crate) struct Net(File);

impl Net {
    pub fn new() -> Self {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let net = Self(thread::scope(|s| s.spawn(make).join().unwrap()));
        net.ip("link set lo up");
        net
    }

    /// Two namespaces joined by a cable: `near` in the first, `far` in the second.
    pub fn pair() -> (Self, Self) {
        let (a, b) = (Self::new(), Self::new());
        a.cable("near", "far", &b);
        a.ip("address add 10.9.0.1/24 dev near");
        b.ip("address add 10.9.0.2/24 dev far");
        (a, b)
    }

    /// A veth pair from here to another namespace, up. The other end polls, so that this one can have XDP.
    pub fn cable(&self, here: &str, there: &str, other: &Self) {
        let fd = format!("/proc/{}/fd/{}", std::process::id(), other.0.as_raw_fd());
        self.ip(&format!("link add {here} type veth peer name {there} netns {fd}"));
        self.ip(&format!("link set {here} up"));
        other.ip(&format!("link set {there} up"));
        other.within(|| coalesce(there, true)).unwrap();
    }

    /// Runs in the namespace, in a thread of its own.
    pub fn within<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        thread::scope(|s| {
            let run = || {
                setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
                f()
            };
            s.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Runs in the namespace and with an empty BPF file system of its own, on `/sys/fs/bpf`.
    pub fn with_bpffs<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.within(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).unwrap();
            f()
        })
    }

    /// Runs `ip` with these words and returns what it says.
    pub fn ip(&self, words: &str) -> String {
        let output = self.within(|| Command::new("ip").args(words.split_whitespace()).output().unwrap());
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Index of an interface.
    pub fn ifindex(&self, name: &str) -> u32 {
        self.within(|| nix::net::if_::if_nametoindex(name).unwrap())
    }

    /// MAC of an interface.
    pub fn mac(&self, name: &str) -> [u8; 6] {
        self.within(|| {
            let links = crate::netlink::links::links().unwrap();
            links.iter().find(|l| l.name == name).unwrap().mac.unwrap()
        })
    }
}

/// Waits until there is something to read. Only a failing test waits that long.
pub(crate) fn await_readable(socket: impl AsFd) {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(Duration::from_secs(20)).unwrap();
    assert_eq!(poll(&mut fds, timeout).unwrap(), 1, "nothing came");
}

/// A data plane on no interface, for so many flows.
pub(crate) fn options(max_flows: u32) -> Options {
    Options {
        pin_dir: pin_dir("test", "fw1"),
        numbering: 0,
        max_flows,
        max_embryonic: 256,
        interfaces: Vec::new(),
        sync_interfaces: Vec::new(),
    }
}

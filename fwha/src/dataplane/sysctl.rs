//! What forwarding needs of the kernel, interface by interface, and setting it back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    DataplaneError,
    pins::{PinDir, entries, escape, file_name, make_dir, pin_error, unescape},
};

/// A setting of `net.<family>.conf.<interface>`.
struct Setting {
    family: &'static str,
    name: &'static str,
    /// What it must be.
    value: &'static str,
    /// Only if it was this before.
    instead_of: Option<&'static str>,
}

/// What an interface of a zone needs, in this order.
const NEEDED: [Setting; 5] = [
    // `bpf_fib_lookup` refuses to look up for an interface that does not forward, and the slow path
    // is the kernel's own forwarding.
    Setting { family: "ipv4", name: "forwarding", value: "1", instead_of: None },
    // Should a VIP be the first address of its subnet, its removal must not take the node's own
    // addresses of that subnet with it.
    Setting { family: "ipv4", name: "promote_secondaries", value: "1", instead_of: None },
    // A router forgets what router advertisements told it, unless it is told not to. One that was a router before did not
    // listen, and does not begin to.
    Setting { family: "ipv6", name: "accept_ra", value: "2", instead_of: Some("1") },
    Setting { family: "ipv6", name: "forwarding", value: "1", instead_of: None },
    // The stack forwards IPv6 if all interfaces do; or, since Linux 6.17, of one that does by itself (`ip6_forward` in
    // net/ipv6/ip6_output.c). `fwha status` tells of a kernel without it.
    Setting { family: "ipv6", name: FORCE, value: "1", instead_of: None },
];

const FORCE: &str = "force_forwarding";

/// What an interface needs, too, where sources are not held against the routes: the stack, which takes what the programs leave
/// to it, must not do so either (`__fib_validate_source` in net/ipv4/fib_frontend.c).
const LOOSE: Setting = Setting { family: "ipv4", name: "rp_filter", value: "2", instead_of: None };

/// Whether the stack drops what comes by an interface that answers would not leave by: the greater of its own value and that of
/// `all` counts.
fn holds_sources_against_routes(interface: &str) -> bool {
    let is = |interface, value| reads("ipv4", interface, "rp_filter", value);
    !is("all", "2") && !is(interface, "2") && (is("all", "1") || is(interface, "1"))
}

fn file(family: &str, interface: &str, setting: &str) -> PathBuf {
    // Not `join`ed piece by piece for its own sake: a dot in a name is no separator here.
    Path::new("/proc/sys/net").join(family).join("conf").join(interface).join(setting)
}

/// Changes what must be changed, and remembers what it was: an empty directory for each setting,
/// because a BPF file system has no files of its own.
pub(super) fn prepare(pins: &PinDir, interface: &str, anti_spoofing: bool) -> Result<(), DataplaneError> {
    if anti_spoofing {
        restore_these(pins, |before| before.interface == interface && before.name == LOOSE.name)?;
    }
    let loose = (!anti_spoofing && holds_sources_against_routes(interface)).then_some(LOOSE);
    for Setting { family, name, value, instead_of } in NEEDED.into_iter().chain(loose) {
        let path = file(family, interface, name);
        let error =
            |source: io::Error| DataplaneError::Sysctl { path: path.clone(), value: value.into(), source };
        let present = match fs::read_to_string(&path) {
            // A kernel or an interface without IPv6 has none to forward.
            Err(e) if family == "ipv6" && e.kind() == io::ErrorKind::NotFound => continue,
            read => read.map_err(error)?,
        };
        let present = present.trim();
        let before = |name: &str, value: &str| Before {
            interface: interface.into(),
            family: family.into(),
            name: name.into(),
            value: value.into(),
        };
        let router = || {
            let made_one = before("forwarding", "0").marker(pins).exists();
            family == "ipv6" && !made_one && reads(family, interface, "forwarding", "1")
        };
        if present != value && instead_of.is_none_or(|other| other == present && !router()) {
            let _others = (name == "forwarding").then(Listeners::keep);
            let before = before(name, present);
            make_dir(&before.marker(pins))?;
            fs::write(&path, value).map_err(error)?;
        }
    }
    Ok(())
}

/// Whether the stack forwards IPv6 between zones, which takes what the programs leave to it: it does everywhere, or can do so
/// for single interfaces, which are told to. A kernel without IPv6 has none to forward.
pub fn stack_forwards_ipv6() -> bool {
    let all = |setting| file("ipv6", "all", setting);
    all(FORCE).exists() || !all("forwarding").exists() || !reads("ipv6", "all", "forwarding", "0")
}

/// Whether a setting can be read and has this value.
fn reads(family: &str, interface: &str, setting: &str, value: &str) -> bool {
    fs::read_to_string(file(family, interface, setting)).is_ok_and(|read| read.trim() == value)
}

/// Interfaces that learn routes from router advertisements and are no routers. When any interface becomes a router of IPv6 the
/// kernel forgets the default routes of all that do not listen although they are routers (`rt6_purge_dflt_routers` in
/// net/ipv6/route.c): while this lives, they pass for such.
struct Listeners(Vec<PathBuf>);

impl Listeners {
    fn keep() -> Self {
        let conf = Path::new("/proc/sys/net/ipv6/conf");
        let names = fs::read_dir(conf)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let listens = |name: &String| {
            !matches!(name.as_str(), "all" | "default")
                && reads("ipv6", name, "accept_ra", "1")
                && reads("ipv6", name, "forwarding", "0")
        };
        let paths: Vec<PathBuf> =
            names.filter(listens).map(|name| file("ipv6", &name, "accept_ra")).collect();
        // Best effort, here and below: an interface may go at any time, and does no harm with either value.
        paths.iter().for_each(|path| drop(fs::write(path, "2")));
        Self(paths)
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.0.iter().for_each(|path| drop(fs::write(path, "1")));
    }
}

/// What a directory remembers.
struct Before {
    interface: String,
    family: String,
    name: String,
    value: String,
}

impl Before {
    fn parse(marker: &Path) -> Option<Self> {
        let mut parts = file_name(marker).rsplitn(4, ':').map(str::to_owned);
        let (value, name, family, interface) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        Some(Self { interface: unescape(&interface), family, name, value })
    }

    fn marker(&self, pins: &PinDir) -> PathBuf {
        let Self { interface, family, name, value } = self;
        pins.restore().join(format!("{}:{family}:{name}:{value}", escape(interface)))
    }
}

/// An interface has another name now: by that is remembered what it was before.
pub(super) fn rename(pins: &PinDir, before: &str, now: &str) -> Result<(), DataplaneError> {
    for marker in entries(&pins.restore())? {
        let Some(known) = Before::parse(&marker).filter(|known| known.interface == before) else { continue };
        let path = Before { interface: now.to_owned(), ..known }.marker(pins);
        fs::rename(&marker, &path).map_err(|e| pin_error("rename", &marker, e))?;
    }
    Ok(())
}

/// Sets everything back and forgets it. Interfaces that are gone need nothing.
pub(super) fn restore(pins: &PinDir) -> Result<(), DataplaneError> {
    restore_of(pins, |_| true)
}

/// As [`restore`], of these interfaces.
pub(super) fn restore_of(pins: &PinDir, these: impl Fn(&str) -> bool) -> Result<(), DataplaneError> {
    restore_these(pins, |before| these(&before.interface))
}

fn restore_these(pins: &PinDir, these: impl Fn(&Before) -> bool) -> Result<(), DataplaneError> {
    let mut result = Ok(());
    for marker in entries(&pins.restore())? {
        let Some(before) = Before::parse(&marker).filter(&these) else { continue };
        let Before { interface, family, name, value } = before;
        let path = file(&family, &interface, &name);
        match fs::write(&path, &value) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                result = result.and(Err(DataplaneError::Sysctl { path, value, source }));
            }
            // Best effort: with the directory above it goes in any case.
            _ => drop(fs::remove_dir(&marker)),
        }
    }
    result
}

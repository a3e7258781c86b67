//! `fwha check`: explains every mistake in the config file, or sums it up.

use std::{
    io::{self, Write},
    net::IpAddr,
    process::ExitCode,
};

use nix::sys::socket::SockaddrStorage;

use crate::{
    args::CheckArgs,
    config::{Config, NodeId, SyncLink, Watch},
    ctl,
    daemon::{ports, program::check_program, resources},
};

/// Checks the file; the exit code says whether it can be run.
///
/// # Errors
/// If nothing can be printed, or `--node` names no node of the file.
pub fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(errors) => {
            let count = errors.mistakes().len();
            let found = if count == 1 { "mistake found" } else { "mistakes found" };
            // Whoever closed it has the exit code.
            let _ = writeln!(io::stderr(), "{errors}\n{count} {found}");
            return Ok(ExitCode::FAILURE);
        }
    };
    let hostname = nix::unistd::gethostname()?;
    let node = match config.node_for(args.node.as_deref(), &hostname.to_string_lossy()) {
        Ok(node) => Some(node.id),
        Err(error) if args.node.is_some() => return Err(error.into()),
        // Checked on a machine that is none of the nodes.
        Err(_) => None,
    };
    let mut out = Vec::new();
    writeln!(out, "{}", summary(&config))?;
    for warning in warnings(&config, node) {
        writeln!(out, "warning: {warning}")?;
    }
    if node.is_none() {
        writeln!(
            out,
            "note: this host, {hostname:?}, is none of the nodes, so it was not looked whether interfaces, addresses and \
             programs are there; on a node, or with --node, it is"
        )?;
    }
    ctl::print(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// One line: what the file describes.
fn summary(config: &Config) -> String {
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    format!(
        "{}: {}, {}, {}, {}; hash {:016x}",
        config.cluster.name,
        count(config.nodes.len(), "node"),
        count(config.zones.len(), "zone"),
        count(config.groups.len(), "group"),
        count(config.rules.len(), "rule"),
        config.hash
    )
}

/// What is worth a thought, and the interfaces and hooks that this machine lacks if it is `node`; last what keeps the node from
/// starting here.
fn warnings(config: &Config, node: Option<NodeId>) -> Vec<String> {
    let mut warnings = config.warnings.clone();
    let exists = |name: &str| nix::net::if_::if_nametoindex(name).is_ok();
    if let Some(Err(missing)) = node.map(|node| config.check_sync_interfaces(node, exists)) {
        warnings.extend(missing.headlines());
    }
    let sync = node.and_then(|node| config.node(node)).into_iter().flat_map(|node| &node.sync);
    let without = sync.filter(|link| exists(&link.interface) && !has_address(link));
    warnings.extend(without.map(ports::no_address));
    let hooks = config.hooks.iter().map(|hook| ("hook", &hook.name, &hook.command[0]));
    let here = config.trackers.iter().filter(|t| node.is_some_and(|node| t.runs_on(node)));
    let mut trackers = Vec::new();
    for tracker in here {
        match &tracker.watch {
            Watch::Command(command) => trackers.push(("tracker", &tracker.name, &command[0])),
            Watch::Interface(name) if !exists(name) => warnings.push(format!(
                "tracker {}: there is no interface {name:?}, which is as bad as one without carrier",
                tracker.name
            )),
            _ => {}
        }
    }
    let mine = node.into_iter().flat_map(|node| config.resources_of(node));
    let programs: Vec<(&String, String)> =
        mine.filter_map(|r| Some((&r.name, resources::program(r)?))).collect();
    let programs = programs.iter().map(|(name, program)| ("resource", *name, program));
    for (kind, name, program) in hooks.filter(|_| node.is_some()).chain(trackers).chain(programs) {
        if let Err(error) = check_program(program) {
            warnings.push(format!("{kind} {name}: {program} cannot be run: {error}"));
        }
    }
    for witness in config.cluster.witness.iter().filter(|w| node.is_some() && is_here(**w)) {
        warnings.push(format!("witness {witness} is an address of this machine: it answers whatever is cut"));
    }
    let obstacles = node.map_or_else(Vec::new, |node| obstacles(config, node, exists));
    warnings
        .extend(obstacles.iter().map(|what| format!("{what} (until then `fwha run` does not start here)")));
    warnings
}

/// What keeps the node from starting on this machine as it is.
fn obstacles(config: &Config, node: NodeId, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut obstacles = Vec::new();
    if let Err(missing) = config.check_interfaces(node, exists) {
        obstacles.extend(missing.headlines());
    }
    let sync = config.node(node).into_iter().flat_map(|node| &node.sync);
    obstacles.extend(sync.filter_map(|link| ports::small_mtu(&link.interface, mtu(&link.interface)?)));
    if let Err(error) = resources::check(config, node) {
        obstacles.push(error.to_string());
    }
    obstacles
}

/// The MTU of an interface, in bytes; none if there is no such interface.
fn mtu(interface: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/class/net/{interface}/mtu")).ok()?.trim().parse().ok()
}

/// Whether the interface of a sync link has its address.
fn has_address(link: &SyncLink) -> bool {
    let its = |known: &SockaddrStorage| known.as_sockaddr_in().is_some_and(|a| a.ip() == link.address);
    // An address with a label of its own (`sync:1`) is told under that.
    let on_it = |name: &str| name.split(':').next() == Some(link.interface.as_str());
    nix::ifaddrs::getifaddrs()
        .is_ok_and(|mut all| all.any(|i| on_it(&i.interface_name) && i.address.as_ref().is_some_and(its)))
}

/// Whether an interface of this machine has the address.
fn is_here(address: IpAddr) -> bool {
    let same = |known: &SockaddrStorage| match address {
        IpAddr::V4(v4) => known.as_sockaddr_in().is_some_and(|a| a.ip() == v4),
        IpAddr::V6(v6) => known.as_sockaddr_in6().is_some_and(|a| a.ip() == v6),
    };
    nix::ifaddrs::getifaddrs().is_ok_and(|mut all| all.any(|i| i.address.as_ref().is_some_and(same)))
}

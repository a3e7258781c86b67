//! `fwha cleanup`: removes what a daemon that was killed has left, and that no new one is to take over.
//!
//! Addresses go first: without the programs this machine may be no firewall any more, and then it
//! must not be anybody's gateway.

use std::io::{self, Write};

use anyhow::{Result, bail};

use crate::{
    args::CleanupArgs,
    config::{Config, Node, vlan},
    daemon::lock::RunDir,
    dataplane::{self, Leftovers},
    netlink::{Address, Addresses, Routes, Routing, links::links},
};

/// Removes it and says what there was.
///
/// # Errors
/// If a daemon of the node runs, or the system refuses.
pub fn run(args: &CleanupArgs) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("fwha cleanup needs root: it removes addresses and BPF programs");
    }
    let config = Config::load(&args.config)?;
    let hostname = nix::unistd::gethostname()?;
    let node = config.node_for(args.node.as_deref(), &hostname.to_string_lossy())?;
    // Both are held to the end: no daemon starts meanwhile.
    let run_dir = RunDir::take_existing(&args.run_dir)?;
    let leftovers = Leftovers::take(&dataplane::pin_dir(&config.cluster.name, &node.name))?;
    let mut out = io::stdout().lock();
    let addresses = remove_addresses(&config, node)?;
    for Address { address, prefix_len, .. } in &addresses {
        writeln!(out, "removed {address}/{prefix_len}")?;
    }
    let routes = remove_routes(&config, node)?;
    for route in &routes {
        writeln!(out, "removed {route}")?;
    }
    let programs = leftovers.remove()?;
    if programs {
        writeln!(out, "removed packet programs and their maps")?;
    }
    let socket = run_dir.is_some_and(|dir| dir.clean());
    if socket {
        writeln!(out, "removed the control socket")?;
    }
    if addresses.is_empty() && routes.is_empty() && !programs && !socket {
        writeln!(out, "{} has left nothing", node.name)?;
    }
    Ok(())
}

/// Removes every address that fwha has added to an interface of the node's zones.
fn remove_addresses(config: &Config, node: &Node) -> Result<Vec<Address>> {
    let interfaces = interfaces(config, node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async { Addresses::new()?.remove_leftovers(&interfaces, &[]).await })?)
}

/// Removes every rule that fwha has added, and every route through one.
fn remove_routes(config: &Config, node: &Node) -> Result<Vec<Routing>> {
    let interfaces = interfaces(config, node)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async { Routes::new()?.remove_leftovers(&interfaces, &[]).await })?)
}

/// The interfaces of the node's zones.
fn interfaces(config: &Config, node: &Node) -> Result<Vec<u32>> {
    let links = links()?;
    let names = config.zones.iter().filter_map(|zone| zone.interfaces.get(&node.id)).flatten();
    Ok(names
        .filter_map(|name| vlan::place(name, |n| links.iter().any(|l| l.name == n)))
        .filter_map(|place| links.iter().find(|l| l.name == place.interface))
        .map(|link| link.index)
        .collect())
}

//! The data plane: fwha's programs in the kernel, and what the daemon does with them.
//!
//! [`Dataplane::open`] loads the programs, pins their maps and their links to interfaces, and adopts
//! what an earlier daemon left pinned, so that a restarted daemon takes over its own data plane
//! without losing a packet. Dropping a [`Dataplane`] leaves everything in the kernel as it is;
//! [`Dataplane::close`] takes it away.
//!
//! ```text
//! <pin dir>/abi11/<MAP>              maps; the version is that of their layouts
//! <pin dir>/programs/<build>/<NAME>  programs; a daemon of the same build need not load them again
//! <pin dir>/links/<interface>:<hook> links; they outlive a change of layouts
//! <pin dir>/numbering/<hash>         an empty directory: what numbers in the maps mean
//! <pin dir>/restore/<interface>:<sysctl>:<value>
//!                                    empty directories: what a sysctl was before
//! ```
//!
//! | module | does |
//! |---|---|
//! | [`maps`] | typed access to the maps |
//! | [`bloom`] | renews the filter that says which flows there may be |
//! | [`events`] | reads flow events |
//! | [`capture`] | captures dropped packets |
//! | [`dry_run`] | judges packets that nobody sent |
//! | `object` | loads the programs that are needed |
//! | `pins` | the pin directory |
//! | `plan` | which interface gets which program; VLANs |
//! | `attach` | puts programs onto interfaces |
//! | `sysctl` | what forwarding needs of the kernel |

use std::{
    collections::BTreeSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use fwha_common::{capture::Capture, flow::NextHop, rule::Tag, ruleset::TooLarge};
use tracing::{info, warn};

use crate::netlink::{Link, NetlinkError, links::links};
use crate::sys::kernel;

mod attach;
pub mod bloom;
pub mod capture;
pub mod dry_run;
pub mod events;
pub mod maps;
mod object;
mod pins;
mod plan;
mod sysctl;
#[cfg(test)]
mod tests;

pub use attach::{Attach, AttachKind, AttachedInterface};
pub use bloom::Bloom;
pub use dry_run::DryRun;
pub use events::Events;
pub use maps::{FlowMap, FlowWalk, Maps};
pub use sysctl::stack_forwards_ipv6;

use attach::{Hook, Links, Place};
use object::Programs;
use pins::PinDir;

/// Where the BPF file system is mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// The directory in which a node's maps and links are pinned. Two nodes on one machine have two.
pub fn pin_dir(cluster: &str, node: &str) -> PathBuf {
    // bpffs takes no dots in names.
    Path::new(BPFFS).join("fwha").join(format!("{cluster}-{node}").replace(['.', '/'], "_"))
}

/// What a data plane consists of.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where to pin, see [`pin_dir`].
    pub pin_dir: PathBuf,
    /// What the numbers of nodes, zones and groups mean: flows and groups of an earlier run are adopted if that is the same.
    pub numbering: u32,
    /// Flows in the main table at most.
    pub max_flows: u32,
    /// Embryonic flows at most.
    pub max_embryonic: u32,
    /// The interfaces of zones.
    pub interfaces: Vec<ZoneInterface>,
    /// The interfaces of sync links.
    pub sync_interfaces: Vec<String>,
}

impl Options {
    /// All interfaces; those of zones first. One that is both is of a zone: its programs answer
    /// probes as well.
    fn wanted(&self) -> Vec<(&str, Option<&ZoneInterface>)> {
        let zones = &self.interfaces;
        let sync = self.sync_interfaces.iter().filter(|s| zones.iter().all(|z| z.name != **s));
        zones.iter().map(|z| (z.name.as_str(), Some(z))).chain(sync.map(|s| (s.as_str(), None))).collect()
    }
}

/// An interface that belongs to a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneInterface {
    /// Its name.
    pub name: String,
    /// The tags of what belongs to the zone there, the outer first, if the kernel has no device for that VLAN; else
    /// none.
    pub tags: [Tag; 2],
    /// The zone's number.
    pub zone: u8,
    /// How the programs are attached to it.
    pub attach: Attach,
    /// Whether sources are held against the routes.
    pub anti_spoofing: bool,
    /// Whether frames to virtual MACs come in by it.
    pub virtual_macs: bool,
}

/// A failure of the data plane.
#[derive(Debug, thiserror::Error)]
pub enum DataplaneError {
    /// What the programs keep by CPU would not be safe.
    #[error(
        "this kernel is PREEMPT_RT, on which a packet's judgement could be mixed with another's: start one that is not"
    )]
    Realtime,
    /// There is no BPF file system and none can be mounted.
    #[error("cannot mount a BPF file system on {BPFFS}: {0}; fwha needs root, or CAP_SYS_ADMIN and CAP_BPF")]
    Mount(#[source] io::Error),
    /// An interface's index does not fit into a next hop.
    #[error("interface {0:?} has index {1}, and the data plane takes less than {limit}: create it anew in a network namespace of its own, which counts from 1", limit = NextHop::IFINDEX_LIMIT)]
    Index(String, u32),
    /// A path for pins lies elsewhere.
    #[error("{0} is not on a BPF file system")]
    NotBpffs(PathBuf),
    /// Another daemon has the node's data plane.
    #[error("another fwha daemon runs this node on this machine: it holds {0}; stop it first")]
    InUse(PathBuf),
    /// A pin, or a directory of pins, cannot be made, read or removed.
    #[error("cannot {what} {path}: {source}")]
    Pin {
        /// What was tried.
        what: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The pin of a program's link cannot be made. The program is attached.
    #[error("cannot pin {path}: {source}: the programs work, but a daemon that is killed takes them along")]
    Unpinned {
        /// The pin.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The object with the programs does not fit this daemon.
    #[error("the BPF object has no {0}: it was not built from this source; run `cargo xtask build-ebpf`")]
    Object(String),
    /// The kernel refuses the object.
    #[error("cannot load the BPF object: {0}")]
    Load(#[from] aya::EbpfError),
    /// The kernel refuses a program.
    #[error("cannot load the program {name}: {source}")]
    Program {
        /// Which.
        name: &'static str,
        /// What the kernel said, with the verifier's log.
        source: Box<aya::programs::ProgramError>,
    },
    /// A map cannot be used.
    #[error("map {name}: {source}")]
    Map {
        /// Which.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The rules do not become a ruleset.
    #[error("the ruleset is too large: {0}")]
    Rules(#[from] TooLarge),
    /// A configured interface does not exist.
    #[error("there is no interface {0}; see `ip link`")]
    NoInterface(String),
    /// An interface's packets begin with their IP header.
    #[error(
        "interface {0} has no Ethernet header, which the programs need: a tunnel, PPP or WireGuard can be in no zone"
    )]
    NoEthernet(String),
    /// Somebody else's XDP program is on an interface.
    #[error(
        "interface {interface} has another XDP program attached (id {program}); \
         see `bpftool prog show id {program}`, remove it with `ip link set {interface} xdp off`"
    )]
    ForeignXdp {
        /// The interface.
        interface: String,
        /// The program's id.
        program: u32,
    },
    /// Frames would come to XDP without the tags that they had.
    #[error(
        "interface {0} takes VLAN tags off what it receives (rx-vlan-offload), which hides them from XDP: `ethtool -K {0} rxvlan off`, or say attach = \"tc\""
    )]
    TagsHidden(String),
    /// The kernel runs a bond's XDP program on the cables, by whose index no route leads (`bond_xdp_set` of its
    /// drivers/net/bonding/bond_main.c).
    #[error(
        "interface {0} is a bond, whose frames XDP sees by the cables that they come by: say attach = \"tc\" or \"auto\""
    )]
    XdpOnBond(String),
    /// XDP would judge packets, and what is forwarded would be lost.
    #[error(
        "the driver of interface {0} does not redirect by XDP, without which nothing is forwarded: say attach = \"tc\" or \"auto\""
    )]
    NoRedirect(String),
    /// Answers of XDP would be lost, and what others forward to it.
    #[error(
        "interface {0} does not send what XDP redirects to it: say attach = \"tc\" or \"auto\" (a veth does while its other end polls: `ethtool -K PEER gro on`)"
    )]
    NoXmit(String),
    /// XDP for the VLANs on an interface, tc for itself.
    #[error(
        "interface {0} is attached by tc, and a VLAN on it by xdp, which has to be attached to {0}: say the same `attach` for both zones"
    )]
    TrunkHook(String),
    /// Two VLAN devices for one VLAN number, by tags of two kinds.
    #[error("two VLAN devices on {0} have VLAN {1}, by tags of 802.1Q and of 802.1ad: XDP takes one of them")]
    SameVlan(String, u16),
    /// A VLAN is named as its device, which was not there when fwha looked for it.
    #[error("{1} has come since fwha looked for it, and is taken for a tag on {0}: restart fwha")]
    LateDevice(String, String),
    /// A VLAN is named by its tag, and has a device of another name.
    #[error("VLAN {1} on {0} has the device {2}: write that name into the zone's interfaces")]
    HasDevice(String, u16, String),
    /// A program cannot be attached.
    #[error("cannot attach to interface {interface} at {hook}: {source}{hint}")]
    Attach {
        /// The interface.
        interface: String,
        /// Where.
        hook: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// A kernel setting of an interface cannot be changed.
    #[error("cannot set {path} to {value}: {source}")]
    Sysctl {
        /// The file.
        path: PathBuf,
        /// The value it needs.
        value: String,
        /// What the system said.
        source: io::Error,
    },
    /// There is one capture at a time.
    #[error("another capture of dropped packets is running on this node: end it first")]
    CaptureRuns,
    /// The kernel does not run a program with a frame that nobody sent.
    #[error("the kernel refuses a dry run of the program: {0}")]
    TestRun(#[source] io::Error),
    /// Interfaces cannot be listed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

/// Programs, maps and links of a node in the kernel.
#[derive(Debug)]
pub struct Dataplane {
    options: Options,
    pins: PinDir,
    programs: Programs,
    maps: Arc<Maps>,
    links: Links,
    /// Indices of the interfaces that programs are on, or that frames of theirs come by.
    interfaces: BTreeSet<u32>,
    problems: Vec<DataplaneError>,
    adopted: bool,
}

impl Dataplane {
    /// Loads the programs and attaches them, or adopts what is pinned. Also returns the reader of
    /// flow events: there is only one.
    ///
    /// Interfaces get `forwarding` and `promote_secondaries` set; what they were is remembered in the
    /// pin directory until [`close`](Self::close).
    ///
    /// # Errors
    ///
    /// As [`DataplaneError`] says. Whatever this call attached is detached again; links that it
    /// found pinned stay as they are.
    pub fn open(options: Options) -> Result<(Self, Events), DataplaneError> {
        if kernel::is_realtime() {
            return Err(DataplaneError::Realtime);
        }
        let release = kernel::release();
        if kernel::is_older(&release) {
            let (major, minor) = kernel::OLDEST;
            warn!("this is Linux {release}: fwha is tested with Linux {major}.{minor} and later");
        }
        let pins = PinDir::create(&options.pin_dir)?;
        let result = Self::open_in(options, pins.clone());
        if result.is_err() && !pins.has_links() {
            // Nothing runs on these maps.
            if let Err(e) = sysctl::restore(&pins).and(pins.remove()) {
                warn!("cannot clean up after a failed start: {e}");
            }
        }
        result
    }

    fn open_in(options: Options, pins: PinDir) -> Result<(Self, Events), DataplaneError> {
        let (mut programs, adopted, events) = object::open(&pins, &options)?;
        let maps = Arc::new(Maps::open(&pins, programs.sweeper()?)?);
        // The reader of an earlier run's capture is gone.
        maps.set_capture(&Capture::default())?;
        let links = Links::new(pins.clone());
        let (interfaces, problems) = (BTreeSet::new(), Vec::new());
        let mut dataplane = Self { options, pins, programs, maps, links, interfaces, problems, adopted };
        match dataplane.attach(true) {
            Ok(problems) => dataplane.problems = problems,
            Err(e) => {
                dataplane.links.undo();
                return Err(e);
            }
        }
        dataplane.links.keep();
        dataplane.pins.remove_other_versions()?;
        if adopted {
            info!("adopted the data plane of an earlier run");
        }
        Ok((dataplane, events))
    }

    /// Whether [`Self::reconcile`] may have to do something now that this interface has changed, come or gone. Others may
    /// come and go by the thousand, with users' tunnels or containers.
    pub fn concerns(&self, link: &Link) -> bool {
        link.vlan.is_some()
            || self.interfaces.contains(&link.index)
            || self.options.wanted().iter().any(|(name, _)| *name == link.name)
    }

    /// Brings interfaces and programs together again: after an interface was renamed, recreated, given another MAC, or
    /// somebody detached a program. What is in the way of that is in [`Self::problems`]; interfaces that have none
    /// have their programs.
    pub fn reconcile(&mut self) {
        self.problems = self.attach(false).unwrap_or_else(|error| vec![error]);
        self.links.keep();
    }

    /// Why interfaces are without their programs: [`DataplaneError::NoInterface`] if there is none of that name. One
    /// without them is not in [`Self::attached`], and has its `forwarding` as it was before. Programs without their pins
    /// are [`DataplaneError::Unpinned`], and work.
    pub fn problems(&self) -> &[DataplaneError] {
        &self.problems
    }

    /// Zones have other interfaces now. Those that no zone has any more are as they were before; all others keep
    /// their programs.
    ///
    /// # Errors
    ///
    /// As [`DataplaneError`] says; nothing has changed then.
    pub fn set_interfaces(&mut self, interfaces: Vec<ZoneInterface>) -> Result<(), DataplaneError> {
        let not_in = |list: &[ZoneInterface], name: &str| list.iter().all(|i| i.name != name);
        let before = std::mem::replace(&mut self.options.interfaces, interfaces);
        // What is not filtered must not be forwarded: programs go after that, here and below.
        let now = &self.options.interfaces;
        let restored = sysctl::restore_of(&self.pins, |name| !not_in(&before, name) && not_in(now, name));
        let attached = restored.and_then(|()| self.attach(true));
        if let Err(error) = attached {
            let tried = std::mem::replace(&mut self.options.interfaces, before);
            let added = |name: &str| !not_in(&tried, name) && not_in(&self.options.interfaces, name);
            let restored = sysctl::restore_of(&self.pins, added);
            self.links.undo();
            self.reconcile();
            return restored.and(Err(error));
        }
        self.links.keep();
        self.problems = attached?;
        self.maps.next_route_generation()
    }

    /// Puts programs where they belong. The first problem ends that if it is `strict`; otherwise all are returned that
    /// concern single interfaces. A sync interface may come late: that it is not there ends nothing.
    fn attach(&mut self, strict: bool) -> Result<Vec<DataplaneError>, DataplaneError> {
        let mut problems = Vec::new();
        let mut problem = |error| {
            let late = |name: &String| self.options.interfaces.iter().all(|zone| zone.name != *name);
            if strict && !matches!(&error, DataplaneError::NoInterface(name) if late(name)) {
                return Err(error);
            }
            problems.push(error);
            Ok(())
        };
        let present = links()?;
        let wanted: Vec<(&str, Option<&ZoneInterface>)> = self.options.wanted();
        let mut here: Vec<(&Link, Option<&ZoneInterface>)> = Vec::new();
        for (name, zone) in wanted {
            match present.iter().find(|link| link.name == name) {
                None => problem(DataplaneError::NoInterface(name.into()))?,
                Some(link) if !link.ethernet => problem(DataplaneError::NoEthernet(name.into()))?,
                Some(link) if link.index >= NextHop::IFINDEX_LIMIT => {
                    problem(DataplaneError::Index(name.into(), link.index))?;
                }
                Some(link) => here.push((link, zone)),
            }
        }
        let plan = plan::plan(&here, &present, &mut problem)?;
        self.interfaces = plan.elements.values().flat_map(|i| [i.device, i.trunk]).collect();
        // The verifier takes its time: before anything changes.
        self.programs.load(here.iter().flat_map(|(link, zone)| attach::hooks(&link.name, *zone)))?;
        // The programs must know an interface before its first packet.
        self.links.tell(&plan.elements, &self.maps)?;
        let look_first = u8::from(plan.look_first);
        if self.maps.settings()?.vlans != look_first {
            self.maps.update_settings(|s| s.vlans = look_first)?;
        }

        let trunks = present.iter().filter(|l| plan.trunks.contains(&l.index));
        let mut unfiltered = BTreeSet::new();
        for trunk in trunks.clone() {
            let own = here.iter().any(|(link, _)| link.index == trunk.index);
            if let Err(error) = self.links.attach_trunk(trunk, own, &mut self.programs) {
                unfiltered.insert(trunk.name.as_str());
                problem(error)?;
            }
        }
        for (link, zone) in &here {
            let place = match zone {
                _ if plan.trunks.contains(&link.index) => Place::Trunk(&link.name),
                Some(zone) if let Some(trunk) = plan::at_trunk(link, zone, &present) => {
                    Place::Trunk(&trunk.name)
                }
                _ if plan.tagged.contains(&link.index) => Place::Tagged,
                _ => Place::Plain,
            };
            let judged = match place {
                Place::Trunk(trunk) => !unfiltered.contains(trunk),
                Place::Plain | Place::Tagged => true,
            };
            let result =
                self.links.attach(link, *zone, place, &mut self.programs).and_then(|()| match zone {
                    Some(zone) if judged => sysctl::prepare(&self.pins, &link.name, zone.anti_spoofing),
                    _ => Ok(()),
                });
            if result.is_err() || !judged {
                self.links.forget(&link.name);
            }
            if let Err(error) = result {
                problem(error)?;
            }
        }
        let names: Vec<&str> = here
            .iter()
            .map(|(link, _)| &link.name)
            .chain(trunks.map(|l| &l.name))
            .map(String::as_str)
            .collect();
        // What is not filtered any more must not be forwarded: before the programs go, as in `set_interfaces`.
        for (before, now) in self.links.renamed(&present) {
            sysctl::rename(&self.pins, &before, now)?;
        }
        let filtered = |name: &str| {
            let attached = self.links.attached().iter().any(|a| a.name == name && a.zone.is_some());
            attached && here.iter().any(|(link, _)| link.name == name)
        };
        sysctl::restore_of(&self.pins, |name| !filtered(name))?;
        self.links.retain(&names)?;
        // Most drivers send what XDP redirects to them only now that they have a program.
        self.links.tell(&plan.elements, &self.maps)?;
        self.links.take_unpinned().map_or(Ok(()), problem)?;
        Ok(problems)
    }

    /// The maps, for any thread.
    pub fn maps(&self) -> Arc<Maps> {
        Arc::clone(&self.maps)
    }

    /// Judges packets that nobody sent, as the programs of this data plane do.
    pub fn dry_run(&self) -> DryRun {
        DryRun::new(self.pins.maps(), self.maps())
    }

    /// Where programs are attached, how, and why so.
    pub fn attached(&self) -> &[AttachedInterface] {
        self.links.attached()
    }

    /// Whether the maps are those of an earlier run: flows, counters and settings are what they were.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// The clean end: forwarding is set back to what it was, programs are detached, pins removed.
    ///
    /// # Errors
    ///
    /// The first failure; the rest is removed all the same.
    pub fn close(self) -> Result<(), DataplaneError> {
        let Self { pins, links, programs, maps, .. } = self;
        // The pins hold the last references but these.
        drop((programs, maps));
        let restored = sysctl::restore(&pins);
        let detached = links.close();
        restored.and(detached).and(pins.remove())
    }
}

/// What a node left in the kernel. While there is this, no daemon of that node starts.
#[derive(Debug)]
pub struct Leftovers(Option<PinDir>);

impl Leftovers {
    /// Looks for it and takes it. Nothing there is no error.
    ///
    /// # Errors
    ///
    /// [`DataplaneError::InUse`] while a daemon runs on it.
    pub fn take(pin_dir: &Path) -> Result<Self, DataplaneError> {
        Ok(Self(PinDir::existing(pin_dir)?))
    }

    /// Removes it, without loading anything: as [`Dataplane::close`] does. Whether there was something.
    ///
    /// # Errors
    ///
    /// The first failure; the rest is removed all the same.
    pub fn remove(self) -> Result<bool, DataplaneError> {
        let Some(pins) = self.0 else { return Ok(false) };
        let restored = sysctl::restore(&pins);
        let detached = Links::new(pins.clone()).close();
        restored.and(detached).and(pins.remove())?;
        Ok(true)
    }
}

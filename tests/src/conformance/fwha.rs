//! fwha as a device under test: the committed object at one of its hooks, its maps filled in for one Active node. All that
//! the comparison knows of the maps is here.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{Program, SchedClassifier, TcAttachType, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use fwha_common::drop::DropReason;
use fwha_common::flow::{Flow, FlowKey, octets};
use fwha_common::group::Group;
use fwha_common::rule::{Action, Decision, Interface, InterfaceKey, Rule};
use fwha_common::ruleset::{self, Ruleset, RulesetMap};
use fwha_common::settings::{Settings, Timeouts, name};

use super::wire::Side;

/// Where the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Native XDP.
    Xdp,
    /// tc ingress (TCX).
    Tc,
}

/// More than one run needs, in both tables.
const MAX_FLOWS: u32 = 1 << 16;

/// How long TCP that only repeats itself is kept, in seconds, here and in the kernel. Not the default, which the next
/// one has, too.
pub const MAX_RETRANS_S: u64 = 400;

/// How long TCP with data that nobody acknowledges is kept, in seconds.
pub const UNACKNOWLEDGED_S: u64 = 500;

/// Zone numbers, by side.
const ZONES: [u8; 2] = [1, 2];

/// The loaded programs. They are detached when it is dropped.
pub struct Fwha {
    drops: PerCpuArray<MapData, u64>,
    flows: HashMap<MapData, FlowKey, Flow>,
    seen: Vec<u64>,
    _bpf: Ebpf,
}

impl Fwha {
    /// Loads the object and attaches it to the interfaces of the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// When the object does not fit this program, or the kernel refuses.
    pub fn attach(hook: Hook) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fwha-ebpf/object/fwha.bpf.o");
        let object = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut bpf = EbpfLoader::new()
            .map_max_entries(name::FLOWS, MAX_FLOWS)
            .load(&object)
            .context("load the object")?;
        fill(&mut bpf)?;
        for side in Side::BOTH {
            let interface = side.interface();
            tc(&mut bpf, name::TC_EGRESS, interface, TcAttachType::Egress)?;
            match hook {
                Hook::Tc => tc(&mut bpf, name::TC_INGRESS, interface, TcAttachType::Ingress)?,
                Hook::Xdp => {
                    let program: &mut Xdp = program(&mut bpf, name::XDP_INGRESS)?.try_into()?;
                    if program.fd().is_err() {
                        program.load().context("load the XDP program")?;
                    }
                    program
                        .attach(interface, XdpMode::Driver)
                        .with_context(|| format!("attach XDP to {interface}"))?;
                }
            }
        }
        let drops: PerCpuArray<_, u64> = bpf.take_map(name::DROPS).context(name::DROPS)?.try_into()?;
        let flows = bpf.take_map(name::FLOWS).context(name::FLOWS)?.try_into()?;
        let mut fwha = Self { drops, flows, seen: vec![0; DropReason::ALL.len()], _bpf: bpf };
        fwha.drop_reasons()?;
        Ok(fwha)
    }

    /// How long the flow of this address is kept after its last packet, in seconds; none if nobody answered it yet.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn timeout_s(&self, address: IpAddr) -> Result<Option<u64>> {
        let bytes = octets(address);
        for flow in self.flows.iter() {
            let (key, flow) = flow?;
            if key.ends(false).iter().any(|(address, _)| *address == bytes) {
                return Ok(TIMEOUTS.of(key.proto, &flow, 0).map(|ns| ns / 1_000_000_000));
            }
        }
        Ok(None)
    }

    /// Why packets were dropped since the last call; one name for each reason that occurred.
    ///
    /// # Errors
    ///
    /// When a counter cannot be read.
    pub fn drop_reasons(&mut self) -> Result<Vec<&'static str>> {
        let mut reasons = Vec::new();
        for (seen, reason) in self.seen.iter_mut().zip(DropReason::ALL) {
            let count: u64 = self.drops.get(&(*reason as u32), 0)?.iter().sum();
            if count != *seen {
                *seen = count;
                reasons.push(reason.as_str());
            }
        }
        Ok(reasons)
    }
}

const TIMEOUTS: Timeouts = Timeouts {
    tcp_max_retrans_ns: MAX_RETRANS_S * 1_000_000_000,
    tcp_unacknowledged_ns: UNACKNOWLEDGED_S * 1_000_000_000,
    ..Timeouts::KERNEL
};

/// One Active node with a lease that does not end, and one rule: inside may talk to outside.
fn fill(bpf: &mut Ebpf) -> Result<()> {
    let mut interfaces: HashMap<_, InterfaceKey, Interface> =
        HashMap::try_from(bpf.map_mut(name::INTERFACES).context(name::INTERFACES)?)?;
    for side in Side::BOTH {
        let ifindex = nix::net::if_::if_nametoindex(side.interface())?;
        let interface = Interface {
            zone: ZONES[side as usize],
            mac: side.device_mac(),
            device: ifindex,
            trunk: ifindex,
            ..Interface::default()
        };
        interfaces.insert(InterfaceKey::untagged(ifindex), interface, 0)?;
    }
    let rule = Rule {
        from: ZONES[Side::Inside as usize],
        to: ZONES[Side::Outside as usize],
        ..Rule::all(Decision { action: Action::Accept as u8, ..Decision::default() })
    };
    let mut rules: RulesetMap<_> = bpf.map_mut(name::RULESETS).context(name::RULESETS)?.try_into()?;
    ruleset::load(&mut rules, 1, &Ruleset::compile(&[rule])?)?;
    let mut timeouts: Array<_, Timeouts> =
        Array::try_from(bpf.map_mut(name::TIMEOUTS).context(name::TIMEOUTS)?)?;
    timeouts.set(0, TIMEOUTS, 0)?;
    let mut groups: Array<_, Group> = Array::try_from(bpf.map_mut(name::GROUPS).context(name::GROUPS)?)?;
    let group = Group { lease_until_ns: u64::MAX, role: Group::ACTIVE, term: 1, ..Group::default() };
    groups.set(0, group, 0)?;
    let mut settings: Array<_, Settings> =
        Array::try_from(bpf.map_mut(name::SETTINGS).context(name::SETTINGS)?)?;
    let value = Settings {
        bucket_key: [1, 2],
        probe_key: [3, 4],
        cluster: 1,
        epoch: 1,
        route_generation: 1,
        ruleset_generation: 1,
        node: 1,
        ..Settings::default()
    };
    settings.set(0, value, 0)?;
    Ok(())
}

fn program<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program> {
    bpf.program_mut(name).with_context(|| format!("the object has no program {name}"))
}

fn tc(bpf: &mut Ebpf, name: &str, interface: &str, direction: TcAttachType) -> Result<()> {
    let program: &mut SchedClassifier = program(bpf, name)?.try_into()?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("load {name}"))?;
    }
    program.attach(interface, direction).with_context(|| format!("attach {name} to {interface}"))?;
    Ok(())
}

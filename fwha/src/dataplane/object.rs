//! Loading the programs, with new maps or with pinned ones.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
    programs::{Program, ProgramError},
};
use aya_obj::{EbpfSectionKind, Object};
use fwha_common::{bloom, embryonic, settings::name};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::{
    DataplaneError, Events, Hook,
    pins::{PinDir, entries, make_dir, pin_error},
};
use crate::sys::bpf;

/// The programs, as built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FWHA_BPF_OBJECT"));

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs {
    xdp: OwnedFd,
    tc: OwnedFd,
    egress: OwnedFd,
    sync: OwnedFd,
    host: OwnedFd,
    sweeper: OwnedFd,
}

impl Programs {
    /// Those that an earlier run pinned, if they are of this very object, and all there.
    fn pinned(pins: &PinDir) -> Option<Self> {
        let dir = pins.programs(&object_id());
        let open = |name| bpf::open_pinned(&dir.join(name)).ok();
        Some(Self {
            xdp: open(name::XDP_INGRESS)?,
            tc: open(name::TC_INGRESS)?,
            egress: open(name::TC_EGRESS)?,
            sync: open(name::SYNC_INGRESS)?,
            host: open(name::HOST_INGRESS)?,
            sweeper: open(name::SWEEPER)?,
        })
    }

    /// Pins them for the next run, in place of others.
    fn pin(&self, pins: &PinDir) -> Result<(), DataplaneError> {
        pins.clear_programs()?;
        let dir = pins.programs(&object_id());
        make_dir(&dir)?;
        for (name, program) in [
            (name::XDP_INGRESS, &self.xdp),
            (name::TC_INGRESS, &self.tc),
            (name::TC_EGRESS, &self.egress),
            (name::SYNC_INGRESS, &self.sync),
            (name::HOST_INGRESS, &self.host),
            (name::SWEEPER, &self.sweeper),
        ] {
            let path = dir.join(name);
            bpf::pin(program.as_fd(), &path).map_err(|e| pin_error("make", &path, e))?;
        }
        Ok(())
    }

    /// The program that deletes flows that expired.
    pub fn sweeper(&self) -> BorrowedFd<'_> {
        self.sweeper.as_fd()
    }

    /// The program for a hook.
    pub fn get(&self, hook: Hook) -> BorrowedFd<'_> {
        match hook {
            Hook::Xdp => self.xdp.as_fd(),
            Hook::Ingress => self.tc.as_fd(),
            Hook::Egress => self.egress.as_fd(),
            Hook::Sync => self.sync.as_fd(),
            Hook::Host => self.host.as_fd(),
        }
    }
}

/// What tells one build of the programs from another.
fn object_id() -> String {
    let digest = Sha256::digest(OBJECT);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// Loads the programs, or opens those that are pinned: the verifier takes a second or more of a busy
/// machine, and the lease of a daemon that is restarted has no longer. Returns them, whether they run
/// on maps that were pinned already, and the reader of flow events.
pub(super) fn load(
    pins: &PinDir,
    max_flows: u32,
    max_embryonic: u32,
) -> Result<(Programs, bool, Events), DataplaneError> {
    let (last_set, last_word) = (embryonic::last_set(max_embryonic), bloom::last_word(max_flows));
    let sizes = [
        (name::FLOWS, max_flows),
        (name::EVENTS, ring_len(max_flows)),
        (name::EMBRYONIC, last_set + 1),
        (name::EMBRYONIC_TAGS, last_set + 1),
        (name::BLOOM, last_word + 1),
    ];
    let object = Object::parse(OBJECT).map_err(aya::EbpfError::from)?;
    // Maps by name; not the sections of global data, which belong to one set of programs.
    let expected: BTreeMap<&str, bpf::MapShape> = object
        .maps
        .iter()
        .filter(|(_, map)| matches!(map.section_kind(), EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps))
        .map(|(name, map)| {
            let size = sizes.iter().find(|(n, _)| n == name).map_or(map.max_entries(), |(_, size)| *size);
            let shape = bpf::MapShape {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: size,
                flags: map.map_flags(),
            };
            (name.as_str(), shape)
        })
        .collect();
    let adopted = usable(pins, &expected)?;
    if !adopted {
        // Programs hold on to the maps that they were loaded with.
        pins.clear_programs()?;
        pins.clear_maps()?;
    }
    if let Some(programs) = Programs::pinned(pins) {
        let ring = MapData::from_pin(pins.map(name::EVENTS)).map_err(aya::EbpfError::from)?;
        return Ok((programs, adopted, events(Map::RingBuf(ring))?));
    }

    let mut loader = EbpfLoader::new();
    for name in expected.keys() {
        loader.map_pin_path(name, pins.map(name));
    }
    for (name, size) in sizes {
        loader.map_max_entries(name, size);
    }
    loader.override_global(name::EMBRYONIC_LAST, &last_set, true);
    loader.override_global(name::BLOOM_LAST, &last_word, true);
    let mut ebpf = loader.load(OBJECT)?;
    let ring = ebpf.take_map(name::EVENTS).ok_or_else(|| DataplaneError::Object(name::EVENTS.into()))?;
    let programs = Programs {
        xdp: program(&mut ebpf, name::XDP_INGRESS)?,
        tc: program(&mut ebpf, name::TC_INGRESS)?,
        egress: program(&mut ebpf, name::TC_EGRESS)?,
        sync: program(&mut ebpf, name::SYNC_INGRESS)?,
        host: program(&mut ebpf, name::HOST_INGRESS)?,
        sweeper: program(&mut ebpf, name::SWEEPER)?,
    };
    programs.pin(pins)?;
    Ok((programs, adopted, events(ring)?))
}

/// Loads the tc ingress program once more, attached to nothing. It has the pinned maps of these names, and all others for itself
/// alone, as large as `sizes` says.
pub(super) fn load_apart(
    maps: &Path,
    shared: &[&str],
    sizes: &[(&str, u32)],
) -> Result<(OwnedFd, Ebpf), DataplaneError> {
    let mut loader = EbpfLoader::new();
    for name in shared {
        let pin = maps.join(name);
        if !pin.exists() {
            return Err(pin_error("open", &pin, std::io::ErrorKind::NotFound.into()));
        }
        loader.map_pin_path(name, pin);
    }
    for (name, size) in sizes {
        loader.map_max_entries(name, *size);
    }
    // One set, one word.
    for map in [name::EMBRYONIC, name::EMBRYONIC_TAGS, name::BLOOM] {
        loader.map_max_entries(map, 1);
    }
    for last in [name::EMBRYONIC_LAST, name::BLOOM_LAST] {
        loader.override_global(last, &0u32, true);
    }
    let mut ebpf = loader.load(OBJECT)?;
    let program = program(&mut ebpf, name::TC_INGRESS)?;
    Ok((program, ebpf))
}

fn events(ring: Map) -> Result<Events, DataplaneError> {
    Ok(Events::new(RingBuf::try_from(ring).map_err(aya::EbpfError::from)?))
}

/// Bytes of the ring buffer of flow events, a power of two. With a million flows some 70,000 events find room: those of a
/// tenth of a second in which nobody reads, when 200,000 flows a second come and go.
fn ring_len(max_flows: u32) -> u32 {
    max_flows.saturating_mul(16).clamp(4 << 20, 64 << 20).next_power_of_two()
}

/// Whether exactly the expected maps are pinned, in their expected shapes. aya reuses a pinned map
/// without a look at it.
fn usable(pins: &PinDir, expected: &BTreeMap<&str, bpf::MapShape>) -> Result<bool, DataplaneError> {
    let found = entries(&pins.maps())?.len();
    if found == 0 {
        return Ok(false);
    }
    for (name, expected) in expected {
        let path = pins.map(name);
        let shape = match bpf::open_pinned(&path) {
            Ok(map) => bpf::map_shape(map.as_fd()).map_err(|e| pin_error("look at", &path, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                warn!("pinned maps are incomplete ({name} is missing): starting with empty ones");
                return Ok(false);
            }
            Err(e) => return Err(pin_error("open", &path, e)),
        };
        if shape != *expected {
            warn!(
                "pinned map {name} has another shape: starting with empty maps; flows come back from the peer"
            );
            return Ok(false);
        }
    }
    Ok(true)
}

/// How often a program is loaded that the verifier does not come to an end with.
const LOAD_ATTEMPTS: u32 = 5;

fn program(ebpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, DataplaneError> {
    let program = ebpf.program_mut(name).ok_or_else(|| DataplaneError::Object(name.into()))?;
    let mut load = || -> Result<OwnedFd, ProgramError> {
        match program {
            Program::Xdp(p) => p.load()?,
            Program::SchedClassifier(p) => p.load()?,
            _ => return Err(ProgramError::UnexpectedProgramType),
        }
        Ok(program.fd()?.as_fd().try_clone_to_owned()?)
    };
    // The verifier works for a second or more, and gives up when a signal is pending (`signal_pending` in
    // kernel/bpf/verifier.c): libbpf asks again, too.
    let interrupted = |loaded: &Result<OwnedFd, ProgramError>| {
        matches!(loaded, Err(ProgramError::LoadError { io_error, .. })
            if io_error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let mut loaded = load();
    for _ in 1..LOAD_ATTEMPTS {
        if !interrupted(&loaded) {
            break;
        }
        loaded = load();
    }
    loaded.map_err(|source| DataplaneError::Program { name, source: Box::new(source) })
}

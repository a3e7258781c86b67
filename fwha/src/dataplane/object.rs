//! Loading the programs that are needed, with new maps or with pinned ones.

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
    DataplaneError, Events, Hook, Options,
    pins::{PinDir, entries, make_dir, pin_error},
};
use crate::sys::bpf;

/// The programs, as built by `cargo xtask build-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("FWHA_BPF_OBJECT"));

/// The programs of a data plane: those that it needs are loaded, or taken over from an earlier run. The others are not: the
/// verifier takes a second or more of a busy machine for each of the large ones.
#[derive(Debug)]
pub(super) struct Programs {
    pins: PinDir,
    sizes: Sizes,
    loaded: BTreeMap<&'static str, OwnedFd>,
}

/// What the object is told of the data plane when it is loaded.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Elements of maps, or bytes of a ring.
    maps: [(&'static str, u32); 7],
    /// The last set of the table of embryonic flows.
    last_set: u32,
    /// The last word of the filter of flows that there may be.
    last_word: u32,
}

impl Programs {
    /// Has the programs for these hooks in the kernel, and pinned for the next run.
    pub fn load(&mut self, hooks: impl IntoIterator<Item = Hook>) -> Result<(), DataplaneError> {
        self.load_by_name(hooks.into_iter().map(Hook::program))
    }

    fn load_by_name(&mut self, names: impl IntoIterator<Item = &'static str>) -> Result<(), DataplaneError> {
        let dir = self.pins.programs(&object_id());
        let mut object = None;
        for name in names {
            if self.loaded.contains_key(name) {
                continue;
            }
            let path = dir.join(name);
            let program = match bpf::open_pinned(&path) {
                Ok(program) => program,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    let object = match &mut object {
                        Some(object) => object,
                        none => none.insert(self.object()?),
                    };
                    let program = program(object, name)?;
                    bpf::pin(program.as_fd(), &path).map_err(|e| pin_error("make", &path, e))?;
                    program
                }
                Err(e) => return Err(pin_error("open", &path, e)),
            };
            self.loaded.insert(name, program);
        }
        Ok(())
    }

    /// The object with the pinned maps, which are made if they are not there; none of its programs is loaded yet.
    fn object(&self) -> Result<Ebpf, DataplaneError> {
        let object = parse()?;
        let mut loader = EbpfLoader::new();
        for name in maps_of(&object).keys() {
            loader.map_pin_path(name, self.pins.map(name));
        }
        for (name, size) in self.sizes.maps {
            loader.map_max_entries(name, size);
        }
        loader.override_global(name::EMBRYONIC_LAST, &self.sizes.last_set, true);
        loader.override_global(name::BLOOM_LAST, &self.sizes.last_word, true);
        Ok(loader.load(OBJECT)?)
    }

    /// The program that deletes flows that expired.
    pub fn sweeper(&mut self) -> Result<BorrowedFd<'_>, DataplaneError> {
        self.by_name(name::SWEEPER)
    }

    /// The program for a hook.
    pub fn get(&mut self, hook: Hook) -> Result<BorrowedFd<'_>, DataplaneError> {
        self.by_name(hook.program())
    }

    fn by_name(&mut self, name: &'static str) -> Result<BorrowedFd<'_>, DataplaneError> {
        self.load_by_name([name])?;
        self.loaded.get(name).map(OwnedFd::as_fd).ok_or_else(|| DataplaneError::Object(name.into()))
    }
}

/// What tells one build of the programs from another.
fn object_id() -> String {
    let digest = Sha256::digest(OBJECT);
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn parse() -> Result<Object, DataplaneError> {
    Ok(Object::parse(OBJECT).map_err(aya::EbpfError::from)?)
}

/// Maps of the object by name; not the sections of global data, which belong to one set of programs.
fn maps_of(object: &Object) -> BTreeMap<&str, &aya_obj::Map> {
    let is_map = |kind| matches!(kind, EbpfSectionKind::Maps | EbpfSectionKind::BtfMaps);
    let maps = object.maps.iter().filter(|(_, map)| is_map(map.section_kind()));
    maps.map(|(name, map)| (name.as_str(), map)).collect()
}

/// Makes the maps, or adopts those that are pinned, with the programs that run on them: the lease of a daemon that is
/// restarted is shorter than the verifier takes. Returns the programs, whether the maps were pinned already, and the reader of
/// flow events.
pub(super) fn open(pins: &PinDir, options: &Options) -> Result<(Programs, bool, Events), DataplaneError> {
    let Options { max_flows, max_embryonic, numbering, .. } = *options;
    let (last_set, last_word) = (embryonic::last_set(max_embryonic), bloom::last_word(max_flows));
    let sizes = Sizes {
        maps: [
            (name::FLOWS, max_flows),
            (name::EVENTS, ring_len(max_flows)),
            (name::EMBRYONIC, last_set + 1),
            (name::EMBRYONIC_USES, last_set + 1),
            (name::FINGERPRINTS, last_set + 1),
            (name::BLOOM, last_word + 1),
            (name::BLOOM_RECENT, last_word + 1),
        ],
        last_set,
        last_word,
    };
    let object = parse()?;
    let shape = |name: &str, map: &aya_obj::Map| bpf::MapShape {
        map_type: map.map_type(),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: sizes.maps.iter().find(|(n, _)| *n == name).map_or(map.max_entries(), |(_, size)| *size),
        flags: map.map_flags(),
    };
    let expected = maps_of(&object).into_iter().map(|(name, map)| (name, shape(name, map))).collect();
    let adopted = usable(pins, &expected, numbering)?;
    let dir = pins.programs(&object_id());
    if !adopted {
        // Programs hold on to the maps that they were loaded with.
        pins.clear_programs()?;
        pins.clear_maps()?;
        pins.note_numbering(numbering)?;
    } else if !dir.exists() {
        // Those of another build.
        pins.clear_programs()?;
    }
    make_dir(&dir)?;
    let mut programs = Programs { pins: pins.clone(), sizes, loaded: BTreeMap::new() };
    programs.load_by_name([name::SWEEPER])?;
    let ring = MapData::from_pin(pins.map(name::EVENTS)).map_err(aya::EbpfError::from)?;
    let events = Events::new(RingBuf::try_from(Map::RingBuf(ring)).map_err(aya::EbpfError::from)?);
    Ok((programs, adopted, events))
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
    for map in [name::EMBRYONIC, name::EMBRYONIC_USES, name::FINGERPRINTS, name::BLOOM, name::BLOOM_RECENT] {
        loader.map_max_entries(map, 1);
    }
    for last in [name::EMBRYONIC_LAST, name::BLOOM_LAST] {
        loader.override_global(last, &0u32, true);
    }
    let mut ebpf = loader.load(OBJECT)?;
    let program = program(&mut ebpf, name::TC_INGRESS)?;
    Ok((program, ebpf))
}

/// Bytes of the ring buffer of flow events, a power of two. With a million flows some 70,000 events find room: those of a
/// tenth of a second in which nobody reads, when 200,000 flows a second come and go.
fn ring_len(max_flows: u32) -> u32 {
    max_flows.saturating_mul(16).clamp(4 << 20, 64 << 20).next_power_of_two()
}

/// Whether exactly the expected maps are pinned, in their expected shapes, with numbers that mean the same. aya reuses a
/// pinned map without a look at it.
fn usable(
    pins: &PinDir,
    expected: &BTreeMap<&str, bpf::MapShape>,
    numbering: u32,
) -> Result<bool, DataplaneError> {
    let found = entries(&pins.maps())?.len();
    if found == 0 {
        return Ok(false);
    }
    if !pins.has_numbering(numbering) {
        warn!(
            "nodes, zones or groups of the config file are not those that the pinned maps were made for, or in another \
             order: starting with empty ones; flows come back from the peer"
        );
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
const LOAD_ATTEMPTS: u32 = 20;

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

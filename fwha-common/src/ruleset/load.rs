//! Putting a ruleset in force.

use std::borrow::BorrowMut;

use aya::maps::{Array, ArrayOfMaps, MapData, MapError};

use super::{
    BLOCK_LEN, BLOCK_WORDS, Block, Blocks, COUNT, DECISIONS, GENERATIONS, MAX_BLOCKS, Ruleset,
    compile::decisions,
};
use crate::rule::Decision;

// SAFETY: `repr(transparent)`, an array of integers, valid for any bits.
unsafe impl aya::Pod for Block {}

/// The map `RULESETS`.
pub type RulesetMap<T = MapData> = ArrayOfMaps<T, Array<MapData, Block>>;

/// Flag of a map that may have more or fewer elements than others in its place (`BPF_F_INNER_MAP`).
pub const INNER_MAP: u32 = 1 << 12;

/// Puts a ruleset in the place of a generation, for the programs to judge by when the settings name that generation. The
/// one in force, of the generation before, has another place.
///
/// # Errors
///
/// Those of the system.
pub fn load<T: BorrowMut<MapData>>(
    map: &mut RulesetMap<T>,
    generation: u32,
    ruleset: &Ruleset,
) -> Result<(), MapError> {
    let inner = create(ruleset.blocks())?;
    map.set(generation % GENERATIONS, &inner, 0)
}

fn create(blocks: &[Block]) -> Result<Array<MapData, Block>, MapError> {
    // There is no map of no elements.
    let none = [Block([0; BLOCK_WORDS])];
    let blocks = if blocks.is_empty() { &none } else { blocks };
    let mut inner = Array::create(blocks.len() as u32, INNER_MAP)?;
    for (i, block) in blocks.iter().enumerate() {
        inner.set(i as u32, block, 0)?;
    }
    Ok(inner)
}

/// Ends the generation before this one, which is in force by now, when no packet is judged by it any more.
///
/// # Errors
///
/// Those of the system.
pub fn retire(map: &mut RulesetMap, generation: u32) -> Result<(), MapError> {
    // The kernel returns from a change of a map of maps when all programs have ended that may have seen what was there
    // (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c). The first change takes nothing away.
    let present = map.get(&(generation % GENERATIONS), 0)?;
    map.set(generation % GENERATIONS, &present, 0)?;
    let nothing = create(&[])?;
    map.set(generation.wrapping_add(1) % GENERATIONS, &nothing, 0)
}

/// What the rules of a generation say, in their order; nothing if there are none.
///
/// # Errors
///
/// Those of the system.
pub fn decisions_of(map: &RulesetMap, generation: u32) -> Result<Vec<Decision>, MapError> {
    let inner = match map.get(&(generation % GENERATIONS), 0) {
        Ok(inner) => inner,
        Err(MapError::KeyNotFound) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let first = inner.get(&0, 0)?;
    // Up to the last block with a decision.
    let end = (first.half(DECISIONS) as usize + 2 * first.half(COUNT) as usize) * 8;
    let len = end.div_ceil(BLOCK_LEN).min(MAX_BLOCKS).min(inner.len() as usize);
    let rest = (1..len as u32).map(|i| inner.get(&i, 0));
    let blocks = std::iter::once(Ok(first)).chain(rest).collect::<Result<Vec<Block>, MapError>>()?;
    Ok(decisions(&Copied(blocks)))
}

struct Copied(Vec<Block>);

impl Blocks for Copied {
    fn block(&self, number: u32) -> Option<&Block> {
        self.0.get(number as usize)
    }
}

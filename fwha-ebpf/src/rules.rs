//! The rule that decides on a new flow. How it is found is told in [`fwha_common::ruleset`].

use fwha_common::{
    drop::DropReason,
    flow::proto,
    rule::{Action, Decision, Query},
    ruleset::{self, Block, Blocks, GENERATIONS, Small},
    settings::Settings,
};

use crate::{
    maps::{self, Room},
    parse::{Ip, Payload},
};

/// A search for a rule.
pub struct Search {
    /// In this generation of the ruleset: it stays what it is until the program ends, also when another is in force.
    generation: u32,
    search: ruleset::Search,
    /// What the rule says that was found.
    decision: Decision,
}

/// What the first rule that matches says, if it admits the flow.
#[inline(always)]
pub fn judge(settings: &Settings, ip: &Ip, zones: [u8; 2]) -> Result<&'static Decision, DropReason> {
    // SAFETY: a reference; volatile, so that it is read once.
    let generation = unsafe { (&raw const settings.ruleset_generation).read_volatile() };
    if generation == 0 {
        return Err(DropReason::NoRuleset);
    }
    let search = maps::room().map(Room::search).ok_or(DropReason::NoRuleset)?;
    search.generation = generation;
    search.search.query = Query {
        src: ip.src,
        dst: ip.dst,
        port: match ip.payload {
            Payload::Query => 0,
            Payload::Other if ip.proto != proto::DCCP => 0,
            _ => u16::from_be(ip.dport),
        },
        proto: ip.proto,
        from: zones[0],
        to: zones[1],
    };
    let mut found = fwha_rule_small();
    if found & !0xff == TREES {
        for field in 1..4 {
            if found & 1 << field != 0 {
                // What there is not is in no block, either.
                search.search.set_row(field, fwha_rule_row(field));
            }
        }
        found = fwha_rule_end();
    }
    match found {
        ACCEPT => Ok(&maps::opaque(search).decision),
        REJECT => Err(DropReason::Reject),
        NO_RULE => Err(DropReason::NoRule),
        NO_RULESET => Err(DropReason::NoRuleset),
        _ => Err(DropReason::Rule),
    }
}

const ACCEPT: u32 = Action::Accept as u32;
const REJECT: u32 = Action::Reject as u32;
const NO_RULE: u32 = u32::MAX;
const NO_RULESET: u32 = u32::MAX - 1;
/// With the fields, a bit for each.
const TREES: u32 = 0x100;

// The parts of a search are global functions, which the verifier looks at once, and not for each way that leads to
// them. They are several, and hand on what they have found in the scratch room, because the stack has little left.

/// All of a search in a small ruleset, whose block is looked up once, and the begin of one in a larger ruleset. Returns as
/// [`fwha_rule_end`] does, or the fields whose rows are yet to be found, with [`TREES`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fwha_rule_small() -> u32 {
    let Some(search) = maps::room().map(Room::search) else {
        return NO_RULESET;
    };
    let generation = Generation(&search.generation);
    let Some(first) = generation.block(0) else {
        return NO_RULESET;
    };
    let trees = search.search.begin(first);
    let Some(blocks) = Small::of(first) else {
        return TREES | trees;
    };
    let mut field = 1;
    while field < 4 {
        if trees >> field & 1 != 0 {
            let Some(row) = search.search.row(&blocks, field) else {
                return NO_RULESET;
            };
            search.search.set_row(field, row);
        }
        field += 1;
        // So that the compiler does not write out the search for each field.
        // SAFETY: the same number.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) field, options(nostack)) };
    }
    decide(search.search.rule_of_small(&blocks), &blocks, &mut search.decision)
}

/// Returns the row of a field, or [`NO_RULESET`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fwha_rule_row(field: u32) -> u32 {
    let Some(search) = maps::room().map(Room::search) else {
        return NO_RULESET;
    };
    search.search.row(&Generation(&search.generation), field).unwrap_or(NO_RULESET)
}

/// Finds and counts the rule. Returns its action, or what there is not.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn fwha_rule_end() -> u32 {
    let Some(search) = maps::room().map(Room::search) else {
        return NO_RULESET;
    };
    let blocks = Generation(&search.generation);
    match search.search.rule(&blocks) {
        None => NO_RULESET,
        Some(rule) => decide(rule, &blocks, &mut search.decision),
    }
}

/// Notes what a rule says, and counts it. Returns its action.
#[inline(always)]
fn decide(rule: Option<u32>, blocks: &impl Blocks, decision: &mut Decision) -> u32 {
    let Some(rule) = rule else {
        return NO_RULE;
    };
    let Some(said) = ruleset::decision(blocks, rule) else {
        return NO_RULESET;
    };
    maps::add(&maps::RULE_HITS, said.index, 1);
    *decision = said;
    said.action as u32
}

/// A ruleset, by its generation.
struct Generation<'a>(&'a u32);

impl Blocks for Generation<'_> {
    #[inline(always)]
    fn block(&self, number: u32) -> Option<&Block> {
        // SAFETY: a reference; volatile, so that it is read there each time and takes no place on the stack.
        let generation = unsafe { core::ptr::from_ref(self.0).read_volatile() };
        maps::RULESETS.get(generation % GENERATIONS)?.get(number)
    }
}

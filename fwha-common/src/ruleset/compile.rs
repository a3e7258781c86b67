//! From rules to bit vectors.

use std::{collections::HashMap, fmt};

use super::{
    ADDRESSES, ANYTHING, BLOCK_LEN, BLOCK_WORDS, Block, Blocks, COUNT, COUNT_BLOCKS, DECISIONS, LEVEL_BITS,
    MAX_BLOCKS, MAX_LEVELS, MAX_RULES, PROTOCOLS, SUMMARIES, Search, Small, TREE, TREE_LEN, TREES, ZONES,
    decision,
};
use crate::rule::{Decision, Network, Query, Rule, ZONE_ANY};

/// A compiled ruleset: what the programs have in force is a copy of its blocks. Without any, nothing is found.
#[derive(Clone, Default)]
pub struct Ruleset {
    blocks: Vec<Block>,
}

/// Why rules do not become a ruleset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLarge {
    /// There are so many, more than [`MAX_RULES`].
    Rules(usize),
    /// Compiled they need more than [`MAX_BLOCKS`].
    Memory,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(rules) => write!(f, "{rules} rules are more than {MAX_RULES}"),
            Self::Memory => {
                write!(f, "the compiled rules need more than {} MiB", (MAX_BLOCKS * BLOCK_LEN) >> 20)
            }
        }
    }
}

impl std::error::Error for TooLarge {}

impl fmt::Debug for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ruleset").field("blocks", &self.blocks.len()).finish()
    }
}

impl Blocks for Ruleset {
    fn block(&self, number: u32) -> Option<&Block> {
        self.blocks.get(number as usize)
    }
}

impl Ruleset {
    /// Compiles rules; of those that match a flow, the first decides.
    ///
    /// # Errors
    ///
    /// As [`TooLarge`] says.
    pub fn compile(rules: &[Rule]) -> Result<Self, TooLarge> {
        Self::compile_within(rules, MAX_BLOCKS)
    }

    pub(super) fn compile_within(rules: &[Rule], max_blocks: usize) -> Result<Self, TooLarge> {
        if rules.len() > MAX_RULES {
            return Err(TooLarge::Rules(rules.len()));
        }
        let mut compiler = Compiler::new(rules, max_blocks)?;
        compiler.decisions()?;
        compiler.zones()?;
        compiler.services()?;
        compiler.addresses(ADDRESSES, |rule| &rule.source)?;
        compiler.addresses(ADDRESSES + 2, |rule| &rule.destination)?;
        Ok(compiler.finish())
    }

    /// Its blocks.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// What the first rule says that matches; nothing if none does. Looked up as the programs do it.
    pub fn find(&self, query: &Query) -> Option<Decision> {
        let mut search = Search::new(*query);
        if let Some(small) = self.blocks.first().and_then(Small::of) {
            find_rows(&mut search, &small)?;
            return decision(&small, search.rule_of_small(&small)?);
        }
        find_rows(&mut search, self)?;
        decision(self, search.rule(self)??)
    }

    /// Whether a rule has [`Decision::SYN_PROXY`].
    pub fn has_syn_proxy(&self) -> bool {
        decisions(self).iter().any(Decision::syn_proxy)
    }
}

fn find_rows(search: &mut Search, blocks: &impl Blocks) -> Option<()> {
    let trees = search.begin(blocks.block(0)?);
    for field in (0..32).filter(|field| trees >> field & 1 != 0) {
        let row = search.row(blocks, field)?;
        search.set_row(field, row);
    }
    Some(())
}

/// The decisions of a ruleset, by rule; none of those that are in missing blocks.
pub(super) fn decisions(blocks: &impl Blocks) -> Vec<Decision> {
    let Some(first) = blocks.block(0) else { return Vec::new() };
    let count = first.half(COUNT).min(MAX_RULES as u32);
    (0..count).filter_map(|rule| decision(blocks, rule)).collect()
}

/// A set of rules.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Set(Vec<u64>);

impl Set {
    fn insert(&mut self, rule: usize) {
        self.0[rule / 64] |= 1 << (rule % 64);
    }

    fn remove(&mut self, rule: usize) {
        self.0[rule / 64] &= !(1 << (rule % 64));
    }

    fn and(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a & b).collect())
    }
}

/// Values from the first to the last for which a rule matches.
struct Range {
    first: u128,
    last: u128,
    rule: usize,
}

/// A value and the row of those from it on.
type Interval = (u128, u32);

struct Compiler<'a> {
    rules: &'a [Rule],
    words: Vec<u64>,
    max_blocks: usize,
    /// Summary words of a row; 0 if rows have one word.
    summaries: usize,
    rows: HashMap<Vec<u64>, u32>,
    /// The entry of each tree, by whether it is wide and what it divides.
    trees: HashMap<(bool, Vec<Interval>), u32>,
}

impl<'a> Compiler<'a> {
    fn new(rules: &'a [Rule], max_blocks: usize) -> Result<Self, TooLarge> {
        let summaries = if rules.len() <= 64 { 0 } else { rules.len().div_ceil(64 * 64) };
        let mut compiler = Self {
            rules,
            words: vec![0; ANYTHING as usize / 2],
            max_blocks,
            summaries,
            rows: HashMap::new(),
            trees: HashMap::new(),
        };
        compiler.set_half(SUMMARIES, summaries as u32);
        compiler.set_half(COUNT, rules.len() as u32);
        Ok(compiler)
    }

    fn finish(mut self) -> Ruleset {
        self.words.resize(self.words.len().next_multiple_of(BLOCK_WORDS), 0);
        self.set_half(COUNT_BLOCKS, (self.words.len() / BLOCK_WORDS) as u32);
        let block = |words: &[u64]| {
            let mut block = Block([0; BLOCK_WORDS]);
            block.0.copy_from_slice(words);
            block
        };
        Ruleset { blocks: self.words.chunks_exact(BLOCK_WORDS).map(block).collect() }
    }

    fn set_half(&mut self, at: u32, value: u32) {
        let word = &mut self.words[at as usize / 2];
        let shift = at % 2 * 32;
        *word = *word & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift;
    }

    /// Room for so many words that begins at a multiple of `align`, a power of two. Returns where.
    fn reserve(&mut self, len: usize, align: usize) -> Result<usize, TooLarge> {
        let at = self.words.len().next_multiple_of(align);
        if at + len > self.max_blocks * BLOCK_WORDS {
            return Err(TooLarge::Memory);
        }
        self.words.resize(at + len, 0);
        Ok(at)
    }

    fn none(&self) -> Set {
        Set(vec![0; self.rules.len().div_ceil(64).max(1)])
    }

    /// The word where the row of a set is.
    fn row(&mut self, set: &Set) -> Result<u32, TooLarge> {
        let mut row = Vec::new();
        if self.summaries == 0 {
            row.push(set.0[0]);
        } else {
            row.resize(2 * self.summaries, 0);
            for (summary, words) in set.0.chunks(64).enumerate() {
                row[2 * summary + 1] = row.len() as u64;
                for (bit, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
                    row[2 * summary] |= 1 << bit;
                    row.push(*word);
                }
            }
        }
        if let Some(&at) = self.rows.get(&row) {
            return Ok(at);
        }
        // Not in two blocks.
        let left = BLOCK_WORDS - self.words.len() % BLOCK_WORDS;
        let at = self.reserve(row.len(), if left < row.len() { BLOCK_WORDS } else { 1 })?;
        self.words[at..].copy_from_slice(&row);
        self.rows.insert(row, at as u32);
        Ok(at as u32)
    }

    fn decisions(&mut self) -> Result<(), TooLarge> {
        let at = self.reserve(2 * self.rules.len(), 2)?;
        self.set_half(DECISIONS, at as u32);
        for (words, rule) in self.words[at..].chunks_exact_mut(2).zip(self.rules) {
            words.copy_from_slice(&rule.decision.words());
        }
        Ok(())
    }

    fn zones(&mut self) -> Result<(), TooLarge> {
        let rules = self.rules;
        let sets = |of: fn(&Rule) -> u8| -> Vec<Set> {
            let mut sets = vec![self.none(); 64];
            for (i, rule) in rules.iter().enumerate() {
                match of(rule) {
                    ZONE_ANY => sets.iter_mut().for_each(|set| set.insert(i)),
                    zone => {
                        if let Some(set) = sets.get_mut(usize::from(zone)) {
                            set.insert(i);
                        }
                    }
                }
            }
            sets
        };
        let (from, to) = (sets(|rule| rule.from), sets(|rule| rule.to));
        let mut known: HashMap<(&Set, &Set), u32> = HashMap::new();
        for (i, from) in from.iter().enumerate() {
            for (j, to) in to.iter().enumerate() {
                let row = match known.get(&(from, to)) {
                    Some(row) => *row,
                    None => self.row(&from.and(to))?,
                };
                known.insert((from, to), row);
                self.set_half(ZONES + (i * 64 + j) as u32, row);
            }
        }
        Ok(())
    }

    fn services(&mut self) -> Result<(), TooLarge> {
        let rules = self.rules;
        let mut everything = self.none();
        let mut named = [false; 256];
        for (i, rule) in rules.iter().enumerate() {
            if rule.services.is_empty() {
                everything.insert(i);
            }
            rule.services.iter().for_each(|service| named[usize::from(service.proto)] = true);
        }
        // Those that no rule names are all alike.
        let mut other = None;
        for proto in 0..=u8::MAX {
            let named = named[usize::from(proto)] && proto != 0;
            let entry = match other {
                Some(entry) if !named => entry,
                _ => {
                    let ranges = rules.iter().enumerate().flat_map(|(rule, r)| {
                        r.services.iter().filter(|s| s.is_of(proto)).map(move |s| Range {
                            first: s.port_min.into(),
                            last: s.port_max.into(),
                            rule,
                        })
                    });
                    let intervals = self.intervals(&everything, ranges, 0, u16::MAX.into())?;
                    self.entry::<false>(intervals)?
                }
            };
            if !named {
                other = Some(entry);
            }
            self.set_half(PROTOCOLS + u32::from(proto), entry);
        }
        Ok(())
    }

    fn addresses(&mut self, entries: u32, networks: fn(&Rule) -> &[Network]) -> Result<(), TooLarge> {
        let rules = self.rules;
        let mut everything = self.none();
        for (i, rule) in rules.iter().enumerate() {
            if networks(rule).is_empty() {
                everything.insert(i);
            }
        }
        let all = || {
            rules
                .iter()
                .enumerate()
                .flat_map(|(rule, r)| networks(r).iter().map(move |network| (rule, network)))
        };
        let of_family = |v4| {
            let range = |(rule, n): (usize, &Network)| Range { first: n.first(), last: n.last(), rule };
            all().filter(move |(_, n)| n.is_v4() == v4).map(range)
        };
        let v4 = Network::V4;
        let narrow = self.intervals(&everything, of_family(true), v4.first(), v4.last())?;
        let wide = self.intervals(&everything, of_family(false), 0, u128::MAX)?;
        let entry =
            self.entry::<false>(narrow.into_iter().map(|(from, row)| (from - v4.first(), row)).collect())?;
        self.set_half(entries, entry);
        let entry = self.entry::<true>(wide)?;
        self.set_half(entries + 1, entry);
        Ok(())
    }

    /// Divides the values from `first` to `last` by which rules match: those that take everything, and those of the
    /// ranges.
    fn intervals(
        &mut self,
        everything: &Set,
        ranges: impl Iterator<Item = Range>,
        first: u128,
        last: u128,
    ) -> Result<Vec<Interval>, TooLarge> {
        // Where a rule begins to match, and where it ends.
        let mut steps: Vec<(u128, bool, usize)> = Vec::new();
        for range in ranges {
            steps.push((range.first, true, range.rule));
            if range.last < last {
                steps.push((range.last + 1, false, range.rule));
            }
        }
        steps.sort_unstable();
        let mut set = everything.clone();
        // Ranges of one rule may overlap.
        let mut open = vec![0u32; self.rules.len()];
        let mut intervals: Vec<Interval> = Vec::new();
        let mut steps = steps.into_iter().peekable();
        let mut from = first;
        loop {
            while let Some((_, begins, rule)) = steps.next_if(|(at, ..)| *at == from) {
                // What ends comes before what begins, but what is open is more than what ends there.
                if begins {
                    open[rule] += 1;
                    set.insert(rule);
                } else {
                    open[rule] -= 1;
                    if open[rule] == 0 {
                        set.remove(rule);
                    }
                }
            }
            let row = self.row(&set)?;
            if intervals.last().is_none_or(|(_, before)| *before != row) {
                intervals.push((from, row));
            }
            match steps.peek() {
                Some((at, ..)) => from = *at,
                None => return Ok(intervals),
            }
        }
    }

    /// The entry that finds the row of a value.
    fn entry<const WIDE: bool>(&mut self, intervals: Vec<Interval>) -> Result<u32, TooLarge> {
        if let [(_, row)] = intervals[..] {
            return Ok(row);
        }
        let known = (WIDE, intervals);
        if let Some(&entry) = self.trees.get(&known) {
            return Ok(entry);
        }
        let intervals = &known.1;
        let tree = self.trees.len() as u32;
        let keys = intervals.len() - 1;
        let levels = (1..=MAX_LEVELS).find(|levels| keys >> (LEVEL_BITS * levels) == 0);
        let levels = levels.ok_or(TooLarge::Memory)?;
        let rows = self.reserve(intervals.len().div_ceil(2), 1)? as u32 * 2;
        for (i, (_, row)) in intervals.iter().enumerate() {
            self.set_half(rows + i as u32, *row);
        }
        let at = TREES + tree * TREE_LEN;
        self.set_half(at, levels);
        self.set_half(at + 1, rows);
        for level in 0..levels {
            // How many keys a child of this level has below it, and how many nodes there are in it.
            let below = LEVEL_BITS * (levels - 1 - level);
            let nodes = (keys >> (below + LEVEL_BITS)) + 1;
            let len = if WIDE { 32 } else { 8 };
            let begin = self.reserve(nodes * len, len)?;
            self.set_half(at + 2 + level, (begin / len) as u32);
            for key in 0..nodes * 16 {
                // The last value before the interval; none is greater than the keys that a node does not need.
                let interval = if key % 16 < 15 { intervals.get((key + 1) << below) } else { None };
                let last = interval.map_or(u128::MAX, |(from, _)| from - 1);
                if WIDE {
                    self.words[begin + 2 * key] = (last >> 64) as u64;
                    self.words[begin + 2 * key + 1] = last as u64;
                } else {
                    self.set_half((2 * begin + key) as u32, last as u32);
                }
            }
        }
        let entry = TREE | tree;
        self.trees.insert(known, entry);
        Ok(entry)
    }
}

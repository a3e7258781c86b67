//! The ruleset in bit-vector form (T. V. Lakshman and D. Stiliadis, "High-speed policy-based packet forwarding using
//! efficient multi-dimensional range matching", SIGCOMM 1998), with aggregates (F. Baboescu and G. Varghese, "Scalable
//! packet classification", SIGCOMM 2001).
//!
//! A new flow has four **fields**: its zones, its service (protocol and destination port), its source, its destination.
//! For each, the ruleset maps the value to a **row**: a set with one bit for each rule, 1 if the rule takes that value. The
//! first bit that is 1 in all four rows is that of the rule that decides. A rule with lists of networks and services
//! has one bit all the same, and equal rows are stored once.
//!
//! A ruleset is an array of **blocks** and is not changed once it is in force. What lies in one is named by its place
//! in the whole: of **words** (64 bits), or of their **halves** (32 bits, the low one first).
//!
//! ```text
//! halves of block 0
//!     0  summary words of a row; 0 if there are 64 rules or less
//!     1  number of rules
//!     2  word where the decisions begin
//!     3  number of blocks
//!     4  entries: source IPv4, source IPv6, destination IPv4, destination IPv6
//!   256  entries of the 256 protocols
//!   512  trees, of 8 halves: levels, first half of its rows, first node of each level from the root
//!  4608  rows (their words) by zones, 64 from times 64 to
//!  8704  anything
//! ```
//!
//! - An **entry** is the word of a row, or, with its highest bit, the number of a tree, which finds the row by port or address.
//! - A **tree** divides the values into intervals: a B-tree without pointers. A node has 15 keys and 16 children; a key is
//!   the last value of an interval, and how many keys are less than a value says to which child it goes. Child `c` of
//!   node `n` is node `16 n + c` of the next level. The number that would be the child of the last level is that of the
//!   interval, and the half at that number of its rows is the word of its row. Keys of ports and of IPv4 addresses have
//!   a half, those of IPv6 two words (the high one first); a node has the room of 16.
//! - A **row** of 64 rules or less is one word. Else it is two words for each summary word: one with a bit for each of its
//!   64 words of rules that is not zero; and how far from the row's begin these words lie, the zero ones left out.
//! - **Decisions** are two words for each rule, see [`Decision::words`].
//!
//! A lookup costs some steps for each tree, and some for each word in which all four rows have a rule. In the worst case
//! these are all of them ([`MAX_RULES`] / 64); mostly it is the one with the rule that decides.

#[cfg(feature = "user")]
mod compile;
#[cfg(feature = "user")]
mod load;
#[cfg(all(test, feature = "user"))]
mod tests;

#[cfg(feature = "user")]
pub use compile::{Ruleset, TooLarge};
#[cfg(feature = "user")]
pub use load::{RulesetMap, decisions_of, load, retire};

use crate::{
    flow::V4_MAPPED,
    rule::{Decision, Query, halves},
};

/// Rules at most.
pub const MAX_RULES: usize = 16_384;

/// Words of a block.
pub const BLOCK_WORDS: usize = 8_192;

/// Bytes of a block.
pub const BLOCK_LEN: usize = 8 * BLOCK_WORDS;

/// Elements of `RULESETS`: that of a ruleset is its generation modulo these.
pub const GENERATIONS: u32 = 2;

/// Blocks of a ruleset at most.
pub const MAX_BLOCKS: usize = 1_024;

/// Fields of a new flow.
const FIELDS: usize = 4;

/// In an entry: it is a tree.
const TREE: u32 = 1 << 31;

const SUMMARIES: u32 = 0;
#[cfg(feature = "user")]
const COUNT: u32 = 1;
const DECISIONS: u32 = 2;
const COUNT_BLOCKS: u32 = 3;
const ADDRESSES: u32 = 4;
const PROTOCOLS: u32 = 256;
const TREES: u32 = 512;
const ZONES: u32 = 4_608;
#[cfg(feature = "user")]
const ANYTHING: u32 = 8_704;

/// Trees at most: one for each protocol, two for sources and destinations each.
const MAX_TREES: u32 = 512;
/// Halves of what is known of a tree.
const TREE_LEN: u32 = 8;
/// Levels of a tree at most.
const MAX_LEVELS: u32 = 5;
/// Bits that a level of a tree decides.
const LEVEL_BITS: u32 = 4;

/// Fields by number; the first are the zones, the last the destination.
const FIELD_SERVICE: usize = 1;
const FIELD_SOURCE: usize = 2;

const _: () = {
    assert!(TREES + MAX_TREES * TREE_LEN == ZONES && ZONES + 64 * 64 == 8_704);
    assert!(MAX_RULES <= 64 * 64 * 64 && MAX_BLOCKS * BLOCK_WORDS < TREE as usize);
};

/// A block of a ruleset.
#[repr(transparent)]
#[derive(Clone, Copy)]
pub struct Block(pub [u64; BLOCK_WORDS]);

impl Block {
    /// A word; the place is taken modulo the length.
    #[inline(always)]
    pub const fn word(&self, at: u32) -> u64 {
        self.0[at as usize & (BLOCK_WORDS - 1)]
    }

    /// A half; the place is taken modulo the length.
    #[inline(always)]
    pub const fn half(&self, at: u32) -> u32 {
        (self.word(at >> 1) >> ((at & 1) * 32)) as u32
    }
}

/// The blocks of a ruleset.
pub trait Blocks {
    /// A block; nothing if there are fewer.
    fn block(&self, number: u32) -> Option<&Block>;

    /// The block that a word of the ruleset is in.
    #[inline(always)]
    fn of_word(&self, at: u32) -> Option<&Block> {
        self.block(at / BLOCK_WORDS as u32)
    }
}

/// A small ruleset: of one block, and with rows of one word.
pub struct Small<'a>(&'a Block);

impl<'a> Small<'a> {
    /// The ruleset that begins with this block, if it is a small one.
    #[inline(always)]
    pub const fn of(first: &'a Block) -> Option<Self> {
        if first.half(COUNT_BLOCKS) == 1 && first.half(SUMMARIES) == 0 { Some(Self(first)) } else { None }
    }
}

impl Blocks for Small<'_> {
    #[inline(always)]
    fn block(&self, _: u32) -> Option<&Block> {
        Some(self.0)
    }
}

/// A search for the rule that decides on a new flow: first [`Search::begin`], then [`Search::row`] for each field
/// that it names, then [`Search::rule`].
pub struct Search {
    /// The flow.
    pub query: Query,
    /// The row of each field, or still its entry.
    rows: [u32; FIELDS],
    /// The value that a tree is searched for.
    key: [u64; 2],
    /// The child that was come to in it.
    place: u32,
    /// Summary words of a row; 0 if rows have one word.
    summaries: u32,
    /// Those that have been looked at.
    at: u32,
    /// Of the last one: the words of rules that remain.
    words: u64,
    /// Of the word that is looked at: all bits of the summary before its own.
    before: u64,
    /// Where in a row that summary word is.
    pair: u32,
}

impl Search {
    /// Steps of a search in rows of more than one word, at most: each word of rules, each summary word, and the end.
    const STEPS: usize = MAX_RULES / 64 + MAX_RULES.div_ceil(64 * 64) + 1;

    /// For this flow.
    pub const fn new(query: Query) -> Self {
        Self {
            query,
            rows: [0; FIELDS],
            key: [0; 2],
            place: 0,
            summaries: 0,
            at: 0,
            words: 0,
            before: 0,
            pair: 0,
        }
    }

    /// Finds the entries of a flow, in the first block. Returns the fields, a bit for each, whose rows are yet to be found.
    #[inline(always)]
    pub fn begin(&mut self, first: &Block) -> u32 {
        let query = &self.query;
        let is_v4 = |address: &[u32; 4]| address[0] | address[1] == 0 && address[2] == V4_MAPPED;
        self.rows = [
            first.half(ZONES + ((query.from as u32 & 63) << 6 | query.to as u32 & 63)),
            first.half(PROTOCOLS + query.proto as u32),
            first.half(ADDRESSES + !is_v4(&query.src) as u32),
            first.half(ADDRESSES + 2 + !is_v4(&query.dst) as u32),
        ];
        self.summaries = first.half(SUMMARIES);
        (self.at, self.words) = (0, 0);
        let mut trees = 0;
        let mut field = 0;
        while field < FIELDS {
            trees |= self.rows[field] >> 31 << field;
            field += 1;
        }
        trees
    }

    /// Finds the row of a field whose entry is a tree, for [`Search::set_row`].
    #[inline(always)]
    pub fn row(&mut self, blocks: &impl Blocks, field: u32) -> Option<u32> {
        let field = field as usize & (FIELDS - 1);
        let entry = self.rows[field];
        if field == FIELD_SERVICE {
            self.key = [0, self.query.port as u64];
        } else {
            let address = if field == FIELD_SOURCE { &self.query.src } else { &self.query.dst };
            self.key = halves(address);
            if self.key[0] != 0 || address[2] != V4_MAPPED {
                return self.descend::<true>(blocks, entry);
            }
        }
        self.descend::<false>(blocks, entry)
    }

    /// Sets the row of a field.
    #[inline(always)]
    pub const fn set_row(&mut self, field: u32, row: u32) {
        self.rows[field as usize & (FIELDS - 1)] = row;
    }

    /// Looks for the key in a tree. Its nodes are wide if it has IPv6 addresses.
    #[inline(always)]
    fn descend<const WIDE: bool>(&mut self, blocks: &impl Blocks, entry: u32) -> Option<u32> {
        let tree = TREES + (entry & (MAX_TREES - 1)) * TREE_LEN;
        // Words of a node, and nodes of a block.
        let len = if WIDE { 32 } else { 8 };
        let nodes = BLOCK_WORDS as u32 / len;
        let first = blocks.block(0)?;
        self.place = 0;
        let mut level = 0;
        while level < MAX_LEVELS {
            self.in_memory();
            if level >= first.half(tree) {
                break;
            }
            let node = first.half(tree + 2 + level).wrapping_add(self.place);
            let block = blocks.block(node / nodes)?;
            let at = node % nodes * len;
            let mut less = 0;
            let mut step = 1 << LEVEL_BITS >> 1;
            while step > 0 {
                let key = less + step - 1;
                let is_less = if WIDE {
                    let low = borrow(block.word(at + 2 * key + 1), self.key[1], 0);
                    borrow(block.word(at + 2 * key), self.key[0], low)
                } else {
                    // Both have 32 bits.
                    in_turn((block.half(2 * at + key) as u64).wrapping_sub(self.key[1] as u32 as u64)) >> 63
                };
                less += step * is_less as u32;
                step >>= 1;
            }
            self.place = self.place << LEVEL_BITS | less;
            level += 1;
        }
        let at = first.half(tree + 1).wrapping_add(self.place);
        Some(blocks.of_word(at >> 1)?.half(at))
    }

    /// The number of the first rule of all rows, in a small ruleset.
    #[inline(always)]
    pub fn rule_of_small(&self, blocks: &Small<'_>) -> Option<u32> {
        self.rule_of_word(&[blocks.0; FIELDS])
    }

    /// The number of the first rule of all rows, if these have one word; it is in these blocks.
    #[inline(always)]
    fn rule_of_word(&self, rows: &[&Block; FIELDS]) -> Option<u32> {
        let rules = self.all(rows, |block, row| block.word(row));
        if rules == 0 { None } else { Some(lowest(rules)) }
    }

    /// The number of the first rule of all rows.
    #[inline(always)]
    pub fn rule(&mut self, blocks: &impl Blocks) -> Option<Option<u32>> {
        let found = [
            blocks.of_word(self.rows[0])?,
            blocks.of_word(self.rows[1])?,
            blocks.of_word(self.rows[2])?,
            blocks.of_word(self.rows[3])?,
        ];
        if self.summaries == 0 {
            return Some(self.rule_of_word(&found));
        }
        let mut step = 0;
        while step < Self::STEPS {
            step += 1;
            if self.words == 0 {
                if self.at >= self.summaries {
                    break;
                }
                let pair = 2 * self.at;
                self.words = self.all(&found, |block, row| block.word(row + pair));
                self.at += 1;
                self.in_memory();
                continue;
            }
            self.pair = 2 * (self.at - 1);
            self.before = lowest_bit(self.words) - 1;
            self.words &= self.words - 1;
            self.in_memory();
            let rules = self.all(&found, |block, row| {
                let row = row + self.pair;
                let rank = ones(in_turn(block.word(row) & self.before));
                block.word(row - self.pair + (block.word(row + 1) as u32) + rank)
            });
            self.in_memory();
            if rules != 0 {
                return Some(Some(((self.at - 1) * 64 + ones(self.before)) * 64 + lowest(rules)));
            }
        }
        Some(None)
    }

    /// From here on, what it holds is read anew: it takes no place on the stack meanwhile.
    #[inline(always)]
    fn in_memory(&mut self) {
        #[cfg(target_arch = "bpf")]
        // SAFETY: does nothing.
        unsafe {
            core::arch::asm!("{0} = {0}", inout(reg) core::ptr::from_mut(self) => _, options(nostack));
        }
    }

    /// What the rows of all fields have in common.
    #[inline(always)]
    fn all(&self, blocks: &[&Block; FIELDS], of: impl Fn(&Block, u32) -> u64) -> u64 {
        let mut all = in_turn(u64::MAX);
        let mut field = 0;
        while field < FIELDS {
            all = in_turn(all & of(blocks[field], self.rows[field]));
            field += 1;
        }
        all
    }
}

/// 1 if `a - b - c` is less than 0.
#[inline(always)]
fn borrow(a: u64, b: u64, c: u64) -> u64 {
    let difference = in_turn(a.wrapping_sub(b).wrapping_sub(c));
    (!a & b | (!a | b) & difference) >> 63
}

/// A number that is made before anything else is done, and of which the compiler knows nothing. The kernel's stack is
/// small, so few may be under way; and of a comparison it would make a branch, so that the verifier would follow both
/// ways at each step of a search.
#[inline(always)]
fn in_turn(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: the same number.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(nostack)) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}

/// The lowest bit that is 1.
#[inline(always)]
fn lowest_bit(bits: u64) -> u64 {
    bits & bits.wrapping_neg()
}

/// The number of the lowest bit that is 1.
#[inline(always)]
fn lowest(bits: u64) -> u32 {
    ones(lowest_bit(bits).wrapping_sub(1))
}

/// How many bits are 1.
#[inline(always)]
fn ones(bits: u64) -> u32 {
    bits.count_ones()
}

/// What a rule says.
#[inline(always)]
pub fn decision(blocks: &impl Blocks, rule: u32) -> Option<Decision> {
    let at = blocks.block(0)?.half(DECISIONS).wrapping_add(2 * rule);
    let block = blocks.of_word(at)?;
    Some(Decision::from_words([block.word(at), block.word(at + 1)]))
}

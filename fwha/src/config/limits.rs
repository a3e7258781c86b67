//! `[limits]`: what one source address may open. Without the section there is no limit.

use fwha_common::limit::Limits;

use super::{
    section::{self, Section},
    source::Mistakes,
};

pub(super) fn read(root: &mut Section<'_>, mistakes: &mut Mistakes) -> Limits {
    let mut limits = Limits::default();
    let Some(mut section) = root.get("limits").and_then(|t| section::table(t, "[limits]", mistakes)) else {
        return limits;
    };
    if let Some(rate) = section.integer("new-flows-per-second", 1..=10_000_000, mistakes) {
        limits.interval_ns = 1_000_000_000 / rate;
    }
    if let Some(flows) = section.integer("flows-per-source", 1..=100_000_000, mistakes) {
        limits.flows = flows as u32;
    }
    section.finish(mistakes);
    limits
}

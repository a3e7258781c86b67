//! The differences that are meant. Each is described in `docs/conntrack-differences.md` under its id.

use super::Difference;

/// A difference that is meant.
pub struct Known {
    /// Its name in the documentation.
    pub id: &'static str,
    /// Why fwha does not do what the kernel does, in a line.
    pub reason: &'static str,
    /// Whether it explains a difference.
    pub explains: fn(&Difference) -> bool,
}

/// All of them.
pub const KNOWN: &[Known] = &[];

/// The one that explains a difference.
pub fn known(difference: &Difference) -> Option<&'static Known> {
    KNOWN.iter().find(|known| (known.explains)(difference))
}

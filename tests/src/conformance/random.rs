//! TCP conversations made up from a seed.

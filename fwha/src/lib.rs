//! The fwha daemon and its control program.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | the config file: reading, checking, resolving |
//! | [`daemon`] | `fwha run` |

pub mod config;
pub mod daemon;

//! The fwha daemon and its control program.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command lines of both programs |
//! | [`config`] | the config file: reading, checking, resolving |
//! | [`check`] | `fwha check` |
//! | [`daemon`] | `fwha run` |
//! | [`ctl`] | the verbs of `fwhactl` |
//! | [`api`] | what the daemon and its clients say to each other |

pub mod api;
pub mod args;
pub mod check;
pub mod config;
pub mod ctl;
pub mod daemon;

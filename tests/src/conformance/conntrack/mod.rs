//! What nf_conntrack of Linux 6.18 does with TCP and SCTP, as a model: the second opinion on the kernel, as [`crate::model`]
//! is on fwha. With both, a difference between the two devices is known by its cause and not by its looks: see
//! [`super::forecast`].
//!
//! It is a description of what the kernel was seen to do, wart by wart, and no example. Where a rule of ours differs it
//! is written in `docs/conntrack-differences.md`.
//!
//! The ruleset is that of the comparison: inside may begin, so it is the originator of every entry. Times stand still.

pub mod sctp;
pub mod tcp;

//! VRRP version 3 (RFC 9568), and version 2 (RFC 3768) for neighbours that know no other: the voice
//! that speaks on the zones, for everybody to hear.
//!
//! [`packet`] is the wire, [`hmac`] a trailer that authenticates it, [`machine`] the state machine of one virtual router. Neither decides who
//! is Active: the machine says what the RFC would do now, and the [`crate::election`] does that
//! only where no authenticated peer knows better.

pub mod hmac;
pub mod machine;
pub mod packet;

//! The lab in which two real nodes run, the traffic that goes through them, and what tests share.
//!
//! * [`lab`]: client, fw1, fw2 and server in network namespaces, with cables that can be pulled.
//! * [`traffic`]: the paced TCP copy and the 1 kHz UDP probe, run inside the namespaces by the program `fwha-traffic`.
//! * [`model`]: what the data plane promises, as a plain reference; [`frames`]: the packets it is asked about.
//! * [`faults`]: every fault on either node, for `cargo xtask faults` and the tests alike.
//! * [`garbler`]: something in the middle of the dedicated link.
//! * [`pair`]: the two nodes together.
//! * [`scenario`]: how a test plays in a lab.
//! * [`takeover`]: the main job as one scenario, for `cargo xtask demo` and the tests alike.
//! * [`conformance`]: the same packets through nf_conntrack and through fwha, compared.
//! * [`sim`]: whole clusters of `fwha-proto` in virtual time, under faults.
//! * [`root`]: how a test says that it needs root.
//!
//! The scenarios themselves are in `tests/tests/scenarios/`, named by behaviour.

pub mod conformance;
pub mod faults;
pub mod frames;
pub mod garbler;
pub mod lab;
pub mod model;
pub mod pair;
pub mod root;
pub mod scenario;
pub mod sim;
pub mod sys;
pub mod takeover;
pub mod traffic;

//! The data plane's programs, loaded into the kernel and run on packets through `BPF_PROG_TEST_RUN`.
//!
//! Every packet is sent by `Rig::send`, which besides the verdict checks each time that it was counted
//! once at the entrance and once at exactly one exit, and a drop under exactly one reason.

#[path = "dataplane/packets.rs"]
mod packets;
#[path = "dataplane/rig.rs"]
mod rig;

#[path = "dataplane/capture.rs"]
mod capture;
#[path = "dataplane/embryonic.rs"]
mod embryonic;
#[path = "dataplane/flows.rs"]
mod flows;
#[path = "dataplane/forwarding.rs"]
mod forwarding;
#[path = "dataplane/guard.rs"]
mod guard;
#[path = "dataplane/limits.rs"]
mod limits;
#[path = "dataplane/model.rs"]
mod model;
#[path = "dataplane/ownership.rs"]
mod ownership;
#[path = "dataplane/policy.rs"]
mod policy;
#[path = "dataplane/probes.rs"]
mod probes;
#[path = "dataplane/robustness.rs"]
mod robustness;
#[path = "dataplane/script.rs"]
mod script;
#[path = "dataplane/synproxy.rs"]
mod synproxy;
#[path = "dataplane/virtual_mac.rs"]
mod virtual_mac;
#[path = "dataplane/vlans.rs"]
mod vlans;

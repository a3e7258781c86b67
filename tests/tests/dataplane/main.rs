//! The data plane's programs, loaded into the kernel and run on packets through `BPF_PROG_TEST_RUN`.
//!
//! Every packet is sent by `Rig::send`, which besides the verdict checks each time that it was counted
//! once at the entrance and once at exactly one exit, and a drop under exactly one reason.

mod packets;
mod rig;

mod capture;
mod embryonic;
mod flows;
mod forwarding;
mod guard;
mod limits;
mod model;
mod ownership;
mod policy;
mod probes;
mod robustness;
mod script;
mod synproxy;
mod virtual_mac;
mod vlans;

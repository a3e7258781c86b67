//! Scenarios about time, one lab at a time. Tests run in the order of their names, so that these come one after the other, and
//! nobody waits for their turns in between.

mod cables;
mod cleanup;
mod faults;
mod filtering;
mod garbled;
mod handover;
mod lab;
mod lease;
mod programs;
mod replication;
mod takeover;
mod virtual_mac;
mod witness;

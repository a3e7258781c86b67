//! Finds the BPF object that goes into the daemon, and refuses one that is not made from the sources
//! beside it.

#[path = "../fwha-ebpf/sources.rs"]
mod sources;

use std::{env, fs, path::Path};

fn main() {
    let own = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let workspace = Path::new(&own).parent().expect("the crate lies in a workspace");
    for source in sources::SOURCES.iter().chain([&sources::OBJECT, &sources::OBJECT_HASH]) {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    let now = sources::hash(workspace).expect("the sources of the BPF object can be read");
    let then = fs::read_to_string(workspace.join(sources::OBJECT_HASH)).unwrap_or_default();
    if now != then.trim() {
        println!(
            "cargo::error={} is not made from the present sources: run `cargo xtask build-ebpf`",
            sources::OBJECT
        );
        return;
    }
    println!("cargo::rustc-env=FWHA_BPF_OBJECT={}", workspace.join(sources::OBJECT).display());
}

//! One target under libFuzzer: that which the variable `FWHA_FUZZ_TARGET` names. `cargo xtask fuzz` builds and runs it.
#![no_main]

use std::sync::LazyLock;

use fwha_fuzz::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("FWHA_FUZZ_TARGET").expect("FWHA_FUZZ_TARGET names the target");
    Target::named(&name).expect("FWHA_FUZZ_TARGET is one of the targets")
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));

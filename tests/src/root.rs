//! How a test says that it needs root, or a program: without it is skipped aloud, under `CI=true` that is a failure.

use std::io::Write as _;
use std::path::Path;

/// Leaves the test with the line `skipped: needs root` unless it runs as root; see [`needed`].
#[macro_export]
macro_rules! needs_root {
    () => {
        if $crate::root::needed() {
            return;
        }
    };
}

/// True when the process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// True when the calling test must be skipped for want of root; says so on standard error, past the capture of the
/// test harness.
///
/// # Panics
///
/// When `CI=true`: there a skipped test would be a hole that nobody sees.
pub fn needed() -> bool {
    if is_root() {
        return false;
    }
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} needs root, and CI=true forbids skipping it"
    );
    // A direct write: the harness captures `eprintln!` of tests that pass.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: needs root");
    true
}

/// Says on standard error, past the capture of the test harness, that the calling test is left for want of something that
/// this kernel does not have. No failure in CI: there `cargo xtask kernels` runs such tests on a kernel that has it, and
/// fails should one be skipped.
pub fn skip_for_kernel(what: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    // A direct write: the harness captures `eprintln!` of tests that pass.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: needs {what}, which this kernel does not have");
}

/// Says that the calling test is left for want of something that this machine does not have, as [`needed`] does.
///
/// # Panics
///
/// When `CI=true`.
pub fn skip_for_machine(what: &str) {
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{test} needs {what}, and CI=true forbids skipping it"
    );
    // A direct write: the harness captures `eprintln!` of tests that pass.
    let _ = writeln!(std::io::stderr(), "{test}: skipped: needs {what}");
}

/// True when a file of a Debian package is missing, and the calling test must be skipped for want of it; says so as
/// [`needed`] does.
///
/// # Panics
///
/// When `CI=true`.
pub fn is_missing(file: &str, package: &str) -> bool {
    let missing = !Path::new(file).is_file();
    if missing {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{file} must be there in CI");
        // A direct write: the harness captures `eprintln!` of tests that pass.
        let _ = writeln!(std::io::stderr(), "skipped: needs {file} (Debian package {package})");
    }
    missing
}

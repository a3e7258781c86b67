//! `cargo xtask build-ebpf`: the kernel programs, as one object that is the same wherever it is built.
//!
//! The object is committed, so that whoever builds fwha needs neither LLVM nor the sources of `core`.
//! That it can be trusted follows from `--check`: it builds again and compares byte for byte.

mod tools;

#[path = "../../fwha-ebpf/sources.rs"]
mod sources;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};

use crate::cargo::{cargo, root, spinner};
use crate::command::output;
pub use sources::OBJECT;
use tools::Tools;

/// Build the kernel programs into the object that the daemon carries
#[derive(clap::Args)]
pub struct Args {
    /// Only compare the committed object with a fresh one
    #[arg(long)]
    check: bool,
}

const TARGET: &str = "bpfel-unknown-none";
/// Where it is built, relative to the workspace.
const DIR: &str = "target/ebpf";

/// Runs the verb.
pub fn run(args: &Args) -> Result<ExitCode> {
    let root = root();
    let dir = root.join(DIR);
    let tools = Tools::find(&root)?;
    let hash = sources::hash(&root).context("read the sources")?;
    let built = build(&root, &dir, &tools, "fwha-ebpf")?;

    let object = root.join(sources::OBJECT);
    let object_hash = root.join(sources::OBJECT_HASH);
    let bytes = fs::read(&built).with_context(|| format!("read {}", built.display()))?;
    if args.check {
        ensure!(
            fs::read_to_string(&object_hash).unwrap_or_default().trim() == hash,
            "{} is not of the present sources; run `cargo xtask build-ebpf`",
            sources::OBJECT_HASH
        );
        ensure!(
            fs::read(&object).unwrap_or_default() == bytes,
            "{} differs from a fresh build ({}); run `cargo xtask build-ebpf`",
            sources::OBJECT,
            built.display()
        );
        println!("{} is what its sources make", sources::OBJECT);
    } else {
        fs::create_dir_all(object.parent().context("the object lies in a directory")?)?;
        fs::write(&object, &bytes).with_context(|| format!("write {}", object.display()))?;
        fs::write(&object_hash, format!("{hash}\n"))
            .with_context(|| format!("write {}", object_hash.display()))?;
        println!("{}: {} bytes", sources::OBJECT, bytes.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds the programs of another package of the workspace, and returns the path of their object.
pub fn build_package(package: &str) -> Result<PathBuf> {
    let root = root();
    build(&root, &root.join(DIR), &Tools::find(&root)?, package)
}

/// Builds a package's object below `dir` and returns its path.
fn build(root: &Path, dir: &Path, tools: &Tools, package: &str) -> Result<PathBuf> {
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let spinner = spinner("building the BPF object");
    let wrapper = dir.join("rustc-wrapper");
    fs::write(&wrapper, WRAPPER).with_context(|| format!("write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let mut command = cargo();
    command
        .args(["build", "--quiet", "--locked", "--release", "--package", package, "--bin", package])
        .args(["--target", TARGET, "-Z", "build-std=core", "--config", "profile.release.codegen-units=1"])
        .env("CARGO_TARGET_DIR", dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(root, tools)?)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &tools.bpf_linker)
        .env("RUSTC_WRAPPER", &wrapper)
        // `build-std` is not stable; this is what nightly would allow.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("__CARGO_TESTS_ONLY_SRC_ROOT", &tools.rust_src)
        .env("CARGO_INCREMENTAL", "0")
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    ensure!(command.status().context("start cargo")?.success(), "the BPF object does not build");

    // DWARF is five times the programs; what the kernel reads (BTF and its line numbers) stays.
    let object = dir.join(format!("{package}.o"));
    let linked = dir.join(TARGET).join("release").join(package);
    output(Command::new(&tools.llvm_strip).arg("--strip-debug").arg("-o").arg(&object).arg(&linked))?;
    spinner.finish_and_clear();
    Ok(object)
}

/// Flags for what is compiled for the target.
fn flags(root: &Path, tools: &Tools) -> Result<OsString> {
    // `v3` has 32-bit registers, jumps and atomics. BTF, with which maps are declared, is made from
    // debug information.
    let mut flags: Vec<OsString> = [
        "-Ctarget-cpu=v3",
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
    ]
    .map(Into::into)
    .into();
    let mut remap = |from: &Path, to: &str| {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    };
    // Not the workspace as a whole: a copy of `core` may lie in it, which has a name of its own.
    for package in ["fwha-common", "fwha-ebpf"] {
        remap(&root.join(package), package);
    }
    let registry = tools::cargo_home()?.join("registry/src");
    output(cargo().args(["fetch", "--quiet", "--locked"]))?;
    for index in fs::read_dir(&registry).with_context(|| format!("read {}", registry.display()))? {
        remap(&index?.path(), "registry");
    }
    remap(&tools.rust_src, "core");
    Ok(flags.join("\u{1f}".as_ref()))
}

/// Cargo salts the symbols of a crate with where its dependencies lie, and `core` lies somewhere else
/// on every machine. No crate is there twice for the target, so one salt does for all.
const WRAPPER: &str = r#"#!/bin/sh
rustc=$1
shift
case " $* " in
*" --target bpfel-unknown-none "*)
    for arg; do
        shift
        case $arg in
        metadata=*) arg=metadata=fwha ;;
        esac
        set -- "$@" "$arg"
    done
    ;;
esac
exec "$rustc" "$@"
"#;

//! What building for BPF needs besides the toolchain: the sources of `core`, bpf-linker, LLVM.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cargo::{cargo, spinner};
use crate::command::output;

const BPF_LINKER: &str = "0.13.0";
/// Must not be older than the LLVM in rustc.
const LLVM: &str = "22";

/// Where the tools are.
pub struct Tools {
    /// The directory `library` of the sources of the Rust release in use.
    pub rust_src: PathBuf,
    /// The program bpf-linker.
    pub bpf_linker: PathBuf,
    /// The program llvm-strip.
    pub llvm_strip: PathBuf,
}

impl Tools {
    /// Finds the tools; gets those that are missing.
    ///
    /// # Errors
    ///
    /// One is missing and cannot be got. The message says what to install.
    pub fn find(root: &Path) -> Result<Self> {
        let llvm = llvm()?;
        Ok(Self {
            rust_src: rust_src(root)?,
            bpf_linker: bpf_linker(root, &llvm)?,
            llvm_strip: llvm.join("bin/llvm-strip"),
        })
    }
}

/// Where cargo keeps its registry.
pub fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME") {
        Some(home) => Ok(home.into()),
        None => {
            Ok(PathBuf::from(env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo"))
        }
    }
}

/// The sources of `core`: those of the toolchain, else `FWHA_RUST_SRC` (a directory, or an archive
/// that is unpacked below `target/`), else Debian's package of the very same release.
fn rust_src(root: &Path) -> Result<PathBuf> {
    let library = |dir: &Path| {
        [dir.to_path_buf(), dir.join("library")].into_iter().find(|dir| dir.join("core/src/lib.rs").is_file())
    };
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = output(Command::new(&rustc).args(["--print", "sysroot"]).current_dir(root))?;
    if let Some(found) = library(&Path::new(&sysroot).join("lib/rustlib/src/rust")) {
        return Ok(found);
    }
    let version = output(Command::new(&rustc).arg("--version").current_dir(root))?;
    let version = version.split(' ').nth(1).context("rustc says no version")?.to_owned();
    if let Some(given) = env::var_os("FWHA_RUST_SRC").map(PathBuf::from) {
        let given = root.join(given);
        let dir = if given.is_file() { unpack(root, &given, &version)? } else { given.clone() };
        return library(&dir)
            .with_context(|| format!("FWHA_RUST_SRC: no sources of core in {}", given.display()));
    }
    if let Some(found) = library(&PathBuf::from(format!("/usr/src/rustc-{version}"))) {
        return Ok(found);
    }
    bail!(
        "the sources of core are missing: `rustup component add rust-src`, or set FWHA_RUST_SRC to the \
         directory or archive `library` of Rust {version}"
    )
}

/// Unpacks an archive of sources, once.
fn unpack(root: &Path, archive: &Path, version: &str) -> Result<PathBuf> {
    let dir = root.join("target").join(format!("rust-src-{version}"));
    if !dir.is_dir() {
        // Under another name first, so that an interrupted run leaves nothing that looks whole.
        let partial = root.join("target").join(format!("rust-src-{version}.{}", std::process::id()));
        fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
        output(Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&partial))?;
        fs::rename(&partial, &dir).with_context(|| format!("rename {}", partial.display()))?;
    }
    Ok(dir)
}

/// The directory of LLVM's programs and libraries.
fn llvm() -> Result<PathBuf> {
    let dir =
        env::var_os("LLVM_PREFIX").map_or_else(|| format!("/usr/lib/llvm-{LLVM}").into(), PathBuf::from);
    if dir.join("bin/llvm-config").exists() {
        return Ok(dir);
    }
    let dev = [format!("llvm-{LLVM}-dev"), format!("libpolly-{LLVM}-dev")];
    let packages = dev
        .iter()
        .map(String::as_str)
        .chain(["zlib1g-dev", "libzstd-dev", "libxml2-dev"])
        .collect::<Vec<_>>();
    let command = format!("apt-get install {}", packages.join(" "));
    ensure!(
        fwha_tests::root::is_root() && Path::new("/etc/debian_version").exists(),
        "LLVM {LLVM} is missing in {}; on Debian: `{command}`",
        dir.display()
    );
    let spinner = spinner("installing LLVM");
    output(Command::new("apt-get").args(["-qq", "update"]))?;
    output(
        Command::new("apt-get")
            .args(["-qq", "install", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
    .with_context(|| format!("`{command}`"))?;
    spinner.finish_and_clear();
    Ok(dir)
}

/// The linker: ours below `target/`, else one of the same version in the path, else built now.
fn bpf_linker(root: &Path, llvm: &Path) -> Result<PathBuf> {
    let tools = root.join("target/tools");
    let own = tools.join("bin/bpf-linker");
    for program in [own.as_path(), Path::new("bpf-linker")] {
        if output(Command::new(program).arg("--version")).is_ok_and(|said| said.ends_with(BPF_LINKER)) {
            return Ok(program.to_path_buf());
        }
    }
    let spinner = spinner("building bpf-linker; this takes a minute or two, once");
    output(
        cargo()
            .args(["install", "--quiet", "--locked", "bpf-linker", "--version", BPF_LINKER])
            .args(["--no-default-features", "--features", &format!("llvm-{LLVM}"), "--root"])
            .arg(&tools)
            .env("LLVM_PREFIX", llvm)
            // Nearly all of its work is LLVM's; its own profile takes twice as long to build, for a debugger.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_TARGET_DIR", root.join("target/bpf-linker")),
    )
    .context("build bpf-linker")?;
    spinner.finish_and_clear();
    Ok(own)
}

// What the BPF object is made from, as one hash. Included by `xtask`, which writes it beside the
// object, and by the build script of `fwha`, which refuses an object whose sources changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Files and directories that the object is made from, relative to the workspace.
pub const SOURCES: [&str; 4] =
    ["fwha-common/Cargo.toml", "fwha-common/src", "fwha-ebpf/Cargo.toml", "fwha-ebpf/src"];
/// The object, relative to the workspace.
pub const OBJECT: &str = "fwha-ebpf/object/fwha.bpf.o";
/// The hash of the sources it was made from.
pub const OBJECT_HASH: &str = "fwha-ebpf/object/fwha.bpf.sha256";

/// SHA-256, in hex, over name, length and contents of every source file in the order of their names.
pub fn hash(workspace: &Path) -> io::Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(workspace, Path::new(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in files {
        let contents = fs::read(workspace.join(&file))?;
        hash.update(format!("{} {}\n", file.display(), contents.len()));
        hash.update(contents);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn collect(workspace: &Path, path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if !workspace.join(path).is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(workspace.join(path))? {
        collect(workspace, &path.join(entry?.file_name()), files)?;
    }
    Ok(())
}

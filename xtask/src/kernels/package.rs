//! Debian's kernels: found, fetched and checked by apt, in directories of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::{empty, file};
use crate::cargo::spinner;
use crate::command::output;

/// The package that depends on the newest kernel of a suite.
const NEWEST: &str = "linux-image-amd64";

/// A kernel, unpacked.
pub struct Kernel {
    /// As `uname -r` says.
    pub release: String,
    /// Where it is unpacked.
    pub dir: PathBuf,
    /// What the boot loader loads.
    pub image: PathBuf,
    /// The directory of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The newest one of a Debian suite. Fetched unless it was before.
    ///
    /// # Errors
    ///
    /// When apt, dpkg-deb or depmod is missing or fails: no network, no such suite.
    pub fn newest_of(suite: &str, dir: &Path) -> Result<Kernel> {
        let apt = Apt::new(suite, &dir.join("apt").join(suite))?;
        let release = apt
            .depends(NEWEST)?
            .iter()
            .find_map(|package| package.strip_prefix("linux-image-").map(str::to_owned))
            .with_context(|| format!("{NEWEST} of {suite} depends on no kernel"))?;
        let image = format!("linux-image-{release}");
        let root = dir.join(&release);
        if !root.join("done").exists() {
            let spinner = spinner(&format!("fetching Linux {release}"));
            // Newer ones are in parts.
            let parts = ["linux-binary-", "linux-modules-"].map(|part| format!("{part}{release}"));
            let parts = apt.depends(&image)?.into_iter().filter(|package| parts.contains(package));
            empty(&root)?;
            apt.unpack(parts.chain([image]), &root)?;
            // Under both names: depmod's own, and where the packages have them.
            std::os::unix::fs::symlink("usr/lib", root.join("lib")).context("name the modules' directory")?;
            output(Command::new("depmod").arg("-b").arg(&root).arg(&release))?;
            fs::write(root.join("done"), "").context("mark the kernel as unpacked")?;
            spinner.finish_and_clear();
        }
        let modules = root.join("usr/lib/modules").join(&release);
        let image =
            file(root.join(format!("boot/vmlinuz-{release}"))).or_else(|_| file(modules.join("vmlinuz")))?;
        Ok(Kernel { release, dir: root, image, modules })
    }
}

/// apt with one source, and with lists and caches of its own.
struct Apt {
    options: Vec<String>,
    dir: PathBuf,
}

impl Apt {
    fn new(suite: &str, dir: &Path) -> Result<Self> {
        empty(dir)?;
        for sub in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(dir.join(sub)).with_context(|| format!("create {}", dir.display()))?;
        }
        let (sources, status) = (dir.join("sources.list"), dir.join("status"));
        fs::write(&sources, format!("deb {} {suite} main\n", mirror()?)).context("write apt's sources")?;
        fs::write(&status, "").context("write apt's status")?;
        let options = [
            ("Dir::Etc::SourceList", sources),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", dir.join("lists")),
            ("Dir::State::Status", status),
            ("Dir::Cache", dir.join("cache")),
            ("APT::Architecture", "amd64".into()),
            // Else it fetches as a user who cannot write here.
            ("APT::Sandbox::User", "root".into()),
        ];
        let option =
            |(name, value): &(&str, PathBuf)| ["-o".to_owned(), format!("{name}={}", value.display())];
        let options = options.iter().flat_map(option).collect();
        let apt = Self { options, dir: dir.to_path_buf() };
        output(apt.command("apt-get").args(["-qq", "update"]))
            .with_context(|| format!("look for Debian's suite {suite}"))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).current_dir(&self.dir);
        command
    }

    /// What a package depends on, without alternatives.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let shown = output(self.command("apt-cache").args(["depends", "--important", package]))?;
        Ok(shown
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(str::to_owned)
            .collect())
    }

    /// Fetches packages and unpacks them below a directory.
    fn unpack(&self, packages: impl Iterator<Item = String>, root: &Path) -> Result<()> {
        output(self.command("apt-get").args(["-qq", "download"]).args(packages))?;
        let mut unpacked = 0;
        for entry in fs::read_dir(&self.dir).context("read what apt fetched")? {
            let path = entry.context("read what apt fetched")?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                output(Command::new("dpkg-deb").arg("-x").arg(&path).arg(root))?;
                fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
                unpacked += 1;
            }
        }
        ensure!(unpacked > 0, "apt fetched nothing");
        Ok(())
    }
}

/// The mirror of Debian that apt uses on this machine.
fn mirror() -> Result<String> {
    let known = || -> Result<Option<String>> {
        let targets = ["indextargets", "--format", "$(ORIGIN) $(LABEL) $(REPO_URI)"];
        let targets = output(Command::new("apt-get").args(targets))?;
        Ok(targets.lines().find_map(|line| line.strip_prefix("Debian Debian ")).map(str::to_owned))
    };
    if let Some(mirror) = known()? {
        return Ok(mirror);
    }
    // It has not looked yet.
    output(Command::new("apt-get").args(["-qq", "update"]))?;
    known()?.context("apt knows no mirror of Debian: run this on Debian")
}

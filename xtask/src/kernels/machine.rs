//! A machine that runs a kernel, with this system's files below a layer of its own.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use fwha_tests::lab::CARDS;

use super::package::Kernel;
use super::{empty, file};
use crate::cargo::spinner;
use crate::command::output;

const QEMU: &str = "qemu-system-x86_64";
const BUSYBOX: &str = "/bin/busybox";

/// What reaching this system's files takes, in the order in which they are loaded.
const MODULES: [&str; 5] =
    ["fs/netfs/netfs", "net/9p/9pnet", "net/9p/9pnet_virtio", "fs/9p/9p", "fs/overlayfs/overlay"];

/// The first program: lays a layer in memory above this system's files, and goes there.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
for module in netfs 9pnet 9pnet_virtio 9p overlay; do $b insmod /modules/$module.ko; done
share="trans=virtio,version=9p2000.L,msize=524288"
$b mount -t 9p -o $share,cache=loose,ro host /host
$b mount -t tmpfs layer /layer
$b mkdir /layer/upper /layer/work
$b mount -t overlay -o lowerdir=/host,upperdir=/layer/upper,workdir=/layer/work overlay /root
modules=/root/usr/lib/modules/$($b uname -r)
$b mkdir -p $modules
$b mount -t 9p -o $share,cache=loose,ro modules $modules
$b mount -t proc proc /root/proc
$b mount -t sysfs sys /root/sys
$b mount -t devtmpfs dev /root/dev
# Of this system's directories, only the one that describes what runs on it.
$b mount -t tmpfs run /root/run
$b mkdir /root/run/out
$b mount -t 9p -o $share out /root/run/out
exec $b switch_root /root /bin/bash /run/out/run
"#;

/// Says which Debian packages are missing.
///
/// # Errors
///
/// When one is.
pub fn check_tools() -> Result<()> {
    let there = |program: &str| output(Command::new("which").arg(program)).is_ok();
    let wanted = [
        (there(QEMU), "qemu-system-x86"),
        (Path::new(BUSYBOX).is_file(), "busybox-static"),
        (there("depmod"), "kmod"),
        (there("xz"), "xz-utils"),
        (there("apt-get"), "apt"),
    ];
    let missing: Vec<&str> = wanted.iter().filter(|(there, _)| !there).map(|(_, package)| *package).collect();
    ensure!(missing.is_empty(), "Debian packages are missing: apt-get install {}", missing.join(" "));
    Ok(())
}

/// Network cards of a lab: two ends of four cables.
const CARDS_OF_LAB: u8 = 8;

/// The machine.
pub struct Machine<'a> {
    kernel: &'a Kernel,
    initrd: PathBuf,
    /// Shared with the machine: what it is to run, and what came of it.
    out: PathBuf,
    /// The model of the network cards that the lab's nodes have instead of veths.
    nic: Option<&'a str>,
}

/// What became of a test program.
pub struct Outcome {
    /// All that it said.
    pub said: String,
    /// Its exit code; none if it did not come to its end.
    code: Option<i32>,
}

impl<'a> Machine<'a> {
    /// Makes what the machine starts from.
    ///
    /// # Errors
    ///
    /// When a file cannot be written or the kernel lacks a module.
    pub fn new(kernel: &'a Kernel, nic: Option<&'a str>) -> Result<Self> {
        let dir = kernel.dir.join("machine");
        let (tree, out, initrd) = (dir.join("initrd"), dir.join("out"), dir.join("initrd.cpio"));
        empty(&tree)?;
        for sub in ["bin", "modules", "proc", "sys", "dev", "host", "layer", "root"] {
            fs::create_dir(tree.join(sub)).with_context(|| format!("create {}", tree.display()))?;
        }
        fs::copy(BUSYBOX, tree.join("bin/busybox")).context("copy busybox")?;
        for module in MODULES {
            let to = tree.join("modules").join(format!("{}.ko", module.rsplit('/').next().unwrap_or(module)));
            let packed = kernel.modules.join(format!("kernel/{module}.ko.xz"));
            match packed.is_file() {
                true => fs::write(&to, unpacked(&packed)?),
                false => fs::copy(file(kernel.modules.join(format!("kernel/{module}.ko")))?, &to).map(drop),
            }
            .with_context(|| format!("write {}", to.display()))?;
        }
        let init = tree.join("init");
        fs::write(&init, INIT).context("write init")?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("make init a program")?;
        let pack = "find . | busybox cpio -o -H newc 2>/dev/null";
        let packed = Command::new("sh").args(["-c", pack]).current_dir(&tree).output().context("start sh")?;
        ensure!(
            packed.status.success(),
            "pack the initial files: {}",
            String::from_utf8_lossy(&packed.stderr)
        );
        fs::write(&initrd, packed.stdout).with_context(|| format!("write {}", initrd.display()))?;
        Ok(Self { kernel, initrd, out, nic })
    }

    /// Starts the machine, runs a test program in it and waits for its end.
    ///
    /// # Errors
    ///
    /// When the machine cannot be started or does not come to run anything.
    pub fn run(&self, program: &Path, filters: &[&str]) -> Result<Outcome> {
        empty(&self.out)?;
        let programs = program.ancestors().nth(2).context("the directory of the programs")?;
        let name = program.file_name().unwrap_or_default().to_string_lossy();
        // What systemd does at the start of every machine, as far as the tests need it.
        let script = format!(
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root CI=true\n\
             export FWHA_BIN_DIR='{bins}' RUST_TEST_THREADS={threads} {CARDS}='{cards}'\n\
             cat /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias | xargs modprobe -qa\n\
             mount --make-rshared /; mount -t bpf bpf /sys/fs/bpf; mount -t cgroup2 cgroup /sys/fs/cgroup\n\
             ip link set lo up; cd '{tests}'\n\
             '{program}' {filters} > /run/out/said 2>&1; echo $? > /run/out/code\n\
             sync; poweroff -f\n",
            bins = programs.display(),
            // There is one set of cards.
            threads = if self.nic.is_some() { 1 } else { 2 },
            cards = self.macs().join(" "),
            tests = crate::cargo::root().join("tests").display(),
            program = program.display(),
            filters = filters.iter().map(|filter| format!("'{filter}'")).collect::<Vec<_>>().join(" "),
        );
        fs::File::create(self.out.join("run"))
            .and_then(|mut run| run.write_all(script.as_bytes()))
            .context("write what the machine is to run")?;
        let spinner = spinner(&format!("Linux {}: {name}", self.kernel.release));
        let console = fs::File::create(self.out.join("console")).context("create the console's log")?;
        // Of its own it says that hubs lead nowhere else, as they should.
        let own = console.try_clone().context("share the console's log")?;
        let mut qemu = self.qemu();
        qemu.stdin(Stdio::null()).stdout(console).stderr(own);
        let status = qemu.status().context("start qemu")?;
        spinner.finish_and_clear();
        let read = |name| fs::read_to_string(self.out.join(name)).unwrap_or_default();
        let (said, code) = (read("said"), read("code").trim().parse().ok());
        if !status.success() || (said.is_empty() && code.is_none()) {
            bail!("Linux {} ran nothing ({status}); its console:\n{}", self.kernel.release, read("console"));
        }
        Ok(Outcome { said, code })
    }

    fn qemu(&self) -> Command {
        let share = |path: &Path, tag: &str, more: &str| {
            format!("local,path={},mount_tag={tag},security_model=none,multidevs=remap{more}", path.display())
        };
        let mut command = Command::new(QEMU);
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4G"])
            .args(["-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"])
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(&self.initrd)
            .args(["-virtfs", &share(Path::new("/"), "host", ",readonly=on")])
            .args(["-virtfs", &share(&self.kernel.modules, "modules", ",readonly=on")])
            .args(["-virtfs", &share(&self.out, "out", "")]);
        let model = self.nic.unwrap_or_default();
        for (n, mac) in self.macs().into_iter().enumerate() {
            command
                .args(["-netdev", &format!("hubport,id=end{n},hubid={}", n / 2)])
                .args(["-device", &format!("{model},netdev=end{n},mac={mac},romfile=")]);
        }
        command
    }

    /// The addresses of its network cards for a lab.
    fn macs(&self) -> Vec<String> {
        let count = if self.nic.is_some() { CARDS_OF_LAB } else { 0 };
        (0..count).map(|n| format!("52:54:00:fa:00:{n:02x}")).collect()
    }
}

impl Outcome {
    /// How many tests ran.
    pub fn ran(&self) -> usize {
        self.said.lines().filter(|line| line.starts_with("test ") && line.contains(" ... ")).count()
    }

    /// How many tests passed, which is all that ran.
    ///
    /// # Errors
    ///
    /// When one failed or was skipped, or when the machine ended before the program did.
    pub fn passed(&self) -> Result<usize> {
        let code = self.code.context("the machine ended before the tests did")?;
        ensure!(code == 0, "exit code {code}");
        if let Some(line) = self.said.lines().find(|line| line.contains("skipped: needs")) {
            bail!("{line}");
        }
        Ok(self.ran())
    }
}

fn unpacked(module: &Path) -> Result<Vec<u8>> {
    let output =
        Command::new("xz").args(["--decompress", "--stdout"]).arg(module).output().context("start xz")?;
    ensure!(output.status.success(), "unpack {}", module.display());
    Ok(output.stdout)
}

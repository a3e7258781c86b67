//! The service as it is shipped, under a systemd of its own on either node: what `packaging/fwha.service` promises.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, ensure};
use fwha_tests::lab::{KEY_FILE, LAN_VIP, Lab, LabOptions, Node, binary};
use fwha_tests::pair::{PATIENCE, in_sync, role, term};
use fwha_tests::root::is_missing;
use fwha_tests::scenario::in_lab;
use serde_json::Value;

const SYSTEMD: &str = "/lib/systemd/systemd";
const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/fwha.service");

/// Makes a machine: `/` with a layer of memory above it, and systemd as its first process, whose number it says as the
/// host counts. What else a host would start is masked.
const BOOT: &str = r#"
set -eu
lab=$1 node=$2 bin=$3 unit=$4 key=$5 systemd=$6
read -r pid _ < /proc/self/stat
dir=$lab/$node.machine
root=$dir/root
mkdir "$dir"
mount -t tmpfs tmpfs "$dir"
mkdir "$dir/upper" "$dir/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/upper,workdir=$dir/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t bpf bpf "$root/sys/fs/bpf"
for place in run tmp var/lib; do mount -t tmpfs tmpfs "$root/$place"; done
mkdir -p "$root$lab"
mount --bind "$lab" "$root$lab"
units=$root/etc/systemd/system
for masked in systemd-udevd systemd-udev-trigger systemd-tmpfiles-setup systemd-tmpfiles-setup-dev systemd-sysctl \
    systemd-modules-load systemd-remount-fs systemd-random-seed systemd-sysusers systemd-networkd; do
    ln -sf /dev/null "$units/$masked.service"
done
for masked in systemd-udevd-control systemd-udevd-kernel; do ln -sf /dev/null "$units/$masked.socket"; done
echo "$node" > "$root/etc/hostname"
mkdir -p "$root/etc/fwha" "$units/fwha.service.d"
cp "$lab/fwha.toml" "$lab/$key" "$root/etc/fwha/"
cp "$bin/fwha" "$bin/fwhactl" "$root/usr/local/sbin/"
cp "$unit" "$units/fwha.service"
printf '[Service]\nStandardOutput=append:%s\nStandardError=inherit\n' "$lab/$node.log" > "$units/fwha.service.d/log.conf"
printf '[Service]\nExecStart=/bin/sleep infinity\n' > "$units/web.service"
printf '[Unit]\nWants=fwha.service\n' > "$units/test.target"
echo "$pid"
export container=fwha
exec chroot "$root" "$systemd" --system --unit=test.target --log-target=null --show-status=false
"#;

/// A node of the lab with a systemd that knows no other machine.
struct Machine {
    node: Node,
    child: Child,
    /// Of its first process.
    pid: String,
}

impl Machine {
    fn boot(lab: &Lab, node: Node) -> Result<Self> {
        let cgroup = lab.control_group(node)?;
        let bin = binary("fwha", lab.options().bin_dir.as_deref())?;
        let bin = bin.parent().context("the directory of the programs")?;
        // The first shell goes to the control group, so that it is the root of what the machine sees.
        let enter = format!("echo 0 > {}/cgroup.procs && exec \"$@\"", cgroup.display());
        let mut command = lab.command("/bin/sh");
        command.args([
            "-c",
            &enter,
            "enter",
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--uts",
        ]);
        command.args(["--ipc", "--cgroup", "/bin/sh", "-c", BOOT, "boot"]);
        command.arg(lab.dir()).arg(node.name()).arg(bin).args([UNIT, KEY_FILE, SYSTEMD]);
        command.stdout(Stdio::piped());
        let child = lab.spawn(node.host(), &mut command)?;
        let mut machine = Self { node, child, pid: String::new() };
        let said = machine.child.stdout.take().context("the machine's output")?;
        BufReader::new(said).read_line(&mut machine.pid)?;
        machine.pid.truncate(machine.pid.trim_end().len());
        ensure!(!machine.pid.is_empty(), "the machine of {node} does not boot");
        Ok(machine)
    }

    /// Runs a program in the machine to its end, well or not.
    fn output(&self, argv: &[&str]) -> Result<Output> {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.pid, "--all", "--root", "--wd=/", "--"]).args(argv);
        command.stdin(Stdio::null()).output().with_context(|| argv.join(" "))
    }

    fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self.output(argv)?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success(),
            "{} on {}: {}: {said}{}",
            argv.join(" "),
            self.node,
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(said)
    }

    /// A property of a unit.
    fn property(&self, unit: &str, name: &str) -> Result<String> {
        Ok(self.run(&["systemctl", "show", "--value", "--property", name, unit])?.trim().to_owned())
    }

    fn status(&self) -> Result<Value> {
        let output = self.output(&["fwhactl", "-o", "json", "status"])?;
        serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn wait_for(&self, lab: &Lab, what: &str, pick: impl Fn(&Value) -> bool) -> Result<Value> {
        lab.wait_for(&format!("{}: {what}", self.node), PATIENCE, || {
            // Before it listens, and while it is started again, there is no answer.
            Ok(self.status().ok().filter(&pick))
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // All of it goes with the one that made its namespaces. These fail only when it has gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_unit_keeps_the_role_over_a_kill_reloads_and_hands_over_at_its_stop() {
    if is_missing(SYSTEMD, "systemd") {
        return;
    }
    in_lab(LabOptions::beside(), |lab| {
        let config = fs::read_to_string(lab.config_path())?;
        let resource = "\n[[resource]]\nname = \"web\"\ngroup = \"gateway\"\nsystemd = \"web.service\"\ninterval = \"200ms\"\n";
        fs::write(lab.config_path(), config + resource)?;
        let machines = [Machine::boot(lab, Node::Fw1)?, Machine::boot(lab, Node::Fw2)?];
        let settled = |machine: &Machine| {
            machine.wait_for(lab, "to be settled", |status| {
                in_sync(status) && matches!(role(status), Some("active" | "backup"))
            })
        };
        let statuses = [settled(&machines[0])?, settled(&machines[1])?];
        let [active, backup] = match role(&statuses[0]) {
            Some("active") => [&machines[0], &machines[1]],
            _ => [&machines[1], &machines[0]],
        };
        let runs = |status: &Value| {
            let state = status.pointer("/groups/0/resources/0/state").and_then(Value::as_str);
            role(status) == Some("active") && state == Some("running")
        };
        let before = active.wait_for(lab, "to run the unit", runs)?;
        ensure!(active.property("fwha", "ActiveState")? == "active");
        ensure!(active.property("web", "ActiveState")? == "active");
        ensure!(backup.property("web", "ActiveState")? == "inactive");
        let web = active.property("web", "MainPID")?;

        // Killed: systemd starts it again within its lease.
        active.run(&["systemctl", "kill", "--signal=KILL", "--kill-who=main", "fwha"])?;
        lab.wait_for("systemd to start it again", PATIENCE, || {
            let restarts = active.property("fwha", "NRestarts")?;
            let state = active.property("fwha", "ActiveState")?;
            Ok((restarts == "1" && state == "active").then_some(()))
        })?;
        let after = active.wait_for(lab, "to be as before", runs)?;
        ensure!(term(&after) == term(&before), "{before}\n{after}");
        ensure!(active.property("web", "MainPID")? == web, "what runs was started again");

        // Its files are read again, or refused with the reason.
        active.run(&["systemctl", "reload", "fwha"])?;
        let path = "/etc/fwha/fwha.toml";
        active.run(&["/bin/sh", "-c", &format!("cp {path} /tmp/good && echo nonsense >> {path}")])?;
        let refused = active.output(&["systemctl", "reload", "fwha"])?;
        ensure!(!refused.status.success(), "{refused:?}");
        active.run(&["cp", "/tmp/good", path])?;
        ensure!(active.property("fwha", "ActiveState")? == "active");
        ensure!(role(&active.status()?) == Some("active"));

        // Stopped: the other has the role and its unit before this one has gone.
        active.run(&["systemctl", "stop", "fwha"])?;
        ensure!(active.property("fwha", "Result")? == "success");
        ensure!(active.property("web", "ActiveState")? == "inactive");
        ensure!(role(&backup.status()?) == Some("active"), "{}", backup.status()?);
        backup.wait_for(lab, "to run the unit", runs)?;
        ensure!(backup.property("web", "ActiveState")? == "active");
        let addresses = lab.exec(active.node.host(), &["ip", "-oneline", "address"])?;
        ensure!(!addresses.contains(LAN_VIP), "{addresses}");

        // Started again: the Backup, in sync.
        active.run(&["systemctl", "start", "fwha"])?;
        let is_backup = |status: &Value| role(status) == Some("backup") && in_sync(status);
        active.wait_for(lab, "to be the Backup", is_backup)?;

        // However many starts have failed, one that is killed later is back within its lease.
        const FAILED: u32 = 12;
        active.run(&["/bin/sh", "-c", &format!("echo nonsense >> {path}")])?;
        active.run(&["systemctl", "kill", "--signal=KILL", "--kill-who=main", "fwha"])?;
        let restarts = || -> Result<u32> { Ok(active.property("fwha", "NRestarts")?.parse()?) };
        lab.wait_for("many starts to fail", PATIENCE, || Ok((restarts()? >= FAILED).then_some(())))?;
        active.run(&["cp", "/tmp/good", path])?;
        active.wait_for(lab, "to be the Backup again", is_backup)?;
        backup.run(&["fwhactl", "switchover", "gateway", "--wait"])?;
        let before = active.wait_for(lab, "to run the unit again", runs)?;
        let failed = restarts()?;
        active.run(&["systemctl", "kill", "--signal=KILL", "--kill-who=main", "fwha"])?;
        lab.wait_for("systemd to start it again", PATIENCE, || {
            let state = active.property("fwha", "ActiveState")?;
            Ok((restarts()? == failed + 1 && state == "active").then_some(()))
        })?;
        let after = active.wait_for(lab, "to be as before the kill", runs)?;
        ensure!(term(&after) == term(&before), "{before}\n{after}");
        Ok(())
    });
}

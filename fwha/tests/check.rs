//! `fwha check` as a program.

use std::{
    path::Path,
    process::{Command, Output},
};

const CONFIG: &str = r#"
[cluster]
name = "edge"
key-file = "cluster.key"
[[node]]
name = "check-fw1"
sync = [{ interface = "fwha-none0", address = "172.16.0.1" }]
[[node]]
name = "check-fw2"
sync = [{ interface = "lo", address = "172.16.0.2" }]
[[zone]]
name = "lan"
interfaces = { check-fw1 = ["lo"], check-fw2 = ["fwha-none1"] }
[[group]]
name = "gateway"
nodes = ["check-fw1", "check-fw2"]
vips = [{ zone = "lan", vrid = 62, addresses = ["192.168.100.12/24"] }]
[[rule]]
name = "admin"
to = "node"
action = "accept"
"#;

fn check(config: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwha"));
    command.arg("check").arg("--config").arg(config).args(more).output().unwrap()
}

/// The exit code where nobody reads what is said.
fn check_unread(config: &Path) -> Option<i32> {
    let closed = || std::io::pipe().unwrap().1;
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwha"));
    command.arg("check").arg("--config").arg(config).stdout(closed()).stderr(closed());
    command.status().unwrap().code()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_good_file_is_summed_up_with_warnings() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fwha.toml");
    std::fs::write(&path, CONFIG).unwrap();
    fwha::config::key::generate(&dir.path().join("cluster.key")).unwrap();

    let output = check(&path, &[]);
    let stdout = text(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let hash = fwha::config::Config::load(&path).unwrap().hash;
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some(&*format!("edge: 2 nodes, 1 zone, 1 group, 1 rule; hash {hash:016x}")));
    assert!(lines.next().unwrap().starts_with("warning: one sync link only"), "{stdout}");
    let note = lines.next().unwrap();
    assert!(note.starts_with("note: this host, \"") && note.contains("\", is none of the nodes"), "{stdout}");
    assert_eq!(lines.next(), None, "{stdout}");
    assert_eq!(check_unread(&path), Some(0));

    let output = check(&path, &["--node", "check-fw1"]);
    let stdout = text(&output.stdout);
    assert!(output.status.success());
    let last = stdout.lines().last().unwrap();
    assert!(
        last.starts_with("warning: ") && last.ends_with(":7:23: check-fw1 has no interface \"fwha-none0\""),
        "{stdout}"
    );

    assert!(!stdout.contains("note: "), "{stdout}");

    // One of a zone keeps the node from starting, one of a sync link does not.
    let output = check(&path, &["--node", "check-fw2"]);
    let stdout = text(&output.stdout);
    let missing = "\"fwha-none1\" (until then `fwha run` does not start here)\n";
    assert!(output.status.success() && stdout.contains(missing), "{stdout}");

    let tracker = "[[tracker]]\nname = \"up\"\ninterface = \"fwha-none2\"\n";
    std::fs::write(&path, format!("{CONFIG}{tracker}")).unwrap();
    let output = check(&path, &["--node", "check-fw2"]);
    let stdout = text(&output.stdout);
    let gone =
        "warning: tracker up: there is no interface \"fwha-none2\", which is as bad as one without carrier\n";
    assert!(output.status.success() && stdout.contains(gone), "{stdout}");

    let witnessed = CONFIG.replace("[cluster]", "[cluster]\nwitness = [\"127.0.0.1\", \"10.0.0.254\"]");
    std::fs::write(&path, witnessed).unwrap();
    let output = check(&path, &["--node", "check-fw1"]);
    let own = "warning: witness 127.0.0.1 is an address of this machine: it answers whatever is cut\n";
    let stdout = text(&output.stdout);
    assert!(stdout.contains(own) && !stdout.contains("10.0.0.254"), "{stdout}");

    let output = check(&path, &["--node", "fw9"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).ends_with("has no node \"fw9\"; it has check-fw1, check-fw2\n"));
}

#[test]
fn every_mistake_is_printed_and_the_exit_code_is_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fwha.toml");
    std::fs::write(&path, CONFIG.replace("vrid = 62", "vrid = 0").replace("to = \"node\"", "to = \"wan\""))
        .unwrap();
    let output = check(&path, &[]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), ""));
    let stderr = text(&output.stderr);
    for expected in [
        ":4:12: key file ",
        ":17:32: vrid 0 is out of range\n",
        ":20:6: unknown zone \"wan\"\n",
        "fwhactl keygen ",
        "\n3 mistakes found\n",
    ] {
        assert!(stderr.contains(expected), "{expected} in {stderr}");
    }
    assert_eq!(check_unread(&path), Some(1));
    let output = check(Path::new("/nonexistent.toml"), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("/nonexistent.toml: cannot read the config file: No such file"));
}

//! Mistakes of operators: each is told in words that name it and its remedy, and harms nothing that runs.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use fwha_tests::lab::{KEY_FILE, LabOptions, binary, config_text};
use fwha_tests::pair::PATIENCE;
use fwha_tests::root::is_root;
use fwha_tests::scenario::with_pair;
use tempfile::TempDir;

/// What a program wrote to standard error, after checking its exit code.
fn refusal(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// A directory with a good config file and its key.
fn good_files() -> Result<TempDir> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("fwha.toml"), config_text(&LabOptions::default()))?;
    let made =
        Command::new(binary("fwhactl", None)?).arg("keygen").arg(dir.path().join(KEY_FILE)).output()?;
    assert!(made.status.success(), "{made:?}");
    Ok(dir)
}

/// `fwha check`, and, as root, `fwha run`: what both say of the config file, which they must refuse alike.
fn refused(dir: &Path) -> Result<String> {
    let fwha = binary("fwha", None)?;
    let config = dir.join("fwha.toml");
    let checked = refusal(&Command::new(&fwha).arg("check").arg("--config").arg(&config).output()?);
    if is_root() {
        // Should it start after all, it finds no interface, and not for ever.
        let mut run = Command::new("unshare");
        run.args(["--net", "timeout", "--kill-after=5", "60"]).arg(&fwha);
        run.arg("run").arg("--config").arg(&config).args(["--node", "fw1", "--run-dir"]).arg(dir.join("run"));
        let said = refusal(&run.output()?);
        assert!(checked.starts_with(said.trim_end()), "check: {checked}\nrun: {said}");
    }
    Ok(checked)
}

#[test]
fn a_mistake_in_the_config_file_is_refused_with_its_place_and_its_remedy() -> Result<()> {
    let dir = good_files()?;
    let file = dir.path().join("fwha.toml");
    let good = config_text(&LabOptions::default());
    let checked = Command::new(binary("fwha", None)?).arg("check").arg("--config").arg(&file).output()?;
    assert!(checked.status.success(), "{checked:?}");

    // What is replaced, by what; the part of that which is wrong, the message, the remedy.
    for (old, new, wrong, message, remedy) in [
        (
            "max-flows",
            "max-flow",
            "max",
            "unknown key \"max-flow\" in [cluster]",
            "did you mean \"max-flows\"?",
        ),
        ("65536", "\"many\"", "\"many", "max-flows is a string, not an integer", ""),
        (
            "zone = \"inet\", vrid",
            "zone = \"intern\", vrid",
            "\"intern",
            "unknown zone \"intern\"",
            "known: inet, lan",
        ),
        ("\"fw2\"]", "\"fw3\"]", "\"fw3", "unknown node \"fw3\"", "did you mean"),
        (
            "zone = \"lan\",  vrid = 62",
            "zone = \"inet\", vrid = 61",
            "61",
            "vrid 61 is there twice in zone \"inet\"",
            "choose one that no other router on that network uses",
        ),
        (
            "\"192.168.100.12/24",
            "\"10.0.0.13/16",
            "\"10.0.0.13",
            "vip 10.0.0.13/16 overlaps vip 10.0.0.12/24 of zone \"inet\"",
            "each zone needs networks of its own",
        ),
    ] {
        assert!(good.contains(old), "{old}");
        let text = good.replacen(old, new, 1);
        fs::write(&file, &text)?;
        let said = refused(dir.path())?;
        let first = said.lines().next().unwrap_or_default();
        let at = good.find(old).unwrap_or_default() + new.find(wrong).unwrap_or_default();
        let line = text[..at].matches('\n').count() + 1;
        let column = at - text[..at].rfind('\n').unwrap_or_default();
        let expected = format!("{}:{line}:{column}: {message}", file.display());
        assert!(first.starts_with(&expected), "expected {expected}\nfound {said}");
        assert!(said.contains(remedy) && said.contains("^"), "{said}");
        assert!(said.ends_with("1 mistake found\n"), "{said}");
    }
    Ok(())
}

#[test]
fn a_key_that_is_missing_too_short_or_for_all_to_read_is_refused_with_the_command_that_mends_it() -> Result<()>
{
    let dir = good_files()?;
    let key = dir.path().join(KEY_FILE);

    fs::set_permissions(&key, Permissions::from_mode(0o644))?;
    let said = refused(dir.path())?;
    assert!(said.contains("can be read by others (mode 0644)"), "{said}");
    assert!(said.contains(&format!("chmod 600 {}", key.display())), "{said}");

    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    fs::write(&key, "c0ffee\n")?;
    let said = refused(dir.path())?;
    assert!(said.contains("is too short: 6 of 64 hexadecimal digits"), "{said}");

    fs::remove_file(&key)?;
    let said = refused(dir.path())?;
    assert!(said.contains(":3:12: ") && said.contains("does not exist"), "{said}");
    assert!(said.contains(&format!("fwhactl keygen {}", key.display())), "{said}");
    Ok(())
}

#[test]
fn without_root_the_daemon_says_so_in_a_line() -> Result<()> {
    let dir = good_files()?;
    // The program may lie where nobody but root can go.
    let fwha = dir.path().join("fwha");
    // By another process: a file that this one had open for writing when another test forked is busy.
    assert!(Command::new("cp").arg(binary("fwha", None)?).arg(&fwha).status()?.success());
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
    fs::set_permissions(&fwha, Permissions::from_mode(0o755))?;
    let mut run = Command::new("timeout");
    run.args(["--kill-after=5", "60"]).arg(&fwha);
    run.arg("run").arg("--config").arg(dir.path().join("fwha.toml")).current_dir("/");
    if is_root() {
        // nobody
        run.uid(65_534).gid(65_534);
    }
    let said = refusal(&run.output()?);
    assert_eq!(said, "fwha: fwha run needs root: it loads BPF programs and moves addresses\n");
    Ok(())
}

#[test]
fn without_a_daemon_every_verb_says_so_in_a_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("fwha.sock");
    let verbs = ["status", "flows", "stats", "events", "switchover"];
    let ask = |verb: &str| -> Result<String> {
        let mut ctl = Command::new(binary("fwhactl", None)?);
        Ok(refusal(&ctl.arg("--socket").arg(&socket).arg(verb).output()?))
    };
    for verb in verbs {
        let said = ask(verb)?;
        let expected = format!(
            "fwhactl: no fwha daemon at {}: no such socket (is \"fwha run\" up?)\n",
            socket.display()
        );
        assert_eq!(said, expected);
    }
    // A socket that a killed daemon left.
    drop(std::os::unix::net::UnixListener::bind(&socket)?);
    for verb in verbs {
        let said = ask(verb)?;
        assert!(
            said.contains("connection refused (is \"fwha run\" up?)") && said.lines().count() == 1,
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn a_start_that_cannot_be_harms_nothing_and_a_stale_socket_is_replaced() {
    with_pair(LabOptions::beside(), |lab, pair| {
        let active = pair.settle(lab)?;
        let host = active.host();
        let before = (pair.roles()?, lab.pins()?);
        let fwha = binary("fwha", None)?.display().to_string();
        let config = lab.config_path().display().to_string();
        let run_dir = |name: &str| lab.dir().join(name).display().to_string();

        // A second daemon for the node, by the same run directory and by one of its own.
        let own = run_dir(active.name());
        let second = [&fwha, "run", "--config", &config, "--node", active.name(), "--run-dir", &own];
        let said = refusal(&lab.try_exec(host, &second)?);
        let pid = pair.node(active).pid();
        assert!(said.contains(&format!("another fwha daemon (pid {pid}) uses {own}")), "{said}");
        let other = run_dir("other");
        let second = [&fwha, "run", "--config", &config, "--node", active.name(), "--run-dir", &other];
        let said = refusal(&lab.try_exec(host, &second)?);
        assert!(said.contains("another fwha daemon for this node"), "{said}");
        assert_eq!(said.lines().count(), 1, "it was refused before it touched anything: {said}");
        assert_eq!(
            (pair.settle(lab)?, pair.roles()?, lab.pins()?),
            (active, before.0.clone(), before.1.clone())
        );

        // An interface that is not there.
        let wrong = lab.dir().join("wrong.toml");
        fs::write(&wrong, fs::read_to_string(lab.config_path())?.replace("[\"lan\"]", "[\"lam\"]"))?;
        let wrong = wrong.display().to_string();
        let run = [&fwha, "run", "--config", &wrong, "--node", active.name(), "--run-dir", &other];
        let said = refusal(&lab.try_exec(host, &run)?);
        let place = said.lines().find(|line| line.starts_with(&wrong)).context("no place in the file")?;
        assert!(place.contains(&format!("{} has no interface \"lam\"", active.name())), "{said}");
        assert!(said.contains("`ip link` shows those that it has"), "{said}");
        assert_eq!((pair.settle(lab)?, pair.roles()?, lab.pins()?), (active, before.0, before.1));

        // The socket of a daemon that was killed.
        let backup = active.peer();
        pair.node_mut(backup).kill()?;
        assert!(pair.node(backup).socket().exists(), "a killed daemon leaves its socket");
        let asked = pair.node(backup).ctl_output(&["status"])?;
        assert!(refusal(&asked).contains("connection refused"));
        pair.restart(lab, backup)?;
        assert_eq!(pair.settle(lab)?, active);
        assert!(pair.node_mut(active).term(PATIENCE)?.success());
        pair.wait_for_role(lab, backup, "active")?;
        Ok(())
    });
}

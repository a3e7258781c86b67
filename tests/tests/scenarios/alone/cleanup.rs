//! What a daemon that was killed leaves, and who takes that away.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use fwha::netlink::Addresses;
use fwha::sys::bpf::{AttachType, tcx_links};
use fwha_tests::lab::{LAN_VIP, Lab, LabOptions, Node};
use fwha_tests::pair::{PATIENCE, Pair};
use fwha_tests::scenario::in_lab;
use fwha_tests::traffic::mono_ms;
use nix::net::if_::if_nametoindex;

/// Everything of a box that a node changes: addresses, programs, settings, pins, sockets.
fn picture(lab: &Lab, node: Node) -> Result<Vec<String>> {
    let host = node.host();
    let mut found = Vec::new();
    let addresses = lab.exec(host, &["ip", "-4", "-oneline", "address"])?;
    found.extend(addresses.lines().map(str::to_owned));
    let links = lab.exec(host, &["ip", "-details", "-oneline", "link"])?;
    found.extend(links.lines().filter(|l| l.contains("xdp")).map(str::to_owned));
    for interface in ["lan", "wan", "sync"] {
        found.push(lab.exec(host, &["tc", "qdisc", "show", "dev", interface])?);
        for hook in [AttachType::BPF_TCX_INGRESS, AttachType::BPF_TCX_EGRESS] {
            let links =
                lab.within(host, || -> Result<_> { Ok(tcx_links(if_nametoindex(interface)?, hook)?) })??;
            found.extend(links.iter().map(|link| format!("link {link} at {hook:?} of {interface}")));
        }
        for setting in
            ["ipv4/conf/IF/forwarding", "ipv4/conf/IF/promote_secondaries", "ipv6/conf/IF/forwarding"]
        {
            let path = format!("/proc/sys/net/{}", setting.replace("IF", interface));
            found.push(format!("{path} {}", lab.exec(host, &["cat", &path])?));
        }
    }
    let pins = lab.pins()?.into_iter().map(|pin| pin.display().to_string());
    found.extend(pins.filter(|pin| pin.contains(node.name())));
    for entry in fs::read_dir(lab.dir().join(node.name())).into_iter().flatten() {
        let entry = entry?;
        found.extend(entry.file_type()?.is_socket().then(|| entry.path().display().to_string()));
    }
    Ok(found)
}

/// What it prints when it ends well.
fn cleaned(lab: &Lab, node: Node) -> Result<String> {
    let output = lab.cleanup(node)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn has_vip(lab: &Lab, node: Node) -> Result<bool> {
    Ok(lab.exec(node.host(), &["ip", "-oneline", "address"])?.contains(LAN_VIP))
}

#[test]
fn after_a_kill_and_a_cleanup_the_machine_is_as_it_was() {
    in_lab(LabOptions::default(), |lab| {
        let before = [picture(lab, Node::Fw1)?, picture(lab, Node::Fw2)?];
        let (mut pair, first) = Pair::settled(lab)?;
        let second = first.peer();

        // Not under a daemon that runs.
        let refused = lab.cleanup(first)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && said.contains(&format!("pid {}", pair.node(first).pid())),
            "{said}"
        );
        assert_eq!(pair.settle(lab)?, first, "it has changed nothing");

        // Nobody cleans up: the addresses go by themselves, and what remains forwards nothing.
        pair.node_mut(first).kill()?;
        let killed_ms = mono_ms();
        assert!(has_vip(lab, first)?);
        pair.wait_for_role(lab, second, "active")?;
        println!("SIGKILL: the peer took over after {:.0} ms", mono_ms() - killed_ms);
        lab.wait_for("the addresses to go by themselves", PATIENCE, || {
            Ok((!has_vip(lab, first)?).then_some(()))
        })?;
        println!("SIGKILL: the addresses were gone after {:.0} ms", mono_ms() - killed_ms);
        assert!(picture(lab, first)?.iter().any(|line| line.starts_with("link ")), "fail closed");
        assert_eq!(
            cleaned(lab, first)?,
            "removed packet programs and their maps\nremoved the control socket\n"
        );
        assert_eq!(picture(lab, first)?, before[first as usize]);

        // Somebody does, at once.
        pair.node_mut(second).kill()?;
        let said = cleaned(lab, second)?;
        assert!(said.contains(&format!("removed {LAN_VIP}/24\n")), "{said}");
        assert_eq!(picture(lab, second)?, before[second as usize]);
        assert_eq!(cleaned(lab, second)?, format!("{second} has left nothing\n"));

        // And both can start again.
        pair.restart(lab, first)?;
        pair.restart(lab, second)?;
        pair.settle(lab)?;
        Ok(())
    });
}

/// Gives the addresses that a daemon has left a lifetime that outlasts any start of the next.
fn prolong(lab: &Lab, node: Node) -> Result<()> {
    lab.within(node.host(), || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let interfaces = [if_nametoindex("lan")?, if_nametoindex("wan")?];
            let addresses = Addresses::new()?;
            let left = addresses.list(&interfaces).await?;
            ensure!(left.len() == 2, "too late to see anything: {left:?}");
            Ok(addresses.add(&left, PATIENCE * 10).await?)
        })
    })?
}

#[test]
fn a_daemon_that_is_back_after_its_lease_removes_the_addresses_that_were_left() {
    let lease = Some(Duration::from_millis(500));
    in_lab(LabOptions { lease, ..LabOptions::default() }, |lab| {
        let (mut pair, killed) = Pair::settled(lab)?;
        let removed = "removed 2 virtual addresses that do not belong here now";
        assert!(!pair.node(killed).log()?.contains(removed));
        pair.node_mut(killed).kill()?;
        prolong(lab, killed)?;
        pair.wait_for_role(lab, killed.peer(), "active")?;
        assert!(has_vip(lab, killed)?);
        pair.restart(lab, killed)?;
        pair.wait_for_role(lab, killed, "backup")?;
        assert!(!has_vip(lab, killed)?);
        let log = pair.node(killed).log()?;
        assert!(log.contains(removed), "{log}");
        Ok(())
    });
}

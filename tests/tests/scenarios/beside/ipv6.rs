//! The group's IPv6 addresses: they move as those of IPv4 do.

use anyhow::Result;
use fwha_tests::lab::{
    Attach, Host, LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP, Lab, LabOptions, Node, PING6, SERVER6,
};
use fwha_tests::pair::PATIENCE;
use fwha_tests::scenario::with_pair;

/// Waits until the client's neighbour entries of the group's addresses have the MAC of `node`; it asks for none.
fn wait_for_entries(lab: &Lab, node: Node) -> Result<()> {
    let mac = lab.lan_mac(node)?;
    lab.wait_for("the client to know the new MAC", PATIENCE, || {
        let shown = lab.exec(Host::Client, &["ip", "neighbour", "show", "dev", "eth0"])?;
        let known = |vip: &&str| {
            let entry = shown.lines().find(|line| line.split_whitespace().next() == Some(*vip));
            entry.is_some_and(|entry| entry.contains(&mac))
        };
        Ok([LAN_VIP, LAN_VIP6, LINK_LOCAL_VIP].iter().all(known).then_some(()))
    })
}

/// Whether a node has the group's IPv6 addresses on the LAN, usable at once.
fn has_vips(lab: &Lab, node: Node) -> Result<bool> {
    let shown = lab.exec(node.host(), &["ip", "-6", "-oneline", "address", "show", "dev", "lan"])?;
    let has = |vip: &&str| {
        let line = shown.lines().find(|line| line.contains(&format!(" {vip}/64 ")));
        line.is_some_and(|line| line.contains("nodad") && !line.contains("tentative"))
    };
    Ok([LAN_VIP6, LINK_LOCAL_VIP].iter().all(has))
}

#[test]
fn ipv6_vips_move_when_the_active_is_killed_and_the_neighbours_know_by_tc() {
    ipv6_vips_move_by(Attach::Tc);
}

#[test]
fn ipv6_vips_move_when_the_active_is_killed_and_the_neighbours_know_by_xdp() {
    ipv6_vips_move_by(Attach::Xdp);
}

fn ipv6_vips_move_by(attach: Attach) {
    let extra_config = PING6.into();
    let options = LabOptions { attach, ipv6: true, extra_config, ..LabOptions::beside() };
    with_pair(options, |lab, pair| {
        let active = pair.settle(lab)?;
        let backup = active.peer();
        lab.route6_through_group()?;
        for vip in [LAN_VIP, LAN_VIP6, &format!("{LINK_LOCAL_VIP}%eth0")] {
            // The client's own link-local address takes its time (duplicate address detection).
            lab.wait_for(&format!("an answer of {vip}"), PATIENCE, || {
                Ok(Some(lab.exec(Host::Client, &["ping", "-c1", "-W1", vip])?))
            })?;
        }
        lab.exec(Host::Client, &["ping", "-c1", "-W5", SERVER6])?;
        wait_for_entries(lab, active)?;
        assert!(has_vips(lab, active)? && !has_vips(lab, backup)?);
        // The Backup hears one virtual router of each family in each zone.
        pair.wait_for_count(lab, backup, "vrrp.vrrp_rx.adverts", 4)?;
        let stats = pair.node(backup).ctl(&["stats", "vrrp"])?;
        assert!(stats.pointer("/vrrp/vrrp_tx/no_address").is_none(), "{stats}");

        pair.node_mut(active).kill()?;
        pair.wait_for_role(lab, backup, "active")?;
        wait_for_entries(lab, backup)?;
        assert!(has_vips(lab, backup)?);
        lab.wait_for_answer(Host::Client, SERVER6)?;
        // What the killed daemon left goes by itself.
        lab.wait_for("the killed node to lose the addresses", PATIENCE, || {
            Ok((!has_vips(lab, active)?).then_some(()))
        })?;
        Ok(())
    });
}

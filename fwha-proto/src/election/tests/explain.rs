//! Roles in words.

use super::*;

fn standings(rig: &mut Rig, node: NodeId) -> Vec<String> {
    let now = rig.now;
    rig.election(node).explain(now).remove(0).members.into_iter().map(|m| m.standing).collect()
}

#[test]
fn each_role_is_explained_by_what_holds_it() {
    let mut rig = Rig::pair(1);
    assert_eq!(because(&mut rig, 1), "if it is lost, fw2 takes over");
    assert_eq!(because(&mut rig, 2), "fw1 is active in term 1; fw1 is preferred");
    assert_eq!(standings(&mut rig, 1), ["active: this node", "could be active, with the flows"]);
    assert_eq!(standings(&mut rig, 2), ["active in term 1", "could be active: this node"]);

    rig.carrier(2, LAN, false);
    rig.run(ms(20));
    assert_eq!(because(&mut rig, 1), "if it is lost, no node is known that could take over");
    assert_eq!(because(&mut rig, 2), "it must not be active: zone lan has no carrier");
    assert_eq!(standings(&mut rig, 1)[1], "cannot be active: fault");
    rig.carrier(2, LAN, true);
    rig.run(ms(20));

    rig.command(1, |e, now| e.switchover(now, 0, None)).unwrap();
    rig.run(ms(100));
    assert!(because(&mut rig, 2).contains("an operator moved the group here"), "{}", because(&mut rig, 2));
    assert_eq!(because(&mut rig, 1), "fw2 is active in term 2; this node is preferred, but `preempt` is off");

    rig.kill_daemon(2);
    rig.run(ms(200));
    let silent = "no node is known to be active; fw2 may own the group still (silent): its probes or the end of its lease will tell";
    assert_eq!(because(&mut rig, 1), silent);
    assert_eq!(standings(&mut rig, 1)[1], "may be active still: silent");
}

#[test]
fn a_node_that_is_about_to_preempt_says_when() {
    let mut rig = Rig::new(2, 1, |_, c| {
        (c.groups[0].preempt, c.groups[0].preempt_delay) = (true, ms(30_000));
    });
    rig.start(2);
    rig.run(ms(5000));
    rig.start(1);
    rig.run(ms(10_000));
    let said = because(&mut rig, 1);
    assert!(
        said.contains("this node is preferred, and takes the group in 20.") || said.contains(" in 19.9"),
        "{said}"
    );
}

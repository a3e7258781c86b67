//! Zones in which frames are lost although all carriers are there.

use super::*;
use crate::election::reach::Path;

/// From the loss to the move at adverts of 1 s: some adverts are missed, some rounds find nobody, and the grace.
const BOUND: Duration = ms(7000);
const LONG: Duration = ms(30_000);

fn takeovers(rig: &Rig) -> usize {
    rig.nodes.iter().map(|m| m.takeovers.len()).sum()
}

fn paths(rig: &Rig, n: NodeId, since: Time) -> Vec<Path> {
    let events = rig.events(n, since);
    events.iter().filter_map(|e| if let Event::Path { path, .. } = e { Some(*path) } else { None }).collect()
}

#[test]
fn an_active_that_is_not_heard_in_a_zone_gives_way_once() {
    for preempt in [false, true] {
        let mut rig = Rig::pair_with(1, move |_, c| c.groups[0].preempt = preempt);
        let then = rig.now;
        rig.mute = [(1, 2)].into();
        let took =
            rig.run_until(BOUND, |rig| rig.actives(0) == [2]).expect("the better placed one has the group");
        println!("{took:?}");
        rig.run(ms(1000));
        assert_eq!(rig.role(1, 0), Some(Role::Fault));
        let before = takeovers(&rig);
        rig.run(LONG);
        assert_eq!((rig.actives(0), takeovers(&rig)), (vec![2], before), "and it does not flap");
        assert_eq!(paths(&rig, 1, then), [Path::Unheard]);
        assert_eq!(paths(&rig, 2, then), [Path::Deaf]);
        let now = rig.now;
        let because = rig.election(1).explain(now)[0].because.join("; ");
        assert!(because.contains("one-way in zone lan: fw2 does not hear this node there"), "{because}");
        assert!(because.contains("zone lan: 0 of 1 neighbours answer this node"), "{because}");
        // Healed: it may have the role again, and takes it only if it is to.
        rig.heal();
        rig.run(ms(20_000));
        assert_eq!(rig.actives(0), if preempt { [1] } else { [2] });
        assert_eq!(paths(&rig, 1, then), [Path::Unheard, Path::Both]);
        let now = rig.now;
        assert_eq!(rig.election(1).status(now).reaches, [], "nothing is asked in peace");
    }
}

#[test]
fn an_active_that_hears_nothing_in_a_zone_gives_way_too() {
    let mut rig = Rig::pair(1);
    rig.mute = [(1, 2)].into();
    rig.cut(2, 1, LAN);
    assert!(rig.run_until(BOUND, |rig| rig.actives(0) == [2]).is_some());
}

#[test]
fn the_same_loss_at_the_backup_moves_nothing() {
    let mut rig = Rig::pair(1);
    let (then, before) = (rig.now, takeovers(&rig));
    rig.mute = [(2, 2)].into();
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    assert_eq!(paths(&rig, 1, then), [Path::Deaf]);
    assert_eq!(rig.role(2, 0), Some(Role::Fault));
    // It is better than nobody.
    rig.kill(1);
    assert!(rig.run_until(DEAD_LIMIT, |rig| rig.actives(0) == [2]).is_some());
}

#[test]
fn loss_at_both_ends_moves_nothing_and_neither_do_neighbours_that_are_gone() {
    let mut rig = Rig::pair(1);
    let before = takeovers(&rig);
    rig.mute = [(1, 2), (2, 2)].into();
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    // One after the other.
    let mut rig = Rig::pair(1);
    let before = takeovers(&rig);
    rig.mute = [(2, 2)].into();
    rig.run(LONG);
    rig.mute.insert((1, 2));
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));

    let mut rig = Rig::pair(1);
    let before = takeovers(&rig);
    rig.deserted = [2].into();
    rig.cut_both(LAN);
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
}

#[test]
fn an_active_whose_neighbours_come_back_with_the_backups_cable_stays() {
    for at_once in [true, false] {
        let mut rig = Rig::pair(1);
        let before = takeovers(&rig);
        rig.carrier(2, LAN, false);
        rig.deserted = [2].into();
        rig.run(LONG);
        let now = rig.now;
        let (asked, answered) = rig.election(1).status(now).reaches[0].neighbours;
        assert_eq!((asked, answered), (1, 0), "it finds nobody, and that moves nothing");
        rig.carrier(2, LAN, true);
        rig.run(if at_once { Duration::ZERO } else { ms(2000) });
        rig.deserted.clear();
        rig.run(LONG);
        assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before), "{at_once}");
        // Who then is not heard gives way all the same.
        rig.mute = [(1, 2)].into();
        assert!(rig.run_until(BOUND, |rig| rig.actives(0) == [2]).is_some());
    }
}

#[test]
fn a_path_that_is_lost_between_two_that_both_reach_neighbours_moves_nothing() {
    let mut rig = Rig::pair(1);
    let (then, before) = (rig.now, takeovers(&rig));
    rig.cut_both(LAN);
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    assert_eq!(paths(&rig, 1, then), [Path::Cut]);
    // The neighbours go for both while they are asked.
    for seed in 0..20 {
        rig.deserted = [2].into();
        rig.run(ms(5000 + 37 * seed));
        rig.deserted.clear();
        rig.run(ms(5000 + 53 * seed));
        assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
    }
}

#[test]
fn a_loss_that_comes_and_goes_moves_the_group_ever_more_rarely() {
    let mut rig = Rig::pair_with(1, |_, c| c.groups[0].preempt = true);
    let before = takeovers(&rig);
    for _ in 0..30 {
        rig.mute = [(1, 2)].into();
        rig.run(ms(8000));
        rig.heal();
        rig.run(ms(12_000));
    }
    let moves = takeovers(&rig) - before;
    assert!(moves <= 8, "{moves} moves in 10 minutes");
}

#[test]
fn with_a_peer_of_an_earlier_version_nothing_moves() {
    let mut rig = Rig::pair(1);
    let before = takeovers(&rig);
    rig.mute = [(1, 2)].into();
    rig.no_surveys = [2].into();
    rig.run(LONG);
    assert_eq!((rig.actives(0), takeovers(&rig)), (vec![1], before));
}

/// The preferred node has just started, and the switch has its port blocked yet, as spanning tree does.
fn behind_a_blocked_port() -> Rig {
    let mut rig = Rig::new(2, 1, |_, c| c.groups[0].preempt = true);
    rig.start(2);
    rig.run(ms(5000));
    rig.start(1);
    rig.mute = [(1, 2)].into();
    rig.cut(2, 1, LAN);
    rig
}

#[test]
fn a_preferred_node_waits_until_its_frames_get_through() {
    let mut rig = behind_a_blocked_port();
    for _ in 0..60 {
        rig.run(ms(500));
        assert_eq!(rig.actives(0), [2]);
    }
    rig.heal();
    let took = rig.run_until(ms(40_000), |r| r.actives(0) == [1]).expect("it is connected");
    println!("{took:?}");
    // Before its reach was compared.
    let mut rig = behind_a_blocked_port();
    rig.run(ms(600));
    assert_eq!(rig.actives(0), [2]);
    let because = because(&mut rig, 1);
    assert!(because.contains("hears no advert of fw2 in zone lan"), "{because}");
    // Adverts alone are filtered: neighbours answer.
    rig.heal();
    rig.cut_both(LAN);
    assert!(rig.run_until(ms(15_000), |r| r.actives(0) == [1]).is_some());
}

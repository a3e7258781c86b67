//! Any schedule of faults, drawn from a seed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

/// Two Actives that can hear each other on a sync link are one within this time, losses included.
const SETTLE_LIMIT: Duration = ms(500);
/// Two that can hear each other on the zones alone, by adverts.
const VRRP_SETTLE_LIMIT: Duration = ms(1500);
/// After the last fault one node is Active within this time: a cold start, where nobody can be asked.
const HEAL_LIMIT: Duration = ms(5000);

/// What a packet may be late: latency and jitter, and a heartbeat that is answered.
const UNDER_WAY: Duration = ms(60);
/// Four rounds of questions to a hung daemon's data plane in the slowest network.
const UNANSWERED: Duration = ms(400);
/// Of shared trackers.
const GRACE: Option<Duration> = Some(ms(1500));

/// Runs a random schedule of faults, then heals everything.
fn any_schedule(seed: u64) {
    let _named = Named(seed);
    let mut draw = Rng(seed);
    let nodes = 2 + draw.below(2) as u8;
    let (preempt, second_group, second_link) = (draw.chance(300), draw.chance(300), draw.chance(300));
    // From a chance of its own: seeds without trackers stay what they are.
    let (tracked, mut verdicts) = (seed % 2 == 1, Rng(!seed));
    let (witnessed, mut answers) = (seed % 3 == 1, Rng(seed ^ 0xaaaa));
    let (muted, mut frames) = (seed % 5 < 2, Rng(seed ^ 0x5555));
    let mut rig = Rig::new(nodes, seed, move |node, c| {
        if second_group {
            c.groups.push(group(1, (1..=nodes).map(|n| (n, 50 + n * 10)).collect()));
        }
        if second_link {
            c.interfaces.push(interface(node, Via::Sync(1)));
        }
        for g in &mut c.groups {
            g.preempt = preempt;
        }
        if witnessed {
            c.witnesses = vec![Ipv4Addr::new(192, 0, 2, 1).into()];
        }
        if tracked {
            c.trackers =
                [(1, Effect::Fault, None), (2, Effect::Fault, GRACE), (3, Effect::Lowers(70), GRACE)]
                    .map(|(id, effect, shared)| TrackerConfig {
                        id,
                        name: format!("t{id}"),
                        groups: vec![],
                        effect,
                        shared,
                    })
                    .into();
        }
    });
    let groups: Vec<GroupId> = if second_group { vec![0, 1] } else { vec![0] };
    rig.stamps = draw.chance(500);
    rig.loss_permille = [0, 0, 20, 100][draw.below(4) as usize];
    rig.jitter = [Duration::from_micros(100), ms(3), ms(15)][draw.below(3) as usize];
    if draw.chance(100) {
        rig.no_probes = [Via::Zone(1), LAN].into();
    }
    for n in rig.ids() {
        rig.start(n);
        rig.run(ms(draw.below(300)));
    }
    let mut overlap = Overlap { witnessed, ..Overlap::default() };
    overlap.watch(&mut rig, ms(draw.below(8000)));
    let vias = [SYNC, if second_link { Via::Sync(1) } else { SYNC }, Via::Zone(1), LAN];
    for _ in 0..draw.below(12) {
        let n = 1 + draw.below(nodes.into()) as u8;
        let other = 1 + (u64::from(n) + draw.below(u64::from(nodes) - 1)) as u8 % nodes;
        let via = vias[draw.below(4) as usize];
        let runs = rig.runs(n);
        match draw.below(15) {
            0 => rig.kill(n),
            1 if runs => rig.kill_daemon(n),
            2 => rig.hang(n),
            3 if rig.node(n).hung => rig.resume(n),
            4 | 5 if rig.node(n).election.is_none() => rig.start(n),
            6 => rig.cut(n, other, via),
            7 => rig.cut_both(via),
            8 => rig.isolate(n),
            9 => rig.heal(),
            10 if runs => {
                let group = groups[draw.below(groups.len() as u64) as usize];
                let _ = rig.command(n, |e, now| e.switchover(now, group, None));
            }
            11 if runs => {
                let up = draw.chance(500);
                rig.carrier(n, via, up);
            }
            12 if runs => {
                let (on, force) = (draw.chance(600), draw.chance(500));
                let _ = rig.command(n, |e, now| e.standby(now, on, force));
            }
            13 if runs => rig.command(n, |e, now| e.shutdown(now)),
            // A switch dies, or is back; not at every node in the same moment.
            14 => {
                let (zone, up) = (Via::Zone(1 + draw.below(2) as u8), draw.chance(400));
                for n in rig.ids() {
                    if rig.runs(n) {
                        rig.carrier(n, zone, up);
                    }
                    overlap.watch(&mut rig, ms(draw.below(40)));
                }
            }
            _ => {}
        }
        let watching = 1 + verdicts.below(nodes.into()) as u8;
        if tracked && verdicts.chance(600) && rig.runs(watching) {
            let state = if verdicts.chance(600) { State::Down } else { State::Up };
            rig.track(watching, 1 + verdicts.below(3) as u32, state);
        }
        if witnessed && answers.chance(400) {
            let n = 1 + answers.below(nodes.into()) as u8;
            if !rig.unwitnessed.remove(&n) {
                rig.unwitnessed.insert(n);
            }
        }
        if muted && frames.chance(400) {
            let at = (1 + frames.below(nodes.into()) as u8, 1 + frames.below(2) as u8);
            if !rig.mute.remove(&at) {
                rig.mute.insert(at);
            }
            if frames.chance(200) {
                rig.deserted = [at.1].into();
            }
        }
        let span = [5, 20, 60, 400, 1500, 4000][draw.below(6) as usize];
        overlap.watch(&mut rig, ms(draw.below(span)));
    }
    // Everything is mended; whatever happened, the cluster finds together.
    rig.heal();
    rig.unwitnessed.clear();
    for n in rig.ids() {
        if rig.node(n).hung {
            rig.resume(n);
        }
    }
    // Whoever was told to end does so before it is started again.
    overlap.watch(&mut rig, ms(1500));
    for n in rig.ids() {
        if rig.node(n).election.is_none() {
            rig.start(n);
        }
        for via in vias {
            rig.carrier(n, via, true);
        }
        (1..=3).for_each(|id| rig.track(n, id, State::Up));
        rig.command(n, |e, now| {
            e.standby(now, false, true).expect("nobody is leaving any more");
        });
    }
    overlap.watch(&mut rig, HEAL_LIMIT);
    if preempt {
        overlap.watch(&mut rig, ms(11_000));
    }
    let actives = |rig: &Rig| groups.iter().map(|&g| rig.actives(g)).collect::<Vec<_>>();
    let active = actives(&rig);
    assert!(active.iter().all(|a| a.len() == 1), "one Active each after everything healed, not {active:?}");
    if rig.loss_permille == 0 && rig.jitter < ms(10) {
        let before: usize = rig.ids().iter().map(|&n| rig.node(n).takeovers.len()).sum();
        overlap.watch(&mut rig, ms(3000));
        let after: usize = rig.ids().iter().map(|&n| rig.node(n).takeovers.len()).sum();
        assert_eq!((actives(&rig), after), (active, before), "and it stays");
    }
}

/// Since when two nodes have owned a group although they hear each other, by group, nodes, and whether on a sync
/// link or on the zones.
#[derive(Default)]
struct Overlap {
    since: BTreeMap<(GroupId, NodeId, NodeId, bool), Time>,
    /// Witnesses are asked.
    witnessed: bool,
    /// Since when a node has had neither peer nor witness, and its takeovers until then.
    alone: BTreeMap<NodeId, (Time, usize)>,
}

/// Says which seed it was when a run fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {}: FWHA_SEED={} runs it alone", self.0, self.0);
        }
    }
}

impl Overlap {
    /// A node that reaches nobody, and no witness, takes nothing but what it owned before.
    fn judge_alone(&mut self, rig: &Rig) {
        for n in rig.ids().into_iter().filter(|_| self.witnessed) {
            let machine = rig.node(n);
            if !rig.is_cut_off(n) || !rig.unwitnessed.contains(&n) {
                self.alone.remove(&n);
                continue;
            }
            let count = machine.takeovers.len();
            let (since, before) = *self.alone.entry(n).or_insert((rig.now, count));
            let cause = machine.events.iter().rev().find_map(|(_, e)| match e {
                Event::Role { to: Role::Active, cause, .. } => Some(*cause),
                _ => None,
            });
            let arrives = match cause {
                Some(Cause::Resumed) => true,
                // A few of the last questions may stay without an answer (`Suspicion::lapsed`).
                Some(Cause::LeaseEnded) => rig.now < since + UNANSWERED,
                _ => false,
            };
            // What was on its way may arrive.
            if rig.now < since + UNDER_WAY || arrives {
                self.alone.insert(n, (since, count));
            } else {
                assert_eq!(count, before, "{n}, alone since {since:?}, claims a group at {:?}", rig.now);
            }
        }
    }

    fn judge(&mut self, rig: &Rig, group: GroupId) {
        let actives = rig.actives(group);
        for (i, &a) in rig.ids().iter().enumerate() {
            for &b in &rig.ids()[..i] {
                let both = actives.contains(&a) && actives.contains(&b);
                for (on_sync, limit) in [(true, SETTLE_LIMIT), (false, VRRP_SETTLE_LIMIT)] {
                    let by = |via| matches!(via, Via::Sync(_)) == on_sync;
                    let key = (group, a, b, on_sync);
                    if !both || !rig.hear_each_other(a, b, by) {
                        self.since.remove(&key);
                        continue;
                    }
                    let lasts = rig.now.since(*self.since.entry(key).or_insert(rig.now));
                    assert!(lasts < limit, "{a} and {b} own group {group} for {lasts:?} within earshot");
                }
            }
        }
    }

    fn watch(&mut self, rig: &mut Rig, span: Duration) {
        let end = rig.now + span;
        loop {
            for group in 0..2 {
                self.judge(rig, group);
            }
            self.judge_alone(rig);
            if !rig.step(end) {
                return;
            }
        }
    }
}

#[test]
fn any_schedule_of_faults_is_survived() {
    // One seed by name: FWHA_SEED=7 cargo test any_schedule
    if let Some(seed) = std::env::var("FWHA_SEED").ok().and_then(|s| s.parse().ok()) {
        return any_schedule(seed);
    }
    let count: u64 = std::env::var("FWHA_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(300);
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        return;
                    }
                    any_schedule(seed);
                }
            });
        }
    });
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = |seed| {
        let mut rig = Rig::pair(seed);
        rig.loss_permille = 100;
        rig.kill(1);
        rig.run(ms(2000));
        rig.nodes.iter().map(|m| format!("{:?}", m.events)).collect::<String>()
    };
    assert_eq!(run(5), run(5));
}

//! What happens in a run. Each seed draws which kinds of steps it knows at all: a storm of everything
//! never gets to where a few faults in the right order would have led.

use std::time::Duration;

use fwha_proto::NodeId;
use fwha_proto::time::Time;

use super::kernel::Number;
use super::network::Faults;
use super::world::{LEASE, Order, World};
use super::{GROUPS, Group};

const MS: Duration = Duration::from_millis(1);
/// From one step to the next at most.
const PACE: Duration = Duration::from_micros(200);
/// How long an owner may not know that it is none any more.
const IGNORANCE_MAX: Duration = Duration::from_millis(300);
/// How long a loss of events may not be noticed.
const UNNOTICED_MAX: Duration = Duration::from_millis(50);

/// What a bad network does.
const WEATHER: [Faults; 4] = [
    Faults { loss: 0, duplicate: 0, corrupt: 0, jitter: Duration::ZERO },
    Faults { loss: 5, duplicate: 5, corrupt: 2, jitter: Duration::from_millis(3) },
    Faults { loss: 20, duplicate: 10, corrupt: 10, jitter: Duration::from_millis(1) },
    Faults { loss: 50, duplicate: 20, corrupt: 10, jitter: Duration::from_millis(30) },
];

/// A kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    Update,
    Expire,
    Replace,
    Burst,
    Wait,
    LongWait,
    Weather,
    Cut,
    Mend,
    Flap,
    Unplug,
    TakeOver,
    Rival,
    RestartDaemon,
    RestartNode,
    Stall,
    LoseEvents,
    Ask,
    SwitchOver,
    StandBy,
    ShutDown,
    Track,
    Hang,
}

/// Kinds with their weights.
const KINDS: [(Kind, usize); 19] = [
    (Kind::Create, 240),
    (Kind::Update, 160),
    (Kind::Expire, 110),
    (Kind::Replace, 40),
    (Kind::Burst, 30),
    (Kind::Wait, 200),
    (Kind::LongWait, 4),
    (Kind::Weather, 25),
    (Kind::Cut, 25),
    (Kind::Mend, 20),
    (Kind::Flap, 10),
    (Kind::Unplug, 10),
    (Kind::TakeOver, 30),
    (Kind::Rival, 6),
    (Kind::RestartDaemon, 12),
    (Kind::RestartNode, 12),
    (Kind::Stall, 20),
    (Kind::LoseEvents, 15),
    (Kind::Ask, 12),
];

/// Kinds that are there only where nodes elect who owns what, with their weights. There, nobody else takes over.
const ELECTED: [(Kind, usize); 6] = [
    (Kind::SwitchOver, 30),
    (Kind::StandBy, 15),
    (Kind::ShutDown, 6),
    (Kind::Track, 20),
    (Kind::Hang, 15),
    (Kind::LongWait, 30),
];

/// The network there: heartbeats are to get through within the limits that are checked.
const ELECTED_WEATHER: [Faults; 3] = [
    Faults { loss: 0, duplicate: 0, corrupt: 0, jitter: Duration::ZERO },
    Faults { loss: 2, duplicate: 5, corrupt: 2, jitter: Duration::from_millis(3) },
    Faults { loss: 10, duplicate: 10, corrupt: 1, jitter: Duration::from_millis(15) },
];

/// Between two moves of a group by hand, where no connection may be lost.
const MOVES_APART: Duration = Duration::from_secs(1);

/// For how long neighbours may send to where an address was.
const NEIGHBOURS_LEARN: Duration = Duration::from_millis(20);

/// Kinds that every run has.
const ALWAYS: [Kind; 4] = [Kind::Create, Kind::Update, Kind::Expire, Kind::Wait];

/// Kinds in which nothing is at fault but a network that loses some.
const WEATHER_ONLY: [Kind; 4] = [Kind::Replace, Kind::Burst, Kind::LongWait, Kind::Weather];

/// See the module.
pub struct Storm {
    kinds: Vec<(Kind, usize)>,
}

impl Storm {
    /// The storm that a world's chance has in store; the first owners are there.
    pub fn new(world: &mut World) -> Self {
        if world.shape.elected {
            return Self::elected(world);
        }
        let weather_only = !world.shape.is_small() && world.random.once_in(8);
        let kinds =
            KINDS.iter().filter(|(k, _)| !weather_only || ALWAYS.contains(k) || WEATHER_ONLY.contains(k));
        let kinds = kinds.filter(|(k, _)| ALWAYS.contains(k) || world.random.once_in(2));
        let kinds = kinds.copied().collect();
        let other = 1 + world.random.below(world.shape.nodes.into()) as NodeId;
        let second = if world.shape.is_small() { 1 } else { other };
        world.take_over(1, 0, false, None);
        world.take_over(second, 1, false, None);
        if weather_only || world.random.once_in(2) {
            world.run(500 * MS);
        }
        world.differed = weather_only.then(|| world.differences());
        Self { kinds }
    }

    /// The same where nodes elect who owns what.
    fn elected(world: &mut World) -> Self {
        let planned_only = world.random.once_in(4) && world.shape.queue_max > 1000;
        world.planned_only = planned_only;
        let kinds: Vec<_> = KINDS
            .into_iter()
            .filter(|(k, _)| !matches!(k, Kind::TakeOver | Kind::Rival | Kind::LongWait))
            .chain(ELECTED)
            .collect();
        let mut mine = Vec::new();
        for (kind, weight) in kinds {
            let drawn = world.random.once_in(2);
            let moves = matches!(kind, Kind::SwitchOver | Kind::Burst);
            if ALWAYS.contains(&kind) || if planned_only { moves } else { drawn } {
                mine.push((kind, weight));
            }
        }
        let settled = if planned_only || world.random.once_in(2) { 4000 * MS } else { Duration::ZERO };
        world.run(settled + 100 * MS);
        Self { kinds: mine }
    }

    /// All its steps.
    pub fn rage(&mut self, world: &mut World) {
        for _ in 0..world.shape.steps {
            if world.violation.is_some() {
                return;
            }
            let kind = self.draw(world);
            step(world, kind);
            let pace = some_of(world, PACE);
            world.run(pace);
        }
    }

    fn draw(&self, world: &mut World) -> Kind {
        let total: usize = self.kinds.iter().map(|k| k.1).sum();
        let mut at = world.random.below(total);
        for &(kind, weight) in &self.kinds {
            if at < weight {
                return kind;
            }
            at -= weight;
        }
        Kind::Wait
    }

    /// All faults end: links are whole, nodes are up, and the election does its work.
    pub fn end(&mut self, world: &mut World) {
        if world.violation.is_some() {
            return;
        }
        world.trace(None, || "all faults end".into());
        world.differed = None;
        if world.shape.elected {
            return recover(world);
        }
        for way in world.network.ways() {
            *way = Default::default();
        }
        world.hurry();
        for way in world.network.ways() {
            way.cut = false;
        }
        for id in world.ids() {
            world.node(id).kernel.lose = 0;
            if let Some(daemon) = &mut world.node(id).daemon {
                daemon.stalled = Time::ZERO;
            } else {
                world.node(id).kernel.owned = [None; GROUPS];
                world.start(id);
            }
        }
        let one = any_node(world);
        for group in 0..GROUPS as Group {
            let owners: Vec<_> = world.ids().filter(|&id| owns_truly(world, id, group)).collect();
            // Tables of one size hold what one node has, not what several have together.
            let stays = !world.shape.is_small() && world.random.once_in(2);
            let owner = match owners[..] {
                [owner] if stays => owner,
                _ => {
                    let owner = if world.shape.is_small() { one } else { any_node(world) };
                    world.take_over(owner, group, false, None);
                    owner
                }
            };
            for id in world.ids().filter(|&id| id != owner) {
                world.disown(id, group);
            }
        }
        for id in world.ids() {
            if !world.node(id).kernel.lost.is_empty() {
                world.order(UNNOTICED_MAX, Order::Notice(id));
            }
        }
    }
}

/// The end of all faults where nodes elect who owns what.
fn recover(world: &mut World) {
    for way in world.network.ways() {
        *way = Default::default();
    }
    world.hurry();
    for way in world.network.ways() {
        way.cut = false;
    }
    let links = world.network.links();
    for id in world.ids() {
        world.node(id).kernel.lose = 0;
        if let Some(daemon) = &mut world.node(id).daemon {
            daemon.stalled = Time::ZERO;
            if let Some(roles) = &mut daemon.roles {
                roles.hung = Time::ZERO;
            }
        }
    }
    // Whoever was told to end does so before it is started again.
    world.run(1500 * MS);
    for id in world.ids() {
        world.start(id);
        for link in 0..links {
            world.order(Duration::ZERO, Order::Carrier(id, link, true));
        }
        world.run(MS);
        world.track(id, 1, true);
        world.track(id, 2, true);
        world.stand_by(id, false, true);
        if !world.node(id).kernel.lost.is_empty() {
            world.order(UNNOTICED_MAX, Order::Notice(id));
        }
    }
}

fn owns_truly(world: &mut World, id: NodeId, group: Group) -> bool {
    let term = world.terms[usize::from(group)];
    world.node(id).kernel.owned[usize::from(group)] == Some(term)
}

fn any_node(world: &mut World) -> NodeId {
    1 + world.random.below(world.shape.nodes.into()) as NodeId
}

fn some_of(world: &mut World, most: Duration) -> Duration {
    Duration::from_nanos(world.random.below(most.as_nanos() as usize + 1) as u64)
}

/// Up to `long` once in `n` times, else up to `short`.
fn rarely(world: &mut World, n: usize, long: Duration, short: Duration) -> Duration {
    let most = if world.random.once_in(n) { long } else { short };
    some_of(world, most)
}

/// One way, or all that lead from or to a node.
fn some_ways(world: &mut World) -> Vec<(NodeId, NodeId, u8)> {
    let (a, b) = (any_node(world), any_node(world));
    let link = world.random.below(world.network.links().into()) as u8;
    let all_links = world.random.once_in(2);
    let both = world.random.once_in(2);
    let links = if all_links { 0..world.network.links() } else { link..link + 1 };
    let pairs: Vec<_> = match world.random.below(4) {
        0 => world.ids().map(|id| (a, id)).collect(),
        _ => vec![(a, b)],
    };
    let ways = links.flat_map(|l| pairs.iter().map(move |&(a, b)| (a, b, l)));
    let ways = ways.flat_map(|(a, b, l)| [(a, b, l), (b, a, l)].into_iter().take(1 + usize::from(both)));
    ways.collect()
}

fn step(world: &mut World, kind: Kind) {
    let n = world.random.below(world.shape.keys.into()) as Number;
    let id = any_node(world);
    let group = world.random.below(GROUPS) as Group;
    world.trace(None, || format!("{kind:?} key {n} fw{id} group {group}"));
    match kind {
        Kind::Create => create(world, n),
        Kind::Update => {
            for id in path(world, n) {
                let clock = world.nodes[usize::from(id) - 1].clock(world.now);
                let flow = world.node(id).kernel.update(clock, n);
                if let Some((_, version)) = flow {
                    world.trace(Some(id), || format!("key {n} version {version:x}"));
                }
                noticed(world, id);
            }
        }
        Kind::Expire => expire(world, n),
        Kind::Replace => {
            expire(world, n);
            let pause = some_of(world, MS);
            world.run(pause);
            create(world, n);
        }
        Kind::Burst => {
            for _ in 0..world.random.below(60) {
                let n = world.random.below(world.shape.keys.into()) as Number;
                let kind = world.random.one_of(&[Kind::Create, Kind::Create, Kind::Update, Kind::Expire]);
                if kind == Kind::Create { create(world, n) } else { step(world, kind) }
            }
        }
        Kind::Wait => {
            let time = some_of(world, 40 * MS);
            world.run(time);
        }
        Kind::LongWait => {
            let time = 500 * MS + some_of(world, 4000 * MS);
            world.run(time);
        }
        Kind::Weather => {
            let faults = if world.shape.elected {
                world.random.one_of(&ELECTED_WEATHER)
            } else {
                world.random.one_of(&WEATHER)
            };
            if world.random.once_in(3) {
                world.network.ways().for_each(|way| way.faults = faults);
                return;
            }
            for (a, b, link) in some_ways(world) {
                world.network.way(a, b, link).faults = faults;
            }
        }
        Kind::Cut => {
            for (a, b, link) in some_ways(world) {
                world.network.way(a, b, link).cut = true;
            }
        }
        Kind::Mend => world.network.ways().for_each(|way| way.cut = false),
        Kind::Flap => {
            let (other, link) = (any_node(world), world.random.below(world.network.links().into()) as u8);
            let mut after = Duration::ZERO;
            for _ in 0..1 + world.random.below(6) {
                for cut in [true, false] {
                    after += some_of(world, 60 * MS);
                    world.order(after, Order::Link(id, other, link, cut));
                }
            }
        }
        Kind::Unplug => {
            let link = world.random.below(world.network.links().into()) as u8;
            world.order(Duration::ZERO, Order::Carrier(id, link, false));
            let pause = rarely(world, 4, 4000 * MS, 200 * MS);
            world.order(pause, Order::Carrier(id, link, true));
        }
        Kind::TakeOver | Kind::Rival => take_over(world, id, kind == Kind::Rival),
        Kind::RestartDaemon => {
            if world.node(id).daemon.is_some() {
                world.kill_daemon(id);
                let pause = some_of(world, LEASE + LEASE / 2);
                let pause = if world.random.once_in(2) { pause / 20 } else { pause };
                world.order(pause, Order::Start(id));
            }
        }
        Kind::RestartNode => {
            if world.node(id).daemon.is_some() {
                world.kill_node(id);
                let pause = rarely(world, 4, 6000 * MS, 300 * MS);
                world.order(pause, Order::Start(id));
            }
        }
        Kind::Stall => {
            let pause = rarely(world, 6, 3000 * MS, 100 * MS);
            let until = world.now + pause;
            if let Some(daemon) = &mut world.node(id).daemon {
                daemon.stalled = until;
            }
        }
        Kind::SwitchOver => {
            // Two moves at once are more than what one node knows of the owner before can bridge.
            if !world.planned_only || world.now > world.moved[usize::from(group)] + MOVES_APART {
                world.switch_over(id, group);
            }
        }
        Kind::StandBy => {
            let (on, force) = (world.random.once_in(2), world.random.once_in(3));
            world.stand_by(id, on, force);
        }
        Kind::ShutDown => {
            world.shut_down(id);
            let pause = 50 * MS + rarely(world, 3, 5000 * MS, 300 * MS);
            world.order(pause, Order::Start(id));
        }
        Kind::Track => {
            let (tracker, up) = (1 + world.random.below(2) as u32, world.random.once_in(2));
            world.track(id, tracker, up);
        }
        Kind::Hang => {
            let pause = rarely(world, 3, 3000 * MS, 100 * MS);
            let until = world.now + pause;
            if let Some(daemon) = &mut world.node(id).daemon {
                daemon.stalled = until;
                if let Some(roles) = &mut daemon.roles {
                    roles.hung = until;
                }
            }
        }
        Kind::LoseEvents => world.node(id).kernel.lose = 1 + n as usize % 4,
        Kind::Ask => {
            let clock = world.nodes[usize::from(id) - 1].clock(world.now);
            let choice = world.random.below(3);
            if let Some(daemon) = &mut world.node(id).daemon {
                match choice {
                    0 => drop(daemon.replication.request_bulk(None)),
                    1 => drop(daemon.replication.request_resync(clock, None)),
                    _ => daemon.tell(super::node::Letter::Reconcile(super::buckets_of(group))),
                }
            }
        }
    }
}

/// The nodes that packets of this key's flow reach. Where nodes elect who owns what, that is one of those that
/// forward: neighbours may not have learned yet which.
fn path(world: &mut World, n: Number) -> Vec<NodeId> {
    if !world.shape.elected {
        return world.ids().collect();
    }
    let group = super::group_of(super::bucket_of(n));
    let now = world.now;
    let moved = world.moved[usize::from(group)];
    let mut forwarding = world.forwarding(group);
    if now > moved + NEIGHBOURS_LEARN {
        forwarding.retain(|&id| world.node(id).kernel.owned[usize::from(group)].is_some());
    }
    if forwarding.is_empty() { vec![] } else { vec![world.random.one_of(&forwarding)] }
}

fn create(world: &mut World, n: Number) {
    let group = usize::from(super::group_of(super::bucket_of(n)));
    for id in path(world, n) {
        // A neighbour that has learned who the owner is does not forget it.
        if world.node(id).kernel.owned[group].is_some() {
            world.learned.insert(n, world.moved[group]);
        } else if world.learned.get(&n) == Some(&world.moved[group]) {
            continue;
        }
        let clock = world.nodes[usize::from(id) - 1].clock(world.now);
        // An owner and its successor may see different flows of one key: not where none may be lost.
        if world.planned_only && world.nodes.iter().any(|node| node.kernel.get(n).is_some()) {
            continue;
        }
        if world.node(id).kernel.get(n).is_some() && !world.random.once_in(4) {
            continue;
        }
        world.ended(super::group_of(super::bucket_of(n)), n, id);
        if let Some((flow, version)) = world.node(id).kernel.create(clock, n) {
            world.trace(Some(id), || {
                format!("key {n} begins: {}.{}.{} version {version:x}", flow.node, flow.epoch, flow.number)
            });
            if world.planned_only {
                world.alive.insert(n, flow);
            }
        }
        noticed(world, id);
    }
}

fn expire(world: &mut World, n: Number) {
    for id in path(world, n) {
        if world.node(id).daemon.is_none() {
            // The sweeper is a part of the daemon.
            continue;
        }
        let group = super::group_of(super::bucket_of(n));
        if world.node(id).kernel.owned[usize::from(group)].is_some() {
            world.ended(group, n, id);
        }
        if let Some((flow, told)) = world.node(id).kernel.expire(n) {
            world.trace(Some(id), || format!("key {n} ends, told {told}"));
            if let Some(daemon) = world.node(id).daemon.as_mut().filter(|_| told) {
                daemon.tell(super::node::Letter::Expired(n, flow));
            }
        }
        noticed(world, id);
    }
}

/// If events were lost, their node will see it.
fn noticed(world: &mut World, id: NodeId) {
    if !world.node(id).kernel.lost.is_empty() {
        let after = some_of(world, UNNOTICED_MAX);
        world.order(after, Order::Notice(id));
    }
}

fn take_over(world: &mut World, id: NodeId, rival: bool) {
    let groups = if world.shape.is_small() || world.random.once_in(2) {
        0..GROUPS as Group
    } else {
        let group = world.random.below(GROUPS) as Group;
        group..group + 1
    };
    for group in groups {
        let lag = world.random.once_in(2).then(|| some_of(world, 20 * MS));
        let g = usize::from(group);
        world.take_over(id, group, rival, lag);
        for other in world.ids().filter(|&other| other != id) {
            if let Some(term) = world.node(other).kernel.owned[g] {
                let after =
                    if world.random.once_in(2) { Duration::ZERO } else { some_of(world, IGNORANCE_MAX) };
                world.order(after, Order::GiveUp(other, group, term));
            }
        }
    }
}

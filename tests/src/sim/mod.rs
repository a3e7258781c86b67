//! The cluster simulator: real nodes of `fwha-proto`, through their public interface only, with a model
//! of everything around them, in virtual time. A seed gives a run; the same seed gives the same run.
//!
//! | module | holds |
//! |---|---|
//! | [`world`] | nodes, network, clock and schedule; what is checked |
//! | [`node`] | one node: a kernel, and a daemon around the machine under test |
//! | [`kernel`] | a model of the kernel's flow table, of the data plane that writes it and of the ring |
//! | [`network`] | a way for each pair, direction and link, with faults of its own |
//! | [`roles`] | the election thread of a node |
//! | [`storm`] | what happens: traffic, faults, restarts and roles, drawn from the seed |
//!
//! **Safety**, at every write to a kernel and at every status, whatever happens:
//!
//! * Only a datagram of a node that owned the bucket when it sent it changes a flow.
//! * It changes nothing that the receiver owns itself in the same or a higher term, and nothing of
//!   which the receiver has heard a higher term in this life of its daemon. But within a second after it got a
//!   bucket, an owner takes what its predecessor tells of its own term, if that is nothing that it has deleted, or
//!   has in a later version.
//! * Under one owner the version of an identity never goes back, and an identity that its owner has
//!   deleted and that is gone here never comes back.
//! * Queue, datagrams in flight, flows and tombstones stay within their limits.
//! * At any instant at which both ends say in-sync and nothing is queued or unacknowledged, the peer's
//!   kernel holds exactly what the owner's holds.
//! * A node that has become owner calls no peer in-sync for what that said before.
//! * While nothing is at fault but a network that loses, delays and doubles, no bucket is found to differ: what is on
//!   its way is no difference.
//!
//! **Liveness**: when all faults are over, within [`HEALED_WITHIN`] all nodes are in sync with each
//! other, with equal kernels and digests, and no tombstone is left; and they stay so.
//!
//! `cargo xtask sim` runs as many seeds as one likes, and replays one with all its steps.

pub mod kernel;
pub mod network;
pub mod node;
pub mod roles;
pub mod storm;
pub mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fwha_proto::NodeId;
use fwha_proto::replication::Buckets;

use self::storm::Storm;
use self::world::World;
use crate::frames::Random;

/// Groups of buckets that move together.
pub const GROUPS: usize = 2;
/// Buckets in use: few, so that each holds several flows.
pub const BUCKETS_USED: usize = 16;

/// A group.
pub type Group = u8;

/// When all faults are over, how long it takes at most until all is well, in virtual time. The waits that
/// may follow each other: a comparison of replica and kernel waits 1 s for the one before; a silent peer
/// is asked, and a lost datagram is sent again, within 0.5 s; all digests go out every 1 s; a bucket is
/// asked for again 0.2 s after it did not heal; the largest bulk, at the slowest rate, takes 0.3 s.
pub const HEALED_WITHIN: Duration = Duration::from_millis(1000 + 500 + 1000 + 200 + 300);

/// How long it is watched that all stays well: long enough for all digests to go out once more.
const STAYS_WELL_FOR: Duration = Duration::from_millis(1_200);

/// The group of a bucket.
pub const fn group_of(bucket: u8) -> Group {
    bucket / (BUCKETS_USED / GROUPS) as u8
}

/// The bucket of the flow with this number.
pub const fn bucket_of(n: kernel::Number) -> u8 {
    (n % BUCKETS_USED as u16) as u8
}

/// The buckets of a group.
pub fn buckets_of(group: Group) -> Buckets {
    (0..BUCKETS_USED as u8).filter(|&b| group_of(b) == group).collect()
}

/// What a cluster is like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nodes.
    pub nodes: u8,
    /// Sync links between any two of them.
    pub links: u8,
    /// Different keys of flows.
    pub keys: u16,
    /// Capacity of each node.
    pub max_flows: usize,
    /// Places of each queue.
    pub queue_max: usize,
    /// Of the sync links.
    pub mtu: u16,
    /// Limit of bulk transfers.
    pub bulk_bytes_per_s: u64,
    /// Steps of a storm.
    pub steps: usize,
    /// The nodes elect who owns what; else the storm says so.
    pub elected: bool,
    /// The members of each group, bit n for node n: at least two. All nodes hold the flows of all groups.
    pub members: [u16; GROUPS],
    /// A bug that all nodes have.
    pub planted: Option<Planted>,
}

/// A bug that is planted in the shell around each node's machines, to prove that the simulator would find one like it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The addresses of a group are put on the interfaces before the data plane owns its buckets.
    AddressesFirst,
    /// A daemon that starts does not know the terms in which its data plane has owned.
    TermsForgotten,
    /// The answers of a data plane to probes are thrown away while its daemon is not heard: a peer that lives is taken
    /// for dead as soon as the sync links are cut.
    AnswersIgnored,
    /// The addresses of a group never come to the interfaces.
    AddressesForgotten,
    /// Neighbours are never told of them.
    AnnouncementsForgotten,
    /// What a peer tells is written over what the owner's data plane has made of it since.
    StaleWritten,
    /// What a peer deletes stays in the kernel.
    DeletesForgotten,
    /// Tables are not compared when events of the data plane were lost.
    LossesIgnored,
}

impl Planted {
    /// The words by which it is found, and in which runs.
    pub const fn found_by(self) -> (&'static str, Roles) {
        match self {
            Self::AddressesFirst => ("before it owns it", Roles::Elected),
            Self::TermsForgotten => ("in term", Roles::Elected),
            Self::AnswersIgnored => ("owns within reach", Roles::Elected),
            Self::AddressesForgotten => ("without its addresses", Roles::Elected),
            Self::AnnouncementsForgotten => ("tells nobody", Roles::Elected),
            Self::StaleWritten => ("loses version", Roles::Told),
            Self::DeletesForgotten => ("nothing", Roles::Told),
            Self::LossesIgnored => ("version", Roles::Told),
        }
    }
}

impl Shape {
    /// The shape that belongs to a seed, with this many nodes if it is said.
    pub fn of(random: &mut Random, roles: Roles, nodes: Option<u8>) -> Self {
        let elected = roles == Roles::Elected;
        let drawn = if elected { random.one_of(&[2, 2, 3]) } else { random.one_of(&[2, 2, 2, 2, 3, 3, 5]) };
        let nodes = nodes.unwrap_or(drawn);
        let sizes = [(64, 1000), (64, 1000), (200, 1000), (64, 40), (200, 60)];
        let (keys, max_flows) = random.one_of(if elected { &sizes[..3] } else { &sizes });
        let mut shape = Self {
            nodes,
            links: random.one_of(&[1, 1, 2, 3]),
            keys,
            max_flows,
            queue_max: random.one_of(&[262_144, 262_144, 16, 4]),
            mtu: random.one_of(&[1500, 1500, 1280]),
            bulk_bytes_per_s: random.one_of(&[20_000_000, 1_000_000, 100_000]),
            steps: 40 + random.below(160),
            elected,
            members: [(1 << (nodes + 1)) - 2; GROUPS],
            planted: None,
        };
        for members in &mut shape.members {
            while elected && members.count_ones() > 2 && random.once_in(2) {
                *members &= !(2 << random.below(nodes.into()));
            }
        }
        shape
    }

    /// Whether a node is a member of a group.
    pub const fn is_member(&self, node: NodeId, group: Group) -> bool {
        self.members[group as usize] & 1 << node != 0
    }

    /// Whether tables may become full.
    pub const fn is_small(&self) -> bool {
        self.max_flows < self.keys as usize
    }
}

/// Who says which node owns what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Roles {
    /// The storm, in any order it likes: also what no election would do.
    Told,
    /// The nodes, by election.
    Elected,
}

impl Roles {
    /// Its name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Roles::Told => "told",
            Roles::Elected => "elected",
        }
    }
}

/// What became of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    /// Virtual time from the end of all faults until all was well.
    pub healed_after: Duration,
    /// How often two nodes were compared that said in-sync.
    pub proofs: u64,
    /// Flows that an owner took from its predecessor.
    pub stragglers: u64,
    /// Takeovers by elected nodes.
    pub takeovers: u64,
    /// Flows that were in sync with a node that took over.
    pub inherited: u64,
    /// Datagrams that arrived.
    pub datagrams: u64,
    /// Hash of all that happened.
    pub fingerprint: u64,
}

/// A run that did what must not be.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Its seed.
    pub seed: u64,
    /// Who said which node owns what.
    pub roles: Roles,
    /// How many nodes were asked for.
    pub nodes: Option<u8>,
    /// When and what.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes.map_or(String::new(), |n| format!(" --nodes {n}"));
        let Self { seed, what, roles, .. } = self;
        let roles = roles.as_str();
        write!(
            f,
            "seed {seed}: {what}\nreplay with `cargo xtask sim --roles {roles} --seed {seed}{nodes} --trace`"
        )
    }
}

/// What may be asked of a run beside its seed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// So many nodes; drawn from the seed if not said.
    pub nodes: Option<u8>,
    /// A bug.
    pub planted: Option<Planted>,
    /// Every step is printed.
    pub traced: bool,
}

/// Runs a seed.
///
/// # Errors
/// Something was not as it must be.
pub fn run(seed: u64, roles: Roles, wish: Wish) -> Result<Summary, Failure> {
    let Wish { nodes, planted, traced } = wish;
    let failure = |what| Failure { seed, roles, nodes, what };
    let run = AssertUnwindSafe(|| {
        let mut random = Random(seed);
        let shape = Shape { planted, ..Shape::of(&mut random, roles, nodes) };
        let mut world = World::new(random.number(), shape, traced);
        world.trace(None, || format!("seed {seed}: {shape:?}"));
        let mut storm = Storm::new(&mut world);
        storm.rage(&mut world);
        storm.end(&mut world);
        let healed_after = heal(&mut world);
        match world.violation.take() {
            None => Ok(Summary {
                healed_after,
                proofs: world.proofs,
                stragglers: world.stragglers,
                takeovers: world.takeovers,
                inherited: world.inherited,
                datagrams: world.arrived,
                fingerprint: world.fingerprint,
            }),
            Some(what) => {
                let at = Duration::from_nanos(world.now.as_nanos());
                Err(failure(format!("at {at:?}: {what}\n{shape:?}\n{world}")))
            }
        }
    });
    catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of no known kind");
        Err(failure(format!("panic: {text}")))
    })
}

fn heal(world: &mut World) -> Duration {
    let began = world.now;
    let limit = HEALED_WITHIN + if world.shape.elected { roles::ELECTED_WITHIN } else { Duration::ZERO };
    if !world.run_until(began + limit, |w| w.unrest().is_none()) {
        let unrest = world.unrest().unwrap_or_default();
        world.violate(format!("not well {limit:?} after the last fault: {unrest}"));
    }
    let healed_after = world.now.since(began);
    let takeovers = world.takeovers;
    world.run(STAYS_WELL_FOR);
    if world.takeovers > takeovers {
        world.violate("a group moves although all is well");
    }
    world.check_alive();
    let end = world.now + STAYS_WELL_FOR;
    if !world.run_until(end, |w| w.unrest().is_none()) {
        let unrest = world.unrest().unwrap_or_default();
        world.violate(format!("not well any more: {unrest}"));
    }
    healed_after
}

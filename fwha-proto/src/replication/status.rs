//! What replication tells the operator: counters, the state of each peer, events.

use std::fmt;
use std::time::Duration;

use super::lag::Lag;
use super::wire::Hello;
use crate::NodeId;
use crate::seal::OpenError;

macro_rules! counters {
    ($(#[$outer:meta])* $name:ident { $($(#[doc = $doc:literal])* $field:ident,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name {
            $($(#[doc = $doc])* pub $field: u64,)*
        }

        impl $name {
            /// Every counter with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($field), self.$field),)*].into_iter()
            }

            /// What the counter of this name counts, if there is one.
            pub fn describe(name: &str) -> Option<&'static str> {
                match name {
                    $(stringify!($field) => Some(concat!($($doc),*).trim_ascii()),)*
                    _ => None,
                }
            }
        }
    };
}

counters! {
    /// What was counted with one peer since the daemon started.
    Counters {
        /// FLOW records sent of flows that the peer did not have.
        created_sent,
        /// FLOW records sent of flows that the peer had.
        updated_sent,
        /// DELETE records sent.
        deleted_sent,
        /// Flows new to this node.
        created_received,
        /// Flows that a record changed.
        updated_received,
        /// Flows that a record deleted.
        deleted_received,
        /// Flows that the former owner of a bucket told of when this node owned it already.
        stragglers,
        /// Records that told nothing new.
        unchanged_received,
        /// Changes that met an earlier one of the same flow in the queue.
        coalesced,
        /// Flows that ended before the peer had heard of them.
        cancelled,
        /// Records sent again, because the datagram that carried them was lost.
        retransmitted,
        /// Datagrams taken for lost.
        lost,
        /// Datagrams sent.
        datagrams_sent,
        /// Bytes sent, sealed, without UDP and IP.
        bytes_sent,
        /// Datagrams received and opened.
        datagrams_received,
        /// Bytes received, as above.
        bytes_received,
        /// Datagrams that came after their sender had given up on them.
        late,
        /// Records that could not be decoded, or numbers that make no sense.
        malformed,
        /// Records of a type that this version does not know.
        unknown_record,
        /// Records older than what is known, or about another identity.
        rejected_old,
        /// Records about a bucket that this node owns, but for those that are stragglers.
        rejected_owned,
        /// Records of a former owner.
        rejected_stale,
        /// Records in a term that cannot have come about.
        rejected_term,
        /// Flows refused because the table is full, or the peer's share of it is.
        rejected_full,
        /// Flows refused because they are of a zone that the config does not have.
        rejected_zone,
        /// Datagrams that came before the one in which the peer introduces itself: as good as lost.
        early,
        /// Flows refused because this node's rules would not admit them (`strict`).
        rejected_policy,
        /// Datagrams dropped because the peer sends more than it may.
        rate_limited,
        /// Bulk transfers begun, either way.
        bulk_started,
        /// Bulk transfers completed, either way.
        bulk_finished,
        /// Records sent by bulk transfers.
        bulk_records_sent,
        /// Flows removed at the end of a bulk because the owner did not mention them.
        swept,
        /// Changes that found the queue full: their buckets are sent as a whole later.
        overflow,
        /// Deletions that were not kept until the peer has heard of them, because so many are kept already: their buckets
        /// are sent as a whole.
        deletions_dropped,
        /// Comparisons of a bucket's digest that agreed.
        digest_equal,
        /// Comparisons of a bucket's digest that did not.
        digest_differs,
        /// Sessions opened: every one is a new life of one of the two daemons.
        sessions,
        /// Datagrams refused: not of this protocol.
        garbage,
        /// Datagrams refused: another cluster.
        other_cluster,
        /// Datagrams refused: another cluster key.
        other_key,
        /// Datagrams refused: for another node or purpose.
        misdirected,
        /// Datagrams refused: of an earlier life of the peer, or before the handshake.
        unknown_epoch,
        /// Datagrams refused: altered or forged.
        forged,
        /// Datagrams refused: seen before.
        replayed,
        /// Datagrams refused: no version in common.
        version,
    }
}

impl Counters {
    pub(super) const fn refused(&mut self, error: OpenError) {
        let counter = match error {
            OpenError::Garbage => &mut self.garbage,
            OpenError::OtherCluster { .. } => &mut self.other_cluster,
            OpenError::OtherKey { .. } => &mut self.other_key,
            OpenError::Misdirected => &mut self.misdirected,
            OpenError::UnknownEpoch => &mut self.unknown_epoch,
            OpenError::Forged => &mut self.forged,
            OpenError::Replayed => &mut self.replayed,
            OpenError::Version { .. } => &mut self.version,
        };
        *counter += 1;
    }
}

counters! {
    /// What was counted without a peer to count it with.
    LocalCounters {
        /// Flow events of the data plane taken.
        events,
        /// Flow events that told nothing new, or came after their flow's end.
        events_old,
        /// Flow events for which the table had no room.
        events_full,
        /// Flow events that did not decode: impossible state.
        events_invalid,
        /// Flow events of flows that are not for the peers.
        not_chosen,
        /// Flows that ended before they were old enough for the peers.
        ended_young,
        /// Deletions by this node.
        deleted,
        /// Flows found only by reconciliation: their events were lost.
        reconciled,
        /// Flows that reconciliation did not find any more.
        vanished,
        /// Datagrams that are not of this protocol.
        garbage,
        /// Datagrams of a node that is no peer.
        unknown_peer,
        /// Datagrams received while replication is off.
        disabled,
    }
}

counters! {
    /// What was counted on one sync link to one peer.
    LinkCounters {
        /// Datagrams sent.
        datagrams_sent,
        /// Bytes sent, sealed, without UDP and IP.
        bytes_sent,
        /// Datagrams received and opened.
        datagrams_received,
        /// Bytes received, as above.
        bytes_received,
        /// Probes sent.
        probes_sent,
        /// Probes that were not answered.
        probes_lost,
    }
}

/// What is known of a sync link to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkState {
    /// Nothing yet.
    Unknown,
    /// The peer answers on it.
    Up,
    /// The peer answers, but too many probes are lost.
    Lossy,
    /// The peer does not answer on it, or this node's interface has no carrier.
    Down,
}

impl LinkState {
    /// The name that commands print.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Lossy => "lossy",
            Self::Down => "down",
        }
    }
}

/// A sync link to a peer, for `status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// Its number.
    pub link: u8,
    /// What is known of it.
    pub state: LinkState,
    /// Smoothed round trip time of its probes.
    pub rtt: Option<Duration>,
    /// Probes of the last five seconds that were not answered, per mille, 0 to 1000.
    pub loss_per_mille: Option<u32>,
    /// Whether replication to the peer takes it now.
    pub used: bool,
    /// Counters.
    pub counters: LinkCounters,
}

/// Where replication with a peer stands. The order is from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SyncState {
    /// Replication is off on this node.
    Disabled,
    /// No session.
    Down,
    /// A session, but the peer has not introduced itself yet.
    Handshake,
    /// A session whose datagrams have not been acknowledged for a while.
    Silent,
    /// Tables differ, and healing has not helped yet.
    Diverged,
    /// A bulk transfer is going on.
    Bulk,
    /// Digests have not all been compared yet.
    Verifying,
    /// Digests agree in both directions.
    InSync,
}

impl SyncState {
    /// All of them, from worst to best.
    pub const ALL: [Self; 8] = [
        Self::Disabled,
        Self::Down,
        Self::Handshake,
        Self::Silent,
        Self::Diverged,
        Self::Bulk,
        Self::Verifying,
        Self::InSync,
    ];

    /// The name that commands print.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Down => "down",
            Self::Handshake => "handshake",
            Self::Silent => "silent",
            Self::Diverged => "diverged",
            Self::Bulk => "bulk",
            Self::Verifying => "verifying",
            Self::InSync => "in-sync",
        }
    }
}

/// Something about a peer that an operator should look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// The peer runs with another cluster file.
    ConfigDiffers,
    /// The peer runs with other rules.
    RulesDiffer,
    /// The peer's table has another size.
    CapacityDiffers {
        /// Flows that this node holds at most.
        ours: u64,
        /// Flows that the peer holds at most.
        theirs: u64,
    },
    /// The peer has a zone that is not here, or not one that is.
    ZonesDiffer,
    /// The peer calls itself by another name than the cluster file does.
    NameDiffers {
        /// Name in the cluster file.
        expected: String,
        /// Name that it uses.
        theirs: String,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigDiffers => f.write_str(
                "peer runs with another cluster file: copy one to the other, and `fwhactl reload` there",
            ),
            Self::RulesDiffer => f.write_str("peer runs with other rules: flows may be judged differently"),
            Self::CapacityDiffers { ours, theirs } => {
                write!(f, "peer holds at most {theirs} flows, this node {ours}: make max-flows equal")
            }
            Self::ZonesDiffer => f.write_str(
                "peer has other zones: flows of a zone that only one has are refused by the other",
            ),
            Self::NameDiffers { expected, theirs } => {
                write!(f, "node {expected} calls itself {theirs}: check --node there")
            }
        }
    }
}

/// How far a bulk transfer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BulkProgress {
    /// Flows that it will be about, as announced at its start.
    pub flows_total: u64,
    /// Flow records sent or received so far.
    pub flows_done: u64,
    /// Buckets not completed yet.
    pub buckets_left: usize,
    /// Since its start.
    pub elapsed: Duration,
}

impl BulkProgress {
    /// Time that the rest will take if it goes on as fast as until now; `None` while nothing tells how fast that is.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.flows_total.saturating_sub(self.flows_done);
        (self.flows_done > 0).then(|| self.elapsed.mul_f64(left as f64 / self.flows_done as f64))
    }
}

/// Why a peer can neither be sent nor asked for anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unready {
    /// There is nobody to talk to, as this state says.
    State(SyncState),
    /// The end that would send owns no flows.
    OwnsNothing,
}

/// What happened, for the event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session opened.
    SessionOpened {
        /// With this node.
        peer: NodeId,
        /// In this life of it.
        epoch: u64,
    },
    /// The peer introduced itself, and this is what does not fit.
    Warning {
        /// The node.
        peer: NodeId,
        /// What to look at.
        warning: Warning,
    },
    /// The state changed.
    State {
        /// Of replication with this node.
        peer: NodeId,
        /// Before.
        from: SyncState,
        /// Now.
        to: SyncState,
    },
    /// A bulk transfer to the peer began.
    BulkSendStarted {
        /// The peer.
        peer: NodeId,
        /// Buckets to send.
        buckets: usize,
        /// Flows in them.
        flows: u64,
    },
    /// All of it has been acknowledged.
    BulkSent {
        /// The peer.
        peer: NodeId,
        /// Flow records sent.
        flows: u64,
        /// Time that it took.
        took: Duration,
    },
    /// The rest of it is not this node's to send any more.
    BulkCut {
        /// The peer.
        peer: NodeId,
        /// Flow records sent until then.
        flows: u64,
    },
    /// A bulk transfer from the peer began.
    BulkReceiveStarted {
        /// The peer.
        peer: NodeId,
        /// Buckets that come.
        buckets: usize,
        /// Flows in them.
        flows: u64,
    },
    /// All of it is here, and what it did not mention is gone.
    BulkReceived {
        /// The peer.
        peer: NodeId,
        /// Flow records received.
        flows: u64,
        /// Flows removed.
        swept: u64,
        /// Time that it took.
        took: Duration,
    },
    /// What is sent to the peer takes another sync link.
    LinkChanged {
        /// The peer.
        peer: NodeId,
        /// The link until now.
        from: u8,
        /// The link from now on.
        to: u8,
    },
    /// Some buckets' digests differ; a bulk of them has been asked for.
    Differs {
        /// The peer that owns them.
        peer: NodeId,
        /// How many.
        buckets: usize,
    },
    /// The queue to a peer is full: what does not fit is sent by bucket, later.
    Overflow {
        /// The peer.
        peer: NodeId,
    },
}

/// Everything about one peer, for `status`.
#[derive(Clone, Debug)]
pub struct PeerStatus<'a> {
    /// The peer.
    pub peer: NodeId,
    /// Where it stands.
    pub state: SyncState,
    /// Since when, as an age.
    pub state_for: Duration,
    /// Age of the oldest change that the peer has not acknowledged.
    pub lag: Duration,
    /// Flow changes queued.
    pub queued: usize,
    /// Datagrams in flight.
    pub unacked: usize,
    /// Digests of all owned buckets agree, as last compared, in both directions.
    pub digest_match: bool,
    /// Smoothed round trip time of the session.
    pub rtt: Option<Duration>,
    /// The sync links to it, by number.
    pub links: Vec<LinkStatus>,
    /// What it said of itself.
    pub hello: Option<&'a Hello>,
    /// What does not fit.
    pub warnings: &'a [Warning],
    /// Why its last datagram was refused, if no good one came since.
    pub refused: Option<OpenError>,
    /// It has not shown the newest cluster key yet.
    pub renewing: bool,
    /// The bulk transfer to it.
    pub sending: Option<BulkProgress>,
    /// The bulk transfer from it.
    pub receiving: Option<BulkProgress>,
    /// How long changes took until it acknowledged them.
    pub acknowledged: &'a Lag,
    /// Counters.
    pub counters: &'a Counters,
}

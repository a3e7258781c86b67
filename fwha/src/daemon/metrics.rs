//! Metrics for Prometheus: `GET /metrics`, on the control socket and, with `[metrics]`, on a TCP port.
//!
//! Names begin with `fwha_` and end with their unit, those of counters with `_total`. What comes from a catalogue
//! (drop reasons, states) is a label.

use std::collections::BTreeMap;
use std::fmt::{Display, Write};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, serve};
use fwha_common::drop::DropReason;
use fwha_common::settings::Counter;
use fwha_proto::election::reach::Path;
use fwha_proto::heartbeat::{PeerState, Role};
use fwha_proto::replication::{Counters, Histogram, LinkCounters, LinkState, LinkStatus, SyncState};
use fwha_proto::resource;
use fwha_proto::tracker::{self, Report};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio::time::{Sleep, sleep};

use super::election;
use super::replication::{PeerSnapshot, Snapshot};
use super::server::{Problem, Server, election_counters};
use crate::api;

/// Connections of the TCP port at a time. More wait in the kernel, where they take no descriptor of the daemon.
const CONNECTIONS: usize = 16;
/// How long one of them may last in all. Prometheus gives a scrape ten seconds by default.
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// Between two attempts to have a port that another has, or whose address is not there yet.
const BIND_INTERVAL: Duration = Duration::from_secs(3);
/// What the text format is called (Prometheus, exposition formats, version 0.0.4).
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Powers of two of a microsecond that are buckets of the histogram: 64 µs to 8 s.
const LAG_BITS: std::ops::RangeInclusive<u32> = 6..=23;
/// Of a peer's counters, those that count refused datagrams.
const REFUSED: [&str; 8] = [
    "garbage",
    "other_cluster",
    "other_key",
    "misdirected",
    "unknown_epoch",
    "forged",
    "replayed",
    "version",
];

/// Serves metrics, and nothing else, on a TCP port, once that can be had. Without it the node does all else that it should.
pub(super) async fn listen(address: SocketAddr, server: Arc<Server>) {
    let listener = bind(address, &server.no_metrics, BIND_INTERVAL).await;
    let router = Router::new().route(api::path::METRICS, get(metrics)).with_state(server);
    let listener =
        Bounded { listener, places: Arc::new(Semaphore::new(CONNECTIONS)), lifetime: CONNECTION_TIME };
    if let Err(error) = serve(listener, router).await {
        tracing::error!("metrics are gone: {error}");
    }
}

/// Opens the port; as long as it cannot be had, `problem` says why, and it is tried again.
async fn bind(address: SocketAddr, problem: &ArcSwapOption<String>, every: Duration) -> TcpListener {
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                if problem.swap(None).is_some() {
                    tracing::info!("metrics: listening on {address} now");
                }
                return listener;
            }
            Err(error) => {
                let text = format!("no metrics: cannot listen on {address}: {error}");
                let said = problem.load().as_deref() == Some(&text);
                if !said {
                    tracing::error!("{text}");
                    problem.store(Some(Arc::new(text)));
                }
            }
        }
        sleep(every).await;
    }
}

/// A listener whose connections are few and short. Whoever reaches the port could otherwise take all descriptors of the
/// daemon, the control socket's and the election's with them, by connections on which nothing is said.
struct Bounded {
    listener: TcpListener,
    places: Arc<Semaphore>,
    lifetime: Duration,
}

impl serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // That fails only for a semaphore that is closed.
        let place = Arc::clone(&self.places).acquire_owned().await.ok();
        let (stream, from) = serve::Listener::accept(&mut self.listener).await;
        (Connection { stream, end: Box::pin(sleep(self.lifetime)), _place: place }, from)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that fails when its time is over.
struct Connection {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Connection {
    /// The stream as long as there is time.
    fn stream(&mut self, context: &mut Context<'_>) -> io::Result<Pin<&mut TcpStream>> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(Pin::new(&mut self.stream)),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream(context)?.poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream(context)?.poll_shutdown(context)
    }
}

pub(super) async fn metrics(State(server): State<Arc<Server>>) -> Result<Response, Problem> {
    let text = in_turn(move || server.metrics()).await??;
    // One that is kept between two scrapes would keep its place.
    let headers = [(header::CONTENT_TYPE, CONTENT_TYPE), (header::CONNECTION, "close")];
    Ok((headers, text).into_response())
}

/// What `walk` finds. A walk of the flow table takes its time, and goes on if the client does not: one at a time, however
/// many ask.
async fn in_turn<T: Send + 'static>(walk: impl FnOnce() -> T + Send + 'static) -> Result<T, JoinError> {
    static WALK: Mutex<()> = Mutex::const_new(());
    let turn = WALK.lock().await;
    let walk = move || {
        let _turn = turn;
        walk()
    };
    tokio::task::spawn_blocking(walk).await
}

type Labels<'a> = &'a [(&'a str, &'a str)];

/// The text format as it grows.
struct Text(String);

impl Text {
    /// The samples of one metric: `add` writes each.
    fn metric(&mut self, name: &str, kind: &str, help: &str, add: impl FnOnce(&mut Samples<'_>)) {
        // Writing to memory does not fail, here and below.
        let _ = write!(self.0, "# HELP {name} {}\n# TYPE {name} {kind}\n", help.replace('\n', " "));
        add(&mut Samples { text: &mut self.0, name });
    }

    fn gauge(&mut self, name: &str, help: &str, add: impl FnOnce(&mut Samples<'_>)) {
        self.metric(name, "gauge", help, add);
    }

    fn counter(&mut self, name: &str, help: &str, add: impl FnOnce(&mut Samples<'_>)) {
        self.metric(name, "counter", help, add);
    }
}

struct Samples<'a> {
    text: &'a mut String,
    name: &'a str,
}

impl Samples<'_> {
    fn add(&mut self, labels: Labels<'_>, value: impl Display) {
        self.write("", labels, value);
    }

    /// One of several states: 1, and 0 for all others.
    fn state(&mut self, labels: Labels<'_>, states: impl Iterator<Item = &'static str>, now: &str) {
        for state in states {
            self.add(&[labels, &[("state", state)]].concat(), u8::from(state == now));
        }
    }

    fn histogram(&mut self, labels: Labels<'_>, histogram: &Histogram) {
        let count = histogram.count();
        for bits in LAG_BITS {
            let end = Duration::from_micros(1 << bits).as_secs_f64().to_string();
            self.write("_bucket", &[labels, &[("le", &end)]].concat(), histogram.below(bits));
        }
        self.write("_bucket", &[labels, &[("le", "+Inf")]].concat(), count);
        self.write("_sum", labels, histogram.sum().as_secs_f64());
        self.write("_count", labels, count);
    }

    fn write(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        let _ = write!(self.text, "{}{suffix}", self.name);
        for (n, (label, of)) in labels.iter().enumerate() {
            let open = if n == 0 { '{' } else { ',' };
            let of = of.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.text, "{open}{label}=\"{of}\"");
        }
        let close = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.text, "{close} {value}");
    }
}

impl Server {
    fn metrics(&self) -> Result<String, Problem> {
        let counts = self.flow_counts()?;
        let mut text = Text(String::new());
        let config = self.config();
        let hash = format!("{:016x}", config.hash);
        let info = [
            ("node", self.names.me()),
            ("cluster", &config.cluster.name),
            ("version", env!("CARGO_PKG_VERSION")),
            ("config_hash", &hash),
        ];
        text.gauge("fwha_info", "What this is; always 1.", |m| m.add(&info, 1));
        let uptime = self.now().since(self.started).as_secs_f64();
        text.gauge("fwha_uptime_seconds", "Since the daemon started.", |m| m.add(&[], uptime));
        let (election, replication) = (self.election_status.load(), self.replication_status.load());
        thread_metrics(&mut text, &self.threads(&election, &replication));
        let (file, all) = (config.warnings.len(), self.status(counts).warnings.len());
        text.gauge(
            "fwha_warnings",
            "Warnings of `fwhactl status` now: about the config file, and others.",
            |m| {
                m.add(&[("about", "file")], file);
                m.add(&[("about", "state")], all.saturating_sub(file));
            },
        );
        let help = "Times that an address or route could not be set, removed or listed.";
        text.counter("fwha_address_failures_total", help, |m| m.add(&[], self.troubles.failures()));
        self.election_metrics(&mut text, &election);
        self.sync_metrics(&mut text, &replication);
        self.link_metrics(&mut text, &replication);
        flow_metrics(&mut text, &counts);
        self.packet_metrics(&mut text)?;
        Ok(text.0)
    }

    fn election_metrics(&self, text: &mut Text, snapshot: &election::Snapshot) {
        let status = &snapshot.status;
        text.gauge("fwha_group_role", "This node's role in a group: 1, and 0 for the other roles.", |m| {
            let roles = || (0..=u8::MAX).map_while(Role::from_u8);
            for g in &status.groups {
                for role in roles() {
                    let labels = [("group", self.names.group(g.group)), ("role", role.as_str())];
                    m.add(&labels, u8::from(role == g.role));
                }
            }
        });
        let group = |g: u8| [("group", self.names.group(g))];
        text.gauge(
            "fwha_group_active_nodes",
            "Nodes that are Active in a group, as known here: 1 is right.",
            |m| {
                status.groups.iter().for_each(|g| m.add(&group(g.group), g.active.len()));
            },
        );
        text.gauge("fwha_group_term", "The group's term; rises with each takeover.", |m| {
            status.groups.iter().for_each(|g| m.add(&group(g.group), g.term));
        });
        text.gauge("fwha_group_priority", "This node's priority, as its trackers leave it.", |m| {
            status.groups.iter().for_each(|g| m.add(&group(g.group), g.priority));
        });
        let trackers = || status.groups.iter().flat_map(|g| g.trackers.iter().map(move |t| (g.group, t)));
        text.gauge(
            "fwha_tracker_counts",
            "Whether a tracker counts for a group: it fails, and not on all nodes.",
            |m| {
                for (g, tracker) in trackers() {
                    m.add(
                        &[("group", self.names.group(g)), ("tracker", &tracker.name)],
                        u8::from(tracker.counts),
                    );
                }
            },
        );
        // One that matters for several groups is one tracker all the same.
        let each: BTreeMap<&str, &Report> = trackers().map(|(_, t)| (t.name.as_str(), &t.report)).collect();
        text.gauge("fwha_tracker_state", "How a tracker stands: 1, and 0 for the other states.", |m| {
            for (name, report) in &each {
                let states = tracker::State::ALL.into_iter().map(tracker::State::as_str);
                m.state(&[("tracker", name)], states, report.state.as_str());
            }
        });
        text.counter("fwha_tracker_checks_total", "Checks of a tracker, by what they found.", |m| {
            for (name, report) in &each {
                m.add(&[("tracker", name), ("result", "good")], report.good);
                m.add(&[("tracker", name), ("result", "bad")], report.bad);
            }
        });
        let resources = || {
            let of = |g: u8| self.resource_reports(g).map(move |(name, report)| (g, name, report));
            status.groups.iter().flat_map(move |g| of(g.group))
        };
        text.gauge("fwha_resource_state", "How a resource stands: 1, and 0 for the other states.", |m| {
            let states = || resource::State::ALL.into_iter().map(resource::State::as_str);
            for (g, name, report) in resources() {
                let labels = [("group", self.names.group(g)), ("resource", &name)];
                m.state(&labels, states(), report.state.as_str());
            }
        });
        text.counter("fwha_resource_restarts_total", "Restarts of a resource that mended a failure.", |m| {
            for (g, name, report) in resources() {
                m.add(&[("group", self.names.group(g)), ("resource", &name)], report.restarts);
            }
        });
        text.counter("fwha_resource_failures_total", "Actions of a resource that went wrong.", |m| {
            for (g, name, report) in resources() {
                m.add(&[("group", self.names.group(g)), ("resource", &name)], report.failures);
            }
        });
        text.gauge("fwha_group_split_brain", "Whether another node is active, too.", |m| {
            status.groups.iter().for_each(|g| m.add(&group(g.group), u8::from(g.split)));
        });
        text.counter("fwha_group_split_brains_total", "Split brains that this node was in.", |m| {
            status.groups.iter().for_each(|g| m.add(&group(g.group), g.splits.0));
        });
        text.counter(
            "fwha_group_split_brain_seconds_total",
            "How long they lasted, those that are over.",
            |m| {
                status.groups.iter().for_each(|g| m.add(&group(g.group), g.splits.1.as_secs_f64()));
            },
        );
        let witnesses = || status.witnesses.iter().map(|w| (w.address.to_string(), w));
        text.gauge("fwha_witness_state", "How a witness stands: 1, and 0 for the other states.", |m| {
            let states = || tracker::State::ALL.into_iter().map(tracker::State::as_str);
            witnesses().for_each(|(name, w)| m.state(&[("witness", &name)], states(), w.state.as_str()));
        });
        text.gauge("fwha_witness_rtt_seconds", "Round trip time of a witness.", |m| {
            for (name, w) in witnesses() {
                w.rtt.iter().for_each(|rtt| m.add(&[("witness", &name)], rtt.as_secs_f64()));
            }
        });
        text.gauge(
            "fwha_zone_path_lost",
            "Frames to or from a peer are lost in a zone, by which way.",
            |m| {
                for reach in &status.reaches {
                    for (peer, path) in &reach.paths {
                        let labels =
                            [("zone", self.names.zone(reach.zone)), ("peer", self.names.node(*peer))];
                        for lost in [Path::Unheard, Path::Deaf, Path::Cut] {
                            let labels = [&labels[..], &[("way", lost.as_str())]].concat();
                            m.add(&labels, u8::from(*path == lost));
                        }
                    }
                }
            },
        );
        text.gauge("fwha_group_claim_held", "Whether a claim waits for a witness to answer.", |m| {
            status.groups.iter().for_each(|g| m.add(&group(g.group), u8::from(g.held)));
        });
        text.gauge("fwha_peer_state", "What is known of a peer: 1, and 0 for the other states.", |m| {
            let states = || (0..=u8::MAX).map_while(PeerState::from_u8).map(PeerState::as_str);
            for peer in &status.peers {
                m.state(&[("peer", self.names.node(peer.node))], states(), peer.state.as_str());
            }
        });
        message_metrics(text, snapshot);
        let late = &snapshot.lateness;
        text.counter("fwha_election_late_total", "Turns of the election thread that came too late.", |m| {
            m.add(&[], late.count);
        });
    }

    fn sync_metrics(&self, text: &mut Text, replication: &Snapshot) {
        type Peer<'a> = (&'a str, &'a PeerSnapshot);
        let peers = || replication.peers.iter().map(|(n, p)| (self.names.node(*n), p));
        let mut gauge = |name: &str, help: &str, value: &dyn Fn(&PeerSnapshot) -> f64| {
            text.gauge(name, help, |m| peers().for_each(|(name, p)| m.add(&[("peer", name)], value(p))));
        };
        gauge("fwha_sync_lag_seconds", "Age of the oldest change that a peer has not acknowledged.", &|p| {
            p.lag.as_secs_f64()
        });
        gauge("fwha_sync_queued_changes", "Changes queued for a peer.", &|p| p.queued as f64);
        gauge("fwha_sync_in_flight_datagrams", "Datagrams that a peer has not acknowledged.", &|p| {
            p.in_flight as f64
        });
        gauge("fwha_sync_digest_match", "Whether the digests of both tables agree, both ways.", &|p| {
            f64::from(u8::from(p.digest_match))
        });
        text.gauge("fwha_sync_state", "State of replication with a peer: 1, and 0 for the others.", |m| {
            let states = || SyncState::ALL.iter().map(|s| s.as_str());
            peers().for_each(|(name, p)| m.state(&[("peer", name)], states(), p.state.as_str()));
        });
        text.gauge("fwha_sync_bulk_left_flows", "Flows that a bulk transfer has still to transfer.", |m| {
            for (name, p) in peers() {
                for (direction, bulk) in &p.bulk {
                    let direction = api::Direction::from(*direction).to_string();
                    let left = bulk.flows_total.saturating_sub(bulk.flows_done);
                    m.add(&[("peer", name), ("direction", &direction)], left);
                }
            }
        });
        let help = "Time from a change until a peer acknowledged it.";
        text.metric("fwha_sync_acknowledged_seconds", "histogram", help, |m| {
            peers().for_each(|(name, p)| m.histogram(&[("peer", name)], &p.acknowledged.total));
        });
        text.counter("fwha_sync_refused_datagrams_total", "Datagrams of a peer that were refused.", |m| {
            for (peer, p) in peers() {
                let refused = p.counters.iter().filter(|(name, _)| REFUSED.contains(name));
                refused.for_each(|(name, n)| m.add(&[("peer", peer), ("reason", name)], n));
            }
        });
        for (name, _) in Counters::default().iter().filter(|(name, _)| !REFUSED.contains(name)) {
            let help = Counters::describe(name).unwrap_or_default();
            let of = |(_, p): &Peer<'_>| p.counters.iter().find(|(n, _)| *n == name).map(|(_, n)| *n);
            text.counter(&format!("fwha_sync_{name}_total"), help, |m| {
                for peer in peers() {
                    m.add(&[("peer", peer.0)], of(&peer).unwrap_or(0));
                }
            });
        }
        let help = "Replication of this node, by the names of `fwhactl stats sync`.";
        text.counter("fwha_sync_node_total", help, |m| {
            replication.counters.iter().for_each(|(name, n)| m.add(&[("name", name)], n));
        });
    }

    fn link_metrics(&self, text: &mut Text, replication: &Snapshot) {
        let mut metric = |name: &str, kind: &str, help: &str, value: &dyn Fn(&LinkStatus) -> Option<f64>| {
            text.metric(name, kind, help, |m| {
                for (peer, p) in &replication.peers {
                    for link in &p.links {
                        let labels =
                            [("peer", self.names.node(*peer)), ("interface", self.names.link(link.link))];
                        if let Some(value) = value(link) {
                            m.add(&labels, value);
                        }
                    }
                }
            });
        };
        let help = "Whether replication is answered on a sync link.";
        metric("fwha_link_up", "gauge", help, &|l| {
            Some(f64::from(u8::from(matches!(l.state, LinkState::Up | LinkState::Lossy))))
        });
        metric("fwha_link_used", "gauge", "Whether flows are sent over a sync link.", &|l| {
            Some(f64::from(u8::from(l.used)))
        });
        metric("fwha_link_rtt_seconds", "gauge", "Round trip time of replication's probes.", &|l| {
            l.rtt.map(|rtt| rtt.as_secs_f64())
        });
        metric(
            "fwha_link_loss_ratio",
            "gauge",
            "Share of these probes lately that were not answered.",
            &|l| l.loss_per_mille.map(|loss| f64::from(loss) / 1000.0),
        );
        for (name, _) in LinkCounters::default().iter() {
            let help = LinkCounters::describe(name).unwrap_or_default();
            metric(&format!("fwha_link_{name}_total"), "counter", help, &|l| {
                l.counters.iter().find(|(n, _)| *n == name).map(|(_, n)| n as f64)
            });
        }
    }

    fn packet_metrics(&self, text: &mut Text) -> Result<(), Problem> {
        let drops = self.maps.drops()?;
        text.counter(
            "fwha_dropped_packets_total",
            "Packets dropped, by reason (docs/packet-path.md).",
            |m| {
                DropReason::ALL.iter().zip(drops).for_each(|(r, n)| m.add(&[("reason", r.as_str())], n));
            },
        );
        let counters = self.maps.counters()?;
        for counter in Counter::ALL {
            let Some((name, help)) = described(counter) else { continue };
            let value = counters.get(counter as usize).copied().unwrap_or(0);
            text.counter(&format!("fwha_{name}_total"), help, |m| m.add(&[], value));
        }
        let hits = self.rule_hits()?;
        text.counter(
            "fwha_rule_flows_total",
            "First packets of flows that a rule decided; what it admits may be dropped after it.",
            |m| {
                hits.iter().for_each(|(rule, n)| m.add(&[("rule", rule)], n));
            },
        );
        Ok(())
    }
}

/// Name and meaning of a counter of the data plane.
const fn described(counter: Counter) -> Option<(&'static str, &'static str)> {
    Some(match counter {
        Counter::PacketsIn => ("packets_in", "Packets that entered at zone interfaces."),
        Counter::Forwarded => ("packets_forwarded", "Packets forwarded by the programs."),
        Counter::Passed => ("packets_passed", "Packets handed to the kernel's stack."),
        // By reason.
        Counter::Dropped => return None,
        Counter::ProbesAnswered => ("probes_answered", "Probes of peers answered."),
        Counter::EventsLost => ("flow_events_lost", "Flow events that found the ring buffer full."),
        Counter::FlowsCreated => ("flows_created", "Flows that were answered, and so are replicated."),
        Counter::Embryonic => ("flows_embryonic_created", "Flows that began."),
        Counter::FibLookups => ("fib_lookups", "Forwarded packets whose next hop had to be looked up."),
        Counter::CaptureSkipped => {
            ("capture_skipped", "Drops that a capture did not sample: they were too many.")
        }
        Counter::CaptureLost => ("capture_lost", "Samples of a capture that found the ring buffer full."),
        Counter::Rejected => ("packets_rejected", "Packets dropped whose senders were told."),
        Counter::SynAnswered => ("syn_answered", "SYNs that the SYN proxy answered with a cookie."),
        Counter::SynProxied => ("syn_proxied", "Connections that the SYN proxy began for a valid cookie."),
        Counter::VipAnswered => {
            ("vip_answered", "Questions for a virtual address answered with its virtual MAC.")
        }
        Counter::VipClaimed => {
            ("vip_claimed", "Times that a stranger said that he has a virtual address of this node.")
        }
    })
}

fn message_metrics(text: &mut Text, snapshot: &election::Snapshot) {
    text.counter(
        "fwha_election_messages_total",
        "Heartbeats, probes, VRRP messages and questions to witnesses and of reach, by the families and names of \
         `fwhactl stats link` and `vrrp`.",
        |m| {
            for (family, name, count) in election_counters(snapshot) {
                m.add(&[("family", family), ("name", name)], count);
            }
        },
    );
}

fn thread_metrics(text: &mut Text, threads: &[api::ThreadStatus]) {
    let help = "Since a thread of the daemon last showed how things stand: what is said here is as old.";
    text.gauge("fwha_thread_silent_seconds", help, |m| {
        for thread in threads {
            let silent = Duration::from_millis(thread.silent_ms).as_secs_f64();
            m.add(&[("thread", &thread.name)], silent);
        }
    });
}

fn flow_metrics(text: &mut Text, counts: &api::FlowCounts) {
    text.gauge("fwha_flows", "Flows in the table, by where they began.", |m| {
        m.add(&[("origin", "local")], counts.local);
        m.add(&[("origin", "peer")], counts.peer);
    });
    for (name, help, value) in [
        ("fwha_flows_embryonic", "New flows without an answer, expired ones included.", counts.embryonic),
        ("fwha_flows_max", "Flows that the table holds at most.", counts.max),
        (
            "fwha_flows_at_risk",
            "Owned flows that no answering peer is known to hold as they are.",
            counts.at_risk,
        ),
    ] {
        text.gauge(name, help, |m| m.add(&[], value));
    }
}

#[cfg(test)]
mod tests {
    use fwha_proto::election::status::Status;
    use fwha_proto::heartbeat::NodeState;
    use fwha_proto::time::Time;

    use super::*;
    use crate::socket::Refused;

    #[test]
    fn the_text_is_that_of_prometheus() {
        let mut text = Text(String::new());
        text.counter("fwha_x_total", "What it\nis.", |m| {
            m.add(&[], 1);
            m.add(&[("a", "q\"b\\s\nn"), ("b", "")], 0.5);
        });
        assert_eq!(
            text.0,
            "# HELP fwha_x_total What it is.\n# TYPE fwha_x_total counter\nfwha_x_total 1\n\
             fwha_x_total{a=\"q\\\"b\\\\s\\nn\",b=\"\"} 0.5\n"
        );
    }

    #[tokio::test]
    async fn connections_on_which_nothing_is_said_keep_nobody_out() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        const LIFETIME: Duration = Duration::from_millis(300);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let listener = Bounded { listener, places: Arc::clone(&places), lifetime: LIFETIME };
        let router = Router::new().route("/metrics", get(|| async { "fwha_x 1" }));
        let server = tokio::spawn(async move { serve(listener, router).await });
        let begun = tokio::time::Instant::now();
        let mut idle = Vec::new();
        // One that says half of what it wants is no better.
        for n in 0..CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&b"GET /met"[..n % 2 * 8]).await.unwrap();
            idle.push(stream);
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("fwha_x 1"), "{answer}");
        assert!(begun.elapsed() >= LIFETIME, "there was no place before");
        for mut stream in idle {
            assert_eq!(stream.read(&mut [0; 100]).await.unwrap_or(0), 0, "it was closed");
        }
        while places.available_permits() < CONNECTIONS - 1 {
            tokio::task::yield_now().await;
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_port_that_another_has_is_taken_when_it_is_free() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = other.local_addr().unwrap();
        let problem = Arc::new(ArcSwapOption::empty());
        let told = Arc::clone(&problem);
        let bound = tokio::spawn(async move { bind(address, &told, Duration::from_millis(10)).await });
        while problem.load().is_none() {
            tokio::task::yield_now().await;
        }
        drop(other);
        assert_eq!(bound.await.unwrap().local_addr().unwrap(), address);
        assert!(problem.load().is_none());
    }

    #[tokio::test]
    async fn one_scrape_at_a_time_walks_the_table() {
        let walks = Arc::new(std::sync::Mutex::new(()));
        let walk = || {
            let walks = Arc::clone(&walks);
            in_turn(move || {
                let alone = walks.try_lock().is_ok_and(|_walk| {
                    std::thread::sleep(Duration::from_millis(20));
                    true
                });
                assert!(alone, "beside another");
            })
        };
        // The first goes on although nobody waits for it.
        let _ = tokio::time::timeout(Duration::from_millis(5), walk()).await;
        let (a, b, c) = tokio::join!(walk(), walk(), walk());
        a.and(b).and(c).unwrap();
    }

    #[test]
    fn what_sockets_refuse_is_among_the_messages() {
        let snapshot = election::Snapshot {
            at: Time::ZERO,
            status: Status {
                node: NodeState::Running,
                groups: Vec::new(),
                peers: Vec::new(),
                witnesses: Vec::new(),
                reaches: Vec::new(),
                stranger: None,
                counters: Default::default(),
            },
            lateness: election::Lateness::default(),
            refused: Refused { ttl: 3, length: 4 },
        };
        let mut text = Text(String::new());
        message_metrics(&mut text, &snapshot);
        for (name, count) in [("ttl", 3), ("length", 4)] {
            let sample = format!(
                "fwha_election_messages_total{{family=\"heartbeat_refused\",name=\"{name}\"}} {count}\n"
            );
            assert!(text.0.contains(&sample), "{}", text.0);
        }
    }

    #[test]
    fn a_thread_that_hangs_shows() {
        let mut text = Text(String::new());
        let thread = |name: &str, silent_ms| api::ThreadStatus { name: name.into(), silent_ms };
        thread_metrics(&mut text, &[thread("election", 7), thread("replication", 61_500)]);
        let samples: Vec<&str> = text.0.lines().skip(2).collect();
        assert_eq!(
            samples,
            [
                "fwha_thread_silent_seconds{thread=\"election\"} 0.007",
                "fwha_thread_silent_seconds{thread=\"replication\"} 61.5"
            ]
        );
    }

    #[test]
    fn a_histogram_is_cumulative_and_in_seconds() {
        let mut text = Text(String::new());
        text.metric("h", "histogram", "H.", |m| m.histogram(&[("peer", "fw2")], &Histogram::default()));
        let lines: Vec<&str> = text.0.lines().collect();
        assert_eq!(lines[2], "h_bucket{peer=\"fw2\",le=\"0.000064\"} 0");
        assert_eq!(
            lines[lines.len() - 3..],
            ["h_bucket{peer=\"fw2\",le=\"+Inf\"} 0", "h_sum{peer=\"fw2\"} 0", "h_count{peer=\"fw2\"} 0",]
        );
    }

    #[test]
    fn what_counts_refusals_is_named_as_the_counters_are() {
        let known: Vec<&str> = Counters::default().iter().map(|(name, _)| name).collect();
        assert!(REFUSED.iter().all(|name| known.contains(name)), "{known:?}");
        assert!(known.iter().all(|name| Counters::describe(name).is_some_and(|text| !text.is_empty())));
    }
}

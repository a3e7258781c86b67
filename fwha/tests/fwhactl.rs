//! `fwhactl` as a program, against a stand-in for the daemon that serves fixed answers.

use std::{
    net::Shutdown,
    os::unix::{fs::PermissionsExt, net::UnixListener as StdListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::Body,
    extract::Query,
    http::{HeaderValue, StatusCode, header::CONTENT_TYPE},
    middleware::map_response,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use futures_util::StreamExt as _;
use fwha::api::{
    ApiError, Attachment, BulkStatus, CaptureLine, CaptureMissed, CaptureQuery, ConfigChange, DiffEnd,
    DiffLine, DiffQuery, Direction, DroppedPacket, Event, EventsQuery, FlowCounts, FlowDifference,
    FlowFilter, FlowRow, FlowSide, FlowsDeleted, GroupStatus, KERNEL, LinkStatus, MemberStanding, MovedGroup,
    NDJSON, Origin, PacketExplanation, PacketQuery, PacketStep, PeerStatus, ReloadReply, ReloadRequest,
    ResourceStatus, Role, RoleExplanation, StandbyReply, StandbyRequest, Stat, Stats, Status, Step,
    SwitchoverReply, SwitchoverRequest, SyncStatus, ThreadStatus, TrackerStatus, Transfer, TransferRequest,
    TransferState, WARNING_HEADER, WitnessStatus, ZoneInterfaceStatus, path,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixListener,
    process::Command,
    sync::watch,
};

/// What a finished `fwhactl` left.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fwhactl"));
    command.arg("--socket").arg(socket).args(args).kill_on_drop(true);
    command
}

async fn fwhactl(socket: &Path, args: &[&str]) -> Run {
    let output = command(socket, args).output().await.unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn tracker() -> TrackerStatus {
    TrackerStatus {
        name: "uplink".into(),
        state: "down".into(),
        since_ms: 4_200,
        result: "no answer\x1b[2J".into(),
        counts: true,
        effect: "lowers the priority by 50".into(),
        good: 100,
        bad: 7,
    }
}

fn status() -> Status {
    Status {
        node: "fw1".into(),
        cluster: "edge".into(),
        config_hash: "1a2b3c4d5e6f7081".into(),
        version: "0.1.0".into(),
        uptime_ms: 125_000,
        standby: false,
        witnesses: vec![WitnessStatus {
            address: "10.0.0.254".into(),
            state: "up".into(),
            since_ms: 61_000,
            rtt_us: Some(250),
            requests: 62,
            answers: 61,
        }],
        reaches: Vec::new(),
        groups: vec![GroupStatus {
            name: "gateway".into(),
            role: Role::Active,
            active: Some("fw1".into()),
            also_active: Vec::new(),
            term: 7,
            since_ms: 61_000,
            reason: "nobody was active".into(),
            vips: vec!["10.0.0.12/24".into(), "192.168.100.12/24".into()],
            priority: 150,
            trackers: vec![tracker()],
            resources: vec![ResourceStatus {
                name: "openvpn".into(),
                state: "running".into(),
                since_ms: 60_000,
                result: "monitor done after 4 ms".into(),
                failure: None,
                restarts: 1,
                failures: 1,
            }],
        }],
        peers: vec![PeerStatus {
            in_sync: true,
            name: "fw2".into(),
            state: "alive".into(),
            since_ms: Some(3_000),
            standby: false,
            reason: String::new(),
            refused: Vec::new(),
            links: vec![
                LinkStatus {
                    interface: "sync".into(),
                    state: "up".into(),
                    rtt_us: Some(85),
                    replication: "up".into(),
                    loss_per_mille: Some(0),
                    used: true,
                },
                LinkStatus {
                    interface: "sync2".into(),
                    state: "up".into(),
                    rtt_us: Some(90),
                    replication: "lossy".into(),
                    loss_per_mille: Some(125),
                    used: false,
                },
            ],
            sync: SyncStatus {
                state: "in-sync".into(),
                since_ms: 63_000,
                lag_ms: 2,
                unacked: 3,
                digest_match: true,
                bulk: None,
            },
        }],
        interfaces: vec![ZoneInterfaceStatus {
            interface: "wan".into(),
            zone: "inet".into(),
            attach: Attachment::Tc,
            reason: "veth carries super-packets".into(),
        }],
        flows: FlowCounts { local: 5, peer: 2, embryonic: 1, max: 65_536, at_risk: 3 },
        threads: vec![
            ThreadStatus { name: "election".into(), silent_ms: 9 },
            ThreadStatus { name: "replication".into(), silent_ms: 1000 },
        ],
        warnings: vec!["one sync link only\x1b[2J".into()],
    }
}

fn flow(n: u16) -> FlowRow {
    FlowRow {
        proto: if n.is_multiple_of(2) { "tcp" } else { "udp" }.into(),
        src: "192.168.100.100".parse().unwrap(),
        sport: 40_000 + n,
        dst: "10.0.0.128".parse().unwrap(),
        dport: 22,
        state: "established".into(),
        zone_in: "lan".into(),
        zone_out: "inet".into(),
        owner: "fw1".into(),
        origin: Origin::Local,
        age_ms: 61_000,
        idle_ms: 12,
        timeout_ms: 432_000_000,
        packets: [10, 8],
        bytes: [1434, 712],
        rule: "lan-out".into(),
        syn_proxied: false,
    }
}

fn event(kind: &str, steps: Vec<Step>) -> Event {
    Event {
        at_unix_ms: 1_735_689_600_007,
        at_mono_ms: 1234.5,
        kind: kind.into(),
        group: Some("gateway".into()),
        text: "backup to active".into(),
        steps,
    }
}

/// A SYN that was dropped.
fn dropped(reason: &str) -> DroppedPacket {
    #[rustfmt::skip]
    let frame = [
        &[2, 0, 0, 0, 2, 1, 2, 0, 0, 0, 2, 128, 8, 0][..],
        &[0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0x6f, 0x1f, 192, 168, 1, 7, 10, 0, 0, 1],
        &[0x0f, 0xa0, 0, 22, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0],
    ]
    .concat();
    DroppedPacket {
        at_unix_ns: 1_735_689_600_007_000_001,
        interface: if reason == "unfiltered" { "lan" } else { "wan" }.into(),
        hook: if reason == "unfiltered" { "egress" } else { "xdp" }.into(),
        reason: reason.into(),
        length_bytes: 60,
        frame,
    }
}

/// What a daemon says that differs from fw2 in a flow, and from fw3 in none.
async fn diff(Query(query): Query<DiffQuery>) -> impl IntoResponse {
    let side = |version: &str, age_ms| FlowSide {
        identity: "fw1/0a0b0c0d/77".into(),
        version: version.into(),
        state: "established".into(),
        age_ms,
    };
    let difference = |kind: &str, in_flight| {
        DiffLine::Difference(FlowDifference {
            peer: "fw2".into(),
            kind: kind.into(),
            in_flight,
            proto: "tcp".into(),
            src: "192.168.100.100".parse().unwrap(),
            sport: 40_000,
            dst: "10.0.0.128".parse().unwrap(),
            dport: 22,
            bucket: 9,
            here: Some(side("7.4", 1200)),
            there: (kind == "version").then(|| side("7.3", 61_000)),
        })
    };
    let end = |peer: &str, differences| DiffEnd {
        peer: peer.into(),
        buckets: 256,
        differences,
        ..DiffEnd::default()
    };
    let listed = DiffEnd { buckets_listed: 1, flows_listed: 40, in_flight: 1, ..end("fw2", 2) };
    let mut lines = match query.peer.as_deref() {
        _ if query.local => vec![DiffLine::End(end(KERNEL, 0))],
        Some("fw3") => vec![],
        // Its daemon loses its replication thread.
        Some("fw5") => return ([(CONTENT_TYPE, NDJSON)], ndjson(&[difference("only-here", true)])),
        Some("fw4") => {
            let error = Some("fw4: it does not answer".to_owned());
            vec![DiffLine::End(DiffEnd { peer: "fw4".into(), error, ..DiffEnd::default() })]
        }
        _ => vec![
            DiffLine::End(end(KERNEL, 0)),
            difference("version", false),
            difference("only-here", false),
            difference("only-here", true),
            DiffLine::End(listed),
        ],
    };
    if query.peer.as_deref() != Some("fw4") && !query.local {
        lines.push(DiffLine::End(end("fw3", 0)));
    }
    ([(CONTENT_TYPE, NDJSON)], ndjson(&lines))
}

/// What a daemon with two peers says of a bulk transfer, when fw3 does not answer.
async fn transfer(request: TransferRequest, direction: Direction) -> impl IntoResponse {
    let bulk = BulkStatus { direction, flows_total: 5000, ..BulkStatus::default() };
    let running = BulkStatus { flows_done: 2000, buckets_left: 256, remaining_ms: Some(1500), ..bulk };
    let done = BulkStatus { flows_done: 5000, elapsed_ms: 2500, ..bulk };
    let line = |peer: &str, state, bulk| Transfer { peer: peer.into(), state, bulk, ..Transfer::default() };
    let mut lines = vec![line("fw2", TransferState::Running, running)];
    if request.peer.as_deref() == Some("fw5") {
        // Gone from the config file on the way.
        lines = vec![line("fw5", TransferState::Running, running)];
    } else if request.wait {
        let swept = (direction == Direction::Receiving).then_some(7);
        lines.push(Transfer { swept, ..line("fw2", TransferState::Done, done) });
    }
    let error = Some("fw3: it does not answer".to_owned());
    lines.push(Transfer { error, ..line("fw3", TransferState::Failed, bulk) });
    lines.retain(|line| request.peer.as_ref().is_none_or(|peer| *peer == line.peer));
    ([(CONTENT_TYPE, NDJSON)], ndjson(&lines))
}

fn ndjson<T: serde::Serialize>(items: &[T]) -> String {
    items.iter().map(|i| serde_json::to_string(i).unwrap() + "\n").collect()
}

/// Serves until dropped. What `/v1/events?follow=true` adds is sent when `news` changes.
struct FakeDaemon {
    dir: tempfile::TempDir,
    news: watch::Sender<u32>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn packet_explanation(query: &PacketQuery) -> PacketExplanation {
    let PacketQuery { proto, src, sport, dst, dport, interface, tcp_flags } = query;
    let step = |step: &str, result: &str, text: &str| PacketStep {
        step: step.into(),
        result: result.into(),
        text: text.into(),
    };
    PacketExplanation {
        node: "fw1".into(),
        packet: format!("{proto} {src} {sport:?} > {dst} {dport:?} {tcp_flags:?}"),
        interface_in: interface.clone().unwrap_or_default(),
        zone_in: "lan".into(),
        steps: vec![step("arrival", "pass", "by lan\x1b[2J"), step("rules", "drop", "from lan to inet")],
        assumed: vec!["a small packet".into()],
        verdict: "dropped".into(),
        reason: Some("no_rule".into()),
        ..PacketExplanation::default()
    }
}

fn explanation() -> RoleExplanation {
    let member = |node: &str, priority, standing: &str| MemberStanding {
        node: node.into(),
        priority,
        standing: standing.into(),
    };
    RoleExplanation {
        group: "gateway".into(),
        node: "fw1".into(),
        role: "active".into(),
        reason: "nobody was active".into(),
        because: vec!["if it is lost, fw2 takes over".into()],
        members: vec![member("fw1", 200, "active: this node"), member("fw2", 90, "could be active\x1b[2J")],
        trackers: vec![tracker()],
    }
}

/// What a daemon says that had a group which fw2 can take, if anybody.
async fn standby(Json(StandbyRequest { on, force }): Json<StandbyRequest>) -> Json<StandbyReply> {
    let moved = MovedGroup { group: "gateway".into(), to: (!force).then(|| "fw2".into()) };
    let moved = if on { vec![moved] } else { Vec::new() };
    Json(StandbyReply { node: "fw1".into(), on, moved, took_ms: 1.25 })
}

/// A rule is new, and without `--dry-run` the file has mistakes; with `--revalidate` it needs a restart.
async fn reload(
    Json(ReloadRequest { dry_run, revalidate }): Json<ReloadRequest>,
) -> Result<Json<ReloadReply>, (StatusCode, Json<ApiError>)> {
    if !dry_run && !revalidate {
        let error = "f.toml:3:1: unknown key \"x\u{1b}\"\n  |\n1 mistake found: nothing was changed".into();
        return Err((StatusCode::UNPROCESSABLE_ENTITY, Json(ApiError { error })));
    }
    let change = ConfigChange { text: "rule \"web\" added".into(), restart: revalidate };
    Ok(Json(ReloadReply { node: "fw1".into(), changes: vec![change], ..ReloadReply::default() }))
}

impl FakeDaemon {
    fn start(status: Status, flows: u16) -> Self {
        let on_standby = status.standby;
        let (news, listen) = watch::channel(0);
        let events = move |Query(query): Query<EventsQuery>| {
            let mut listen = listen.clone();
            async move {
                let history = ndjson(&[event("role", vec![Step { name: "own buckets".into(), ms: 0.25 }])]);
                let (sender, body) = tokio::sync::mpsc::channel::<Result<String, std::io::Error>>(1);
                tokio::spawn(async move {
                    sender.send(Ok(history)).await.unwrap();
                    while query.follow && listen.changed().await.is_ok() {
                        // In two halves: a line is a line however it arrives.
                        let line = ndjson(&[event("peer", Vec::new())]);
                        let (a, b) = line.split_at(20);
                        for half in [a, b] {
                            if sender.send(Ok(half.to_owned())).await.is_err() {
                                return;
                            }
                        }
                    }
                });
                let stream = futures_util::stream::unfold(body, |mut body| async {
                    body.recv().await.map(|chunk| (chunk, body))
                });
                ([(CONTENT_TYPE, NDJSON)], Body::from_stream(stream))
            }
        };
        let list = move |Query(filter): Query<FlowFilter>| async move {
            let rows: Vec<_> = (0..flows).map(flow).filter(|f| filter.matches(f)).collect();
            ([(CONTENT_TYPE, NDJSON)], ndjson(&rows))
        };
        let mut stats = Stats::default();
        stats.drops.insert("not_syn".into(), 4.into());
        stats.drops.insert("no_rule".into(), 0.into());
        stats.sync.insert("fw2".into(), [("lost", 1)].into_iter().collect::<Stat>());
        let switchover = |Json(request): Json<SwitchoverRequest>| async move {
            let to = match request.to.as_deref() {
                Some("fw9") => {
                    let error = "no node fw9 in the group: choose fw2".to_owned();
                    return (StatusCode::BAD_REQUEST, Json(ApiError { error })).into_response();
                }
                to => to.unwrap_or("fw2").to_owned(),
            };
            let group = request.group.unwrap_or("gateway".into());
            Json(SwitchoverReply { group, from: "fw1".into(), to, took_ms: 1.25 }).into_response()
        };
        // Without a count it goes on for ever.
        let capture = |Query(query): Query<CaptureQuery>| async move {
            if query.reasons == ["rule"] {
                let error = "another capture is running".to_owned();
                return (StatusCode::CONFLICT, Json(ApiError { error })).into_response();
            }
            assert_eq!(query.snap_len, Some(256));
            let packets = ["no_rule", "unfiltered", "no_rule"].map(|r| CaptureLine::Packet(dropped(r)));
            if query.reasons == ["unfiltered"] {
                let line = ndjson(&[CaptureLine::Packet(dropped("unfiltered"))]);
                let flood = futures_util::stream::repeat_with(move || Ok::<_, std::io::Error>(line.clone()));
                return ([(CONTENT_TYPE, NDJSON)], Body::from_stream(flood)).into_response();
            }
            let count = match query.reasons.first().map(String::as_str) {
                Some("not_syn") => 0,
                _ => query.count.map_or(3, |count| count as usize),
            };
            let mut lines = packets[..count].to_vec();
            lines.push(CaptureLine::Missed(CaptureMissed { skipped: 5, lost: 6 }));
            let lines = futures_util::stream::iter([Ok::<_, std::io::Error>(ndjson(&lines))]);
            let body = match query.count {
                Some(_) => Body::from_stream(lines),
                None => Body::from_stream(lines.chain(futures_util::stream::pending())),
            };
            ([(CONTENT_TYPE, NDJSON)], body).into_response()
        };
        let router = Router::new()
            .route(path::FLOWS_DIFF, get(diff))
            .route(
                path::FLOWS_DELETE,
                post(|Json(filter): Json<FlowFilter>| async move {
                    let deleted = if filter == FlowFilter::default() { 9 } else { 2 };
                    Json(FlowsDeleted { deleted, not_owned: deleted - 2 })
                }),
            )
            .route(path::BULK, post(|Json(request)| transfer(request, Direction::Sending)))
            .route(path::RESYNC, post(|Json(request)| transfer(request, Direction::Receiving)))
            .route(path::STATUS, get(move || async { Json(status) }))
            .route(path::FLOWS, get(list))
            .route(path::STATS, get(move || async { Json(stats) }))
            .route(path::METRICS, get(|| async { "# TYPE fwha_x_total counter\nfwha_x_total 1\n" }))
            .route(path::EVENTS, get(events))
            .route(path::CAPTURE, get(capture))
            .route(path::SWITCHOVER, post(switchover))
            .route(path::STANDBY, post(standby))
            .route(path::RELOAD, post(reload))
            .route(path::EXPLAIN_ROLE, get(|| async { Json([explanation()]) }))
            .route(path::EXPLAIN_PACKET, get(|Query(query)| async move { Json(packet_explanation(&query)) }))
            .layer(map_response(move |mut response: Response| async move {
                if on_standby {
                    let text = HeaderValue::from_static("fw1 is on standby");
                    response.headers_mut().insert(WARNING_HEADER, text);
                }
                response
            }));
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("fwha.sock")).unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { dir, news, server }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("fwha.sock")
    }

    /// Standard output of a `fwhactl` that ends well.
    async fn ctl_bytes(&self, args: &[&str]) -> Vec<u8> {
        let output = command(&self.socket(), args).output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    async fn ctl(&self, args: &[&str]) -> Run {
        fwhactl(&self.socket(), args).await
    }
}

#[tokio::test]
async fn status_is_a_table_for_people_and_an_object_for_programs() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["status"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let expected = "\
fw1 of cluster edge, config 1a2b3c4d5e6f7081, fwha 0.1.0, up 2m05s

GROUP    ROLE    ACTIVE  TERM  FOR    VIPS                            REASON
gateway  active  fw1     7     1m01s  10.0.0.12/24 192.168.100.12/24  nobody was active

TRACKER  STATE  FOR   EFFECT                     LAST RESULT
uplink   down   4.2s  lowers the priority by 50  no answer?[2J

RESOURCE  STATE    FOR    RESTARTS  LAST RESULT
openvpn   running  1m00s  1         monitor done after 4 ms

PEER  STATE           SYNC               LAG  UNACKED  LINKS
fw2   alive for 3.0s  in-sync for 1m03s  2ms  3        sync up 0.09ms used, sync2 up 0.09ms 12.5% lost (replication lossy)

WITNESS     STATE  FOR    RTT
10.0.0.254  up     1m01s  0.25ms

INTERFACE  ZONE  ATTACHED  WHY
wan        inet  tc        veth carries super-packets

flows: 5 local, 2 from peers, 7 of 65536 used; 1 embryonic; 3 at risk
warning: one sync link only?[2J
";
    assert_eq!(run.stdout, expected, "no colours and no control characters without a terminal");

    let run = daemon.ctl(&["-o", "json", "status"]).await;
    assert_eq!(run.code, 0);
    assert_eq!(run.stdout.lines().count(), 1);
    assert_eq!(serde_json::from_str::<Status>(&run.stdout).unwrap(), status());
}

#[tokio::test]
async fn status_exits_with_3_when_a_group_has_not_exactly_one_active() {
    for (active, also, text) in [
        (None, vec![], "warning: group gateway: no node is active\n"),
        (Some("fw1"), vec!["fw2"], "warning: group gateway: split brain, fw1 and fw2 are active\n"),
    ] {
        let mut status = status();
        status.groups[0].active = active.map(Into::into);
        status.groups[0].also_active = also.into_iter().map(Into::into).collect();
        // As the daemon does.
        status.warnings.extend(status.groups[0].trouble());
        let daemon = FakeDaemon::start(status, 0);
        let run = daemon.ctl(&["status"]).await;
        assert_eq!(run.code, 3);
        assert_eq!(run.stdout.matches(text).count(), 1, "{}", run.stdout);
        assert_eq!(daemon.ctl(&["-o", "json", "status"]).await.code, 3);
    }
}

#[tokio::test]
async fn status_exits_with_3_when_a_thread_hangs() {
    for hangs in [0, 1] {
        let mut status = status();
        status.threads[hangs].silent_ms = 1001;
        let daemon = FakeDaemon::start(status, 0);
        assert_eq!(daemon.ctl(&["status"]).await.code, 3);
        assert_eq!(daemon.ctl(&["-o", "json", "status"]).await.code, 3);
    }
}

#[tokio::test]
async fn status_exits_with_3_when_the_daemon_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fwha.sock");
    let _hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let run = fwhactl(&socket, &["status"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (3, ""));
    let why = "does not answer: it is starting, or hangs";
    assert!(run.stderr.contains(why) && run.stderr.lines().count() == 1, "{}", run.stderr);
}

#[tokio::test]
async fn metrics_are_no_json() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["-o", "json", "stats", "--prometheus"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert_eq!(run.stderr, "fwhactl: --prometheus is a text format of its own: leave out -o json\n");
}

#[tokio::test]
async fn flows_are_listed_filtered_and_counted() {
    let daemon = FakeDaemon::start(status(), 4);
    let run = daemon.ctl(&["-o", "json", "flows"]).await;
    let rows: Vec<FlowRow> = run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows, (0..4).map(flow).collect::<Vec<_>>());

    let run = daemon.ctl(&["flows", "proto=tcp", "src=192.168.0.0/16", "sport=40002"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 2, "{}", run.stdout);
    assert!(lines[0].starts_with("PROTO  STATE        SOURCE                 DESTINATION"), "{}", lines[0]);
    let words: Vec<&str> = lines[1].split_whitespace().collect();
    assert_eq!(
        words,
        [
            "tcp",
            "established",
            "192.168.100.100:40002",
            "10.0.0.128:22",
            "lan>inet",
            "local",
            "fw1",
            "1m01s/12ms/5d0h",
            "10/8",
            "1.4K/712B",
            "lan-out"
        ]
    );

    assert_eq!(daemon.ctl(&["flows", "count", "proto=udp"]).await.stdout, "2\n");
    assert_eq!(daemon.ctl(&["flows", "count", "proto=17"]).await.stdout, "2\n");
    assert_eq!(daemon.ctl(&["flows", "count", "proto=SCTP"]).await.stdout, "0\n");
    assert_eq!(daemon.ctl(&["flows", "count", "--origin", "peer"]).await.stdout, "0\n");
    assert_eq!(daemon.ctl(&["-o", "json", "flows", "count"]).await.stdout, "{\"count\":4}\n");
    assert_eq!(daemon.ctl(&["-o", "json", "flows", "--origin", "peer"]).await.stdout, "");

    let run = daemon.ctl(&["flows", "port=22"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (1, ""));
    assert!(run.stderr.starts_with("fwhactl: unknown term \"port\": known are"), "{}", run.stderr);
}

#[tokio::test]
async fn flows_that_differ_are_shown_and_the_exit_code_tells() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["flows", "diff"]).await;
    let expected = "\
PEER  DIFFERS    PROTO  SOURCE                 DESTINATION    HERE                                      THERE
fw2   version    tcp    192.168.100.100:40000  10.0.0.128:22  established 7.4 1.2s ago fw1/0a0b0c0d/77  established 7.3 1m01s ago fw1/0a0b0c0d/77
fw2   only-here  tcp    192.168.100.100:40000  10.0.0.128:22  established 7.4 1.2s ago fw1/0a0b0c0d/77  -
kernel: no flow differs; 0 changed meanwhile (256 buckets compared, 0 of them flow by flow, 0 flows)
fw2: 2 flows differ; 1 changed meanwhile (256 buckets compared, 1 of them flow by flow, 40 flows)
fw3: no flow differs; 0 changed meanwhile (256 buckets compared, 0 of them flow by flow, 0 flows)
";
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (1, expected, ""));
    let run = daemon.ctl(&["-o", "json", "flows", "diff"]).await;
    let lines: Vec<DiffLine> = run.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((run.code, lines.len()), (1, 6), "those in flight as well");
    assert!(matches!(&lines[3], DiffLine::Difference(d) if d.in_flight));
    assert!(matches!(&lines[4], DiffLine::End(end) if end.differences == 2));
    assert_eq!(daemon.ctl(&["flows", "diff", "--peer", "fw3"]).await.code, 0);
    let run = daemon.ctl(&["flows", "diff", "--peer", "fw4"]).await;
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (1, "", "fwhactl: fw4: it does not answer\n")
    );
}

#[tokio::test]
async fn what_does_not_come_to_its_end_does_not_end_well() {
    let said = "fwhactl: fw5: the daemon does not say what became of it\n";
    let daemon = FakeDaemon::start(status(), 0);
    assert_eq!(daemon.ctl(&["flows", "diff", "--local"]).await.code, 0);
    for verb in [&["flows", "diff", "--peer", "fw5"][..], &["bulk", "--wait", "--peer", "fw5"]] {
        let run = daemon.ctl(verb).await;
        assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (1, "", said), "{verb:?}");
    }
    assert_eq!(daemon.ctl(&["bulk", "--peer", "fw5"]).await.code, 0, "asked for, and no more was wanted");

    // A peer of which nothing is said at all.
    let mut status = status();
    status.peers.push(PeerStatus { name: "fw5".into(), ..status.peers[0].clone() });
    let daemon = FakeDaemon::start(status, 0);
    for verb in [&["flows", "diff"][..], &["bulk"], &["bulk", "--wait"]] {
        let run = daemon.ctl(verb).await;
        assert!(run.code == 1 && run.stderr.ends_with(said), "{verb:?}: {}", run.stderr);
    }
}

#[tokio::test]
async fn flows_are_deleted_only_if_somebody_says_which() {
    let daemon = FakeDaemon::start(status(), 0);
    assert_eq!(daemon.ctl(&["flows", "delete", "dport=22"]).await.stdout, "2 flows deleted\n");
    let run = daemon.ctl(&["flows", "delete", "--all"]).await;
    assert_eq!(run.stdout, "9 flows deleted; 7 are another node's\n");
    let run = daemon.ctl(&["-o", "json", "flows", "delete", "--origin", "peer"]).await;
    assert_eq!(run.stdout, "{\"deleted\":2,\"not_owned\":0}\n");
    for wrong in [&["flows", "delete"][..], &["flows", "delete", "--all", "dport=22"]] {
        assert_eq!(daemon.ctl(wrong).await.code, 2, "{wrong:?}");
    }
    let run = daemon.ctl(&["flows", "delete", "src=10.0.0.1", "src=10.0.0.2"]).await;
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (1, "", "fwhactl: \"src\" is given twice\n")
    );
}

#[tokio::test]
async fn stats_show_all_sections_or_one() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["stats", "drops"]).await;
    assert_eq!(run.stdout, "drops\n  no_rule  0\n  not_syn  4\n");
    let run = daemon.ctl(&["-o", "json", "stats", "drops"]).await;
    assert_eq!(run.stdout, "{\"drops\":{\"no_rule\":0,\"not_syn\":4}}\n");
    let run = daemon.ctl(&["stats"]).await;
    assert!(run.stdout.contains("sync\n  fw2.lost  1\n"), "{}", run.stdout);
    let all: Stats = serde_json::from_str(&daemon.ctl(&["-o", "json", "stats"]).await.stdout).unwrap();
    assert_eq!(all.drops["not_syn"], Stat::Count(4));
    let run = daemon.ctl(&["stats", "--prometheus"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (0, "# TYPE fwha_x_total counter\nfwha_x_total 1\n"));
    assert_eq!(daemon.ctl(&["stats", "drops", "--prometheus"]).await.code, 2);
}

#[tokio::test]
async fn a_bulk_transfer_says_what_became_of_it_by_peer() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["bulk"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (1, "fwhactl: fw3: it does not answer\n"));
    assert_eq!(run.stdout, "fw2 is being sent 256 buckets of flows\n");
    let run = daemon.ctl(&["bulk", "--wait", "--peer", "fw2"]).await;
    let sent = "5000 flows sent to fw2 in 2.5s\n";
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (0, sent, ""),
        "no bar without a terminal"
    );
    assert_eq!(daemon.ctl(&["resync"]).await.stdout, "fw2 was asked for 256 buckets of flows\n");
    let run = daemon.ctl(&["resync", "--wait", "--peer", "fw2"]).await;
    let received = "5000 flows received from fw2 in 2.5s; 7 that it does not have are gone\n";
    assert_eq!((run.code, run.stdout.as_str()), (0, received));
    let run = daemon.ctl(&["-o", "json", "bulk", "--wait"]).await;
    assert_eq!(run.code, 1);
    assert_eq!(
        run.stdout.lines().next().unwrap(),
        "{\"peer\":\"fw2\",\"state\":\"running\",\"direction\":\"sending\",\"flows_done\":2000,\"flows_total\":5000,\
         \"buckets_left\":256,\"elapsed_ms\":0,\"remaining_ms\":1500}"
    );
    assert_eq!(run.stdout.lines().count(), 3);
}

#[tokio::test]
async fn events_end_with_the_history_unless_followed() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["events"]).await;
    assert_eq!(
        run.stdout,
        "2025-01-01 00:00:00.007Z  role          gateway: backup to active\n\
         \u{20}                            0.250 ms  own buckets\n"
    );

    let mut child = command(&daemon.socket(), &["-o", "json", "events", "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        let line = lines.next_line().await.unwrap().unwrap();
        serde_json::from_str::<Event>(&line).unwrap().kind
    };
    assert_eq!(next().await, "role");
    for news in 1..4 {
        daemon.news.send(news).unwrap();
        assert_eq!(next().await, "peer");
    }
    child.kill().await.unwrap();
}

#[tokio::test]
async fn events_of_a_daemon_that_has_gone_do_not_end_well() {
    // It ends the answer, or dies under way: with what is left of a chunk, or of a line.
    for rest in ["0\r\n\r\n", "", "5\r\n{\"at", "4\r\n{\"at\r\n0\r\n\r\n"] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("fwha.sock");
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned() + rest;
        let server = answer_once(StdListener::bind(&socket).unwrap(), answer, false);
        let run = fwhactl(&socket, &["events", "--follow"]).await;
        server.join().unwrap();
        let said = format!("fwhactl: the fwha daemon at {} has gone\n", socket.display());
        assert_eq!((run.code, run.stderr), (1, said), "{rest:?}");
    }
}

/// A daemon that gives one answer, and listens no more.
fn answer_once(listener: StdListener, answer: String, lives: bool) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, _) = listener.accept().unwrap();
        if !lives {
            // To close it is not enough: a process that another test just begins has it, too, until it runs.
            let address = listener.local_addr().unwrap();
            std::fs::remove_file(address.as_pathname().unwrap()).unwrap();
        }
        drop(listener);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.push(byte[0]);
        }
        stream.write_all(answer.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Both).unwrap();
    })
}

const BEGUN: &str = "fwhactl: capturing dropped packets, up to 256 bytes of each\n";

#[tokio::test]
async fn dropped_packets_are_lines_until_there_are_enough() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["capture", "--drops", "-c", "2"]).await;
    let told = "fwhactl: 2 packets captured, 5 skipped (too many at a time), 6 lost (read too slowly)\n";
    assert_eq!((run.code, run.stderr), (0, format!("{BEGUN}{told}")));
    assert_eq!(
        run.stdout,
        "2025-01-01 00:00:00.007Z  wan       no_rule          60  192.168.1.7:4000 > 10.0.0.1:22 tcp S\n\
         2025-01-01 00:00:00.007Z  lan       unfiltered       60  192.168.1.7:4000 > 10.0.0.1:22 tcp S\n"
    );
    let run = daemon.ctl(&["-o", "json", "capture", "--drops", "-c", "1"]).await;
    assert_eq!(serde_json::from_str::<DroppedPacket>(&run.stdout).unwrap(), dropped("no_rule"));

    let earlier = daemon.dir.path().join("earlier.pcapng");
    std::fs::write(&earlier, "an earlier capture").unwrap();
    let name = earlier.to_str().unwrap();
    let run = daemon.ctl(&["capture", "--drops", "--reason", "rule", "-w", name]).await;
    assert_eq!((run.code, run.stderr.as_str()), (1, "fwhactl: another capture is running\n"));
    assert_eq!(std::fs::read(&earlier).unwrap(), b"an earlier capture");
    for wrong in [&["capture"][..], &["capture", "--drops", "--reason", "bad luck"]] {
        assert_eq!(daemon.ctl(wrong).await.code, 2, "{wrong:?}");
    }
}

#[tokio::test]
async fn an_interrupted_capture_is_a_whole_file() {
    let daemon = FakeDaemon::start(status(), 0);
    let file = daemon.dir.path().join("drops.pcapng");
    let file = file.to_str().unwrap();
    let mut child = command(&daemon.socket(), &["capture", "--drops", "-w", file])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).await.unwrap();
    assert_eq!(line, BEGUN);
    // Three packets on two interfaces, of which the last is there as soon as it came.
    let written = async {
        loop {
            let bytes = std::fs::read(file).unwrap();
            if bytes.windows(8).filter(|w| *w == b"no_rule ").count() == 2 {
                return bytes;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let whole = tokio::time::timeout(Duration::from_secs(20), written).await.expect("three packets");
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    line.clear();
    said.read_line(&mut line).await.unwrap();
    assert!(line.starts_with("fwhactl: 3 packets captured, 5 skipped"), "{line}");
    assert!(child.wait().await.unwrap().success());
    assert_eq!(std::fs::read(file).unwrap(), whole);
    assert_eq!(std::fs::metadata(file).unwrap().permissions().mode() & 0o7777, 0o600);

    let piped = daemon.ctl_bytes(&["capture", "--drops", "-c", "3", "-w", "-"]).await;
    assert_eq!(piped, whole);
    let comment = b"no_rule at xdp: No rule admits the flow";
    assert!(whole.windows(comment.len()).any(|w| w == comment));
    let Some(dump) = tcpdump(&["-r", file]).await else { return };
    let packet =
        "00:00:00.007000001 IP 192.168.1.7.4000 > 10.0.0.1.22: Flags [S], seq 1, win 8192, length 0\n";
    assert_eq!(dump, packet.repeat(3));
}

#[tokio::test]
async fn a_capture_without_packets_is_a_file_that_can_be_read() {
    let daemon = FakeDaemon::start(status(), 0);
    let file = daemon.dir.path().join("drops.pcapng");
    let file = file.to_str().unwrap();
    let run = daemon.ctl(&["capture", "--drops", "--reason", "not_syn", "-c", "1", "-w", file]).await;
    assert_eq!(run.code, 0, "{}", run.stderr);
    if let Some(dump) = tcpdump(&["-r", file]).await {
        assert_eq!(dump, "");
    }
}

#[tokio::test]
async fn a_capture_that_finds_no_room_says_where_and_what_it_had() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["capture", "--drops", "-c", "3", "-w", "/dev/full"]).await;
    let [begun, told, error] = run.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{}", run.stderr) };
    assert_eq!((run.code, begun), (1, BEGUN.trim_end()));
    assert!(told.starts_with("fwhactl: 0 packets captured, "), "not even the file's beginning: {told}");
    assert!(error.starts_with("fwhactl: cannot write /dev/full: No space left on device"), "{error}");

    // A reader that has seen enough is still no error.
    let mut child = command(&daemon.socket(), &["capture", "--drops", "--reason", "unfiltered"]);
    child.stdout(std::io::pipe().unwrap().1).stderr(Stdio::null());
    let ended = tokio::time::timeout(Duration::from_secs(20), child.status()).await;
    assert!(ended.expect("it ends").unwrap().success());
}

#[tokio::test]
async fn a_capture_whose_output_is_blocked_is_ended_by_the_second_signal() {
    let daemon = FakeDaemon::start(status(), 0);
    for to in [&[][..], &["-w", "-"]] {
        let verb = [&["capture", "--drops", "--reason", "unfiltered"][..], to].concat();
        let mut child =
            command(&daemon.socket(), &verb).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed());
        until("the pipe to be full", || waits_to_write(pid)).await;
        kill(pid, Signal::SIGTERM).unwrap();
        // Until then a second one would be the first again.
        until("the first signal to be taken", || !is_pending(pid, Signal::SIGTERM)).await;
        kill(pid, Signal::SIGTERM).unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(20), child.wait()).await;
        assert_eq!(ended.expect("it ends").unwrap().code(), Some(128 + 15), "{verb:?}");
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether the first thread of a process sleeps in a write to standard output (`proc_pid_syscall(5)`).
fn waits_to_write(pid: Pid) -> bool {
    let call = std::fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
    call.starts_with(&format!("{} 0x1 ", libc::SYS_write))
}

/// Whether a signal was sent to a process that none of its threads has taken yet (`proc_pid_status(5)`).
fn is_pending(pid: Pid, signal: Signal) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:")).unwrap();
    u64::from_str_radix(pending.trim(), 16).unwrap() & (1 << (signal as i32 - 1)) != 0
}

/// What tcpdump prints, in UTC and ns; nothing if it is not there, which in CI is a failure.
async fn tcpdump(args: &[&str]) -> Option<String> {
    let mut command = Command::new("tcpdump");
    command.args(["-n", "--time-stamp-precision=nano"]).args(args).env("TZ", "UTC");
    match command.output().await {
        Ok(output) => {
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            Some(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "tcpdump must be there in CI: {error}");
            println!("skipped: needs tcpdump");
            None
        }
    }
}

#[tokio::test]
async fn switchover_says_where_to_or_why_not() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["switchover"]).await;
    assert_eq!((run.code, run.stdout.as_str()), (0, "gateway moved from fw1 to fw2 in 1.2 ms\n"));
    let run = daemon.ctl(&["-o", "json", "switchover", "gateway", "--to", "fw3"]).await;
    assert_eq!(run.stdout, "{\"group\":\"gateway\",\"from\":\"fw1\",\"to\":\"fw3\",\"took_ms\":1.25}\n");
    let run = daemon.ctl(&["switchover", "--to", "fw9"]).await;
    assert_eq!(
        (run.code, run.stdout.as_str(), run.stderr.as_str()),
        (1, "", "fwhactl: no node fw9 in the group: choose fw2\n")
    );
}

#[tokio::test]
async fn a_switchover_with_wait_ends_well_only_if_the_nodes_are_in_sync_after_it() {
    let moved = |sync: &str| {
        let mut status = status();
        status.groups[0].active = Some("fw2".into());
        status.peers[0].sync.state = sync.into();
        status
    };
    let run = FakeDaemon::start(moved("in-sync"), 0).ctl(&["switchover", "--wait"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let mut lost = moved("down");
    lost.peers[0].state = "dead".into();
    let run = FakeDaemon::start(lost, 0).ctl(&["switchover", "--wait"]).await;
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("not in sync with it: fw2 is dead, replication is down"), "{}", run.stderr);
    let run = FakeDaemon::start(status(), 0).ctl(&["switchover", "--wait"]).await;
    assert_eq!((run.code, run.stderr.as_str()), (1, "fwhactl: group gateway went on from fw2 to fw1\n"));
}

#[tokio::test]
async fn a_role_is_explained_in_sentences_or_as_an_object_a_line() {
    let daemon = FakeDaemon::start(status(), 0);
    let expected = "\
gateway: fw1 is active (nobody was active)
  if it is lost, fw2 takes over
  NODE  PRIORITY  STANDING
  fw1   200       active: this node
  fw2   90        could be active?[2J
  TRACKER  STATE  FOR   EFFECT                     LAST RESULT
  uplink   down   4.2s  lowers the priority by 50  no answer?[2J
";
    assert_eq!(daemon.ctl(&["explain", "role"]).await.stdout, expected);
    let run = daemon.ctl(&["-o", "json", "explain", "role"]).await;
    assert_eq!(serde_json::from_str::<RoleExplanation>(&run.stdout).unwrap(), explanation());
}

#[tokio::test]
async fn a_packet_is_explained_step_by_step_or_as_an_object() {
    let daemon = FakeDaemon::start(status(), 0);
    let ends = ["192.0.2.1:40000", "198.51.100.7:22"];
    let words = [&["explain", "packet", "--in", "lan", "--flags", "syn", "tcp"][..], &ends].concat();
    let expected = "\
tcp 192.0.2.1 Some(40000) > 198.51.100.7 Some(22) Some(\"syn\")
  assumed: a small packet
  STEP     RESULT  BECAUSE
  arrival  pass    by lan?[2J
  rules    drop    from lan to inet
verdict: dropped (no_rule), by default: no rule matches
";
    assert_eq!(daemon.ctl(&words).await.stdout, expected);
    let run = daemon.ctl(&["-o", "json", "explain", "packet", "esp", "2001:db8::1", "[2001:db8::7]"]).await;
    let steps = r#"[{"step":"arrival","result":"pass","text":"by lan\u001b[2J"},{"step":"rules","result":"drop","text":"from lan to inet"}]"#;
    let expected = format!(
        r#"{{"node":"fw1","packet":"esp 2001:db8::1 None > 2001:db8::7 None None","interface_in":"","zone_in":"lan","steps":{steps},"assumed":["a small packet"],"verdict":"dropped","reason":"no_rule"}}"#
    );
    assert_eq!(run.stdout, expected + "\n");
    let run = daemon.ctl(&["explain", "packet", "tcp", "host", "192.0.2.1:1"]).await;
    assert_eq!(run.code, 1);
    assert!(run.stderr.starts_with("fwhactl: \"host\" is not like 192.0.2.1,"), "{}", run.stderr);
}

#[tokio::test]
async fn standby_says_who_has_the_groups_and_every_verb_warns_of_it() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["standby", "on"]).await;
    assert_eq!(run.stdout, "gateway moved to fw2 in 1.2 ms\nfw1 is on standby\n");
    let run = daemon.ctl(&["standby", "on", "--force"]).await;
    assert_eq!(run.stdout, "gateway is with no node now in 1.2 ms\nfw1 is on standby\n");
    let run = daemon.ctl(&["standby", "off"]).await;
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("fw1 takes part again\n", ""));
    assert_eq!(daemon.ctl(&["standby"]).await.code, 2);

    let daemon = FakeDaemon::start(Status { standby: true, ..status() }, 0);
    for verb in [
        &["status"][..],
        &["flows"],
        &["flows", "count"],
        &["stats"],
        &["events"],
        &["switchover"],
        &["bulk"],
    ] {
        let run = daemon.ctl(verb).await;
        assert!(run.stderr.starts_with("fwhactl: warning: fw1 is on standby\n"), "{verb:?}: {}", run.stderr);
    }
    let run = daemon.ctl(&["-o", "json", "status"]).await;
    assert!(serde_json::from_str::<Status>(&run.stdout).unwrap().standby, "{}", run.stdout);
}

#[tokio::test]
async fn reload_says_what_changed_or_why_nothing_did() {
    let daemon = FakeDaemon::start(status(), 0);
    let run = daemon.ctl(&["reload", "--dry-run"]).await;
    assert_eq!((run.stdout.as_str(), run.code), ("rule \"web\" added\n", 0), "{}", run.stderr);
    let run = daemon.ctl(&["reload"]).await;
    let mistakes = "f.toml:3:1: unknown key \"x?\"\n  |\n1 mistake found: nothing was changed\n";
    assert_eq!((run.stderr.as_str(), run.stdout.as_str(), run.code), (mistakes, "", 1), "as `fwha check`");
    let run = daemon.ctl(&["reload", "--revalidate"]).await;
    assert_eq!((run.stdout.as_str(), run.code), ("rule \"web\" added (needs a restart)\n", 1));
    assert!(run.stderr.contains("nothing was changed: one change needs a restart"), "{}", run.stderr);
    let run = daemon.ctl(&["reload", "--revalidate", "-o", "json"]).await;
    let reply: ReloadReply = serde_json::from_str(&run.stdout).unwrap();
    assert!(!reply.applied && reply.changes[0].restart && run.code == 1 && run.stderr.is_empty());
    assert_eq!(daemon.ctl(&["reload", "--dry-run", "--revalidate"]).await.code, 2);
}

#[tokio::test]
async fn without_a_daemon_one_line_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("fwha.sock");
    let expected =
        |why| format!("fwhactl: no fwha daemon at {}: {why} (is \"fwha run\" up?)\n", socket.display());
    for verb in [
        &["status"][..],
        &["flows"],
        &["stats"],
        &["events", "--follow"],
        &["capture", "--drops"],
        &["switchover"],
        &["standby", "on"],
    ] {
        let run = fwhactl(&socket, verb).await;
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{verb:?}");
        assert_eq!(run.stderr, expected("no such socket"), "{verb:?}");
    }
    // What a killed daemon leaves.
    drop(StdListener::bind(&socket).unwrap());
    let run = fwhactl(&socket, &["status"]).await;
    assert_eq!((run.code, run.stderr), (1, expected("connection refused")));
}

#[tokio::test]
async fn a_daemon_that_answers_nonsense_or_breaks_off_is_named() {
    const BROKEN: &str = "broke off";
    for (answer, expected) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "is not understood: its version may be another"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "answered 404 Not Found to /v1/status"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{", BROKEN),
        ("", BROKEN),
    ] {
        for lives in [false, true] {
            let expected = match (expected, lives) {
                (BROKEN, false) => "has gone",
                (expected, _) => expected,
            };
            let dir = tempfile::tempdir().unwrap();
            let socket = dir.path().join("fwha.sock");
            let listener = StdListener::bind(&socket).unwrap();
            let after = lives.then(|| listener.try_clone().unwrap());
            let server = answer_once(listener, answer.to_owned(), lives);
            let run = fwhactl(&socket, &["status"]).await;
            server.join().unwrap();
            drop(after);
            assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{answer}");
            assert!(run.stderr.contains(expected) && run.stderr.lines().count() == 1, "{}", run.stderr);
        }
    }
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    // More than a pipe holds.
    let daemon = FakeDaemon::start(status(), 20_000);
    let mut child = command(&daemon.socket(), &["-o", "json", "flows"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().is_some());
    drop(lines);
    let output = child.wait_with_output().await.unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_changes_no_verdict() {
    let mut split = status();
    split.groups[0].also_active = vec!["fw2".into()];
    let (well, split) = (FakeDaemon::start(status(), 0), FakeDaemon::start(split, 0));
    for (daemon, verb, code) in [
        (&well, &["status"][..], 0),
        (&split, &["status"], 3),
        (&split, &["-o", "json", "status"], 3),
        (&well, &["flows", "diff"], 1),
        (&well, &["-o", "json", "flows", "diff"], 1),
        (&well, &["flows", "diff", "--peer", "fw4"], 1),
        (&well, &["bulk", "--wait"], 1),
        (&well, &["-o", "json", "bulk", "--wait"], 1),
        (&well, &["reload"], 1),
        (&well, &["reload", "--dry-run"], 0),
        (&well, &["reload", "--revalidate"], 1),
        (&well, &["switchover", "--wait"], 1),
    ] {
        // Nobody reads either.
        let closed = || std::io::pipe().unwrap().1;
        let run = command(&daemon.socket(), verb).stdout(closed()).stderr(closed()).status().await.unwrap();
        assert_eq!(run.code(), Some(code), "{verb:?}");
    }
}

#[tokio::test]
async fn watch_draws_again() {
    let daemon = FakeDaemon::start(status(), 0);
    let mut child = command(&daemon.socket(), &["-o", "json", "status", "--watch"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        let line = lines.next_line().await.unwrap().unwrap();
        assert_eq!(serde_json::from_str::<Status>(&line).unwrap(), status());
    }
    child.kill().await.unwrap();
}

#[tokio::test]
async fn keygen_makes_a_private_key_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("cluster.key");
    let name = file.to_str().unwrap();
    // Needs no daemon.
    let run = fwhactl(Path::new("/nonexistent"), &["keygen", name]).await;
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    fwha::config::key::read(&file).unwrap();
    let run = fwhactl(Path::new("/nonexistent"), &["-o", "json", "keygen", "--rotate", name]).await;
    let said: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(said, serde_json::json!({ "file": name, "done": "rotated" }));
    let before = std::fs::read(&file).unwrap();
    let run = fwhactl(Path::new("/nonexistent"), &["keygen", name]).await;
    assert_eq!(
        (run.code, run.stderr),
        (
            1,
            format!(
                "fwhactl: {name} exists already; a key is never overwritten (move it away first, or choose another name)\n"
            )
        )
    );
    assert_eq!(std::fs::read(&file).unwrap(), before);
}

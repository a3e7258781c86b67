//! Programs that people use, through the running cluster and to its nodes, at both hooks and in both families.

mod rig;
mod servers;

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etherparse::{SlicedPacket, TcpOptionElement, TransportSlice};
use fwha_tests::frames::{Ip, Tcp, flag};
use fwha_tests::lab::{Attach, Host, Node};
use fwha_tests::pair::PATIENCE;
use fwha_tests::root::skip_for_kernel;
use fwha_tests::sys::{Feature, packet_socket, set_feature};
use nix::errno::Errno;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

use rig::{CLAMPED, Family, PROXIED, REJECTED, Rig, Running, Scenario, play};

/// All in one lab for each hook, because to settle takes a pair longer than most of them do.
const SCENARIOS: [Scenario; 8] = [
    Scenario {
        name: "files arrive intact",
        programs: &[
            ("curl", "curl"),
            ("scp", "openssh-client"),
            ("ssh-keygen", "openssh-client"),
            ("sshd", "openssh-server"),
        ],
        play: files_arrive_intact,
    },
    Scenario {
        name: "streams and datagrams flow both ways",
        programs: &[("iperf3", "iperf3")],
        play: streams_and_datagrams_flow_both_ways,
    },
    Scenario {
        name: "the way and names are found",
        programs: &[("traceroute", "traceroute"), ("dig", "bind9-dnsutils")],
        play: the_way_and_names_are_found,
    },
    Scenario { name: "SCTP associations carry messages", programs: &[], play: sctp },
    Scenario {
        name: "nodes serve and ask for themselves",
        programs: &[
            ("ssh", "openssh-client"),
            ("ssh-keygen", "openssh-client"),
            ("sshd", "openssh-server"),
            ("dig", "bind9-dnsutils"),
        ],
        play: nodes_serve_and_ask_for_themselves,
    },
    Scenario {
        name: "the unwanted are told or dropped",
        programs: &[],
        play: the_unwanted_are_told_or_dropped,
    },
    Scenario {
        name: "connections are opened by way of the SYN proxy",
        programs: &[("curl", "curl")],
        play: connections_are_opened_by_way_of_the_syn_proxy,
    },
    // The last, for it makes the way out narrow.
    Scenario {
        name: "echoes of any size return and too long ones are reported",
        programs: &[("ping", "iputils-ping")],
        play: echoes_of_any_size_return_and_too_long_ones_are_reported,
    },
];

#[test]
fn programs_work_through_the_cluster_by_tc() {
    play(Attach::Tc, &SCENARIOS);
}

#[test]
fn programs_work_through_the_cluster_by_xdp() {
    play(Attach::Xdp, &SCENARIOS);
}

/// Bytes that no pattern makes up for when some are lost.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 1u64;
    let words = std::iter::repeat_with(|| {
        // Knuth's MMIX generator; its high bits are the good ones.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    });
    let mut bytes: Vec<u8> = Vec::with_capacity(length + 4);
    words.take(length.div_ceil(4)).for_each(|word| bytes.extend(word.to_ne_bytes()));
    bytes.truncate(length);
    bytes
}

/// A URL's or scp's way to write an address.
fn bracketed(address: &str) -> String {
    if address.contains(':') { format!("[{address}]") } else { address.to_owned() }
}

/// sshd with keys of its own, on a box.
struct Sshd {
    _sshd: Running,
    /// `ssh` options that name the client's key.
    options: Vec<String>,
}

impl Sshd {
    fn start(rig: &Rig<'_>, host: Host) -> Result<Self> {
        let dir = rig.dir.path().join(format!("ssh-{}", host.name()));
        fs::create_dir(&dir)?;
        let path = |name: &str| dir.join(name).display().to_string();
        let (host_key, key, config) = (path("host-key"), path("key"), path("sshd_config"));
        for key in [&host_key, &key] {
            rig.run(host, &["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key])?;
        }
        fs::write(
            &config,
            format!(
                "Port 22\nHostKey {host_key}\nAuthorizedKeysFile {key}.pub\nStrictModes no\nUsePAM no\nPidFile none\n\
                 PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
            ),
        )?;
        // sshd wants an empty /run/sshd, here one that nobody else sees, and to be called by its whole path.
        let start = "mount -t tmpfs tmpfs /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -f \"$0\"";
        let sshd = rig.serve(host, &["unshare", "--mount", "sh", "-c", start, &config])?;
        rig.wait_for_listener(host, 22)?;
        let options = [
            "IdentitiesOnly=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "LogLevel=ERROR",
        ];
        let mut options: Vec<String> = options.iter().map(|option| format!("-o{option}")).collect();
        options.extend(["-F".into(), "none".into(), "-i".into(), key]);
        Ok(Self { _sshd: sshd, options })
    }

    /// A command line of `ssh` or `scp` from the client.
    fn run(&self, rig: &Rig<'_>, program: &str, arguments: &[&str]) -> Result<String> {
        let mut argv = vec![program];
        argv.extend(self.options.iter().map(String::as_str));
        argv.extend(arguments);
        rig.run(Host::Client, &argv)
    }
}

fn files_arrive_intact(rig: &Rig<'_>) -> Result<()> {
    let file = noise(20 << 20);
    let path = |name: &str| rig.dir.path().join(name).display().to_string();
    let (here, there, back) = (path("here"), path("there"), path("back"));
    fs::write(&here, &file)?;
    servers::http(rig.lab, Host::Server, 80, file.clone())?;
    let sshd = Sshd::start(rig, Host::Server)?;
    let arrived = |path: &str| -> Result<()> {
        ensure!(fs::read(path)? == file, "the file arrives altered");
        Ok(fs::remove_file(path)?)
    };
    for family in Family::ALL {
        let server = bracketed(family.server());
        rig.without_drops("curl", || {
            download(rig, &format!("http://{server}/file"), &there)?;
            arrived(&there)
        })?;
        rig.without_drops("scp", || {
            sshd.run(rig, "scp", &["-q", &here, &format!("root@{server}:{there}")])?;
            sshd.run(rig, "scp", &["-q", &format!("root@{server}:{there}"), &back])?;
            arrived(&there)?;
            arrived(&back)
        })?;
    }
    ensure!(rig.pair.node(rig.active).count("rules.lan-out-6")? >= 3, "the rule for IPv6 has no hits");
    Ok(())
}

/// Has curl fetch a file at the client.
fn download(rig: &Rig<'_>, url: &str, to: &str) -> Result<()> {
    let options = ["--silent", "--show-error", "--fail", "--noproxy", "*", "--globoff"];
    let argv = [&["curl"], &options[..], &["-o", to, url]].concat();
    rig.run(Host::Client, &argv).map(drop)
}

fn streams_and_datagrams_flow_both_ways(rig: &Rig<'_>) -> Result<()> {
    let runs: Vec<(Family, &[&str], u16)> = Family::ALL
        .into_iter()
        .flat_map(|family| [(family, &[][..]), (family, &["-R"])])
        .zip(5201..)
        .map(|((family, direction), port)| (family, direction, port))
        .collect();
    let mut servers = Vec::new();
    for (.., port) in &runs {
        servers.push(rig.serve(Host::Server, &["iperf3", "-s", "-p", &port.to_string()])?);
        rig.wait_for_listener(Host::Server, *port)?;
    }
    for protocol in [&[][..], &["-u", "-b", "20M"]] {
        // Who closes while data is on its way to him resets it by the number that it acknowledges. By then his FIN may be
        // acknowledged, too: such a reset lies below that, and its receiver would not take it either.
        // Both families and directions at once: it takes a quarter of the time.
        rig.without_drops_but("tcp_reset", &format!("iperf3 {}", protocol.join(" ")), || {
            thread::scope(|scope| {
                let running: Vec<_> = (runs.iter())
                    .map(|(family, direction, port)| {
                        scope.spawn(|| stream(rig, *family, *port, &[protocol, direction].concat()))
                    })
                    .collect();
                running
                    .into_iter()
                    .try_for_each(|run| run.join().unwrap_or_else(|_| bail!("iperf3's thread panicked")))
            })
        })?;
    }
    Ok(())
}

/// One run of iperf3, in which data must arrive.
fn stream(rig: &Rig<'_>, family: Family, port: u16, options: &[&str]) -> Result<()> {
    let port = port.to_string();
    let argv =
        [&["iperf3", family.option(), "-c", family.server(), "-p", &port, "-t", "2", "-J"], options].concat();
    let report: Value = serde_json::from_str(&rig.run(Host::Client, &argv)?)?;
    let number = |pointer: &str| report.pointer(pointer).and_then(Value::as_f64);
    let arrived = match number("/end/sum_received/bytes") {
        Some(bytes) if bytes > 0.0 => bytes,
        // UDP in versions that have one sum of both ends.
        _ => number("/end/sum/packets")
            .zip(number("/end/sum/lost_packets"))
            .map_or(0.0, |(sent, lost)| sent - lost),
    };
    ensure!(arrived > 0.0, "{family:?}: nothing arrived: {}", report["end"]);
    Ok(())
}

fn echoes_of_any_size_return_and_too_long_ones_are_reported(rig: &Rig<'_>) -> Result<()> {
    for family in Family::ALL {
        for size in ["56", "1472", "4000", "20000"] {
            rig.without_drops(&format!("ping {} -s {size}", family.option()), || {
                let argv = [
                    "ping",
                    family.option(),
                    "-n",
                    "-c",
                    "2",
                    "-i",
                    "0.2",
                    "-W",
                    "2",
                    "-s",
                    size,
                    family.server(),
                ];
                let said = rig.run(Host::Client, &argv)?;
                ensure!(said.contains("2 received"), "{said}");
                Ok(())
            })?;
        }
    }

    // The way out of the Active becomes narrow; the server does not know.
    rig.lab.exec(rig.active.host(), &["ip", "link", "set", "wan", "mtu", "1400"])?;
    servers::sink(rig.lab, Host::Server, CLAMPED)?;
    servers::sink(rig.lab, Host::Server, 83)?;
    for family in Family::ALL {
        let headers = if family == Family::V4 { 40 } else { 60 };
        let (at_client, at_server) = (Wire::open(rig, Host::Client)?, Wire::open(rig, Host::Server)?);
        upload(rig, family, CLAMPED)?;
        let (answer, request) = (at_client.mss(rig)?, at_server.mss(rig)?);
        ensure!(
            [request, answer] == [1400 - headers; 2],
            "{family:?}: SYN and SYN+ACK carry {request} and {answer}"
        );

        let argv = [
            "ping",
            family.option(),
            "-n",
            "-c",
            "2",
            "-i",
            "0.3",
            "-W",
            "1",
            "-M",
            "do",
            "-s",
            "1440",
            family.server(),
        ];
        let output = rig.try_run(Host::Client, &argv)?;
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let told = ["Frag needed", "message too long", "Message too long", "Packet too big"];
        ensure!(!output.status.success() && told.iter().any(|words| said.contains(words)), "{said}");
        ensure!(said.contains("1400"), "{family:?}: the MTU of the way out is not named: {said}");

        // Forget it: the connection is to find out by itself.
        rig.lab.exec(Host::Client, &["ip", family.option(), "route", "flush", "cache"])?;
        let at_server = Wire::open(rig, Host::Server)?;
        rig.without_drops("path MTU discovery", || upload(rig, family, 83))?;
        let mss = at_server.mss(rig)?;
        ensure!(mss == 1500 - headers, "{family:?}: without the rule's `mss` a SYN carries {mss}");
    }
    Ok(())
}

/// A connection of the client to the server.
fn connect(rig: &Rig<'_>, family: Family, port: u16) -> Result<TcpStream> {
    let to = SocketAddr::new(family.server().parse()?, port);
    let stream = rig.lab.within(Host::Client, || TcpStream::connect_timeout(&to, PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends 4 MiB from the client, all of which must arrive.
fn upload(rig: &Rig<'_>, family: Family, port: u16) -> Result<()> {
    let data = noise(4 << 20);
    let mut stream = connect(rig, family, port)?;
    stream.write_all(&data)?;
    stream.shutdown(Shutdown::Write)?;
    let mut arrived = String::new();
    stream.read_to_string(&mut arrived).context("the server's answer")?;
    ensure!(arrived == data.len().to_string(), "{arrived} of {} bytes arrived", data.len());
    Ok(())
}

/// What arrives at a box.
struct Wire(OwnedFd);

impl Wire {
    fn open(rig: &Rig<'_>, host: Host) -> Result<Self> {
        Ok(Self(rig.lab.within(host, || packet_socket("eth0"))??))
    }

    /// The maximum segment size in the first SYN or SYN+ACK that arrived.
    fn mss(&self, rig: &Rig<'_>) -> Result<u16> {
        let mut frame = [0; 65_600];
        rig.lab.wait_for("a SYN on the wire", Duration::from_secs(2), || {
            while let Ok(length) = nix::unistd::read(&self.0, &mut frame) {
                let Ok(packet) = SlicedPacket::from_ethernet(&frame[..length]) else { continue };
                let Some(TransportSlice::Tcp(tcp)) = packet.transport else { continue };
                let mss = tcp.options_iterator().flatten().find_map(|option| match option {
                    TcpOptionElement::MaximumSegmentSize(mss) => Some(mss),
                    _ => None,
                });
                if let (true, Some(mss)) = (tcp.syn(), mss) {
                    return Ok(Some(mss));
                }
            }
            Ok(None)
        })
    }
}

fn the_way_and_names_are_found(rig: &Rig<'_>) -> Result<()> {
    for family in Family::ALL {
        let way = [rig.active.lan_addresses()[family as usize], family.server()];
        for method in [&[][..], &["-I"], &["-T"]] {
            let options = ["traceroute", family.option(), "-n", "-q", "1", "-w", "2", "-m", "3"];
            let argv = [&options[..], method, &[family.server()]].concat();
            rig.without_drops(&argv.join(" "), || {
                let said = rig.run(Host::Client, &argv)?;
                let hops: Vec<&str> =
                    said.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
                ensure!(hops == way, "{said}");
                Ok(())
            })?;
        }
        rig.without_drops("dig", || {
            ask(rig, Host::Client, family, &[])?;
            ask(rig, Host::Client, family, &["+tcp"])
        })?;
    }
    Ok(())
}

/// Asks the server's DNS from a box.
fn ask(rig: &Rig<'_>, host: Host, family: Family, options: &[&str]) -> Result<()> {
    let server = format!("@{}", family.server());
    let argv = [&["dig", "+short", "+time=2", "+tries=1", &server, "fwha.example", "A"], options].concat();
    let said = rig.run(host, &argv)?;
    ensure!(said.trim() == Ipv4Addr::from(servers::ANSWER).to_string(), "{said}");
    Ok(())
}

/// An SCTP association over which a message goes to the server and back.
fn sctp(rig: &Rig<'_>) -> Result<()> {
    const PORT: u16 = 5000;
    for family in Family::ALL {
        let server = SocketAddr::new(family.server().parse()?, PORT);
        let open = || Socket::new(Domain::for_address(server), Type::STREAM, Some(Protocol::SCTP));
        let listener = match rig.lab.within(Host::Server, open)? {
            Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
                skip_for_kernel("SCTP (CONFIG_IP_SCTP)");
                return Ok(());
            }
            listener => listener?,
        };
        listener.bind(&server.into())?;
        listener.listen(1)?;
        rig.without_drops("SCTP", || {
            let mut client = rig.lab.within(Host::Client, open)??;
            client.connect_timeout(&server.into(), PATIENCE)?;
            let (mut served, _) = listener.accept()?;
            let mut message = [0; 4];
            client.write_all(b"ping")?;
            served.read_exact(&mut message)?;
            served.write_all(&message)?;
            client.read_exact(&mut message)?;
            ensure!(message == *b"ping", "the message comes back altered");
            Ok(())
        })?;
    }
    Ok(())
}

fn nodes_serve_and_ask_for_themselves(rig: &Rig<'_>) -> Result<()> {
    for node in Node::ALL {
        let sshd = Sshd::start(rig, node.host())?;
        for family in Family::ALL {
            let own = node.lan_addresses()[family as usize];
            let said = sshd.run(rig, "ssh", &[&format!("root@{own}"), "echo", "$SSH_CONNECTION"])?;
            ensure!(said.split_whitespace().nth(2) == Some(own), "{node}: {said}");
            ask(rig, node.host(), family, &[]).with_context(|| format!("{node} asks over UDP"))?;
            ask(rig, node.host(), family, &["+tcp"]).with_context(|| format!("{node} asks over TCP"))?;
            for (address, port) in [(own, 22), (node.wan_addresses()[family as usize], 53)] {
                ensure!(
                    !rig.flows(node, address, port)?.is_empty(),
                    "{node} does not list {address}, port {port}"
                );
                let told = rig.flows(node.peer(), address, port)?;
                ensure!(told.is_empty(), "{} knows flows of {node} itself: {told:?}", node.peer());
            }
        }
    }
    Ok(())
}

fn the_unwanted_are_told_or_dropped(rig: &Rig<'_>) -> Result<()> {
    let active = rig.pair.node(rig.active);
    // At tc a packet's checksum may be left to the hardware that it leaves by; here that leaves it to the kernel.
    let finish = |on| rig.lab.within(rig.active.host(), || set_feature("lan", Feature::TxChecksum, on));
    finish(false)??;
    for family in Family::ALL {
        let to = SocketAddr::new(family.server().parse()?, REJECTED);
        let rejected = active.count("flows.rejected")?;
        let begun = Instant::now();
        let tried = rig.lab.within(Host::Client, || TcpStream::connect_timeout(&to, PATIENCE))?;
        let kind = tried.err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{to}, TCP: {kind:?}");
        // A SYN that is not answered is sent again after a second.
        ensure!(begun.elapsed() < Duration::from_secs(1), "refused only after {:?}", begun.elapsed());

        let any = SocketAddr::new(family.client().parse()?, 0);
        let socket = rig.lab.within(Host::Client, || UdpSocket::bind(any))??;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.send(b"fwha")?;
        let kind = socket.recv(&mut [0; 16]).err().map(|error| error.kind());
        ensure!(kind == Some(ErrorKind::ConnectionRefused), "{to}, UDP: {kind:?}");
        let told = active.count("flows.rejected")? - rejected;
        ensure!(told == 2, "{family:?}: {told} rejected, not 2");

        // A source of the other side's network.
        let spoofed = active.count("drops.spoofed")?;
        let false_source = if family == Family::V4 { "10.0.0.77" } else { "fd00:10::77" };
        let prefix = if family == Family::V4 { "/32" } else { "/128" };
        rig.lab
            .exec(Host::Client, &["ip", "addr", "add", &format!("{false_source}{prefix}"), "dev", "lo"])?;
        let from = SocketAddr::new(false_source.parse::<IpAddr>()?, 0);
        // A new address of IPv6 is not there at once.
        let socket = rig.lab.wait_for("the false source", PATIENCE, || {
            Ok(Some(rig.lab.within(Host::Client, || UdpSocket::bind(from))??))
        })?;
        socket.send_to(b"fwha", SocketAddr::new(to.ip(), 5000))?;
        rig.pair.wait_for_count(rig.lab, rig.active, "drops.spoofed", spoofed)?;
    }
    Ok(finish(true)??)
}

fn connections_are_opened_by_way_of_the_syn_proxy(rig: &Rig<'_>) -> Result<()> {
    const GREETING: &str = "server first";
    let [http, sink, greeter, nobody] = PROXIED;
    let active = rig.pair.node(rig.active);
    let file = noise(4 << 20);
    servers::http(rig.lab, Host::Server, http, file.clone())?;
    servers::sink(rig.lab, Host::Server, sink)?;
    servers::greeter(rig.lab, Host::Server, greeter, GREETING)?;
    let there = rig.dir.path().join("proxied").display().to_string();
    let counts = || -> Result<[u64; 2]> {
        Ok([active.count("flows.syn_answered")?, active.count("flows.syn_proxied")?])
    };
    for family in Family::ALL {
        let before = counts()?;
        rig.without_drops("the SYN proxy", || {
            download(rig, &format!("http://{}:{http}/file", bracketed(family.server())), &there)?;
            ensure!(fs::read(&there)? == file, "the file arrives altered");
            upload(rig, family, sink)?;
            let mut stream = connect(rig, family, greeter)?;
            let mut greeting = String::new();
            stream.read_to_string(&mut greeting)?;
            ensure!(greeting == GREETING, "{greeting:?} is no greeting");
            // Only the server can say that nobody is there, and by then the client is connected.
            let refused = connect(rig, family, nobody).and_then(|mut stream| Ok(stream.read(&mut [0])?));
            let refused = refused.map_err(|error| error.downcast::<std::io::Error>().map(|e| e.kind()));
            ensure!(matches!(refused, Err(Ok(ErrorKind::ConnectionReset))), "{refused:?}");
            Ok(())
        })?;
        let rise = [counts()?[0] - before[0], counts()?[1] - before[1]];
        ensure!(rise == [4, 4], "{family:?}: {rise:?} SYNs answered and connections made");
    }
    flood(rig, http)
}

/// SYNs from all over the client's network leave nothing behind.
fn flood(rig: &Rig<'_>, port: u16) -> Result<()> {
    const SYNS: u64 = 5000;
    let active = rig.pair.node(rig.active);
    let counts = ["flows.syn_answered", "flows.embryonic", "flows.flows_created"];
    let read = || counts.into_iter().map(|counter| active.count(counter)).collect::<Result<Vec<_>>>();
    let before = read()?;
    let server: Ipv4Addr = Family::V4.server().parse()?;
    // A header of one's own goes with it (raw(7)).
    let raw = Some(Protocol::from(libc::IPPROTO_RAW));
    let socket = rig.lab.within(Host::Client, || Socket::new(Domain::IPV4, Type::RAW, raw))??;
    for n in 0..SYNS {
        let source = Ipv4Addr::new(192, 168, 100, 128 + (n % 100) as u8);
        let syn = Tcp { ports: (1024 + n as u16, port), seq: n as u32, flags: flag::SYN, ..Tcp::default() };
        let ip = Ip::new(([0; 6], [0; 6]), source, server);
        let frame = ip.frame(libc::IPPROTO_TCP as u8, &ip.tcp(&syn));
        socket.send_to(&frame[14..], &SocketAddr::new(server.into(), 0).into())?;
    }
    rig.pair.wait_for_count(rig.lab, rig.active, counts[0], before[0] + SYNS - 1)?;
    let rise: Vec<u64> = read()?.iter().zip(before).map(|(after, before)| after - before).collect();
    ensure!(rise == [SYNS, 0, 0], "{counts:?} have risen by {rise:?}");
    Ok(())
}

//! Asking whether somebody is there: ICMP echo, ARP, neighbour solicitation, TCP.
//!
//! Each question has a socket of its own, opened for it: what has changed since the last one (routes,
//! addresses, interfaces) is never in the way. The caller limits the time.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;

use crate::socket::checksum;
use crate::sys::random::random_u64;
use crate::sys::socket::{Arrival, packet_socket, receive, set_option};
use crate::sys::watch::Watch;

/// Arrivals that are looked at before the caller's clock has its turn.
const BURST: usize = 32;
/// `ICMP_FILTER` of `SOL_RAW` (raw(7)): a bit for each type that is not wanted.
const ICMP_FILTER: (i32, i32) = (255, 1);
const ETHERTYPE_ARP: u16 = 0x0806;
/// Length of an ARP packet for IPv4 with its Ethernet header.
const ARP_LEN: usize = 42;
/// From the hardware type on, to the operation.
const ARP_REPLY: [u8; 8] = [0, 1, 0x08, 0, 6, 4, 0, 2];
/// Length of an ICMP echo message with eight bytes of data.
const ECHO_LEN: usize = 16;
/// Length of a neighbour solicitation with one option.
const SOLICITATION_LEN: usize = 32;
/// The hop limit of neighbour discovery (RFC 4861, 7.1): less came from beyond the link.
const HOPS: u8 = 255;

/// Who asks, on a link.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    /// The interface.
    pub ifindex: u32,
    /// Its MAC.
    pub mac: [u8; 6],
    /// The node's address there; unspecified if it has none, which is how RFC 5227 asks.
    pub address: Ipv4Addr,
    /// The node's link-local address there.
    pub link_local: Ipv6Addr,
}

/// Waits until a host answers an echo request (RFC 792, RFC 4443).
///
/// # Errors
/// No route to it, or it refuses; `EPERM` without `CAP_NET_RAW`.
pub async fn ping(target: IpAddr) -> io::Result<()> {
    let (domain, protocol, request, reply) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, 8, 0),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, 128, 129),
    };
    let socket = Socket::new(domain, Type::RAW.nonblocking().cloexec(), Some(protocol))?;
    if target.is_ipv4() {
        set_option(&socket, ICMP_FILTER.0, ICMP_FILTER.1, !(1 << reply))?;
    }
    // From here on it hears this host alone.
    socket.connect(&SocketAddr::new(target, 0).into())?;
    let mut echo = [0; ECHO_LEN];
    // Identifier, sequence number and data are one number: that of this question.
    echo[4..12].copy_from_slice(&random_u64()?.to_be_bytes());
    echo[0] = request;
    if target.is_ipv4() {
        let checksum = checksum(&echo);
        echo[2..4].copy_from_slice(&checksum.to_be_bytes());
    }
    socket.send(&echo)?;
    hear(&socket, |packet, _| {
        // Of IPv4 a raw socket has the header, too.
        let header = if target.is_ipv4() { usize::from(packet.first().unwrap_or(&0) & 0xf) * 4 } else { 0 };
        let message = packet.get(header..).unwrap_or(&[]);
        message.first() == Some(&reply) && message.get(4..ECHO_LEN) == Some(&echo[4..])
    })
    .await
}

/// Waits until a port accepts a connection, which is closed again.
///
/// # Errors
/// It refuses; no route to it.
pub async fn connect(target: SocketAddr) -> io::Result<()> {
    TcpStream::connect(target).await.map(drop)
}

/// Waits until a neighbour answers ARP, or for IPv6 a neighbour solicitation.
///
/// # Errors
/// The interface is down or gone; `EPERM` without `CAP_NET_RAW`.
pub async fn neighbour(asker: Asker, target: IpAddr) -> io::Result<()> {
    match target {
        IpAddr::V4(target) => arp(asker, target).await,
        IpAddr::V6(target) => solicit(asker, target).await,
    }
}

/// ```text
///   0  ff:ff:ff:ff:ff:ff      6  MAC          12  0x0806
///  14  1 (Ethernet)  16  0x0800  18  6  19  4  20  1 request, 2 reply
///  22  MAC           28  sender  32  0 (6)     38  target     42  end
/// ```
fn arp_request(asker: Asker, target: Ipv4Addr) -> [u8; ARP_LEN] {
    let mut frame = [0; ARP_LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&asker.mac);
    frame[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&asker.mac);
    frame[28..32].copy_from_slice(&asker.address.octets());
    frame[38..].copy_from_slice(&target.octets());
    frame
}

async fn arp(asker: Asker, target: Ipv4Addr) -> io::Result<()> {
    let socket = packet_socket(asker.ifindex, ETHERTYPE_ARP)?;
    socket.send(&arp_request(asker, target))?;
    hear(&socket, |frame, _| {
        frame.get(14..22) == Some(&ARP_REPLY) && frame.get(28..32) == Some(&target.octets())
    })
    .await
}

/// Asks neighbours by ARP, now and after half of the time, and listens until it is over: which of them answered, and which
/// of these MACs spoke.
///
/// # Errors
/// The interface is down or gone; `EPERM` without `CAP_NET_RAW`.
pub async fn survey(
    asker: Asker,
    targets: &[Ipv4Addr],
    macs: &[[u8; 6]],
    time: Duration,
) -> io::Result<(BTreeSet<Ipv4Addr>, BTreeSet<[u8; 6]>)> {
    let socket = packet_socket(asker.ifindex, ETHERTYPE_ARP)?;
    let (mut answered, mut heard) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..2 {
        for &target in targets {
            socket.send(&arp_request(asker, target))?;
        }
        let listen = hear(&socket, |frame, _| {
            let (source, reply) = (frame.get(6..12), frame.get(14..22) == Some(&ARP_REPLY));
            heard.extend(macs.iter().filter(|mac| source == Some(&mac[..])));
            let sender = frame.get(28..32).filter(|_| reply);
            answered.extend(targets.iter().filter(|target| sender == Some(&target.octets())));
            false
        });
        // It listens until its time is over.
        if let Ok(Err(error)) = tokio::time::timeout(time / 2, listen).await {
            return Err(error);
        }
    }
    Ok((answered, heard))
}

/// RFC 4861, 4.3 and 4.4, to the solicited-node group of the target (RFC 4291, 2.7.1).
///
/// ```text
///   0  135 solicitation, 136 advertisement   1  0   2  checksum (the kernel's)   4  flags or 0
///   8  target   24  1 (source link-layer address)   25  1   26  MAC   32  end
/// ```
async fn solicit(asker: Asker, target: Ipv6Addr) -> io::Result<()> {
    let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking().cloexec(), Some(Protocol::ICMPV6))?;
    socket.bind_device_by_index_v6(std::num::NonZeroU32::new(asker.ifindex))?;
    socket.set_multicast_if_v6(asker.ifindex)?;
    socket.set_multicast_hops_v6(HOPS.into())?;
    set_option(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
    if !asker.link_local.is_unspecified() {
        socket.bind(&SocketAddrV6::new(asker.link_local, 0, 0, asker.ifindex).into())?;
    }
    let last = target.segments();
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | last[6] & 0xff, last[7]);
    let mut message = [0; SOLICITATION_LEN];
    message[0] = 135;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[1, 1]);
    message[26..].copy_from_slice(&asker.mac);
    socket.send_to(&message, &SocketAddrV6::new(group, 0, 0, asker.ifindex).into())?;
    hear(&socket, |message, arrival| {
        let advertised = message.first() == Some(&136) && message.get(8..24) == Some(&target.octets());
        advertised && arrival.ttl == Some(HOPS)
    })
    .await
}

/// Waits for what is `wanted`.
async fn hear(socket: &Socket, mut wanted: impl FnMut(&[u8], &Arrival) -> bool) -> io::Result<()> {
    let watch = Watch::new(socket.as_fd())?;
    let mut buffer = [0; 256];
    loop {
        let mut guard = watch.readable().await?;
        for _ in 0..BURST {
            let Some(arrival) = receive(socket, &mut buffer)? else {
                guard.clear_ready();
                break;
            };
            if wanted(&buffer[..arrival.len], &arrival) {
                return Ok(());
            }
        }
        drop(guard);
        tokio::task::yield_now().await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::testing::{Net, root};

    /// Runs a question in a namespace; whether it was answered within a short time.
    fn ask(net: &Net, question: impl Future<Output = io::Result<()>> + Send) -> Result<bool, io::ErrorKind> {
        net.within(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                match tokio::time::timeout(Duration::from_millis(300), question).await {
                    Ok(answer) => answer.map(|()| true).map_err(|error| error.kind()),
                    Err(_) => Ok(false),
                }
            })
        })
    }

    #[test]
    fn who_is_there_answers_and_who_is_not_does_not() {
        if !root() {
            return;
        }
        let (near, far) = Net::pair();
        near.ip("address add fd09::1/64 dev near nodad");
        near.ip("address add fe80::a/64 dev near nodad");
        far.ip("address add fd09::2/64 dev far nodad");
        let asker = Asker {
            ifindex: near.ifindex("near"),
            mac: near.mac("near"),
            address: Ipv4Addr::new(10, 9, 0, 1),
            link_local: "fe80::a".parse().unwrap(),
        };
        for (there, nobody) in [("10.9.0.2", "10.9.0.3"), ("fd09::2", "fd09::3")] {
            let (there, nobody) = (there.parse().unwrap(), nobody.parse().unwrap());
            assert_eq!(ask(&near, ping(there)), Ok(true), "{there}");
            assert_eq!(ask(&near, neighbour(asker, there)), Ok(true), "{there}");
            assert_eq!(ask(&near, ping(nobody)), Ok(false), "{nobody}");
            assert_eq!(ask(&near, neighbour(asker, nobody)), Ok(false), "{nobody}");
            let listener = far.within(|| TcpListener::bind((there, 0)).unwrap());
            let port = listener.local_addr().unwrap();
            assert_eq!(ask(&near, connect(port)), Ok(true), "{port}");
            drop(listener);
            assert_eq!(ask(&near, connect(port)), Err(io::ErrorKind::ConnectionRefused), "{port}");
        }
        let unnumbered = Asker { address: Ipv4Addr::UNSPECIFIED, ..asker };
        assert_eq!(ask(&near, neighbour(unnumbered, "10.9.0.2".parse().unwrap())), Ok(true));
        near.ip("route add unreachable 10.8.0.0/16");
        assert_eq!(ask(&near, ping("10.8.0.1".parse().unwrap())), Err(io::ErrorKind::HostUnreachable));
    }

    #[test]
    fn a_survey_tells_who_answers_and_who_speaks() {
        if !root() {
            return;
        }
        let (near, far) = Net::pair();
        let asker = |net: &Net, name: &str, last: u8| Asker {
            ifindex: net.ifindex(name),
            mac: net.mac(name),
            address: Ipv4Addr::new(10, 9, 0, last),
            link_local: Ipv6Addr::UNSPECIFIED,
        };
        let (here, there) = (asker(&near, "near", 1), asker(&far, "far", 2));
        let (answers, silent) = (Ipv4Addr::new(10, 9, 0, 2), Ipv4Addr::new(10, 9, 0, 3));
        let run = |net: &Net, asker: Asker, targets: &[Ipv4Addr], macs: &[[u8; 6]]| {
            net.within(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(survey(asker, targets, macs, Duration::from_millis(200))).unwrap()
            })
        };
        let (answered, heard) = run(&near, here, &[answers, silent], &[there.mac, [2; 6]]);
        assert_eq!((answered, heard), ([answers].into(), [there.mac].into()));
        // The other end asks and is heard, and answers nothing itself.
        far.ip("link set far arp off");
        let (answered, heard) = std::thread::scope(|scope| {
            let asks = scope.spawn(|| run(&far, there, &[silent], &[]));
            let found = run(&near, here, &[answers], &[there.mac]);
            asks.join().unwrap();
            found
        });
        assert_eq!((answered, heard), ([].into(), [there.mac].into()));
    }
}

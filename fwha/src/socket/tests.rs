//! Round trips over a cable.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

use fwha_common::probe::{Probe, ProbeKind};
use fwha_proto::vrrp::packet::{Envelope, GROUP_V4, GROUP_V6};
use socket2::{Domain, Protocol, Socket, Type};

use super::{EchoSocket, ProbeSocket, Received, Refused, SyncSocket, VrrpSocket, probe::BROADCAST};
use crate::testing::{Net, await_readable, root};

const NEAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

#[test]
fn vrrp_arrives_with_ttl_and_source_and_is_not_heard_by_its_sender() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    // A VIP below the primary address, which must not become the source.
    a.ip("address add 10.9.0.200/32 dev near");
    let (ia, ib) = (a.ifindex("near"), b.ifindex("far"));
    let near = a.within(|| VrrpSocket::open("near", ia, false).unwrap());
    let far = b.within(|| VrrpSocket::open("far", ib, false).unwrap());
    let mut buffer = [0; 256];

    near.send(NEAR.into(), Envelope::multicast(NEAR.into()).dst, b"an advertisement").unwrap();
    await_readable(&far);
    let packet = far.receive(&mut buffer).unwrap().accepted().unwrap();
    assert_eq!(packet.envelope, Envelope::multicast(NEAR.into()));
    assert_eq!(packet.message, b"an advertisement");
    assert!(packet.waited.is_some());
    assert_eq!(far.receive(&mut buffer).unwrap(), Received::Nothing);

    // The far node answers; by then the near one would have heard itself.
    far.send(FAR.into(), NEAR.into(), b"another").unwrap();
    await_readable(&near);
    let alone = Envelope { dst: NEAR.into(), ..Envelope::multicast(FAR.into()) };
    assert_eq!(near.receive(&mut buffer).unwrap().accepted().unwrap().envelope, alone);
    assert_eq!(near.receive(&mut buffer).unwrap(), Received::Nothing);
}

#[test]
fn vrrp_for_ipv6_arrives_with_hop_limit_and_link_local_source_and_is_not_heard_by_its_sender() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    const NEAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
    const FAR: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xb);
    a.ip("address add fe80::a/64 dev near nodad");
    // A VIP, which must not become the source.
    a.ip("address add fe80::1/64 dev near nodad");
    b.ip("address add fe80::b/64 dev far nodad");
    let (ia, ib) = (a.ifindex("near"), b.ifindex("far"));
    let near = a.within(|| VrrpSocket::open("near", ia, true).unwrap());
    let far = b.within(|| VrrpSocket::open("far", ib, true).unwrap());
    let mut buffer = [0; 256];

    near.send(NEAR.into(), Envelope::multicast(NEAR.into()).dst, b"an advertisement").unwrap();
    await_readable(&far);
    let packet = far.receive(&mut buffer).unwrap().accepted().unwrap();
    assert_eq!(packet.envelope, Envelope::multicast(NEAR.into()));
    assert_eq!(packet.message, b"an advertisement");
    assert!(packet.waited.is_some());

    a.within(|| {
        let routed = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(112))).unwrap();
        routed.set_multicast_hops_v6(254).unwrap();
        routed.set_multicast_loop_v6(false).unwrap();
        routed.send_to(b"forged", &SocketAddrV6::new(GROUP_V6, 0, 0, ia).into()).unwrap();
    });
    await_readable(&far);
    assert_eq!(far.receive(&mut buffer).unwrap().accepted().unwrap().envelope.ttl, 254);
    assert_eq!(far.receive(&mut buffer).unwrap(), Received::Nothing);

    far.send(FAR.into(), NEAR.into(), b"another").unwrap();
    await_readable(&near);
    let alone = Envelope { dst: NEAR.into(), ..Envelope::multicast(FAR.into()) };
    assert_eq!(near.receive(&mut buffer).unwrap().accepted().unwrap().envelope, alone);
    assert_eq!(near.receive(&mut buffer).unwrap(), Received::Nothing);
}

#[test]
fn vrrp_with_another_ttl_arrives_with_it() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    let ib = b.ifindex("far");
    let far = b.within(|| VrrpSocket::open("far", ib, false).unwrap());
    a.within(|| {
        let routed = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(112))).unwrap();
        routed.set_multicast_ttl_v4(254).unwrap();
        routed.set_multicast_if_v4(&NEAR).unwrap();
        routed.send_to(b"forged", &SocketAddrV4::new(GROUP_V4, 0).into()).unwrap();
    });
    await_readable(&far);
    let mut buffer = [0; 256];
    assert_eq!(far.receive(&mut buffer).unwrap().accepted().unwrap().envelope.ttl, 254);
}

#[test]
fn probes_go_to_a_mac_or_to_all_and_come_from_one() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    let (ia, ib) = (a.ifindex("near"), b.ifindex("far"));
    let (ma, mb) = (a.mac("near"), b.mac("far"));
    let near = a.within(|| ProbeSocket::open(ia, ma).unwrap());
    let far = b.within(|| ProbeSocket::open(ib, mb).unwrap());
    let request = Probe::request(&[1, 2], 7, 1, 2, 99);

    for destination in [mb, BROADCAST] {
        near.send(destination, &request).unwrap();
        await_readable(&far);
        let frame = far.receive().unwrap().accepted().unwrap();
        assert_eq!((frame.source, frame.probe), (ma, request));
        assert!(frame.probe.valid(&[1, 2]) && frame.probe.kind == ProbeKind::Request as u8);
        assert_eq!(far.receive().unwrap(), Received::Nothing);
    }
    assert_eq!(near.receive().unwrap(), Received::Nothing, "its own frames are not heard");
}

#[test]
fn sync_takes_datagrams_from_the_link_only() {
    if !root() {
        return;
    }
    let (a, b) = Net::pair();
    let near = a.within(|| SyncSocket::open("near", SocketAddrV4::new(NEAR, 0)).unwrap());
    let far = b.within(|| SyncSocket::open("far", SocketAddrV4::new(FAR, 0)).unwrap());
    let mut buffer = [0; 64];

    // From behind a router; and too long for the reader.
    a.within(|| {
        let routed = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        routed.set_ttl_v4(254).unwrap();
        routed.send_to(b"forged", &far.local().into()).unwrap();
    });
    assert!(near.send(far.local(), &[0; 65]).unwrap());
    assert!(near.send(far.local(), b"sealed").unwrap());
    // They arrive in the order in which they were sent, and each is a look: a flood of them holds nobody.
    for _ in 0..2 {
        await_readable(&far);
        assert_eq!(far.receive(&mut buffer).unwrap(), Received::Refused);
    }
    await_readable(&far);
    let datagram = far.receive(&mut buffer).unwrap().accepted().unwrap();
    let datagram = (datagram.source, datagram.payload.to_vec(), datagram.waited.is_some());
    assert_eq!(datagram, (near.local(), b"sealed".to_vec(), true));
    assert_eq!(far.refused(), Refused { ttl: 1, length: 1 });

    let beyond_mtu = vec![0; 1473];
    assert_eq!(near.send(far.local(), &beyond_mtu).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
}

#[test]
fn a_silent_peer_is_no_error() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    let near = a.within(|| SyncSocket::open("near", SocketAddrV4::new(NEAR, 0)).unwrap());
    let mut buffer = [0; 64];
    // Nobody listens on that port: the second and third may meet the news of the first.
    for _ in 0..3 {
        near.send(SocketAddrV4::new(FAR, 9), b"hello").unwrap();
        assert_eq!(near.receive(&mut buffer).unwrap().accepted(), None);
    }
}

#[test]
fn sync_says_what_is_wrong_with_its_address() {
    if !root() {
        return;
    }
    let (a, _b) = Net::pair();
    a.within(|| {
        let error = SyncSocket::open("near", SocketAddrV4::new(Ipv4Addr::new(10, 8, 0, 1), 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL));
        let error = SyncSocket::open("nowhere", SocketAddrV4::new(NEAR, 0)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
        let taken = SyncSocket::open("near", SocketAddrV4::new(NEAR, 0)).unwrap();
        let error = SyncSocket::open("near", taken.local()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
    });
}

#[test]
fn a_witness_answers_its_number_to_the_socket_that_asked() {
    if !root() {
        return;
    }
    let (near, far) = Net::pair();
    near.ip("address add fd09::1/64 dev near nodad");
    far.ip("address add fd09::2/64 dev far nodad");
    for witness in ["10.9.0.2", "fd09::2"].map(|text| text.parse::<IpAddr>().unwrap()) {
        let (asking, other) = near.within(|| {
            let open = || EchoSocket::open(witness.is_ipv6()).unwrap();
            (open(), open())
        });
        other.ask(witness, 0x1122_3344_5566_7788).unwrap();
        await_readable(&other);
        asking.ask(witness, 7).unwrap();
        await_readable(&asking);
        let mut replies = Vec::new();
        while replies.is_empty() {
            replies.extend(asking.receive().unwrap().accepted().map(|reply| (reply.source, reply.nonce)));
        }
        assert_eq!(replies, [(witness, 7)], "not what the other one asked for");
        assert_eq!(asking.receive().unwrap(), Received::Nothing);
        let reply = other.receive().unwrap().accepted().unwrap();
        assert_eq!((reply.source, reply.nonce), (witness, 0x1122_3344_5566_7788));
        assert!(reply.waited.is_some());
    }
    near.ip("route add unreachable 10.8.0.0/16");
    let socket = near.within(|| EchoSocket::open(false).unwrap());
    assert!(socket.ask(Ipv4Addr::new(10, 8, 0, 1).into(), 1).is_err());
}

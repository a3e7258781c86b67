//! Frames that come and go by the interfaces, to programs that are attached there.

use super::*;

/// The other end of an interface that has the programs.
pub struct Wire {
    far: OwnedFd,
    _ingress: Ingress,
    _egress: SchedClassifierLink,
}

/// The program where packets enter by a wire is attached as long as this is there.
enum Ingress {
    Tc { _link: SchedClassifierLink },
    Xdp { _link: XdpLink },
}

impl Wire {
    /// Sends a frame towards the node.
    pub fn send(&self, frame: &[u8]) {
        assert_eq!(nix::unistd::write(&self.far, frame).expect("it is sent"), frame.len());
    }

    /// The next frame that comes from the node, which must come.
    pub fn receive(&self) -> Vec<u8> {
        await_frame(self.far.as_fd()).frame
    }

    /// Whether nothing more has come. (What the node was to answer at once is there when it was judged.)
    pub fn silent(&self) -> bool {
        receive(self.far.as_fd()).expect("a packet socket").is_none()
    }
}

impl Rig {
    /// Attaches the programs to an interface, as long as the wire is there. Packets then go the way that the kernel has
    /// for them; those of IPv6 have none.
    pub fn wire(&mut self, port: Port) -> Wire {
        let name = ["lan", "wan", "sync", "trunk"][port as usize];
        let peer = format!("{name}-peer");
        for end in [name, &peer] {
            silence(end);
        }
        let egress = self.attach_tc(name::TC_EGRESS, name, TcAttachType::Egress);
        let ingress = match self.hook {
            Hook::Tc => Ingress::Tc { _link: self.attach_tc(name::TC_INGRESS, name, TcAttachType::Ingress) },
            Hook::Xdp => {
                let program: &mut Xdp =
                    self.bpf.program_mut(name::XDP_INGRESS).expect("program").try_into().expect("XDP");
                let link = program.attach(name, XdpMode::Driver).expect("native XDP");
                Ingress::Xdp { _link: program.take_link(link).expect("a link") }
            }
        };
        // XDP hands frames over to an end that takes them so.
        set_feature(&peer, Feature::Gro, true).expect("GRO");
        let far = packet_socket(&peer).expect("a packet socket");
        ask_for_tags(far.as_fd()).expect("tags");
        Wire { far, _ingress: ingress, _egress: egress }
    }

    fn attach_tc(&mut self, program: &str, interface: &str, at: TcAttachType) -> SchedClassifierLink {
        let program: &mut SchedClassifier =
            self.bpf.program_mut(program).expect("program").try_into().expect("classifier");
        let link = program.attach(interface, at).expect("TCX");
        program.take_link(link).expect("a link")
    }

    /// Sends a frame in by a wire, and waits until it was judged.
    pub fn send_by(&mut self, wire: &Wire, frame: &[u8]) -> Verdict {
        let before = self.exits();
        wire.send(frame);
        let start = Instant::now();
        while self.exits()[1..EXITS.len()] == before[1..EXITS.len()] {
            assert!(start.elapsed() < PATIENCE, "nothing came of it");
            thread::yield_now();
        }
        self.verdict_since(&before, 1)
    }
}

/// The next frame at a packet socket, which must come.
pub fn await_frame(socket: BorrowedFd<'_>) -> Received {
    let timeout = PollTimeout::try_from(PATIENCE).expect("a timeout");
    let mut ready = [PollFd::new(socket, PollFlags::POLLIN)];
    assert_eq!(poll(&mut ready, timeout).expect("poll"), 1, "no frame came");
    receive(socket).expect("a packet socket").expect("a frame")
}

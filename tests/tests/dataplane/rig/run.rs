//! Frames that the programs are run with (`BPF_PROG_TEST_RUN`), and what became of them.

use super::*;

/// A packet after the programs had it.
pub struct Sent {
    pub verdict: Verdict,
    pub frame: Vec<u8>,
    /// Its mark, at tc.
    pub mark: u32,
}

/// `struct __sk_buff` of `linux/bpf.h`, as far as a test run lets one set it.
#[repr(C)]
#[derive(Default)]
struct SkBuff {
    len: u32,
    pkt_type: u32,
    mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan: [u32; 3],
    priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
    rest: [u32; 30],
    gso_segs: u32,
    sk: u64,
    gso_size: u32,
    tstamp_type: u32,
    hwtstamp: u64,
}

/// `struct xdp_md` of `linux/bpf.h`.
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

fn bytes<const N: usize>(words: [u32; N]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

impl SkBuff {
    /// Bytes of the structure up to `hwtstamp`.
    fn context(&self) -> Vec<u8> {
        let mut context = bytes([self.len, self.pkt_type, self.mark, self.queue_mapping, self.protocol]);
        context.extend(bytes(self.vlan));
        context.extend(bytes([self.priority, self.ingress_ifindex, self.ifindex]));
        context.extend(bytes(self.rest));
        context.extend(bytes([self.gso_segs]));
        context.extend(self.sk.to_ne_bytes());
        context.extend(bytes([self.gso_size, self.tstamp_type]));
        context.extend(self.hwtstamp.to_ne_bytes());
        context
    }
}

impl Rig {
    /// Sends a frame in by `port`, and checks that exactly one exit was counted with it.
    pub fn send(&mut self, port: Port, frame: &[u8]) -> Sent {
        self.send_super(port, frame, 1, 0)
    }

    /// Sends a super-packet of `segments` segments with `segment_size` bytes each.
    pub fn send_super(&mut self, port: Port, frame: &[u8], segments: u32, segment_size: u32) -> Sent {
        let before = self.exits();
        let (code, frame, mark) = match self.hook {
            Hook::Xdp => {
                assert_eq!(segments, 1, "there are no super-packets at XDP");
                self.run_xdp(port, frame, 1)
            }
            Hook::Tc => {
                let gso = if segments == 1 { (0, 0) } else { (segments, segment_size) };
                self.run_tc(name::TC_INGRESS, port, Some(port), frame, 0, gso)
            }
        };
        let verdict = self.verdict_since(&before, segments.into());
        let expected = match (self.hook, verdict) {
            (Hook::Xdp, Verdict::Drop(_)) => 1,
            (Hook::Xdp, Verdict::Pass) => 2,
            (Hook::Xdp, Verdict::Answer | Verdict::Forward) => 4,
            (Hook::Tc, Verdict::Drop(_)) => 2,
            (Hook::Tc, Verdict::Pass) => u32::MAX,
            (Hook::Tc, Verdict::Answer | Verdict::Forward) => 7,
        };
        assert_eq!(code, expected, "the action fits the counters: {verdict:?}");
        Sent { verdict, frame, mark }
    }

    /// Sends a frame in by `port`, and looks at nothing.
    pub fn run(&self, port: Port, frame: &[u8]) {
        match self.hook {
            Hook::Xdp => self.run_xdp(port, frame, 1),
            Hook::Tc => self.run_tc(name::TC_INGRESS, port, Some(port), frame, 0, (0, 0)),
        };
    }

    /// Sends a frame in by `port` again and again, at XDP, and looks at nothing. It stays as it is if it is not
    /// forwarded.
    pub fn run_often(&self, port: Port, frame: &[u8], times: u32) {
        self.run_xdp(port, frame, times);
    }

    /// Sends a frame in by a sync interface, through its own program.
    pub fn send_sync(&mut self, frame: &[u8]) -> (u32, Vec<u8>) {
        let (code, frame, _) =
            self.run_tc(name::SYNC_INGRESS, Port::Sync, Some(Port::Sync), frame, 0, (0, 0));
        (code, frame)
    }

    /// Has a frame leave by `port`. It entered this machine by `entered`, or was made here. Returns whether it may.
    pub fn leave(&mut self, port: Port, entered: Option<Port>, mark: u32, frame: &[u8]) -> bool {
        let before = self.drop_count(DropReason::Unfiltered);
        let (code, _, mark_after) = self.run_tc(name::TC_EGRESS, port, entered, frame, mark, (0, 0));
        let dropped = self.drop_count(DropReason::Unfiltered) - before;
        assert_eq!((code, dropped), if code == 2 { (2, 1) } else { (u32::MAX, 0) });
        assert!(code == 2 || mark_after == 0 || mark_after == mark && mark != self.egress_mark());
        code != 2
    }

    /// Has a frame that was made here leave by `port`, and returns it, if it does.
    pub fn depart(&mut self, port: Port, frame: &[u8]) -> Option<Vec<u8>> {
        let (code, frame, _) = self.run_tc(name::TC_EGRESS, port, None, frame, 0, (0, 0));
        (code != 2).then_some(frame)
    }

    /// The mark by which the egress program knows what the ingress program sends.
    pub fn egress_mark(&self) -> u32 {
        (self.now.probe_key[0] ^ self.now.bucket_key[1]) as u32 | 1
    }

    fn run_xdp(&self, port: Port, frame: &[u8], times: u32) -> (u32, Vec<u8>, u32) {
        let md = XdpMd {
            data: 0,
            data_end: frame.len() as u32,
            data_meta: 0,
            ingress_ifindex: self.ifindex(port),
            rx_queue_index: 0,
            egress_ifindex: 0,
        };
        let context = bytes([
            md.data,
            md.data_end,
            md.data_meta,
            md.ingress_ifindex,
            md.rx_queue_index,
            md.egress_ifindex,
        ]);
        let program: &Xdp = self.bpf.program(name::XDP_INGRESS).expect("program").try_into().expect("XDP");
        let mut out = vec![0; frame.len() + GROWTH];
        let run = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                repeat: times,
                ctx_in: Some(&context),
                ..Default::default()
            })
            .expect("a test run");
        out.truncate(run.data_size_out as usize);
        (run.return_value, out, 0)
    }

    fn run_tc(
        &self,
        program: &str,
        port: Port,
        entered: Option<Port>,
        frame: &[u8],
        mark: u32,
        (gso_segs, gso_size): (u32, u32),
    ) -> (u32, Vec<u8>, u32) {
        let context = SkBuff {
            mark,
            ingress_ifindex: entered.map_or(0, |port| self.ifindex(port)),
            ifindex: self.ifindex(port),
            gso_segs,
            gso_size,
            ..SkBuff::default()
        }
        .context();
        let program: &SchedClassifier =
            self.bpf.program(program).expect("program").try_into().expect("classifier");
        let (mut out, mut context_out) = (vec![0; frame.len() + GROWTH], vec![0; context.len()]);
        let run = program
            .test_run(TestRunOptions {
                data_in: Some(frame),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                ctx_out: Some(&mut context_out),
                ..Default::default()
            })
            .expect("a test run");
        out.truncate(run.data_size_out as usize);
        let mark = u32::from_ne_bytes(context_out[8..12].try_into().expect("four bytes"));
        (run.return_value, out, mark)
    }

    pub(super) fn exits(&self) -> Vec<u64> {
        let counters = EXITS.iter().map(|&counter| self.counter(counter));
        counters.chain(DropReason::ALL.iter().map(|&reason| self.drop_count(reason))).collect()
    }

    pub(super) fn verdict_since(&self, before: &[u64], packets: u64) -> Verdict {
        let after = self.exits();
        let rise: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let verdict = match rise[..EXITS.len()] {
            [_, n, 0, 0, 0, 0, 0] if n > 0 => Verdict::Forward,
            [_, 0, n, 0, 0, 0, 0] if n > 0 => Verdict::Pass,
            [_, 0, 0, 0, n, 0, 0] | [_, 0, 0, 0, 0, n, 0] | [_, 0, 0, 0, 0, 0, n] if n > 0 => Verdict::Answer,
            [_, 0, 0, n, 0, 0, 0] if n > 0 => {
                let reason = rise[EXITS.len()..].iter().position(|&n| n > 0).expect("a drop has a reason");
                Verdict::Drop(DropReason::ALL[reason])
            }
            ref other => panic!("not one exit for a packet: {other:?}"),
        };
        assert_eq!(rise[0], packets, "it entered once");
        assert_eq!(rise[1..EXITS.len()].iter().sum::<u64>(), packets, "and left once");
        assert_eq!(rise[EXITS.len()..].iter().sum::<u64>(), rise[3], "each drop has one reason");
        verdict
    }
}

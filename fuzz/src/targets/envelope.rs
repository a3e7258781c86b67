//! Sealed datagrams: garbage, altered ones, replays, and what only a node with the key can make.

use fwha_proto::seal::{Channel, Identity, OpenError, Opened, Purpose};

use crate::input::Input;
use crate::sealing::{self, key};

const ME: Identity = Identity { cluster: 1, node: 1, epoch: 11 };
const PEER: Identity = Identity { cluster: 1, node: 2, epoch: 22 };

/// Two channels that have shaken hands.
fn pair() -> (Channel, Channel) {
    let mut me = Channel::new(key(), Purpose::Heartbeat, ME, PEER.node);
    let mut peer = Channel::new(key(), Purpose::Heartbeat, PEER, ME.node);
    for _ in 0..2 {
        me.open(&mut peer.hello()).expect("a hello");
        peer.open(&mut me.hello()).expect("a hello");
    }
    (me, peer)
}

/// Delivers datagrams to a node that has a session with its peer.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let (mut me, mut peer) = pair();
    let mut last = Vec::new();
    while !input.is_empty() {
        let session = me.peer_epoch();
        match input.u8() % 5 {
            0 => {
                let mut garbage = input.piece().to_vec();
                assert!(me.open(&mut garbage).is_err(), "garbage opens");
            }
            1 => {
                let payload = input.piece();
                last = peer.seal(payload).expect("open");
                let opened = me.open(&mut last.clone()).map(|opened| opened == Opened::Data(payload));
                assert_eq!(opened, Ok(true), "what was sealed opens");
            }
            2 => {
                let mut altered = peer.seal(input.piece()).expect("open");
                let at = usize::from(input.u16()) % altered.len();
                altered[at] ^= input.u8().max(1);
                altered.truncate(altered.len() - usize::from(input.u8()) % altered.len());
                assert!(me.open(&mut altered).is_err(), "an altered one opens");
            }
            3 if !last.is_empty() => {
                assert_eq!(me.open(&mut last.clone()), Err(OpenError::Replayed));
            }
            _ => {
                // One that has the key, but has not seen the challenge.
                let from = Identity { epoch: input.u64(), ..PEER };
                let counter = input.u64();
                let mut hello = sealing::hello(from, ME.node, Purpose::Heartbeat, counter, input.piece());
                if let Ok(opened) = me.open(&mut hello) {
                    assert!(matches!(opened, Opened::Hello { new_session: false, .. }), "{opened:?}");
                }
                let counter = input.u64() | 1 << 40;
                let mut data = sealing::data(PEER, ME, Purpose::Heartbeat, counter, b"later");
                if input.bool() {
                    // The datagrams of the peer itself are too old after this.
                    assert_eq!(me.open(&mut data), Ok(Opened::Data(b"later")));
                    return;
                }
            }
        }
        assert_eq!(me.peer_epoch(), session, "the session in force stays");
    }
    let sealed = me.seal(data).expect("open");
    assert_eq!(peer.open(&mut sealed.clone()), Ok(Opened::Data(data)));
}

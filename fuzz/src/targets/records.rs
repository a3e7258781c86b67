//! The records inside a replication datagram.

use fwha_proto::replication::rewrite;
use fwha_proto::time::Time;

use crate::input::Input;

/// Reads a payload at some time of the clock, which ages are counted from.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let now = Time::from_nanos(input.u64());
    for record in rewrite(input.0, now).into_iter().flatten() {
        let again: Vec<_> = rewrite(&record, now);
        assert_eq!(again, [Ok(record)], "read anew, it is another");
    }
}

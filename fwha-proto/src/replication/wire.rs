//! The records inside a sealed replication datagram.
//!
//! A payload is a list of records. A receiver skips a type that it does not know, and bytes at the
//! end of a body that it does not expect, so a newer peer may add both.
//!
//! ```text
//! record    type u8, length u16, body
//! SEQUENCE  1  seq v, seq - floor v              first in every datagram that wants an answer
//! ACK       2  cumulative v, bitmap...           bit i stands for cumulative + 1 + i
//! HELLO     3  version u8, flags u8, zones u8, max flows v, config hash u64, rules hash u64, name
//! CLAIMS    4  (term v, buckets 32 bytes)...     all that the sender owns
//! TERM      5  term v                            of the records that follow in this datagram
//! FLOW      6  tuple, state u8, zones u8 u8, rule u32, age v, idle + 1 v v, packets v v, bytes v v
//! DELETE    7  tuple
//! BEGIN     8  flows v, buckets 32 bytes
//! END       9  bucket u8, start v, count v, digest u64
//! DIGESTS  10  buckets 32 bytes, u64...          one for each bucket of the set, ascending
//! AGREED   11  seq v, buckets 32 bytes
//! RESYNC   12  buckets 32 bytes
//! ZONES    13  name hash u32...                  by number, from 1; before HELLO in the same datagram
//! LIST_ASK 14  number v, bucket u8, flags u8 (1: digest), offset v, digest u64 if flagged
//! LIST     15  number v, bucket u8, flags u8 (1: equal), offset v, total v, (tuple, state u8, age v)...
//! PROBE    16  flags u8 (1: answer), number v    answered on the link that it came by
//!
//! tuple     flags u8 (1: IPv6), protocol u8, bucket u8, source 4|16, destination 4|16,
//!           ports u16 u16, identity: node u8, epoch u32, number u64; version: term v, count v
//! ```
//! `v` is an unsigned LEB128 number of up to 64 bits. Addresses and ports are in network byte order
//! and in the original direction, everything else is little-endian. Times are ages in milliseconds;
//! no clock, interface index or kernel structure is ever sent.

use fwha_common::flow::{FlowId, FlowKey, FlowState, V4_MAPPED};
use fwha_common::{MAX_NODES, MAX_ZONES};

use super::buckets::Buckets;
use super::entry::Entry;
use crate::time::Time;

/// Datagrams that an ACK can tell apart after the first that is missing.
pub(super) const ACK_SPAN: u64 = 1024;
/// Buckets in one DIGESTS record at most.
pub(super) const DIGESTS_MAX: usize = 120;
/// Bytes of a node's name at most.
pub(super) const NAME_LEN_MAX: usize = 64;
/// Version of these records that HELLO announces.
pub(super) const VERSION: u8 = 1;

const RECORD_HEADER: usize = 3;
const NS_PER_MS: u64 = 1_000_000;
const FLAG_IPV6: u8 = 1;
const HELLO_ENABLED: u8 = 1;
const PROBE_ANSWER: u8 = 1;
const ASK_DIGEST: u8 = 1;
const LIST_EQUAL: u8 = 1;

/// A record does not have the form above. Its datagram is otherwise used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record")]
pub struct Malformed;

/// What a node tells its peer when a session opens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Version of the records.
    pub version: u8,
    /// Whether it takes part in replication.
    pub enabled: bool,
    /// Zones in its config.
    pub zones: u8,
    /// Flows that its table holds at most.
    pub max_flows: u64,
    /// Hash of its cluster file.
    pub config_hash: u64,
    /// Hash of its rules.
    pub rules_hash: u64,
    /// Its name in the cluster file.
    pub name: String,
}

/// A deletion, which names what it deletes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deletion {
    pub(super) key: FlowKey,
    pub(super) originator_is_b: bool,
    pub(super) bucket: u8,
    pub(super) id: FlowId,
    pub(super) version: u64,
}

impl Deletion {
    /// What is known of the flow that it deletes.
    pub(super) const fn tombstone(&self) -> Entry {
        Entry {
            created_ns: 0,
            last_seen_ns: [0; 2],
            packets: [0; 2],
            bytes: [0; 2],
            version: self.version,
            id: self.id,
            rule_hash: 0,
            state: FlowState::Close as u8,
            bucket: self.bucket,
            zones: [0; 2],
            originator_is_b: self.originator_is_b,
            mss: 0,
            handshake: [0; 2],
            delta: 0,
        }
    }
}

/// A question for the flows of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ListAsk {
    /// Names the snapshot of the bucket that the peer takes for the answer.
    pub(super) number: u64,
    pub(super) bucket: u8,
    /// Flows of that snapshot that are here already.
    pub(super) offset: u64,
    /// Nothing is to be listed if the bucket's digest is this one.
    pub(super) digest: Option<u64>,
}

/// A flow in a list: its identity, version and state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) flow: Deletion,
    pub(super) state: u8,
    /// When it last changed, in ns.
    pub(super) changed_ns: u64,
}

/// Some of the flows of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) number: u64,
    pub(super) bucket: u8,
    /// The digest is that of the question, and nothing is listed.
    pub(super) equal: bool,
    pub(super) offset: u64,
    /// Flows in the snapshot.
    pub(super) total: u64,
    pub(super) flows: Vec<Listed>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Record<'a> {
    Sequence { seq: u64, floor: u64 },
    Ack { cumulative: u64, bitmap: &'a [u8] },
    Hello(Hello),
    Claims(Vec<(u32, Buckets)>),
    Term(u32),
    Flow(FlowKey, Entry),
    Delete(Deletion),
    Begin { flows: u64, buckets: Buckets },
    End { bucket: u8, start: u64, count: u64, digest: u64 },
    Digests(Vec<(u8, u64)>),
    Agreed { seq: u64, buckets: Buckets },
    Resync(Buckets),
    Zones(Vec<u32>),
    ListAsk(ListAsk),
    List(List),
    Probe { id: u64, answer: bool },
    Unknown(u8),
}

impl Record<'_> {
    /// The flow that it is about, if it is about one.
    pub(super) const fn key(&self) -> Option<&FlowKey> {
        match self {
            Self::Flow(key, _) => Some(key),
            Self::Delete(deletion) => Some(&deletion.key),
            _ => None,
        }
    }

    const fn kind(&self) -> u8 {
        match self {
            Self::Sequence { .. } => 1,
            Self::Ack { .. } => 2,
            Self::Hello(_) => 3,
            Self::Claims(_) => 4,
            Self::Term(_) => 5,
            Self::Flow(..) => 6,
            Self::Delete(_) => 7,
            Self::Begin { .. } => 8,
            Self::End { .. } => 9,
            Self::Digests(_) => 10,
            Self::Agreed { .. } => 11,
            Self::Resync(_) => 12,
            Self::Zones(_) => 13,
            Self::ListAsk(_) => 14,
            Self::List(_) => 15,
            Self::Probe { .. } => 16,
            Self::Unknown(kind) => *kind,
        }
    }
}

/// Fills one payload.
pub(super) struct Writer {
    buf: Vec<u8>,
    limit: usize,
    now: Time,
}

impl Writer {
    /// An empty payload of `limit` bytes at most, in a buffer that is used again.
    pub(super) fn new(mut buf: Vec<u8>, limit: usize, now: Time) -> Self {
        buf.clear();
        Self { buf, limit, now }
    }

    pub(super) fn len(&self) -> usize {
        self.buf.len()
    }

    pub(super) fn room(&self) -> usize {
        self.limit - self.buf.len()
    }

    /// Takes everything after the first `len` bytes back.
    pub(super) fn truncate(&mut self, len: usize) {
        self.buf.truncate(len);
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.buf
    }

    pub(super) fn into_buf(self) -> Vec<u8> {
        self.buf
    }

    /// Adds a record, or changes nothing and says `false` if it does not fit.
    pub(super) fn push(&mut self, record: &Record<'_>) -> bool {
        self.put(record.kind(), |w| w.body(record))
    }

    /// [`Self::push`] of a FLOW that is not copied first.
    pub(super) fn push_flow(&mut self, key: &FlowKey, entry: &Entry) -> bool {
        self.put(6, |w| w.flow(key, entry))
    }

    /// [`Self::push`] of a LIST with as many of `flows` as there is room for. How many these are; `None` if it does
    /// not fit, or none of them does.
    pub(super) fn push_list(&mut self, list: &List, flows: &[Listed]) -> Option<usize> {
        let (start, mut count) = (self.buf.len(), 0);
        let fits = self.put(15, |w| {
            w.list(list);
            for flow in flows {
                let end = w.buf.len();
                w.listed(flow);
                if w.buf.len() > w.limit {
                    w.buf.truncate(end);
                    break;
                }
                count += 1;
            }
        });
        if fits && count == 0 && !flows.is_empty() {
            self.buf.truncate(start);
            return None;
        }
        fits.then_some(count)
    }

    fn put(&mut self, kind: u8, body: impl FnOnce(&mut Self)) -> bool {
        let start = self.buf.len();
        self.buf.extend_from_slice(&[kind, 0, 0]);
        body(self);
        let len = u16::try_from(self.buf.len() - start - RECORD_HEADER);
        match len {
            Ok(len) if self.buf.len() <= self.limit => {
                self.buf[start + 1..start + RECORD_HEADER].copy_from_slice(&len.to_le_bytes());
                true
            }
            _ => {
                self.buf.truncate(start);
                false
            }
        }
    }

    fn body(&mut self, record: &Record<'_>) {
        match record {
            Record::Sequence { seq, floor } => {
                self.varint(*seq);
                self.varint(seq - floor);
            }
            Record::Ack { cumulative, bitmap } => {
                self.varint(*cumulative);
                self.buf.extend_from_slice(bitmap);
            }
            Record::Hello(hello) => {
                self.buf.extend_from_slice(&[hello.version, u8::from(hello.enabled), hello.zones]);
                self.varint(hello.max_flows);
                self.u64(hello.config_hash);
                self.u64(hello.rules_hash);
                let mut end = hello.name.len().min(NAME_LEN_MAX);
                while !hello.name.is_char_boundary(end) {
                    end -= 1;
                }
                self.buf.extend_from_slice(&hello.name.as_bytes()[..end]);
            }
            Record::Claims(claims) => {
                for (term, buckets) in claims {
                    self.varint(u64::from(*term));
                    self.buckets(buckets);
                }
            }
            Record::Term(term) => self.varint(u64::from(*term)),
            Record::Flow(key, entry) => self.flow(key, entry),
            Record::Delete(d) => self.tuple(&d.key, d.originator_is_b, d.bucket, &d.id, d.version),
            Record::Begin { flows, buckets } => {
                self.varint(*flows);
                self.buckets(buckets);
            }
            Record::End { bucket, start, count, digest } => {
                self.buf.push(*bucket);
                self.varint(*start);
                self.varint(*count);
                self.u64(*digest);
            }
            Record::Digests(digests) => {
                self.buckets(&digests.iter().map(|d| d.0).collect());
                for (_, digest) in digests {
                    self.u64(*digest);
                }
            }
            Record::Agreed { seq, buckets } => {
                self.varint(*seq);
                self.buckets(buckets);
            }
            Record::Resync(buckets) => self.buckets(buckets),
            Record::Zones(zones) => {
                for hash in zones {
                    self.buf.extend_from_slice(&hash.to_le_bytes());
                }
            }
            Record::ListAsk(ask) => {
                self.varint(ask.number);
                self.buf.extend_from_slice(&[ask.bucket, if ask.digest.is_some() { ASK_DIGEST } else { 0 }]);
                self.varint(ask.offset);
                if let Some(digest) = ask.digest {
                    self.u64(digest);
                }
            }
            Record::List(list) => {
                self.list(list);
                list.flows.iter().for_each(|flow| self.listed(flow));
            }
            Record::Probe { id, answer } => {
                self.buf.push(u8::from(*answer));
                self.varint(*id);
            }
            Record::Unknown(_) => {}
        }
    }

    /// A LIST without flows.
    fn list(&mut self, list: &List) {
        self.varint(list.number);
        self.buf.extend_from_slice(&[list.bucket, if list.equal { LIST_EQUAL } else { 0 }]);
        self.varint(list.offset);
        self.varint(list.total);
    }

    fn listed(&mut self, listed: &Listed) {
        let d = &listed.flow;
        self.tuple(&d.key, d.originator_is_b, d.bucket, &d.id, d.version);
        self.buf.push(listed.state);
        self.varint(self.now.as_nanos().saturating_sub(listed.changed_ns) / NS_PER_MS);
    }

    fn flow(&mut self, key: &FlowKey, entry: &Entry) {
        self.tuple(key, entry.originator_is_b, entry.bucket, &entry.id, entry.version);
        self.buf.extend_from_slice(&[entry.state, entry.zones[0], entry.zones[1]]);
        self.buf.extend_from_slice(&entry.rule_hash.to_le_bytes());
        let now_ns = self.now.as_nanos();
        self.varint(now_ns.saturating_sub(entry.created_ns) / NS_PER_MS);
        for seen in entry.last_seen_ns {
            self.varint(if seen == 0 { 0 } else { now_ns.saturating_sub(seen) / NS_PER_MS + 1 });
        }
        for count in [entry.packets, entry.bytes].into_iter().flatten() {
            self.varint(count);
        }
        self.varint(entry.mss.into());
        for told in entry.handshake {
            self.varint(told.into());
        }
        self.varint(entry.delta.into());
    }

    fn tuple(&mut self, key: &FlowKey, originator_is_b: bool, bucket: u8, id: &FlowId, version: u64) {
        let v4 = is_v4(key.addr_a) && is_v4(key.addr_b);
        self.buf.extend_from_slice(&[if v4 { 0 } else { FLAG_IPV6 }, key.proto, bucket]);
        let [(src, sport), (dst, dport)] = key.ends(originator_is_b);
        let skip = if v4 { 12 } else { 0 };
        self.buf.extend_from_slice(&src[skip..]);
        self.buf.extend_from_slice(&dst[skip..]);
        self.buf.extend_from_slice(&sport.to_be_bytes());
        self.buf.extend_from_slice(&dport.to_be_bytes());
        self.buf.push(id.node);
        self.buf.extend_from_slice(&id.epoch.to_le_bytes());
        self.u64(id.number);
        self.varint(version >> 32);
        self.varint(version & 0xffff_ffff);
    }

    fn buckets(&mut self, buckets: &Buckets) {
        self.buf.extend_from_slice(&buckets.to_bytes());
    }

    fn u64(&mut self, n: u64) {
        self.buf.extend_from_slice(&n.to_le_bytes());
    }

    fn varint(&mut self, mut n: u64) {
        while n >= 0x80 {
            self.buf.push(n as u8 | 0x80);
            n >>= 7;
        }
        self.buf.push(n as u8);
    }
}

const fn is_v4(addr: [u32; 4]) -> bool {
    addr[0] == 0 && addr[1] == 0 && addr[2] == V4_MAPPED
}

/// The records of a payload, in order. After a length that runs past the end there is one
/// [`Malformed`] and no more.
pub(super) fn records(payload: &[u8], now: Time) -> impl Iterator<Item = Result<Record<'_>, Malformed>> {
    let mut rest = Reader(payload);
    std::iter::from_fn(move || {
        if rest.0.is_empty() {
            return None;
        }
        let framed = rest.u8().and_then(|kind| Ok((kind, rest.u16()?))).and_then(|(kind, len)| {
            let body = rest.bytes(usize::from(len))?;
            Ok((kind, body))
        });
        Some(match framed {
            Ok((kind, body)) => decode(kind, body, now),
            Err(e) => {
                rest = Reader(&[]);
                Err(e)
            }
        })
    })
}

/// Reads the records of a payload and writes each anew; those of an unknown type are left out. What fuzzing holds reader
/// and writer to.
pub fn rewrite(payload: &[u8], now: Time) -> Vec<Result<Vec<u8>, Malformed>> {
    let known = records(payload, now).filter(|record| !matches!(record, Ok(Record::Unknown(_))));
    let rewrite = |record: Record<'_>| {
        let mut writer = Writer::new(Vec::new(), usize::MAX, now);
        writer.push(&record).then(|| writer.into_buf()).ok_or(Malformed)
    };
    known.map(|record| record.and_then(rewrite)).collect()
}

fn decode(kind: u8, body: &[u8], now: Time) -> Result<Record<'_>, Malformed> {
    let mut r = Reader(body);
    Ok(match kind {
        1 => {
            let seq = r.varint()?;
            let floor = seq.checked_sub(r.varint()?).filter(|&f| f > 0).ok_or(Malformed)?;
            Record::Sequence { seq, floor }
        }
        2 => {
            let cumulative = r.varint()?;
            let bitmap = r.rest();
            if bitmap.len() > ACK_SPAN as usize / 8 || cumulative > u64::MAX - 2 * ACK_SPAN {
                return Err(Malformed);
            }
            Record::Ack { cumulative, bitmap }
        }
        3 => Record::Hello(Hello {
            version: r.u8()?,
            enabled: r.u8()? & HELLO_ENABLED != 0,
            zones: r.u8()?,
            max_flows: r.varint()?,
            config_hash: r.u64()?,
            rules_hash: r.u64()?,
            name: name(r.rest())?,
        }),
        4 => {
            let mut claims = Vec::new();
            while !r.0.is_empty() {
                claims.push((r.term()?, r.buckets()?));
            }
            Record::Claims(claims)
        }
        5 => Record::Term(r.term()?),
        6 => {
            let (key, entry) = r.flow(now)?;
            Record::Flow(key, entry)
        }
        7 => {
            let d = r.tuple()?;
            Record::Delete(d)
        }
        8 => Record::Begin { flows: r.varint()?, buckets: r.buckets()? },
        9 => Record::End { bucket: r.u8()?, start: r.varint()?, count: r.varint()?, digest: r.u64()? },
        10 => {
            let buckets = r.buckets()?;
            Record::Digests(buckets.iter().map(|b| Ok((b, r.u64()?))).collect::<Result<_, _>>()?)
        }
        11 => Record::Agreed { seq: r.varint()?, buckets: r.buckets()? },
        12 => Record::Resync(r.buckets()?),
        13 => {
            let mut zones = Vec::new();
            while zones.len() < MAX_ZONES && !r.0.is_empty() {
                zones.push(r.u32()?);
            }
            Record::Zones(zones)
        }
        14 => {
            let (number, bucket, flags, offset) = (r.varint()?, r.u8()?, r.u8()?, r.varint()?);
            let digest = if flags & ASK_DIGEST != 0 { Some(r.u64()?) } else { None };
            Record::ListAsk(ListAsk { number, bucket, offset, digest })
        }
        15 => Record::List(r.list(now)?),
        16 => Record::Probe { answer: r.u8()? & PROBE_ANSWER != 0, id: r.varint()? },
        other => Record::Unknown(other),
    })
}

/// Printable, so that a name can go to a log or a terminal as it is.
fn name(bytes: &[u8]) -> Result<String, Malformed> {
    let name = bytes.get(..NAME_LEN_MAX).unwrap_or(bytes);
    if !name.iter().all(u8::is_ascii_graphic) {
        return Err(Malformed);
    }
    String::from_utf8(name.to_vec()).map_err(|_| Malformed)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, tail) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = tail;
        Ok(*head)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(|[b]| b)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    fn varint(&mut self) -> Result<u64, Malformed> {
        let mut n = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(n);
            }
        }
        Err(Malformed)
    }

    fn word(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    fn term(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed)
    }

    fn buckets(&mut self) -> Result<Buckets, Malformed> {
        self.array().map(|b| Buckets::from_bytes(&b))
    }

    fn address(&mut self, v4: bool) -> Result<[u8; 16], Malformed> {
        if !v4 {
            return self.array();
        }
        let mut mapped = [0; 16];
        mapped[10..12].fill(0xff);
        mapped[12..].copy_from_slice(&self.array::<4>()?);
        Ok(mapped)
    }

    fn tuple(&mut self) -> Result<Deletion, Malformed> {
        let (flags, proto, bucket) = (self.u8()?, self.u8()?, self.u8()?);
        let v4 = flags & FLAG_IPV6 == 0;
        let (src, dst) = (self.address(v4)?, self.address(v4)?);
        let (sport, dport) = (self.array().map(u16::from_be_bytes)?, self.array().map(u16::from_be_bytes)?);
        let id = FlowId { node: self.u8()?, epoch: self.u32()?, number: self.u64()?, zero: [0; 3] };
        let version = u64::from(self.term()?) << 32 | u64::from(self.term()?);
        if id.node == 0 || usize::from(id.node) > MAX_NODES {
            return Err(Malformed);
        }
        let (key, originator_is_b) = FlowKey::new(src, dst, sport, dport, proto);
        Ok(Deletion { key, originator_is_b, bucket, id, version })
    }

    fn list(&mut self, now: Time) -> Result<List, Malformed> {
        let (number, bucket, flags) = (self.varint()?, self.u8()?, self.u8()?);
        let (offset, total) = (self.varint()?, self.varint()?);
        let mut flows = Vec::new();
        while !self.0.is_empty() {
            let (flow, state, age_ms) = (self.tuple()?, self.state()?, self.varint()?);
            let changed_ns = now.as_nanos().saturating_sub(age_ms.saturating_mul(NS_PER_MS));
            flows.push(Listed { flow, state, changed_ns });
        }
        Ok(List { number, bucket, equal: flags & LIST_EQUAL != 0, offset, total, flows })
    }

    fn state(&mut self) -> Result<u8, Malformed> {
        let state = self.u8()?;
        if FlowState::from_u8(state).is_none_or(|s| s == FlowState::None) {
            return Err(Malformed);
        }
        Ok(state)
    }

    fn flow(&mut self, now: Time) -> Result<(FlowKey, Entry), Malformed> {
        let tuple = self.tuple()?;
        let (state, zones) = (self.state()?, [self.u8()?, self.u8()?]);
        let rule_hash = self.u32()?;
        // An age may exceed this node's uptime: then the flow began at the origin of its clock.
        let ago = |ms: u64| now.as_nanos().saturating_sub(ms.saturating_mul(NS_PER_MS));
        let created_ns = ago(self.varint()?);
        let mut seen = || match self.varint()? {
            0 => Ok(0),
            idle => Ok(ago(idle - 1).max(1)),
        };
        let last_seen_ns = [seen()?, seen()?];
        let packets = [self.varint()?, self.varint()?];
        let bytes = [self.varint()?, self.varint()?];
        let mss = u16::try_from(self.varint()?).map_err(|_| Malformed)?;
        let handshake = [self.word()?, self.word()?];
        // A peer that ends here knows of no SYN proxy.
        let delta = if self.0.is_empty() { 0 } else { self.word()? };
        let entry = Entry {
            created_ns,
            last_seen_ns,
            packets,
            bytes,
            version: tuple.version,
            id: tuple.id,
            rule_hash,
            state,
            bucket: tuple.bucket,
            zones,
            originator_is_b: tuple.originator_is_b,
            mss,
            handshake,
            delta,
        };
        Ok((tuple.key, entry))
    }
}

#[cfg(test)]
mod tests;

//! Writes pcapng (draft-ietf-opsawg-pcapng), as far as a capture of dropped packets needs it: Ethernet, times in
//! ns, interfaces with names, a comment for each packet.
//!
//! ```text
//!   block   type (u32)  length (u32)  body, options  length (u32)     all little-endian
//!   option  code (u16)  length (u16)  value, padded to 4 bytes        the last is code 0, length 0
//! ```

use std::io::{self, Write};

/// Section Header Block, the first of a file.
const SECTION: u32 = 0x0a0d_0d0a;
/// Interface Description Block, before the interface's first packet.
const INTERFACE: u32 = 1;
/// Enhanced Packet Block.
const PACKET: u32 = 6;

/// Tells the byte order.
const MAGIC: u32 = 0x1a2b_3c4d;
/// Version 1.0.
const VERSION: [u16; 2] = [1, 0];
/// A section whose length is not known at its beginning.
const UNKNOWN_LEN: i64 = -1;
/// LINKTYPE_ETHERNET.
const ETHERNET: u16 = 1;

/// Options. The first two are of every block, the others of the one that they are named after.
const END: u16 = 0;
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;

/// Times are in units of 10^-9 s.
const NANOSECONDS: u8 = 9;

/// Which way a packet went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// It came in.
    In = 1,
    /// It was about to leave.
    Out = 2,
}

/// A packet to be written.
pub(super) struct Packet<'a> {
    /// Its interface.
    pub(super) interface: &'a str,
    /// ns since 1970.
    pub(super) at_unix_ns: u64,
    /// Its length on the wire.
    pub(super) length: u32,
    /// Its first bytes.
    pub(super) bytes: &'a [u8],
    /// What is to be said of it.
    pub(super) comment: &'a str,
    /// Which way it went.
    pub(super) direction: Direction,
}

/// A file under way.
pub(super) struct Writer<W> {
    out: W,
    /// Bytes of a packet at most.
    snap_len: u32,
    /// Interfaces described so far; a packet names its own by its place here.
    interfaces: Vec<String>,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    pub(super) fn new(mut out: W, application: &str, snap_len: u32) -> io::Result<Self> {
        let mut block = Block::new(SECTION);
        block.u32(MAGIC);
        block.u16(VERSION[0]);
        block.u16(VERSION[1]);
        block.bytes(&UNKNOWN_LEN.to_le_bytes());
        block.option(SECTION_APPLICATION, application.as_bytes());
        block.write(&mut out)?;
        Ok(Self { out, snap_len, interfaces: Vec::new() })
    }

    /// Writes a packet, and before the first of an interface what that is.
    pub(super) fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let interface = self.interface(packet.interface)?;
        let mut block = Block::new(PACKET);
        block.u32(interface);
        block.u32((packet.at_unix_ns >> 32) as u32);
        block.u32(packet.at_unix_ns as u32);
        block.u32(packet.bytes.len() as u32);
        block.u32(packet.length);
        block.padded(packet.bytes);
        block.option(COMMENT, packet.comment.as_bytes());
        block.option(PACKET_FLAGS, &(packet.direction as u32).to_le_bytes());
        block.write(&mut self.out)
    }

    /// Makes what was written so far visible.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the file. One without packets describes an interface all the same: without any, tcpdump refuses it.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.interfaces.is_empty() {
            self.interface("none")?;
        }
        self.flush()
    }

    fn interface(&mut self, name: &str) -> io::Result<u32> {
        if let Some(known) = self.interfaces.iter().position(|known| known == name) {
            return Ok(known as u32);
        }
        let mut block = Block::new(INTERFACE);
        block.u16(ETHERNET);
        block.u16(0);
        block.u32(self.snap_len);
        block.option(INTERFACE_NAME, name.as_bytes());
        block.option(INTERFACE_RESOLUTION, &[NANOSECONDS]);
        block.write(&mut self.out)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() as u32 - 1)
    }
}

/// A block under construction.
struct Block(Vec<u8>);

impl Block {
    fn new(kind: u32) -> Self {
        let mut block = Self(Vec::new());
        block.u32(kind);
        // Its length, when that is known.
        block.u32(0);
        block
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.bytes(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Adds an option; what is too long for one is cut off.
    fn option(&mut self, code: u16, value: &[u8]) {
        let value = &value[..value.len().min(usize::from(u16::MAX))];
        self.u16(code);
        self.u16(value.len() as u16);
        self.padded(value);
    }

    /// Ends the options and the block.
    fn write(mut self, out: &mut impl Write) -> io::Result<()> {
        self.option(END, &[]);
        let length = self.0.len() as u32 + 4;
        self.u32(length);
        self.0[4..8].copy_from_slice(&length.to_le_bytes());
        out.write_all(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_packets_describes_an_interface() {
        let mut empty = Vec::new();
        Writer::new(&mut empty, "fwha", 256).unwrap().finish().unwrap();
        #[rustfmt::skip]
        let expected = [
            &[1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0][..],
            &[2, 0, 4, 0], b"none", &[9, 0, 1, 0, 9, 0, 0, 0], &[0, 0, 0, 0, 40, 0, 0, 0],
        ]
        .concat();
        assert_eq!(empty[40..], expected, "behind the section");
    }

    #[test]
    fn a_file_has_these_very_bytes() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "fwha", 256).unwrap();
        let packet = |interface, at_unix_ns, bytes, direction| Packet {
            interface,
            at_unix_ns,
            length: 60,
            bytes,
            comment: "no_rule",
            direction,
        };
        let at = 0x1811_2233_4455_6677;
        writer.packet(&packet("wan", at, &[1, 2, 3, 4, 5], Direction::In)).unwrap();
        writer.packet(&packet("eth0", at + 1, &[6, 7, 8, 9], Direction::Out)).unwrap();
        writer.packet(&packet("wan", at, &[], Direction::In)).unwrap();
        writer.finish().unwrap();
        #[rustfmt::skip]
        let expected = [
            // The section: byte order, version, no length; application.
            &[0x0a, 0x0d, 0x0d, 0x0a, 40, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a, 1, 0, 0, 0][..],
            &[0xff; 8], &[4, 0, 4, 0], b"fwha", &[0, 0, 0, 0, 40, 0, 0, 0],
            // Interface 0: Ethernet, 256 bytes; name, resolution.
            &[1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0],
            &[2, 0, 3, 0], b"wan\0", &[9, 0, 1, 0, 9, 0, 0, 0], &[0, 0, 0, 0, 40, 0, 0, 0],
            // A packet: interface, time, captured, length; bytes; comment, flags.
            &[6, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 0x33, 0x22, 0x11, 0x18, 0x77, 0x66, 0x55, 0x44],
            &[5, 0, 0, 0, 60, 0, 0, 0], &[1, 2, 3, 4, 5, 0, 0, 0],
            &[1, 0, 7, 0], b"no_rule\0", &[2, 0, 4, 0, 1, 0, 0, 0], &[0, 0, 0, 0, 64, 0, 0, 0],
            // Interface 1.
            &[1, 0, 0, 0, 40, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0],
            &[2, 0, 4, 0], b"eth0", &[9, 0, 1, 0, 9, 0, 0, 0], &[0, 0, 0, 0, 40, 0, 0, 0],
            &[6, 0, 0, 0, 60, 0, 0, 0, 1, 0, 0, 0, 0x33, 0x22, 0x11, 0x18, 0x78, 0x66, 0x55, 0x44],
            &[4, 0, 0, 0, 60, 0, 0, 0], &[6, 7, 8, 9],
            &[1, 0, 7, 0], b"no_rule\0", &[2, 0, 4, 0, 2, 0, 0, 0], &[0, 0, 0, 0, 60, 0, 0, 0],
            // Interface 0 once more, and a packet without a byte.
            &[6, 0, 0, 0, 56, 0, 0, 0, 0, 0, 0, 0, 0x33, 0x22, 0x11, 0x18, 0x77, 0x66, 0x55, 0x44],
            &[0, 0, 0, 0, 60, 0, 0, 0],
            &[1, 0, 7, 0], b"no_rule\0", &[2, 0, 4, 0, 1, 0, 0, 0], &[0, 0, 0, 0, 56, 0, 0, 0],
        ]
        .concat();
        assert_eq!(file, expected);
    }
}

//! A TCP connection through the firewalls, both ends of which a test holds.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};

use crate::lab::{Host, Lab};
use crate::pair::PATIENCE;

/// The connection.
pub struct Conversation {
    client: TcpStream,
    server: TcpStream,
}

impl Conversation {
    /// Opens it from a box and one of its addresses to where somebody listens.
    ///
    /// # Errors
    ///
    /// When it is refused, or never answered.
    pub fn open(lab: &Lab, host: Host, from: Ipv4Addr, listener: &TcpListener) -> Result<Conversation> {
        let to = match listener.local_addr()? {
            std::net::SocketAddr::V4(to) => to,
            std::net::SocketAddr::V6(to) => anyhow::bail!("{to} is not an address of IPv4"),
        };
        let client = lab.within(host, || -> nix::Result<TcpStream> {
            let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            bind(fd.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(from, 0)))?;
            connect(fd.as_raw_fd(), &SockaddrIn::from(to))?;
            Ok(TcpStream::from(fd))
        })?;
        let client = client.with_context(|| format!("connect from {from} to {to}"))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
            end.set_nodelay(true)?;
        }
        Ok(Conversation { client, server })
    }

    /// A word there and a word back.
    ///
    /// # Errors
    ///
    /// When one does not arrive.
    pub fn talk(&mut self) -> Result<()> {
        let mut word = [0; 4];
        self.client.write_all(b"ping")?;
        self.server.read_exact(&mut word).context("no word from the client")?;
        self.server.write_all(b"pong")?;
        self.client.read_exact(&mut word).context("no word from the server")?;
        ensure!(&word == b"pong");
        Ok(())
    }
}

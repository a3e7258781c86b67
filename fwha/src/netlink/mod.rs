//! The network as the kernel tells it by netlink: interfaces, addresses, routes, neighbours; and
//! gratuitous ARP, which tells the neighbours in turn.
//!
//! | module | does |
//! |---|---|
//! | [`links`] | lists interfaces |
//! | [`ipsec`] | counts IPsec policies |
//! | [`addresses`] | adds and removes VIPs, recognises leftovers |
//! | [`garp`] | announces VIPs |
//! | `bell` | rings when routes change |
//! | [`lookup`] | asks which way a packet goes |
//! | [`macs`] | further MACs of an interface |
//! | [`routes`] | adds and removes routes and rules that follow a group, recognises leftovers |
//! | [`monitor`] | follows changes |
//! | [`mod@neighbours`] | whom the kernel knows on a link, and which of them are in use |
//! | [`xdp`] | asks what interfaces can do with XDP |
//!
//! The netlink crates change with every release; no other module uses them.

use std::{io, thread};

use rtnetlink::Handle;

pub mod addresses;
mod bell;
pub mod garp;
pub mod ipsec;
pub mod links;
pub mod lookup;
pub mod macs;
pub mod monitor;
pub mod neighbours;
pub mod plain;
pub mod routes;
#[cfg(test)]
mod tests;
pub mod xdp;

pub use addresses::{Address, Addresses, OwnAddresses};
pub use garp::Garp;
pub use links::{Link, Vlan};
pub use macs::Macs;
pub use monitor::{Monitor, NetworkEvent};
pub use neighbours::{Station, neighbours, use_stale};
pub use routes::{Route, Routes, Routing, Rule};
pub use xdp::{XdpFeatures, xdp_features};

/// A failure to talk with the kernel.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    /// The kernel refused, or its answer made no sense.
    #[error("cannot {what}: {source}")]
    Request {
        /// What was asked for.
        what: String,
        /// What came back.
        source: io::Error,
    },
}

fn request_error(what: impl Into<String>, error: rtnetlink::Error) -> NetlinkError {
    NetlinkError::Request { what: what.into(), source: into_io(error) }
}

/// The kernel's error number, where there is one.
fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// A connection, driven by a task of the present tokio runtime until its last handle is dropped.
fn connect() -> Result<Handle, NetlinkError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The same, and lists are what was asked for only: the kernel filters them (`NETLINK_GET_STRICT_CHK`). One that may be long
/// is to be read to its end: nothing else stops the kernel from sending it, see [`talk`].
fn connect_strict() -> Result<Handle, NetlinkError> {
    let (connection, handle, _) =
        rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Socket)?;
    tokio::spawn(connection);
    Ok(handle)
}

/// Talks over a connection of its own, as [`connect_strict`] has it, which ends with the talk: what the kernel would have said
/// beyond that is neither sent nor read.
async fn talk<T>(talk: impl AsyncFnOnce(Handle) -> Result<T, NetlinkError>) -> Result<T, NetlinkError> {
    let (connection, handle, _messages) =
        rtnetlink::new_connection_with_strict_check().map_err(NetlinkError::Socket)?;
    tokio::select! {
        said = talk(handle) => said,
        () = connection => Err(NetlinkError::Socket(io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Runs a few requests of rtnetlink to their end, as [`run`] does.
fn blocking<T: Send>(
    requests: impl AsyncFnOnce(Handle) -> Result<T, NetlinkError> + Send,
) -> Result<T, NetlinkError> {
    run(async || requests(connect()?).await)
}

/// Runs a few requests to their end, wherever the caller is: inside a runtime or without one.
fn run<T: Send>(requests: impl AsyncFnOnce() -> Result<T, NetlinkError> + Send) -> Result<T, NetlinkError> {
    // A thread of its own, because a runtime cannot be started within a runtime. It inherits the
    // network namespace of the calling thread.
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()
                .map_err(NetlinkError::Socket)?
                .block_on(requests())
        });
        worker.join().unwrap_or_else(|_| Err(NetlinkError::Socket(io::Error::other("worker panicked"))))
    })
}

//! A descriptor that the runtime watches.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use tokio::io::{
    Interest,
    unix::{AsyncFd, AsyncFdReadyGuard},
};

/// Wakes a task when a descriptor becomes readable.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Watches a duplicate of `fd`. To be called within the runtime.
    ///
    /// # Errors
    ///
    /// Those of `fcntl(2)` and `epoll_ctl(2)`.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let fd = fd.try_clone_to_owned()?;
        // SAFETY: the duplicate is open, nobody else has it, and it can neither be taken out of a
        // `Watch` nor exchanged before that is dropped.
        let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        watched.map(Self).map_err(|error| error.into_parts().1)
    }

    /// Waits until it is readable. Whoever then finds nothing to read says so to the guard.
    ///
    /// # Errors
    ///
    /// The runtime shuts down.
    pub async fn readable(&self) -> io::Result<AsyncFdReadyGuard<'_, OwnedFd>> {
        self.0.readable().await
    }
}

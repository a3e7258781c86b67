//! Messages to a thread that sleeps in `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// The sending end. Clones send to the same thread.
pub struct Mailbox<T> {
    sender: Sender<T>,
    wake: Arc<EventFd>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wake: Arc::clone(&self.wake) }
    }
}

/// The receiving end; readable while there is something to take.
pub struct Letters<T> {
    receiver: Receiver<T>,
    wake: Arc<EventFd>,
}

/// Both ends.
///
/// # Errors
/// Those of `eventfd(2)`.
pub fn mailbox<T>() -> io::Result<(Mailbox<T>, Letters<T>)> {
    let (sender, receiver) = mpsc::channel();
    let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let wake = Arc::new(wake);
    Ok((Mailbox { sender, wake: Arc::clone(&wake) }, Letters { receiver, wake }))
}

impl<T> Mailbox<T> {
    /// Sends a message and wakes the thread. Whether the thread is still there.
    pub fn send(&self, message: T) -> bool {
        let there = self.sender.send(message).is_ok();
        // This fails only when the counter is full, and then the descriptor is readable already.
        let _ = self.wake.write(1);
        there
    }
}

impl<T> Letters<T> {
    /// Makes the descriptor unreadable; to be called before [`Self::take`] until that is empty.
    pub fn acknowledge(&self) {
        // Nothing to read is as good as read.
        let _ = self.wake.read();
    }

    /// The next message, if there is one.
    pub fn take(&self) -> Option<T> {
        self.receiver.try_recv().ok()
    }
}

impl<T> AsFd for Letters<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

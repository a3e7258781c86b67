//! Looks at the config file, on a file system that may hang: one thread at a time does, and nobody waits for it for long.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::config::Config;

/// How long a look may take before it is said that the file cannot be read.
const WAIT: Duration = Duration::from_millis(200);

/// Whether the file is still what is in force.
#[derive(Debug, Default)]
pub struct ConfigFile {
    /// A look that has not ended.
    pending: Mutex<Option<Receiver<Result<bool, String>>>>,
}

impl ConfigFile {
    /// As [`Config::is_on_disk`], but for no longer than a fifth of a second.
    ///
    /// # Errors
    /// What is wrong with the file, or that it cannot be read in time.
    pub fn is_in_force(&self, config: &Arc<Config>) -> Result<bool, String> {
        let config = Arc::clone(config);
        self.look(move || config.is_on_disk())
    }

    fn look(&self, look: impl FnOnce() -> Result<bool, String> + Send + 'static) -> Result<bool, String> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match pending.take() {
            Some(found) => found,
            None => {
                let (tell, found) = channel();
                let thread = thread::Builder::new().name("config-file".into());
                let looks = move || {
                    // Whoever asked may have ended.
                    let _ = tell.send(look());
                };
                thread.spawn(looks).map_err(|error| format!("cannot be looked at: {error}"))?;
                found
            }
        };
        match found.recv_timeout(WAIT) {
            Ok(found) => found,
            Err(RecvTimeoutError::Timeout) => {
                *pending = Some(found);
                Err("the config file cannot be read in time: its file system hangs".into())
            }
            Err(RecvTimeoutError::Disconnected) => Err("the config file cannot be looked at".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_look_that_hangs_is_the_only_one() {
        static LOOKS: AtomicUsize = AtomicUsize::new(0);
        let (file, (answer, hangs)) = (ConfigFile::default(), channel());
        let hanging = move || {
            LOOKS.fetch_add(1, Ordering::Relaxed);
            hangs.recv().expect("an answer")
        };
        assert!(file.look(hanging).unwrap_err().contains("in time"));
        let other = || {
            LOOKS.fetch_add(1, Ordering::Relaxed);
            Ok(true)
        };
        assert!(file.look(other).is_err());
        answer.send(Ok(false)).expect("it waits");
        assert_eq!((file.look(other), LOOKS.load(Ordering::Relaxed)), (Ok(false), 1));
        assert_eq!((file.look(other), LOOKS.load(Ordering::Relaxed)), (Ok(true), 2));
    }
}

//! What the thread that moves addresses cannot do, as long as that is so: for `status` and metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fwha_proto::election::GroupId;

/// What there may be to complain of, one lasting beside another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Complaint {
    /// Who else claims the addresses cannot be seen.
    Claims,
    /// Addresses that do not belong here cannot be removed.
    Leftovers,
    /// Addresses cannot be listed.
    List,
    /// Addresses cannot be kept until another node has them.
    Leaving,
    /// Addresses of a group cannot be added.
    Vip(GroupId),
    /// A route or rule cannot be added.
    Route,
    /// Those that there are cannot be listed, or one that does not belong here cannot be removed.
    RouteLeftovers,
    /// A route or rule of others is in the way of one.
    RouteInTheWay,
}

/// All that is wrong now. Shared by threads.
#[derive(Debug, Default)]
pub struct Troubles {
    now: Mutex<BTreeMap<Complaint, String>>,
    failures: AtomicU64,
}

impl Troubles {
    /// It went wrong.
    pub fn failed(&self, what: Complaint, text: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(what, text);
    }

    /// It went well, or nobody wants it any more.
    pub fn over(&self, what: Complaint) {
        self.lock().remove(&what);
    }

    /// Whether this is wrong.
    pub fn has(&self, what: Complaint) -> bool {
        self.lock().contains_key(&what)
    }

    /// In words, each.
    pub fn texts(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    /// How often something has gone wrong since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Complaint, String>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_is_told_no_more_and_stays_counted() {
        let troubles = Troubles::default();
        for text in ["no such device", "no buffer"] {
            troubles.failed(Complaint::Vip(1), text.into());
        }
        troubles.failed(Complaint::Route, "no route to host".into());
        assert_eq!(troubles.texts(), ["no buffer", "no route to host"]);
        troubles.over(Complaint::Vip(1));
        troubles.over(Complaint::List);
        assert_eq!((troubles.texts(), troubles.failures()), (vec!["no route to host".to_owned()], 3));
        assert!(troubles.has(Complaint::Route) && !troubles.has(Complaint::Vip(1)));
    }
}

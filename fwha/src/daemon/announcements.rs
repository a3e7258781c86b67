//! What is said to the neighbours: gratuitous ARP and unsolicited neighbour advertisements, as fast as each
//! group allows.
//!
//! Addresses wait in a queue for each group, so that the slowness of one does not hold up another, nor the
//! addresses themselves. When an announcement begins before the one before it has ended, an address that
//! still waits keeps its place: with a thousand of them the last have their turn, too.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use fwha_proto::election::GroupId;
use tokio::time::Instant;

use crate::config::Config;
use crate::netlink::{Address, Garp};

/// For each group the time between two addresses of an announcement.
pub fn intervals(config: &Config) -> BTreeMap<GroupId, Duration> {
    config.groups.iter().map(|group| (group.id, group.announce.interval)).collect()
}

/// What waits to be announced, and the sockets for it.
pub struct Announcements {
    /// A socket on each interface.
    garps: BTreeMap<u32, Garp>,
    queues: Queues,
}

impl Announcements {
    /// Nothing waits.
    pub fn new(garps: BTreeMap<u32, Garp>, intervals: BTreeMap<GroupId, Duration>) -> Self {
        Self { garps, queues: Queues { intervals, waiting: BTreeMap::new() } }
    }

    /// The interfaces, by index.
    pub fn interfaces(&self) -> impl Iterator<Item = u32> + '_ {
        self.garps.keys().copied()
    }

    /// Announces addresses: what may go at once has gone when this returns.
    pub fn announce(&mut self, addresses: impl IntoIterator<Item = (GroupId, Address)>) {
        let now = Instant::now();
        addresses.into_iter().for_each(|(group, address)| self.queues.push(now, group, address));
        self.send_due(now);
    }

    /// Sends what is due next, when it is. Can be dropped at any time.
    pub async fn next(&mut self) {
        match self.queues.due() {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
        self.send_due(Instant::now());
    }

    /// Nothing of a group is to be announced any more.
    pub fn forget(&mut self, group: GroupId) {
        self.queues.waiting.remove(&group);
    }

    /// The same for one address.
    pub fn forget_address(&mut self, group: GroupId, address: &Address) {
        if let Some(queue) = self.queues.waiting.get_mut(&group) {
            queue.addresses.retain(|a| a != address);
        }
    }

    /// The config has changed.
    pub fn set_intervals(&mut self, intervals: BTreeMap<GroupId, Duration>) {
        self.queues.intervals = intervals;
    }

    /// An interface has another index or MAC. What waited for it is forgotten: the addresses are to be
    /// announced anew.
    pub fn replace(&mut self, before: u32, now: u32, garp: Garp) {
        self.garps.remove(&before);
        self.garps.insert(now, garp);
        for queue in self.queues.waiting.values_mut() {
            queue.addresses.retain(|a| a.ifindex != before);
        }
    }

    fn send_due(&mut self, now: Instant) {
        let addresses = self.queues.take(now);
        for (ifindex, garp) in &self.garps {
            let vips: Vec<IpAddr> =
                addresses.iter().filter(|a| a.ifindex == *ifindex).map(|a| a.address).collect();
            if let Err(error) = garp.announce(vips) {
                tracing::warn!(ifindex, "cannot announce addresses: {error}");
            }
        }
    }
}

/// The addresses that wait.
#[derive(Default)]
struct Queues {
    /// None, or zero: all at once.
    intervals: BTreeMap<GroupId, Duration>,
    waiting: BTreeMap<GroupId, Queue>,
}

struct Queue {
    addresses: VecDeque<Address>,
    /// When the next may go.
    due: Instant,
}

impl Queues {
    fn push(&mut self, now: Instant, group: GroupId, address: Address) {
        let queue = self.waiting.entry(group).or_insert(Queue { addresses: VecDeque::new(), due: now });
        if !queue.addresses.contains(&address) {
            queue.addresses.push_back(address);
        }
    }

    /// When there is something to do.
    fn due(&self) -> Option<Instant> {
        self.waiting.values().map(|queue| queue.due).min()
    }

    /// What may go now.
    fn take(&mut self, now: Instant) -> Vec<Address> {
        let mut taken = Vec::new();
        for (group, queue) in self.waiting.iter_mut().filter(|(_, queue)| queue.due <= now) {
            match self.intervals.get(group) {
                Some(&interval) if !interval.is_zero() => {
                    let Some(next) = queue.addresses.pop_front() else { continue };
                    taken.push(next);
                    queue.due = now + interval;
                }
                _ => taken.extend(queue.addresses.drain(..)),
            }
        }
        // One whose last address has just gone stays until the next could go.
        self.waiting.retain(|_, queue| !queue.addresses.is_empty() || queue.due > now);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> Address {
        Address { ifindex: 1, address: IpAddr::from([10, 0, 0, n]), prefix_len: 24 }
    }

    fn taken(queues: &mut Queues, now: Instant) -> Vec<u8> {
        let last = |a: Address| match a.address {
            IpAddr::V4(a) => a.octets()[3],
            IpAddr::V6(_) => 0,
        };
        queues.take(now).into_iter().map(last).collect()
    }

    #[test]
    fn a_paced_group_waits_between_addresses_and_no_other_waits_with_it() {
        let (start, ms) = (Instant::now(), Duration::from_millis);
        let mut queues = Queues { intervals: [(0, ms(10)), (1, ms(0))].into(), ..Queues::default() };
        (1..=3).for_each(|n| queues.push(start, 0, address(n)));
        (4..=6).for_each(|n| queues.push(start, 1, address(n)));
        assert_eq!(taken(&mut queues, start), [1, 4, 5, 6]);
        assert_eq!(queues.due(), Some(start + ms(10)));
        assert_eq!(taken(&mut queues, start + ms(9)), [0; 0]);
        assert_eq!(taken(&mut queues, start + ms(10)), [2]);
        // Again, before the last had its turn.
        (1..=3).for_each(|n| queues.push(start + ms(11), 0, address(n)));
        assert_eq!([20, 30, 40].map(|n| taken(&mut queues, start + ms(n))), [[3], [1], [2]]);
        queues.push(start + ms(41), 0, address(9));
        assert_eq!(taken(&mut queues, start + ms(41)), [0; 0], "the pace is kept between announcements");
        assert_eq!(taken(&mut queues, start + ms(50)), [9]);
        assert_eq!(taken(&mut queues, start + ms(60)), [0; 0]);
        assert_eq!(queues.due(), None);
    }
}

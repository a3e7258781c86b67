//! Tells the programs of plain routes, so that they need not ask the kernel for each new flow.
//!
//! What the programs are told holds for one route generation. Whoever raises that makes them ask the kernel until
//! the routes have been listed anew, which is done once nothing has changed for a moment. They are listed from time to
//! time, too, for what the kernel changes without a word.

use std::time::Duration;

use fwha_common::route::Prefix;
use tokio::time::{Instant, sleep_until};

use crate::dataplane::maps::route_generation_after;
use crate::dataplane::{DataplaneError, Maps};
use crate::netlink::plain::plain_routes;

/// For how long nothing changes before routes are listed: a routing daemon moves many at once, and the kernel tells of some
/// changes before it makes them.
const SETTLE: Duration = Duration::from_millis(100);
/// For how long at most, if something changes all the time: a host that goes from one MAC to another and back would keep all
/// others without.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// How often they are listed anyway.
const CHECK: Duration = Duration::from_secs(10);

/// Keeps the programs informed.
#[derive(Debug)]
pub struct PlainRoutes {
    due: Instant,
    /// When the first change was that they have not been listed after.
    since: Option<Instant>,
    /// What they know, and of which route generation it is.
    told: Option<(u32, [Vec<Prefix>; 2])>,
}

impl PlainRoutes {
    /// They are told soon.
    pub fn new() -> Self {
        Self { due: Instant::now() + SETTLE, since: None, told: None }
    }

    /// Something in the network changed, or may have.
    pub fn changed(&mut self) {
        self.changed_at(Instant::now());
    }

    fn changed_at(&mut self, now: Instant) {
        let since = *self.since.get_or_insert(now);
        self.due = (now + SETTLE).min(since + SETTLE_MAX);
    }

    /// Cached next hops are out of date, and the routes are as they were: the programs know them on, without a gap.
    pub fn neighbour_moved(&mut self, maps: &Maps) {
        if let Err(error) = self.carry_on(maps) {
            tracing::warn!("the kernel is asked for the route of each new flow: {error:#}");
        }
        if let Err(error) = maps.next_route_generation() {
            tracing::error!("cached next hops may be out of date: {error}");
        }
    }

    /// Tells the programs what they know for the next route generation, before that is.
    fn carry_on(&mut self, maps: &Maps) -> Result<(), DataplaneError> {
        let generation = maps.settings()?.route_generation;
        if let Some((told, routes)) = &mut self.told
            && *told == generation
        {
            let next = route_generation_after(generation);
            publish(maps, next, routes)?;
            *told = next;
        }
        Ok(())
    }

    /// Waits until it is time for [`Self::tell`]. The future may be dropped.
    pub async fn due(&self) {
        sleep_until(self.due).await;
    }

    /// Lists the routes and tells the programs.
    pub async fn tell(&mut self, maps: &Maps) {
        self.due = Instant::now() + CHECK;
        self.since = None;
        if let Err(error) = self.list(maps).await {
            tracing::warn!("the kernel is asked for the route of each new flow: {error:#}");
        }
    }

    async fn list(&mut self, maps: &Maps) -> anyhow::Result<()> {
        // First: a change from here on makes what is listed out of date.
        let mut generation = maps.settings()?.route_generation;
        let routes = plain_routes().await?;
        if let Some((told, known)) = &self.told
            && *told == generation
        {
            if *known == routes {
                return Ok(());
            }
            maps.next_route_generation()?;
            generation = maps.settings()?.route_generation;
        }
        self.told = None;
        publish(maps, generation, &routes)?;
        self.told = Some((generation, routes));
        Ok(())
    }
}

fn publish(maps: &Maps, generation: u32, [v4, v6]: &[Vec<Prefix>; 2]) -> Result<(), DataplaneError> {
    maps.set_plain_routes(false, generation, v4)?;
    maps.set_plain_routes(true, generation, v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_settles_is_listed_all_the_same() {
        let (mut plain, begun) = (PlainRoutes::new(), Instant::now());
        let mut now = begun;
        while plain.due > now {
            plain.changed_at(now);
            let settled = now + SETTLE;
            assert_eq!(plain.due, settled.min(begun + SETTLE_MAX));
            now += SETTLE / 5;
        }
        assert_eq!(now, begun + SETTLE_MAX);
    }
}

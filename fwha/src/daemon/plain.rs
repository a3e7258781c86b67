//! Tells the programs of plain routes, so that they need not ask the kernel for each new flow.
//!
//! What the programs are told holds for one route generation. Whoever raises that makes them ask the kernel until
//! the routes have been listed anew, which is done once nothing has changed for a moment. They are listed from time to
//! time, too, for what the kernel changes without a word.

use std::time::Duration;

use fwha_common::route::Prefix;
use tokio::time::{Instant, sleep_until};

use crate::dataplane::{DataplaneError, Maps};
use crate::netlink::plain::plain_routes;

/// For how long nothing changes before routes are listed: a routing daemon moves many at once, and the kernel tells of some
/// changes before it makes them.
const SETTLE: Duration = Duration::from_millis(100);
/// How often they are listed anyway.
const CHECK: Duration = Duration::from_secs(10);

/// Keeps the programs informed.
#[derive(Debug)]
pub struct PlainRoutes {
    due: Instant,
    /// What they know, and of which route generation it is.
    told: Option<(u32, [Vec<Prefix>; 2])>,
}

impl PlainRoutes {
    /// They are told soon.
    pub fn new() -> Self {
        Self { due: Instant::now() + SETTLE, told: None }
    }

    /// Something in the network changed, or may have.
    pub fn changed(&mut self) {
        self.due = Instant::now() + SETTLE;
    }

    /// Waits until it is time for [`Self::tell`]. The future may be dropped.
    pub async fn due(&self) {
        sleep_until(self.due).await;
    }

    /// Lists the routes and tells the programs.
    pub async fn tell(&mut self, maps: &Maps) {
        self.due = Instant::now() + CHECK;
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

//! Another cluster file while the election goes on: roles, terms and peers stay as they are.

use std::net::IpAddr;

use super::Election;
use super::config::{Config, ConfigError, GroupConfig, Instance, TrackerConfig};
use crate::time::Time;
use crate::vrrp::machine::Machine;
use crate::vrrp::packet::PRIORITY_RELEASE;

impl Election {
    /// The cluster file was read again: its hash, its groups, the trackers of this node, and the witnesses. The groups
    /// are the same groups with the same members and the same version of VRRP; priorities, preemption, intervals and virtual
    /// routers may be others. [`GroupConfig::start`] does not matter.
    ///
    /// # Errors
    /// See [`Config::check`]; nothing has changed then.
    pub fn reload(
        &mut self,
        now: Time,
        config_hash: u64,
        groups: Vec<GroupConfig>,
        trackers: Vec<TrackerConfig>,
        witnesses: Vec<IpAddr>,
    ) -> Result<(), ConfigError> {
        self.advance(now);
        let config = Config { config_hash, groups, trackers, witnesses, ..self.config.clone() };
        config.check()?;
        for new in &config.groups {
            if let Some(g) = self.groups.iter().position(|g| g.config.group == new.group) {
                self.reload_group(g, new);
            }
        }
        self.set_trackers(config.trackers.clone());
        self.witnesses.set(self.clock, &config.witnesses);
        self.config = config;
        (self.beat_due, self.judge_due) = (true, true);
        Ok(())
    }

    fn reload_group(&mut self, g: usize, new: &GroupConfig) {
        let now = self.clock;
        let me = self.me();
        let old = self.groups[g].config.instances.clone();
        let active = self.groups[g].is_active();
        for i in (0..old.len()).filter(|&i| active && !new.instances.iter().any(|n| same(n, &old[i]))) {
            self.advertise(g, i, Some(PRIORITY_RELEASE));
        }
        let group = &mut self.groups[g];
        group.place = new.members.iter().position(|m| m.0 == me);
        let priority = group.place.map_or(1, |p| new.members[p].1);
        let machine = |instance: &Instance| {
            let known = old.iter().position(|o| same(o, instance)).map(|i| group.machines[i].clone());
            known.unwrap_or_else(|| {
                let mut machine = Machine::new(now, priority, new.advert_interval_cs, new.version);
                if active {
                    machine.become_active(now);
                }
                machine
            })
        };
        group.machines = new.instances.iter().map(machine).collect();
        if active && group.config.announce.refresh != new.announce.refresh {
            group.refresh = new.announce.refresh.map(|rhythm| now + rhythm);
        }
        group.config = new.clone();
        let priority = group.priority();
        group.machines.iter_mut().for_each(|m| m.set_priority(priority));
        if addresses(&old) == addresses(&new.instances) {
            return;
        }
        // These name virtual routers by their places in the list.
        group.outranked = None;
        group.unheard.clear();
        group.reloaded = now;
        for i in (0..new.instances.len()).filter(|_| active) {
            let instance = &new.instances[i];
            let unchanged = |o: &Instance| same(o, instance) && o.addresses == instance.addresses;
            if !old.iter().any(unchanged) {
                self.advertise(g, i, None);
            }
        }
    }
}

/// Whether these are one virtual router.
fn same(a: &Instance, b: &Instance) -> bool {
    let family = |i: &Instance| i.addresses.first().map(std::net::IpAddr::is_ipv6);
    (a.zone, a.vrid, family(a)) == (b.zone, b.vrid, family(b))
}

fn addresses(instances: &[Instance]) -> Vec<(u8, u8, &[std::net::IpAddr])> {
    instances.iter().map(|i| (i.zone, i.vrid, &i.addresses[..])).collect()
}

//! What is different in another version of the config file, in the file's own words.

use std::fmt::Display;
use std::time::Duration;

use fwha_common::limit::Limits;

use super::{
    Announce, Cluster, Config, Group, Hook, Metrics, Node, NodeId, Replication, Rule, Sync, Vip, Zone,
    ZoneId, timeouts, value::show_duration,
};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is: `rule "web" added`.
    pub text: String,
    /// A running daemon cannot take it over.
    pub restart: bool,
}

/// What is different in `new`, for node `me`. What goes comes before what comes.
pub fn diff(old: &Config, new: &Config, me: NodeId) -> Vec<Change> {
    // A new section does not get lost: every field is named, here and below.
    let Config {
        cluster,
        keys,
        key_file,
        sync,
        replication,
        timeouts,
        limits,
        metrics,
        nodes,
        zones,
        groups,
        rules,
        ruleset: _,
        hooks,
        trackers,
        resources,
        hash: _,
        rules_hash: _,
        rule_names: _,
        warnings: _,
        source: _,
        interfaces: _,
    } = old;
    let mut changes = Changes::default();
    changes.cluster(cluster, &new.cluster);
    if key_file != &new.key_file {
        let (old, new) = (key_file.display(), new.key_file.display());
        changes.restart(format!("[cluster] key-file: {old} -> {new}"));
    }
    if !new.keys.same_seed(keys) {
        changes.restart(format!(
            "key file {} is that of another cluster, or was made anew and not rotated",
            new.key_file.display()
        ));
    } else if (keys.id(), keys.is_rotating()) != (new.keys.id(), new.keys.is_rotating()) {
        let previous = if new.keys.is_rotating() { ", the one before is accepted too" } else { "" };
        changes.live(format!("cluster key {:08x} in use{previous}", new.keys.id()));
    }
    let Sync { port } = sync;
    changes.setting("[sync] port", port, &new.sync.port, true);
    changes.replication(replication, &new.replication);
    for (key, before, now) in timeouts::differences(timeouts, &new.timeouts) {
        let [before, now] = [before, now].map(|ns| show_duration(Duration::from_nanos(ns)));
        changes.setting(&format!("[timeouts] {key}"), &before, &now, false);
    }
    changes.limits(limits, &new.limits);
    let Metrics { listen } = metrics;
    changes.setting(
        "[metrics] listen",
        &or_none(listen.as_ref()),
        &or_none(new.metrics.listen.as_ref()),
        true,
    );
    changes.nodes(nodes, &new.nodes);
    changes.zones((nodes, zones), new, me);
    changes.groups((old, groups), (new, &new.groups));
    changes.rules((old, rules), (new, &new.rules));
    changes.hooks(hooks, &new.hooks);
    for (before, now) in changes.named("tracker", (trackers, &new.trackers), |t| &t.name, false) {
        if before != now {
            changes.live(format!("tracker {:?} changed", now.name));
        }
    }
    for (before, now) in changes.named("resource", (resources, &new.resources), |r| &r.name, true) {
        if before != now {
            changes.restart(format!("resource {:?} is another one", now.name));
        }
    }
    changes.0
}

#[derive(Default)]
struct Changes(Vec<Change>);

impl Changes {
    fn live(&mut self, text: String) {
        self.0.push(Change { text, restart: false });
    }

    fn restart(&mut self, text: String) {
        self.0.push(Change { text, restart: true });
    }

    fn setting<T: PartialEq + Display>(&mut self, what: &str, old: &T, new: &T, restart: bool) {
        if old != new {
            self.0.push(Change { text: format!("{what}: {old} -> {new}"), restart });
        }
    }

    /// Tells of what has come and gone by name, and returns what is there in both.
    fn named<'a, T>(
        &mut self,
        kind: &str,
        (old, new): (&'a [T], &'a [T]),
        name: impl Fn(&T) -> &str,
        restart: bool,
    ) -> Vec<(&'a T, &'a T)> {
        let find = |list: &'a [T], item: &T| list.iter().find(|other| name(other) == name(item));
        for (list, other, what) in [(old, new, "removed"), (new, old, "added")] {
            for item in list.iter().filter(|item| find(other, item).is_none()) {
                self.0.push(Change { text: format!("{kind} {:?} {what}", name(item)), restart });
            }
        }
        let both: Vec<(&T, &T)> = old.iter().filter_map(|item| Some((item, find(new, item)?))).collect();
        let in_new = new.iter().filter(|item| find(old, item).is_some());
        if both.iter().map(|(item, _)| name(item)).ne(in_new.map(&name)) {
            self.0.push(Change { text: format!("{kind}s are in another order"), restart });
        }
        both
    }

    fn cluster(&mut self, old: &Cluster, new: &Cluster) {
        let Cluster { name, id: _, mode, max_flows, heartbeat_interval, lease, witness } = old;
        self.setting("[cluster] name", name, &new.name, true);
        if mode != &new.mode {
            self.restart("[cluster] mode".into());
        }
        self.setting("[cluster] max-flows", max_flows, &new.max_flows, true);
        let [before, now] = [heartbeat_interval, &new.heartbeat_interval].map(|d| show_duration(*d));
        self.setting("[cluster] heartbeat-interval", &before, &now, true);
        let [before, now] = [lease, &new.lease].map(|d| show_duration(*d));
        self.setting("[cluster] lease", &before, &now, true);
        let [before, now] = [witness, &new.witness].map(|hosts| list(hosts, "none"));
        self.setting("[cluster] witness", &before, &now, false);
    }

    fn replication(&mut self, old: &Replication, new: &Replication) {
        let Replication {
            enabled,
            protocols,
            ignore,
            min_age,
            strict,
            peer_flows,
            peer_bytes_per_second,
            bulk_bytes_per_second,
        } = old;
        let mut setting = |key: &str, old: &str, new: &str, restart| {
            self.setting(&format!("[replication] {key}"), &old, &new, restart);
        };
        setting("enabled", &enabled.to_string(), &new.enabled.to_string(), true);
        let names = |protocols: &[u8]| {
            let name =
                |&p: &u8| fwha_common::flow::proto::name(p).map_or_else(|| p.to_string(), str::to_owned);
            list(protocols.iter().map(name), "all")
        };
        setting("protocols", &names(protocols), &names(&new.protocols), false);
        setting("ignore", &list(ignore, "none"), &list(&new.ignore, "none"), false);
        setting("min-age", &show_duration(*min_age), &show_duration(new.min_age), false);
        setting("strict", &strict.to_string(), &new.strict.to_string(), false);
        let share = |flows: Option<u32>| or_none(flows.as_ref());
        setting("peer-flows", &share(*peer_flows), &share(new.peer_flows), false);
        for (key, old, new) in [
            ("peer-bytes-per-second", peer_bytes_per_second, new.peer_bytes_per_second),
            ("bulk-bytes-per-second", bulk_bytes_per_second, new.bulk_bytes_per_second),
        ] {
            setting(key, &old.to_string(), &new.to_string(), false);
        }
    }

    fn limits(&mut self, old: &Limits, new: &Limits) {
        let Limits { interval_ns, flows, .. } = *old;
        let rate = |interval_ns: u64| or_none(1_000_000_000u64.checked_div(interval_ns).as_ref());
        self.setting("[limits] new-flows-per-second", &rate(interval_ns), &rate(new.interval_ns), false);
        let most = |flows: u32| or_none((flows > 0).then_some(&flows));
        self.setting("[limits] flows-per-source", &most(flows), &most(new.flows), false);
    }

    fn nodes(&mut self, old: &[Node], new: &[Node]) {
        for (before, now) in self.named("node", (old, new), |n| &n.name, true) {
            let Node { id, name, sync } = before;
            if *id != now.id {
                self.restart(format!(
                    "node {name:?} would have another number, by which nodes with the old file do not know it: new nodes go to \
                     the end, and nodes before it stay"
                ));
            }
            if sync != &now.sync {
                self.restart(format!("node {name:?}: sync"));
            }
        }
    }

    fn zones(&mut self, (nodes, zones): (&[Node], &[Zone]), new: &Config, me: NodeId) {
        for (before, now) in self.named("zone", (zones, &new.zones), |z| &z.name, true) {
            let Zone { id: _, name, interfaces: _, attach, anti_spoofing } = before;
            for node in &new.nodes {
                let of = |zone: &Zone, id| zone.interfaces.get(&id).cloned().unwrap_or_default();
                let was = nodes.iter().find(|was| was.name == node.name);
                let (before, now) = (was.map_or_else(Vec::new, |was| of(before, was.id)), of(now, node.id));
                // Addresses and VRRP are on the first. Those of other nodes are for them to know.
                let restart = was.is_some_and(|was| was.id == me) && before.first() != now.first();
                let what = format!("zone {name:?}: interfaces of {}", node.name);
                self.setting(&what, &list(before, "none"), &list(now, "none"), restart);
            }
            if attach != &now.attach {
                self.restart(format!("zone {name:?}: attach"));
            }
            let what = format!("zone {name:?}: anti-spoofing");
            self.setting(&what, anti_spoofing, &now.anti_spoofing, false);
        }
    }

    fn groups(&mut self, old: (&Config, &[Group]), new: (&Config, &[Group])) {
        for (before, now) in self.named("group", (old.1, new.1), |g| &g.name, true) {
            let Group {
                id: _,
                name,
                nodes,
                preempt,
                preempt_delay,
                version,
                hmac,
                advert_interval,
                announce,
                virtual_mac,
                accept,
                vips,
                routes,
                routing_rules,
            } = before;
            let what = |key: &str| format!("group {name:?}: {key}");
            let mut members = [nodes.clone(), now.nodes.clone()];
            members.iter_mut().for_each(|m| m.sort_unstable());
            let [ids, new_ids] = &members;
            let restart = ids.iter().map(|m| m.0).ne(new_ids.iter().map(|m| m.0));
            let show = |config: &Config, members: &[(NodeId, u8)]| {
                let name = |id| config.node(id).map_or("?", |n| n.name.as_str());
                list(members.iter().map(|&(id, priority)| format!("{} {priority}", name(id))), "none")
            };
            self.setting(&what("priority"), &show(old.0, nodes), &show(new.0, &now.nodes), restart);
            self.setting(&what("preempt"), preempt, &now.preempt, false);
            for (key, before, now) in [
                ("preempt-delay", preempt_delay, &now.preempt_delay),
                ("advert-interval", advert_interval, &now.advert_interval),
            ] {
                self.setting(&what(key), &show_duration(*before), &show_duration(*now), false);
            }
            let Announce { repeat, refresh, interval } = announce;
            let times = |times: &[Duration]| list(times.iter().map(|&t| show_duration(t)), "none");
            self.setting(&what("announce.repeat"), &times(repeat), &times(&now.announce.repeat), false);
            let [before, after] = [refresh, &now.announce.refresh].map(|time| times(time.as_slice()));
            self.setting(&what("announce.refresh"), &before, &after, false);
            let [before, after] = [interval, &now.announce.interval].map(|&time| show_duration(time));
            self.setting(&what("announce.interval"), &before, &after, false);
            if hmac != &now.hmac {
                self.live(what("auth"));
            }
            self.setting(&what("virtual-mac"), virtual_mac, &now.virtual_mac, false);
            self.setting(&what("accept"), accept, &now.accept, false);
            if version != &now.version {
                self.restart(what("vrrp-version, or what it sends"));
            }
            self.lines("route", name, routes, &now.routes);
            self.lines("routing rule", name, routing_rules, &now.routing_rules);
            self.vips(name, &addresses(old.0, vips), &addresses(new.0, &now.vips));
            let same = |a: &Vip, b: &Vip| (a.zone, a.vrid, a.is_v6()) == (b.zone, b.vrid, b.is_v6());
            for before in vips {
                if let Some(now) = now.vips.iter().find(|now| same(before, now)) {
                    let what = format!("vrid {} of group {name}: peers", before.vrid);
                    let [before, now] = [before, now].map(|vip| list(&vip.peers, "multicast"));
                    self.setting(&what, &before, &now, false);
                }
            }
        }
    }

    /// Tells of what a group has no more, and of what it has now.
    fn lines<T: PartialEq + Display>(&mut self, kind: &str, group: &str, old: &[T], new: &[T]) {
        for (list, other, what) in [(old, new, "removed from"), (new, old, "added to")] {
            for item in list.iter().filter(|item| !other.contains(item)) {
                self.live(format!("{kind} {item} {what} group {group}"));
            }
        }
    }

    fn vips(&mut self, group: &str, old: &[Address], new: &[Address]) {
        let find =
            |list: &[Address], a: &Address| list.iter().find(|b| (&b.0, &b.1) == (&a.0, &a.1)).cloned();
        for (_, address, _) in old.iter().filter(|a| find(new, a).is_none()) {
            self.live(format!("vip {address} removed from group {group}"));
        }
        for (_, address, _) in new.iter().filter(|a| find(old, a).is_none()) {
            self.live(format!("vip {address} added to group {group}"));
        }
        for before in old {
            if let Some(now) = find(new, before) {
                let what = format!("vip {} of group {group}: vrid", before.1);
                self.setting(&what, &before.2, &now.2, false);
            }
        }
        let in_both = |list: &[Address], other: &[Address]| -> Vec<Address> {
            list.iter().filter(|a| find(other, a).is_some()).cloned().collect()
        };
        // Of IPv6 the first is the one by which the virtual router speaks of itself.
        let order = |list: Vec<Address>| list.into_iter().map(|a| (a.0, a.1)).collect::<Vec<_>>();
        if order(in_both(old, new)) != order(in_both(new, old)) {
            self.live(format!("vips of group {group} are in another order"));
        }
    }

    fn rules(&mut self, old: (&Config, &[Rule]), new: (&Config, &[Rule])) {
        for (before, now) in self.named("rule", (old.1, new.1), |r| &r.name, false) {
            let Rule {
                name,
                index: _,
                from,
                to,
                source,
                destination,
                services,
                action,
                mss,
                replicate,
                syn_proxy,
            } = before;
            let what = |key: &str| format!("rule {name:?}: {key}");
            let zone = |config: &Config, id: ZoneId| config.zone_name(id).to_owned();
            self.setting(&what("from"), &zone(old.0, *from), &zone(new.0, now.from), false);
            self.setting(&what("to"), &zone(old.0, *to), &zone(new.0, now.to), false);
            self.setting(&what("source"), &list(source, "any"), &list(&now.source, "any"), false);
            let to = [destination, &now.destination].map(|nets| list(nets, "any"));
            self.setting(&what("destination"), &to[0], &to[1], false);
            self.setting(&what("services"), &list(services, "any"), &list(&now.services, "any"), false);
            if action != &now.action {
                let [before, now] = [action, &now.action].map(|a| format!("{a:?}").to_lowercase());
                self.setting(&what("action"), &before, &now, false);
            }
            if mss != &now.mss {
                self.live(what("mss"));
            }
            self.setting(&what("replicate"), replicate, &now.replicate, false);
            self.setting(&what("syn-proxy"), syn_proxy, &now.syn_proxy, false);
        }
    }

    fn hooks(&mut self, old: &[Hook], new: &[Hook]) {
        for (before, now) in self.named("hook", (old, new), |h| &h.name, false) {
            if before != now {
                self.live(format!("hook {:?} changed", before.name));
            }
        }
    }
}

/// Zone, address with prefix length, and vrid.
type Address = (String, String, u8);

fn addresses(config: &Config, vips: &[Vip]) -> Vec<Address> {
    let of = |vip: &Vip| {
        let Vip { zone, vrid, addresses, peers: _ } = vip;
        let (zone, vrid) = (config.zone_name(*zone).to_owned(), *vrid);
        addresses.iter().map(|a| (zone.clone(), a.to_string(), vrid)).collect::<Vec<_>>()
    };
    vips.iter().flat_map(of).collect()
}

fn list(items: impl IntoIterator<Item = impl Display>, empty: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { empty.to_owned() } else { items.join(", ") }
}

fn or_none(value: Option<&impl Display>) -> String {
    value.map_or_else(|| "none".into(), ToString::to_string)
}

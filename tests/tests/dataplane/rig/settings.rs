//! What the programs are told: settings, rules, interfaces, routes.

use super::*;

impl Rig {
    /// Sets how long flows are kept.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.timeouts.set(0, timeouts, 0).expect("timeouts");
    }

    /// Changes the settings.
    pub fn configure(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.now);
        self.settings.set(0, self.now, 0).expect("settings");
    }

    /// Puts a ruleset in force. The counter of each rule is its place.
    pub fn load_rules(&mut self, rules: &[Rule]) {
        let mut rules = rules.to_vec();
        for (i, rule) in rules.iter_mut().enumerate() {
            rule.decision.index = i as u32;
        }
        let compiled = Ruleset::compile(&rules).expect("a ruleset");
        let generation = self.now.ruleset_generation + 1;
        ruleset::load(&mut self.rulesets, generation, &compiled).expect("a ruleset");
        self.configure(|settings| {
            settings.ruleset_generation = generation;
            settings.flags = if compiled.has_syn_proxy() { Settings::SYN_PROXY } else { 0 };
        });
    }

    /// Does something again and again while these rulesets take turns, as the daemon puts them in force.
    pub fn while_reloading(&mut self, rulesets: &[Ruleset], times: usize, mut act: impl FnMut(&mut Self)) {
        let first = self.now.ruleset_generation;
        // Of its own: the settings have no other writer meanwhile.
        let [map, settings] = [name::RULESETS, name::SETTINGS].map(|name| {
            let id = self.maps[name].info().expect("a map").id();
            MapData::from_id(id).expect("the map")
        });
        let mut map: RulesetMap = Map::ArrayOfMaps(map).try_into().expect("rulesets");
        let mut settings: Array<_, Settings> = Map::Array(settings).try_into().expect("settings");
        let mut now = self.now;
        thread::scope(|scope| {
            let reloads = scope.spawn(move || {
                for ruleset in rulesets.iter().cycle().take(times) {
                    now.ruleset_generation += 1;
                    ruleset::load(&mut map, now.ruleset_generation, ruleset).expect("a ruleset");
                    settings.set(0, now, 0).expect("settings");
                    ruleset::retire(&mut map, now.ruleset_generation).expect("the one before goes");
                }
            });
            while !reloads.is_finished() {
                act(self);
            }
            reloads.join().expect("all are loaded");
        });
        self.now.ruleset_generation = first + times as u32;
    }

    /// Sets the state of the one group.
    pub fn set_group(&mut self, group: Group) {
        self.groups.set(0, group, 0).expect("group");
    }

    /// Sets the limits by source.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits.set(0, limits, 0).expect("limits");
    }

    /// Describes an interface to the programs; it leaves by itself.
    pub fn set_interface(&mut self, port: Port, interface: Interface) {
        let ifindex = self.ifindex(port);
        let interface = Interface { device: ifindex, trunk: ifindex, ..interface };
        self.interfaces.insert(InterfaceKey::untagged(ifindex), interface, 0).expect("interface");
        self.next_generation();
    }

    /// Says which plain routes there are in the present route generation; without a port the kernel is asked.
    pub fn set_plain_routes(&mut self, routes: &[(&str, u8, Option<Port>)]) {
        let generation = self.now.route_generation;
        for v6 in [false, true] {
            let mut plain = PlainRoutes { generation, ..PlainRoutes::NONE };
            let of_family = routes.iter().filter(|(address, ..)| address.contains(':') == v6);
            for ((address, len, port), prefix) in of_family.zip(&mut plain.prefixes) {
                let ifindex = port.map_or(0, |port| self.ifindex(port));
                *prefix = Prefix::new(address.parse().expect("an address"), *len, ifindex);
                plain.count += 1;
            }
            self.plain_routes.set(PlainRoutes::index(v6, generation), plain, 0).expect("plain routes");
        }
    }

    /// What programs remember of routes and interfaces is out of date.
    pub fn next_generation(&mut self) {
        self.configure(|settings| settings.route_generation += 1);
    }

    /// Makes an interface a VLAN of the trunk, as its device would be: what carries these tags there counts as its
    /// own, for routes and neighbours, too, and what it sends leaves there.
    pub fn set_vlan(&mut self, port: Port, interface: Interface, tags: [Tag; 2]) {
        let (device, trunk) = (self.ifindex(port), self.ifindex(Port::Trunk));
        let interface = Interface { device, trunk, tags, ..interface };
        let tagged = InterfaceKey { ifindex: trunk, vlan: tags[0].vlan(), inner: tags[1].vlan() };
        for key in [tagged, InterfaceKey::untagged(device)] {
            self.interfaces.insert(key, interface, 0).expect("interface");
        }
        self.configure(|settings| settings.vlans = 1);
        self.next_generation();
    }

    /// Makes an interface a trunk with one VLAN, for which the kernel has no device.
    pub fn set_bare(&mut self, port: Port, interface: Interface, tags: [Tag; 2]) {
        let ifindex = self.ifindex(port);
        let interface =
            Interface { device: ifindex, trunk: ifindex, tags, flags: Interface::BARE, ..interface };
        let tagged = InterfaceKey { ifindex, vlan: tags[0].vlan(), inner: tags[1].vlan() };
        for key in [tagged, InterfaceKey::untagged(ifindex)] {
            self.interfaces.insert(key, interface, 0).expect("interface");
        }
        self.configure(|settings| settings.vlans = 1);
        self.next_generation();
    }

    /// Takes an interface out of all zones.
    pub fn remove_interface(&mut self, port: Port) {
        self.interfaces.remove(&InterfaceKey::untagged(self.ifindex(port))).expect("interface");
        self.next_generation();
    }

    /// Has drops for these reasons sampled: so many in a window on a CPU.
    pub fn capture(&mut self, reasons: &[DropReason], samples_max: u32) {
        let reasons = reasons.iter().fold(0, |bits, &reason| bits | Capture::bit(reason));
        self.capture.set(0, Capture { reasons, samples_max, zero: 0 }, 0).expect("capture");
    }
}

/// A rule that admits everything.
pub fn accept(name: &str) -> Rule {
    with_action(Action::Accept, name)
}

/// A rule that does this with everything.
pub fn with_action(action: Action, name: &str) -> Rule {
    Rule::all(Decision { action: action as u8, name_hash: name_hash(name), ..Decision::default() })
}

/// A rule that accepts ports of a protocol.
pub fn accept_service(proto: u8, port_min: u16, port_max: u16, name: &str) -> Rule {
    Rule { services: vec![Service { proto, port_min, port_max }], ..accept(name) }
}

//! Scenarios whose labs may be there at the same time.

mod addresses;
mod capture;
mod explain;
mod groups;
mod hooks;
mod ipv6;
mod keepalived;
mod late_links;
mod mistakes;
mod neighbours;
mod operator;
mod reach;
mod reload;
mod resources;
mod routes;
mod strangers;
mod systemd;
mod trackers;
mod vlan_devices;
mod vlans;
mod xdp_and_tc;

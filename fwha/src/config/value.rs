//! Values inside strings: durations, names, addresses, prefixes, interface names. Each function gives
//! the value or says what is wrong in words that follow `key: `.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use ipnet::IpNet;

/// `"10ms"`, `"1s"`, `"5m"`, `"2h"`, `"5d"`: a whole number and a unit.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bad = || format!("{text:?} is not a duration");
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit_ms = match unit.trim_start() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "" => return Err(format!("{text:?} has no unit")),
        _ => return Err(bad()),
    };
    number.checked_mul(unit_ms).map(Duration::from_millis).ok_or_else(bad)
}

/// A duration in the largest unit that leaves a whole number.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (unit, ms_per) in [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)] {
        if ms >= ms_per && ms.is_multiple_of(ms_per) {
            return format!("{}{unit}", ms / ms_per);
        }
    }
    format!("{ms}ms")
}

/// A name of a cluster, node, zone, group or rule. They appear in paths and output, hence the limits.
pub(super) fn name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() {
        Err("the name is empty".into())
    } else if text.len() > 63 {
        Err(format!("{text:?} is longer than 63 characters"))
    } else if !text.chars().all(fits) || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Err(format!(
            "{text:?} is not a name: letters, digits, \"-\", \"_\" and \".\", beginning with a letter or digit"
        ))
    } else {
        Ok(text.into())
    }
}

/// The name of a network interface (`dev_valid_name` in net/core/dev.c).
pub(super) fn interface(text: &str) -> Result<String, String> {
    let bad = text.is_empty()
        || text.len() > 15
        || matches!(text, "." | "..")
        || text.chars().any(|c| c == '/' || c == ':' || c.is_whitespace() || c.is_control());
    if bad { Err(format!("{text:?} is not the name of an interface")) } else { Ok(text.into()) }
}

/// An IPv4 address that a host can have.
pub(super) fn host_address(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(IpAddr::V4(address)) => is_host(address.into()).map(|()| address),
        Ok(IpAddr::V6(_)) => Err(format!("{text:?} is IPv6, which is not supported yet")),
        Err(_) if text.parse::<IpNet>().is_ok() => {
            Err(format!("{text:?} is a prefix; write the address alone"))
        }
        Err(_) => Err(format!("{text:?} is not an IPv4 address")),
    }
}

/// An address of either family that a host can have.
pub(super) fn host_ip(text: &str) -> Result<IpAddr, String> {
    let address = text.parse().map_err(|_| format!("{text:?} is not an address"))?;
    is_host(address).map(|()| address)
}

/// An address that a host can have, with the length of its network's prefix.
pub(super) fn host_prefix(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| match text.parse() {
        Ok(IpAddr::V4(_)) => format!("{text:?} lacks its prefix length, like \"{text}/24\""),
        Ok(IpAddr::V6(_)) => format!("{text:?} lacks its prefix length, like \"{text}/64\""),
        Err(_) => format!("{text:?} is not an address with prefix length"),
    })?;
    is_host(net.addr())?;
    if net.max_prefix_len() - net.prefix_len() < 2 {
        return Ok(net);
    }
    if net.addr() == net.network() {
        return Err(format!("{text:?} is the address of the network, not of a host in it"));
    }
    if net.addr().is_ipv4() && net.addr() == net.broadcast() {
        return Err(format!("{text:?} is the broadcast address of its network"));
    }
    Ok(net)
}

fn is_host(address: IpAddr) -> Result<(), String> {
    let kind = if address.is_unspecified() {
        "the unspecified address"
    } else if address.is_multicast() {
        "a multicast address"
    } else if address == Ipv4Addr::BROADCAST {
        "the broadcast address"
    } else if address == Ipv6Addr::LOCALHOST || address.to_canonical() != address {
        "not an address that a network can have"
    } else {
        return Ok(());
    };
    Err(format!("\"{address}\" is {kind}"))
}

/// A network, or one address.
pub(super) fn network(text: &str) -> Result<IpNet, String> {
    match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
        (Ok(net), _) if net.addr() == net.network() => Ok(net),
        (Ok(net), _) => {
            Err(format!("{text:?} has bits set behind its prefix; the network is \"{}\"", net.trunc()))
        }
        (_, Ok(address)) => Ok(IpNet::from(address)),
        _ => Err(format!("{text:?} is neither a prefix nor an address")),
    }
}

/// The nearest of `known`, if one is near; otherwise all of them.
pub(super) fn suggest(text: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|k| (strsim::damerau_levenshtein(&text.to_lowercase(), &k.to_lowercase()), *k))
        .filter(|&(distance, k)| distance <= (k.len() / 3).clamp(1, 3))
        .min();
    match near {
        Some((_, k)) => format!("did you mean {k:?}?"),
        None if known.is_empty() => "there is none".into(),
        None => format!("known: {}", known.join(", ")),
    }
}

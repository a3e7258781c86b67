//! `fwhactl explain`: why the node is what it is, and what would become of a packet.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
};

use anyhow::Context as _;

use super::{
    Ctl, print_json, status,
    term::{Grid, Paint},
};
use crate::{
    api::{PacketExplanation, PacketQuery, RoleExplanation, path},
    args::{ExplainArgs, ExplainVerb, Output, PacketArgs},
};

pub(super) async fn run(ctl: &Ctl, args: &ExplainArgs) -> anyhow::Result<()> {
    match &args.what {
        ExplainVerb::Role => role(ctl).await,
        ExplainVerb::Packet(args) => packet(ctl, args).await,
    }
}

async fn packet(ctl: &Ctl, args: &PacketArgs) -> anyhow::Result<()> {
    let ((src, sport), (dst, dport)) = (end(&args.source)?, end(&args.destination)?);
    let query = PacketQuery {
        proto: args.proto.clone(),
        src,
        sport,
        dst,
        dport,
        interface: args.interface.clone(),
        tcp_flags: args.flags.clone(),
    };
    let target = format!("{}?{}", path::EXPLAIN_PACKET, serde_urlencoded::to_string(query)?);
    let explained: PacketExplanation = ctl.client.get(&target).await?;
    let mut out = io::stdout().lock();
    if ctl.output == Output::Json {
        return print_json(&mut out, &explained);
    }
    writeln!(out, "{}", ctl.style.paint(Paint::Bold, &explained.packet))?;
    for assumed in &explained.assumed {
        writeln!(out, "  assumed: {}", ctl.style.paint(Paint::Plain, assumed))?;
    }
    let mut grid = Grid::with_heading(&["STEP", "RESULT", "BECAUSE"]);
    for step in &explained.steps {
        let paint = match step.result.as_str() {
            "pass" => Paint::Good,
            "answer" => Paint::Warn,
            _ => Paint::Bad,
        };
        let cells = [(Paint::Plain, &step.step), (paint, &step.result), (Paint::Plain, &step.text)];
        grid.row(cells.map(|(paint, text)| (paint, text.clone())));
    }
    grid.print(&mut out, ctl.style, "  ")?;
    let paint = match explained.verdict.as_str() {
        "dropped" | "rejected" => Paint::Bad,
        _ => Paint::Good,
    };
    writeln!(out, "verdict: {}", ctl.style.paint(paint, &verdict(&explained)))?;
    Ok(())
}

/// The last line: what becomes of it, why, and by which rule.
fn verdict(explained: &PacketExplanation) -> String {
    let PacketExplanation { verdict, reason, rule, interface_out, next_hop, .. } = explained;
    let mut text = match (verdict.as_str(), reason) {
        ("passed", _) => "passed to the node".to_owned(),
        ("answered", _) => "answered by the SYN proxy".to_owned(),
        ("rejected", _) => "rejected".to_owned(),
        (_, Some(reason)) => format!("{verdict} ({reason})"),
        (_, None) => verdict.clone(),
    };
    if let Some(out) = interface_out {
        text.push_str(&format!(" by {out}"));
    }
    if let Some(via) = next_hop {
        text.push_str(&format!(" via {via}"));
    }
    match (rule, reason.as_deref()) {
        (Some(rule), _) => text.push_str(&format!(", rule {rule}")),
        (None, Some("no_rule")) => text.push_str(", by default: no rule matches"),
        _ => {}
    }
    text
}

/// An end of a packet: an address, and a port if there is one.
fn end(text: &str) -> anyhow::Result<(IpAddr, Option<u16>)> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(address) = bare.parse() {
        return Ok((address, None));
    }
    let end: SocketAddr = text.parse().ok().with_context(|| {
        format!("{text:?} is not like 192.0.2.1, 192.0.2.1:22, 2001:db8::1 or [2001:db8::1]:22")
    })?;
    Ok((end.ip(), Some(end.port())))
}

async fn role(ctl: &Ctl) -> anyhow::Result<()> {
    let explained: Vec<RoleExplanation> = ctl.client.get(path::EXPLAIN_ROLE).await?;
    let mut out = io::stdout().lock();
    for RoleExplanation { group, node, role, reason, because, members, trackers } in &explained {
        if ctl.output == Output::Json {
            continue;
        }
        writeln!(
            out,
            "{}: {node} is {role} ({})",
            ctl.style.paint(Paint::Bold, group),
            ctl.style.paint(Paint::Plain, reason)
        )?;
        for sentence in because {
            writeln!(out, "  {}", ctl.style.paint(Paint::Plain, sentence))?;
        }
        let mut grid = Grid::with_heading(&["NODE", "PRIORITY", "STANDING"]);
        for member in members {
            let cells = [member.node.clone(), member.priority.to_string(), member.standing.clone()];
            grid.row(cells.map(|text| (Paint::Plain, text)));
        }
        grid.print(&mut out, ctl.style, "  ")?;
        if let Some(grid) = status::trackers(trackers) {
            grid.print(&mut out, ctl.style, "  ")?;
        }
    }
    if ctl.output == Output::Json {
        explained.iter().try_for_each(|one| print_json(&mut out, one))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_an_address_with_or_without_a_port() {
        for (text, address, port) in [
            ("192.0.2.1", "192.0.2.1", None),
            ("192.0.2.1:22", "192.0.2.1", Some(22)),
            ("2001:db8::1", "2001:db8::1", None),
            ("[2001:db8::1]", "2001:db8::1", None),
            ("[2001:db8::1]:22", "2001:db8::1", Some(22)),
        ] {
            assert_eq!(end(text).unwrap(), (address.parse().unwrap(), port), "{text}");
        }
        for wrong in ["", "host", "192.0.2.1:", "192.0.2.1:65536", "192.0.2.0/24"] {
            let error = end(wrong).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{wrong:?} is not like 192.0.2.1,")), "{error}");
        }
    }
}

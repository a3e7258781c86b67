//! `fwhactl flows`: the flow table, a line a flow, printed as it comes.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, Write},
    process::ExitCode,
};

use super::{
    Ctl, diff, print_json,
    term::{self, Paint},
};
use crate::{
    api::{FlowFilter, FlowRow, FlowsDeleted, path},
    args::{FilterArgs, FlowsArgs, FlowsVerb, Output},
};

/// Widths of the columns. A million flows are not held back to align them; what is wider pushes the rest.
const HEADING: [(&str, usize); 11] = [
    ("PROTO", 5),
    ("STATE", 11),
    ("SOURCE", 21),
    ("DESTINATION", 21),
    ("ZONES", 12),
    ("ORIGIN", 6),
    ("OWNER", 8),
    ("AGE/IDLE/LEFT", 20),
    ("PACKETS", 11),
    ("BYTES", 11),
    ("RULE", 0),
];

pub(super) async fn run(ctl: &Ctl, args: &FlowsArgs) -> anyhow::Result<ExitCode> {
    match &args.verb {
        None => list(ctl, &filter(&args.filter)?).await?,
        Some(FlowsVerb::Count(args)) => count(ctl, &filter(args)?).await?,
        Some(FlowsVerb::Diff(args)) => return diff::run(ctl, args).await,
        Some(FlowsVerb::Delete(args)) => delete(ctl, &filter(&args.filter)?).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The filter that the command line describes.
fn filter(args: &FilterArgs) -> anyhow::Result<FlowFilter> {
    let mut filter = FlowFilter::default();
    let origin = args.origin.iter().map(|o| format!("origin={o}"));
    for term in args.terms.iter().cloned().chain(origin) {
        filter.set(&term).map_err(anyhow::Error::msg)?;
    }
    Ok(filter)
}

async fn list(ctl: &Ctl, filter: &FlowFilter) -> anyhow::Result<()> {
    let mut lines = ctl.client.lines(path::FLOWS, filter).await?;
    let mut out = BufWriter::new(io::stdout().lock());
    if ctl.output == Output::Table {
        let mut heading = String::new();
        for (text, width) in HEADING {
            let _ = write!(heading, "{text:width$}  ");
        }
        writeln!(out, "{}", ctl.style.paint(Paint::Dim, heading.trim_end()))?;
    }
    while let Some(line) = lines.next().await? {
        match ctl.output {
            Output::Json => {
                out.write_all(line)?;
                out.write_all(b"\n")?;
            }
            Output::Table => {
                let flow: FlowRow = serde_json::from_slice(line)?;
                writeln!(out, "{}", row(&flow))?;
            }
        }
        if !lines.more_is_here() {
            out.flush()?;
        }
    }
    out.flush()?;
    Ok(())
}

async fn count(ctl: &Ctl, filter: &FlowFilter) -> anyhow::Result<()> {
    let mut lines = ctl.client.lines(path::FLOWS, filter).await?;
    let mut count = 0u64;
    while lines.next().await?.is_some() {
        count += 1;
    }
    match ctl.output {
        Output::Json => writeln!(io::stdout(), "{{\"count\":{count}}}")?,
        Output::Table => writeln!(io::stdout(), "{count}")?,
    }
    Ok(())
}

async fn delete(ctl: &Ctl, filter: &FlowFilter) -> anyhow::Result<()> {
    let deleted: FlowsDeleted = ctl.client.post(path::FLOWS_DELETE, filter).await?;
    let mut out = io::stdout().lock();
    match ctl.output {
        Output::Json => print_json(&mut out, &deleted)?,
        Output::Table => match deleted.not_owned {
            0 => writeln!(out, "{} flows deleted", deleted.deleted)?,
            others => writeln!(out, "{} flows deleted; {others} are another node's", deleted.deleted)?,
        },
    }
    Ok(())
}

/// An end of a flow.
pub(super) fn end(address: &std::net::IpAddr, port: u16) -> String {
    match address {
        std::net::IpAddr::V4(address) => format!("{address}:{port}"),
        std::net::IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

fn row(flow: &FlowRow) -> String {
    let [age, idle, left] = [flow.age_ms, flow.idle_ms, flow.timeout_ms].map(term::duration);
    let cells = [
        flow.proto.clone(),
        flow.state.clone(),
        end(&flow.src, flow.sport),
        end(&flow.dst, flow.dport),
        format!("{}>{}", flow.zone_in, flow.zone_out),
        flow.origin.to_string(),
        if flow.owner.is_empty() { "-".into() } else { flow.owner.clone() },
        format!("{age}/{idle}/{left}"),
        format!("{}/{}", flow.packets[0], flow.packets[1]),
        format!("{}/{}", term::bytes(flow.bytes[0]), term::bytes(flow.bytes[1])),
        if flow.rule.is_empty() { "-".into() } else { flow.rule.clone() },
    ];
    let mut line = String::new();
    for (cell, (_, width)) in cells.iter().zip(HEADING) {
        let _ = write!(line, "{:width$}  ", term::plain(cell));
    }
    line.truncate(line.trim_end().len());
    line
}

//! `fwhactl flows diff`: in which flows two nodes, or a node's replica and its kernel's table, differ.

use std::{collections::BTreeSet, io::Write, process::ExitCode};

use super::{
    Ctl,
    flows::end,
    print, tell,
    term::{self, Grid, Paint},
};
use crate::{
    api::{DiffEnd, DiffLine, DiffQuery, FlowDifference, FlowSide, KERNEL, path},
    args::{DiffArgs, Output},
};

pub(super) async fn run(ctl: &Ctl, args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let query = DiffQuery { peer: args.peer.clone(), all: args.all, local: args.local };
    // What has not come to its end: that no difference is known does not mean that there is none.
    let mut open = if args.local { BTreeSet::new() } else { ctl.peers(args.peer.as_ref()).await? };
    if args.peer.is_none() {
        open.insert(KERNEL.to_owned());
    }
    let mut lines = ctl.client.lines(path::FLOWS_DIFF, &query).await?;
    let mut equal = true;
    let mut rows =
        Grid::with_heading(&["PEER", "DIFFERS", "PROTO", "SOURCE", "DESTINATION", "HERE", "THERE"]);
    let (mut shown, mut ends) = (false, Vec::new());
    while let Some(line) = lines.next().await? {
        let parsed: DiffLine = serde_json::from_slice(line)?;
        if let DiffLine::End(end) = &parsed {
            open.remove(&end.peer);
            equal &= end.error.is_none() && end.differences + end.untold == 0;
        }
        match (ctl.output, parsed) {
            (Output::Json, _) => print(&[line, b"\n"].concat())?,
            // What is on its way differs at any time; its number will do.
            (Output::Table, DiffLine::Difference(d)) if d.in_flight => {}
            (Output::Table, DiffLine::Difference(d)) => {
                rows.row(row(&d));
                shown = true;
            }
            (Output::Table, DiffLine::End(end)) => ends.push(end),
        }
    }
    let mut out = Vec::new();
    if shown {
        rows.print(&mut out, ctl.style, "")?;
    }
    for end in &ends {
        match &end.error {
            Some(error) => tell(format_args!("{error}")),
            None => writeln!(out, "{}", term::plain(&sentence(end)))?,
        }
    }
    print(&out)?;
    for other in &open {
        tell(format_args!("{other}: the daemon does not say what became of it"));
    }
    Ok(if equal && open.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn sentence(of: &DiffEnd) -> String {
    let DiffEnd { peer, buckets, buckets_listed, flows_listed, differences, in_flight, untold, .. } = of;
    let remedy = if *peer == KERNEL && differences + untold > 0 { ", and is put right" } else { "" };
    let differences = match (differences, untold) {
        (0, 0) => "no flow differs".to_owned(),
        (1, 0) => "1 flow differs".to_owned(),
        (n, 0) => format!("{n} flows differ"),
        (n, more) => format!("{n} flows differ, and up to {more} more"),
    };
    format!(
        "{peer}: {differences}{remedy}; {in_flight} changed meanwhile ({buckets} buckets compared, {buckets_listed} of them \
         flow by flow, {flows_listed} flows)"
    )
}

fn row(d: &FlowDifference) -> [(Paint, String); 7] {
    let side = |side: &Option<FlowSide>| match side {
        Some(s) => format!("{} {} {} ago {}", s.state, s.version, term::duration(s.age_ms), s.identity),
        None => "-".to_owned(),
    };
    [
        (Paint::Bold, d.peer.clone()),
        (Paint::Warn, d.kind.clone()),
        (Paint::Plain, d.proto.clone()),
        (Paint::Plain, end(&d.src, d.sport)),
        (Paint::Plain, end(&d.dst, d.dport)),
        (Paint::Plain, side(&d.here)),
        (Paint::Plain, side(&d.there)),
    ]
}

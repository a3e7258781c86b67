//! `fwhactl explain`: why the node is what it is.

use std::io::{self, Write};

use super::{
    Ctl, print_json, status,
    term::{Grid, Paint},
};
use crate::{
    api::{RoleExplanation, path},
    args::{ExplainArgs, ExplainVerb, Output},
};

pub(super) async fn run(ctl: &Ctl, args: &ExplainArgs) -> anyhow::Result<()> {
    let ExplainVerb::Role = args.what;
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

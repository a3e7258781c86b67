//! `fwhactl stats`: counters.

use std::io::{self, Write};

use anyhow::bail;

use super::{
    Ctl, print_json,
    term::{Grid, Paint},
};
use crate::{
    api::{Stat, StatSection, Stats, path},
    args::{Output, StatsArgs, StatsSection},
};

pub(super) async fn run(ctl: &Ctl, args: &StatsArgs) -> anyhow::Result<()> {
    if args.prometheus {
        if ctl.output == Output::Json {
            bail!("--prometheus is a text format of its own: leave out -o json");
        }
        let text = ctl.client.text(path::METRICS).await?;
        io::stdout().write_all(&text)?;
        return Ok(());
    }
    let Stats { flows, sync, link, vrrp, drops, rules } = ctl.client.get(path::STATS).await?;
    let sections = [
        (StatsSection::Flows, "flows", flows),
        (StatsSection::Sync, "sync", sync),
        (StatsSection::Link, "link", link),
        (StatsSection::Vrrp, "vrrp", vrrp),
        (StatsSection::Drops, "drops", drops),
        (StatsSection::Rules, "rules", rules),
    ];
    let wanted: Vec<_> = sections
        .into_iter()
        .filter(|(section, ..)| args.section.is_none_or(|s| s == *section))
        .map(|(_, name, counters)| (name, counters))
        .collect();
    let mut out = Vec::new();
    match ctl.output {
        Output::Json => {
            let object: std::collections::BTreeMap<_, _> = wanted.into_iter().collect();
            print_json(&mut out, &object)?;
        }
        Output::Table => {
            for (index, (name, counters)) in wanted.iter().enumerate() {
                if index > 0 {
                    writeln!(out)?;
                }
                writeln!(out, "{}", ctl.style.paint(Paint::Bold, name))?;
                let mut grid = Grid::default();
                rows(&mut grid, "", counters);
                grid.print(&mut out, ctl.style, "  ")?;
            }
        }
    }
    io::stdout().write_all(&out)?;
    Ok(())
}

/// A row a counter, called by its path.
fn rows(grid: &mut Grid, prefix: &str, section: &StatSection) {
    for (name, stat) in section {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match stat {
            // Most counters of a quiet node are zero: they step back.
            Stat::Count(0) => grid.row([(Paint::Dim, path), (Paint::Dim, "0".into())]),
            Stat::Count(count) => grid.row([(Paint::Plain, path), (Paint::Plain, count.to_string())]),
            Stat::Section(inner) => rows(grid, &path, inner),
        }
    }
}

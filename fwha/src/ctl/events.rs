//! `fwhactl events`: what happened, oldest first.

use std::io::{self, Write};

use super::{
    Ctl,
    term::{self, Paint},
};
use crate::{
    api::{Event, EventsQuery, path},
    args::{EventsArgs, Output},
};

pub(super) async fn run(ctl: &Ctl, args: &EventsArgs) -> anyhow::Result<()> {
    let query = EventsQuery { follow: args.follow };
    let mut lines = if args.follow {
        ctl.client.follow(path::EVENTS, &query).await?
    } else {
        ctl.client.lines(path::EVENTS, &query).await?
    };
    let mut out = io::stdout().lock();
    while let Some(line) = lines.next().await? {
        let mut text = Vec::new();
        match ctl.output {
            Output::Json => {
                text.extend_from_slice(line);
                text.push(b'\n');
            }
            Output::Table => print(&mut text, ctl, &serde_json::from_slice(line)?)?,
        }
        out.write_all(&text)?;
        out.flush()?;
    }
    // Those that are followed have no end.
    if args.follow { Err(lines.broken().await) } else { Ok(()) }
}

/// A line for the event, and one for each of its steps.
fn print(out: &mut Vec<u8>, ctl: &Ctl, event: &Event) -> io::Result<()> {
    let style = ctl.style;
    writeln!(
        out,
        "{}  {}  {}{}",
        style.paint(Paint::Dim, &term::timestamp(event.at_unix_ms)),
        style.paint(Paint::Bold, &format!("{:12}", event.kind)),
        event.group.as_ref().map_or(String::new(), |g| style.paint(Paint::Plain, &format!("{g}: "))),
        style.paint(Paint::Plain, &event.text),
    )?;
    for step in &event.steps {
        writeln!(out, "{:26}{:8.3} ms  {}", "", step.ms, style.paint(Paint::Plain, &step.name))?;
    }
    Ok(())
}

//! `fwhactl keygen`: makes a cluster key, and replaces it. Needs no daemon.

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::anyhow;
use serde::Serialize;

use super::print_json;
use crate::{
    args::{KeygenArgs, Output},
    config::key,
};

/// What was done, for programs.
#[derive(Serialize)]
struct Reply<'a> {
    file: &'a Path,
    /// `made`, `rotated` or `finished`.
    done: &'static str,
}

pub(super) fn run(output: Output, args: &KeygenArgs) -> anyhow::Result<()> {
    let path = &args.file;
    let shown = path.display();
    let (done, what, next) = match (args.rotate, args.finish) {
        (true, _) => (
            key::rotate(path),
            "rotated",
            format!(
                "{shown} has a new key, and the one before: copy it to every node, `systemctl reload fwha` on each; \
                 when `fwhactl status` warns of no node any more, `fwhactl keygen --finish {shown}`"
            ),
        ),
        (_, true) => (
            key::finish(path),
            "finished",
            format!("{shown} has the new key only: copy it to every node, `systemctl reload fwha` on each"),
        ),
        _ => (
            key::generate(path),
            "made",
            format!("made {shown}: copy it to every node of the cluster, keep it secret"),
        ),
    };
    done.map_err(|error| {
        let remedy = match &error {
            key::KeyError::Io(_) => String::new(),
            error => format!(" ({})", error.remedy(path)),
        };
        anyhow!("{shown} {error}{remedy}")
    })?;
    match output {
        Output::Json => print_json(&mut io::stdout(), &Reply { file: path, done: what }),
        Output::Table => Ok(writeln!(io::stdout(), "{next}")?),
    }
}

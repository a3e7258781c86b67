//! `fwhactl keygen`: makes a cluster key, and replaces it. Needs no daemon.

use std::io::{self, Write};

use anyhow::anyhow;

use crate::{args::KeygenArgs, config::key};

pub(super) fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let path = &args.file;
    let shown = path.display();
    let (done, next) = match (args.rotate, args.finish) {
        (true, _) => (
            key::rotate(path),
            format!(
                "{shown} has a new key, and the one before: copy it to every node, `systemctl reload fwha` on each; \
                 when `fwhactl status` warns of no node any more, `fwhactl keygen --finish {shown}`"
            ),
        ),
        (_, true) => (
            key::finish(path),
            format!("{shown} has the new key only: copy it to every node, `systemctl reload fwha` on each"),
        ),
        _ => (
            key::generate(path),
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
    writeln!(io::stdout(), "{next}")?;
    Ok(())
}

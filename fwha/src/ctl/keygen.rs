//! `fwhactl keygen`: makes a cluster key. Needs no daemon.

use std::io::{self, Write};

use anyhow::anyhow;

use crate::{args::KeygenArgs, config::key};

pub(super) fn run(args: &KeygenArgs) -> anyhow::Result<()> {
    let path = &args.file;
    key::generate(path).map_err(|error| {
        let remedy = match &error {
            key::KeyError::Io(_) => String::new(),
            error => format!(" ({})", error.remedy(path)),
        };
        anyhow!("{} {error}{remedy}", path.display())
    })?;
    writeln!(io::stdout(), "made {}: copy it to every node of the cluster, keep it secret", path.display())?;
    Ok(())
}

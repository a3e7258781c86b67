//! `fwhactl bulk` and `fwhactl resync`: everything is sent, or asked for.

use std::{collections::BTreeMap, process::ExitCode};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Ctl, print, tell, term};
use crate::{
    api::{Direction, Transfer, TransferRequest, TransferState},
    args::{Output, TransferArgs},
};

pub(super) async fn run(ctl: &Ctl, path: &str, args: TransferArgs) -> anyhow::Result<ExitCode> {
    let request = TransferRequest { peer: args.peer, wait: args.wait };
    // Of which the end is not known yet: of the transfer, or without `--wait` of asking for it.
    let mut open = ctl.peers(request.peer.as_ref()).await?;
    let mut lines = ctl.client.post_lines(path, &request).await?;
    let mut bars = Bars::new(ctl);
    let mut failed = false;
    while let Some(line) = lines.next().await? {
        let transfer: Transfer = serde_json::from_slice(line)?;
        failed |= transfer.state == TransferState::Failed;
        if transfer.state != TransferState::Running || !args.wait {
            open.remove(&transfer.peer);
        }
        if ctl.output == Output::Json {
            print(&[line, b"\n"].concat())?;
            continue;
        }
        match (&transfer.error, transfer.state) {
            (_, TransferState::Running) if args.wait => bars.show(&transfer),
            (None, _) => {
                bars.clear(&transfer.peer);
                print(format!("{}\n", term::plain(&sentence(&transfer))).as_bytes())?;
            }
            (Some(error), _) => {
                bars.clear(&transfer.peer);
                tell(format_args!("{error}"));
            }
        }
    }
    for peer in &open {
        bars.clear(peer);
        tell(format_args!("{peer}: the daemon does not say what became of it"));
    }
    Ok(if failed || !open.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn sentence(transfer: &Transfer) -> String {
    let Transfer { peer, state, bulk, swept, .. } = transfer;
    let (flows, took) = (bulk.flows_done, term::duration(bulk.elapsed_ms));
    match (state, bulk.direction) {
        (TransferState::Done, Direction::Sending) => format!("{flows} flows sent to {peer} in {took}"),
        (TransferState::Done, Direction::Receiving) => {
            let swept = swept.unwrap_or(0);
            format!("{flows} flows received from {peer} in {took}; {swept} that it does not have are gone")
        }
        (_, Direction::Sending) => format!("{peer} is being sent {} buckets of flows", bulk.buckets_left),
        (_, Direction::Receiving) => format!("{peer} was asked for {} buckets of flows", bulk.buckets_left),
    }
}

/// A progress bar for each peer, if there is a terminal to show it on.
struct Bars {
    all: MultiProgress,
    by_peer: BTreeMap<String, ProgressBar>,
}

impl Bars {
    fn new(ctl: &Ctl) -> Self {
        let people = ctl.style.terminal && ctl.output == Output::Table;
        let target = if people { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { all: MultiProgress::with_draw_target(target), by_peer: BTreeMap::new() }
    }

    fn show(&mut self, transfer: &Transfer) {
        let bulk = &transfer.bulk;
        let bar = self.by_peer.entry(transfer.peer.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos} of {len} flows{msg}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            let name = term::plain(&transfer.peer).into_owned();
            self.all.add(ProgressBar::no_length().with_style(style).with_prefix(name))
        });
        bar.set_length(bulk.flows_total);
        bar.set_position(bulk.flows_done);
        let left = bulk.remaining_ms.map_or(String::new(), |ms| format!(", {} left", term::duration(ms)));
        bar.set_message(format!(", {} buckets to go{left}", bulk.buckets_left));
    }

    /// Takes a bar away, so that what is printed next stands where it was.
    fn clear(&mut self, peer: &str) {
        if let Some(bar) = self.by_peer.remove(peer) {
            bar.finish_and_clear();
        }
    }
}

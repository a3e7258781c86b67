//! How a scenario is run: in a lab of its own, with the nodes' logs shown when it fails and nothing left when it ends.

use anyhow::Result;

use crate::lab::{Lab, LabOptions};
use crate::pair::Pair;

/// Plays a scenario in a new lab; without root, says so and does nothing.
///
/// # Panics
///
/// When the scenario or the removal of the lab fails.
pub fn in_lab(options: LabOptions, play: impl FnOnce(&Lab) -> Result<()>) {
    if crate::root::needed() {
        return;
    }
    let lab = Lab::new(options).unwrap_or_else(|error| panic!("the lab cannot be laid: {error:?}"));
    // The lab shows the logs and removes itself while this unwinds.
    play(&lab).unwrap_or_else(|error| panic!("{error:?}"));
    lab.remove().unwrap_or_else(|error| panic!("{error:?}"));
}

/// As [`in_lab`], with a settled pair.
///
/// # Panics
///
/// As there, and when the pair does not settle.
pub fn with_pair(options: LabOptions, play: impl FnOnce(&Lab, &mut Pair) -> Result<()>) {
    in_lab(options, |lab| {
        let (mut pair, _) = Pair::settled(lab)?;
        play(lab, &mut pair)
    });
}

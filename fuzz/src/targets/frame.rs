//! Frames that `fwhactl capture` shows.

/// Describes a frame, in one line that a terminal can take.
pub fn run(data: &[u8]) {
    let text = crate::decode::describe(data);
    assert!(!text.is_empty() && !text.contains(char::is_control), "{text:?}");
}

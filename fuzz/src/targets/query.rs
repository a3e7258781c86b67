//! Queries to the control socket, and terms of a filter on a command line.

use std::fmt::Debug;

use fwha::api::{CaptureQuery, FlowFilter};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Reads a text as every kind of query, and as terms.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    read::<FlowFilter>(text);
    read::<CaptureQuery>(text);
    let mut filter = FlowFilter::default();
    for term in text.split('&') {
        if let Err(problem) = filter.set(term) {
            assert!(!problem.is_empty());
        }
    }
    write(&filter);
}

fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(text: &str) {
    if let Ok(query) = serde_urlencoded::from_str::<T>(text) {
        write(&query);
    }
}

/// What a client writes, the daemon reads.
fn write<T: DeserializeOwned + Serialize + PartialEq + Debug>(query: &T) {
    let text = serde_urlencoded::to_string(query).expect("a query is written");
    assert_eq!(serde_urlencoded::from_str::<T>(&text).as_ref(), Ok(query), "{text}");
}

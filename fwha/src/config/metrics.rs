//! `[metrics]`: where Prometheus may read the counters.

use std::net::SocketAddr;

use super::{
    section::{self, Section},
    source::Mistakes,
};

/// `[metrics]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Address and TCP port; nowhere if there is none.
    pub listen: Option<SocketAddr>,
}

pub(super) fn read(root: &mut Section<'_>, mistakes: &mut Mistakes) -> Metrics {
    let mut metrics = Metrics::default();
    let Some(mut section) = root.get("metrics").and_then(|t| section::table(t, "[metrics]", mistakes)) else {
        return metrics;
    };
    if let Some(text) = section.string("listen", mistakes) {
        match text.get_ref().parse::<SocketAddr>() {
            Ok(address) if address.port() > 0 => metrics.listen = Some(address),
            _ => mistakes
                .add(text.span(), format!("listen {:?} is not an address with a port", text.get_ref()))
                .remedy("like \"127.0.0.1:9761\" or \"[::1]:9761\""),
        }
    }
    section.finish(mistakes);
    metrics
}

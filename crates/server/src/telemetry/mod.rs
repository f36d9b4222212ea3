//! Output for operators: the log, the metrics, and the HTTP port that serves the metrics.

mod gauges;
mod http;
mod logging;
mod metrics;
mod requests;

pub(crate) use http::{HttpPort, StartedNode};
pub(crate) use logging::{LogEvents, start_logging};
pub(crate) use metrics::Metrics;

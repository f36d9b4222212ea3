//! The parameters of one run of the load generator.

use std::time::Duration;

use quorate_client::{ClientConfig, ReadOptions, WriteOptions};

use super::workload::{Distribution, Workload};

/// A run of the load generator.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) client: ClientConfig,
    pub(super) bucket: String,
    pub(super) workload: Workload,
    pub(super) distribution: Distribution,
    pub(super) value_bytes: usize,
    pub(super) keys: u32,
    /// Number of clients over all threads. Each client holds one connection to each node.
    pub(super) clients: usize,
    pub(super) threads: usize,
    /// Operations in flight over all clients.
    pub(super) in_flight: usize,
    pub(super) warm_up: Duration,
    pub(super) measured: Duration,
    /// Operations a second over all clients (open loop). `None`: as fast as they are answered
    /// (closed loop).
    pub(super) rate: Option<f64>,
    pub(super) read: ReadOptions,
    pub(super) write: WriteOptions,
    /// True if all keys are written before the run.
    pub(super) load: bool,
    pub(super) verify: bool,
    pub(super) seed: u64,
}

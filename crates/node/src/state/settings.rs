//! The operator's settings for the behaviour of a node.

use serde::Deserialize;

/// Section `[coordinator]`: limits of requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Timeout of a request that names none, in milliseconds. Default 1000.
    pub request_timeout_ms: u64,
    /// Longest timeout that a request may have, in milliseconds. Default 30,000.
    pub max_request_timeout_ms: u64,
    /// Most open requests on one worker. Further ones get `Overloaded`. Default 16,384.
    pub max_in_flight: usize,
    /// Largest allowed difference between two clocks, in milliseconds. A context from further ahead
    /// is refused. A node whose clock differs more from most of its peers' coordinates no writes.
    /// Default 60,000.
    pub max_clock_skew_ms: u64,
}

impl Default for CoordinatorConfig {
    fn default() -> Self {
        CoordinatorConfig {
            request_timeout_ms: 1_000,
            max_request_timeout_ms: 30_000,
            max_in_flight: 16_384,
            max_clock_skew_ms: 60_000,
        }
    }
}

/// Section `[hints]`: hints that this node keeps for replicas that cannot be reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HintsConfig {
    /// Most MiB of hints for one replica. Further hints are refused, never dropped. Default 1024.
    pub max_mib_per_target: u64,
}

impl Default for HintsConfig {
    fn default() -> Self {
        HintsConfig { max_mib_per_target: 1_024 }
    }
}

/// Section `[repair]`: anti-entropy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairConfig {
    /// True if rounds begin by themselves. Otherwise only `quorate repair start` begins one.
    /// Default true.
    pub enabled: bool,
    /// Time between two comparisons of hash trees with a peer, in milliseconds. A peer that returns
    /// is compared with at once. Default 600,000 (ten minutes).
    pub interval_ms: u64,
    /// Most keys that a round exchanges per second. Default 20,000.
    pub max_keys_per_second: u64,
}

impl Default for RepairConfig {
    fn default() -> Self {
        RepairConfig { enabled: true, interval_ms: 600_000, max_keys_per_second: 20_000 }
    }
}

/// Section `[tombstone_gc]`: tombstone collection.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TombstoneGcConfig {
    /// True if this node collects tombstones. Default true.
    pub enabled: bool,
    /// Time between two searches for tombstones to collect, in milliseconds. Default 60,000.
    pub interval_ms: u64,
    /// Time for which all replicas must have agreed, in milliseconds. At least the sum of
    /// `max_request_timeout_ms` and twice `max_clock_skew_ms` of `[coordinator]` and five seconds.
    /// Default 300,000.
    pub grace_ms: u64,
}

impl Default for TombstoneGcConfig {
    fn default() -> Self {
        TombstoneGcConfig { enabled: true, interval_ms: 60_000, grace_ms: 300_000 }
    }
}

/// Settings of layout changes, from section `[cluster]`.
#[derive(Debug, Clone)]
pub struct TransferConfig {
    /// Most bytes per second that this node copies from others. Default 16 MiB.
    pub bytes_per_s: u64,
    /// True if a node that is found and is no member yet becomes a member without an operator.
    pub auto_commit: bool,
}

impl Default for TransferConfig {
    fn default() -> Self {
        TransferConfig { bytes_per_s: 16 * 1024 * 1024, auto_commit: false }
    }
}

/// All settings of a node's behaviour.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Layout changes.
    pub transfer: TransferConfig,
    /// Limits of requests.
    pub coordinator: CoordinatorConfig,
    /// Hints for other nodes.
    pub hints: HintsConfig,
    /// Anti-entropy.
    pub repair: RepairConfig,
    /// Tombstone collection.
    pub tombstone_gc: TombstoneGcConfig,
}

impl Settings {
    /// Returns the milliseconds for which a message with an object is valid after the object was
    /// read: the longest timeout, plus the time in which a coordinator finds fallbacks for silent
    /// replicas.
    pub fn message_life_ms(&self) -> u64 {
        self.coordinator.max_request_timeout_ms + AFTERMATH_MS
    }

    /// Returns the shortest allowed grace period, in milliseconds. A message that was sent before a
    /// grace period of this length is void after it.
    pub fn shortest_grace_ms(&self) -> u64 {
        self.message_life_ms() + 2 * self.coordinator.max_clock_skew_ms + 3_000
    }
}

/// Milliseconds after a request's deadline in which its coordinator may still send hints for
/// replicas that did not answer.
pub(crate) const AFTERMATH_MS: u64 = 2_000;

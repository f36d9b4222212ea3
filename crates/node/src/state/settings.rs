//! The operator's settings for the behaviour of a node.

use serde::Deserialize;

/// Section `[coordinator]`: limits of requests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Timeout of a request that names none, in milliseconds. Default 1000.
    pub request_timeout_ms: u64,
    /// Longest timeout that a request may have, in milliseconds. A longer one is shortened to it.
    /// Default 30,000.
    pub max_request_timeout_ms: u64,
    /// Largest number of open requests on one worker. Further requests get `Overloaded`. Default
    /// 16,384.
    pub max_in_flight: usize,
    /// Largest allowed difference between two nodes' clocks, in milliseconds. A context with a time
    /// further ahead of this node's clock is refused. A node whose clock differs more from most of
    /// its peers' clocks coordinates no writes. Default 60,000.
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
    /// Largest number of MiB of hints for one replica. Further hints are refused, never dropped.
    /// Default 1024.
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
    /// Time between two rounds with a peer, in milliseconds. When an unreachable peer returns, a
    /// round with it begins without this wait. Default 600,000 (ten minutes).
    pub interval_ms: u64,
    /// Largest number of keys that a round exchanges per second. Default 20,000.
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
    /// Grace period: all replicas must have agreed on a tombstone for this time before it is
    /// deleted, in milliseconds. Minimum: `max_request_timeout_ms + 2 * max_clock_skew_ms + 5_000`,
    /// with the values of `[coordinator]`. Default 300,000.
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
    /// Largest number of bytes per second that this node copies from other nodes in a layout
    /// change. Default 16 MiB.
    pub bytes_per_s: u64,
    /// True if a waiting node (found, but in no layout) becomes a member without an operator.
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
    /// Returns the longest time for which a message with an object is valid, in milliseconds. It is
    /// the longest timeout of a request, plus the time after the deadline in which a coordinator
    /// still sends hints.
    pub fn message_life_ms(&self) -> u64 {
        self.coordinator.max_request_timeout_ms + AFTERMATH_MS
    }

    /// Returns the shortest allowed grace period, in milliseconds. A message that was sent before a
    /// period of this length is void after that period.
    pub fn shortest_grace_ms(&self) -> u64 {
        self.message_life_ms() + 2 * self.coordinator.max_clock_skew_ms + 3_000
    }
}

/// Milliseconds after a request's deadline in which its coordinator may still send hints for
/// replicas that did not answer.
pub(crate) const AFTERMATH_MS: u64 = 2_000;

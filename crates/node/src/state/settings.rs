//! What an operator can set about how a node behaves.

use serde::Deserialize;

/// `[coordinator]`: how requests are served.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorConfig {
    /// Deadline of a request that names none, milliseconds. Default 1000.
    pub request_timeout_ms: u64,
    /// Longest deadline a request may have, milliseconds. Default 30,000.
    pub max_request_timeout_ms: u64,
    /// Most requests under way on one worker; beyond it, `Overloaded`. Default 16,384.
    pub max_in_flight: usize,
    /// How far a clock may be from this node's, milliseconds: a context from further ahead is refused, and a node that is
    /// further from most of its peers coordinates nothing. Default 60,000.
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

/// `[hints]`: what this node keeps for replicas that can't be reached.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HintsConfig {
    /// Most MiB of hints for one replica; beyond it they are refused, never dropped. Default 1024.
    pub max_mib_per_target: u64,
}

impl Default for HintsConfig {
    fn default() -> Self {
        HintsConfig { max_mib_per_target: 1_024 }
    }
}

/// `[repair]`: anti-entropy.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RepairConfig {
    /// Whether rounds begin by themselves, and not only by `quorate repair start`. Default true.
    pub enabled: bool,
    /// How often each peer's hash trees are compared with this node's, milliseconds; also at once when a peer returns.
    /// Default 600,000 (ten minutes).
    pub interval_ms: u64,
    /// Most keys a second that are exchanged. Default 20,000.
    pub max_keys_per_second: u64,
}

impl Default for RepairConfig {
    fn default() -> Self {
        RepairConfig { enabled: true, interval_ms: 600_000, max_keys_per_second: 20_000 }
    }
}

/// `[tombstone_gc]`: when tombstones go.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TombstoneGcConfig {
    /// Whether they do. Default true.
    pub enabled: bool,
    /// How often this node looks for some, milliseconds. Default 60,000.
    pub interval_ms: u64,
    /// How long all replicas must have agreed, milliseconds. More than `max_request_timeout_ms` of `[coordinator]` plus
    /// twice its `max_clock_skew_ms`, five seconds, and the storage engine's commit interval. Default 300,000.
    pub grace_ms: u64,
}

impl Default for TombstoneGcConfig {
    fn default() -> Self {
        TombstoneGcConfig { enabled: true, interval_ms: 60_000, grace_ms: 300_000 }
    }
}

/// What an operator can set about changes of layout; in `[cluster]`.
#[derive(Debug, Clone)]
pub struct TransferConfig {
    /// Most bytes a second that this node copies from others. Default 16 MiB.
    pub bytes_per_s: u64,
    /// A node that is found and has no part in the layout yet is made a member at once.
    pub auto_commit: bool,
}

impl Default for TransferConfig {
    fn default() -> Self {
        TransferConfig { bytes_per_s: 16 * 1024 * 1024, auto_commit: false }
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Changes of layout.
    pub transfer: TransferConfig,
    /// How requests are served.
    pub coordinator: CoordinatorConfig,
    /// What is kept for others.
    pub hints: HintsConfig,
    /// Anti-entropy.
    pub repair: RepairConfig,
    /// When tombstones go.
    pub tombstone_gc: TombstoneGcConfig,
}

impl Settings {
    /// How long a message that carries an object is good after the object was read: the longest deadline, and what a
    /// coordinator takes to find a fallback for a replica that did not answer.
    pub fn message_life_ms(&self) -> u64 {
        self.coordinator.max_request_timeout_ms + AFTERMATH_MS
    }

    /// The shortest grace period in which no message can be under way any more that was sent before it.
    pub fn shortest_grace_ms(&self) -> u64 {
        self.message_life_ms() + 2 * self.coordinator.max_clock_skew_ms + 3_000
    }
}

/// What a coordinator may still send after a request's deadline: hints for those that did not answer.
pub(crate) const AFTERMATH_MS: u64 = 2_000;

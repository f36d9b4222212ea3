//! The summary of layouts and progress that nodes send each other at short intervals.

use crate::member::NodeId;

use super::phase::Phase;

/// A node's summary for other nodes: digests of its oldest and newest active layout and of its
/// staged changes, and the phase of each node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutSummary {
    pub(super) oldest: u64,
    pub(super) newest: u64,
    pub(super) staged: u64,
    pub(super) progress: Vec<(NodeId, Phase)>,
}

/// The result of merging a summary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryMerge {
    /// True if this node's progress or layouts changed.
    pub changed: bool,
    /// True if the other node may know more: its layouts must be fetched.
    pub fetch: bool,
}

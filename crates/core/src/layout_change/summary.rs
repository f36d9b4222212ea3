//! What nodes tell each other about a layout change all the time.

use crate::member::NodeId;

use super::phase::Phase;

/// What a node tells the others all the time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayoutSummary {
    pub(super) oldest: u64,
    pub(super) newest: u64,
    pub(super) staged: u64,
    pub(super) progress: Vec<(NodeId, Phase)>,
}

/// What news came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SummaryMerge {
    /// Something changed here.
    pub changed: bool,
    /// The other knows more: its layouts are to be fetched.
    pub fetch: bool,
}

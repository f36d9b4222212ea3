//! Bounds of the faults in one run.

/// Nodes that may be down at one time. At this limit the nemesis stops no further single node.
pub(super) const MAX_DOWN: usize = 3;

/// Disks that may be wiped or declared lost in one run.
pub(super) const MAX_LOST_DISKS: usize = 3;

/// Layout changes that operators may request in one run.
pub(super) const MAX_LAYOUT_CHANGES: usize = 12;

//! Bounds of the faults in one run.

/// Number of nodes that are down from which on the nemesis stops no single node. A power cut of all
/// nodes is exempt.
pub(super) const MAX_DOWN: usize = 3;

/// Disks that may be wiped or declared lost in one run.
pub(super) const MAX_LOST_DISKS: usize = 3;

/// Layout changes that operators may request in one run.
pub(super) const MAX_LAYOUT_CHANGES: usize = 12;

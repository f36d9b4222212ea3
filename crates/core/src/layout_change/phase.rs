//! The phases of a layout change, and the work that each requires of a node.

/// The progress of a node in the change to the newest layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Phase {
    /// The node does not know the newest layout, as far as this node has learned.
    #[default]
    Unaware,
    /// The node has stored the newest layout.
    Known,
    /// The node has no open write that began without the newest layout.
    Acked,
    /// The node has merged the records that its partitions must hold.
    Synced,
    /// The node has no open read that began on an older layout.
    Reading,
    /// The node has no open write that began with an older layout.
    Released,
    /// The node holds only records of its own partitions.
    Cleared,
}

impl Phase {
    pub(super) const ALL: [Phase; 7] = [
        Phase::Unaware,
        Phase::Known,
        Phase::Acked,
        Phase::Synced,
        Phase::Reading,
        Phase::Released,
        Phase::Cleared,
    ];

    /// Returns the phase's name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Unaware => "unaware",
            Phase::Known => "known",
            Phase::Acked => "acked",
            Phase::Synced => "synced",
            Phase::Reading => "reading",
            Phase::Released => "released",
            Phase::Cleared => "cleared",
        }
    }
}

/// The work that a node has to do before its next phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextStep {
    /// No work: other nodes have not reached this node's phase, or the change has ended.
    Idle,
    /// A wait until all requests that began under an earlier view of the layouts have ended.
    DrainRequests,
    /// A copy of the records that this node's partitions of the newest layout must hold.
    CopyData,
    /// A handoff: the node gives away and deletes the records that are not its own in the newest
    /// layout.
    HandOff,
}

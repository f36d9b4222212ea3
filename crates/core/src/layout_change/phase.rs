//! The phases of a layout change, and the work that each asks of a node.

/// How far a node is with the newest layout.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Phase {
    /// It does not know of it, as far as is known.
    #[default]
    Unaware,
    /// It has stored it.
    Known,
    /// No write is open that it began without it.
    Acked,
    /// It has merged what its partitions must hold.
    Synced,
    /// No read is open that it began on an older one.
    Reading,
    /// No write is open that it began with an older one.
    Released,
    /// It holds nothing that is not its own.
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

    /// For people.
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

/// What a node has to do for its next phase.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NextStep {
    /// Nothing: the others are not that far, or all is done.
    Idle,
    /// Wait until no request is open that was begun under an earlier view.
    DrainRequests,
    /// Merge what its partitions of the newest layout must hold.
    CopyData,
    /// Hand over and drop what is not its own in the newest layout.
    HandOff,
}

//! Planted bugs: known faults that the simulation switches on one at a time, to show that its
//! oracle finds them.
//!
//! Without the feature `planted-bugs`, no bug can be planted, and the checks cost nothing. Only
//! tests and the simulation are built with the feature, never a real node.

/// A bug that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bug {
    /// A hint is deleted when it is sent, not when it was durably acked.
    HintDeletedBeforeAck,
    /// A hint is deleted although it was changed after it was sent.
    ChangedHintDeleted,
    /// Tombstones are collected without asking any node about hints.
    GcIgnoresHints,
    /// Tombstones are collected after one agreement, not two.
    GcAsksOnce,
    /// Tombstones are collected when the live replicas agree, without the dead ones.
    GcIgnoresTheDead,
    /// After a restart, a node mints under the same actor as before the restart.
    ActorReusedAfterStart,
    /// Replicas are sent the new version alone, not the merged object.
    BareWriteReplicated,
    /// A put is answered with the context of all that its coordinator holds, also of versions that
    /// the writer has not seen.
    PutAnswersWholeVector,
    /// Read repair overwrites a replica's object instead of merging.
    RepairOverwrites,
    /// A fallback without a hint counts as a replica that answered "absent".
    FallbackAnswersAbsent,
    /// A replica that may have forgotten records answers reads.
    AmnesiacAnswers,
    /// Retries are applied as if they were new.
    RequestIdIgnored,
    /// Replicas apply the bucket's conflict resolver when they merge.
    ResolverInMerges,
    /// A write is acked before the engine has made it durable.
    AckBeforeDurable,
    /// Reads use the new replica sets once every node has acked the layout, before every node has
    /// synced.
    ReadsMoveBeforeSynced,
    /// A node copies its new partitions before every node has acked the layout.
    SyncBeforeAllAcked,
    /// A partition counts as synced once the records of one replica were merged.
    SyncedFromOne,
    /// While the layout changes, a write counts its acks over the replicas of all layouts together.
    /// It should need W acks in each layout.
    QuorumOverUnion,
    /// A node deletes records that it no longer has to hold before their replicas have them.
    LeftoversDropped,
    /// A node uses a layout before it has stored it.
    LayoutNotStored,
    /// A bucket gets another n, and its keys stay on their old replicas.
    RedefinedKeysStay,
}

impl Bug {
    /// All bugs.
    pub const ALL: [Bug; 21] = [
        Bug::HintDeletedBeforeAck,
        Bug::ChangedHintDeleted,
        Bug::GcIgnoresHints,
        Bug::GcAsksOnce,
        Bug::GcIgnoresTheDead,
        Bug::ActorReusedAfterStart,
        Bug::BareWriteReplicated,
        Bug::PutAnswersWholeVector,
        Bug::RepairOverwrites,
        Bug::FallbackAnswersAbsent,
        Bug::AmnesiacAnswers,
        Bug::RequestIdIgnored,
        Bug::ResolverInMerges,
        Bug::AckBeforeDurable,
        Bug::ReadsMoveBeforeSynced,
        Bug::SyncBeforeAllAcked,
        Bug::SyncedFromOne,
        Bug::QuorumOverUnion,
        Bug::LeftoversDropped,
        Bug::LayoutNotStored,
        Bug::RedefinedKeysStay,
    ];
}

#[cfg(feature = "planted-bugs")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in this thread. `None` removes the planted bug.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// True if this bug is planted.
#[cfg(feature = "planted-bugs")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// True if this bug is planted. In this build none ever is.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub fn planted(_: Bug) -> bool {
    false
}

//! Bugs that the simulation plants, one at a time, to show that its checker finds them. In a build without the feature
//! `planted-bugs`, which no node has, there are none and the question costs nothing.

/// A bug that can be planted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Bug {
    /// A hint is deleted when it is sent, not when it was durably acked.
    HintDeletedBeforeAck,
    /// A hint is deleted although it was changed after it was sent.
    ChangedHintDeleted,
    /// Tombstones are collected without asking anybody about hints.
    GcIgnoresHints,
    /// Tombstones are collected after one agreement, not two.
    GcAsksOnce,
    /// Tombstones are collected when the replicas that are up agree.
    GcIgnoresTheDead,
    /// A node goes on under its old actor after a start.
    ActorReusedAfterStart,
    /// Replicas are sent the new version alone, not the merged object.
    BareWriteReplicated,
    /// A put answers with all that its coordinator holds, seen by the writer or not.
    PutAnswersWholeVector,
    /// Read repair overwrites what a replica holds.
    RepairOverwrites,
    /// A fallback without a hint answers "absent".
    FallbackAnswersAbsent,
    /// A replica that may have forgotten answers reads.
    AmnesiacAnswers,
    /// Retries are applied as if they were new.
    RequestIdIgnored,
    /// Replicas run the bucket's resolver when they merge.
    ResolverInMerges,
    /// A write is acked before the engine has made it durable.
    AckBeforeDurable,
    /// Reads go to the new replica sets when everybody has acked the layout, before they are synced.
    ReadsMoveBeforeSynced,
    /// A node copies what its partitions must hold before everybody has acked the layout.
    SyncBeforeAllAcked,
    /// A partition counts as synced when one replica's part was merged.
    SyncedFromOne,
    /// A write's acks are counted over all replica sets together.
    QuorumOverUnion,
    /// What is not a node's own any more is dropped before its owners have it.
    LeftoversDropped,
    /// A layout is acted on before it is stored.
    LayoutNotStored,
    /// A bucket gets another n, and its keys stay where they were.
    RedefinedKeysStay,
}

impl Bug {
    /// All of them.
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

/// Plants a bug in this thread, or none.
#[cfg(feature = "planted-bugs")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// True if this bug is planted.
#[cfg(feature = "planted-bugs")]
pub fn planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// True if this bug is planted: never, in this build.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub fn planted(_: Bug) -> bool {
    false
}

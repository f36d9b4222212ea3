//! What happens in a node, as one typed stream: logs, metrics, `explain` and the simulation's checker are fed from it.

use crate::layout_change::Phase;
use crate::member::NodeId;
use crate::object::RequestId;

/// Something that happened. Nothing else logs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Wall clock, milliseconds since 1970.
    pub at_ms: u64,
    /// The node it happened on.
    pub node: NodeId,
    /// The client's request it belongs to, if it has an id.
    pub request: Option<RequestId>,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A connection to a peer stands.
    PeerUp {
        /// The peer.
        peer: String,
    },
    /// The connection to a peer is gone.
    PeerDown {
        /// The peer.
        peer: String,
        /// What the connection died of.
        reason: String,
    },
    /// A peer can't be connected to, or will not have us.
    PeerUnreachable {
        /// The peer.
        peer: String,
        /// Why.
        reason: String,
    },
    /// We and a peer do not belong together.
    PeerRefused {
        /// The peer, or its address.
        peer: String,
        /// What differs.
        reason: String,
    },
    /// Somebody connected who does not speak our protocol.
    StrangerRefused {
        /// Where from.
        address: String,
        /// What they sent.
        reason: String,
    },
    /// A read found replicas behind and sent them the merged object.
    ReadRepaired {
        /// How many.
        replicas: usize,
    },
    /// A write did not get its acks.
    WriteIndeterminate {
        /// Acks needed.
        needed: u8,
        /// Acks received.
        received: u8,
    },
    /// A client's request was answered.
    Served {
        /// Which kind: "get", "put", "scan".
        verb: &'static str,
        /// "ok", or the error's name.
        outcome: &'static str,
        /// From its arrival to its answer, microseconds.
        micros: u64,
        /// Acks or replies that it took.
        acked: u8,
        /// Values that a read showed.
        siblings: u32,
        /// Acks that were hints.
        hinted: u8,
    },
    /// A hint was refused: the budget for its target is used up.
    HintRefused {
        /// For whom it was.
        target: String,
    },
    /// Hints reached the replica that they were for.
    HintsDelivered {
        /// Who.
        target: String,
        /// How many.
        hints: usize,
    },
    /// This node may have forgotten what it held: it answers no reads of these partitions until it has asked the others.
    Recovering {
        /// How many.
        partitions: usize,
    },
    /// It has asked enough of them.
    Recovered {
        /// How many.
        partitions: usize,
    },
    /// A round of anti-entropy with a peer ended.
    Repaired {
        /// The peer.
        peer: String,
        /// Keys that differed.
        keys: u64,
    },
    /// A round of anti-entropy broke off.
    RepairFailed {
        /// The peer.
        peer: String,
        /// Why.
        reason: String,
    },
    /// Tombstones that everybody held were deleted.
    TombstonesCollected {
        /// How many.
        keys: usize,
    },
    /// This node's clock is far from those of most of its peers, or is no more.
    ClockSkewed {
        /// How far, with a sign: positive if this node's is ahead. `None`: it is right again.
        ahead_ms: Option<i64>,
    },
    /// A change of layout begins for this node.
    LayoutChanges {
        /// The new layout's number.
        number: u64,
        /// What was changed.
        changes: String,
    },
    /// This node has reached a phase of a change of layout.
    LayoutPhase {
        /// The new layout's number.
        number: u64,
        /// Which.
        phase: Phase,
        /// The older layouts are forgotten.
        settled: bool,
    },
    /// This node was taken out while it was away: it serves nothing any more.
    Removed {
        /// By which layout, or an earlier one.
        number: u64,
    },
    /// The engine could not read a record or commit a change.
    StorageFailed {
        /// What it said.
        detail: String,
    },
    /// A change that had been applied could not be committed: its partition goes on under a new actor.
    ActorRenewed {
        /// The partition.
        partition: u16,
    },
}

/// Takes events. Called on the node's event loops and on engines' threads: must not block.
pub trait EventSink: Send + Sync + 'static {
    /// Takes one event.
    fn emit(&self, event: Event);
}

/// Takes events and forgets them.
pub struct Silent;

impl EventSink for Silent {
    fn emit(&self, _: Event) {}
}

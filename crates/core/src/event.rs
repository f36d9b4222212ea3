//! The events of a node, as one typed stream. Logs, metrics and the simulation's oracle receive
//! this stream.

use crate::layout_change::Phase;
use crate::member::NodeId;
use crate::object::RequestId;

/// An event of a node, for logs and metrics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Time of the event by the node's wall clock, in milliseconds since 1970.
    pub at_ms: u64,
    /// The node that reports the event.
    pub node: NodeId,
    /// The id of the client's request that caused the event, if it has one.
    pub request: Option<RequestId>,
    /// The kind of event, with its values.
    pub kind: EventKind,
}

/// The kinds of events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// A connection to a peer was opened.
    PeerUp {
        /// The peer's name.
        peer: String,
    },
    /// A connection to a peer was lost.
    PeerDown {
        /// The peer's name.
        peer: String,
        /// The reason for the loss.
        reason: String,
    },
    /// A connection to a peer cannot be opened, or the peer refuses it.
    PeerUnreachable {
        /// The peer's name.
        peer: String,
        /// The reason why there is no connection.
        reason: String,
    },
    /// This node and a peer refuse each other, because they do not belong to one cluster.
    PeerRefused {
        /// The peer's name or address.
        peer: String,
        /// The setting that differs, and the remedy.
        reason: String,
    },
    /// A connection was closed, because the other side does not speak Quorate's protocol.
    StrangerRefused {
        /// The address of the other side.
        address: String,
        /// The bytes or the error that showed this.
        reason: String,
    },
    /// A read found replicas that lacked versions, and sent them the merged object.
    ReadRepaired {
        /// Number of replicas that were sent the merged object.
        replicas: usize,
    },
    /// A write did not get enough acks in time.
    WriteIndeterminate {
        /// Acks that the write needs.
        needed: u8,
        /// Acks that were received.
        received: u8,
    },
    /// A client's get, put or scan was answered.
    Served {
        /// Kind of request: "get", "put" or "scan".
        verb: &'static str,
        /// Outcome of the request: "ok", or the error's name.
        outcome: &'static str,
        /// Time from the request's arrival to its answer, in microseconds.
        micros: u64,
        /// Number of acks or replies that the answer is based on. 0 for scans and errors.
        acked: u8,
        /// Number of values that a get showed. 0 for other requests.
        siblings: u32,
        /// Number of acks by fallbacks, which keep the write as a hint.
        hinted: u8,
    },
    /// A hint was refused, because the hints for its target have reached their size limit.
    HintRefused {
        /// Name of the replica that the hint was for.
        target: String,
    },
    /// Hints were delivered to the replica that they were for.
    HintsDelivered {
        /// The replica's name.
        target: String,
        /// Number of hints.
        hints: usize,
    },
    /// This node may have forgotten records of some partitions. It answers no reads of them until
    /// it has merged with enough other replicas.
    Recovering {
        /// Number of partitions of which records may be forgotten.
        partitions: usize,
    },
    /// This node has merged with enough other replicas of some partitions. It answers reads of them
    /// again.
    Recovered {
        /// Number of partitions that have recovered.
        partitions: usize,
    },
    /// A round of anti-entropy with a peer ended.
    Repaired {
        /// The peer's name.
        peer: String,
        /// Number of keys that differed between this node and the peer.
        keys: u64,
    },
    /// An exchange of records with a peer failed: in anti-entropy, recovery or a layout change.
    RepairFailed {
        /// The peer's name.
        peer: String,
        /// The reason why the exchange failed.
        reason: String,
    },
    /// This node has ordered the deletion of tombstones that all replicas hold.
    TombstonesCollected {
        /// Number of tombstones.
        keys: usize,
    },
    /// This node's clock differs too much from the clocks of most of its peers, or no longer does.
    /// While it differs, the node coordinates no writes.
    ClockSkewed {
        /// Milliseconds by which this node's clock is ahead; negative if it is behind. `None`: the
        /// clock is right again.
        ahead_ms: Option<i64>,
    },
    /// A layout change begins on this node.
    LayoutChanges {
        /// The new layout's number.
        number: u64,
        /// The changes that make the new layout.
        changes: String,
    },
    /// This node has reached a phase of a layout change.
    LayoutPhase {
        /// The new layout's number.
        number: u64,
        /// The phase that this node has reached.
        phase: Phase,
        /// True if the layout change has ended: the older layouts are forgotten.
        settled: bool,
    },
    /// This node was removed while it was down or cut off. It serves nothing from now on.
    Removed {
        /// Number of the newest layout. That layout, or one before it, removed this node.
        number: u64,
    },
    /// The engine could not read a record or commit a change.
    StorageFailed {
        /// The engine's error.
        detail: String,
    },
    /// A change that had been applied could not be committed, so the partition continues under a
    /// new actor.
    ActorRenewed {
        /// The partition's number.
        partition: u16,
    },
}

/// A receiver of events. It is called on the node's event loops and on engines' threads, so it must
/// not block.
pub trait EventSink: Send + Sync + 'static {
    /// Receives one event.
    fn emit(&self, event: Event);
}

/// A receiver that discards events.
pub struct Silent;

impl EventSink for Silent {
    fn emit(&self, _: Event) {}
}

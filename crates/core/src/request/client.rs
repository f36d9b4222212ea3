//! Requests of clients, and the replies to them.

use bytes::Bytes;

use crate::clock::Stamp;
use crate::error::RequestError;
use crate::key::{BucketName, Key, PartitionId};
use crate::member::NodeId;
use crate::object::{Payload, RequestId};
use crate::quorum::QuorumSize;

use super::admin::ClusterRequest;

/// A read of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetRequest {
    /// The key.
    pub key: Key,
    /// Number of replicas that must answer.
    pub r: QuorumSize,
}

/// A write of one key: a put, or a delete if the payload is a tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutRequest {
    /// The key.
    pub key: Key,
    /// The value or the tombstone.
    pub payload: Payload,
    /// The versions that the write replaces.
    pub mode: EncodedWriteMode,
    /// The client's id of the write, the same in all of its attempts.
    pub request: RequestId,
    /// Number of replicas that must ack.
    pub w: QuorumSize,
    /// True if a fallback's ack may count for its replica. `None`: as the bucket's definition says.
    pub sloppy: Option<bool>,
    /// Number of the attempt, from 0. From attempt 1 on, the coordinator first reads the key, to
    /// find out if an earlier attempt was applied.
    pub attempt: u16,
}

/// The versions that a put replaces. Contexts are encoded ([`crate::codec::encode_context`]),
/// because they are opaque to clients.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EncodedWriteMode {
    /// All versions that the coordinator holds, and those that this client last saw: an overwrite.
    Overwrite {
        /// The encoded context that the client last saw. No bytes: the empty context.
        seen: Bytes,
    },
    /// Exactly the versions of the context. With the empty context the write is concurrent with all
    /// other versions.
    Exactly {
        /// An encoded context. No bytes: the empty context.
        context: Bytes,
    },
}

/// A read of one page of a bucket's keys, in the order of their storage keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRequest {
    /// The bucket.
    pub bucket: BucketName,
    /// The bytes with which the keys must begin.
    pub prefix: Bytes,
    /// The cursor that the previous page's reply contained. Empty: the page is the first.
    pub cursor: Bytes,
    /// Maximum number of entries on the page. 0: the node's default.
    pub limit: u32,
    /// True if the values are left out.
    pub keys_only: bool,
    /// Number of replicas that must answer for each partition.
    pub r: QuorumSize,
}

/// A client's request to a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientRequest {
    /// A request for an empty reply.
    Ping,
    /// A read of one key.
    Get(GetRequest),
    /// A write of one key.
    Put(PutRequest),
    /// A read of one page of a bucket.
    Scan(ScanRequest),
    /// A request for a report of the versions of a key that each replica holds.
    Explain(Key),
    /// A request for a report of the node's view of the cluster.
    Status,
    /// A request for the layout that this node uses for reads.
    Layout,
    /// A request for a digest of each partition's records on this node, for comparing replicas.
    Fingerprint,
    /// A request for a report of the progress of anti-entropy.
    Repair {
        /// True if the node must begin a round with every peer now.
        start: bool,
    },
    /// A request of an operator about the cluster's layout or buckets.
    Cluster(ClusterRequest),
    /// A network fault for tests: the set of peers from which this node is cut off. An empty list
    /// ends all cuts. The request is refused unless the configuration enables faults.
    Faults {
        /// Names of members. This node loses all messages from and to each of them. With a ">"
        /// before a name, it loses only the messages to that member.
        cut: Vec<String>,
    },
}

/// One of several values that are live at the same time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sibling {
    /// Time of the write.
    pub stamp: Stamp,
    /// The value's bytes.
    pub value: Bytes,
}

/// The record of how a request was served: coordinator, layout, and the nodes that answered.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Receipt {
    /// The node that coordinated the request.
    pub coordinator: NodeId,
    /// Number of the layout that the coordinator used.
    pub layout: u64,
    /// Nodes that answered a read, or acked a write, before the reply was sent.
    pub acked: Vec<NodeId>,
    /// The fallbacks among the nodes in `acked`.
    pub fallbacks: Vec<NodeId>,
    /// Replicas that lacked versions, so that this read sent them the merged object (read repair).
    /// Empty for writes.
    pub repaired: Vec<NodeId>,
    /// Time from the request's arrival to the reply, in microseconds.
    pub micros: u32,
}

/// The reply to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetReply {
    /// The values that the reader is shown, in stamp order. The list is empty if the key is absent
    /// or deleted.
    pub siblings: Vec<Sibling>,
    /// The encoded context of the read.
    pub context: Bytes,
    /// The record of how the read was served.
    pub receipt: Receipt,
}

/// The reply to a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutReply {
    /// The encoded context of the key's versions that the client has now seen.
    pub context: Bytes,
    /// True if the key has other live values, which the client has not seen.
    pub conflict: bool,
    /// Number of acks by fallbacks, which keep the write as a hint.
    pub hinted: u8,
    /// The record of how the write was served.
    pub receipt: Receipt,
}

/// One key of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanEntry {
    /// The key's partition. Together with the storage key it makes the cursor with which a scan
    /// continues after this entry ([`scan_cursor`]).
    pub partition: PartitionId,
    /// The key.
    pub key: Bytes,
    /// The key's values in stamp order, at least one. If only keys were requested, the values are
    /// empty.
    pub siblings: Vec<Sibling>,
    /// The encoded context of the key.
    pub context: Bytes,
}

/// Returns the cursor of a scan that has shown all records of the partition up to this storage key.
/// If `after` is empty, the scan has shown none of them.
pub fn scan_cursor(partition: PartitionId, after: &[u8]) -> Bytes {
    let mut cursor = partition.0.to_be_bytes().to_vec();
    cursor.extend_from_slice(after);
    cursor.into()
}

/// One page of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanReply {
    /// The entries, in the order of their storage keys.
    pub entries: Vec<ScanEntry>,
    /// The cursor for the request of the next page. Empty after the last page.
    pub cursor: Bytes,
}

/// A hash over all records that a node holds of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionFingerprint {
    /// The partition.
    pub partition: PartitionId,
    /// The n of the buckets that are counted. Each n has a fingerprint of its own, because keys of
    /// buckets with different n have different replicas.
    pub n: u8,
    /// Number of records.
    pub records: u64,
    /// XOR of one hash for each record, over (storage key, object digest).
    pub digest: u64,
}

/// The reply to a client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientReply {
    /// Reply to `Get`.
    Get(GetReply),
    /// Reply to `Put`.
    Put(PutReply),
    /// Reply to `Scan`.
    Scan(ScanReply),
    /// Reply to `Explain`, `Status`, `Repair` and `Cluster`: a JSON document.
    Report(String),
    /// Reply to `Layout`: the encoded layout.
    Layout(Bytes),
    /// Reply to `Fingerprint`.
    Fingerprint(Vec<PartitionFingerprint>),
    /// Reply to `Ping` and `Faults`.
    Done,
}

/// The reply to a client's request, or the error.
pub type ClientResult = Result<ClientReply, RequestError>;

//! Requests of clients, and the replies to them.

use bytes::Bytes;

use crate::clock::Stamp;
use crate::error::RequestError;
use crate::key::{BucketName, Key, PartitionId};
use crate::member::NodeId;
use crate::object::{Payload, RequestId};
use crate::quorum::QuorumSize;

use super::admin::ClusterRequest;

/// Read one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetRequest {
    /// Which key.
    pub key: Key,
    /// How many replicas must answer.
    pub r: QuorumSize,
}

/// Write one key: a put, or a delete if the payload is a tombstone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutRequest {
    /// Which key.
    pub key: Key,
    /// A value, or a tombstone.
    pub payload: Payload,
    /// What the write replaces.
    pub mode: EncodedWriteMode,
    /// The client's id for the write, kept over its retries.
    pub request: RequestId,
    /// How many replicas must ack.
    pub w: QuorumSize,
    /// Whether fallbacks may stand in; `None`: what the bucket says.
    pub sloppy: Option<bool>,
    /// 0 for the first attempt, then counted up: a retry asks whether it was applied before.
    pub attempt: u16,
}

/// What a put replaces, with contexts as clients hold them: encoded ([`crate::codec::encode_context`]), opaque.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EncodedWriteMode {
    /// Overwrite: what the coordinator holds, and what this client last saw (no bytes: nothing).
    Overwrite {
        /// An encoded context.
        seen: Bytes,
    },
    /// What the context contains and no more. No bytes: the empty context, concurrent with everything.
    Exactly {
        /// An encoded context.
        context: Bytes,
    },
}

/// Read one page of a bucket, in storage order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanRequest {
    /// Which bucket.
    pub bucket: BucketName,
    /// Only keys that begin with these bytes.
    pub prefix: Bytes,
    /// Where the page before ended, or empty.
    pub cursor: Bytes,
    /// Most entries a page; 0: as many as fit.
    pub limit: u32,
    /// Leave the values out.
    pub keys_only: bool,
    /// How many replicas of each partition must answer.
    pub r: QuorumSize,
}

/// What a client may ask of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientRequest {
    /// Answer.
    Ping,
    /// Read one key.
    Get(GetRequest),
    /// Write one key.
    Put(PutRequest),
    /// Read one page of a bucket.
    Scan(ScanRequest),
    /// What each replica holds of a key.
    Explain(Key),
    /// The node's view of the cluster.
    Status,
    /// The layout this node acts on.
    Layout,
    /// A digest of all that this node holds, a partition each: for comparing replicas.
    Fingerprint,
    /// What repair is doing; `start`: begin a round with every peer now.
    Repair {
        /// Begin one.
        start: bool,
    },
    /// The cluster's layout: to see and to change.
    Cluster(ClusterRequest),
    /// Cut this node off from peers (empty: from none). Refused unless the configuration turns faults on.
    Faults {
        /// Names of the members to lose all messages from and to; with a ">" before it: only those to it.
        cut: Vec<String>,
    },
}

/// One of the values that lie side by side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sibling {
    /// When it was written.
    pub stamp: Stamp,
    /// The bytes.
    pub value: Bytes,
}

/// Who answered what: lets a client see how its request was served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Receipt {
    /// The node that coordinated.
    pub coordinator: NodeId,
    /// The layout it acted on.
    pub layout: u64,
    /// Replicas that answered (reads) or acked (writes) before the reply.
    pub acked: Vec<NodeId>,
    /// Fallbacks among those.
    pub fallbacks: Vec<NodeId>,
    /// Replicas that were behind and were sent the merged object.
    pub repaired: Vec<NodeId>,
    /// From the request's arrival to the reply, microseconds.
    pub micros: u32,
}

/// The answer to a read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GetReply {
    /// What is shown, in stamp order: none if the key is absent or deleted.
    pub siblings: Vec<Sibling>,
    /// What was seen, encoded.
    pub context: Bytes,
    /// How it was served.
    pub receipt: Receipt,
}

/// The answer to a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutReply {
    /// What the client has now seen of the key, encoded.
    pub context: Bytes,
    /// Versions lie beside this one that the client has not seen.
    pub conflict: bool,
    /// Acks that were hints at fallbacks.
    pub hinted: u8,
    /// How it was served.
    pub receipt: Receipt,
}

/// One key of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanEntry {
    /// The key's partition: with the key, the scan's place after this entry ([`scan_cursor`]).
    pub partition: PartitionId,
    /// The key.
    pub key: Bytes,
    /// Its values in stamp order, never none; empty ones if only keys were asked for.
    pub siblings: Vec<Sibling>,
    /// What was seen of it, encoded.
    pub context: Bytes,
}

/// Where a scan is once it has shown everything up to this storage key of a partition; no key: nothing of it yet.
pub fn scan_cursor(partition: PartitionId, after: &[u8]) -> Bytes {
    let mut cursor = partition.0.to_be_bytes().to_vec();
    cursor.extend_from_slice(after);
    cursor.into()
}

/// One page of a scan.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ScanReply {
    /// The keys, in storage order.
    pub entries: Vec<ScanEntry>,
    /// Where the next page begins; empty at the end.
    pub cursor: Bytes,
}

/// The digest of what a node holds of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionFingerprint {
    /// Which partition.
    pub partition: PartitionId,
    /// Of keys of buckets with this many replicas: others lie on other nodes.
    pub n: u8,
    /// How many records.
    pub records: u64,
    /// XOR over hashes of (storage key, object digest).
    pub digest: u64,
}

/// The answer to a client's request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientReply {
    /// To `Get`.
    Get(GetReply),
    /// To `Put`.
    Put(PutReply),
    /// To `Scan`.
    Scan(ScanReply),
    /// To `Explain`, `Status`, `Repair` and `Cluster`: a JSON document.
    Report(String),
    /// To `Layout`: the encoded layout.
    Layout(Bytes),
    /// To `Fingerprint`.
    Fingerprint(Vec<PartitionFingerprint>),
    /// To `Ping` and `Faults`.
    Done,
}

/// What a client gets back.
pub type ClientResult = Result<ClientReply, RequestError>;

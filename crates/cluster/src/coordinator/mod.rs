//! A node as coordinator: asks the replicas of a key, counts their answers, answers the client.
//!
//! One file a verb. What they share is here: where a key lies, and who of its replicas can be asked.

mod explain;
mod forward;
mod get;
mod put;
mod read;
mod repair;
mod scan;

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::bucket::Bucket;
use quorate_core::request::Sibling;
use quorate_core::resolver::ConflictResolver;
use quorate_core::{Key, NodeId, Object, PartitionId, Payload, StorageKey};

pub(crate) use explain::explain;
pub(crate) use get::get;
pub(crate) use put::put;
pub(crate) use scan::scan;

use crate::node::Node;

/// Where a key lies: its partition, its bucket's rules, its replicas in order.
pub(crate) struct Place {
    pub(crate) key: StorageKey,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) key_hash: u64,
    pub(crate) bucket: Arc<Bucket>,
    pub(crate) replicas: Vec<NodeId>,
}

impl Place {
    pub(crate) fn of(node: &Node, key: &Key) -> Place {
        let layout = &node.shared.layout;
        let key_hash = key.hash();
        let partition = layout.partition_of(key_hash);
        let bucket = node.shared.buckets.get(key.bucket()).clone();
        let replicas = layout.replicas_of(partition, bucket.n).to_vec();
        let long_key = key.is_long().then(|| Bytes::copy_from_slice(key.bytes()));
        Place { key: StorageKey::of(partition, key), long_key, key_hash, bucket, replicas }
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.key.partition()
    }

    /// The nodes that can stand in for replicas, in order: live, and this one only if it is none.
    pub(crate) fn live_fallbacks(&self, node: &Node) -> Vec<NodeId> {
        let mut fallbacks = node.shared.layout.fallbacks_of(self.partition(), self.bucket.n);
        fallbacks.retain(|&fallback| node.is_live(fallback));
        fallbacks
    }

    /// True if this node passes the request on: it is no replica, and one can be reached.
    pub(crate) fn must_forward(&self, node: &Node, forwarded: bool) -> bool {
        let is_replica = self.replicas.contains(&node.shared.node());
        !is_replica && !forwarded && !self.live(node).is_empty()
    }

    /// Those of some nodes that are no replicas.
    pub(crate) fn fallbacks_among(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.iter().copied().filter(|node| !self.replicas.contains(node)).collect()
    }

    /// For whom a hint is kept that is not for a particular replica: the first one that can't be reached.
    pub(crate) fn missing(&self, node: &Node) -> NodeId {
        let missing = self.replicas.iter().find(|&&replica| !node.is_live(replica));
        *missing.unwrap_or(&self.replicas[0])
    }

    /// The replicas that can be asked, this node first: nearest first, and it costs no message.
    pub(crate) fn live(&self, node: &Node) -> Vec<NodeId> {
        live_first(node, &self.replicas)
    }
}

/// The live ones of some replicas, this node before the others.
pub(crate) fn live_first(node: &Node, replicas: &[NodeId]) -> Vec<NodeId> {
    let mut live: Vec<NodeId> = replicas.iter().copied().filter(|&replica| node.is_live(replica)).collect();
    let this = node.shared.node();
    live.sort_by_key(|&replica| replica != this);
    live
}

/// What a client is shown of an object: its bucket's resolver has the word here, and only here.
pub(crate) fn shown(node: &Node, bucket: &Bucket, object: &Object) -> Vec<Sibling> {
    let versions = object.shown();
    let resolver: Option<&Arc<dyn ConflictResolver>> = node.shared.resolvers.get(&bucket.definition.resolver);
    let versions = match resolver {
        Some(resolver) if versions.len() > 1 => resolver.resolve(versions),
        _ => versions,
    };
    let value = |payload: &Payload| match payload {
        Payload::Value(value) => value.clone(),
        Payload::Tombstone => Bytes::new(),
    };
    versions
        .into_iter()
        .map(|version| Sibling { stamp: version.dot.stamp, value: value(&version.payload) })
        .collect()
}

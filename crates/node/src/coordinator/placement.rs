//! The placement of a key: its partition, its replicas, and the fallbacks that stand in for them.

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::bucket::Bucket;
use quorate_core::layout_change::View;
use quorate_core::{Key, NodeId, PartitionId, RequestError, StorageKey};

use crate::node::Node;

/// The sender from which this node received a client's request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The client itself.
    Client,
    /// Another node, which is no replica of the key and forwarded the request.
    Coordinator,
}

/// A key's partition, bucket and replicas, as one request sees them. The value holds the request's
/// view, so a layout change waits until the value is dropped.
pub(crate) struct KeyPlacement {
    pub(crate) view: Arc<View>,
    pub(crate) key: StorageKey,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) key_hash: u64,
    pub(crate) bucket: Arc<Bucket>,
    /// Replicas in the layout that reads use, in the order of the preference list.
    pub(crate) replicas: Vec<NodeId>,
    /// The key's replicas in each other layout in which a write needs acks too. The list is empty
    /// unless the layout changes. Sets with the same nodes as `replicas` are left out.
    pub(crate) pending_write_sets: Vec<Vec<NodeId>>,
}

impl KeyPlacement {
    /// Finds the placement of a key in the current view.
    ///
    /// # Errors
    /// `Overloaded` while the key's bucket is being created.
    pub(crate) fn of(node: &Node, key: &Key) -> Result<KeyPlacement, RequestError> {
        let view = node.shared.view();
        let key_hash = key.hash();
        let partition = view.read.partition_of(key_hash);
        let bucket = bucket_of(&view, key.bucket())?.clone();
        let replicas = view.read.replicas_of(partition, bucket.n).to_vec();
        let long_key = key.is_long().then(|| Bytes::copy_from_slice(key.bytes()));
        let has_other_nodes = |other: &&[NodeId]| {
            other.len() != replicas.len() || other.iter().any(|replica| !replicas.contains(replica))
        };
        let pending = view
            .pending_write_layouts
            .iter()
            .map(|layout| layout.replicas_of(partition, bucket.n))
            .filter(has_other_nodes);
        let pending_write_sets = pending.map(<[NodeId]>::to_vec).collect();
        let key = StorageKey::of(partition, key);
        Ok(KeyPlacement { key, view, long_key, key_hash, bucket, replicas, pending_write_sets })
    }

    /// Returns the number of the key's replicas in the layout that reads use.
    pub(crate) fn n(&self) -> u8 {
        self.replicas.len() as u8
    }

    /// Returns all replicas to which a write is sent. Replicas in the layout that reads use come
    /// first.
    pub(crate) fn targets(&self) -> Vec<NodeId> {
        let mut targets = self.replicas.clone();
        for &replica in self.pending_write_sets.iter().flatten() {
            if !targets.contains(&replica) {
                targets.push(replica);
            }
        }
        targets
    }

    /// True if a write is sent to `node` as a replica, in the layout that reads use or in a pending
    /// one.
    pub(crate) fn is_target(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.pending_write_sets.iter().any(|set| set.contains(&node))
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.key.partition()
    }

    /// Returns the fallbacks of the key that can be reached, in order. Nodes of the pending write
    /// sets are left out, because a write is sent to them as replicas.
    pub(crate) fn live_fallbacks(&self, node: &Node) -> Vec<NodeId> {
        let mut fallbacks = self.view.read.fallbacks_of(self.partition(), self.bucket.n);
        fallbacks.retain(|&fallback| node.is_live(fallback) && !self.is_target(fallback));
        fallbacks
    }

    /// True if this node must forward the request: it is no replica, and a replica can be reached.
    /// A request that another node forwarded is not forwarded again.
    pub(crate) fn must_forward(&self, node: &Node, origin: Origin) -> bool {
        let is_replica = self.replicas.contains(&node.shared.node());
        !is_replica && origin == Origin::Client && !self.live(node).is_empty()
    }

    /// Returns the nodes among `nodes` that are not replicas of the key. They took part as
    /// fallbacks.
    pub(crate) fn fallbacks_among(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.iter().copied().filter(|&node| !self.is_target(node)).collect()
    }

    /// Returns the replica for which a fallback keeps a merged object as a hint. It is the first
    /// replica that cannot be reached, or the first of all if each can be reached.
    pub(crate) fn hint_target(&self, node: &Node) -> NodeId {
        let unreachable = self.replicas.iter().find(|&&replica| !node.is_live(replica));
        *unreachable.unwrap_or(&self.replicas[0])
    }

    /// Returns the replicas that can be reached, in the order in which a request asks them. This
    /// node comes first, because asking it needs no message. An exception is a layout change: then
    /// the replicas that are in all `pending_write_sets` come before the others. The reply of such a
    /// replica counts in every set, which saves a second check by read repair.
    pub(crate) fn live(&self, node: &Node) -> Vec<NodeId> {
        let mut live = live_first(node, &self.replicas);
        live.sort_by_key(|replica| !self.pending_write_sets.iter().all(|set| set.contains(replica)));
        live
    }
}

/// Returns a bucket's definition in the view of a request.
///
/// # Errors
/// `Overloaded` while the bucket is being created: the client may retry soon.
pub(crate) fn bucket_of<'a>(view: &'a View, name: &str) -> Result<&'a Arc<Bucket>, RequestError> {
    view.bucket(name).ok_or_else(|| RequestError::Overloaded {
        what: format!("bucket {name:?} is being created, and not all nodes know it yet"),
        limit: 0,
    })
}

/// Returns the `replicas` that can be reached. This node comes first, if it is one of them.
pub(crate) fn live_first(node: &Node, replicas: &[NodeId]) -> Vec<NodeId> {
    let mut live: Vec<NodeId> = replicas.iter().copied().filter(|&replica| node.is_live(replica)).collect();
    let this = node.shared.node();
    live.sort_by_key(|&replica| replica != this);
    live
}

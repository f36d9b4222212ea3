//! The placement of a key: its partition, its replicas, and the fallbacks that stand in for them.

use std::sync::Arc;

use bytes::Bytes;
use quorate_core::bucket::Bucket;
use quorate_core::layout_change::View;
use quorate_core::{Key, NodeId, PartitionId, RequestError, StorageKey};

use crate::node::Node;

/// The sender of a client's request to this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The client itself.
    Client,
    /// A coordinator that is no replica of the key, and forwarded the request.
    Coordinator,
}

/// A key's partition, bucket and replicas, in the view of one request. The value keeps the view, so
/// a layout change waits until it is dropped.
pub(crate) struct KeyPlacement {
    pub(crate) view: Arc<View>,
    pub(crate) key: StorageKey,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) key_hash: u64,
    pub(crate) bucket: Arc<Bucket>,
    /// Replicas in the layout that reads use, in the order of the preference list.
    pub(crate) replicas: Vec<NodeId>,
    /// Other replica sets in which a write needs acks while the layout changes. Sets with the same
    /// nodes as `replicas` are left out.
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

    /// Returns all replicas that a write is sent to, those of the layout that reads use first.
    pub(crate) fn targets(&self) -> Vec<NodeId> {
        let mut targets = self.replicas.clone();
        for &replica in self.pending_write_sets.iter().flatten() {
            if !targets.contains(&replica) {
                targets.push(replica);
            }
        }
        targets
    }

    /// True if a write is sent to the node as a replica, in any of the layouts.
    pub(crate) fn is_target(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.pending_write_sets.iter().any(|set| set.contains(&node))
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.key.partition()
    }

    /// Returns the live fallbacks of the key, in order, without replicas of pending write sets.
    pub(crate) fn live_fallbacks(&self, node: &Node) -> Vec<NodeId> {
        let mut fallbacks = self.view.read.fallbacks_of(self.partition(), self.bucket.n);
        fallbacks.retain(|&fallback| node.is_live(fallback) && !self.is_target(fallback));
        fallbacks
    }

    /// True if this node must forward the request: it is no replica, and a replica can be reached.
    /// A request is forwarded only once.
    pub(crate) fn must_forward(&self, node: &Node, origin: Origin) -> bool {
        let is_replica = self.replicas.contains(&node.shared.node());
        !is_replica && origin == Origin::Client && !self.live(node).is_empty()
    }

    /// Returns those of `nodes` that are not replicas of the key.
    pub(crate) fn fallbacks_among(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.iter().copied().filter(|&node| !self.is_target(node)).collect()
    }

    /// Returns the replica for which a fallback keeps a merged object: the first unreachable one.
    pub(crate) fn hint_target(&self, node: &Node) -> NodeId {
        let unreachable = self.replicas.iter().find(|&&replica| !node.is_live(replica));
        *unreachable.unwrap_or(&self.replicas[0])
    }

    /// Returns the live replicas, in the order in which they are asked. This node comes first,
    /// because it needs no message. While the layout changes, replicas that are also in all pending
    /// write sets come before all others: what they hold need not be checked again in the pending
    /// sets.
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

/// Returns the live ones of some replicas, with this node before the others.
pub(crate) fn live_first(node: &Node, replicas: &[NodeId]) -> Vec<NodeId> {
    let mut live: Vec<NodeId> = replicas.iter().copied().filter(|&replica| node.is_live(replica)).collect();
    let this = node.shared.node();
    live.sort_by_key(|&replica| replica != this);
    live
}

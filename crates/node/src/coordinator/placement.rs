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

/// Where a key lies: its partition, its bucket's rules, its replicas in order. Whoever has one goes by the layouts as they
/// were when it was made: a change of layout waits for it.
pub(crate) struct KeyPlacement {
    pub(crate) view: Arc<View>,
    pub(crate) key: StorageKey,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) key_hash: u64,
    pub(crate) bucket: Arc<Bucket>,
    /// In the layout that is read.
    pub(crate) replicas: Vec<NodeId>,
    /// Other replica sets that a write needs acks in, while a layout changes: those of the layouts in which the key lies
    /// elsewhere.
    pub(crate) pending_write_sets: Vec<Vec<NodeId>>,
}

impl KeyPlacement {
    /// # Errors
    /// `Overloaded` while the key's bucket is being created.
    pub(crate) fn of(node: &Node, key: &Key) -> Result<KeyPlacement, RequestError> {
        let view = node.shared.view();
        let key_hash = key.hash();
        let partition = view.read.partition_of(key_hash);
        let bucket = bucket_of(&view, key.bucket())?.clone();
        let replicas = view.read.replicas_of(partition, bucket.n).to_vec();
        let long_key = key.is_long().then(|| Bytes::copy_from_slice(key.bytes()));
        let elsewhere = |other: &&[NodeId]| {
            other.len() != replicas.len() || other.iter().any(|replica| !replicas.contains(replica))
        };
        let pending = view
            .pending_write_layouts
            .iter()
            .map(|layout| layout.replicas_of(partition, bucket.n))
            .filter(elsewhere);
        let pending_write_sets = pending.map(<[NodeId]>::to_vec).collect();
        let key = StorageKey::of(partition, key);
        Ok(KeyPlacement { key, view, long_key, key_hash, bucket, replicas, pending_write_sets })
    }

    /// The number of the key's replicas in the layout that is read.
    pub(crate) fn n(&self) -> u8 {
        self.replicas.len() as u8
    }

    /// All replicas that a write goes to: those of the layout that is read first.
    pub(crate) fn targets(&self) -> Vec<NodeId> {
        let mut targets = self.replicas.clone();
        for &replica in self.pending_write_sets.iter().flatten() {
            if !targets.contains(&replica) {
                targets.push(replica);
            }
        }
        targets
    }

    /// True if the node is a replica in any of the layouts that a write goes to.
    pub(crate) fn is_target(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.pending_write_sets.iter().any(|set| set.contains(&node))
    }

    pub(crate) fn partition(&self) -> PartitionId {
        self.key.partition()
    }

    /// The nodes that can stand in for replicas, in order: live, and this one only if it is none.
    pub(crate) fn live_fallbacks(&self, node: &Node) -> Vec<NodeId> {
        let mut fallbacks = self.view.read.fallbacks_of(self.partition(), self.bucket.n);
        fallbacks.retain(|&fallback| node.is_live(fallback) && !self.is_target(fallback));
        fallbacks
    }

    /// True if this node passes the request on: it is no replica, and one can be reached.
    pub(crate) fn must_forward(&self, node: &Node, origin: Origin) -> bool {
        let is_replica = self.replicas.contains(&node.shared.node());
        !is_replica && origin == Origin::Client && !self.live(node).is_empty()
    }

    /// Those of some nodes that are no replicas.
    pub(crate) fn fallbacks_among(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        nodes.iter().copied().filter(|&node| !self.is_target(node)).collect()
    }

    /// For whom a hint is kept that is not for a particular replica: the first one that can't be reached.
    pub(crate) fn missing(&self, node: &Node) -> NodeId {
        let missing = self.replicas.iter().find(|&&replica| !node.is_live(replica));
        *missing.unwrap_or(&self.replicas[0])
    }

    /// The replicas that can be asked, this node first: nearest first, and it costs no message. While a layout changes, those
    /// that stay replicas before all others: what they hold need not be looked for again where the key moves to.
    pub(crate) fn live(&self, node: &Node) -> Vec<NodeId> {
        let mut live = live_first(node, &self.replicas);
        live.sort_by_key(|replica| !self.pending_write_sets.iter().all(|set| set.contains(replica)));
        live
    }
}

/// The rules of a bucket, as a request that goes by this view has them.
///
/// # Errors
/// `Overloaded` while the bucket is being created: soon it is.
pub(crate) fn bucket_of<'a>(view: &'a View, name: &str) -> Result<&'a Arc<Bucket>, RequestError> {
    view.bucket(name).ok_or_else(|| RequestError::Overloaded {
        what: format!("requests to bucket {name:?}, which is being created and not known to all nodes yet,"),
        limit: 0,
    })
}

/// The live ones of some replicas, this node before the others.
pub(crate) fn live_first(node: &Node, replicas: &[NodeId]) -> Vec<NodeId> {
    let mut live: Vec<NodeId> = replicas.iter().copied().filter(|&replica| node.is_live(replica)).collect();
    let this = node.shared.node();
    live.sort_by_key(|&replica| replica != this);
    live
}

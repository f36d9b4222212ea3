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
use quorate_core::object::Version;
use quorate_core::request::Sibling;
use quorate_core::transition::View;
use quorate_core::{Key, NodeId, Object, PartitionId, Payload, RequestError, StorageKey};

pub(crate) use explain::explain;
pub(crate) use get::get;
pub(crate) use put::put;
pub(crate) use scan::scan;

use crate::node::Node;

/// Where a key lies: its partition, its bucket's rules, its replicas in order. Whoever has one goes by the layouts as they
/// were when it was made: a change of layout waits for it.
pub(crate) struct Place {
    pub(crate) view: Arc<View>,
    pub(crate) key: StorageKey,
    pub(crate) long_key: Option<Bytes>,
    pub(crate) key_hash: u64,
    pub(crate) bucket: Arc<Bucket>,
    /// In the layout that is read.
    pub(crate) replicas: Vec<NodeId>,
    /// Other replica sets that a write needs acks in, while a layout changes: those of the layouts in which the key lies
    /// elsewhere.
    pub(crate) also: Vec<Vec<NodeId>>,
}

impl Place {
    /// # Errors
    /// `Overloaded` while the key's bucket is being created.
    pub(crate) fn of(node: &Node, key: &Key) -> Result<Place, RequestError> {
        let view = node.shared.view();
        let key_hash = key.hash();
        let partition = view.read.partition_of(key_hash);
        let bucket = bucket_of(&view, key.bucket())?.clone();
        let replicas = view.read.replicas_of(partition, bucket.n).to_vec();
        let long_key = key.is_long().then(|| Bytes::copy_from_slice(key.bytes()));
        let elsewhere = |other: &&[NodeId]| {
            other.len() != replicas.len() || other.iter().any(|replica| !replicas.contains(replica))
        };
        let also = view.also.iter().map(|layout| layout.replicas_of(partition, bucket.n)).filter(elsewhere);
        let also = also.map(<[NodeId]>::to_vec).collect();
        let key = StorageKey::of(partition, key);
        Ok(Place { key, view, long_key, key_hash, bucket, replicas, also })
    }

    /// The number of the key's replicas in the layout that is read.
    pub(crate) fn n(&self) -> u8 {
        self.replicas.len() as u8
    }

    /// All replicas that a write goes to: those of the layout that is read first.
    pub(crate) fn targets(&self) -> Vec<NodeId> {
        let mut targets = self.replicas.clone();
        for &replica in self.also.iter().flatten() {
            if !targets.contains(&replica) {
                targets.push(replica);
            }
        }
        targets
    }

    /// True if the node is a replica in any of the layouts that a write goes to.
    pub(crate) fn is_target(&self, node: NodeId) -> bool {
        self.replicas.contains(&node) || self.also.iter().any(|set| set.contains(&node))
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
    pub(crate) fn must_forward(&self, node: &Node, forwarded: bool) -> bool {
        let is_replica = self.replicas.contains(&node.shared.node());
        !is_replica && !forwarded && !self.live(node).is_empty()
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
        live.sort_by_key(|replica| !self.also.iter().all(|set| set.contains(replica)));
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

/// What a client is shown of an object: its bucket's resolver has the word here, and only here.
///
/// # Errors
/// `InvalidRequest` if this node has no such resolver.
pub(crate) fn shown(node: &Node, bucket: &Bucket, object: &Object) -> Result<Vec<Sibling>, RequestError> {
    let versions = object.shown();
    let versions = match versions.len() {
        0 | 1 => versions,
        _ => node.shared.resolver(&bucket.definition.resolver)?.resolve(versions),
    };
    let value = |payload: &Payload| match payload {
        Payload::Value(value) => value.clone(),
        Payload::Tombstone => Bytes::new(),
    };
    let sibling = |version: &Version| Sibling { stamp: version.dot.stamp, value: value(&version.payload) };
    Ok(versions.into_iter().map(sibling).collect())
}

//! The layouts as one request sees them.

use std::sync::Arc;

use super::phase::Phase;
use crate::bucket::Bucket;
use crate::key::PartitionId;
use crate::layout::Layout;
use crate::member::NodeId;

/// The layouts as one request sees them. The request keeps its view until it ends.
#[derive(Debug)]
pub struct View {
    /// All active layouts, the oldest first.
    pub active: Vec<Arc<Layout>>,
    /// The layout that reads use.
    pub read: Arc<Layout>,
    /// Layouts other than `read`. A write needs acks in each of these too.
    pub pending_write_layouts: Vec<Arc<Layout>>,
    /// Members of the active layouts, without those whose disk was declared lost. Sorted by id.
    pub participants: Vec<NodeId>,
    /// The phase that every participant has reached.
    pub cluster_phase: Phase,
    /// True if this node was removed while it was down or cut off. Its records are then outdated.
    pub removed: bool,
}

impl View {
    /// Returns the newest layout.
    pub fn newest(&self) -> &Arc<Layout> {
        self.active.last().expect("one layout is always active")
    }

    /// True if no layout change is under way.
    pub fn is_settled(&self) -> bool {
        self.active.len() == 1
    }

    /// True if the node is a participant.
    pub fn is_participant(&self, node: NodeId) -> bool {
        self.participants.binary_search(&node).is_ok()
    }

    /// True if the node is a replica of the partition in any active layout.
    pub fn holds(&self, node: NodeId, partition: PartitionId) -> bool {
        self.active.iter().any(|layout| layout.holds(node, partition))
    }

    /// Returns the layouts whose replicas repair keeps up to date: those that requests use.
    ///
    /// A newest layout that not all nodes know yet is left out, because it may still lose to
    /// another one. From the phase `Released` on, the older layouts are left out too: no request
    /// uses them, and their data is handed over.
    pub fn kept_up(&self) -> impl Iterator<Item = &Arc<Layout>> {
        let released = self.cluster_phase >= Phase::Released;
        let also = self.pending_write_layouts.iter().filter(move |_| !released);
        also.chain([&self.read])
    }

    /// True if the node is a replica of the partition in one of the [`View::kept_up`] layouts, for
    /// buckets with this n.
    pub fn keeps(&self, node: NodeId, partition: PartitionId, n: u8) -> bool {
        self.kept_up().any(|layout| layout.replicas_of(partition, n).contains(&node))
    }

    /// True if the node is a replica of a bucket's keys in the partition, in one of the
    /// [`View::kept_up`] layouts.
    pub fn keeps_for(&self, node: NodeId, partition: PartitionId, bucket: &str) -> bool {
        self.kept_up().any(|layout| layout.replicas_for(partition, bucket).contains(&node))
    }

    /// Returns all replicas of a bucket's keys in a partition, in the [`View::kept_up`] layouts.
    /// The replicas of the layout that reads use come first.
    pub fn holders_of(&self, partition: PartitionId, bucket: &str) -> Vec<NodeId> {
        let mut holders = self.read.replicas_for(partition, bucket).to_vec();
        if self.is_settled() {
            return holders;
        }
        for layout in self.kept_up() {
            for &replica in layout.replicas_for(partition, bucket) {
                if !holders.contains(&replica) {
                    holders.push(replica);
                }
            }
        }
        holders
    }

    /// Returns the bucket. Returns `None` while it is being created with another n or other quorums
    /// than it had before. While some nodes use the old definition and some the new one, a read
    /// under one could miss a write under the other.
    pub fn bucket(&self, name: &str) -> Option<&Arc<Bucket>> {
        let bucket = self.newest().buckets().get(name);
        let meets = |layout: &Arc<Layout>| bucket.meets(layout.buckets().get(name), layout.replicas());
        let settled = self.is_settled() || self.kept_up().all(meets);
        settled.then_some(bucket)
    }

    /// Returns the digest of the newest layout that writes need acks in. A coordinator sends it
    /// with each write.
    pub fn written(&self) -> u64 {
        let newest = |layout: &&Arc<Layout>| layout.number();
        self.pending_write_layouts
            .iter()
            .chain([&self.read])
            .max_by_key(newest)
            .expect("one is read")
            .digest()
    }

    /// True if a write may be accepted from a coordinator that uses the layout with this digest.
    ///
    /// Once every node writes in the newest layout, a coordinator that names an older layout has
    /// lost its layouts. Its writes are refused.
    pub fn takes_write(&self, layout: u64) -> bool {
        match self.cluster_phase >= Phase::Acked && !self.is_settled() {
            true => layout == self.newest().digest(),
            false => self.active.iter().any(|known| known.digest() == layout),
        }
    }

    /// True if `node` may answer a read of the partition from a coordinator that reads the layout
    /// with this digest. The node must be a replica in that layout.
    pub fn takes_read(&self, layout: u64, node: NodeId, partition: PartitionId) -> bool {
        let Some(layout) = self.active.iter().find(|known| known.digest() == layout) else { return false };
        let outdated = self.cluster_phase >= Phase::Reading && layout.digest() != self.newest().digest();
        !outdated && layout.holds(node, partition)
    }

    /// Returns the member's name, from the newest active layout that names the member. Returns the
    /// id if no layout does.
    pub fn name_of(&self, node: NodeId) -> String {
        let member = self.active.iter().rev().find_map(|layout| layout.member(node));
        member.map_or_else(|| format!("{node:?}"), |member| member.name.clone())
    }
}

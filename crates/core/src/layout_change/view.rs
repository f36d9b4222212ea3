//! What a node goes by while it serves a request.

use std::sync::Arc;

use super::phase::Phase;
use crate::bucket::Bucket;
use crate::key::PartitionId;
use crate::layout::Layout;
use crate::member::NodeId;

/// What a node goes by while it serves a request.
#[derive(Debug)]
pub struct View {
    /// All active layouts, the oldest first.
    pub active: Vec<Arc<Layout>>,
    /// Which one is read.
    pub read: Arc<Layout>,
    /// In which others a write needs its acks, too.
    pub pending_write_layouts: Vec<Arc<Layout>>,
    /// Who takes part: all members, but none whose disk was declared lost. Sorted.
    pub participants: Vec<NodeId>,
    /// How far everybody is.
    pub cluster_phase: Phase,
    /// This node was taken out while it was away: what it holds is from before.
    pub removed: bool,
}

impl View {
    /// The newest layout.
    pub fn newest(&self) -> &Arc<Layout> {
        self.active.last().expect("one layout is always active")
    }

    /// True if no change is under way.
    pub fn is_settled(&self) -> bool {
        self.active.len() == 1
    }

    /// True if the node takes part.
    pub fn is_participant(&self, node: NodeId) -> bool {
        self.participants.binary_search(&node).is_ok()
    }

    /// True if a node is a replica of the partition in any active layout.
    pub fn holds(&self, node: NodeId, partition: PartitionId) -> bool {
        self.active.iter().any(|layout| layout.holds(node, partition))
    }

    /// The layouts whose replicas are kept up: those that requests go by. One that not everybody knows may still give way to
    /// another, and what nobody goes by any more is handed over.
    pub fn kept_up(&self) -> impl Iterator<Item = &Arc<Layout>> {
        let released = self.cluster_phase >= Phase::Released;
        let also = self.pending_write_layouts.iter().filter(move |_| !released);
        also.chain([&self.read])
    }

    /// True if a node is a replica of the partition in a layout that is still kept up, for buckets of `n`.
    pub fn keeps(&self, node: NodeId, partition: PartitionId, n: u8) -> bool {
        self.kept_up().any(|layout| layout.replicas_of(partition, n).contains(&node))
    }

    /// True if a node is a replica of a bucket's keys in the partition, in a layout that is still kept up.
    pub fn keeps_for(&self, node: NodeId, partition: PartitionId, bucket: &str) -> bool {
        self.kept_up().any(|layout| layout.replicas_for(partition, bucket).contains(&node))
    }

    /// All replicas of a bucket's keys in a partition that are kept up: those of the layout that is read first.
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

    /// The bucket's rules. `None` while it is being created with other replicas or quorums than its keys have had: as long as
    /// some go by the one and some by the other, some would look for its keys where others do not put them.
    pub fn bucket(&self, name: &str) -> Option<&Arc<Bucket>> {
        let bucket = self.newest().buckets().get(name);
        let meets = |layout: &Arc<Layout>| bucket.meets(layout.buckets().get(name), layout.replicas());
        let settled = self.is_settled() || self.kept_up().all(meets);
        settled.then_some(bucket)
    }

    /// The newest layout that writes need acks in: what a coordinator names to those it writes to.
    pub fn written(&self) -> u64 {
        let newest = |layout: &&Arc<Layout>| layout.number();
        self.pending_write_layouts
            .iter()
            .chain([&self.read])
            .max_by_key(newest)
            .expect("one is read")
            .digest()
    }

    /// Whether a write of a coordinator that goes by this layout may be taken. Once everybody goes by the newest, one
    /// that does not has lost its memory.
    pub fn takes_write(&self, layout: u64) -> bool {
        match self.cluster_phase >= Phase::Acked && !self.is_settled() {
            true => layout == self.newest().digest(),
            false => self.active.iter().any(|known| known.digest() == layout),
        }
    }

    /// Whether a read on this layout may be answered by `node`, a replica of the partition.
    pub fn takes_read(&self, layout: u64, node: NodeId, partition: PartitionId) -> bool {
        let Some(layout) = self.active.iter().find(|known| known.digest() == layout) else { return false };
        let outdated = self.cluster_phase >= Phase::Reading && layout.digest() != self.newest().digest();
        !outdated && layout.holds(node, partition)
    }

    /// The member's name, in whichever layout it has one.
    pub fn name_of(&self, node: NodeId) -> String {
        let member = self.active.iter().rev().find_map(|layout| layout.member(node));
        member.map_or_else(|| format!("{node:?}"), |member| member.name.clone())
    }
}

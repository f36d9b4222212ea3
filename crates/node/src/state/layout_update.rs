//! Changes of the layouts that a node knows. A change is stored before any request uses it.

use std::collections::BTreeSet;
use std::sync::Arc;

use quorate_core::key::{Table, end_of_prefix};
use quorate_core::layout_change::Layouts;
use quorate_core::planted::{Bug, planted};
use quorate_core::storage::{Range, StorageError};
use quorate_core::{Buckets, PartitionId, StorageKey};

use super::commit_barrier::all_committed;
use super::node_metadata::{layouts_key, store};
use super::shared::Shared;

impl Shared {
    /// Changes the layouts that this node knows. `change` works on a copy, which is stored before
    /// any request uses it.
    ///
    /// `change` returns true if it changed the copy. It is called again if a peer's summary was
    /// merged while the copy was being stored.
    ///
    /// # Errors
    /// The error of `change`, or of the engine.
    pub(crate) async fn change_layouts<E: From<StorageError>>(
        &self,
        mut change: impl FnMut(&mut Layouts) -> Result<bool, E>,
    ) -> Result<(), E> {
        let _guard = self.layouts.changing.lock().await;
        let mut stored = false;
        loop {
            let before = self.layouts.known();
            let mut next = before.clone();
            match change(&mut next) {
                Ok(true) => {}
                unchanged => {
                    if stored {
                        // An earlier pass of this loop stored a copy, but `change` no longer wants
                        // that change. So the layouts that are still in use are stored again.
                        self.store_layouts(&before).await?;
                        self.use_buckets(before.newest().buckets()).await;
                    }
                    return unchanged.map(drop);
                }
            }
            stored = true;
            if !planted(Bug::LayoutNotStored) {
                self.store_layouts(&next).await?;
            }
            self.use_buckets(next.newest().buckets()).await;
            let mut known = self.layouts.lock();
            if *known != before {
                continue;
            }
            self.renew_actors(&before, &next);
            let holds = |layouts: &Layouts, partition: PartitionId| {
                layouts.active().iter().any(|layout| layout.holds(self.node(), partition))
            };
            for partition in self.all_partitions() {
                if holds(&next, partition) && !holds(&before, partition) {
                    self.recovery.gained(partition);
                }
            }
            *known = next;
            self.layouts.renew_view(&known);
            drop(known);
            self.layouts.changed.notify_waiters();
            return Ok(());
        }
    }

    /// Uses these definitions of buckets from now on. Keys of a bucket whose n changes belong to
    /// other hash trees then, so the trees of the partitions that hold such keys are built again.
    async fn use_buckets(&self, buckets: &Arc<Buckets>) {
        let redefined: Vec<String> = buckets.with_other_n(&self.buckets.load()).map(str::to_owned).collect();
        let affected_partitions = || -> BTreeSet<PartitionId> {
            let holds =
                |partition: &PartitionId| redefined.iter().any(|bucket| self.holds_any(*partition, bucket));
            self.all_partitions().filter(holds).collect()
        };
        if redefined.is_empty() {
            self.buckets.store(buckets.clone());
            return;
        }
        let mut affected = affected_partitions();
        self.buckets.store(buckets.clone());
        // Records that were applied under the old definitions may not be committed yet.
        // `affected_partitions` finds them after the commit.
        all_committed(&*self.engine).await;
        affected.extend(affected_partitions());
        affected.into_iter().for_each(|partition| self.trees.reset(partition));
    }

    /// True if this node stores keys of the bucket in the partition, or cannot read the engine.
    fn holds_any(&self, partition: PartitionId, bucket: &str) -> bool {
        self.is_any_under(&StorageKey::prefix_start(partition, bucket, b""))
    }

    fn is_any_under(&self, start: &[u8]) -> bool {
        let end = end_of_prefix(start);
        let range = Range { start, after: false, end: end.as_deref(), limit: 1, max_bytes: 1 };
        self.engine.scan(range).map_or(true, |page| !page.records.is_empty())
    }

    /// Drops actors if the layout changes. A partition's actor is dropped if this node is its
    /// replica in the newest layout, and if the list of its replicas or any bucket's n changes. The
    /// next write that this node coordinates in the partition draws a new actor.
    fn renew_actors(&self, before: &Layouts, next: &Layouts) {
        if before.newest().digest() == next.newest().digest() || planted(Bug::ActorReusedAfterStart) {
            return;
        }
        let redefined = next.newest().buckets().with_other_n(before.newest().buckets()).next().is_some();
        for partition in self.all_partitions() {
            // The order of the replicas matters too: a bucket with a smaller n uses only the first
            // n of the list.
            let replicas = |layouts: &Layouts| layouts.newest().replicas_of(partition, u8::MAX).to_vec();
            let new_replicas = replicas(next);
            if new_replicas.contains(&self.node()) && (redefined || new_replicas != replicas(before)) {
                self.actors.forget(partition);
            }
        }
    }

    async fn store_layouts(&self, layouts: &Layouts) -> Result<(), StorageError> {
        store(&*self.engine, layouts_key(), layouts.encode().into()).await
    }

    /// True if this node stores objects or hints, or if the engine cannot be read.
    pub(crate) fn holds_data(&self) -> bool {
        [Table::Objects, Table::Hints].iter().any(|table| self.is_any_under(&[*table as u8]))
    }

    /// Runs `work` while no change of the layouts is being stored.
    pub(crate) async fn without_change<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        let _guard = self.layouts.changing.lock().await;
        work().await
    }
}

//! Changing the layouts that a node knows: stored first, and used only then.

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
    /// Changes what is known of layouts: on a copy, which is stored before anybody goes by it. `change` says whether there
    /// is anything to store; it may be called again, if something was heard meanwhile.
    ///
    /// # Errors
    /// What `change` refuses, or the engine's failure.
    pub(crate) async fn change_layouts<E: From<StorageError>>(
        &self,
        mut change: impl FnMut(&mut Layouts) -> Result<bool, E>,
    ) -> Result<(), E> {
        let _one = self.layouts.changing.lock().await;
        let mut stored = false;
        loop {
            let before = self.layouts.known();
            let mut next = before.clone();
            match change(&mut next) {
                Ok(true) => {}
                nothing => {
                    if stored {
                        // What was stored and not gone by is taken back.
                        self.store_layouts(&before).await?;
                        self.regroup(before.newest().buckets()).await;
                    }
                    return nothing.map(drop);
                }
            }
            stored = true;
            if !planted(Bug::LayoutNotStored) {
                self.store_layouts(&next).await?;
            }
            self.regroup(next.newest().buckets()).await;
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

    /// Goes by these definitions of buckets from here on: keys of buckets whose n is another one are in other trees then.
    async fn regroup(&self, buckets: &Arc<Buckets>) {
        let moved: Vec<String> = buckets.with_other_n(&self.buckets.load()).map(str::to_owned).collect();
        let hold_some = || -> BTreeSet<PartitionId> {
            let holds =
                |partition: &PartitionId| moved.iter().any(|bucket| self.holds_any(*partition, bucket));
            self.all_partitions().filter(holds).collect()
        };
        if moved.is_empty() {
            self.buckets.store(buckets.clone());
            return;
        }
        let mut resorted = hold_some();
        self.buckets.store(buckets.clone());
        // What was applied before is found, once it is committed.
        all_committed(&*self.engine).await;
        resorted.extend(hold_some());
        resorted.into_iter().for_each(|partition| self.trees.reset(partition));
    }

    /// True if there is a key of the bucket in the partition on this node's disk; also if that can't be told.
    fn holds_any(&self, partition: PartitionId, bucket: &str) -> bool {
        self.is_any_under(&StorageKey::prefix_start(partition, bucket, b""))
    }

    fn is_any_under(&self, start: &[u8]) -> bool {
        let end = end_of_prefix(start);
        let range = Range { start, after: false, end: end.as_deref(), limit: 1, max_bytes: 1 };
        self.engine.scan(range).map_or(true, |page| !page.records.is_empty())
    }

    /// A partition that this node begins to hold, or holds again, has a new actor here.
    fn renew_actors(&self, before: &Layouts, next: &Layouts) {
        if before.newest().digest() == next.newest().digest() || planted(Bug::ActorReusedAfterStart) {
            return;
        }
        let redefined = next.newest().buckets().with_other_n(before.newest().buckets()).next().is_some();
        for partition in self.all_partitions() {
            // Its place matters, too: buckets with smaller n lie on the first ones.
            let replicas = |layouts: &Layouts| layouts.newest().replicas_of(partition, u8::MAX).to_vec();
            let then = replicas(next);
            if then.contains(&self.node()) && (redefined || then != replicas(before)) {
                self.actors.forget(partition);
            }
        }
    }

    async fn store_layouts(&self, layouts: &Layouts) -> Result<(), StorageError> {
        store(&*self.engine, layouts_key(), layouts.encode().into()).await
    }

    /// True if there are objects or hints on this node's disk; also if that can't be told.
    pub(crate) fn holds_data(&self) -> bool {
        [Table::Objects, Table::Hints].iter().any(|table| self.is_any_under(&[*table as u8]))
    }

    /// Runs something while no change of layout is stored.
    pub(crate) async fn without_change<T>(&self, work: impl AsyncFnOnce() -> T) -> T {
        let _one = self.layouts.changing.lock().await;
        work().await
    }
}

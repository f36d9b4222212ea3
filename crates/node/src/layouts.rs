//! The layouts that a node goes by: stored before they are acted on, looked at by every request, and left behind only when
//! no request is open that goes by an older view of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use bytes::Bytes;
use quorate_core::key::{Table, end_of_prefix};
use quorate_core::planted::{Bug, planted};
use quorate_core::storage::{Change, Range, StorageEngine, StorageError, Update};
use quorate_core::transition::{Heard, Layouts, News, View};
use quorate_core::{Buckets, NodeId, PartitionId, StorageKey};
use tokio::sync::{Notify, oneshot};

use crate::shared::Shared;
use crate::trees::all_committed;

/// Under which key a node stores what it knows of layouts.
pub fn layouts_fact() -> StorageKey {
    StorageKey::of_table(Table::Facts, b"layouts")
}

/// A node's layouts, as all of its workers share them.
pub(crate) struct LayoutBook {
    known: Mutex<Layouts>,
    view: ArcSwap<View>,
    /// Views that requests may still go by.
    earlier: Mutex<Vec<Weak<View>>>,
    /// One change at a time is stored, and nothing is dropped while one is.
    changing: tokio::sync::Mutex<()>,
    /// Whose layouts are to be fetched.
    fetch_from: Mutex<BTreeSet<NodeId>>,
    /// Something changed, here or there.
    pub(crate) stirred: Notify,
}

impl LayoutBook {
    pub(crate) fn new(layouts: Layouts) -> LayoutBook {
        LayoutBook {
            view: ArcSwap::from_pointee(layouts.view()),
            known: Mutex::new(layouts),
            earlier: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            fetch_from: Mutex::default(),
            stirred: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Layouts> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What to go by now. Whoever serves a request holds on to it for as long as the request is open.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// What is known now.
    pub(crate) fn known(&self) -> Layouts {
        self.lock().clone()
    }

    /// Looks at what is known now.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Layouts) -> T) -> T {
        look(&self.lock())
    }

    /// Goes by what is known now, if that says anything else than before.
    fn renew_view(&self, known: &Layouts) {
        let next = known.view();
        let digests = |view: &View| -> Vec<u64> {
            let layouts = view.also.iter().chain([&view.read]).chain(&view.active);
            layouts.map(|layout| layout.digest()).collect()
        };
        let now = self.view.load();
        let same = digests(&now) == digests(&next)
            && (now.least, now.removed, &now.participants) == (next.least, next.removed, &next.participants);
        drop(now);
        if same {
            return;
        }
        let before = self.view.swap(Arc::new(next));
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        earlier.push(Arc::downgrade(&before));
        drop(before);
        earlier.retain(|view| view.strong_count() > 0);
    }

    /// True if no request is open that goes by an earlier view.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut earlier = self.earlier.lock().unwrap_or_else(PoisonError::into_inner);
        earlier.retain(|view| view.strong_count() > 0);
        earlier.is_empty()
    }

    /// Takes in a peer's news. What it says of others' progress need not be stored: they say it again.
    pub(crate) fn hear(&self, from: NodeId, news: &News) -> Heard {
        let heard = {
            let mut known = self.lock();
            let heard = known.hear(news);
            if heard.changed {
                self.renew_view(&known);
            }
            heard
        };
        if heard.fetch {
            self.fetch_from.lock().unwrap_or_else(PoisonError::into_inner).insert(from);
        }
        if heard.changed || heard.fetch {
            self.stirred.notify_waiters();
        }
        heard
    }

    /// Whose layouts are to be fetched.
    pub(crate) fn take_fetches(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.fetch_from.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shared {
    /// The layouts to go by now.
    pub fn view(&self) -> Arc<View> {
        self.layouts.view()
    }

    /// Q, the ring's number of partitions: the same in all layouts.
    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    /// All partitions.
    pub(crate) fn all_partitions(&self) -> impl Iterator<Item = PartitionId> + use<> {
        (0..self.partitions).map(|partition| PartitionId(partition as u16))
    }

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
            self.begin_tenures(&before, &next);
            let holds = |layouts: &Layouts, partition: PartitionId| {
                layouts.active().iter().any(|layout| layout.holds(self.node(), partition))
            };
            for partition in self.all_partitions() {
                if holds(&next, partition) && !holds(&before, partition) {
                    self.may_have_forgotten(partition);
                }
            }
            *known = next;
            self.layouts.renew_view(&known);
            drop(known);
            self.layouts.stirred.notify_waiters();
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
        all_committed(self).await;
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
    fn begin_tenures(&self, before: &Layouts, next: &Layouts) {
        if before.newest().digest() == next.newest().digest() || planted(Bug::ActorReusedAfterStart) {
            return;
        }
        let redefined = next.newest().buckets().with_other_n(before.newest().buckets()).next().is_some();
        for partition in self.all_partitions() {
            // Its place matters, too: buckets with smaller n lie on the first ones.
            let replicas = |layouts: &Layouts| layouts.newest().replicas_of(partition, u8::MAX).to_vec();
            let then = replicas(next);
            if then.contains(&self.node()) && (redefined || then != replicas(before)) {
                self.forget_actor(partition);
            }
        }
    }

    async fn store_layouts(&self, layouts: &Layouts) -> Result<(), StorageError> {
        let (done, stored) = oneshot::channel();
        let fact = StoreFact { key: layouts_fact(), value: layouts.encode().into(), done: Some(done) };
        self.engine.update(vec![Box::new(fact)]);
        self.engine.flush();
        let dropped = || StorageError::Io { detail: "the engine dropped a write".into() };
        stored.await.unwrap_or_else(|_| Err(dropped()))
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

/// Stores one of the node's own facts.
struct StoreFact {
    key: StorageKey,
    value: Bytes,
    done: Option<oneshot::Sender<Result<(), StorageError>>>,
}

impl Update for StoreFact {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<Bytes>) -> Result<Change, StorageError> {
        Ok(Change::Put(self.value.clone()))
    }

    fn applied(&mut self) {}

    fn finished(mut self: Box<Self>, outcome: Result<(), StorageError>) {
        if let Some(done) = self.done.take() {
            let _ = done.send(outcome);
        }
    }
}

/// What an engine's start has of layouts.
///
/// # Errors
/// If it can't be read, or is none.
pub fn stored_layouts(this: NodeId, engine: &dyn StorageEngine) -> Result<Option<Layouts>, StorageError> {
    let Some(bytes) = engine.get(&layouts_fact())? else { return Ok(None) };
    let layouts = Layouts::decode(this, &bytes)
        .map_err(|error| StorageError::Io { detail: format!("the stored layouts: {error}") })?;
    Ok(Some(layouts))
}

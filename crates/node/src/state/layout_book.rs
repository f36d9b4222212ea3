//! The layouts that a node goes by: stored before they are acted on, looked at by every request, and left behind only when
//! no request is open that goes by an older view of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use quorate_core::NodeId;
use quorate_core::layout_change::{LayoutSummary, Layouts, SummaryMerge, View};
use quorate_core::storage::{StorageEngine, StorageError};
use tokio::sync::Notify;

use super::node_metadata::layouts_key;

/// A node's layouts, as all of its workers share them.
pub(crate) struct LayoutBook {
    known: Mutex<Layouts>,
    view: ArcSwap<View>,
    /// Views that requests may still go by.
    earlier: Mutex<Vec<Weak<View>>>,
    /// One change at a time is stored, and nothing is dropped while one is.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Whose layouts are to be fetched.
    fetch_from: Mutex<BTreeSet<NodeId>>,
    /// Something changed, here or there.
    pub(crate) changed: Notify,
}

impl LayoutBook {
    pub(crate) fn new(layouts: Layouts) -> LayoutBook {
        LayoutBook {
            view: ArcSwap::from_pointee(layouts.view()),
            known: Mutex::new(layouts),
            earlier: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            fetch_from: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Layouts> {
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

    /// Reads the layouts that are known now.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Layouts) -> T) -> T {
        read(&self.lock())
    }

    /// Goes by what is known now, if that says anything else than before.
    pub(super) fn renew_view(&self, known: &Layouts) {
        let next = known.view();
        let digests = |view: &View| -> Vec<u64> {
            let layouts = view.pending_write_layouts.iter().chain([&view.read]).chain(&view.active);
            layouts.map(|layout| layout.digest()).collect()
        };
        let now = self.view.load();
        let same = digests(&now) == digests(&next)
            && (now.cluster_phase, now.removed, &now.participants)
                == (next.cluster_phase, next.removed, &next.participants);
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
    pub(crate) fn merge_summary(&self, from: NodeId, news: &LayoutSummary) -> SummaryMerge {
        let heard = {
            let mut known = self.lock();
            let heard = known.merge_summary(news);
            if heard.changed {
                self.renew_view(&known);
            }
            heard
        };
        if heard.fetch {
            self.fetch_from.lock().unwrap_or_else(PoisonError::into_inner).insert(from);
        }
        if heard.changed || heard.fetch {
            self.changed.notify_waiters();
        }
        heard
    }

    /// Whose layouts are to be fetched.
    pub(crate) fn take_fetches(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.fetch_from.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What an engine's start has of layouts.
///
/// # Errors
/// If it can't be read, or is none.
pub fn stored_layouts(this: NodeId, engine: &dyn StorageEngine) -> Result<Option<Layouts>, StorageError> {
    let Some(bytes) = engine.get(&layouts_key())? else { return Ok(None) };
    let layouts = Layouts::decode(this, &bytes)
        .map_err(|error| StorageError::Io { detail: format!("the stored layouts: {error}") })?;
    Ok(Some(layouts))
}

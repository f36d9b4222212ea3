//! The layouts that a node knows, and the view of them that requests use.
//!
//! A layout is stored before it is used (`layout_update.rs`). Each request keeps the view with
//! which it began. Some phases of a layout change wait for the last request with an older view.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use quorate_core::NodeId;
use quorate_core::layout_change::{LayoutSummary, Layouts, SummaryMerge, View};
use quorate_core::storage::{StorageEngine, StorageError};
use tokio::sync::Notify;

use super::node_metadata::layouts_key;

/// A node's layouts. All of its workers share them.
pub(crate) struct LayoutBook {
    known: Mutex<Layouts>,
    view: ArcSwap<View>,
    /// Earlier views that open requests may still use.
    earlier_views: Mutex<Vec<Weak<View>>>,
    /// Lock that is held while a change of the layouts is stored. So changes are stored one at a
    /// time, and range handoff drops no records meanwhile.
    pub(super) changing: tokio::sync::Mutex<()>,
    /// Peers that may know newer layouts or staged changes, which this node has to fetch.
    fetch_from: Mutex<BTreeSet<NodeId>>,
    /// Signal that this node's layouts or phases have changed, or that a peer may know newer
    /// layouts.
    pub(crate) changed: Notify,
}

impl LayoutBook {
    pub(crate) fn new(layouts: Layouts) -> LayoutBook {
        LayoutBook {
            view: ArcSwap::from_pointee(layouts.view()),
            known: Mutex::new(layouts),
            earlier_views: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            fetch_from: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Layouts> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the current view. A request keeps its view until it ends.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Returns a copy of the layouts that are known now.
    pub(crate) fn known(&self) -> Layouts {
        self.lock().clone()
    }

    /// Reads the layouts that are known now, without copying them.
    pub(crate) fn with<T>(&self, read: impl FnOnce(&Layouts) -> T) -> T {
        read(&self.lock())
    }

    /// Replaces the view that requests use by the view of the layouts `known`, if the two differ.
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
        let previous = self.view.swap(Arc::new(next));
        let mut earlier_views = self.earlier_views.lock().unwrap_or_else(PoisonError::into_inner);
        earlier_views.push(Arc::downgrade(&previous));
        drop(previous);
        earlier_views.retain(|view| view.strong_count() > 0);
    }

    /// True if no open request uses an earlier view.
    pub(crate) fn is_quiet(&self) -> bool {
        let mut earlier_views = self.earlier_views.lock().unwrap_or_else(PoisonError::into_inner);
        earlier_views.retain(|view| view.strong_count() > 0);
        earlier_views.is_empty()
    }

    /// Merges a peer's summary of layouts and phases. The phases of other nodes are kept in memory
    /// only, because each node repeats its own phase in later summaries.
    pub(crate) fn merge_summary(&self, from: NodeId, summary: &LayoutSummary) -> SummaryMerge {
        let merged = {
            let mut known = self.lock();
            let merged = known.merge_summary(summary);
            if merged.changed {
                self.renew_view(&known);
            }
            merged
        };
        if merged.fetch {
            self.fetch_from.lock().unwrap_or_else(PoisonError::into_inner).insert(from);
        }
        if merged.changed || merged.fetch {
            self.changed.notify_waiters();
        }
        merged
    }

    /// Returns the peers whose layouts this node has to fetch, and clears the list of them.
    pub(crate) fn take_fetches(&self) -> BTreeSet<NodeId> {
        std::mem::take(&mut *self.fetch_from.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads the layouts that an engine stores. `None`: it stores none.
///
/// # Errors
/// If the record cannot be read, or does not contain layouts.
pub fn stored_layouts(this: NodeId, engine: &dyn StorageEngine) -> Result<Option<Layouts>, StorageError> {
    let Some(bytes) = engine.get(&layouts_key())? else { return Ok(None) };
    let layouts = Layouts::decode(this, &bytes)
        .map_err(|error| StorageError::Io { detail: format!("cannot read the stored layouts: {error}") })?;
    Ok(Some(layouts))
}

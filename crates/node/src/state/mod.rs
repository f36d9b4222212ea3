//! The state that all workers of a node share. Nothing here sends a message or serves a request.

pub(crate) mod actors;
pub(crate) mod clock_guard;
pub(crate) mod commit_barrier;
pub(crate) mod gc_guard;
pub(crate) mod hash_trees;
pub(crate) mod hint_ledger;
pub(crate) mod layout_book;
pub(crate) mod layout_update;
pub(crate) mod node_metadata;
pub(crate) mod progress;
pub(crate) mod recovery_state;
pub(crate) mod scan_pages;
pub(crate) mod scan_scheduler;
pub(crate) mod settings;
pub(crate) mod shared;

//! Repair: background tasks that bring replicas to the same state, and collect tombstones once all
//! replicas agree.

pub(crate) mod anti_entropy;
pub(crate) mod hint_delivery;
pub(crate) mod merkle_answers;
pub(crate) mod merkle_sync;
pub(crate) mod recovery;
pub(crate) mod tombstone_gc;
pub(crate) mod tree_builder;

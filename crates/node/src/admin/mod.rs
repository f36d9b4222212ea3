//! Requests of operators: layout changes, buckets, reports, and the fingerprint of this node's
//! data.

pub(crate) mod auto_join;
mod buckets;
pub(crate) mod cluster_requests;
pub(crate) mod fingerprint;
mod layout_changes;
pub mod reports;

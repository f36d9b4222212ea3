//! A node as coordinator: it asks the replicas of a key, counts their answers, and answers the
//! client.
//!
//! Each kind of request has its own file. These files use `placement.rs` (the key's replicas),
//! `read_quorum.rs` (reading R replicas) and `read_repair.rs`.

mod explain;
mod forward;
mod get;
mod placement;
mod put;
mod read_quorum;
mod read_repair;
mod scan;

pub(crate) use explain::explain;
pub(crate) use get::get;
pub(crate) use placement::Origin;
pub(crate) use put::put;
pub(crate) use scan::scan;

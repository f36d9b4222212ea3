//! The behaviour of a node: as coordinator of clients' requests, and as replica of its partitions.
//!
//! This crate depends only on `quorate_core`: it names no plugin, no wire format, no socket.
//! Requests come in through the trait `NodeService`, which [`Service`] implements. Requests to
//! peers go out through `PeerTransport`. A `StorageEngine` keeps the records.
//!
//! The code of each row imports only code of the rows below it:
//!
//! | | |
//! |---|---|
//! | `service.rs` | admission and dispatch of requests |
//! | `admin/` | requests of operators |
//! | `coordinator/` | get, put, scan, explain |
//! | `layout_change/` | copies and handoffs while the layout changes |
//! | `repair/` | hint delivery, anti-entropy, recovery, tombstone collection |
//! | `membership/` | gossip, clocks, the exchange of layouts |
//! | `node.rs`, `gather.rs` | sending requests, gathering replies |
//! | `replica/` | reads and changes of this node's records |
//! | `state/` | the state that all workers share |

mod admin;
mod coordinator;
mod gather;
mod layout_change;
mod membership;
mod node;
mod repair;
mod replica;
mod service;
mod state;

use std::rc::Rc;

pub use admin::reports::{Upkeep, upkeep};
pub use membership::gossip::LAYOUT_KEY;
pub use node::Node;
pub use service::{Fault, FaultSwitch, Service};
pub use state::layout_book::stored_layouts;
pub use state::node_metadata::{layouts_key, recovering_key};
pub use state::settings::{Settings, TransferConfig};
pub use state::shared::{Parts, Shared};

/// Starts the background tasks of a node. Call it once per node, on one of its workers.
pub fn start_upkeep(node: &Rc<Node>) {
    let shared = node.shared.clone();
    tokio::task::spawn_local(async move { repair::tree_builder::keep_built(&shared).await });
    tokio::task::spawn_local(repair::recovery::run(node.clone()));
    tokio::task::spawn_local(repair::hint_delivery::run(node.clone()));
    tokio::task::spawn_local(repair::anti_entropy::run(node.clone()));
    tokio::task::spawn_local(repair::tombstone_gc::run(node.clone()));
    tokio::task::spawn_local(membership::clock_check::run(node.clone()));
    tokio::task::spawn_local(membership::gossip::run(node.clone()));
    tokio::task::spawn_local(membership::layout_exchange::run(node.clone()));
    tokio::task::spawn_local(layout_change::driver::run(node.clone()));
    if node.shared.settings.transfer.auto_commit {
        tokio::task::spawn_local(admin::auto_join::run(node.clone()));
    }
}

/// Starts the task that connects this worker to the nodes that the membership plugin and the
/// layouts name. Call it once on every worker.
pub fn follow_members(node: &Rc<Node>) {
    tokio::task::spawn_local(membership::gossip::follow(node.clone()));
}

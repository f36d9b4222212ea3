//! The checker: records every write of a run, and reports each violation of a [`Rule`].
//!
//! - `rules`: the rules, and a violation of one.
//! - `history`: the recorded events of clients, disks and layouts, and questions about them.
//! - `checker`: the [`Oracle`], which records the events of a run.
//! - `durable`: what the oracle reads from a node's disk.
//! - `versions`: checks of each version that a node stores.
//! - `handoff`: checks of each hint and record that a node deletes, and of synced nodes.
//! - `reads`: checks of each reply to a client.
//! - `end_state`: checks of each key when the run has converged.

mod checker;
mod durable;
mod end_state;
mod handoff;
mod history;
mod reads;
mod rules;
mod versions;

pub use checker::Oracle;
pub use durable::DurableRecords;
pub use history::{Ack, ClientWrite};
pub use reads::QuorumRead;
pub use rules::{Rule, Violation};

//! Layout changes: the move of a cluster from one layout to the next, while clients read and write.
//! Each node keeps the active layouts and the phase of every other node, and derives its next step
//! from them.
//!
//! A change has six phases. A node enters a phase only when it has seen that every node has reached
//! the phase before:
//!
//! | phase | the node has | once all have, it |
//! |---|---|---|
//! | known | stored the layout | also counts W acks in the new replica sets |
//! | acked | no open write that began without the new layout | copies its partitions' records |
//! | synced | merged the records of enough older replicas | reads from the new replica sets |
//! | reading | no open read that began on an older layout | writes to the new replica sets only |
//! | released | no open write that began with an older layout | hands over and drops other records |
//! | cleared | only records of its own partitions | forgets the older layouts |
//!
//! Messages, disks and time are *not* here. [`Layouts::absorb`] merges what two nodes know, in any
//! order.
//!
//! Source: Garage's layout history (`ack`, `sync`, `sync_ack`); the barriers between all phases are
//! ours.

mod encoding;
mod layouts;
mod merging;
mod phase;
mod staging;
mod summary;
#[cfg(test)]
mod tests;
mod view;

pub use layouts::{LayoutRecord, Layouts, MAX_ACTIVE, MAX_STAGED};
pub use phase::{NextStep, Phase};
pub use summary::{LayoutSummary, SummaryMerge};
pub use view::View;

//! How a cluster goes from one layout to the next while clients read and write: what each node knows of the active layouts,
//! how far every other one is, and what follows from that.
//!
//! A change has six phases, and a node enters each only when it has seen everybody in the one before:
//!
//! | phase | the node has | once all have, it |
//! |---|---|---|
//! | known | stored the layout | also counts W acks in the new replica sets |
//! | acked | no write open that it began without the new layout | copies what its partitions hold |
//! | synced | merged what enough of the layout that is read hold | reads from the new replica sets |
//! | reading | no read open that it began on an older layout | writes to the new replica sets only |
//! | released | no write open that it began with an older layout | hands over and drops what is not its own |
//! | cleared | nothing that is not its own | forgets the older layouts |
//!
//! What is *not* here: messages, disks, time. Two nodes' knowledge is joined by [`Layouts::absorb`], in any order.
//!
//! Source: Garage's layout history (`ack`, `sync`, `sync_ack`); the barriers between all phases are ours.

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

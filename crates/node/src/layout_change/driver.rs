//! Drives this node through the phases of a layout change. The next step, and when it may begin, is
//! decided by `quorate_core::layout_change`.

use std::rc::Rc;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::layout_change::{Layouts, NextStep};
use quorate_core::storage::StorageError;

use super::range_handoff::{drop_copies, hand_over};
use super::transfer::copy;
use crate::node::Node;

/// Time between polls while nothing changes.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Polls between checks for records that this node no longer has to hold.
const DROP_EVERY_POLLS: u32 = 20;

/// Does what this node's next phase asks of it, for as long as it runs.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let mut polls = 0u32;
    loop {
        let stirred = shared.layouts.changed.notified();
        let (step, newest, phase_before) = shared
            .layouts
            .with(|layouts| (layouts.next_step(), layouts.newest().clone(), layouts.local_phase()));
        let done = match step {
            NextStep::Idle => false,
            NextStep::DrainRequests => shared.layouts.is_quiet(),
            NextStep::CopyData => copy(&node).await,
            NextStep::HandOff => hand_over(&node).await,
        };
        if done {
            let outcome: Result<(), StorageError> = shared
                .change_layouts(|layouts| {
                    // A newer layout may have come meanwhile.
                    let still =
                        layouts.newest().digest() == newest.digest() && layouts.local_phase() == phase_before;
                    if still {
                        layouts.advance();
                    }
                    Ok(still)
                })
                .await;
            match outcome {
                Ok(()) => {
                    let phase = shared.layouts.with(Layouts::local_phase);
                    let settled = shared.view().is_settled();
                    shared.emit(None, EventKind::LayoutPhase { number: newest.number(), phase, settled });
                }
                Err(error) => shared.emit(None, EventKind::StorageFailed { detail: error.to_string() }),
            }
            continue;
        }
        polls += 1;
        if polls.is_multiple_of(DROP_EVERY_POLLS) && shared.view().is_settled() {
            drop_copies(&node).await;
        }
        let _ = tokio::time::timeout(POLL_INTERVAL, stirred).await;
    }
}

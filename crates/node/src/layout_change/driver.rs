//! The task that takes this node through the phases of a layout change.
//! `quorate_core::layout_change` decides the next step, and when it may begin.

use std::rc::Rc;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::layout_change::{Layouts, NextStep};
use quorate_core::storage::StorageError;

use super::range_handoff::{drop_surplus, hand_over};
use super::transfer::copy;
use crate::node::Node;

/// Time between two polls for the next step, while the layouts do not change.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Polls between two searches for records that this node no longer has to hold.
const POLLS_BETWEEN_DROPS: u32 = 20;

/// Does the work of this node's next phase, again and again. Runs until the node stops.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let mut polls = 0u32;
    loop {
        let layouts_changed = shared.layouts.changed.notified();
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
                    // A newer layout may have arrived meanwhile. The work was then done for an
                    // older layout, and must not move this node to the next phase.
                    let is_current =
                        layouts.newest().digest() == newest.digest() && layouts.local_phase() == phase_before;
                    if is_current {
                        layouts.advance();
                    }
                    Ok(is_current)
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
        if polls.is_multiple_of(POLLS_BETWEEN_DROPS) && shared.view().is_settled() {
            drop_surplus(&node).await;
        }
        let _ = tokio::time::timeout(POLL_INTERVAL, layouts_changed).await;
    }
}

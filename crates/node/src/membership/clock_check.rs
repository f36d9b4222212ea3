//! Comparison of clocks. A node whose clock is far from those of most of its peers coordinates no
//! writes, and reports why.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::event::EventKind;
use quorate_core::request::{PeerReply, PeerRequest};

use crate::node::Node;

/// Time between two measurements.
const INTERVAL: Duration = Duration::from_secs(2);
/// Time to the next measurement while too few peers answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Measures the clock offset to each peer that can be reached, at intervals. Runs until the node
/// stops.
pub(crate) async fn run(node: Rc<Node>) {
    let shared = node.shared.clone();
    let limit = shared.settings.coordinator.max_clock_skew_ms as i64;
    let mut reported = None;
    loop {
        let participants = shared.view().participants.clone();
        let peers: Vec<NodeId> = participants.into_iter().filter(|&id| id != shared.node()).collect();
        let measurements = peers.iter().filter(|&&peer| node.is_live(peer)).map(|&peer| {
            let node = node.clone();
            async move {
                let before = node.shared.environment.wall_ms() as i64;
                let answer = node.ask(peer, PeerRequest::Clock).await;
                let after = node.shared.environment.wall_ms() as i64;
                match answer {
                    Ok(PeerReply::Clock(theirs)) if after - before < limit => Some((
                        peer,
                        ((before + after) / 2).saturating_sub(i64::try_from(theirs).unwrap_or(i64::MAX)),
                    )),
                    _ => None,
                }
            }
        });
        let measured: Vec<_> = futures::future::join_all(measurements).await;
        let ahead: BTreeMap<NodeId, i64> = measured.into_iter().flatten().collect();
        if ahead.len() * 2 <= peers.len() {
            // Half of the peers or fewer answered: the previous result stays.
            tokio::time::sleep(RETRY_INTERVAL).await;
            continue;
        }
        let mut sorted: Vec<i64> = ahead.values().copied().collect();
        sorted.sort_unstable();
        shared.clock_guard.set_ahead_ms(sorted.get(sorted.len() / 2).copied().unwrap_or(0));
        let far = median_if_far(&ahead, peers.len(), limit);
        if far.is_none() {
            shared.clock_guard.confirm();
        }
        if far.is_some() != reported.is_some() {
            shared.emit(None, EventKind::ClockSkewed { ahead_ms: far });
        }
        reported = far;
        shared.clock_guard.set_problem(far.map(|ms| {
            let (by, direction) = (ms.unsigned_abs(), if ms > 0 { "ahead of" } else { "behind" });
            format!("this node's clock is {by} ms {direction} most of its peers, the limit is {limit} (max_clock_skew_ms): set this clock right")
        }));
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Returns the milliseconds by which this clock is ahead (negative: behind), if it differs by more
/// than `limit` from the clocks of most peers. `peers` is the number of all peers.
fn median_if_far(ahead: &BTreeMap<NodeId, i64>, peers: usize, limit: i64) -> Option<i64> {
    let mut far: Vec<i64> = ahead.values().copied().filter(|ms| ms.unsigned_abs() > limit as u64).collect();
    far.sort_unstable();
    (far.len() * 2 > peers).then(|| far[far.len() / 2])
}

//! Buckets with a definition of their own: created while the cluster runs, by a change of layout that moves no partition.
//!
//! A bucket whose keys get another number of replicas than they had by the default, or quorums that need not meet those,
//! would be looked for where it is not, as long as some nodes know and some do not. So its keys are neither read nor written
//! from the moment a node hears of it until nobody goes by the old definition any more; what somebody had under the name before
//! goes to its replicas meanwhile (`transfer::copy`).

use std::rc::Rc;
use std::time::Duration;

use quorate_core::bucket::Bucket;
use quorate_core::change::LayoutChange;
use quorate_core::layout_change::Phase;
use quorate_core::quorum::QuorumSize;
use quorate_core::report::{BucketReport, BucketsReport};
use quorate_core::request::ScanRequest;
use quorate_core::{BucketDefinition, BucketName, Buckets, RequestError};
use tokio::time::Instant;

use super::layout_changes::{commit_only, staged_by};
use crate::coordinator;
use crate::node::Node;

/// How often a creation looks how far it is, if nothing stirs.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What buckets' keys are held to, as this node knows it.
pub(crate) fn show(node: &Node) -> BucketsReport {
    let view = node.shared.view();
    let newest = view.newest();
    let report = |(name, bucket): (&str, &Bucket)| {
        let ready = view.bucket(name).is_some();
        (name.to_owned(), BucketReport { definition: bucket.definition.clone(), ready })
    };
    BucketsReport {
        node: node.shared.identity.name.clone(),
        layout: newest.number(),
        replicas: newest.replicas(),
        buckets: newest.buckets().iter().map(report).collect(),
    }
}

/// Gives a bucket a definition of its own and waits until all nodes go by it. One that has it already is fine: then this is
/// a repetition.
///
/// # Errors
/// `InvalidRequest` if it does not fit; `Indeterminate` if not all nodes have taken it in time: it may be repeated.
pub(crate) async fn create(
    node: &Rc<Node>,
    name: &str,
    definition: BucketDefinition,
    deadline: Instant,
) -> Result<BucketsReport, RequestError> {
    let bucket = BucketName::new(name)?;
    node.shared.resolver(&definition.resolver)?;
    let wanted = Bucket { n: definition.n.unwrap_or(u8::MAX), definition: definition.clone() };
    let change = LayoutChange::Bucket { name: name.to_owned(), definition: definition.clone() };
    let mut is_checked = false;
    loop {
        let view = node.shared.view();
        let (known, replicas) = (view.newest().buckets().clone(), view.newest().replicas());
        drop(view);
        if !known.is_declared(name) || known.get(name).definition != definition {
            if !is_checked && !known.is_declared(name) && !wanted.meets(known.get(name), replicas) {
                check_is_new(node, &bucket, &known, deadline).await?;
            }
            is_checked = true;
            match commit_only(node, vec![staged_by(node, change.clone())]).await {
                // Others are under way: there is room when they are done.
                Ok(()) | Err(RequestError::Overloaded { .. }) => {}
                Err(error) => return Err(error),
            }
        } else if is_taken(node, name) {
            return Ok(show(node));
        }
        if Instant::now() >= deadline {
            return Err(node.shared.layouts.with(|layouts| {
                let all = layouts.participants();
                let there = all.iter().filter(|&&id| layouts.phase_of(id) >= Phase::Known).count();
                RequestError::Indeterminate { needed: all.len() as u8, received: there as u8 }
            }));
        }
        let _ = tokio::time::timeout(POLL_INTERVAL, node.shared.layouts.changed.notified()).await;
    }
}

/// True if all nodes know the newest layout, and with it the bucket, and none goes by another one of it.
fn is_taken(node: &Node, name: &str) -> bool {
    let all_know = node
        .shared
        .layouts
        .with(|layouts| layouts.active().len() == 1 || layouts.cluster_phase() >= Phase::Known);
    all_know && node.shared.view().bucket(name).is_some()
}

/// A bucket that gets other replicas or quorums must be new, and everybody there to hear of it.
async fn check_is_new(
    node: &Rc<Node>,
    bucket: &BucketName,
    known: &Buckets,
    deadline: Instant,
) -> Result<(), RequestError> {
    let view = node.shared.view();
    if let Some(&down) = view.participants.iter().find(|&&id| !node.is_live(id)) {
        let (name, down) = (bucket.as_str(), view.name_of(down));
        return Err(RequestError::invalid(format!(
            "bucket {name:?}: node {down} can't be reached, and no key could be read or written until it is told of the n, r and w; \
             start it, or take it out with `quorate cluster remove {down} --force`, or leave n, r and w to the default"
        )));
    }
    drop(view);
    let scan = ScanRequest {
        bucket: bucket.clone(),
        prefix: Default::default(),
        cursor: Default::default(),
        limit: 1,
        keys_only: true,
        r: QuorumSize::Default,
    };
    let found = coordinator::scan(node, scan, deadline).await?;
    if let Some(entry) = found.entries.first() {
        let BucketDefinition { n, r, w, .. } = &known.get(bucket.as_str()).definition;
        let n = n.map_or("the cluster's n".to_owned(), |n| format!("n = {n}"));
        return Err(RequestError::invalid(format!(
            "bucket {:?} has keys already ({}), with {n}, r = {r}, w = {w}: what is written by these might not be found by others; \
             choose another name, or leave them as they are",
            bucket.as_str(),
            entry.key.escape_ascii(),
        )));
    }
    Ok(())
}

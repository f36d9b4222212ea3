//! Creation of buckets with a definition of their own, while the cluster runs. A new definition is
//! a layout change that moves no partition.
//!
//! Before its creation, a bucket has the default definition. The new definition may have another n,
//! or quorums that need not overlap with the old ones. While some nodes use the old definition and
//! some the new one, a read could then miss a write. So a node that knows the new definition
//! refuses reads and writes of the bucket until all nodes use it. Meanwhile all nodes give their
//! records of the bucket to its new replicas (`layout_change/bucket_backfill.rs`).

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

/// Time between two checks of a creation's progress, while nothing changes.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Reports the definitions of the buckets, as this node knows them.
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

/// Gives a bucket a definition of its own, and waits until all nodes use it. Succeeds if the bucket
/// has this definition already, so that a client may repeat the request.
///
/// # Errors
/// `InvalidRequest` if the name or the definition is refused. `Indeterminate` if not all nodes use
/// the definition before `deadline`: the client may repeat the request.
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
                // Other layout changes are under way. The loop retries until they are done.
                Ok(()) | Err(RequestError::Overloaded { .. }) => {}
                Err(error) => return Err(error),
            }
        } else if is_used_by_all(node, name) {
            return Ok(show(node));
        }
        if Instant::now() >= deadline {
            return Err(node.shared.layouts.with(|layouts| {
                let all = layouts.participants();
                let informed = all.iter().filter(|&&id| layouts.phase_of(id) >= Phase::Known).count();
                RequestError::Indeterminate { needed: all.len() as u8, received: informed as u8 }
            }));
        }
        let _ = tokio::time::timeout(POLL_INTERVAL, node.shared.layouts.changed.notified()).await;
    }
}

/// True if all nodes know the newest layout, with the bucket's definition, and no node uses an
/// older definition.
fn is_used_by_all(node: &Node, name: &str) -> bool {
    let all_know = node
        .shared
        .layouts
        .with(|layouts| layouts.active().len() == 1 || layouts.cluster_phase() >= Phase::Known);
    all_know && node.shared.view().bucket(name).is_some()
}

/// Checks that a bucket has no keys and that all nodes are up, before the bucket gets another n or
/// other quorums.
///
/// # Errors
/// `InvalidRequest`, with the node that is down or the key that exists.
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
            "bucket {name:?}: node {down} cannot be reached, and no key could be read or written until it knows the new n, r and w: \
             start it, or remove it with `quorate cluster remove {down} --force`, or leave n, r and w at the default"
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
            "bucket {:?} has keys already ({}), written with {n}, r = {r}, w = {w}: reads with another n, r or w might miss them; \
             choose another name, or keep this n, r and w",
            bucket.as_str(),
            entry.key.escape_ascii(),
        )));
    }
    Ok(())
}

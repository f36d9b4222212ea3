//! Buckets with a definition of their own: created while the cluster runs, by a change of layout that moves no partition.
//!
//! A bucket whose keys get another number of replicas than they had by the default would be looked for where it is not, as
//! long as some nodes know and some do not. So its keys are neither read nor written from the moment a node hears of it until
//! all have; what somebody had under the name before goes to its new replicas meanwhile (`transfer::copy`).

use std::rc::Rc;
use std::time::Duration;

use quorate_core::change::Change;
use quorate_core::request::{BucketReport, BucketsReport, QuorumSize, ScanRequest};
use quorate_core::transition::{Layouts, Phase};
use quorate_core::{BucketDefinition, BucketName, Buckets, RequestError};
use tokio::time::Instant;

use crate::administer::commit_only;
use crate::coordinator;
use crate::node::Node;

/// How often a creation looks how far it is, if nothing stirs.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What buckets' keys are held to, as this node knows it.
pub(crate) fn show(node: &Node) -> BucketsReport {
    let view = node.shared.view();
    let newest = view.newest();
    let report = |(name, bucket): (&str, &quorate_core::bucket::Bucket)| {
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
    let known = node.shared.view().newest().buckets().clone();
    let is_there = known.is_declared(name) && known.get(name).definition == definition;
    let other_n = known.get(name).n != definition.n.unwrap_or(u8::MAX);
    if !is_there {
        if other_n && !known.is_declared(name) {
            check_is_new(node, &bucket, &known, deadline).await?;
        }
        commit_only(node, &Change::Bucket { name: name.to_owned(), definition: definition.clone() }).await?;
    }
    let number = node.shared.view().newest().number();
    let needed =
        if other_n || node.shared.view().bucket(name).is_none() { Phase::Reading } else { Phase::Known };
    while !node.shared.layouts.look(|layouts| is_reached(layouts, number, needed)) {
        if Instant::now() >= deadline {
            return Err(node.shared.layouts.look(|layouts| {
                let all = layouts.participants();
                let there = all.iter().filter(|&&id| layouts.phase_of(id) >= needed).count();
                RequestError::Indeterminate { needed: all.len() as u8, received: there as u8 }
            }));
        }
        let _ = tokio::time::timeout(LOOK_EVERY, node.shared.layouts.stirred.notified()).await;
    }
    let report = show(node);
    match report.buckets.get(name) {
        Some(created) if created.definition == definition => Ok(report),
        _ => Err(RequestError::invalid(format!(
            "bucket {name:?}: somebody else committed another change at the same time, and that one holds; \
             see `quorate cluster show`, and create it again"
        ))),
    }
}

/// True if everybody is that far with this layout, or with a later one.
fn is_reached(layouts: &Layouts, number: u64, needed: Phase) -> bool {
    let newest = layouts.newest().number();
    newest > number || layouts.active().len() == 1 || layouts.least() >= needed
}

/// A bucket that gets an n of its own must be new, and everybody there to hear of it.
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
            "bucket {name:?}: node {down} can't be reached, and no key could be read or written until it is told of the n; \
             start it, or take it out with `quorate cluster remove {down} --force`, or leave n to the cluster"
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
        let n = known.get(bucket.as_str()).definition.n;
        return Err(RequestError::invalid(format!(
            "bucket {:?} has keys already ({}) with {}: the number of replicas is for a bucket's whole life; \
             choose another name, or leave n as it is",
            bucket.as_str(),
            entry.key.escape_ascii(),
            n.map_or("the n of the cluster".to_owned(), |n| format!("n = {n}")),
        )));
    }
    Ok(())
}

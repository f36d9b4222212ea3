//! Dispatch of operators' requests about the cluster.

use std::rc::Rc;

use quorate_core::change::StagedChange;
use quorate_core::request::{ClientReply, ClientResult, ClusterRequest};
use tokio::time::Instant;

use super::layout_changes::{clear, commit, commit_only, complete_change, stage};
use super::{buckets, reports};
use crate::node::Node;

/// Serves an operator's request.
pub(crate) async fn run(node: &Rc<Node>, request: ClusterRequest, deadline: Instant) -> ClientResult {
    match request {
        ClusterRequest::Show => {}
        // The client repeats a request if the answer was lost. A change that is done already is not
        // done again.
        ClusterRequest::Stage(StagedChange { id, .. }) | ClusterRequest::Apply(StagedChange { id, .. })
            if node.shared.layouts.with(|layouts| layouts.is_done_with(id)) => {}
        ClusterRequest::Stage(StagedChange { id, change }) => {
            stage(node, StagedChange { id, change: complete_change(node, change)? }).await?
        }
        ClusterRequest::Apply(StagedChange { id, change }) => {
            commit_only(node, vec![StagedChange { id, change: complete_change(node, change)? }]).await?;
        }
        ClusterRequest::Plan => return reports::plan(node).map(report),
        ClusterRequest::Commit { plan } => commit(node, plan).await?,
        ClusterRequest::Clear => clear(node).await?,
        ClusterRequest::Drain => node.shared.drain(),
        ClusterRequest::CreateBucket { name, definition } => {
            return buckets::create(node, &name, definition, deadline).await.map(report);
        }
        ClusterRequest::Buckets => return Ok(report(buckets::show(node))),
    }
    Ok(report(reports::cluster(node)))
}

/// Encodes a report as the JSON document that answers a request.
pub(crate) fn report(document: impl serde::Serialize) -> ClientReply {
    ClientReply::Report(serde_json::to_string(&document).expect("reports are plain data"))
}

//! Get: reads R replicas, merges their objects, repairs the replicas that hold less, and returns
//! the live values.

use std::rc::Rc;

use bytes::Bytes;
use quorate_core::bucket::Bucket;
use quorate_core::codec::encode_context;
use quorate_core::object::Version;
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, GetReply, GetRequest, Receipt, Sibling,
};
use quorate_core::{Object, Payload, RequestError};
use tokio::time::Instant;

use super::forward::forward;
use super::placement::{KeyPlacement, Origin};
use super::read_quorum::read_replicas;
use super::read_repair::{HoldersNeeded, repair};
use crate::node::Node;

/// Reads a key for a client: asks its replicas, merges their objects, and returns what it shows.
pub(crate) async fn get(
    node: &Rc<Node>,
    request: GetRequest,
    deadline: Instant,
    origin: Origin,
) -> ClientResult {
    let begun = Instant::now();
    let placement = KeyPlacement::of(node, &request.key)?;
    let required = placement.bucket.required(request.r, placement.bucket.definition.r, "r", placement.n())?;
    if placement.must_forward(node, origin) {
        return forward(node, &placement, ClientRequest::Get(request), deadline).await;
    }
    let sloppy = placement.bucket.definition.sloppy;
    let read = read_replicas(node, &placement, required, sloppy, deadline).await?;
    let repaired = match read.replicas_agree() && placement.pending_write_sets.is_empty() {
        true => Vec::new(),
        false => {
            let needed = HoldersNeeded { size: request.r, required };
            repair(node, &placement, &read, needed, deadline).await?
        }
    };
    Ok(ClientReply::Get(GetReply {
        siblings: shown(node, &placement.bucket, &read.merged)?,
        context: match read.encoded {
            Some(_) => encode_context(&read.merged.context(), placement.key_hash).into(),
            None => Bytes::new(),
        },
        receipt: Receipt {
            coordinator: node.shared.node(),
            layout: placement.view.read.number(),
            fallbacks: placement.fallbacks_among(&read.replied),
            acked: read.replied,
            repaired,
            micros: begun.elapsed().as_micros() as u32,
        },
    }))
}

/// Returns the siblings of `object` that a client is shown. If there are several, the bucket's
/// conflict resolver chooses among them. No other function calls the resolver.
///
/// # Errors
/// `InvalidRequest` if this node does not have the bucket's resolver.
pub(crate) fn shown(node: &Node, bucket: &Bucket, object: &Object) -> Result<Vec<Sibling>, RequestError> {
    let versions = object.shown();
    let versions = match versions.len() {
        0 | 1 => versions,
        _ => node.shared.resolver(&bucket.definition.resolver)?.resolve(versions),
    };
    let value = |payload: &Payload| match payload {
        Payload::Value(value) => value.clone(),
        Payload::Tombstone => Bytes::new(),
    };
    let sibling = |version: &Version| Sibling { stamp: version.dot.stamp, value: value(&version.payload) };
    Ok(versions.into_iter().map(sibling).collect())
}

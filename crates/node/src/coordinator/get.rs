//! Get: ask R replicas, merge, repair the stale ones, show.

use std::rc::Rc;

use quorate_core::codec::encode_context;
use quorate_core::request::{ClientReply, ClientRequest, ClientResult, GetReply, GetRequest, Receipt};
use tokio::time::Instant;

use super::forward::forward;
use super::read::read_replicas;
use super::repair::repair;
use super::{Place, shown};
use crate::node::Node;

pub(crate) async fn get(
    node: &Rc<Node>,
    request: GetRequest,
    deadline: Instant,
    forwarded: bool,
) -> ClientResult {
    let begun = Instant::now();
    let place = Place::of(node, &request.key)?;
    let required = place.bucket.required(request.r, place.bucket.definition.r, "r", place.n())?;
    if place.must_forward(node, forwarded) {
        return forward(node, &place, ClientRequest::Get(request), deadline).await;
    }
    let sloppy = place.bucket.definition.sloppy;
    let read = read_replicas(node, &place, required, sloppy, deadline).await?;
    let repaired = repair(node, &place, &read, (request.r, required), deadline).await?;
    Ok(ClientReply::Get(GetReply {
        siblings: shown(node, &place.bucket, &read.merged)?,
        context: match read.encoded {
            Some(_) => encode_context(&read.merged.context(), place.key_hash).into(),
            None => bytes::Bytes::new(),
        },
        receipt: Receipt {
            coordinator: node.shared.node(),
            layout: place.view.read.number(),
            fallbacks: place.fallbacks_among(&read.replied),
            acked: read.replied,
            repaired,
            micros: begun.elapsed().as_micros() as u32,
        },
    }))
}

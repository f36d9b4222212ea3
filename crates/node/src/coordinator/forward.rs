//! Forwarding: a node that is no replica of a key passes the request to a replica that can be
//! reached. The replica does not forward the request again.

use quorate_core::request::{ClientRequest, ClientResult, PeerError, PeerReply, PeerRequest};
use quorate_core::{NodeId, RequestError};
use tokio::time::Instant;

use super::placement::KeyPlacement;
use crate::gather::Gather;
use crate::node::Node;

/// Forwards a request to the replicas that can be reached, one after the other, until one answers.
/// A write is sent to the first one only.
pub(crate) async fn forward(
    node: &Node,
    placement: &KeyPlacement,
    request: ClientRequest,
    deadline: Instant,
) -> ClientResult {
    let is_write = matches!(request, ClientRequest::Put(_));
    let replicas: Vec<NodeId> = placement.live(node);
    let gather = Gather::default();
    for &replica in &replicas {
        let timeout = deadline.saturating_duration_since(Instant::now());
        node.transport.send(
            replica,
            PeerRequest::Forward(request.clone()),
            timeout,
            gather.reply_to(replica),
        );
        match gather.next(deadline).await {
            Some((_, Ok(PeerReply::Client(result)))) => return result,
            Some((_, Err(PeerError::Refused { detail }))) => {
                return Err(RequestError::InvalidRequest { detail });
            }
            Some((_, Err(PeerError::Overloaded { what, limit }))) => {
                return Err(RequestError::Overloaded { what, limit });
            }
            // A forwarded write may have been applied, so it is not sent to a second replica.
            _ if is_write => {
                return Err(RequestError::Indeterminate { needed: 1, received: 0 });
            }
            _ => {}
        }
    }
    Err(RequestError::Unavailable { needed: 1, reachable: 0 })
}

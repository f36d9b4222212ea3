//! Serving one accepted connection, from its preamble to its end.

use std::rc::{Rc, Weak};
use std::time::Duration;

use capnp::Error;
use quorate_core::NodeId;
use quorate_core::admission::{Identity, Role};
use quorate_core::event::EventKind;
use quorate_core::request::{ClientReply, ClientResult, PeerError, PeerReply, PeerRequest, PeerResult};
use quorate_core::seams::{Incoming, NodeService};
use quorate_core::{RequestError, request};

use crate::batch_sender::{MAX_BATCH_OPERATIONS, Protocol};
use crate::connection::{self, SizeHint};
use crate::convert::peer::PeerProtocol;
use crate::convert::{client as client_wire, peer as peer_wire};
use crate::generated::{client_capnp, peer_capnp};
use crate::network::{Duplex, Network};
use crate::preamble::{PreambleError, welcome};
use crate::reply_buffer::ReplyBuffer;

/// Serves a connection until it ends. Returns the event to log, if the connection was refused. A
/// program that speaks another protocol is refused too, and causes nothing but this event.
pub async fn serve_connection(
    mut duplex: Duplex,
    from: &str,
    ours: &Identity,
    service: Rc<dyn NodeService>,
    network: Rc<dyn Network>,
    on_peer: impl FnOnce(NodeId),
) -> Option<EventKind> {
    match welcome(&mut duplex, ours).await {
        Ok(Role::Client) => {
            let replies = ReplyBuffer::new(abandoned_by_client_side, client_wire::result_bytes);
            let size_hint = SizeHint::default();
            let port = ClientPort { service: Rc::downgrade(&service), replies, size_hint: size_hint.clone() };
            let port = capnp_rpc::new_client::<client_capnp::node::Client, _>(port);
            connection::serve(duplex, port.client, size_hint).await;
            None
        }
        Ok(Role::Node(peer)) => {
            on_peer(peer.node);
            let duplex = network.accepted(peer.node, duplex);
            let replies = ReplyBuffer::new(|| Err(PeerError::Disconnected), peer_wire::result_bytes);
            let only_gossip = peer.layout_digest == 0;
            let (size_hint, service) = (SizeHint::default(), Rc::downgrade(&service));
            let port =
                PeerPort { from: peer.node, only_gossip, service, replies, size_hint: size_hint.clone() };
            let port = capnp_rpc::new_client::<peer_capnp::peer::Client, _>(port);
            connection::serve(duplex, port.client, size_hint).await;
            None
        }
        Err(PreambleError::Refused(reason)) => Some(EventKind::PeerRefused { peer: from.to_owned(), reason }),
        // The stream failed or ended within the introduction. This is usual if a program only
        // checks that the port is open, so nothing is logged.
        Err(PreambleError::Io(_)) => None,
        Err(error) => {
            Some(EventKind::StrangerRefused { address: from.to_owned(), reason: error.to_string() })
        }
    }
}

fn abandoned_by_client_side() -> ClientResult {
    Err(RequestError::Indeterminate { needed: 0, received: 0 })
}

/// Returns an error if a call has more operations than Quorate's own senders put into one call.
fn check_length(operations: u32) -> Result<(), Error> {
    if operations as usize > MAX_BATCH_OPERATIONS {
        return Err(Error::failed(format!(
            "{operations} operations in a call: at most {MAX_BATCH_OPERATIONS}"
        )));
    }
    Ok(())
}

struct ClientPort {
    /// The node's service. Weak, because Cap'n Proto may keep this port in memory after a
    /// connection ended suddenly, and the port must not keep the node in memory.
    service: Weak<dyn NodeService>,
    replies: Rc<ReplyBuffer<ClientResult>>,
    size_hint: SizeHint,
}

impl client_capnp::node::Server for ClientPort {
    async fn exchange(
        self: Rc<Self>,
        params: client_capnp::node::ExchangeParams,
        mut results: client_capnp::node::ExchangeResults,
    ) -> Result<(), Error> {
        let operations = params.get()?.get_operations()?;
        check_length(operations.len())?;
        let mut batch = Vec::with_capacity(operations.len() as usize);
        for operation in operations {
            let id = operation.get_id();
            let request = match client_wire::read_operation(operation)? {
                Ok(request::ClientRequest::Ping) => {
                    self.replies.push(id, Ok(ClientReply::Done));
                    continue;
                }
                Ok(request) => request,
                Err(error) => {
                    self.replies.push(id, Err(error));
                    continue;
                }
            };
            match self.replies.admit(id, client_wire::request_bytes(&request)) {
                Ok(reply) => {
                    let timeout = Duration::from_millis(u64::from(operation.get_timeout_ms()));
                    batch.push(Incoming { request, timeout, reply });
                }
                Err(limit) => {
                    let what = "the number or the bytes of requests under way on this connection".to_owned();
                    self.replies.push(id, Err(RequestError::Overloaded { what, limit: limit as u64 }));
                }
            }
        }
        drop(params);
        // If the node no longer exists, the batch is dropped. Each dropped operation is answered
        // with `abandoned_by_client_side`.
        if let Some(service) = self.service.upgrade().filter(|_| !batch.is_empty()) {
            service.client(batch);
        }
        let ready = self.replies.collect().await;
        self.size_hint.expect(ready.iter().map(|(_, result)| client_wire::result_bytes(result)).sum());
        let mut list = results.get().init_results(ready.len() as u32);
        for (at, (id, result)) in ready.iter().enumerate() {
            client_wire::write_result(list.reborrow().get(at as u32), *id, result);
        }
        Ok(())
    }
}

/// True if a node without a layout may send this request.
fn needs_no_layout(request: &PeerRequest) -> bool {
    matches!(request, PeerRequest::Gossip(_) | PeerRequest::LayoutSummary(_) | PeerRequest::Layouts)
}

struct PeerPort {
    from: NodeId,
    /// True if the peer has no layout yet. Such a peer may only gossip and ask for layouts.
    only_gossip: bool,
    service: Weak<dyn NodeService>,
    replies: Rc<ReplyBuffer<PeerResult>>,
    size_hint: SizeHint,
}

impl peer_capnp::peer::Server for PeerPort {
    async fn exchange(
        self: Rc<Self>,
        params: peer_capnp::peer::ExchangeParams,
        mut results: peer_capnp::peer::ExchangeResults,
    ) -> Result<(), Error> {
        let operations = params.get()?.get_operations()?;
        check_length(operations.len())?;
        let mut batch = Vec::with_capacity(operations.len() as usize);
        for operation in operations {
            let id = operation.get_id();
            let request = match peer_wire::read_operation(operation)? {
                Ok(Some(request)) if self.only_gossip && !needs_no_layout(&request) => {
                    let detail = "a node without a layout may only gossip and ask for layouts".to_owned();
                    self.replies.push(id, Err(PeerError::Refused { detail }));
                    continue;
                }
                Ok(Some(request)) => request,
                Ok(None) => {
                    self.replies.push(id, Ok(PeerReply::Acked));
                    continue;
                }
                Err(error) => {
                    self.replies.push(id, Err(error));
                    continue;
                }
            };
            match self.replies.admit(id, PeerProtocol::bytes_of(&request)) {
                Ok(reply) => {
                    let timeout = Duration::from_millis(u64::from(operation.get_timeout_ms()));
                    batch.push(Incoming { request, timeout, reply });
                }
                Err(limit) => {
                    let what = "the number or the bytes of requests under way from this peer".to_owned();
                    self.replies.push(id, Err(PeerError::Overloaded { what, limit: limit as u64 }));
                }
            }
        }
        drop(params);
        if let Some(service) = self.service.upgrade().filter(|_| !batch.is_empty()) {
            service.peer(self.from, batch);
        }
        let ready = self.replies.collect().await;
        self.size_hint.expect(ready.iter().map(|(_, result)| peer_wire::result_bytes(result)).sum());
        let mut list = results.get().init_results(ready.len() as u32);
        for (at, (id, result)) in ready.iter().enumerate() {
            peer_wire::write_result(list.reborrow().get(at as u32), *id, result);
        }
        Ok(())
    }
}

//! One worker's part of a node: the shared state, the replica, and the transport to the peers.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::layout_change::View;
use quorate_core::request::{PeerError, PeerRequest, PeerResult};
use quorate_core::seams::{PeerTransport, ReplyTo};
use tokio::time::Instant;

use crate::gather::Gather;
use crate::replica::Replica;
use crate::replica::write::ReceivedWrite;
use crate::state::shared::Shared;

/// Timeout of one request of [`Node::ask`].
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// One worker's part of a node.
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) replica: Rc<Replica>,
    pub(crate) transport: Rc<dyn PeerTransport>,
}

impl Node {
    /// Creates a worker's part of the node. Call it on the worker's event loop, because it starts a
    /// task there.
    pub fn new(shared: Arc<Shared>, transport: Rc<dyn PeerTransport>) -> Rc<Node> {
        let replica = Replica::new(shared.clone());
        Rc::new(Node { shared, replica, transport })
    }

    /// Returns the layouts as a request that begins now sees them.
    pub fn view(&self) -> Arc<View> {
        self.shared.view()
    }

    /// True if `node` can be reached: it is this node, or there is an open connection to it.
    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        node == self.shared.node() || self.transport.is_up(node)
    }

    /// Sends a request to a node, which may be this one. The answer goes to `reply`.
    pub(crate) fn send(
        &self,
        to: NodeId,
        request: PeerRequest,
        timeout: Duration,
        reply: ReplyTo<PeerResult>,
    ) {
        if to == self.shared.node() {
            self.answer_as_replica(request, timeout, reply);
        } else {
            self.transport.send(to, request, timeout, reply);
        }
    }

    /// Sends one request to a node, and waits for the answer.
    ///
    /// # Errors
    /// The node's error, or `Expired` if it did not answer in time.
    pub(crate) async fn ask(&self, node: NodeId, request: PeerRequest) -> PeerResult {
        let gather = Gather::default();
        self.send(node, request, ASK_TIMEOUT, gather.reply_to(node));
        match gather.next(Instant::now() + ASK_TIMEOUT).await {
            Some((_, answer)) => answer,
            None => Err(PeerError::Expired),
        }
    }

    /// Answers a request that this node serves as a replica, from a peer or from this node itself.
    /// Refuses the other kinds of requests, because they do not concern a replica.
    pub(crate) fn answer_as_replica(
        &self,
        request: PeerRequest,
        timeout: Duration,
        reply: ReplyTo<PeerResult>,
    ) {
        let replica = &self.replica;
        match request {
            PeerRequest::Read { key, layout } => reply.send(replica.read(&key, layout)),
            PeerRequest::ReadHints(key) => reply.send(replica.read_hints(&key)),
            PeerRequest::Fetch(key) => reply.send(replica.fetch(&key)),
            PeerRequest::Write(write) => replica.write(vec![ReceivedWrite { write, timeout, reply }]),
            PeerRequest::ScanPartition(scan) => replica.scan(scan, timeout, reply),
            PeerRequest::DurableDigests(keys) => replica.durable_digests(keys, reply),
            PeerRequest::MayCollect { keys, layout } => reply.send(replica.may_collect(&keys, layout)),
            PeerRequest::CollectTombstones(order) => replica.collect_tombstones(order, reply),
            PeerRequest::Forward(_)
            | PeerRequest::Roots(_)
            | PeerRequest::Leaves(_)
            | PeerRequest::Digests(_)
            | PeerRequest::Clock
            | PeerRequest::Gossip(_)
            | PeerRequest::LayoutSummary(_)
            | PeerRequest::Layouts => {
                reply.send(Err(PeerError::Refused {
                    detail: "a replica does not answer this kind of request".into(),
                }));
            }
        }
    }
}

//! The entrance of a node: admits the requests of clients and peers, and passes each to the part of
//! the node that serves it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::layout_change::Layouts;
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, PeerError, PeerReply, PeerRequest, PeerResult,
};
use quorate_core::seams::{Incoming, NodeService, ReplyTo};
use quorate_core::{NodeId, RequestError};
use tokio::time::Instant;

use crate::admin::cluster_requests::report;
use crate::admin::fingerprint::fingerprint;
use crate::admin::{cluster_requests, reports};
use crate::coordinator::{self, Origin};
use crate::membership::{gossip, layout_exchange};
use crate::node::Node;
use crate::repair::merkle_answers;
use crate::replica::write::ReceivedWrite;
use crate::state::scan_scheduler::Scanned;
use crate::state::shared::Shared;

/// Function that cuts this node off from the listed peers. Earlier cuts from other peers end. Only
/// tests use it.
pub type FaultSwitch = Arc<dyn Fn(Vec<Fault>) -> Result<(), String> + Send + Sync>;

/// An artificial cut between this node and a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The peer.
    pub peer: NodeId,
    /// True if only messages from this node to the peer are lost. False if those from the peer are
    /// lost too.
    pub one_way: bool,
}

/// Receiver of all requests that arrive at one worker's connections. Clones share their state.
#[derive(Clone)]
pub struct Service {
    node: Rc<Node>,
    faults: Option<FaultSwitch>,
    requests: Rc<OpenRequests>,
}

/// The clients' requests that one worker is serving.
#[derive(Default)]
struct OpenRequests {
    count: Cell<usize>,
    /// True once the node is about to stop: no further requests are admitted.
    stopping: Cell<bool>,
}

impl Service {
    /// Creates the service of a worker. `faults` cuts this node off from peers at a client's
    /// request. `None`: clients may not do that.
    pub fn new(node: Rc<Node>, faults: Option<FaultSwitch>) -> Service {
        Service { node, faults, requests: Rc::default() }
    }

    /// Returns this worker's part of the node.
    pub fn node(&self) -> &Rc<Node> {
        &self.node
    }

    /// Refuses new requests of clients from now on, because the node will stop. Open requests
    /// continue.
    pub fn refuse_clients(&self) {
        self.requests.stopping.set(true);
    }

    /// Returns the number of clients' requests that this worker is serving.
    pub fn in_flight(&self) -> usize {
        self.requests.count.get()
    }

    /// Returns the deadline of a request with this timeout. A timeout of zero means that the client
    /// named none, so the default is used.
    fn deadline(&self, timeout: Duration) -> Instant {
        let config = &self.node.shared.settings.coordinator;
        let wanted =
            if timeout.is_zero() { Duration::from_millis(config.request_timeout_ms) } else { timeout };
        Instant::now() + wanted.min(Duration::from_millis(config.max_request_timeout_ms))
    }

    /// Checks that this worker may serve a client's request now.
    ///
    /// # Errors
    /// `Overloaded`, with the reason, if it may not.
    fn admit(&self, request: &ClientRequest, origin: Origin) -> Result<(), RequestError> {
        let shared = &self.node.shared;
        let is_about_node =
            matches!(request, ClientRequest::Status | ClientRequest::Cluster(_) | ClientRequest::Layout);
        let drained = shared.is_drained() && !is_about_node && origin == Origin::Client;
        if self.requests.stopping.get() || drained {
            let what =
                "this node is drained or is about to stop, so it accepts no requests of clients: use another node"
                    .to_owned();
            return Err(RequestError::Overloaded { what, limit: 0 });
        }
        if shared.view().removed && !is_about_node {
            let what = "this node was taken out of the cluster while it was down, so its data is outdated: stop it, and start it \
                        with an empty data folder to join again"
                .to_owned();
            return Err(RequestError::Overloaded { what, limit: 0 });
        }
        let limit = shared.settings.coordinator.max_in_flight;
        if self.requests.count.get() >= limit {
            let what = "the number of open requests on this worker ([coordinator] max_in_flight)".to_owned();
            return Err(RequestError::Overloaded { what, limit: limit as u64 });
        }
        Ok(())
    }

    /// Checks a client's request, and serves it in a task of its own. So the request continues if
    /// its client disconnects. The result goes to `reply`.
    fn begin(&self, request: ClientRequest, timeout: Duration, origin: Origin, reply: ReplyTo<ClientResult>) {
        if let Err(refusal) = self.admit(&request, origin) {
            return reply.send(Err(refusal));
        }
        let guard = InFlight::begin(&self.node, &self.requests);
        let reply = self.observed(&request, reply);
        let deadline = self.deadline(timeout);
        let service = self.clone();
        tokio::task::spawn_local(async move {
            let _guard = guard;
            service.serve(request, deadline, origin, reply).await;
        });
    }

    /// Serves a client's request. A put replies after W acks, and then waits for the other
    /// replicas. All other requests reply when they end.
    async fn serve(
        &self,
        request: ClientRequest,
        deadline: Instant,
        origin: Origin,
        reply: ReplyTo<ClientResult>,
    ) {
        let node = &self.node;
        let result = match request {
            ClientRequest::Put(request) => {
                return coordinator::put(node, request, deadline, origin, reply).await;
            }
            ClientRequest::Get(request) => coordinator::get(node, request, deadline, origin).await,
            ClientRequest::Scan(request) => {
                coordinator::scan(node, request, deadline).await.map(ClientReply::Scan)
            }
            ClientRequest::Explain(key) => coordinator::explain(node, key, deadline).await.map(report),
            ClientRequest::Status => Ok(report(reports::status(node))),
            ClientRequest::Repair { start } => {
                if start {
                    node.shared.progress.repairs_requested.fetch_add(1, Ordering::AcqRel);
                }
                Ok(report(reports::repair_status(&node.shared)))
            }
            ClientRequest::Layout => Ok(ClientReply::Layout(node.shared.view().read.encode().into())),
            ClientRequest::Cluster(request) => cluster_requests::run(node, request, deadline).await,
            ClientRequest::Fingerprint => fingerprint(&node.shared).await.map(ClientReply::Fingerprint),
            ClientRequest::Faults { cut } => self.set_faults(&cut).map(|()| ClientReply::Done),
            ClientRequest::Ping => Ok(ClientReply::Done),
        };
        reply.send(result);
    }

    fn set_faults(&self, cut: &[String]) -> Result<(), RequestError> {
        let Some(switch) = &self.faults else {
            return Err(RequestError::invalid(
                "this node does not allow faults: set [faults] enabled = true in its configuration (tests only)",
            ));
        };
        let mut nodes = Vec::new();
        for name in cut {
            let (one_way, name) = match name.strip_prefix('>') {
                Some(name) => (true, name),
                None => (false, name.as_str()),
            };
            let member = gossip::known_members(&self.node).into_iter().find(|member| member.name == name);
            let member =
                member.ok_or_else(|| RequestError::invalid(format!("no member is called {name:?}")))?;
            nodes.push(Fault { peer: member.id, one_way });
        }
        switch(nodes).map_err(RequestError::invalid)
    }

    /// Wraps the reply of a get, put or scan, so that an event reports how the request was served.
    fn observed(&self, request: &ClientRequest, reply: ReplyTo<ClientResult>) -> ReplyTo<ClientResult> {
        let (verb, id) = match request {
            ClientRequest::Get(_) => ("get", None),
            ClientRequest::Put(put) => ("put", Some(put.request)),
            ClientRequest::Scan(_) => ("scan", None),
            _ => return reply,
        };
        let shared = self.node.shared.clone();
        let begun = Instant::now();
        ReplyTo::call(move |result: ClientResult| {
            let (outcome, acked, siblings, hinted) = match &result {
                Ok(ClientReply::Get(get)) => ("ok", get.receipt.acked.len(), get.siblings.len(), 0),
                Ok(ClientReply::Put(put)) => ("ok", put.receipt.acked.len(), 0, put.hinted),
                Ok(_) => ("ok", 0, 0, 0),
                Err(error) => (error.name(), 0, 0, 0),
            };
            let kind = EventKind::Served {
                verb,
                outcome,
                micros: begun.elapsed().as_micros() as u64,
                acked: acked as u8,
                siblings: siblings as u32,
                hinted,
            };
            shared.emit(id, kind);
            reply.send(result);
        })
    }

    /// Answers a peer's request.
    fn answer_peer(&self, request: PeerRequest, timeout: Duration, reply: ReplyTo<PeerResult>) {
        let node = &self.node;
        let shared = &node.shared;
        match request {
            PeerRequest::Forward(request) => {
                let reply = ReplyTo::call(move |result| reply.send(Ok(PeerReply::Client(result))));
                self.begin(request, timeout, Origin::Coordinator, reply);
            }
            PeerRequest::Roots(roots) => reply.send(merkle_answers::compare(shared, &roots)),
            PeerRequest::Leaves(tree) => reply.send(merkle_answers::leaves(shared, tree)),
            PeerRequest::Digests(wanted) => {
                let shared = shared.clone();
                node.replica.clone().scan_in_turn(timeout, reply, move |_| {
                    let Scanned { found, cost } = merkle_answers::digest_page(&shared, &wanted);
                    Scanned { found: found.map(PeerReply::Digests), cost }
                });
            }
            PeerRequest::Clock => reply.send(Ok(PeerReply::Clock(shared.environment.wall_ms()))),
            PeerRequest::Layouts => {
                reply.send(Ok(PeerReply::Layouts(shared.layouts.with(Layouts::encode).into())));
            }
            request => node.answer_as_replica(request, timeout, reply),
        }
    }
}

/// Guard of one client's request. The counters of open requests include the request until the guard
/// is dropped.
struct InFlight {
    shared: Arc<Shared>,
    requests: Rc<OpenRequests>,
}

impl InFlight {
    fn begin(node: &Node, requests: &Rc<OpenRequests>) -> InFlight {
        requests.count.set(requests.count.get() + 1);
        node.shared.progress.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { shared: node.shared.clone(), requests: requests.clone() }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.requests.count.set(self.requests.count.get() - 1);
        self.shared.progress.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NodeService for Service {
    fn client(&self, batch: Vec<Incoming<ClientRequest, ClientResult>>) {
        for Incoming { request, timeout, reply } in batch {
            self.begin(request, timeout, Origin::Client, reply);
        }
    }

    fn peer(&self, from: NodeId, batch: Vec<Incoming<PeerRequest, PeerResult>>) {
        let mut writes = Vec::new();
        // Most requests are refused if the peer is no participant, because its data may be
        // outdated. They are refused from every peer while this node is removed or may have lost
        // its layouts.
        let view = self.node.shared.view();
        let confirmed = self.node.shared.recovery.are_layouts_confirmed();
        let is_accepted = view.is_participant(from) && !view.removed && confirmed;
        drop(view);
        for Incoming { request, timeout, reply } in batch {
            match request {
                PeerRequest::Gossip(message) => gossip::receive(&self.node, from, &message, reply),
                PeerRequest::LayoutSummary(summary) => {
                    reply.send(layout_exchange::answer(&self.node, from, &summary))
                }
                request if !is_accepted && !is_for_any_node(&request) => {
                    let detail = "the sender or this node is no participant of the layout, or this node still confirms its layouts"
                        .to_owned();
                    reply.send(Err(PeerError::Refused { detail }));
                }
                PeerRequest::Write(write) => writes.push(ReceivedWrite { write, timeout, reply }),
                other => self.answer_peer(other, timeout, reply),
            }
        }
        self.node.replica.write(writes);
    }
}

/// True for requests that are accepted from every node, also from one that is no participant.
fn is_for_any_node(request: &PeerRequest) -> bool {
    matches!(request, PeerRequest::Layouts | PeerRequest::Clock | PeerRequest::Forward(_))
}

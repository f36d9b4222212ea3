//! A node as one worker sees it: takes requests in, hands each to the coordinator or the replica.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_core::layout::Load;
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, MemberStatus, PeerError, PeerReply, PeerRequest, PeerResult,
    Status,
};
use quorate_core::seams::{Incoming, NodeService, PeerTransport, ReplyTo};
use quorate_core::{NodeId, RequestError};
use tokio::time::Instant;

use crate::coordinator;
use crate::fingerprint::fingerprint;
use crate::replica::{Replica, ToMerge};
use crate::shared::Shared;

/// Puts a node's faults into effect, where its configuration allows any.
pub type FaultSwitch = Arc<dyn Fn(Vec<NodeId>) -> Result<(), String> + Send + Sync>;

/// One worker's part of a node.
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) replica: Replica,
    pub(crate) transport: Rc<dyn PeerTransport>,
    faults: Option<FaultSwitch>,
    in_flight: Cell<usize>,
    stopping: Cell<bool>,
}

impl Node {
    /// A worker of the node. Must be called on its event loop.
    pub fn new(
        shared: Arc<Shared>,
        transport: Rc<dyn PeerTransport>,
        faults: Option<FaultSwitch>,
    ) -> Rc<Node> {
        let replica = Replica::new(shared.clone());
        Rc::new(Node {
            shared,
            replica,
            transport,
            faults,
            in_flight: Cell::new(0),
            stopping: Cell::new(false),
        })
    }

    /// Refuses clients' requests from now on: the node is about to stop. Those under way go on.
    pub fn stop_taking(&self) {
        self.stopping.set(true);
    }

    /// Requests of clients under way on this worker.
    pub fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// True if the node can be reached: it is this one, or has an open connection.
    pub(crate) fn is_live(&self, node: NodeId) -> bool {
        node == self.shared.node() || self.transport.is_up(node)
    }

    fn deadline(&self, timeout: Duration) -> Instant {
        let config = &self.shared.config;
        let wish = if timeout.is_zero() { Duration::from_millis(config.request_timeout_ms) } else { timeout };
        Instant::now() + wish.min(Duration::from_millis(config.max_request_timeout_ms))
    }

    /// Runs a client's request as a task of its own: a client that goes away cancels nothing.
    fn begin(
        self: &Rc<Self>,
        request: ClientRequest,
        timeout: Duration,
        forwarded: bool,
        reply: ReplyTo<ClientResult>,
    ) {
        if self.stopping.get() {
            let what = "the node is stopping: what it takes".to_owned();
            return reply.send(Err(RequestError::Overloaded { what, limit: 0 }));
        }
        let limit = self.shared.config.max_in_flight;
        if self.in_flight.get() >= limit {
            let what = "requests under way on this worker ([coordinator] max_in_flight)".to_owned();
            return reply.send(Err(RequestError::Overloaded { what, limit: limit as u64 }));
        }
        self.in_flight.set(self.in_flight.get() + 1);
        let deadline = self.deadline(timeout);
        let node = self.clone();
        tokio::task::spawn_local(async move {
            let _guard = InFlight(&node.in_flight);
            node.run(request, deadline, forwarded, reply).await;
        });
    }

    async fn run(
        self: &Rc<Self>,
        request: ClientRequest,
        deadline: Instant,
        forwarded: bool,
        reply: ReplyTo<ClientResult>,
    ) {
        let result = match request {
            ClientRequest::Put(request) => {
                return coordinator::put(self, request, deadline, forwarded, reply).await;
            }
            ClientRequest::Get(request) => coordinator::get(self, request, deadline, forwarded).await,
            ClientRequest::Scan(request) => {
                coordinator::scan(self, request, deadline).await.map(ClientReply::Scan)
            }
            ClientRequest::Explain(key) => coordinator::explain(self, key, deadline).await.map(report),
            ClientRequest::Status => Ok(report(self.status())),
            ClientRequest::Layout => Ok(ClientReply::Layout(self.shared.layout.encode().into())),
            ClientRequest::Fingerprint => fingerprint(&self.shared).await.map(ClientReply::Fingerprint),
            ClientRequest::Faults { cut } => self.set_faults(&cut).map(|()| ClientReply::Done),
            ClientRequest::Ping => Ok(ClientReply::Done),
        };
        reply.send(result);
    }

    fn set_faults(&self, cut: &[String]) -> Result<(), RequestError> {
        let Some(switch) = &self.faults else {
            return Err(RequestError::invalid(
                "this node takes no faults: set [faults] enabled = true in its configuration (tests only)",
            ));
        };
        let mut nodes = Vec::new();
        for name in cut {
            let member = self.shared.layout.members().iter().find(|member| member.name == *name);
            let member =
                member.ok_or_else(|| RequestError::invalid(format!("no member is called {name:?}")))?;
            nodes.push(member.id);
        }
        switch(nodes).map_err(RequestError::invalid)
    }

    fn status(&self) -> Status {
        let shared = &self.shared;
        let layout = &shared.layout;
        let members = layout.members().iter().map(|member| {
            let Load { partitions, first } = layout.load_of(member.id);
            let state = if self.is_live(member.id) { "up" } else { "down" };
            MemberStatus {
                name: member.name.clone(),
                address: member.address.clone(),
                zone: member.zone.clone(),
                state: state.to_owned(),
                partitions,
                first,
                trouble: self.transport.trouble(member.id),
            }
        });
        Status {
            node: shared.identity.name.clone(),
            cluster: shared.identity.cluster.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            layout: layout.number(),
            layout_digest: format!("{:016x}", layout.digest()),
            partitions: layout.partitions(),
            replicas: layout.replicas(),
            storage: shared.storage_name.clone(),
            uptime_ms: shared.uptime_ms(),
            hints: 0,
            members: members.collect(),
        }
    }
}

struct InFlight<'a>(&'a Cell<usize>);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

fn report(document: impl serde::Serialize) -> ClientReply {
    ClientReply::Report(serde_json::to_string(&document).expect("reports are plain data"))
}

/// The worker's node, as its connections call it.
pub struct Service(pub Rc<Node>);

impl NodeService for Service {
    fn client(&self, batch: Vec<Incoming<ClientRequest, ClientResult>>) {
        for Incoming { request, timeout, reply } in batch {
            self.0.begin(request, timeout, false, reply);
        }
    }

    fn peer(&self, _from: NodeId, batch: Vec<Incoming<PeerRequest, PeerResult>>) {
        let replica = &self.0.replica;
        let mut merges = Vec::new();
        for Incoming { request, timeout, reply } in batch {
            match request {
                PeerRequest::Read(key) => reply.send(replica.read(&key)),
                PeerRequest::Write { key, object, hint_for: None } => {
                    merges.push(ToMerge { key, object, timeout, reply });
                }
                PeerRequest::Write { hint_for: Some(_), .. } => {
                    reply.send(Err(PeerError::Refused { detail: "this node keeps no hints".into() }));
                }
                PeerRequest::ScanPartition(scan) => reply.send(replica.scan(&scan)),
                PeerRequest::Forward(request) => {
                    let answer = ReplyTo::new(Rc::new(Forwarded(Cell::new(Some(reply)))), 0);
                    self.0.begin(request, timeout, true, answer);
                }
            }
        }
        replica.merge(merges);
    }
}

/// Wraps a client's answer into a peer's.
struct Forwarded(Cell<Option<ReplyTo<PeerResult>>>);

impl quorate_core::seams::ReplySink<ClientResult> for Forwarded {
    fn reply(&self, _: u64, answer: Option<ClientResult>) {
        if let (Some(reply), Some(answer)) = (self.0.take(), answer) {
            reply.send(Ok(PeerReply::Client(answer)));
        }
    }
}

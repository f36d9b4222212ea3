//! A node as one worker sees it: takes requests in, hands each to the coordinator or the replica.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_core::event::EventKind;
use quorate_core::layout::Load;
use quorate_core::membership::MemberState;
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, MemberStatus, PeerError, PeerReply, PeerRequest, PeerResult,
    Status,
};
use quorate_core::seams::{Incoming, NodeService, PeerTransport, ReplySink, ReplyTo};
use quorate_core::transition::{Layouts, View};
use quorate_core::{Member, NodeId, RequestError, RequestId};
use tokio::time::Instant;

use crate::coordinator;
use crate::fingerprint::fingerprint;
use crate::replica::{Replica, ToStore};
use crate::shared::Shared;
use crate::turns::{Turns, cost_of};
use crate::{administer, clocks, gossip, hints, reaper, recovery, repair, sync, transition, trees};

/// Puts a node's faults into effect, where its configuration allows any.
pub type FaultSwitch = Arc<dyn Fn(Vec<Fault>) -> Result<(), String> + Send + Sync>;

/// A cut of a node from a peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// From whom.
    pub peer: NodeId,
    /// Only what this node sends is lost, not what it is sent.
    pub one_way: bool,
}

/// One worker's part of a node.
pub struct Node {
    pub(crate) shared: Arc<Shared>,
    pub(crate) replica: Replica,
    pub(crate) transport: Rc<dyn PeerTransport>,
    faults: Option<FaultSwitch>,
    in_flight: Cell<usize>,
    stopping: Cell<bool>,
    /// Whose turn it is to look at many records.
    pub(crate) turns: Turns,
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
            turns: Turns::default(),
        })
    }

    /// Starts what goes on without any client. On one worker of a node, once.
    pub fn start_upkeep(self: &Rc<Self>) {
        let shared = self.shared.clone();
        tokio::task::spawn_local(async move { trees::keep_built(&shared).await });
        tokio::task::spawn_local(recovery::recover(self.clone()));
        tokio::task::spawn_local(hints::deliver(self.clone()));
        tokio::task::spawn_local(repair::rounds(self.clone()));
        tokio::task::spawn_local(reaper::reap(self.clone()));
        tokio::task::spawn_local(clocks::compare(self.clone()));
        tokio::task::spawn_local(gossip::tick(self.clone()));
        tokio::task::spawn_local(transition::tell(self.clone()));
        tokio::task::spawn_local(transition::go_through(self.clone()));
        if self.shared.settings.transfer.auto_commit {
            tokio::task::spawn_local(administer::join_who_waits(self.clone()));
        }
    }

    /// Keeps this worker's connections in step with the membership. On every worker.
    pub fn follow_members(self: &Rc<Self>) {
        tokio::task::spawn_local(gossip::follow(self.clone()));
    }

    /// The layouts that the node goes by.
    pub fn view(&self) -> Arc<View> {
        self.shared.view()
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
        let config = &self.shared.settings.coordinator;
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
        let about_itself =
            matches!(request, ClientRequest::Status | ClientRequest::Cluster(_) | ClientRequest::Layout);
        if self.stopping.get() || (self.shared.is_drained() && !about_itself && !forwarded) {
            let what = "the node is stopping: what it takes".to_owned();
            return reply.send(Err(RequestError::Overloaded { what, limit: 0 }));
        }
        if self.shared.view().removed && !about_itself {
            let what = "this node was taken out of the cluster while it was away, and what it holds is from before: stop it, \
                        and start it with an empty data folder to join again; what it takes"
                .to_owned();
            return reply.send(Err(RequestError::Overloaded { what, limit: 0 }));
        }
        let limit = self.shared.settings.coordinator.max_in_flight;
        if self.in_flight.get() >= limit {
            let what = "requests under way on this worker ([coordinator] max_in_flight)".to_owned();
            return reply.send(Err(RequestError::Overloaded { what, limit: limit as u64 }));
        }
        self.in_flight.set(self.in_flight.get() + 1);
        self.shared.in_flight.fetch_add(1, Ordering::Relaxed);
        let reply = Observed::watch(&self.shared, &request, reply);
        let deadline = self.deadline(timeout);
        let node = self.clone();
        tokio::task::spawn_local(async move {
            let _guard = InFlight(&node);
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
            ClientRequest::Repair { start } => {
                if start {
                    self.shared.repairs_asked.fetch_add(1, Ordering::AcqRel);
                }
                Ok(report(repair::status(&self.shared)))
            }
            ClientRequest::Layout => Ok(ClientReply::Layout(self.shared.view().read.encode().into())),
            ClientRequest::Cluster(request) => administer::run(self, request, deadline).await,
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
            let (one_way, name) = match name.strip_prefix('>') {
                Some(name) => (true, name),
                None => (false, name.as_str()),
            };
            let member = transition::everybody(self).into_iter().find(|member| member.name == name);
            let member =
                member.ok_or_else(|| RequestError::invalid(format!("no member is called {name:?}")))?;
            nodes.push(Fault { peer: member.id, one_way });
        }
        switch(nodes).map_err(RequestError::invalid)
    }

    fn status(&self) -> Status {
        let shared = &self.shared;
        let view = shared.view();
        let layout = view.newest();
        let states: BTreeMap<NodeId, MemberState> =
            gossip::view(shared).into_iter().map(|view| (view.member.id, view.state)).collect();
        let leaving = view.active.iter().flat_map(|layout| layout.members());
        let leaving = leaving.filter(|member| layout.member(member.id).is_none());
        let leaving: BTreeMap<NodeId, &Member> = leaving.map(|member| (member.id, member)).collect();
        let members = layout.members().iter().chain(leaving.into_values()).map(|member| {
            let Load { partitions, first } = layout.load_of(member.id);
            let suspected = states.get(&member.id) == Some(&MemberState::Suspected);
            let state = match (self.is_live(member.id), suspected) {
                (true, _) => "up",
                (false, true) => "down, suspected by all",
                (false, false) => "down",
            };
            MemberStatus {
                name: member.name.clone(),
                address: self.transport.address(member.id).unwrap_or_else(|| member.address.clone()),
                zone: member.zone.clone(),
                state: state.to_owned(),
                partitions,
                first,
                trouble: self.transport.trouble(member.id),
            }
        });
        let upkeep = shared.upkeep();
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
            hints: upkeep.hints_for.iter().map(|hints| hints.hints).sum(),
            hints_for: upkeep.hints_for,
            recovering: upkeep.recovering as u32,
            clock_trouble: upkeep.clock_trouble,
            repair: upkeep.repair,
            reaping: upkeep.reaping,
            change: administer::change_report(self),
            removed: view.removed,
            members: members.collect(),
        }
    }
}

/// Tells of a request's outcome as its answer goes by.
struct Observed {
    shared: Arc<Shared>,
    verb: &'static str,
    request: Option<RequestId>,
    begun: Instant,
    reply: Cell<Option<ReplyTo<ClientResult>>>,
}

impl Observed {
    fn watch(
        shared: &Arc<Shared>,
        request: &ClientRequest,
        reply: ReplyTo<ClientResult>,
    ) -> ReplyTo<ClientResult> {
        let (verb, request) = match request {
            ClientRequest::Get(_) => ("get", None),
            ClientRequest::Put(put) => ("put", Some(put.request)),
            ClientRequest::Scan(_) => ("scan", None),
            _ => return reply,
        };
        let (shared, reply) = (shared.clone(), Cell::new(Some(reply)));
        ReplyTo::new(Rc::new(Observed { shared, verb, request, begun: Instant::now(), reply }), 0)
    }
}

impl ReplySink<ClientResult> for Observed {
    fn reply(&self, _: u64, answer: Option<ClientResult>) {
        let (Some(reply), Some(answer)) = (self.reply.take(), answer) else { return };
        let (outcome, acked, siblings, hinted) = match &answer {
            Ok(ClientReply::Get(get)) => ("ok", get.receipt.acked.len(), get.siblings.len(), 0),
            Ok(ClientReply::Put(put)) => ("ok", put.receipt.acked.len(), 0, put.hinted),
            Ok(_) => ("ok", 0, 0, 0),
            Err(error) => (error.name(), 0, 0, 0),
        };
        let kind = EventKind::Served {
            verb: self.verb,
            outcome,
            micros: self.begun.elapsed().as_micros() as u64,
            acked: acked as u8,
            siblings: siblings as u32,
            hinted,
        };
        self.shared.emit(self.request, kind);
        reply.send(answer);
    }
}

struct InFlight<'a>(&'a Node);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
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

    fn peer(&self, from: NodeId, batch: Vec<Incoming<PeerRequest, PeerResult>>) {
        let mut writes = Vec::new();
        // Who was taken out, or is not in yet, must not change anything.
        let view = self.0.shared.view();
        let takes_part = view.is_participant(from) && !view.removed && self.0.shared.is_confirmed();
        drop(view);
        for Incoming { request, timeout, reply } in batch {
            match request {
                PeerRequest::Gossip(message) => gossip::receive(&self.0, from, &message, reply),
                PeerRequest::News(news) => reply.send(transition::answer(&self.0, from, &news)),
                request if !takes_part && !is_for_everybody(&request) => {
                    let detail = "it has no part in the layout here".to_owned();
                    reply.send(Err(PeerError::Refused { detail }));
                }
                PeerRequest::Write(write) => writes.push(ToStore { write, timeout, reply }),
                other => self.0.answer_peer(other, timeout, reply),
            }
        }
        self.0.replica.take(writes);
    }
}

impl Node {
    /// Answers with what a look finds, unless its turn comes too late.
    fn look_soon(
        self: &Rc<Self>,
        timeout: Duration,
        reply: ReplyTo<PeerResult>,
        look: impl FnOnce(&Node) -> (PeerResult, usize) + 'static,
    ) {
        let node = self.clone();
        let deadline = Instant::now() + timeout;
        tokio::task::spawn_local(async move {
            let in_time = || match Instant::now() < deadline {
                true => look(&node),
                false => (Err(PeerError::Expired), 0),
            };
            let tell = || {
                let (answer, cost) = in_time();
                reply.send(answer);
                ((), cost)
            };
            node.turns.look(tell).await;
        });
    }

    /// Answers what a peer, or this node itself, asks.
    pub(crate) fn answer_peer(
        self: &Rc<Self>,
        request: PeerRequest,
        timeout: Duration,
        reply: ReplyTo<PeerResult>,
    ) {
        let shared = &self.shared;
        match request {
            PeerRequest::Read { key, layout } => reply.send(self.replica.read(&key, layout)),
            PeerRequest::ReadHints(key) if u32::from(key.partition().0) < shared.partitions() => {
                reply.send(self.replica.read_hints(&key));
            }
            PeerRequest::ReadHints(_) => {
                reply.send(Err(PeerError::Refused { detail: "no such partition".into() }));
            }
            PeerRequest::Fetch(key) => reply.send(self.replica.fetch(&key)),
            PeerRequest::Write(write) => self.replica.take(vec![ToStore { write, timeout, reply }]),
            PeerRequest::ScanPartition(scan) => {
                self.look_soon(timeout, reply, move |node| {
                    let answer = node.replica.scan(&scan);
                    let cost = match &answer {
                        Ok(PeerReply::Page(page)) => cost_of(&page.records),
                        _ => 0,
                    };
                    (answer, cost)
                });
            }
            PeerRequest::Forward(request) => {
                let answer = ReplyTo::new(Rc::new(Forwarded(Cell::new(Some(reply)))), 0);
                self.begin(request, timeout, true, answer);
            }
            PeerRequest::Roots(roots) => reply.send(repair::compare(shared, &roots)),
            PeerRequest::Leaves(tree) if u32::from(tree.partition.0) < shared.partitions() => {
                let leaves = shared.trees.tree(tree).map(|tree| PeerReply::Leaves(tree.leaves().to_vec()));
                reply.send(leaves.ok_or(PeerError::Recovering));
            }
            PeerRequest::Leaves(_) => {
                reply.send(Err(PeerError::Refused { detail: "no such partition".into() }));
            }
            PeerRequest::Digests(wanted) => self.look_soon(timeout, reply, move |node| {
                let (page, cost) = sync::digest_page(&node.shared, &wanted);
                (page.map(PeerReply::Digests), cost)
            }),
            PeerRequest::HeldDurably(keys) => self.replica.held_durably(keys, reply),
            PeerRequest::MayReap { keys, layout } => reply.send(reaper::may_reap(shared, &keys, layout)),
            PeerRequest::Reap(reap) => self.replica.reap(reap, reply),
            PeerRequest::Clock => reply.send(Ok(PeerReply::Clock(shared.environment.wall_ms()))),
            PeerRequest::Layouts => {
                reply.send(Ok(PeerReply::Layouts(shared.layouts.look(Layouts::encode).into())));
            }
            PeerRequest::Gossip(_) | PeerRequest::News(_) => {
                reply.send(Err(PeerError::Refused { detail: "gossip comes from a peer".into() }));
            }
        }
    }
}

/// What whoever belongs to the cluster may ask, with or without a part in its layout.
fn is_for_everybody(request: &PeerRequest) -> bool {
    matches!(request, PeerRequest::Layouts | PeerRequest::Clock | PeerRequest::Forward(_))
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

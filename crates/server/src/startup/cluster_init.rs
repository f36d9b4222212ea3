//! Cluster init: gives a layout to a node that has none.
//!
//! The node gossips until one of two things happens. If it finds a peer that has a layout, the node
//! adopts that layout. If it finds as many members as expected, and none has a layout, all of them
//! compute the same first layout. Until then, the node serves only gossip, and peers that have a
//! layout accept only gossip from it.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_client::system::{System, duplex};
use quorate_core::admission::Identity;
use quorate_core::environment::Environment;
use quorate_core::event::EventSink;
use quorate_core::layout_change::Layouts;
use quorate_core::membership::{ClusterInit, MemberState, OutgoingMessage};
use quorate_core::request::{ClientRequest, ClientResult, PeerError, PeerReply, PeerRequest, PeerResult};
use quorate_core::seams::{Incoming, NodeService, PeerTransport, ReplyTo};
use quorate_core::{Layout, Member, NodeId, RequestError};
use quorate_node::LAYOUT_KEY;
use quorate_rpc::batch_sender::PeerQueues;
use quorate_rpc::network::Network;
use quorate_rpc::peers::Peers;
use quorate_rpc::serve::serve_connection;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::oneshot;

use super::faults::{PeerCuts, network};
use super::membership::{SharedMembership, dial_seeds, lock};
use super::signals::StopSignals;
use crate::config::{Config, ConfigError};
use crate::telemetry::LogEvents;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Timeout of a request to a peer.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);
/// Number of polls between two log lines that say why the node still waits for a layout.
const POLLS_PER_LOG_LINE: u64 = 50;
/// Name of a metadata entry that nodes publish by gossip. Its value is the digest, in hexadecimal,
/// of the first layout that the node proposes.
const PROPOSAL_KEY: &str = "proposal";

/// Gossips until this node has a layout. Returns `None` if the process is told to stop meanwhile.
///
/// # Errors
/// If the network fails, or the members that found each other make no valid layout.
pub(super) fn discover_layout(
    config: &Config,
    cluster_init: &ClusterInit,
    membership: SharedMembership,
    listener: &TcpListener,
    cuts: Option<&Arc<PeerCuts>>,
) -> Result<Option<Layouts>, ConfigError> {
    let failed = |error: std::io::Error| ConfigError::new(format!("cannot accept connections: {error}"));
    let listener = listener.try_clone().map_err(failed)?;
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.map_err(failed)?.block_on(async {
        let mut stop = StopSignals::catch().map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        tracing::info!(expect = cluster_init.expect, seeds = ?cluster_init.seeds, "searching for a cluster");
        let discovery = LayoutDiscovery {
            config,
            cluster_init,
            identity: config.identity(0),
            membership,
            network: network(cuts),
            environment: Arc::new(System::new()),
            events: Arc::new(LogEvents),
        };
        tokio::select! {
            biased;
            () = stop.received() => Ok(None),
            layouts = discovery.run(&listener) => layouts.map(Some),
        }
    })
}

/// The search of a node for its first layout.
struct LayoutDiscovery<'a> {
    config: &'a Config,
    cluster_init: &'a ClusterInit,
    identity: Identity,
    membership: SharedMembership,
    network: Rc<dyn Network>,
    environment: Arc<dyn Environment>,
    events: Arc<dyn EventSink>,
}

/// Next step after one poll.
enum DiscoveryStep {
    /// All expected members computed this first layout: the cluster begins with it.
    Init(Layout),
    /// These nodes have a layout: adopt theirs.
    Adopt(Vec<NodeId>),
    /// Poll again; the reason is for the log.
    Wait(String),
}

impl LayoutDiscovery<'_> {
    async fn run(self, listener: &tokio::net::TcpListener) -> Result<Layouts, ConfigError> {
        let peers = Peers::start(
            Vec::new(),
            self.identity.clone(),
            self.network.clone(),
            self.environment.clone(),
            self.events.clone(),
            PeerQueues::default(),
        );
        let seeds = tokio::task::spawn_local(dial_seeds(
            self.cluster_init.seeds.clone(),
            self.identity.clone(),
            self.network.clone(),
            self.membership.clone(),
        ));
        let service = Rc::new(GossipOnlyService {
            membership: self.membership.clone(),
            peers: peers.clone(),
            environment: self.environment.clone(),
        });
        let layouts = tokio::select! {
            biased;
            layouts = self.poll(&peers) => layouts,
            never = self.accept(listener, service, peers.clone()) => match never {},
        };
        seeds.abort();
        layouts
    }

    async fn accept(
        &self,
        listener: &tokio::net::TcpListener,
        service: Rc<GossipOnlyService>,
        peers: Rc<Peers>,
    ) -> std::convert::Infallible {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(POLL_INTERVAL).await;
                continue;
            };
            let Ok(duplex) = duplex(stream) else { continue };
            let (identity, service, network, peers) =
                (self.identity.clone(), service.clone(), self.network.clone(), peers.clone());
            tokio::task::spawn_local(async move {
                let on_peer = |peer| peers.hurry(peer);
                serve_connection(duplex, &from.to_string(), &identity, service, network, on_peer).await;
            });
        }
    }

    /// Gossips and decides the next step, once in each `POLL_INTERVAL`, until this node has
    /// layouts.
    async fn poll(&self, peers: &Rc<Peers>) -> Result<Layouts, ConfigError> {
        let this = self.identity.node;
        let mut polls = 0u64;
        loop {
            self.gossip(peers);
            match self.decide(peers)? {
                DiscoveryStep::Init(layout) => return Ok(Layouts::settled(this, layout)),
                DiscoveryStep::Adopt(holders) => {
                    for holder in holders {
                        if let Some(theirs) = fetch_layouts(peers, this, holder).await {
                            return Ok(Layouts::first_of(this, theirs));
                        }
                    }
                }
                DiscoveryStep::Wait(reason) if polls % POLLS_PER_LOG_LINE == POLLS_PER_LOG_LINE - 1 => {
                    tracing::info!("waiting for a layout: {reason}");
                }
                DiscoveryStep::Wait(_) => {}
            }
            polls += 1;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Sends the gossip messages that are due, and connects to the members that the membership
    /// plugin has found.
    fn gossip(&self, peers: &Rc<Peers>) {
        let now_ms = self.environment.monotonic_ms();
        let outgoing = lock(&self.membership).tick(now_ms);
        send_gossip(&**peers, outgoing);
        for view in lock(&self.membership).view() {
            if view.member.id != self.identity.node {
                peers.meet(view.member);
            }
        }
    }

    fn decide(&self, peers: &Peers) -> Result<DiscoveryStep, ConfigError> {
        let mut membership = lock(&self.membership);
        let views = membership.view();
        let members: Vec<Member> = views
            .into_iter()
            .filter(|view| view.state != MemberState::Left)
            .map(|view| view.member)
            .collect();
        let metadata: BTreeMap<NodeId, Vec<(String, Vec<u8>)>> =
            members.iter().map(|member| (member.id, membership.metadata(member.id))).collect();
        let published = |node: NodeId, key: &str| {
            metadata[&node].iter().find(|(name, _)| name == key).map(|(_, value)| value.clone())
        };
        // A node has a layout if its metadata or its introduction says so. `is_up` is true only for
        // a connected node whose introduction said so.
        let has_layout = |&node: &NodeId| published(node, LAYOUT_KEY).is_some() || peers.is_up(node);
        let holders: Vec<NodeId> = members.iter().map(|member| member.id).filter(has_layout).collect();
        if !holders.is_empty() {
            return Ok(DiscoveryStep::Adopt(holders));
        }
        if members.len() != self.cluster_init.expect {
            let (have, expect) = (members.len(), self.cluster_init.expect);
            return Ok(DiscoveryStep::Wait(format!("{have} members found, [membership] expect = {expect}")));
        }
        let layout = self.config.first_layout(members.clone())?;
        let digest = format!("{:016x}", layout.digest()).into_bytes();
        membership.publish(PROPOSAL_KEY, &digest);
        let agrees = |member: &&Member| {
            member.id == self.identity.node || published(member.id, PROPOSAL_KEY).as_ref() == Some(&digest)
        };
        match members.iter().find(|member| !agrees(member)) {
            None => Ok(DiscoveryStep::Init(layout)),
            Some(member) => Ok(DiscoveryStep::Wait(format!(
                "{} has not yet found the same members as this node",
                member.name
            ))),
        }
    }
}

/// Asks a peer for the layouts that it knows.
async fn fetch_layouts(peers: &Rc<Peers>, this: NodeId, holder: NodeId) -> Option<Layouts> {
    let (sender, receiver) = oneshot::channel();
    let reply = ReplyTo::call(move |answer: PeerResult| {
        let _ = sender.send(answer);
    });
    peers.send(holder, PeerRequest::Layouts, PEER_TIMEOUT, reply);
    match tokio::time::timeout(PEER_TIMEOUT, receiver).await.ok()?.ok()? {
        Ok(PeerReply::Layouts(bytes)) => Layouts::decode(this, &bytes).ok(),
        _ => None,
    }
}

fn send_gossip(peers: &dyn PeerTransport, outgoing: Vec<OutgoingMessage>) {
    for OutgoingMessage { to, message } in outgoing {
        peers.send(to, PeerRequest::Gossip(message.into()), PEER_TIMEOUT, ReplyTo::ignored());
    }
}

/// The service of a node without a layout: takes gossip, and refuses all other requests.
struct GossipOnlyService {
    membership: SharedMembership,
    peers: Rc<Peers>,
    environment: Arc<dyn Environment>,
}

impl NodeService for GossipOnlyService {
    fn client(&self, batch: Vec<Incoming<ClientRequest, ClientResult>>) {
        for incoming in batch {
            let what = "this node has not found its cluster yet".to_owned();
            incoming.reply.send(Err(RequestError::Overloaded { what, limit: 0 }));
        }
    }

    fn peer(&self, from: NodeId, batch: Vec<Incoming<PeerRequest, PeerResult>>) {
        for Incoming { request, reply, .. } in batch {
            let PeerRequest::Gossip(message) = request else {
                reply.send(Err(PeerError::Refused { detail: "this node has no layout yet".into() }));
                continue;
            };
            let now_ms = self.environment.monotonic_ms();
            let outgoing = lock(&self.membership).receive(from, &message, now_ms);
            send_gossip(&*self.peers, outgoing);
            reply.send(Ok(PeerReply::Acked));
        }
    }
}

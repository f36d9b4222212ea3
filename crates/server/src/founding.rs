//! How a node comes to its layout: the one it had, the one its cluster has, or, where nodes find each other for the first
//! time, the one that all of them work out alike.
//!
//! Until then it only gossips: it serves nothing, and peers that have a layout admit it for that alone.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_node::gossip::LAYOUT_FACT;
use quorate_core::admission::Identity;
use quorate_core::environment::Environment;
use quorate_core::event::EventSink;
use quorate_core::membership::{Founding, MemberState, Membership, Outgoing};
use quorate_core::request::{ClientRequest, ClientResult, PeerError, PeerReply, PeerRequest, PeerResult};
use quorate_core::seams::{Incoming, NodeService, PeerTransport, ReplySink, ReplyTo};
use quorate_core::transition::Layouts;
use quorate_core::{Layout, Member, NodeId, RequestError};
use quorate_rpc::lane::PeerQueues;
use quorate_rpc::network::Network;
use quorate_rpc::peers::Peers;
use quorate_rpc::preamble::introduce;
use quorate_rpc::serve::serve_connection;
use tokio::sync::oneshot;

use crate::config::{Config, ConfigError};

const LOOK_EVERY: Duration = Duration::from_millis(100);
const SEEDS_EVERY: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often it is logged what the node waits for.
const TELL_EVERY_LOOKS: u64 = 50;
/// The fact under which a node without a layout publishes the digest of the one it would found.
const PROPOSAL_FACT: &str = "proposal";

/// The membership, as the node's parts share it.
pub(crate) type SharedMembership = Arc<Mutex<Box<dyn Membership>>>;

fn lock(membership: &SharedMembership) -> MutexGuard<'_, Box<dyn Membership>> {
    membership.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a node that looks for its layout has in hand.
pub(crate) struct Seeker {
    pub(crate) identity: Identity,
    pub(crate) membership: SharedMembership,
    pub(crate) network: Rc<dyn Network>,
    pub(crate) environment: Arc<dyn Environment>,
    pub(crate) events: Arc<dyn EventSink>,
}

impl Seeker {
    /// Gossips until there is a layout.
    ///
    /// # Errors
    /// If the members that found each other make none.
    pub(crate) async fn find_layout(
        self,
        listener: &tokio::net::TcpListener,
        config: &Config,
        founding: &Founding,
    ) -> Result<Layouts, ConfigError> {
        let peers = Peers::start(
            Vec::new(),
            self.identity.clone(),
            self.network.clone(),
            self.environment.clone(),
            self.events.clone(),
            PeerQueues::default(),
        );
        let seeds = tokio::task::spawn_local(follow_seeds(
            founding.seeds.clone(),
            self.identity.clone(),
            self.network.clone(),
            self.membership.clone(),
        ));
        let service = Rc::new(Listening {
            membership: self.membership.clone(),
            peers: peers.clone(),
            environment: self.environment.clone(),
        });
        let found = tokio::select! {
            biased;
            found = self.seek(&peers, config, founding) => found,
            never = self.accept(listener, service, peers.clone()) => match never {},
        };
        seeds.abort();
        found
    }

    async fn accept(
        &self,
        listener: &tokio::net::TcpListener,
        service: Rc<Listening>,
        peers: Rc<Peers>,
    ) -> std::convert::Infallible {
        loop {
            let Ok((stream, from)) = listener.accept().await else {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            };
            let Ok(duplex) = quorate_client::system::duplex(stream) else { continue };
            let (identity, service, network, peers) =
                (self.identity.clone(), service.clone(), self.network.clone(), peers.clone());
            tokio::task::spawn_local(async move {
                let on_peer = |peer| peers.hurry(peer);
                serve_connection(duplex, &from.to_string(), &identity, service, network, on_peer).await;
            });
        }
    }

    async fn seek(
        &self,
        peers: &Rc<Peers>,
        config: &Config,
        founding: &Founding,
    ) -> Result<Layouts, ConfigError> {
        let mut looks = 0u64;
        loop {
            let now_ms = self.environment.monotonic_ms();
            let outgoing = lock(&self.membership).tick(now_ms);
            send(&**peers, outgoing);
            for view in lock(&self.membership).view() {
                if view.member.id != self.identity.node {
                    peers.meet(view.member);
                }
            }
            match self.decide(peers, config, founding)? {
                Decision::Found(layout) => return Ok(Layouts::settled(self.identity.node, layout)),
                Decision::Adopt(holders) => {
                    for holder in holders {
                        if let Some(theirs) = pull(peers, self.identity.node, holder).await {
                            return Ok(Layouts::first_of(self.identity.node, theirs));
                        }
                    }
                }
                Decision::Wait(why) if looks % TELL_EVERY_LOOKS == TELL_EVERY_LOOKS - 1 => {
                    tracing::info!("waiting for a layout: {why}");
                }
                Decision::Wait(_) => {}
            }
            looks += 1;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn decide(&self, peers: &Peers, config: &Config, founding: &Founding) -> Result<Decision, ConfigError> {
        let mut membership = lock(&self.membership);
        let views = membership.view();
        let members: Vec<Member> = views
            .into_iter()
            .filter(|view| view.state != MemberState::Left)
            .map(|view| view.member)
            .collect();
        let facts: BTreeMap<NodeId, Vec<(String, Vec<u8>)>> =
            members.iter().map(|member| (member.id, membership.facts(member.id))).collect();
        let fact = |of: NodeId, wanted: &str| {
            facts[&of].iter().find(|(name, _)| name == wanted).map(|(_, value)| value.clone())
        };
        // Who says so, or answers as one who has a layout.
        let holds = |&id: &NodeId| fact(id, LAYOUT_FACT).is_some() || peers.is_up(id);
        let holders: Vec<NodeId> = members.iter().map(|member| member.id).filter(holds).collect();
        if !holders.is_empty() {
            return Ok(Decision::Adopt(holders));
        }
        if members.len() != founding.expect {
            let (have, expect) = (members.len(), founding.expect);
            return Ok(Decision::Wait(format!("{have} members found, [membership] expect = {expect}")));
        }
        let layout = config.first_layout(members.clone())?;
        let digest = format!("{:016x}", layout.digest()).into_bytes();
        membership.publish(PROPOSAL_FACT, &digest);
        let agrees = |member: &&Member| {
            member.id == self.identity.node || fact(member.id, PROPOSAL_FACT).as_ref() == Some(&digest)
        };
        match members.iter().find(|member| !agrees(member)) {
            None => Ok(Decision::Found(layout)),
            Some(member) => Ok(Decision::Wait(format!("{} has not found the same members yet", member.name))),
        }
    }
}

enum Decision {
    Found(Layout),
    /// These have one.
    Adopt(Vec<NodeId>),
    Wait(String),
}

/// Asks a peer what it knows of layouts.
async fn pull(peers: &Rc<Peers>, this: NodeId, holder: NodeId) -> Option<Layouts> {
    let (sender, receiver) = oneshot::channel();
    let reply = ReplyTo::new(Rc::new(Once(std::cell::Cell::new(Some(sender)))), 0);
    peers.send(holder, PeerRequest::Layouts, TIMEOUT, reply);
    match tokio::time::timeout(TIMEOUT, receiver).await.ok()?.ok()?? {
        Ok(PeerReply::Layouts(bytes)) => Layouts::decode(this, &bytes).ok(),
        _ => None,
    }
}

/// Dials seeds that are no known member's address, until it is known who answers there.
pub(crate) async fn follow_seeds(
    seeds: Vec<String>,
    ours: Identity,
    network: Rc<dyn Network>,
    membership: SharedMembership,
) {
    loop {
        for seed in &seeds {
            let known = lock(&membership).view().iter().any(|view| view.member.address == *seed);
            if known {
                continue;
            }
            let ask = async {
                let mut duplex = network.connect(seed, None).await.ok()?;
                introduce(&mut duplex, Some(&ours)).await.ok()
            };
            if let Ok(Some(theirs)) = tokio::time::timeout(TIMEOUT, ask).await {
                let _ = lock(&membership).join(Member::new(&theirs.name, seed, ""));
            }
        }
        tokio::time::sleep(SEEDS_EVERY).await;
    }
}

fn send(peers: &dyn PeerTransport, outgoing: Vec<Outgoing>) {
    for Outgoing { to, message } in outgoing {
        let nobody = ReplyTo::new(Rc::new(Once(std::cell::Cell::new(None))), 0);
        peers.send(to, PeerRequest::Gossip(message.into()), TIMEOUT, nobody);
    }
}

struct Once(std::cell::Cell<Option<oneshot::Sender<Option<PeerResult>>>>);

impl ReplySink<PeerResult> for Once {
    fn reply(&self, _: u64, answer: Option<PeerResult>) {
        if let Some(sender) = self.0.take() {
            let _ = sender.send(answer);
        }
    }
}

/// What a node without a layout answers: gossip, and that it is not ready.
struct Listening {
    membership: SharedMembership,
    peers: Rc<Peers>,
    environment: Arc<dyn Environment>,
}

impl NodeService for Listening {
    fn client(&self, batch: Vec<Incoming<ClientRequest, ClientResult>>) {
        for incoming in batch {
            let what = "what a node takes that has not found its cluster yet".to_owned();
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
            send(&*self.peers, outgoing);
            reply.send(Ok(PeerReply::Acked));
        }
    }
}

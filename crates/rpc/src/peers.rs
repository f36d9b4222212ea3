//! Connections of one worker to the node's peers. They carry all requests to peers. A lost
//! connection is dialled again, after pauses that grow while the peer cannot be reached.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use quorate_core::admission::Identity;
use quorate_core::environment::Environment;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_core::request::{PeerError, PeerRequest, PeerResult};
use quorate_core::seams::{PeerTransport, ReplyTo};
use quorate_core::{Member, NodeId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::batch_sender::{BatchSender, PeerQueues, Waits};
use crate::convert::peer::PeerProtocol;
use crate::network::Network;
use crate::preamble::introduce;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Number of timed replies of a peer from which on its latency estimate is used.
const MIN_SAMPLES: u32 = 50;

/// Connections of one worker to all peers.
pub struct Peers {
    links: RefCell<BTreeMap<NodeId, Rc<Link>>>,
    dialler: Rc<Dialler>,
}

struct Link {
    member: RefCell<Member>,
    sender: RefCell<Option<Rc<BatchSender<PeerProtocol>>>>,
    /// True if the peer had a layout when this connection was opened. A peer without a layout is no
    /// replica yet, so it does not count as up.
    serves: Cell<bool>,
    last_error: RefCell<Option<String>>,
    hurry: Notify,
    latency: Latency,
}

impl Peers {
    /// Starts to connect to `peers`, and keeps the connections open for as long as this value
    /// lives. Each connection reports its number of waiting operations to `queues`.
    pub fn start(
        peers: Vec<Member>,
        ours: Identity,
        network: Rc<dyn Network>,
        environment: Arc<dyn Environment>,
        events: Arc<dyn EventSink>,
        queues: PeerQueues,
    ) -> Rc<Peers> {
        let dialler = Rc::new(Dialler { ours, network, environment, events, queues });
        let this = Rc::new(Peers { links: RefCell::default(), dialler });
        peers.into_iter().for_each(|member| this.meet(member));
        this
    }

    /// Ends the pause before `peer` is dialled again. Call it when that peer has just connected to
    /// this node, and therefore runs.
    pub fn hurry(&self, peer: NodeId) {
        if let Some(link) = self.link(peer) {
            link.hurry.notify_one();
        }
    }

    fn link(&self, node: NodeId) -> Option<Rc<Link>> {
        self.links.borrow().get(&node).cloned()
    }
}

impl PeerTransport for Peers {
    fn send(&self, to: NodeId, request: PeerRequest, timeout: Duration, reply: ReplyTo<PeerResult>) {
        let Some(link) = self.link(to) else {
            return reply.send(Err(PeerError::Disconnected));
        };
        let Some(sender) = link.sender.borrow().clone() else {
            return reply.send(Err(PeerError::Disconnected));
        };
        if matches!(request, PeerRequest::Read { .. }) {
            let sent = Instant::now();
            let timed = ReplyTo::call(move |answer: PeerResult| {
                if answer.is_ok() {
                    link.latency.sample(sent.elapsed());
                }
                reply.send(answer);
            });
            sender.send(request, timeout, timed);
        } else {
            sender.send(request, timeout, reply);
        }
    }

    fn meet(&self, member: Member) {
        let mut links = self.links.borrow_mut();
        if let Some(link) = links.get(&member.id) {
            let moved = link.member.borrow().address != member.address;
            *link.member.borrow_mut() = member;
            if moved {
                link.hurry.notify_one();
            }
            return;
        }
        let id = member.id;
        let link = Rc::new(Link {
            member: RefCell::new(member),
            sender: RefCell::new(None),
            serves: Cell::new(false),
            last_error: RefCell::new(None),
            hurry: Notify::new(),
            latency: Latency::default(),
        });
        tokio::task::spawn_local(self.dialler.clone().keep_connected(Rc::downgrade(&link)));
        links.insert(id, link);
    }

    fn address(&self, node: NodeId) -> Option<String> {
        self.link(node).map(|link| link.member.borrow().address.clone())
    }

    fn is_up(&self, node: NodeId) -> bool {
        self.links.borrow().get(&node).is_some_and(|link| link.serves.get() && link.sender.borrow().is_some())
    }

    fn last_error(&self, node: NodeId) -> Option<String> {
        self.link(node).and_then(|link| link.last_error.borrow().clone())
    }

    fn usual_latency(&self, node: NodeId) -> Option<Duration> {
        self.links.borrow().get(&node).and_then(|link| link.latency.p95())
    }
}

/// Running estimate of the latency that 95 of 100 replies do not exceed. A sample above the
/// estimate raises it by 19 × d, any other sample lowers it by d. The estimate is stable when 5 %
/// of the samples are above it: 5 × 19 = 95 × 1. d is 0.25 % of the estimate, at least 0.25 µs.
#[derive(Default)]
struct Latency {
    samples: Cell<u32>,
    p95_micros: Cell<f64>,
}

impl Latency {
    fn sample(&self, elapsed: Duration) {
        let micros = elapsed.as_micros() as f64;
        let samples = self.samples.get().saturating_add(1);
        self.samples.set(samples);
        let now = self.p95_micros.get();
        let step = (now * 0.01).max(1.0);
        let next = if samples == 1 {
            micros
        } else if micros > now {
            now + 19.0 * step / 4.0
        } else {
            now - step / 4.0
        };
        self.p95_micros.set(next.max(1.0));
    }

    fn p95(&self) -> Option<Duration> {
        (self.samples.get() >= MIN_SAMPLES).then(|| Duration::from_micros(self.p95_micros.get() as u64))
    }
}

struct Dialler {
    ours: Identity,
    network: Rc<dyn Network>,
    environment: Arc<dyn Environment>,
    events: Arc<dyn EventSink>,
    queues: PeerQueues,
}

impl Dialler {
    async fn keep_connected(self: Rc<Self>, link: std::rc::Weak<Link>) {
        let mut pause = FIRST_PAUSE;
        loop {
            let Some(strong) = link.upgrade() else { return };
            let name = strong.member.borrow().name.clone();
            match self.dial(&strong).await {
                Ok(sender) => {
                    pause = FIRST_PAUSE;
                    *strong.sender.borrow_mut() = Some(sender.clone());
                    *strong.last_error.borrow_mut() = None;
                    drop(strong);
                    self.emit(EventKind::PeerUp { peer: name.clone() });
                    let reason = sender.until_closed().await;
                    if let Some(strong) = link.upgrade() {
                        *strong.sender.borrow_mut() = None;
                    }
                    self.emit(EventKind::PeerDown { peer: name, reason });
                }
                Err(reason) => {
                    let first = strong.last_error.borrow().as_ref() != Some(&reason);
                    *strong.last_error.borrow_mut() = Some(reason.clone());
                    drop(strong);
                    if first {
                        self.emit(EventKind::PeerUnreachable { peer: name, reason });
                    }
                }
            }
            // The wait is random, between half the pause and the whole pause. Otherwise many nodes
            // could dial one peer at the same moments.
            let jitter = self.environment.random() % 1024;
            let Some(strong) = link.upgrade() else { return };
            let wait = pause.mul_f64(0.5 + jitter as f64 / 2048.0);
            let _ = tokio::time::timeout(wait, strong.hurry.notified()).await;
            drop(strong);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn dial(&self, link: &Link) -> Result<Rc<BatchSender<PeerProtocol>>, String> {
        let member = link.member.borrow().clone();
        let connect = self.network.connect(&member.address, Some(member.id));
        let mut duplex = match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(duplex)) => duplex,
            Ok(Err(error)) => return Err(format!("{}: {error}", member.address)),
            Err(_) => {
                return Err(format!("{}: no connection within {CONNECT_TIMEOUT:?}", member.address));
            }
        };
        let theirs = introduce(&mut duplex, Some(&self.ours))
            .await
            .map_err(|error| format!("{}: {error}", member.address))?;
        if theirs.node != member.id {
            return Err(format!(
                "{} is the address of node {:?}, not of {:?}: check [node] advertise of both nodes",
                member.address, theirs.name, member.name
            ));
        }
        link.serves.set(theirs.layout_digest != 0);
        Ok(BatchSender::open_between_nodes(duplex, Waits::new(self.queues.clone(), member.id)))
    }

    fn emit(&self, kind: EventKind) {
        let at_ms = self.environment.wall_ms();
        self.events.emit(Event { at_ms, node: self.ours.node, request: None, kind });
    }
}

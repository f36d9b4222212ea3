//! The choice of a node for each request, and the connections to the nodes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::request::ClientRequest;
use quorate_core::seams::ReplyTo;
use quorate_core::{Layout, PartitionId};
use quorate_rpc::batch_sender::BatchSender;
use quorate_rpc::network::Network;
use quorate_rpc::preamble::introduce;
use quorate_rpc::{ClientAnswer, ClientProtocol};
use tokio::sync::{Mutex, oneshot};
use tokio::time::Instant;

/// Longest time of a connection attempt, and of a probe. A probe tests if an avoided node answers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Time from a node's first failure to the probe that follows it. Each further failure doubles the
/// time.
const FIRST_AVOIDANCE: Duration = Duration::from_millis(100);
/// Longest time from a failure to the next probe.
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(2);

/// A node as this client knows it.
pub(crate) struct Route {
    pub(crate) address: String,
    sender: RefCell<Option<Rc<BatchSender<ClientProtocol>>>>,
    /// Time from which the node may be probed. Set from a failure until the node answers again.
    /// Meanwhile requests go to other nodes, if there are any.
    probe_at: Cell<Option<Instant>>,
    avoidance: Cell<Duration>,
    /// Held by the one connection attempt that is under way. Requests without a connection wait for
    /// that attempt together.
    connecting: Mutex<()>,
}

impl Route {
    fn new(address: String) -> Rc<Route> {
        Rc::new(Route {
            address,
            sender: RefCell::new(None),
            probe_at: Cell::new(None),
            avoidance: Cell::new(FIRST_AVOIDANCE),
            connecting: Mutex::new(()),
        })
    }

    fn open_sender(&self) -> Option<Rc<BatchSender<ClientProtocol>>> {
        self.sender.borrow().clone().filter(|sender| sender.closed().is_none())
    }

    /// Returns the open connection, or opens one. If this fails, no request has been sent.
    pub(crate) async fn sender(
        &self,
        network: &dyn Network,
        deadline: Instant,
    ) -> Result<Rc<BatchSender<ClientProtocol>>, String> {
        if let Some(sender) = self.open_sender() {
            return Ok(sender);
        }
        let _one = self.connecting.lock().await;
        if let Some(sender) = self.open_sender() {
            return Ok(sender);
        }
        let until = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let opened = tokio::time::timeout_at(until, async {
            let mut duplex = network.connect(&self.address, None).await.map_err(|error| error.to_string())?;
            introduce(&mut duplex, None).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(BatchSender::open(duplex))
        });
        let opened = opened.await.unwrap_or_else(|_| Err("no connection in time".to_owned()));
        match opened {
            Ok(sender) => {
                *self.sender.borrow_mut() = Some(sender.clone());
                self.answered();
                Ok(sender)
            }
            Err(reason) => {
                self.avoid();
                Err(format!("{}: {reason}", self.address))
            }
        }
    }

    /// Avoids this node, because it did not answer. An open connection stays open, because other
    /// requests may still be answered on it.
    pub(crate) fn avoid(&self) {
        let pause = self.avoidance.get();
        self.probe_at.set(Some(Instant::now() + pause));
        self.avoidance.set((pause * 2).min(LONGEST_AVOIDANCE));
    }

    /// Stops avoiding this node, because it answered.
    pub(crate) fn answered(&self) {
        if self.probe_at.get().is_some() {
            self.probe_at.set(None);
            self.avoidance.set(FIRST_AVOIDANCE);
        }
    }

    /// True while requests avoid this node. False again if its probe is long overdue: a request
    /// must then serve as the probe. This happens if the event loop did not run, as between the
    /// calls of a synchronous client.
    fn is_avoided(&self, now: Instant) -> bool {
        self.probe_at.get().is_some_and(|at| at + CONNECT_TIMEOUT > now)
    }

    /// Probes an avoided node in the background, once its probe is due. A frozen node accepts
    /// connections and answers nothing, so that a request sent to it would lose time.
    fn probe(self: &Rc<Self>, network: &Rc<dyn Network>, now: Instant) {
        if self.probe_at.get().is_none_or(|at| at > now) {
            return;
        }
        let until = now + CONNECT_TIMEOUT;
        self.probe_at.set(Some(until));
        let (route, network) = (self.clone(), network.clone());
        tokio::task::spawn_local(async move {
            let Some(sender) = route.open_sender() else {
                let _ = route.sender(&*network, until).await;
                return;
            };
            let (arrived, answer) = oneshot::channel();
            let reply = ReplyTo::call(move |answer| {
                let _ = arrived.send(answer);
            });
            sender.send(ClientRequest::Ping, CONNECT_TIMEOUT, reply);
            match tokio::time::timeout_at(until, answer).await {
                Ok(Ok(ClientAnswer::Result(_))) => route.answered(),
                _ => route.avoid(),
            }
        });
    }
}

/// All nodes that this client knows.
pub(crate) struct Routes {
    seeds: Vec<Rc<Route>>,
    known: RefCell<BTreeMap<String, Rc<Route>>>,
    layout: RefCell<Option<Layout>>,
    /// The route to each partition's first replica.
    first_replicas: RefCell<Vec<Option<Rc<Route>>>>,
}

impl Routes {
    pub(crate) fn new(seeds: &[String]) -> Routes {
        let seeds: Vec<Rc<Route>> = seeds.iter().map(|address| Route::new(address.clone())).collect();
        let known = seeds.iter().map(|route| (route.address.clone(), route.clone())).collect();
        Routes {
            seeds,
            known: RefCell::new(known),
            layout: RefCell::new(None),
            first_replicas: RefCell::default(),
        }
    }

    /// True if a layout of this number is newer than the one that this client uses.
    pub(crate) fn is_newer(&self, number: u64) -> bool {
        self.layout.borrow().as_ref().is_some_and(|layout| layout.number() < number)
    }

    /// Chooses nodes by this layout from now on.
    pub(crate) fn follow(&self, layout: Layout) {
        let mut known = self.known.borrow_mut();
        // Forget nodes that left the cluster, except the seeds that the user named.
        let is_member_or_seed = |address: &String| {
            layout.members().iter().any(|member| member.address == *address)
                || self.seeds.iter().any(|seed| seed.address == *address)
        };
        known.retain(|address, _| is_member_or_seed(address));
        for member in layout.members() {
            known.entry(member.address.clone()).or_insert_with(|| Route::new(member.address.clone()));
        }
        let first = |partition| {
            let replica = layout.replicas_of(PartitionId(partition), 1).first()?;
            known.get(&layout.member(*replica)?.address).cloned()
        };
        *self.first_replicas.borrow_mut() =
            (0..layout.partitions()).map(|partition| first(partition as u16)).collect();
        drop(known);
        *self.layout.borrow_mut() = Some(layout);
    }

    /// Returns the key's first replica, if it is connected and not avoided. This is the usual case,
    /// and needs no list of candidates.
    pub(crate) fn first(&self, key_hash: u64) -> Option<Rc<Route>> {
        let first = self.first_replicas.borrow();
        let layout = self.layout.borrow();
        let partition = layout.as_ref()?.partition_of(key_hash);
        let route = first.get(partition.0 as usize)?.as_ref()?;
        (route.probe_at.get().is_none() && route.open_sender().is_some()).then(|| route.clone())
    }

    /// Returns the nodes to try, best first. They are the replicas of the key in order, if there is
    /// a key, and then the other nodes. Avoided nodes come last. Probes avoided nodes whose probe
    /// is due, if another node is available.
    pub(crate) fn candidates(&self, key_hash: Option<u64>, network: &Rc<dyn Network>) -> Vec<Rc<Route>> {
        let known = self.known.borrow();
        let mut candidates: Vec<Rc<Route>> = Vec::with_capacity(known.len());
        if let (Some(layout), Some(hash)) = (&*self.layout.borrow(), key_hash) {
            for &replica in layout.replicas_of(layout.partition_of(hash), u8::MAX) {
                let route = layout.member(replica).and_then(|member| known.get(&member.address));
                candidates.extend(route.cloned());
            }
        }
        for route in self.seeds.iter().chain(known.values()) {
            if !candidates.iter().any(|other| Rc::ptr_eq(other, route)) {
                candidates.push(route.clone());
            }
        }
        let now = Instant::now();
        candidates.sort_by_key(|route| route.is_avoided(now));
        if candidates.first().is_some_and(|best| !best.is_avoided(now)) {
            candidates.iter().for_each(|route| route.probe(network, now));
        }
        candidates
    }

    pub(crate) fn close(&self) {
        for route in self.known.borrow().values() {
            if let Some(sender) = route.sender.borrow_mut().take() {
                sender.close("the client was closed");
            }
        }
    }
}

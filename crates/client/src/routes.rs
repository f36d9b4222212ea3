//! Which node to send a request to, and the connections to them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::{Layout, PartitionId};
use quorate_rpc::ClientProtocol;
use quorate_rpc::lane::Lane;
use quorate_rpc::network::Network;
use quorate_rpc::preamble::introduce;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a connection attempt may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a node that could not be reached is passed over: this at first, doubled up to the second.
const FIRST_AVOIDANCE: Duration = Duration::from_millis(100);
const LONGEST_AVOIDANCE: Duration = Duration::from_secs(2);

/// A node as this client knows it.
pub(crate) struct Route {
    pub(crate) address: String,
    lane: RefCell<Option<Rc<Lane<ClientProtocol>>>>,
    avoid_until: Cell<Option<Instant>>,
    avoidance: Cell<Duration>,
    /// One connection attempt at a time: requests that find none wait for it together.
    connecting: Mutex<()>,
}

impl Route {
    fn new(address: String) -> Rc<Route> {
        Rc::new(Route {
            address,
            lane: RefCell::new(None),
            avoid_until: Cell::new(None),
            avoidance: Cell::new(FIRST_AVOIDANCE),
            connecting: Mutex::new(()),
        })
    }

    fn open_lane(&self) -> Option<Rc<Lane<ClientProtocol>>> {
        self.lane.borrow().clone().filter(|lane| lane.closed().is_none())
    }

    /// The open connection, or a new one. Nothing has been sent if this fails.
    pub(crate) async fn lane(
        &self,
        network: &dyn Network,
        deadline: Instant,
    ) -> Result<Rc<Lane<ClientProtocol>>, String> {
        if let Some(lane) = self.open_lane() {
            return Ok(lane);
        }
        let _one = self.connecting.lock().await;
        if let Some(lane) = self.open_lane() {
            return Ok(lane);
        }
        let until = deadline.min(Instant::now() + CONNECT_TIMEOUT);
        let opened = tokio::time::timeout_at(until, async {
            let mut duplex = network.connect(&self.address, None).await.map_err(|error| error.to_string())?;
            introduce(&mut duplex, None).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(Lane::open(duplex, false))
        });
        let opened = opened.await.unwrap_or_else(|_| Err("no connection in time".to_owned()));
        match opened {
            Ok(lane) => {
                *self.lane.borrow_mut() = Some(lane.clone());
                self.avoid_until.set(None);
                self.avoidance.set(FIRST_AVOIDANCE);
                Ok(lane)
            }
            Err(reason) => {
                self.avoid();
                Err(format!("{}: {reason}", self.address))
            }
        }
    }

    /// Passes this node over for a while: it did not answer.
    pub(crate) fn avoid(&self) {
        let pause = self.avoidance.get();
        self.avoid_until.set(Some(Instant::now() + pause));
        self.avoidance.set((pause * 2).min(LONGEST_AVOIDANCE));
    }

    /// It answered.
    pub(crate) fn answered(&self) {
        if self.avoid_until.get().is_some() {
            self.avoid_until.set(None);
            self.avoidance.set(FIRST_AVOIDANCE);
        }
    }

    fn is_avoided(&self, now: Instant) -> bool {
        self.avoid_until.get().is_some_and(|until| until > now)
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

    pub(crate) fn follow(&self, layout: Layout) {
        let mut known = self.known.borrow_mut();
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

    /// The node to try first for a key: its first replica, if that is connected and answered last time. The usual case,
    /// without looking at any other.
    pub(crate) fn first(&self, key_hash: u64) -> Option<Rc<Route>> {
        let first = self.first_replicas.borrow();
        let layout = self.layout.borrow();
        let partition = layout.as_ref()?.partition_of(key_hash);
        let route = first.get(partition.0 as usize)?.as_ref()?;
        (route.avoid_until.get().is_none() && route.open_lane().is_some()).then(|| route.clone())
    }

    /// The nodes to try for a key (or for anything), best first: its replicas in order, then the others; those that did
    /// not answer lately last.
    pub(crate) fn candidates(&self, key_hash: Option<u64>) -> Vec<Rc<Route>> {
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
        candidates
    }

    pub(crate) fn close(&self) {
        for route in self.known.borrow().values() {
            if let Some(lane) = route.lane.borrow_mut().take() {
                lane.close("the client was closed");
            }
        }
    }
}

//! A running process of a node: the real node with its peers and server, as tasks that can be
//! paused and dropped.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use quorate_core::admission::Identity;
use quorate_core::event::EventSink;
use quorate_core::layout_change::Layouts;
use quorate_core::membership::Membership;
use quorate_core::plugin::PluginContext;
use quorate_core::resolver::ConflictResolver;
use quorate_core::{Layout, Member};
use quorate_node::{Node, Parts, Service, Shared, stored_layouts};
use quorate_rpc::batch_sender::PeerQueues;
use quorate_rpc::network::Network;
use quorate_rpc::peers::Peers;
use quorate_rpc::serve::serve_connection;
use tokio::task::LocalSet;
use tokio::time::Instant;

use super::environment::SimEnvironment;
use super::log::{Log, NodeEvents};
use super::machine::Machine;
use super::network::{HostNetwork, Net};
use super::options::Options;
use super::storage::SimStorage;
use crate::oracle::Oracle;

/// A node's process: all of its tasks. Dropping the tasks is a crash.
pub(super) struct Process {
    tasks: Rc<RefCell<Option<LocalSet>>>,
    paused: Rc<Cell<bool>>,
    /// Waker of the [`Driver`]. `None` until the driver is first polled.
    waker: Rc<RefCell<Option<Waker>>>,
    /// The service that takes requests for the node. `None` until the tasks have created it.
    service: Rc<RefCell<Option<Rc<Service>>>>,
}

/// The cluster that a starting process belongs to.
pub(super) struct Cluster<'a> {
    pub(super) options: &'a Options,
    pub(super) run_start: Instant,
    /// The first layout.
    pub(super) first_layout: &'a Layout,
    /// The member entry of each machine, also of machines that the first layout does not name.
    pub(super) members: &'a [Member],
    pub(super) net: &'a Net,
    pub(super) log: &'a Log,
    pub(super) oracle: &'a Arc<Oracle>,
}

impl Process {
    /// Starts a node on its machine, with the layouts on its disk. Without any it uses the first
    /// layout.
    pub(super) fn start(machine: &mut Machine, cluster: &Cluster<'_>) -> Process {
        let identity = Identity {
            cluster: "sim".into(),
            node: machine.member.id,
            name: machine.member.name.clone(),
            layout_digest: cluster.first_layout.digest(),
        };
        let (skew_ms, random) = (machine.skew_ms.clone(), machine.random.fork());
        let environment = Arc::new(SimEnvironment::new(cluster.run_start, skew_ms, random));
        let events: Arc<dyn EventSink> = Arc::new(NodeEvents {
            node: machine.number,
            log: cluster.log.clone(),
            oracle: cluster.oracle.clone(),
        });
        let shared = open_node(machine, cluster, identity.clone(), environment.clone(), events.clone());
        let tasks = LocalSet::new();
        let network: Rc<dyn Network> =
            Rc::new(HostNetwork { net: cluster.net.clone(), host: machine.number });
        let mut incoming = cluster.net.listen(machine.number, &machine.member.address);
        let known_peers = known_peers(cluster, &machine.member);
        let created = Rc::new(RefCell::new(None));
        let created_here = created.clone();
        tasks.spawn_local(async move {
            let queues = PeerQueues::default();
            let peers =
                Peers::start(known_peers, identity.clone(), network.clone(), environment, events, queues);
            let node = Node::new(shared, peers.clone());
            quorate_node::start_upkeep(&node);
            quorate_node::follow_members(&node);
            let service = Rc::new(Service::new(node, None));
            *created_here.borrow_mut() = Some(service.clone());
            while let Some(duplex) = incoming.recv().await {
                let (identity, service, network, peers) =
                    (identity.clone(), service.clone(), network.clone(), peers.clone());
                tokio::task::spawn_local(async move {
                    let on_peer = |peer| peers.hurry(peer);
                    serve_connection(duplex, "somebody", &identity, service, network, on_peer).await;
                });
            }
        });
        Process::drive(tasks, created)
    }

    /// Spawns the task that polls the process's tasks.
    fn drive(tasks: LocalSet, service: Rc<RefCell<Option<Rc<Service>>>>) -> Process {
        let tasks = Rc::new(RefCell::new(Some(tasks)));
        let paused = Rc::new(Cell::new(false));
        let waker = Rc::new(RefCell::new(None));
        let driver = Driver { tasks: tasks.clone(), paused: paused.clone(), waker: waker.clone() };
        tokio::task::spawn_local(driver);
        Process { tasks, paused, waker, service }
    }

    /// Returns the number of the newest layout that the node acts on.
    pub(super) fn layout_number(&self) -> Option<u64> {
        self.service.borrow().as_ref().map(|service| service.node().view().newest().number())
    }

    /// Makes the node refuse new requests of clients, before it stops. Returns `None` if the node
    /// is still starting and accepts no requests yet.
    pub(super) fn stop(&self) -> Option<StoppingNode> {
        let service = self.service.borrow().clone()?;
        service.refuse_clients();
        Some(StoppingNode(service))
    }

    /// Stops polling the tasks.
    pub(super) fn pause(&self) {
        self.paused.set(true);
    }

    /// Polls the tasks again. Returns false if the process was not paused.
    pub(super) fn resume(&self) -> bool {
        if !self.paused.replace(false) {
            return false;
        }
        if let Some(waker) = self.waker.borrow().as_ref() {
            waker.wake_by_ref();
        }
        true
    }

    /// Drops all tasks.
    pub(super) fn end(self) {
        self.service.take();
        let tasks = self.tasks.borrow_mut().take();
        // The tasks are dropped after the borrow has ended, because dropping them may run code of
        // the node.
        drop(tasks);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A node that refuses new requests of clients.
pub(super) struct StoppingNode(Rc<Service>);

impl StoppingNode {
    /// Returns true if the node still serves requests.
    pub(super) fn is_busy(&self) -> bool {
        self.0.in_flight() != 0
    }
}

/// The task that polls a process's tasks, unless the process is paused. It ends when the
/// tasks are dropped.
struct Driver {
    tasks: Rc<RefCell<Option<LocalSet>>>,
    paused: Rc<Cell<bool>>,
    waker: Rc<RefCell<Option<Waker>>>,
}

impl Future for Driver {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
        if self.paused.get() {
            return Poll::Pending;
        }
        let mut tasks = self.tasks.borrow_mut();
        match tasks.as_mut() {
            Some(tasks) => Pin::new(tasks).poll(cx),
            None => Poll::Ready(()),
        }
    }
}

/// Opens the engine on a machine's disk, and creates the node's state from the engine's records.
fn open_node(
    machine: &Machine,
    cluster: &Cluster<'_>,
    identity: Identity,
    environment: Arc<SimEnvironment>,
    events: Arc<dyn EventSink>,
) -> Arc<Shared> {
    let is_empty = machine.disk.is_empty();
    let engine = Arc::new(SimStorage::open(machine.disk.clone(), machine.durability));
    let stored = stored_layouts(identity.node, &*engine).expect("a simulated disk can be read");
    let layouts = stored.unwrap_or_else(|| Layouts::settled(identity.node, cluster.first_layout.clone()));
    Shared::new(Parts {
        identity,
        layouts,
        resolvers: resolvers(&PluginContext { data_folder: Path::new(""), this: &machine.member }),
        engine,
        storage_name: "simulated".into(),
        environment,
        events,
        membership: Arc::new(Mutex::new(membership(cluster, &machine.member))),
        settings: cluster.options.settings(),
        is_empty,
    })
    .expect("a simulated disk can be read")
}

fn resolvers(context: &PluginContext<'_>) -> BTreeMap<String, Arc<dyn ConflictResolver>> {
    let siblings = quorate_resolver_siblings::open(Default::default(), context).expect("no configuration");
    let lww = quorate_resolver_lww::open(Default::default(), context).expect("no configuration");
    BTreeMap::from([("siblings".to_owned(), Arc::new(siblings) as _), ("lww".to_owned(), Arc::new(lww) as _)])
}

/// Returns the peers that the node connects to when it starts.
fn known_peers(cluster: &Cluster<'_>, this: &Member) -> Vec<Member> {
    // With gossip, a node knows only node 0 when it starts, and gossip finds the others.
    let known = if cluster.options.gossip { 1 } else { cluster.members.len() };
    cluster.members.iter().take(known).filter(|member| member.id != this.id).cloned().collect()
}

/// Returns the node's membership: gossip with one seed node, or the list of all members.
fn membership(cluster: &Cluster<'_>, this: &Member) -> Box<dyn Membership> {
    let all = cluster.members;
    let context = PluginContext { data_folder: Path::new(""), this };
    if !cluster.options.gossip {
        let entry = |member: &Member| quorate_membership_static::MemberEntry {
            name: member.name.clone(),
            address: member.address.clone(),
            zone: String::new(),
        };
        let members = all.iter().map(entry).collect();
        let config = quorate_membership_static::Config { members, ..Default::default() };
        return Box::new(quorate_membership_static::open(config, &context).expect("a valid list"));
    }
    let seeds = vec![all[0].address.clone()];
    let config = quorate_membership_gossip::Config { seeds, expect: all.len(), ..Default::default() };
    let mut gossip = quorate_membership_gossip::open(config, &context).expect("a valid configuration");
    gossip.join(all[0].clone()).expect("a seed");
    Box::new(gossip)
}

//! The event loops that serve a node's connections.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_client::system::duplex;
use quorate_core::Member;
use quorate_core::event::{Event, EventSink};
use quorate_node::{FaultSwitch, Node, Service, Shared};
use quorate_rpc::batch_sender::PeerQueues;
use quorate_rpc::network::Network;
use quorate_rpc::peers::Peers;
use quorate_rpc::serve::serve_connection;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::faults::{PeerCuts, network};
use super::membership::dial_seeds;

/// One event loop on a thread of its own, with its own connections to all peers.
pub(super) struct Worker {
    streams: UnboundedSender<TcpStream>,
    thread: JoinHandle<()>,
}

/// Longest time for which clients' requests may go on after the node is told to stop. Requests that
/// take longer get no reply.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between the end of the last request and the end of the worker, in which the last replies
/// are sent.
const REPLY_FLUSH_TIME: Duration = Duration::from_millis(20);
const DRAIN_POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Parameters with which a worker is started.
pub(super) struct WorkerSetup {
    /// Index of the worker. Worker 0 also runs the tasks that need no client, such as hint delivery
    /// and anti-entropy.
    pub(super) number: usize,
    pub(super) shared: Arc<Shared>,
    pub(super) cuts: Option<Arc<PeerCuts>>,
    /// Seeds that this worker dials. Only worker 0 has seeds.
    pub(super) seeds: Vec<String>,
    pub(super) counters: WorkerCounters,
}

/// Counters that all workers share.
#[derive(Clone)]
pub(super) struct WorkerCounters {
    pub(super) open_connections: Arc<AtomicUsize>,
    pub(super) peer_queues: PeerQueues,
}

impl Worker {
    pub(super) fn start(setup: WorkerSetup) -> Worker {
        let (streams, incoming) = unbounded_channel();
        let thread = std::thread::Builder::new()
            .name(format!("quorate-{}", setup.number))
            .spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                let runtime = runtime.expect("the event loop starts");
                runtime.block_on(run(setup, incoming));
            })
            .expect("the thread starts");
        Worker { streams, thread }
    }

    /// Hands a connection to the worker.
    pub(super) fn serve(&self, stream: TcpStream) {
        let _ = self.streams.send(stream);
    }

    /// Tells the worker to stop, by closing its channel of connections. The returned thread ends
    /// once the worker has finished its requests.
    pub(super) fn stop(self) -> JoinHandle<()> {
        self.thread
    }
}

/// Serves connections until the channel closes, then lets requests under way finish.
async fn run(setup: WorkerSetup, mut incoming: UnboundedReceiver<TcpStream>) {
    let WorkerSetup { number, shared, cuts, seeds, counters } = setup;
    let network = network(cuts.as_ref());
    let peers = Peers::start(
        layout_members(&shared),
        shared.identity.clone(),
        network.clone(),
        shared.environment.clone(),
        shared.events.clone(),
        counters.peer_queues,
    );
    let node = Node::new(shared.clone(), peers.clone());
    if number == 0 {
        quorate_node::start_upkeep(&node);
    }
    quorate_node::follow_members(&node);
    if !seeds.is_empty() {
        let membership = shared.membership.clone();
        tokio::task::spawn_local(dial_seeds(seeds, shared.identity.clone(), network.clone(), membership));
    }
    let service = Rc::new(Service::new(node, cuts.map(fault_switch)));
    while let Some(stream) = incoming.recv().await {
        let connection = OpenConnection::count(counters.open_connections.clone());
        let (shared, service, network, peers) =
            (shared.clone(), service.clone(), network.clone(), peers.clone());
        tokio::task::spawn_local(async move {
            let _connection = connection;
            serve_stream(stream, &shared, service, network, peers).await;
        });
    }
    service.refuse_clients();
    drain(&service).await;
}

/// Waits until no client's request is under way, but at most for `DRAIN_TIMEOUT`.
async fn drain(service: &Service) {
    let drained = async {
        while service.in_flight() > 0 {
            tokio::time::sleep(DRAIN_POLL_INTERVAL).await;
        }
        tokio::time::sleep(REPLY_FLUSH_TIME).await;
    };
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, drained).await;
}

/// Lists the members of the active layouts, except this node. The worker connects to later members
/// when the membership plugin finds them.
fn layout_members(shared: &Shared) -> Vec<Member> {
    let view = shared.view();
    let mut members: BTreeMap<_, Member> = BTreeMap::new();
    for member in view.active.iter().flat_map(|layout| layout.members()) {
        members.insert(member.id, member.clone());
    }
    members.remove(&shared.node());
    members.into_values().collect()
}

fn fault_switch(cuts: Arc<PeerCuts>) -> FaultSwitch {
    Arc::new(move |faults| {
        cuts.set(&faults);
        Ok(())
    })
}

async fn serve_stream(
    stream: TcpStream,
    shared: &Arc<Shared>,
    service: Rc<Service>,
    network: Rc<dyn Network>,
    peers: Rc<Peers>,
) {
    let Ok(stream) = tokio::net::TcpStream::from_std(stream) else {
        return;
    };
    let from = stream.peer_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string());
    let Ok(duplex) = duplex(stream) else { return };
    let on_peer = |peer| peers.hurry(peer);
    if let Some(kind) = serve_connection(duplex, &from, &shared.identity, service, network, on_peer).await {
        let at_ms = shared.environment.wall_ms();
        let event = Event { at_ms, node: shared.node(), request: None, kind };
        EventSink::emit(&*shared.events, event);
    }
}

/// Guard that counts a connection for as long as it is open.
struct OpenConnection(Arc<AtomicUsize>);

impl OpenConnection {
    fn count(counter: Arc<AtomicUsize>) -> OpenConnection {
        counter.fetch_add(1, Ordering::Relaxed);
        OpenConnection(counter)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

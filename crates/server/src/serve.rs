//! `quorate serve`: opens the engine, starts the workers, hands out connections, and ends cleanly.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_client::system::{System, Tcp, duplex};
use quorate_node::layouts::{layouts_fact, stored_layouts};
use quorate_node::node::{FaultSwitch, Service};
use quorate_node::shared::{Parts, recovering_fact};
use quorate_node::{Node, Shared};
use quorate_core::admission::Identity;
use quorate_core::bucket::DEFAULT_BUCKET;
use quorate_core::event::{Event, EventSink};
use quorate_core::key::Table;
use quorate_core::membership::Founding;
use quorate_core::storage::{Change, StorageEngine, StorageError, Update};
use quorate_core::transition::{Layouts, Phase};
use quorate_core::{Layout, Member, StorageKey};
use quorate_rpc::lane::PeerQueues;
use quorate_rpc::network::Network;
use quorate_rpc::peers::Peers;
use quorate_rpc::serve::serve_connection;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc;

use crate::config::{Config, ConfigError};
use crate::faults::{Cut, FaultyTcp};
use crate::founding::{Seeker, SharedMembership, follow_seeds};
use crate::logging::{self, LogEvents};
use crate::metrics::{self, HttpPort, Metrics};
use crate::registry::Registry;

/// How long requests under way may go on once the node is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the last commit may take.
const LAST_COMMIT: Duration = Duration::from_secs(60);

/// Runs a node until SIGTERM or SIGINT.
pub(crate) fn serve(config: Config, registry: &Registry) -> Result<(), ConfigError> {
    logging::start(&config.node)?;
    abort_on_panic();
    take_no_huge_pages();
    let listener = TcpListener::bind(config.node.listen).map_err(|error| {
        ConfigError::new(format!("cannot listen on {} ([node] listen): {error}", config.node.listen))
    })?;
    let scrapes = match config.node.metrics {
        None => None,
        Some(address) => Some(metrics::listen(address).map_err(|error| {
            ConfigError::new(format!("cannot listen on {address} ([node] metrics): {error}"))
        })?),
    };
    let counted = Arc::new(Metrics::new());
    let cut = Arc::new(Cut::default());
    let node = metrics::Served::default();
    let http = scrapes.map(|listener| HttpPort::open(listener, counted.clone(), node.clone()));
    let http =
        http.transpose().map_err(|error| ConfigError::new(format!("cannot serve metrics: {error}")))?;
    let Some(found) = find(&config, registry, &listener, &cut)? else {
        tracing::info!("stopped");
        return Ok(());
    };
    let shared = open(&config, registry, &found, counted.clone())?;
    let _ = node.set(Arc::downgrade(&shared));
    let workers =
        config.node.workers.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let connections = Arc::new(AtomicUsize::new(0));
    let counts = Counts { connections: connections.clone(), waiting: counted.peer_queues() };
    let workers: Vec<Worker> = (0..workers)
        .map(|number| {
            let faults = config.faults.enabled.then(|| cut.clone());
            let seeds = if number == 0 { found.seeds.clone() } else { Vec::new() };
            Worker::start(number, shared.clone(), faults, seeds, counts.clone())
        })
        .collect();
    // The engine closes with its last owner, which is to be the node.
    drop(found);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| ConfigError::new(format!("cannot start the event loop: {error}")))?;
    let served = runtime.block_on(async { accept(listener, &workers, &connections, &config).await });
    drop(runtime);
    // All are told first, so that they drain side by side.
    let threads: Vec<JoinHandle<()>> = workers.into_iter().map(Worker::stop).collect();
    for thread in threads {
        let _ = thread.join();
    }
    // Whoever still serves a scrape lets go of the node.
    drop(http);
    close_engine(shared);
    tracing::info!("stopped");
    served
}

/// Updates that wait for their commit share the node's state. Once they have heard of it this is the last owner, and
/// dropping the engine here commits what is left and leaves the folder ready.
fn close_engine(shared: Arc<Shared>) {
    let patience = LAST_COMMIT.as_millis() as u64 + shared.environment.monotonic_ms();
    shared.engine.flush();
    while Arc::strong_count(&shared) > 1 && shared.environment.monotonic_ms() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(shared);
}

/// What a node knows before it serves.
struct Found {
    engine: Arc<dyn StorageEngine>,
    /// The engine held nothing.
    is_empty: bool,
    layouts: Layouts,
    membership: SharedMembership,
    seeds: Vec<String>,
}

/// Opens the engine and comes to a layout: the configured one, the stored one, or by gossip. `None`: told to stop meanwhile.
fn find(
    config: &Config,
    registry: &Registry,
    listener: &TcpListener,
    cut: &Arc<Cut>,
) -> Result<Option<Found>, ConfigError> {
    let engine =
        registry.open_storage(&config.storage.name, config.storage.rest.clone(), &config.node.data)?;
    let is_empty = claim_folder(&*engine, config)?;
    let membership =
        registry.open_membership(&config.membership.name, config.membership.rest.clone(), &config.this())?;
    let founding = membership.founding();
    let membership = Arc::new(Mutex::new(membership));
    let seeds = founding.as_ref().map_or(Vec::new(), |founding| founding.seeds.clone());
    let failed = |error: StorageError| ConfigError::new(format!("[storage] {error}"));
    let this = config.this().id;
    let layouts = match (stored_layouts(this, &*engine).map_err(failed)?, &config.layout, &founding) {
        (Some(stored), _, _) => stored,
        (None, Some(layout), _) => keep(&*engine, Layouts::settled(this, layout.clone()))?,
        (None, None, Some(founding)) => {
            let Some(found) = seek(config, founding, membership.clone(), listener, cut)? else {
                return Ok(None);
            };
            keep(&*engine, found)?
        }
        (None, None, None) => {
            return Err(ConfigError::new("[membership] names no members, and no way to find any"));
        }
    };
    let partitions = layouts.newest().partitions();
    if partitions != config.cluster.partitions {
        return Err(ConfigError::new(format!(
            "[cluster] partitions = {}: the cluster was founded with {partitions}; use that",
            config.cluster.partitions,
        )));
    }
    // A changed number of replicas comes with a layout; what the configuration says is the number it was founded with.
    let founded = layouts.history().len() == 1 && config.cluster.replicas.is_some();
    if founded && layouts.newest().replicas() != config.replicas {
        return Err(ConfigError::new(format!(
            "[cluster] replicas = {}: the cluster was founded with {}; use that, and change it with `quorate cluster replicas`",
            config.replicas,
            layouts.newest().replicas()
        )));
    }
    check_declared(config, layouts.newest())?;
    if founding.is_some() {
        let mut membership = membership.lock().unwrap_or_else(PoisonError::into_inner);
        for member in layouts.active().iter().flat_map(|layout| layout.members()) {
            // A fixed list takes nobody: whom the layout names is met all the same.
            let _ = membership.join(member.clone());
        }
    }
    Ok(Some(Found { engine, is_empty, layouts, membership, seeds }))
}

/// What the configuration declares counts when a cluster is founded. Later it may say the same, or less.
fn check_declared(config: &Config, layout: &Layout) -> Result<(), ConfigError> {
    let there = layout.buckets().definitions();
    match config.buckets.iter().find(|(name, definition)| there.get(*name) != Some(*definition)) {
        None => Ok(()),
        Some((name, _)) if there.contains_key(name) => Err(ConfigError::new(format!(
            "[buckets.{name}]: the cluster goes by another definition, which is for good; see `quorate bucket show {name}`, \
             and write what the cluster was founded with"
        ))),
        Some((name, _)) => Err(ConfigError::new(format!(
            "[buckets.{name}]: the cluster was founded without it, which is all that this section is for; take it out{}",
            match name.as_str() {
                DEFAULT_BUCKET => String::new(),
                name => format!(", and use `quorate bucket create {name}`"),
            }
        ))),
    }
}

/// Stores what is known of layouts before anybody goes by it.
fn keep(engine: &dyn StorageEngine, mut layouts: Layouts) -> Result<Layouts, ConfigError> {
    if layouts.own() == Phase::Unaware {
        layouts.advance();
    }
    store(engine, vec![(layouts_fact(), layouts.encode().into())])?;
    Ok(layouts)
}

/// Gossips until there is a layout, or the process is told to stop.
fn seek(
    config: &Config,
    founding: &Founding,
    membership: SharedMembership,
    listener: &TcpListener,
    cut: &Arc<Cut>,
) -> Result<Option<Layouts>, ConfigError> {
    let failed = |error: std::io::Error| ConfigError::new(format!("cannot serve: {error}"));
    let network: Rc<dyn Network> = match config.faults.enabled {
        true => Rc::new(FaultyTcp { cut: cut.clone() }),
        false => Rc::new(Tcp),
    };
    let listener = listener.try_clone().map_err(failed)?;
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    runtime.map_err(failed)?.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
        tracing::info!(expect = founding.expect, seeds = ?founding.seeds, "looking for a cluster");
        let seeker = Seeker {
            identity: identity(config, 0),
            membership,
            network,
            environment: Arc::new(System::new()),
            events: Arc::new(LogEvents),
        };
        tokio::select! {
            biased;
            _ = terminate.recv() => Ok(None),
            _ = interrupt.recv() => Ok(None),
            found = seeker.find_layout(&listener, config, founding) => found.map(Some),
        }
    })
}

fn identity(config: &Config, layout_digest: u64) -> Identity {
    let this = config.this();
    Identity { cluster: config.cluster.id.clone(), node: this.id, name: this.name, layout_digest }
}

fn open(
    config: &Config,
    registry: &Registry,
    found: &Found,
    counted: Arc<Metrics>,
) -> Result<Arc<Shared>, ConfigError> {
    let engine = found.engine.clone();
    let resolvers = registry.open_resolvers();
    let durability = match engine.capability().durable {
        true => "durable when acked",
        false if engine.capability().survives_restart => "committed at intervals",
        false => "volatile",
    };
    let shared = Shared::new(Parts {
        identity: identity(config, found.layouts.root()),
        layouts: found.layouts.clone(),
        resolvers,
        storage_name: format!("{} ({durability})", config.storage.name),
        engine,
        environment: Arc::new(System::new()),
        events: counted,
        membership: found.membership.clone(),
        settings: config.settings.clone(),
        is_empty: found.is_empty,
    });
    shared.map_err(|error| ConfigError::new(format!("[storage] {error}")))
}

/// A data folder belongs to one node of one cluster: starting another one in it is refused, not mixed up. True if it was
/// nobody's yet: this node is new, or was wiped.
fn claim_folder(engine: &dyn StorageEngine, config: &Config) -> Result<bool, ConfigError> {
    let owner = format!("{}/{} Q={}", config.cluster.id, config.node.name, config.cluster.partitions);
    let failed = |error: StorageError| ConfigError::new(format!("[storage] {error}"));
    let key = StorageKey::of_table(Table::Facts, b"owner");
    match engine.get(&key).map_err(failed)? {
        Some(found) if found == owner.as_bytes() => Ok(false),
        Some(found) => Err(ConfigError::new(format!(
            "data folder {} belongs to {}, not to {owner}: set [node] data to another folder",
            config.node.data.display(),
            String::from_utf8_lossy(&found)
        ))),
        // Both at once: a node that is stopped before it has asked the others has not asked them.
        None => store(engine, vec![(recovering_fact(), "1".into()), (key, owner.into())]).map(|()| true),
    }
}

/// Stores some of the node's own facts together, and waits until they are durable.
fn store(engine: &dyn StorageEngine, facts: Vec<(StorageKey, bytes::Bytes)>) -> Result<(), ConfigError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let count = facts.len();
    let one = |(key, value)| -> Box<dyn Update> { Box::new(Fact { key, value, done: sender.clone() }) };
    engine.update(facts.into_iter().map(one).collect());
    engine.flush();
    for _ in 0..count {
        let lost = StorageError::Io { detail: "the engine dropped a write".into() };
        let outcome = receiver.recv().unwrap_or(Err(lost));
        outcome.map_err(|error| ConfigError::new(format!("[storage] {error}")))?;
    }
    Ok(())
}

struct Fact {
    key: StorageKey,
    value: bytes::Bytes,
    done: std::sync::mpsc::Sender<Result<(), StorageError>>,
}

impl Update for Fact {
    fn key(&self) -> &StorageKey {
        &self.key
    }

    fn change(&mut self, _: Option<bytes::Bytes>) -> Result<Change, StorageError> {
        Ok(Change::Put(self.value.clone()))
    }

    fn applied(&mut self) {}

    fn finished(self: Box<Self>, outcome: Result<(), StorageError>) {
        let _ = self.done.send(outcome);
    }
}

/// A panic in a task would disappear with it, and its requests with both. Better to stop: other replicas go on.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

/// The kernel zeroes a huge page, 2 MiB, where a kilobyte of it is touched, and an event loop waits for that: measured in
/// docs/benchmarks.md. Where it can't be turned off, a node is only slower.
fn take_no_huge_pages() {
    #[cfg(target_os = "linux")]
    let _ = rustix::thread::disable_transparent_huge_pages(true);
}

async fn accept(
    listener: TcpListener,
    workers: &[Worker],
    connections: &AtomicUsize,
    config: &Config,
) -> Result<(), ConfigError> {
    let failed = |error: std::io::Error| ConfigError::new(format!("cannot serve: {error}"));
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    announce(config, address);
    let mut next = 0;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) if connections.load(Ordering::Relaxed) >= config.node.max_connections => {
                tracing::warn!(
                    limit = config.node.max_connections,
                    "too many connections ([node] max_connections)"
                );
                drop(stream);
            }
            Ok((stream, _)) => {
                if let Ok(stream) = stream.into_std() {
                    workers[next % workers.len()].give(stream);
                    next += 1;
                }
            }
            // Out of file descriptors, most likely: others may be closed meanwhile.
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The readiness line: the only thing a node writes to stdout.
fn announce(config: &Config, address: std::net::SocketAddr) {
    tracing::info!(name = config.node.name, %address, storage = config.storage.name, "serving");
    let mut stdout = std::io::stdout();
    let _ = writeln!(
        stdout,
        "quorate ready name={} address={address} pid={}",
        config.node.name,
        std::process::id()
    );
    let _ = stdout.flush();
}

/// What the workers count together.
#[derive(Clone)]
struct Counts {
    connections: Arc<AtomicUsize>,
    waiting: PeerQueues,
}

/// One event loop on a thread of its own, with its own connections to all peers.
struct Worker {
    streams: mpsc::UnboundedSender<std::net::TcpStream>,
    thread: JoinHandle<()>,
}

impl Worker {
    fn start(
        number: usize,
        shared: Arc<Shared>,
        faults: Option<Arc<Cut>>,
        seeds: Vec<String>,
        counts: Counts,
    ) -> Worker {
        let (streams, incoming) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name(format!("quorate-{number}"))
            .spawn(move || {
                let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
                let runtime = runtime.expect("an event loop can be started");
                runtime.block_on(run(number, shared, faults, seeds, incoming, counts));
            })
            .expect("a thread can be started");
        Worker { streams, thread }
    }

    fn give(&self, stream: std::net::TcpStream) {
        let _ = self.streams.send(stream);
    }

    /// Tells the worker to end; its thread ends once it has drained.
    fn stop(self) -> JoinHandle<()> {
        self.thread
    }
}

/// A worker's life: serves what it is given until there is no more, then lets requests under way finish.
async fn run(
    number: usize,
    shared: Arc<Shared>,
    faults: Option<Arc<Cut>>,
    seeds: Vec<String>,
    mut incoming: mpsc::UnboundedReceiver<std::net::TcpStream>,
    counts: Counts,
) {
    let network: Rc<dyn Network> = match &faults {
        Some(cut) => Rc::new(FaultyTcp { cut: cut.clone() }),
        None => Rc::new(Tcp),
    };
    let others: Vec<Member> = first_known(&shared);
    let peers = Peers::start(
        others,
        shared.identity.clone(),
        network.clone(),
        shared.environment.clone(),
        shared.events.clone(),
        counts.waiting.clone(),
    );
    let switch = faults.map(|cut| -> FaultSwitch {
        Arc::new(move |nodes| {
            cut.set(&nodes);
            Ok(())
        })
    });
    let node = Node::new(shared.clone(), peers.clone(), switch);
    if number == 0 {
        node.start_upkeep();
    }
    node.follow_members();
    if !seeds.is_empty() {
        let membership = shared.membership.clone();
        tokio::task::spawn_local(follow_seeds(seeds, shared.identity.clone(), network.clone(), membership));
    }
    let service = Rc::new(Service(node.clone()));
    while let Some(stream) = incoming.recv().await {
        let open = Open::new(counts.connections.clone());
        let (shared, service, network, peers) =
            (shared.clone(), service.clone(), network.clone(), peers.clone());
        tokio::task::spawn_local(async move {
            let _open = open;
            serve_stream(stream, &shared, service, network, peers).await;
        });
    }
    node.stop_taking();
    let drained = async {
        while node.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // The answers are still on their way out.
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

/// Whom the layouts name; others are met as the membership finds them.
fn first_known(shared: &Shared) -> Vec<Member> {
    let view = shared.view();
    let mut all: BTreeMap<_, Member> = BTreeMap::new();
    for member in view.active.iter().flat_map(|layout| layout.members()) {
        all.insert(member.id, member.clone());
    }
    all.remove(&shared.node());
    all.into_values().collect()
}

async fn serve_stream(
    stream: std::net::TcpStream,
    shared: &Arc<Shared>,
    service: Rc<Service>,
    network: Rc<dyn Network>,
    peers: Rc<Peers>,
) {
    let Ok(stream) = TcpStream::from_std(stream) else {
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

/// Counts a connection for as long as it is open.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: Arc<AtomicUsize>) -> Open {
        count.fetch_add(1, Ordering::Relaxed);
        Open(count)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

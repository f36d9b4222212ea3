//! Events to metrics, and the small HTTP port that they are read from: `/metrics`, `/livez`, `/readyz`.
//!
//! Counters and histograms are fed from the event stream, on the event loops that things happen on; what is a state (hints
//! pending, tombstones waiting) is looked up when somebody asks. Never a key in a label.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use quorate_node::Shared;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_rpc::lane::PeerQueues;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::logging::LogEvents;

const VERBS: [&str; 3] = ["get", "put", "scan"];
const OUTCOMES: [&str; 8] = [
    "ok",
    "NotAttempted",
    "Indeterminate",
    "Overloaded",
    "DeadlineExceeded",
    "TooManySiblings",
    "StorageFailed",
    "InvalidRequest",
];
/// Longest request that the HTTP port reads, and how long it waits for one.
const MAX_REQUEST_BYTES: usize = 8 * 1024;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections to the HTTP port at a time.
const MAX_SCRAPES: usize = 16;

type Label = [(&'static str, &'static str); 1];
type PeerLabel = [(&'static str, String); 1];

/// Everything that is counted, and the log.
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    /// By verb and outcome: found by place, since every request passes here.
    requests: Vec<Vec<Counter>>,
    durations: Vec<Histogram>,
    acks: Vec<Histogram>,
    siblings: Histogram,
    hinted: Counter,
    read_repairs: Counter,
    hints_delivered: Counter,
    hints_refused: Counter,
    storage_failures: Counter,
    actors_renewed: Counter,
    repair_rounds: Counter,
    divergent_keys: Counter,
    repairs_failed: Counter,
    reaped: Counter,
    strangers: Counter,
    peer_queues: PeerQueues,
    states: States,
}

/// What is looked up when somebody asks.
#[derive(Default)]
struct States {
    hints_pending: Family<PeerLabel, Gauge>,
    hints_bytes: Family<PeerLabel, Gauge>,
    hints_oldest: Family<PeerLabel, Gauge>,
    recovering: Gauge,
    tombstones: Gauge,
    reaping_blocked: Gauge,
    clock_ahead_ms: Gauge,
    repair_running: Gauge,
    /// Nothing before a round has ended.
    repair_last_ended: Family<[(&'static str, &'static str); 0], Gauge>,
    in_flight: Gauge,
    peer_waiting: Family<PeerLabel, Gauge>,
    storage_waiting: Gauge,
    layout: Gauge,
    layouts_active: Gauge,
    partitions_to_move: Gauge,
    moved_bytes: Gauge,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("quorate");
        let requests = Family::<[(&'static str, &'static str); 2], Counter>::default();
        registry.register("requests", "Clients' requests by verb and outcome", requests.clone());
        let durations = Family::<Label, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_1, 2.0, 16))
        });
        let help = "From a request's arrival to its answer";
        registry.register_with_unit("request_duration", help, Unit::Seconds, durations.clone());
        let acks = Family::<Label, Histogram>::new_with_constructor(|| {
            Histogram::new([1.0, 2.0, 3.0, 4.0, 5.0, 7.0])
        });
        registry.register(
            "quorum_acks",
            "Nodes that had acked or replied when a request was answered",
            acks.clone(),
        );
        let siblings = Histogram::new([0.0, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0]);
        registry.register("read_siblings", "Values that a read showed", siblings.clone());
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let hinted = counter("hinted_acks", "Acks of writes that were hints");
        let read_repairs =
            counter("read_repairs", "Reads that found replicas behind and sent them the merged object");
        let hints_delivered = counter("hints_delivered", "Hints that reached the replica they were for");
        let hints_refused = counter("hints_refused", "Hints refused for want of budget");
        let storage_failures =
            counter("storage_failures", "Reads and commits that the storage engine failed");
        let actors_renewed = counter("actors_renewed", "Partitions that went on under a new actor");
        let repair_rounds = counter("repair_rounds", "Rounds of anti-entropy with one peer that ended");
        let divergent_keys = counter("repair_divergent_keys", "Keys that anti-entropy found to differ");
        let repairs_failed = counter("repair_failures", "Rounds of anti-entropy that broke off");
        let reaped = counter("tombstones_reaped", "Tombstones deleted by this node's orders");
        let strangers =
            counter("strangers_refused", "Connections refused: not our protocol, or not our cluster");
        let states = States::default();
        states.register(&mut registry);
        Metrics {
            requests: VERBS
                .map(|verb| {
                    let one =
                        |outcome| requests.get_or_create(&[("verb", verb), ("outcome", outcome)]).clone();
                    OUTCOMES.map(one).to_vec()
                })
                .to_vec(),
            durations: VERBS.map(|verb| durations.get_or_create(&[("verb", verb)]).clone()).to_vec(),
            acks: VERBS.map(|verb| acks.get_or_create(&[("verb", verb)]).clone()).to_vec(),
            registry: Mutex::new(registry),
            siblings,
            hinted,
            read_repairs,
            hints_delivered,
            hints_refused,
            storage_failures,
            actors_renewed,
            repair_rounds,
            divergent_keys,
            repairs_failed,
            reaped,
            strangers,
            peer_queues: PeerQueues::default(),
            states,
        }
    }

    fn served(&self, verb: &str, outcome: &str, micros: u64, acked: u8, siblings: u32, hinted: u8) {
        let Some(verb) = VERBS.iter().position(|known| *known == verb) else { return };
        let Some(outcome) = OUTCOMES.iter().position(|known| *known == outcome) else { return };
        self.requests[verb][outcome].inc();
        self.durations[verb].observe(micros as f64 / 1e6);
        if OUTCOMES[outcome] == "ok" {
            self.acks[verb].observe(f64::from(acked));
            if VERBS[verb] == "get" {
                self.siblings.observe(f64::from(siblings));
            }
            if hinted > 0 {
                self.hinted.inc_by(u64::from(hinted));
            }
        }
    }

    /// Where workers show how much waits for each peer.
    pub(crate) fn peer_queues(&self) -> PeerQueues {
        self.peer_queues.clone()
    }

    /// The page that Prometheus reads.
    fn page(&self, shared: &Shared) -> String {
        self.states.look(shared, &self.peer_queues);
        let mut page = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut page, &registry).is_err() {
            page.clear();
        }
        page
    }
}

impl States {
    fn register(&self, registry: &mut Registry) {
        registry.register(
            "hints_pending",
            "Hints kept for a replica that can't be reached",
            self.hints_pending.clone(),
        );
        registry.register("hints_pending_bytes", "Their bytes", self.hints_bytes.clone());
        let help = "How long the oldest of them has been waiting";
        registry.register_with_unit("hints_oldest_age", help, Unit::Seconds, self.hints_oldest.clone());
        let help = "Partitions that may have forgotten, and answer no reads yet";
        registry.register("recovering_partitions", help, self.recovering.clone());
        let help = "Deleted keys of which this node is the first replica";
        registry.register("tombstones_waiting", help, self.tombstones.clone());
        registry.register(
            "reaping_blocked",
            "1 while a member stands in the way of reaping",
            self.reaping_blocked.clone(),
        );
        let help = "How far this node's clock is ahead of its peers' (the median), milliseconds";
        registry.register("clock_ahead_ms", help, self.clock_ahead_ms.clone());
        let help = "1 while a round of anti-entropy with some peer is under way";
        registry.register("repair_running", help, self.repair_running.clone());
        let help = "Since the last round of anti-entropy ended";
        registry.register_with_unit(
            "repair_last_ended_ago",
            help,
            Unit::Seconds,
            self.repair_last_ended.clone(),
        );
        registry.register("requests_in_flight", "Clients' requests under way", self.in_flight.clone());
        let help = "Operations that wait for a peer's answer";
        registry.register("peer_requests_waiting", help, self.peer_waiting.clone());
        let help = "Updates that wait for the storage engine to make them durable";
        registry.register("storage_updates_waiting", help, self.storage_waiting.clone());
        registry.register("layout", "The newest layout's number", self.layout.clone());
        let help = "Active layouts: more than one while a change is under way";
        registry.register("layouts_active", help, self.layouts_active.clone());
        let help = "Partitions that this node still has to copy or hand over";
        registry.register("partitions_to_move", help, self.partitions_to_move.clone());
        let help = "Bytes that it has copied in this change of layout";
        registry.register("moved_bytes", help, self.moved_bytes.clone());
    }

    fn look(&self, shared: &Shared, queues: &PeerQueues) {
        let upkeep = shared.upkeep();
        self.hints_pending.clear();
        self.hints_bytes.clear();
        self.hints_oldest.clear();
        for hints in upkeep.hints_for {
            let peer = [("peer", hints.target)];
            self.hints_pending.get_or_create(&peer).set(hints.hints as i64);
            self.hints_bytes.get_or_create(&peer).set(hints.bytes as i64);
            self.hints_oldest.get_or_create(&peer).set((hints.oldest_ms / 1_000) as i64);
        }
        self.recovering.set(upkeep.recovering as i64);
        self.tombstones.set(upkeep.reaping.waiting as i64);
        self.reaping_blocked.set(i64::from(upkeep.reaping.blocked_by.is_some()));
        self.clock_ahead_ms.set(upkeep.clock_ahead_ms);
        self.repair_running.set(i64::from(upkeep.repair.running_with.is_some()));
        if let Some(ago_ms) = upkeep.repair.last_round_ago_ms {
            self.repair_last_ended.get_or_create(&[]).set((ago_ms / 1_000) as i64);
        }
        self.in_flight.set(upkeep.in_flight as i64);
        self.storage_waiting.set(shared.engine.waiting() as i64);
        let view = shared.view();
        self.peer_waiting.clear();
        for (peer, waiting) in queues.depths() {
            self.peer_waiting.get_or_create(&[("peer", view.name_of(peer))]).set(waiting as i64);
        }
        self.layout.set(view.newest().number() as i64);
        self.layouts_active.set(view.active.len() as i64);
        let moves = if view.is_settled() { Default::default() } else { shared.transfer_report() };
        self.partitions_to_move.set(i64::from(moves.partitions - moves.done.min(moves.partitions)));
        self.moved_bytes.set(moves.bytes as i64);
    }
}

impl EventSink for Metrics {
    fn emit(&self, event: Event) {
        match &event.kind {
            EventKind::Served { verb, outcome, micros, acked, siblings, hinted } => {
                // The one kind that is not rare: it goes no further.
                return self.served(verb, outcome, *micros, *acked, *siblings, *hinted);
            }
            EventKind::ReadRepaired { .. } => drop(self.read_repairs.inc()),
            EventKind::HintsDelivered { hints, .. } => drop(self.hints_delivered.inc_by(*hints as u64)),
            EventKind::HintRefused { .. } => drop(self.hints_refused.inc()),
            EventKind::StorageFailed { .. } => drop(self.storage_failures.inc()),
            EventKind::ActorRenewed { .. } => drop(self.actors_renewed.inc()),
            EventKind::Repaired { keys, .. } => {
                self.repair_rounds.inc();
                self.divergent_keys.inc_by(*keys);
            }
            EventKind::RepairFailed { .. } => drop(self.repairs_failed.inc()),
            EventKind::Reaped { keys } => drop(self.reaped.inc_by(*keys as u64)),
            EventKind::StrangerRefused { .. } | EventKind::PeerRefused { .. } => drop(self.strangers.inc()),
            EventKind::PeerUp { .. }
            | EventKind::PeerDown { .. }
            | EventKind::PeerUnreachable { .. }
            | EventKind::Recovering { .. }
            | EventKind::Recovered { .. }
            | EventKind::ClockSkewed { .. }
            | EventKind::LayoutChanges { .. }
            | EventKind::LayoutPhase { .. }
            | EventKind::Removed { .. }
            | EventKind::WriteIndeterminate { .. } => {}
        }
        LogEvents.emit(event);
    }
}

/// The node, once it has found its cluster.
pub(crate) type Served = Arc<OnceLock<Weak<Shared>>>;

/// Serves the HTTP port on a thread of its own, until it is dropped: also while the node looks for its cluster.
pub(crate) struct HttpPort {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl HttpPort {
    pub(crate) fn open(
        listener: std::net::TcpListener,
        metrics: Arc<Metrics>,
        node: Served,
    ) -> std::io::Result<HttpPort> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let serving = move || {
            runtime.block_on(async move {
                let Ok(listener) = TcpListener::from_std(listener) else { return };
                tokio::select! {
                    biased;
                    _ = stopped => {}
                    () = serve(listener, metrics, node) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("quorate-http".into()).spawn(serving)?;
        Ok(HttpPort { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for HttpPort {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, metrics: Arc<Metrics>, node: Served) {
    let places = Arc::new(tokio::sync::Semaphore::new(MAX_SCRAPES));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (metrics, node) = (metrics.clone(), node.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, &metrics, &node)).await;
        });
    }
}

/// Binds the port.
pub(crate) fn listen(address: SocketAddr) -> std::io::Result<std::net::TcpListener> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn answer(mut stream: TcpStream, metrics: &Metrics, node: &Served) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
        let count = stream.read(&mut part).await?;
        request.extend_from_slice(&part[..count]);
        if count == 0 || request.len() > MAX_REQUEST_BYTES {
            return reply(&mut stream, "400 Bad Request", "text/plain", "one small GET a connection\n").await;
        }
    }
    let line = request.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let shared = node.get().and_then(Weak::upgrade);
    match (method, path.split('?').next().unwrap_or_default()) {
        ("GET", "/livez") => reply(&mut stream, "200 OK", "text/plain", "alive\n").await,
        ("GET", "/metrics" | "/readyz") if shared.is_none() => {
            let why = "this node has not found its cluster yet, or is about to stop\n";
            reply(&mut stream, "503 Service Unavailable", "text/plain", why).await
        }
        ("GET", "/metrics") => {
            let page = shared.map_or_else(String::new, |shared| metrics.page(&shared));
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            reply(&mut stream, "200 OK", kind, &page).await
        }
        ("GET", "/readyz") => match shared.and_then(|shared| not_ready(&shared)) {
            None => reply(&mut stream, "200 OK", "text/plain", "ready\n").await,
            Some(why) => reply(&mut stream, "503 Service Unavailable", "text/plain", &why).await,
        },
        ("GET", _) => {
            let known = "known: /metrics, /livez, /readyz\n";
            reply(&mut stream, "404 Not Found", "text/plain", known).await
        }
        _ => reply(&mut stream, "405 Method Not Allowed", "text/plain", "use GET\n").await,
    }
}

/// Why the node does not answer all it should.
fn not_ready(shared: &Shared) -> Option<String> {
    let upkeep = shared.upkeep();
    let mut why = String::new();
    if upkeep.recovering > 0 {
        let _ = writeln!(why, "recovering: {} partitions answer no reads yet", upkeep.recovering);
    }
    if let Some(trouble) = upkeep.clock_trouble {
        let _ = writeln!(why, "coordinates nothing: {trouble}");
    }
    if shared.view().removed {
        let _ = writeln!(why, "taken out of the cluster while it was away");
    }
    if shared.is_drained() {
        let _ = writeln!(why, "drained: about to be stopped");
    }
    (!why.is_empty()).then_some(why)
}

async fn reply(stream: &mut TcpStream, status: &str, kind: &str, body: &str) -> std::io::Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

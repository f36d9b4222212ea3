//! A simulated cluster: the real nodes on simulated time, network and disks, and what can be done to them.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use quorate_node::layouts::{layouts_fact, stored_layouts};
use quorate_node::node::Service;
use quorate_node::shared::Parts;
use quorate_node::{Node, Settings, Shared};
use quorate_core::admission::Identity;
use quorate_core::change::{Change, Staged, change_id};
use quorate_core::codec::{decode_context, decode_object};
use quorate_core::environment::Environment;
use quorate_core::event::{Event, EventKind, EventSink};
use quorate_core::membership::Membership;
use quorate_core::planted::{Bug, plant};
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, ClusterReport, ClusterRequest, GetReply, GetRequest, PutReply,
    PutRequest, QuorumSize, RepairStatus, Replacing, Status,
};
use quorate_core::resolver::ConflictResolver;
use quorate_core::seams::{ReplySink, ReplyTo};
use quorate_core::transition::Layouts;
use quorate_core::{
    BucketDefinition, CausalContext, Key, Layout, Member, NodeId, Object, Payload, RequestError, RequestId,
    StorageKey,
};
use quorate_rpc::ClientProtocol;
use quorate_rpc::lane::{Lane, PeerQueues};
use quorate_rpc::network::Network;
use quorate_rpc::peers::Peers;
use quorate_rpc::preamble::introduce;
use quorate_rpc::serve::serve_connection;
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tokio::time::Instant;

use crate::disk::{Disk, Durability, SimStorage};
use crate::network::{FIRST_CLIENT, HostNetwork, Net};
use crate::oracle::{Ack, Asked, Oracle, Rule, Violation};
use crate::random::Random;

/// The wall clock at the start of a run.
const EPOCH_MS: u64 = 1_800_000_000_000;

/// What a run is made of.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes make up the first layout.
    pub nodes: usize,
    /// How many more there are, that can become members.
    pub spares: usize,
    /// N.
    pub replicas: u8,
    /// Q.
    pub partitions: u32,
    /// The engines'.
    pub durability: Durability,
    /// Anti-entropy by itself, when a peer returns and at intervals; otherwise only at the end.
    pub anti_entropy: bool,
    /// Tombstones are reaped.
    pub reaping: bool,
    /// The bug to plant, if any.
    pub bug: Option<Bug>,
    /// Of the bucket `b`.
    pub bucket: BucketDefinition,
    /// How far clocks may differ.
    pub max_skew_ms: u64,
    /// Members find each other by gossip, from one seed.
    pub gossip: bool,
    /// How fast a node copies what moves to it: a partition of a run has a few hundred bytes.
    pub transfer_bytes_per_s: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            nodes: 5,
            spares: 0,
            replicas: 3,
            partitions: 8,
            durability: Durability::Fsync,
            anti_entropy: false,
            reaping: false,
            bug: None,
            bucket: BucketDefinition::default(),
            max_skew_ms: MAX_SKEW_MS,
            gossip: false,
            transfer_bytes_per_s: 1024 * 1024,
        }
    }
}

/// The bucket that keeps siblings, and the one in which the last write wins.
pub const SIBLINGS: &str = "b";
/// The bucket in which the last write wins.
pub const LAST_WINS: &str = "lww";
/// The bucket that goes by the default at first, and gets an n of its own while it is in use.
pub const REDEFINED: &str = "own";

impl Options {
    /// The nodes' settings: everything that takes minutes in real life takes seconds.
    pub fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.coordinator.max_request_timeout_ms = 2_000;
        settings.coordinator.max_clock_skew_ms = self.max_skew_ms;
        settings.repair.interval_ms = 5_000;
        settings.repair.enabled = self.anti_entropy;
        settings.transfer.bytes_per_s = self.transfer_bytes_per_s;
        settings.reaping.enabled = self.reaping;
        settings.reaping.interval_ms = 400;
        settings.reaping.grace_ms = settings.shortest_grace_ms();
        settings
    }

    fn definitions(&self) -> BTreeMap<String, BucketDefinition> {
        let last_wins = BucketDefinition { resolver: "lww".into(), ..self.bucket.clone() };
        BTreeMap::from([(SIBLINGS.to_owned(), self.bucket.clone()), (LAST_WINS.to_owned(), last_wins)])
    }
}

/// How far the nodes' clocks may differ in a run.
pub const MAX_SKEW_MS: u64 = 1_000;

/// A wall clock that can be set, and randomness from the seed.
struct SimEnvironment {
    start: Instant,
    skew_ms: Arc<AtomicI64>,
    random: Mutex<Random>,
}

impl Environment for SimEnvironment {
    fn wall_ms(&self) -> u64 {
        let now = EPOCH_MS + self.start.elapsed().as_millis() as u64;
        now.saturating_add_signed(self.skew_ms.load(Ordering::Relaxed))
    }

    fn monotonic_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn random(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).draw()
    }
}

/// Everything that happened, in order: two runs of one seed have the same.
#[derive(Clone)]
pub struct Log {
    start: Instant,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Log {
    /// Adds a line.
    pub fn add(&self, line: impl Into<String>) {
        let line = format!("{:>9} {}", self.start.elapsed().as_micros(), line.into());
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct LogEvents {
    node: usize,
    log: Log,
    oracle: Arc<Oracle>,
}

impl EventSink for LogEvents {
    fn emit(&self, event: Event) {
        self.log.add(format!("n{} {:?} {:?}", self.node, event.request, event.kind));
        if let EventKind::LayoutPhase { number, phase, .. } = event.kind {
            self.oracle.phase(self.node, number, phase, self.log.now_ms());
        }
    }
}

/// One node: its disk stays, its memory goes with its process.
struct Machine {
    member: Member,
    disk: Arc<Disk>,
    skew_ms: Arc<AtomicI64>,
    random: Random,
    durability: Durability,
    process: Option<Process>,
}

/// A running node: all of its tasks.
struct Process {
    tasks: Rc<RefCell<Option<LocalSet>>>,
    paused: Rc<Cell<bool>>,
    waker: Rc<RefCell<Option<Waker>>>,
    node: Rc<RefCell<Option<Rc<Node>>>>,
}

/// Polls a node's tasks, unless it is paused.
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

type ClientLane = Rc<Lane<ClientProtocol>>;

/// A cluster and its world. Nodes are named by number.
pub struct Sim {
    /// What it is made of.
    pub options: Options,
    /// The network.
    pub net: Net,
    /// What really happened.
    pub oracle: Arc<Oracle>,
    /// What was seen to happen.
    pub log: Log,
    start: Instant,
    /// The first one.
    founding: Layout,
    /// The newest one, and from what it was read.
    newest: RefCell<(Vec<Bytes>, Layout)>,
    machines: RefCell<Vec<Machine>>,
    random: RefCell<Random>,
    lanes: RefCell<BTreeMap<(usize, usize), ClientLane>>,
    lost: RefCell<BTreeSet<usize>>,
    next_request: Cell<u64>,
    last_change: Cell<u64>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// Everything that happened.
    pub log: Vec<String>,
    /// Writes that a failure hid, were retried, and showed twice: allowed.
    pub retries_seen_twice: u64,
}

thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A panic in a task disappears with it: it is remembered here, for the thread that runs the simulation.
fn watch_panics() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with_borrow_mut(|panics| panics.push(panic.to_string()));
            report(panic);
        }));
    });
}

/// Runs a scenario on a new cluster, all nodes started and ready. Everything in it comes from the seed.
pub fn run<F: AsyncFnOnce(&Rc<Sim>)>(seed: u64, options: Options, scenario: F) -> Outcome {
    watch_panics();
    PANICS.with_borrow_mut(Vec::clear);
    plant(options.bug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be built");
    let world = LocalSet::new();
    let outcome = runtime.block_on(world.run_until(async move {
        let sim = Sim::new(seed, options);
        for node in 0..sim.count() {
            sim.start(node);
        }
        sim.until_ready().await;
        scenario(&sim).await;
        let outcome = Outcome {
            violations: sim.oracle.violations(),
            log: sim.log.take(),
            retries_seen_twice: sim.oracle.retries_seen_twice(),
        };
        for node in 0..sim.count() {
            sim.kill(node);
        }
        outcome
    }));
    drop(world);
    plant(None);
    let mut outcome = outcome;
    for text in PANICS.take() {
        outcome.violations.push(Violation { rule: Rule::Crash, text });
    }
    outcome
}

/// What a request came to: an answer, or nothing was heard.
pub type Heard = Option<ClientResult>;

impl Sim {
    fn new(seed: u64, options: Options) -> Rc<Sim> {
        let mut random = Random::new(seed);
        let start = Instant::now();
        let oracle = Arc::new(Oracle::default());
        let machines: Vec<Machine> = (0..options.nodes + options.spares)
            .map(|node| Machine {
                member: Member::new(&format!("n{node}"), &format!("n{node}:7400"), ""),
                disk: Disk::new(node, oracle.clone(), random.fork()),
                skew_ms: Arc::default(),
                random: random.fork(),
                durability: options.durability,
                process: None,
            })
            .collect();
        machines.iter().for_each(|machine: &Machine| oracle.add_disk(&machine.disk));
        let members = machines[..options.nodes].iter().map(|machine| machine.member.clone()).collect();
        let layout = Layout::first(members, options.partitions, options.replicas)
            .and_then(|layout| layout.with_buckets(&options.definitions()))
            .expect("a valid layout");
        Rc::new(Sim {
            net: Net::new(random.fork()),
            oracle,
            log: Log { start, lines: Arc::default() },
            start,
            newest: RefCell::new((Vec::new(), layout.clone())),
            founding: layout,
            machines: RefCell::new(machines),
            random: RefCell::new(random),
            lanes: RefCell::default(),
            lost: RefCell::default(),
            next_request: Cell::new(1),
            last_change: Cell::new(0),
            options,
        })
    }

    /// How many machines there are, members or not.
    pub fn count(&self) -> usize {
        self.options.nodes + self.options.spares
    }

    /// The newest layout that any disk has: nodes that were told to go by it have stored it.
    pub fn layout(&self) -> Layout {
        let key = layouts_fact().to_bytes();
        let machines = self.machines.borrow();
        let stored: Vec<Bytes> = machines.iter().filter_map(|machine| machine.disk.record(&key)).collect();
        let mut newest = self.newest.borrow_mut();
        if newest.0 != stored {
            let layout = |bytes: &Bytes| {
                let layouts = Layouts::decode(NodeId(0), bytes).ok()?;
                Some((**layouts.newest()).clone())
            };
            let found =
                stored.iter().filter_map(layout).max_by_key(|layout| (layout.number(), layout.digest()));
            *newest = (stored, found.unwrap_or_else(|| self.founding.clone()));
        }
        newest.1.clone()
    }

    /// The numbers of the newest layout's members.
    pub fn members(&self) -> Vec<usize> {
        self.layout().members().iter().map(|member| self.number_of(member.id)).collect()
    }

    /// A node's name.
    pub fn name(&self, node: usize) -> String {
        self.machines.borrow()[node].member.name.clone()
    }

    /// Sends an operator's request to a node.
    pub async fn cluster(
        &self,
        via: usize,
        request: ClusterRequest,
    ) -> Option<Result<ClusterReport, RequestError>> {
        self.log.add(format!("cluster {request:?} via n{via}"));
        match self.request(998, via, ClientRequest::Cluster(request), Duration::from_secs(2)).await? {
            Ok(ClientReply::Report(json)) => serde_json::from_str(&json).ok().map(Ok),
            Ok(_) => None,
            Err(error) => {
                self.log.add(format!("cluster: {error}"));
                Some(Err(error))
            }
        }
    }

    fn staged(&self, change: Change) -> Staged {
        let id = change_id(self.now_ms(), 0, self.last_change.get());
        self.last_change.set(id);
        Staged { id, change }
    }

    /// Makes one change at a node, or at the next one, if nothing is heard from that: the first may have made it, too.
    async fn apply(&self, via: usize, change: Change) -> bool {
        let apply = ClusterRequest::Apply(self.staged(change));
        let count = self.machines.borrow().len();
        let others = (1..count).map(|step| (via + step) % count).filter(|&other| self.is_running(other));
        for node in [via].into_iter().chain(others.take(1)) {
            if let Some(answer) = self.cluster(node, apply.clone()).await {
                return answer.is_ok();
            }
        }
        false
    }

    /// Stages changes at a node and commits them, or makes a single one at once. False if that is refused, or nothing was
    /// heard.
    pub async fn change(&self, via: usize, changes: Vec<Change>) -> bool {
        self.oracle.layout_changes();
        if let [change] = &changes[..]
            && self.now_ms().is_multiple_of(2)
        {
            return self.apply(via, change.clone()).await;
        }
        for change in changes {
            let stage = ClusterRequest::Stage(self.staged(change));
            if !matches!(self.cluster(via, stage).await, Some(Ok(_))) {
                self.cluster(via, ClusterRequest::Clear).await;
                return false;
            }
        }
        matches!(self.cluster(via, ClusterRequest::Commit { plan: None }).await, Some(Ok(_)))
    }

    /// A node's disk is about to be declared lost: what it acked is gone, and if it comes back it is refused.
    pub fn declare_lost(&self, node: usize) {
        self.log.add(format!("declare n{node} lost"));
        self.oracle.lost_disk(node, self.now_ms());
        self.lost.borrow_mut().insert(node);
    }

    /// True if a node's disk was declared lost.
    pub fn was_lost(&self, node: usize) -> bool {
        self.lost.borrow().contains(&node)
    }

    /// Makes a machine a member.
    pub fn joining(&self, node: usize) -> Change {
        let member = self.machines.borrow()[node].member.clone();
        Change::Join {
            name: member.name,
            address: member.address,
            zone: String::new(),
            weight: member.weight,
        }
    }

    /// Waits until no change of layout is under way on any running member, and all of them go by the same.
    pub async fn until_settled(&self) {
        for _ in 0..2_000 {
            if self.is_settled().await {
                return;
            }
            self.sleep(100).await;
        }
        let mut reports = Vec::new();
        for node in self.members() {
            let report = self.cluster(node, ClusterRequest::Show).await;
            reports.push(format!("n{node}: {report:?}"));
        }
        let text = format!("a change of layout does not end: {}", reports.join("\n"));
        self.oracle.report(Rule::Convergence, text);
    }

    async fn is_settled(&self) -> bool {
        let digest = format!("{:016x}", self.layout().digest());
        for node in self.members().into_iter().filter(|&node| self.is_running(node)) {
            let Some(status) = self.status(node).await else { return false };
            if status.change.is_some() || status.layout_digest != digest {
                return false;
            }
        }
        true
    }

    /// Draws from the seed.
    pub fn random(&self) -> Random {
        self.random.borrow_mut().fork()
    }

    /// Milliseconds since the run began.
    pub fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    /// Lets time pass.
    pub async fn sleep(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Whether a node's process is there, be it paused.
    pub fn is_running(&self, node: usize) -> bool {
        self.machines.borrow()[node].process.is_some()
    }

    /// Starts a node on its disk.
    pub fn start(&self, node: usize) {
        if self.is_running(node) {
            return;
        }
        self.log.add(format!("start n{node}"));
        let mut machines = self.machines.borrow_mut();
        let others: Vec<Member> = machines.iter().map(|machine| machine.member.clone()).collect();
        let machine = &mut machines[node];
        let identity = Identity {
            cluster: "sim".into(),
            node: machine.member.id,
            name: machine.member.name.clone(),
            layout_digest: self.founding.digest(),
        };
        let environment = Arc::new(SimEnvironment {
            start: self.start,
            skew_ms: machine.skew_ms.clone(),
            random: Mutex::new(machine.random.fork()),
        });
        let resolvers: BTreeMap<String, Arc<dyn ConflictResolver>> = BTreeMap::from([
            ("siblings".to_owned(), Arc::new(quorate_resolver_siblings::open(Default::default())) as _),
            ("lww".to_owned(), Arc::new(quorate_resolver_lww::open(Default::default())) as _),
        ]);
        let is_empty = machine.disk.is_empty();
        let events: Arc<dyn EventSink> =
            Arc::new(LogEvents { node, log: self.log.clone(), oracle: self.oracle.clone() });
        let engine = Arc::new(SimStorage::open(machine.disk.clone(), machine.durability));
        let stored = stored_layouts(identity.node, &*engine).expect("a simulated disk can be read");
        let shared = Shared::new(Parts {
            identity: identity.clone(),
            layouts: stored.unwrap_or_else(|| Layouts::settled(identity.node, self.founding.clone())),
            resolvers,
            engine,
            storage_name: "simulated".into(),
            environment: environment.clone(),
            events: events.clone(),
            membership: Arc::new(Mutex::new(self.membership(&machine.member, &others))),
            settings: self.options.settings(),
            is_empty,
        })
        .expect("a simulated disk can be read");
        let tasks = LocalSet::new();
        let network: Rc<dyn Network> = Rc::new(HostNetwork { net: self.net.clone(), host: node });
        let mut incoming = self.net.listen(node, &machine.member.address);
        // By gossip, they are met as they are heard of.
        let known = if self.options.gossip { 1 } else { others.len() };
        let others: Vec<Member> =
            others.into_iter().take(known).filter(|member| member.id != machine.member.id).collect();
        let running = Rc::new(RefCell::new(None));
        let theirs = running.clone();
        tasks.spawn_local(async move {
            let queues = PeerQueues::default();
            let peers = Peers::start(others, identity.clone(), network.clone(), environment, events, queues);
            let node = Node::new(shared, peers.clone(), None);
            node.start_upkeep();
            node.follow_members();
            *theirs.borrow_mut() = Some(node.clone());
            let service = Rc::new(Service(node));
            while let Some(duplex) = incoming.recv().await {
                let (identity, service, network, peers) =
                    (identity.clone(), service.clone(), network.clone(), peers.clone());
                tokio::task::spawn_local(async move {
                    let on_peer = |peer| peers.hurry(peer);
                    serve_connection(duplex, "somebody", &identity, service, network, on_peer).await;
                });
            }
        });
        let tasks = Rc::new(RefCell::new(Some(tasks)));
        let paused = Rc::new(Cell::new(false));
        let waker = Rc::new(RefCell::new(None));
        let driver = Driver { tasks: tasks.clone(), paused: paused.clone(), waker: waker.clone() };
        tokio::task::spawn_local(driver);
        machine.process = Some(Process { tasks, paused, waker, node: running });
    }

    /// Gossip that begins with one seed, or the list.
    fn membership(&self, this: &Member, all: &[Member]) -> Box<dyn Membership> {
        if !self.options.gossip {
            let entry = |member: &Member| quorate_membership_static::MemberEntry {
                name: member.name.clone(),
                address: member.address.clone(),
                zone: String::new(),
            };
            let config = quorate_membership_static::Config {
                members: all.iter().map(entry).collect(),
                ..Default::default()
            };
            return Box::new(quorate_membership_static::open(config, this).expect("a valid list"));
        }
        let seeds = vec![all[0].address.clone()];
        let config = quorate_membership_gossip::Config { seeds, expect: all.len(), ..Default::default() };
        let mut gossip = quorate_membership_gossip::open(config, this).expect("a valid configuration");
        gossip.join(all[0].clone()).expect("a seed");
        Box::new(gossip)
    }

    fn end(&self, node: usize) {
        let process = self.machines.borrow_mut()[node].process.take();
        let Some(process) = process else { return };
        let running = process.node.borrow().as_ref().map(|node| node.view().newest().number());
        if let Some(number) = running {
            self.check_stored(node, number);
        }
        process.node.take();
        let tasks = process.tasks.borrow_mut().take();
        drop(tasks);
        if let Some(waker) = process.waker.take() {
            waker.wake();
        }
        let machines = self.machines.borrow();
        machines[node].disk.lose_uncommitted();
        if machines[node].durability == Durability::Interval {
            self.oracle.lost_disk(node, self.now_ms());
        }
    }

    /// What a node goes by when it dies must be what it finds when it starts again.
    /// (Of two rivals it may have stored the one and still go by the other.)
    fn check_stored(&self, node: usize, number: u64) {
        let key = layouts_fact().to_bytes();
        let stored = self.machines.borrow()[node].disk.image().get(&key).cloned();
        let layouts = stored.and_then(|bytes| Layouts::decode(NodeId(0), &bytes).ok());
        let stored = layouts.map_or(self.founding.number(), |layouts| layouts.newest().number());
        if stored < number {
            let text = format!("n{node} went by layout {number}, and has stored {stored}");
            self.oracle.report(Rule::Whole, text);
        }
    }

    /// Kills a node: what was not durable is lost, its peers hear that its connections are closed.
    pub fn kill(&self, node: usize) {
        self.log.add(format!("kill n{node}"));
        self.end(node);
    }

    /// A node loses power: nobody hears anything.
    pub fn power_off(&self, node: usize) {
        self.log.add(format!("power off n{node}"));
        self.net.silence(node);
        self.end(node);
    }

    /// Stops a node cleanly: what it has under way is finished first.
    pub async fn stop(&self, node: usize) {
        self.log.add(format!("stop n{node}"));
        let running =
            self.machines.borrow()[node].process.as_ref().and_then(|process| process.node.borrow().clone());
        if let Some(running) = running {
            running.stop_taking();
            for _ in 0..300 {
                if running.in_flight() == 0 {
                    break;
                }
                self.sleep(10).await;
            }
        }
        self.sleep(1_100).await;
        self.end(node);
    }

    /// Loses a node's disk. It must not run.
    pub fn wipe(&self, node: usize) {
        self.log.add(format!("wipe n{node}"));
        assert!(!self.is_running(node), "stop n{node} before its disk is wiped");
        self.machines.borrow()[node].disk.wipe();
        self.oracle.lost_disk(node, self.now_ms());
    }

    /// Freezes a node.
    pub fn pause(&self, node: usize) {
        self.log.add(format!("pause n{node}"));
        if let Some(process) = &self.machines.borrow()[node].process {
            process.paused.set(true);
        }
    }

    /// Lets it go on.
    pub fn resume(&self, node: usize) {
        let machines = self.machines.borrow();
        if let Some(process) = &machines[node].process
            && process.paused.replace(false)
        {
            self.log.add(format!("resume n{node}"));
            if let Some(waker) = process.waker.borrow().as_ref() {
                waker.wake_by_ref();
            }
        }
    }

    /// Sets a node's clock this much ahead (or behind) of the true time.
    pub fn skew(&self, node: usize, ms: i64) {
        self.log.add(format!("skew n{node} by {ms} ms"));
        self.machines.borrow()[node].skew_ms.store(ms, Ordering::Relaxed);
    }

    /// Lets a node's disk be full, or have room again.
    pub fn set_full(&self, node: usize, full: bool) {
        self.log.add(format!("disk of n{node} full: {full}"));
        self.machines.borrow()[node].disk.set_full(full);
    }

    /// Damages what a node holds of a key: as good as lost.
    pub fn damage(&self, node: usize, key: &Key) {
        if self.machines.borrow()[node].disk.damage(&self.storage_key(key)) {
            self.log.add(format!("damage {key:?} on n{node}"));
            self.oracle.lost_disk(node, self.now_ms());
        }
    }

    /// A node's disk.
    pub fn disk(&self, node: usize) -> Arc<Disk> {
        self.machines.borrow()[node].disk.clone()
    }

    /// Sets how a node's engine commits, from its next start.
    pub fn set_durability(&self, node: usize, durability: Durability) {
        self.machines.borrow_mut()[node].durability = durability;
    }

    /// Cuts a node off from all others, both ways.
    pub fn isolate(&self, node: usize) {
        self.log.add(format!("isolate n{node}"));
        for other in 0..self.count() {
            if other != node {
                self.net.cut(node, other);
                self.net.cut(other, node);
            }
        }
    }

    /// Cuts the nodes of one group off from all others, both ways.
    pub fn cut_off(&self, group: &[usize]) {
        self.log.add(format!("cut off {group:?}"));
        for &one in group {
            for other in (0..self.count()).filter(|other| !group.contains(other)) {
                self.net.cut(one, other);
                self.net.cut(other, one);
            }
        }
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.log.add("heal");
        self.net.heal();
        self.net.release();
    }

    fn number_of(&self, id: NodeId) -> usize {
        self.machines.borrow().iter().position(|machine| machine.member.id == id).expect("a member")
    }

    /// A key's replicas by the newest layout, by number.
    pub fn replicas(&self, key: &Key) -> Vec<usize> {
        let layout = self.layout();
        let replicas = layout.replicas_for(layout.partition_of(key.hash()), key.bucket());
        replicas.iter().map(|id| self.number_of(*id)).collect()
    }

    /// Where a key lies: its replicas, in order, and then the fallbacks, by number.
    pub fn place(&self, key: &Key) -> Vec<usize> {
        let layout = self.layout();
        let partition = layout.partition_of(key.hash());
        let n = layout.buckets().get(key.bucket()).n;
        let replicas = layout.replicas_of(partition, n).to_vec();
        let all = replicas.into_iter().chain(layout.fallbacks_of(partition, n));
        all.map(|id| self.number_of(id)).collect()
    }

    /// The key as engines store it.
    pub fn storage_key(&self, key: &Key) -> StorageKey {
        StorageKey::of(self.founding.partition_of(key.hash()), key)
    }

    /// What a node holds under a key, as a replica.
    pub fn held(&self, node: usize, key: &Key) -> Option<Object> {
        let records = self.machines.borrow()[node].disk.records();
        let object = records.get(self.storage_key(key).as_bytes())?;
        decode_object(object).ok().map(|record| record.object)
    }

    /// The values that a node holds under a key.
    pub fn values(&self, node: usize, key: &Key) -> BTreeSet<String> {
        let object = self.held(node, key).unwrap_or_default();
        let text = |payload: &Payload| match payload {
            Payload::Value(value) => String::from_utf8_lossy(value).into_owned(),
            Payload::Tombstone => String::new(),
        };
        object.shown().iter().map(|version| text(&version.payload)).collect()
    }

    async fn lane(&self, client: usize, node: usize) -> Option<Rc<Lane<ClientProtocol>>> {
        let known = self.lanes.borrow().get(&(client, node)).cloned();
        if let Some(lane) = known.filter(|lane| lane.closed().is_none()) {
            return Some(lane);
        }
        let network = HostNetwork { net: self.net.clone(), host: FIRST_CLIENT + client };
        let address = self.machines.borrow()[node].member.address.clone();
        let mut duplex = network.connect(&address, None).await.ok()?;
        introduce(&mut duplex, None).await.ok()?;
        let lane = Lane::open(duplex);
        self.lanes.borrow_mut().insert((client, node), lane.clone());
        Some(lane)
    }

    /// Sends a request to a node; `None` if nothing was heard in time.
    pub async fn request(
        &self,
        client: usize,
        node: usize,
        request: ClientRequest,
        timeout: Duration,
    ) -> Heard {
        let exchange = async {
            let lane = self.lane(client, node).await?;
            let (sender, receiver) = oneshot::channel();
            let reply = ReplyTo::new(Rc::new(Sink(Cell::new(Some(sender)))), 0);
            lane.send(request, timeout.mul_f64(0.9), reply);
            receiver.await.ok()
        };
        tokio::time::timeout(timeout, exchange).await.ok().flatten()
    }

    /// A new write's id.
    pub fn new_request(&self) -> RequestId {
        RequestId(self.next_request.replace(self.next_request.get() + 1))
    }

    /// A node's view.
    pub async fn status(&self, node: usize) -> Option<Status> {
        match self.request(999, node, ClientRequest::Status, Duration::from_secs(2)).await {
            Some(Ok(ClientReply::Report(json))) => serde_json::from_str(&json).ok(),
            _ => None,
        }
    }

    /// A node's anti-entropy; `start`: begin a round with each peer.
    pub async fn repair(&self, node: usize, start: bool) -> Option<RepairStatus> {
        match self.request(999, node, ClientRequest::Repair { start }, Duration::from_secs(2)).await {
            Some(Ok(ClientReply::Report(json))) => serde_json::from_str(&json).ok(),
            _ => None,
        }
    }

    /// Waits until all running nodes are connected and none is recovering.
    pub async fn until_ready(&self) {
        for _ in 0..2_000 {
            if self.is_ready().await {
                return;
            }
            self.sleep(50).await;
        }
        self.oracle.report(Rule::Crash, "the cluster is not ready after 100 s".into());
    }

    async fn is_ready(&self) -> bool {
        let running: Vec<usize> = self.members().into_iter().filter(|&node| self.is_running(node)).collect();
        for &node in &running {
            let Some(status) = self.status(node).await else { return false };
            let up = status.members.iter().filter(|member| member.state == "up").count();
            if up < running.len() || status.recovering > 0 {
                return false;
            }
        }
        true
    }

    /// Heals, starts everything, lets hints be delivered, and runs anti-entropy until a round finds nothing. Then all replicas
    /// must hold the same and no hint be left.
    pub async fn settle(&self) {
        self.log.add("settle");
        self.heal();
        for node in 0..self.count() {
            self.skew(node, 0);
            self.set_full(node, false);
            self.resume(node);
            self.start(node);
        }
        self.until_ready().await;
        // A commit that was held back may arrive only now, and begin another change.
        for _ in 0..3 {
            let layout = self.layout().digest();
            let differing = self.come_to_rest().await;
            if differing.is_empty() {
                return;
            }
            if self.layout().digest() == layout {
                return differing.into_iter().for_each(|text| self.oracle.report(Rule::Convergence, text));
            }
        }
        self.oracle.report(Rule::Convergence, "the layout changes again and again".into());
    }

    /// Waits until no change is under way and no hint is kept, and has all nodes compare themselves. Returns what differs.
    async fn come_to_rest(&self) -> Vec<String> {
        self.until_settled().await;
        for _ in 0..60 {
            let mut hints = 0;
            for node in self.members() {
                hints += self.status(node).await.map_or(1, |status| status.hints);
            }
            if hints == 0 {
                break;
            }
            self.sleep(1_000).await;
        }
        for _ in 0..20 {
            let mut found = 0;
            for node in self.members() {
                found += self.whole_round(node).await;
            }
            if found == 0 {
                break;
            }
        }
        // An order to reap may be on its way.
        let mut differing = self.differing();
        for _ in 0..20 {
            if differing.is_empty() {
                break;
            }
            self.sleep(500).await;
            differing = self.differing();
        }
        differing
    }

    /// Has a node compare itself with every peer, and waits for it. Returns how many keys differed.
    pub async fn whole_round(&self, node: usize) -> u64 {
        let Some(before) = self.repair(node, true).await else { return 1 };
        let goal = before.rounds + self.members().len() as u64 - 1;
        for _ in 0..200 {
            self.sleep(100).await;
            if let Some(now) = self.repair(node, false).await
                && now.rounds >= goal
            {
                return now.divergent_keys - before.divergent_keys;
            }
        }
        self.oracle.report(Rule::Convergence, format!("n{node}: a round of repair does not end"));
        1
    }

    /// All object records by node.
    fn objects(&self) -> BTreeMap<Bytes, BTreeMap<usize, Object>> {
        let mut objects: BTreeMap<Bytes, BTreeMap<usize, Object>> = BTreeMap::new();
        let layout = self.layout();
        for (node, machine) in self.machines.borrow().iter().enumerate() {
            // What was declared lost is refused, whatever it holds.
            if layout.is_lost(machine.member.id) {
                continue;
            }
            for (key, value) in machine.disk.records() {
                if StorageKey::from_peer(&key).is_some()
                    && let Ok(record) = decode_object(&value)
                {
                    objects.entry(key).or_default().insert(node, record.object);
                }
            }
        }
        objects
    }

    fn replicas_of(&self, key: &StorageKey) -> Vec<usize> {
        let layout = self.layout();
        layout.replicas_for(key.partition(), key.bucket()).iter().map(|&id| self.number_of(id)).collect()
    }

    fn differing(&self) -> Vec<String> {
        let mut differing = Vec::new();
        for (key, holders) in self.objects() {
            let named = StorageKey::from_peer(&key).expect("looked at");
            let replicas = self.replicas_of(&named);
            let digests: BTreeSet<_> =
                replicas.iter().map(|node| holders.get(node).map(|object| object.digest())).collect();
            if digests.len() != 1 || holders.keys().any(|node| !replicas.contains(node)) {
                let held: BTreeMap<_, _> =
                    holders.iter().map(|(node, object)| (node, (object.digest(), object.live()))).collect();
                let text = format!("{named:?} of {replicas:?} is held as {held:?}");
                differing.push(text);
            }
        }
        let layout = self.layout();
        let kept = |machine: &&Machine| !layout.is_lost(machine.member.id);
        for (node, machine) in self.machines.borrow().iter().enumerate().filter(|(_, machine)| kept(machine))
        {
            let hints = machine.disk.records().keys().filter(|key| key.first() == Some(&b'h')).count();
            if hints > 0 {
                differing.push(format!("n{node} still holds {hints} hints"));
            }
        }
        differing
    }

    /// Holds the end state of all keys against what happened.
    pub fn check_end(&self, keys: &[Key]) {
        let objects = self.objects();
        for key in keys {
            let named = self.storage_key(key);
            let replicas = self.replicas_of(&named);
            let holders = objects.get(named.as_bytes());
            let end = holders.and_then(|holders| holders.get(&replicas[0])).cloned().unwrap_or_default();
            self.oracle.check_end(&named, &end, &replicas);
        }
    }
}

struct Sink(Cell<Option<oneshot::Sender<ClientResult>>>);

impl ReplySink<Heard> for Sink {
    fn reply(&self, _: u64, answer: Option<Heard>) {
        if let (Some(sender), Some(answer)) = (self.0.take(), answer.flatten()) {
            let _ = sender.send(answer);
        }
    }
}

/// How a client wants its write.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Which client.
    pub client: usize,
    /// Acks.
    pub w: QuorumSize,
    /// Whether fallbacks count.
    pub sloppy: Option<bool>,
    /// How long it waits.
    pub timeout_ms: u64,
    /// Attempts before this one.
    pub attempt: u16,
}

impl Default for How {
    fn default() -> Self {
        How { client: 0, w: QuorumSize::Default, sloppy: None, timeout_ms: 1_000, attempt: 0 }
    }
}

/// What a write replaces, as a client means it.
#[derive(Clone, Debug)]
pub enum Over {
    /// Nothing: it is concurrent with everything.
    Nothing,
    /// Exactly what this context contains.
    Exactly(Bytes),
    /// What is there, and what the client saw.
    WhatIsThere(Bytes),
}

impl Sim {
    fn decode(&self, key: &Key, context: &Bytes) -> CausalContext {
        decode_context(context, key.hash()).expect("a context of this key")
    }

    /// One attempt at a write, told to the oracle before and after.
    pub async fn attempt(
        &self,
        via: usize,
        key: &Key,
        payload: Payload,
        over: &Over,
        request: RequestId,
        how: How,
    ) -> Option<Result<PutReply, RequestError>> {
        let client = how.client;
        let named = self.storage_key(key);
        if key.bucket() == LAST_WINS {
            self.oracle.keeps_newest(&named);
        }
        let (replacing, context, overwrites) = match over {
            Over::Nothing => (Replacing::Exactly { context: Bytes::new() }, CausalContext::EMPTY, false),
            Over::Exactly(context) => {
                (Replacing::Exactly { context: context.clone() }, self.decode(key, context), false)
            }
            Over::WhatIsThere(seen) => {
                (Replacing::WhatIsThere { seen: seen.clone() }, self.decode(key, seen), true)
            }
        };
        if how.attempt == 0 {
            let asked = Asked {
                key: named.clone(),
                payload: payload.clone(),
                context: context.clone(),
                overwrites,
                acked: None,
            };
            self.oracle.asked(request, asked);
        }
        self.log
            .add(format!("c{client} put {key:?} {request:?} {payload:?} via n{via} attempt {}", how.attempt));
        let put = PutRequest {
            key: key.clone(),
            payload,
            replacing,
            request,
            w: how.w,
            sloppy: how.sloppy,
            attempt: how.attempt,
        };
        let (timeout, begun) = (Duration::from_millis(how.timeout_ms), self.now_ms());
        let heard = self.request(client, via, ClientRequest::Put(put), timeout).await;
        self.log.add(format!("c{client} heard {request:?} {}", short(&heard)));
        match heard? {
            Ok(ClientReply::Put(reply)) => {
                let n = self.replicas_of(&named).len() as u8;
                let default = if how.w == QuorumSize::Default { self.options.bucket.w } else { how.w };
                let ack = Ack {
                    at_ms: self.now_ms(),
                    since_ms: begun,
                    w: default.of(n).into(),
                    nodes: reply.receipt.acked.iter().map(|&id| self.number_of(id)).collect(),
                    fallbacks: reply.receipt.fallbacks.iter().map(|&id| self.number_of(id)).collect(),
                    dots: Vec::new(),
                };
                let after = self.decode(key, &reply.context);
                self.oracle.acked(request, ack, &after);
                self.oracle.check_context(&named, &after, &context, &[request], "a put's context");
                Some(Ok(reply))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Puts an image of a node's disk back. It must not run.
    pub fn restore(&self, node: usize, image: BTreeMap<Bytes, Bytes>) {
        self.log.add(format!("restore n{node}"));
        assert!(!self.is_running(node), "stop n{node} before its disk is replaced");
        self.machines.borrow()[node].disk.restore(image);
        self.oracle.lost_disk(node, self.now_ms());
    }

    /// Holds back what a node sends to client 0.
    pub fn hold_answers(&self, node: usize) {
        self.net.hold(node, FIRST_CLIENT);
    }

    /// One write through a node that may not be ready yet: again as long as nothing was attempted.
    pub async fn put_soon(&self, via: usize, key: &Key, value: &str, over: Over) -> PutReply {
        self.put_soon_as(via, key, value, over, How::default()).await
    }

    /// As [`Sim::put_soon`], as the client wants it.
    pub async fn put_soon_as(&self, via: usize, key: &Key, value: &str, over: Over, how: How) -> PutReply {
        for _ in 0..1_000 {
            let payload = Payload::Value(Bytes::copy_from_slice(value.as_bytes()));
            let request = self.new_request();
            match self.attempt(via, key, payload, &over, request, how).await {
                Some(Ok(reply)) => return reply,
                Some(Err(RequestError::NotAttempted { .. })) | None => self.sleep(5).await,
                Some(Err(error)) => panic!("{error}"),
            }
        }
        panic!("n{via} takes no write");
    }

    /// A read that is expected to succeed: what it shows, and its context.
    pub async fn see(&self, via: usize, key: &Key) -> (BTreeSet<String>, Bytes) {
        for _ in 0..1_000 {
            if let Some(found) = self.shown(via, key).await {
                return found;
            }
            self.sleep(5).await;
        }
        panic!("n{via} answers no read:\n{}", self.log.take().join("\n"));
    }

    /// One write that is expected to succeed.
    pub async fn put(&self, via: usize, key: &Key, value: &str, over: Over) -> PutReply {
        self.put_as(0, via, key, value, over, How::default()).await.expect("the put is acked")
    }

    /// One write by a client. `None`: not acked.
    pub async fn put_as(
        &self,
        client: usize,
        via: usize,
        key: &Key,
        value: &str,
        over: Over,
        how: How,
    ) -> Option<PutReply> {
        let payload = Payload::Value(Bytes::copy_from_slice(value.as_bytes()));
        let request = self.new_request();
        self.attempt(via, key, payload, &over, request, How { client, ..how }).await.and_then(Result::ok)
    }

    /// One delete that is expected to succeed.
    pub async fn delete(&self, via: usize, key: &Key, over: Over) -> PutReply {
        let request = self.new_request();
        let heard = self.attempt(via, key, Payload::Tombstone, &over, request, How::default()).await;
        heard.and_then(Result::ok).expect("the delete is acked")
    }

    /// One read.
    pub async fn read(
        &self,
        client: usize,
        via: usize,
        key: &Key,
        r: QuorumSize,
    ) -> Option<Result<GetReply, RequestError>> {
        let begun = self.now_ms();
        let named = self.storage_key(key);
        let replicas = self.replicas_of(&named);
        let asks = if r == QuorumSize::Default { self.options.bucket.r } else { r }.of(replicas.len() as u8);
        let due = self.oracle.must_see(&named, begun, &replicas, asks.into());
        let newest = self.layout();
        // By how many replicas a redefined bucket is read is not known beforehand: it must see what both have to.
        let before: Vec<usize> =
            newest.replicas_of(named.partition(), u8::MAX).iter().map(|&id| self.number_of(id)).collect();
        let of_before =
            if r == QuorumSize::Default { self.options.bucket.r } else { r }.of(before.len() as u8);
        let due_before = self.oracle.must_see(&named, begun, &before, of_before.into());
        let get = ClientRequest::Get(GetRequest { key: key.clone(), r });
        let heard = self.request(client, via, get, Duration::from_secs(1)).await;
        self.log.add(format!("c{client} get {key:?} via n{via}: {}", short(&heard)));
        let reply = match heard? {
            Ok(ClientReply::Get(reply)) => reply,
            Ok(_) => return None,
            Err(error) => return Some(Err(error)),
        };
        let redefined = key.bucket() == REDEFINED && reply.receipt.layout != newest.number();
        let due = match redefined {
            true => due.into_iter().filter(|request| due_before.contains(request)).collect(),
            false => due,
        };
        let context = self.decode(key, &reply.context);
        let mut shown = Vec::new();
        for sibling in &reply.siblings {
            match self.oracle.writer_of(&named, &sibling.value) {
                Some(request) if shown.contains(&request) => {
                    self.oracle
                        .report(Rule::RetriesAreOne, format!("{key:?}: a read shows {request:?} twice"));
                }
                Some(request) => shown.push(request),
                None => {
                    self.oracle.report(Rule::NoInventedValue, format!("{key:?}: a read shows {sibling:?}"))
                }
            }
        }
        self.oracle.check_shown(&named, &shown);
        self.oracle.check_context(&named, &context, &CausalContext::EMPTY, &shown, "a read's context");
        if !reply.receipt.fallbacks.is_empty() && reply.context.is_empty() {
            let text =
                format!("{key:?}: a read through fallbacks shows absence, which they can't know: {reply:?}");
            self.oracle.report(Rule::ReadsGoForward, text);
        }
        if reply.receipt.fallbacks.is_empty() {
            self.oracle.shown(&named, &shown, (begun, self.now_ms()), asks.into(), &replicas);
            for request in due {
                if !self.oracle.covers(&context, request, &named) {
                    let text = format!(
                        "{key:?}: a read begun at {begun} ms via n{via} does not know of {request:?}, which was acked before: {reply:?}"
                    );
                    self.oracle.report(Rule::ReadsGoForward, text);
                }
            }
        }
        Some(Ok(reply))
    }

    /// The values that a read through a node shows; `None` if it fails.
    pub async fn shown(&self, via: usize, key: &Key) -> Option<(BTreeSet<String>, Bytes)> {
        let reply = self.read(0, via, key, QuorumSize::Default).await?.ok()?;
        let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
        Some((reply.siblings.iter().map(|sibling| text(&sibling.value)).collect(), reply.context))
    }
}

fn short(heard: &Heard) -> String {
    match heard {
        None => "nothing".into(),
        Some(Ok(ClientReply::Put(reply))) => {
            format!("acked {:?} conflict {}", reply.receipt.acked, reply.conflict)
        }
        Some(Ok(ClientReply::Get(reply))) => {
            let values: Vec<_> =
                reply.siblings.iter().map(|s| String::from_utf8_lossy(&s.value).into_owned()).collect();
            format!("{values:?} of {:?}", reply.receipt.acked)
        }
        Some(Ok(_)) => "done".into(),
        Some(Err(error)) => error.to_string(),
    }
}

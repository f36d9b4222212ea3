//! Runs the load: threads of clients, each client with operations in flight, closed loop or at a given rate.
//!
//! In an open loop an operation is due at its time whether or not earlier ones have been answered, and its latency counts
//! from then: a node that stalls is charged for everybody who would have come meanwhile (no coordinated omission).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quorate_client::{Client, ClientConfig, ClientError, ReadOptions, Replacing, WriteOptions};
use quorate_core::{Payload, RequestError};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::ledger::{Ledger, Values};
use super::report::Report;
use super::workload::{Distribution, Operation, Operations, Workload, key};

/// Operations in flight while the keys are loaded.
const LOADING_IN_FLIGHT: usize = 256;
/// How often keys are tried again while they are loaded: a node may still be making its first connections.
const LOADING_ATTEMPTS: usize = 5;
/// How much later than the last due operation an open loop may end; what is not begun then counts as `NotSent`.
const PATIENCE: Duration = Duration::from_secs(10);
/// In an open loop operations become due in steps of at least this.
const STEP: Duration = Duration::from_micros(200);

/// What to run.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) client: ClientConfig,
    pub(crate) bucket: String,
    pub(crate) workload: Workload,
    pub(crate) distribution: Distribution,
    pub(crate) value_bytes: usize,
    pub(crate) keys: u32,
    /// Clients in all; each holds a connection to every node.
    pub(crate) clients: usize,
    pub(crate) threads: usize,
    /// Operations in flight over all clients.
    pub(crate) in_flight: usize,
    pub(crate) warm_up: Duration,
    pub(crate) measured: Duration,
    /// Operations a second over all clients, or as fast as they are answered.
    pub(crate) rate: Option<f64>,
    pub(crate) read: ReadOptions,
    pub(crate) write: WriteOptions,
    pub(crate) load: bool,
    pub(crate) verify: bool,
    pub(crate) seed: u64,
}

/// What has been done so far, for a progress bar.
#[derive(Default)]
pub(crate) struct Progress {
    pub(crate) loaded: AtomicU64,
    pub(crate) done: AtomicU64,
}

/// Runs the plan and waits for its end. `tick` is called several times a second meanwhile.
///
/// # Errors
/// If no node can be reached, or the keys cannot be loaded.
pub(crate) fn run(
    plan: &Plan,
    progress: &Arc<Progress>,
    mut tick: impl FnMut(),
) -> Result<Report, ClientError> {
    let shared = Arc::new(Shared {
        values: Values::new(plan.value_bytes),
        ledger: plan.verify.then(|| Ledger::new(plan.keys, plan.load)),
        sequence: AtomicU64::new(0),
        connected: AtomicUsize::new(0),
        clock: OnceLock::new(),
        due: Semaphore::new(0),
        begun: AtomicU64::new(0),
        progress: progress.clone(),
        plan: plan.clone(),
    });
    if plan.load {
        let loading = Plan { threads: 1, ..plan.clone() };
        let shared = shared.clone();
        on_threads(&loading, &mut tick, move |_| {
            let shared = shared.clone();
            async move { load(shared).await.map(|()| Report::new(1.0)) }
        })?;
    }
    let theirs = shared.clone();
    let mut start_when_connected = || {
        tick();
        if shared.connected.load(Ordering::Acquire) == plan.threads && shared.clock.get().is_none() {
            shared.start();
        }
    };
    let mut report =
        on_threads(plan, &mut start_when_connected, move |number| drive(theirs.clone(), number))?;
    if let (Some(rate), Some(Some(clock))) = (plan.rate, shared.clock.get()) {
        let missed = clock.due(rate).saturating_sub(shared.begun.load(Ordering::Acquire));
        if missed > 0 {
            report.errors.insert("NotSent", missed);
        }
    }
    Ok(report)
}

/// What all threads of a run share.
struct Shared {
    plan: Plan,
    values: Values,
    ledger: Option<Ledger>,
    /// Numbers the writes of a run that is not verified.
    sequence: AtomicU64,
    /// Threads whose clients are connected.
    connected: AtomicUsize,
    /// The times of the run, the same for all threads, once all are connected; `None` if one could not.
    clock: OnceLock<Option<Clock>>,
    /// Open loop: a permit for each operation that is due and not begun.
    due: Semaphore,
    /// Open loop: operations begun.
    begun: AtomicU64,
    progress: Arc<Progress>,
}

fn on_threads<F>(
    plan: &Plan,
    tick: &mut dyn FnMut(),
    work: impl Fn(usize) -> F + Clone + Send + 'static,
) -> Result<Report, ClientError>
where
    F: Future<Output = Result<Report, ClientError>>,
{
    let spawn = |number: usize| {
        let work = work.clone();
        std::thread::Builder::new()
            .name(format!("bench-{number}"))
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build_local(tokio::runtime::LocalOptions::default())
                    .expect("an event loop can be started");
                runtime.block_on(work(number))
            })
            .expect("a thread can be started")
    };
    let threads: Vec<_> = (0..plan.threads).map(spawn).collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        tick();
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut total = Report::new(plan.measured.as_secs_f64());
    for thread in threads {
        total.add(thread.join().expect("the generator does not panic")?);
    }
    Ok(total)
}

/// Writes every key once.
async fn load(shared: Arc<Shared>) -> Result<(), ClientError> {
    let client = Client::connect(shared.plan.client.clone()).await?;
    let next = Cell::new(0);
    let failed = RefCell::new(None);
    let writer = async || {
        while next.get() < shared.plan.keys && failed.borrow().is_none() {
            let key = next.replace(next.get() + 1);
            let mut outcome = shared.put(&client, key).await;
            for _ in 1..LOADING_ATTEMPTS {
                if outcome.is_ok() {
                    break;
                }
                outcome = shared.put(&client, key).await;
            }
            if let Err(error) = outcome {
                *failed.borrow_mut() = Some(error);
            }
            shared.progress.loaded.fetch_add(1, Ordering::Relaxed);
        }
    };
    futures::future::join_all((0..LOADING_IN_FLIGHT).map(|_| writer())).await;
    failed.into_inner().map_or(Ok(()), Err)
}

/// One thread's part: its clients, and its share of what is in flight.
async fn drive(shared: Arc<Shared>, thread: usize) -> Result<Report, ClientError> {
    let plan = &shared.plan;
    let share = |total: usize| total / plan.threads + usize::from(thread < total % plan.threads);
    let mut clients = Vec::new();
    for _ in 0..share(plan.clients).max(1) {
        match Client::connect(plan.client.clone()).await {
            Ok(client) => clients.push(client),
            Err(error) => {
                let _ = shared.clock.set(None);
                return Err(error);
            }
        }
    }
    shared.connected.fetch_add(1, Ordering::AcqRel);
    let clock = loop {
        match shared.clock.get() {
            Some(Some(clock)) => break *clock,
            // Another thread could not connect, and says so.
            Some(None) => return Ok(Report::new(1.0)),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    let seed = plan.seed.wrapping_add(thread as u64);
    let lot = Rc::new(Lot {
        operations: RefCell::new(Operations::new(plan.workload, plan.distribution, plan.keys, seed)),
        report: RefCell::new(Report::new(plan.measured.as_secs_f64())),
    });
    let tasks: Vec<_> = (0..share(plan.in_flight))
        .map(|number| {
            let client = clients[number % clients.len()].clone();
            tokio::task::spawn_local(one_after_another(shared.clone(), lot.clone(), client, clock))
        })
        .collect();
    for task in tasks {
        task.await.expect("the generator does not panic");
    }
    drop(clients);
    let mut report = lot.report.replace(Report::new(1.0));
    report.by_thread = vec![report.operations];
    Ok(report)
}

/// What the tasks of one thread share.
struct Lot {
    operations: RefCell<Operations>,
    report: RefCell<Report>,
}

#[derive(Clone, Copy)]
struct Clock {
    begin: Instant,
    measure: Instant,
    end: Instant,
}

impl Clock {
    /// When operation `number`, from 0, is due.
    fn due_at(&self, number: u64, rate: f64) -> Instant {
        self.begin + Duration::from_secs_f64(number as f64 / rate)
    }

    /// Operations due by the end.
    fn due(&self, rate: f64) -> u64 {
        ((self.end - self.begin).as_secs_f64() * rate) as u64
    }
}

/// Says when operations are due: at equal distances, in steps that a sleeping thread can keep.
fn pace(shared: &Shared, clock: Clock, rate: f64) {
    let total = clock.due(rate);
    let mut announced = 0;
    while announced < total {
        let due = ((clock.begin.elapsed().as_secs_f64() * rate) as u64 + 1).min(total);
        if due > announced {
            shared.due.add_permits((due - announced) as usize);
            announced = due;
        }
        let next = clock.due_at(announced, rate);
        std::thread::sleep(next.saturating_duration_since(Instant::now()).max(STEP));
    }
    // Late ones may still be begun for a while; then whoever waits is sent home.
    std::thread::sleep(PATIENCE);
    shared.due.close();
}

async fn one_after_another(shared: Arc<Shared>, lot: Rc<Lot>, client: Rc<Client>, clock: Clock) {
    let rate = shared.plan.rate;
    loop {
        let due = match rate {
            None => Instant::now(),
            Some(rate) => {
                if shared.begun.load(Ordering::Relaxed) >= clock.due(rate) {
                    shared.due.close();
                    return;
                }
                match shared.due.acquire().await {
                    Ok(permit) => permit.forget(),
                    Err(_) => return,
                }
                clock.due_at(shared.begun.fetch_add(1, Ordering::AcqRel), rate)
            }
        };
        if rate.is_none() && due >= clock.end {
            return;
        }
        let operation = lot.operations.borrow_mut().next();
        let outcome = match operation {
            Operation::Get(key) => shared.get(&client, key).await,
            Operation::Put(key) => shared.put(&client, key).await.map_err(Trouble::Failed),
        };
        shared.progress.done.fetch_add(1, Ordering::Relaxed);
        let answered = Instant::now();
        let mut report = lot.report.borrow_mut();
        match outcome {
            // A wrong read is wrong also while warming up.
            Err(Trouble::Missing(detail)) => report.wrong("Missing", detail),
            Err(Trouble::Wrong(detail)) => report.wrong("Wrong", detail),
            _ if due < clock.measure => {}
            Err(Trouble::Failed(error)) => report.error(name_of(&error)),
            Ok(()) => {
                let latency = (answered - due).as_micros() as u64;
                match operation {
                    Operation::Get(_) => report.reads.saturating_record(latency),
                    Operation::Put(_) => report.writes.saturating_record(latency),
                }
                if answered <= clock.end {
                    report.operations += 1;
                } else {
                    report.late += 1;
                }
            }
        }
    }
}

/// Why an operation does not count.
enum Trouble {
    Failed(ClientError),
    /// A key that was loaded is not there.
    Missing(String),
    Wrong(String),
}

impl Shared {
    /// Everybody is connected: time begins to count.
    fn start(self: &Arc<Self>) {
        let begin = Instant::now();
        let measure = begin + self.plan.warm_up;
        let clock = Clock { begin, measure, end: measure + self.plan.measured };
        if self.clock.set(Some(clock)).is_ok()
            && let Some(rate) = self.plan.rate
        {
            let shared = self.clone();
            std::thread::spawn(move || pace(&shared, clock, rate));
        }
    }

    async fn put(&self, client: &Client, number: u32) -> Result<(), ClientError> {
        let turn = match &self.ledger {
            None => None,
            Some(ledger) => loop {
                match ledger.begin(number) {
                    Some(turn) => break Some(turn),
                    // Somebody writes it: they are answered, then it is our turn.
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            },
        };
        let sequence = match &turn {
            Some(turn) => turn.sequence,
            None => self.sequence.fetch_add(1, Ordering::Relaxed) as u32,
        };
        let payload = Payload::Value(self.values.make(number, sequence));
        let replacing = Replacing::WhatIsThere { seen: bytes::Bytes::new() };
        client.put(&key(&self.plan.bucket, number)?, payload, replacing, &self.plan.write).await?;
        if let Some(turn) = turn {
            turn.acked();
        }
        Ok(())
    }

    async fn get(&self, client: &Client, number: u32) -> Result<(), Trouble> {
        let floor = self.ledger.as_ref().map(|ledger| ledger.floor(number));
        let key = key(&self.plan.bucket, number).map_err(|error| Trouble::Failed(error.into()))?;
        let read = client.get(&key, &self.plan.read).await.map_err(Trouble::Failed)?;
        if read.siblings.is_empty() {
            return Err(Trouble::Missing(format!("{key:?} is absent")));
        }
        if let (Some(ledger), Some(floor)) = (&self.ledger, floor) {
            let values = read.siblings.iter().map(|sibling| sibling.value.as_ref());
            let judged = ledger.judge(&self.values, number, floor, values);
            judged.map_err(|detail| Trouble::Wrong(format!("{key:?}: {detail}")))?;
        }
        Ok(())
    }
}

fn name_of(error: &ClientError) -> &'static str {
    match error {
        ClientError::Request(error) => RequestError::name(error),
        ClientError::Unreachable { .. } => "Unreachable",
    }
}

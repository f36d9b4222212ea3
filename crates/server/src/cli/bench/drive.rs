//! The load generator. Each thread has clients, and each client has operations in flight.
//! Operations begin in a closed loop or at a given rate (an open loop).
//!
//! In an open loop, an operation is due at its time even if earlier operations are unanswered, and
//! its latency counts from that time. If a node stalls, the latencies include the wait of all
//! operations that became due meanwhile (no coordinated omission).

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use quorate_client::{Client, ClientError, EncodedWriteMode};
use quorate_core::{Payload, RequestError};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::clock::Clock;
use super::ledger::{EarlierWrites, Ledger, Values};
use super::plan::Plan;
use super::progress::Progress;
use super::report::Report;
use super::workload::{Operation, Operations, key};

/// Operations in flight while the keys are loaded.
const LOADING_IN_FLIGHT: usize = 256;
/// Maximum number of attempts to write a key while the keys are loaded. The first attempts may
/// fail, because nodes may still be connecting to each other.
const LOADING_ATTEMPTS: usize = 5;
/// Interval at which the progress is shown.
const TICK: Duration = Duration::from_millis(20);
/// Interval at which a waiting thread checks if the run has started, and a waiting write checks if
/// the previous write of its key has ended.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// Runs the plan and waits for its end. Calls `tick` several times a second meanwhile.
///
/// # Errors
/// If no node can be reached, or the keys cannot be loaded.
pub(super) fn run(
    plan: &Plan,
    progress: &Arc<Progress>,
    mut tick: impl FnMut(),
) -> Result<Report, ClientError> {
    let earlier_writes = if plan.load { EarlierWrites::Overwritten } else { EarlierWrites::Unknown };
    let shared = Arc::new(Shared {
        values: Values::new(plan.value_bytes),
        ledger: plan.verify.then(|| Ledger::new(plan.keys, earlier_writes)),
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
    let threads_shared = shared.clone();
    let mut start_when_connected = || {
        tick();
        if shared.connected.load(Ordering::Acquire) == plan.threads && shared.clock.get().is_none() {
            shared.start();
        }
    };
    let mut report =
        on_threads(plan, &mut start_when_connected, move |number| drive(threads_shared.clone(), number))?;
    if let (Some(rate), Some(Some(clock))) = (plan.rate, shared.clock.get()) {
        let missed = clock.due(rate).saturating_sub(shared.begun.load(Ordering::Acquire));
        if missed > 0 {
            report.errors.insert("NotSent", missed);
        }
    }
    Ok(report)
}

/// State that all threads of a run share.
struct Shared {
    plan: Plan,
    values: Values,
    ledger: Option<Ledger>,
    /// Number of the next write, if the run is not verified.
    sequence: AtomicU64,
    /// Number of threads whose clients are connected.
    connected: AtomicUsize,
    /// The clock of the run, set once all threads are connected. It is set to `None` if a thread
    /// could not connect.
    clock: OnceLock<Option<Clock>>,
    /// Open loop: a permit for each operation that is due and not begun.
    due: Semaphore,
    /// Open loop: number of operations that have begun.
    begun: AtomicU64,
    progress: Arc<Progress>,
}

/// Runs `work` on the plan's number of threads, and adds up their reports.
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
                    .expect("the event loop starts");
                runtime.block_on(work(number))
            })
            .expect("the thread starts")
    };
    let threads: Vec<_> = (0..plan.threads).map(spawn).collect();
    while threads.iter().any(|thread| !thread.is_finished()) {
        tick();
        std::thread::sleep(TICK);
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

/// Runs one thread's share of the clients and of the operations in flight.
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
            // Another thread could not connect, and returns the error.
            Some(None) => return Ok(Report::new(1.0)),
            None => tokio::time::sleep(POLL_INTERVAL).await,
        }
    };
    let seed = plan.seed.wrapping_add(thread as u64);
    let state = Rc::new(ThreadState {
        operations: RefCell::new(Operations::new(plan.workload, plan.distribution, plan.keys, seed)),
        report: RefCell::new(Report::new(plan.measured.as_secs_f64())),
    });
    let tasks: Vec<_> = (0..share(plan.in_flight))
        .map(|number| {
            let client = clients[number % clients.len()].clone();
            tokio::task::spawn_local(run_operations(shared.clone(), state.clone(), client, clock))
        })
        .collect();
    for task in tasks {
        task.await.expect("the generator does not panic");
    }
    drop(clients);
    let mut report = state.report.replace(Report::new(1.0));
    report.by_thread = vec![report.operations];
    Ok(report)
}

/// State that the tasks of one thread share.
struct ThreadState {
    operations: RefCell<Operations>,
    report: RefCell<Report>,
}

/// Runs one operation after another, until the run is over.
async fn run_operations(shared: Arc<Shared>, state: Rc<ThreadState>, client: Rc<Client>, clock: Clock) {
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
        let operation = state.operations.borrow_mut().next();
        let outcome = match operation {
            Operation::Get(key) => shared.get(&client, key).await,
            Operation::Put(key) => shared.put(&client, key).await.map_err(OperationError::Failed),
        };
        shared.progress.done.fetch_add(1, Ordering::Relaxed);
        let answered = Instant::now();
        let mut report = state.report.borrow_mut();
        match outcome {
            // Wrong reads are also reported during the warm-up.
            Err(OperationError::Missing(detail)) => report.wrong("Missing", detail),
            Err(OperationError::Wrong(detail)) => report.wrong("Wrong", detail),
            _ if due < clock.measure => {}
            Err(OperationError::Failed(error)) => report.error(name_of(&error)),
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

/// Error of one operation.
enum OperationError {
    Failed(ClientError),
    /// A read found no value, although the key was written before the run.
    Missing(String),
    /// A read returned a value that it must not return.
    Wrong(String),
}

impl Shared {
    /// Starts the clock. Call it only after all threads are connected.
    fn start(self: &Arc<Self>) {
        let clock = Clock::start(&self.plan);
        if self.clock.set(Some(clock)).is_ok()
            && let Some(rate) = self.plan.rate
        {
            let shared = self.clone();
            std::thread::spawn(move || clock.pace(&shared.due, rate));
        }
    }

    async fn put(&self, client: &Client, number: u32) -> Result<(), ClientError> {
        let turn = match &self.ledger {
            None => None,
            Some(ledger) => loop {
                match ledger.begin(number) {
                    Some(turn) => break Some(turn),
                    // Another task writes this key: wait for its reply.
                    None => tokio::time::sleep(POLL_INTERVAL).await,
                }
            },
        };
        let sequence = match &turn {
            Some(turn) => turn.sequence,
            None => self.sequence.fetch_add(1, Ordering::Relaxed) as u32,
        };
        let payload = Payload::Value(self.values.make(number, sequence));
        let replacing = EncodedWriteMode::Overwrite { seen: bytes::Bytes::new() };
        client.put(&key(&self.plan.bucket, number)?, payload, replacing, &self.plan.write).await?;
        if let Some(turn) = turn {
            turn.acked();
        }
        Ok(())
    }

    async fn get(&self, client: &Client, number: u32) -> Result<(), OperationError> {
        let oldest_allowed = self.ledger.as_ref().map(|ledger| ledger.last_acked(number));
        let key = key(&self.plan.bucket, number).map_err(|error| OperationError::Failed(error.into()))?;
        let read = client.get(&key, &self.plan.read).await.map_err(OperationError::Failed)?;
        if read.siblings.is_empty() {
            return Err(OperationError::Missing(format!("{key:?} is absent")));
        }
        if let (Some(ledger), Some(oldest_allowed)) = (&self.ledger, oldest_allowed) {
            let values = read.siblings.iter().map(|sibling| sibling.value.as_ref());
            let verified = ledger.verify(&self.values, number, oldest_allowed, values);
            verified.map_err(|detail| OperationError::Wrong(format!("{key:?}: {detail}")))?;
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

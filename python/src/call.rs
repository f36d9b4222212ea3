//! One blocking call. It runs on the event loop and the connections of the calling thread, with the
//! interpreter released.
//!
//! Passing a call to another thread would cost more time than the call itself. So each thread that
//! uses a client has its own event loop, which runs only during calls. Nothing reads the sockets
//! between two calls.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use pyo3::prelude::*;
use quorate_client::core::RequestError;
use quorate_client::{Client, ClientConfig, ClientError};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};
use tokio::time::Instant;

use crate::error::raise;

/// Interval at which a call checks for Ctrl-C.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// Time between two calls after which the next call first polls the connections: a node may have
/// closed one.
const IDLE_LIMIT: Duration = Duration::from_millis(100);

/// Longest time for which a call polls the sockets in a loop, before it sleeps until the kernel
/// wakes it. If the nodes are near, the wake-up takes about as long as the reply.
const BUSY_POLL: Duration = Duration::from_micros(250);
/// While busy polling is off, one of this many calls tries it again.
const PROBE_INTERVAL: u32 = 64;
/// Late replies in a row after which a thread turns busy polling off. A reply is late if it takes
/// longer than `BUSY_POLL`.
const LATE_LIMIT: u32 = 4;

/// Number of calls in progress, in the lower 32 bits. The upper 32 bits are the id of the process:
/// a forked child does not count the calls of its parent. A call polls busily only while it is the
/// only one, because other calls make better use of the processor.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// True if the machine has several processors. With only one, the node that must reply needs it.
static MAY_BUSY_POLL: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// Number of clients closed so far. A thread that reads a new number drops its own connections of
/// closed clients.
static CLOSED: AtomicU64 = AtomicU64::new(0);
/// Number of the next handle.
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

/// The part of a client that the threads of a process share.
pub(crate) struct Handle {
    number: u64,
    config: ClientConfig,
    closed: Arc<AtomicBool>,
}

/// The event loop and the connections that one thread has for one client.
struct Local {
    client: Rc<Client>,
    runtime: LocalRuntime,
    process: u32,
    closed: Arc<AtomicBool>,
    last_used: Cell<Instant>,
}

/// The connections of one thread for all clients, by the numbers of the handles.
struct Locals(BTreeMap<u64, Local>);

impl Drop for Locals {
    /// Drops the connections when the thread ends. A forked child leaks those that it inherited,
    /// because they belong to its parent.
    fn drop(&mut self) {
        for (_, local) in std::mem::take(&mut self.0) {
            if local.process != std::process::id() {
                std::mem::forget(local);
            }
        }
    }
}

thread_local! {
    static LOCALS: RefCell<Locals> = const { RefCell::new(Locals(BTreeMap::new())) };
    static TOKIO_IS_READY: Cell<bool> = const { Cell::new(false) };
    /// Value of `CLOSED` at the last sweep of this thread.
    static CLOSED_AT_SWEEP: Cell<u64> = const { Cell::new(0) };
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
    /// Number of late replies in a row, see `LATE_LIMIT`.
    static LATE_REPLIES: Cell<u32> = const { Cell::new(0) };
}

fn event_loop() -> std::io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// Makes tokio create its thread-local state before `LOCALS` is first used. Thread-locals are
/// destroyed in reverse order, so when the thread ends, tokio can still handle the wake-ups of the
/// connections.
fn prepare_thread() -> std::io::Result<()> {
    if !TOKIO_IS_READY.get() {
        let task = async { tokio::task::spawn_local(tokio::task::yield_now()).await };
        let _ = event_loop()?.block_on(task);
        TOKIO_IS_READY.set(true);
    }
    Ok(())
}

impl Handle {
    pub(crate) fn new(config: ClientConfig) -> Handle {
        let number = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
        Handle { number, config, closed: Arc::default() }
    }

    /// Runs one operation until it ends or Ctrl-C interrupts it.
    pub(crate) fn call<T, F>(&self, py: Python<'_>, operation: impl FnOnce(Rc<Client>) -> F) -> PyResult<T>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let local = self.take_local(py)?;
        let future = operation(local.client.clone());
        let was_idle = local.last_used.get().elapsed() > IDLE_LIMIT;
        let outcome = released(py, || run(&local.runtime, future, was_idle));
        local.last_used.set(Instant::now());
        self.put_back(local);
        outcome?.map_err(|error| raise(py, &error))
    }

    /// Closes the connections of this thread, and refuses further calls. Other threads close theirs
    /// when they next use any client.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        CLOSED.fetch_add(1, Ordering::AcqRel);
        if TOKIO_IS_READY.get() {
            sweep();
        }
    }

    /// Removes the connections of this thread from `LOCALS` and returns them; connects if it has
    /// none. So `LOCALS` is not borrowed while Python code may run.
    fn take_local(&self, py: Python<'_>) -> PyResult<Local> {
        if IN_CALL.get() {
            let detail =
                "a signal handler can't use a client while it interrupts a call of one: set a flag instead";
            return Err(raise(py, &RequestError::invalid(detail).into()));
        }
        if TOKIO_IS_READY.get()
            && CLOSED_AT_SWEEP.replace(CLOSED.load(Ordering::Acquire)) != CLOSED.load(Ordering::Acquire)
        {
            sweep();
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(raise(py, &RequestError::invalid("this client is closed: connect again").into()));
        }
        prepare_thread()?;
        let kept = LOCALS.with_borrow_mut(|locals| locals.0.remove(&self.number));
        match kept {
            Some(local) if local.process == std::process::id() => Ok(local),
            // After a fork, the event loop and the sockets belong to the parent. Even dropping them
            // would disturb it.
            Some(inherited) => {
                std::mem::forget(inherited);
                self.connect(py)
            }
            None => self.connect(py),
        }
    }

    fn put_back(&self, local: Local) {
        if !self.closed.load(Ordering::Acquire) {
            LOCALS.with_borrow_mut(|locals| locals.0.insert(self.number, local));
        }
    }

    fn connect(&self, py: Python<'_>) -> PyResult<Local> {
        sweep();
        let runtime = event_loop()?;
        let connecting = Client::connect(self.config.clone());
        let client = released(py, || run(&runtime, connecting, false))?.map_err(|error| raise(py, &error))?;
        let closed = self.closed.clone();
        Ok(Local {
            client,
            runtime,
            process: std::process::id(),
            closed,
            last_used: Cell::new(Instant::now()),
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Release);
        CLOSED.fetch_add(1, Ordering::AcqRel);
    }
}

/// Runs the event loop until the operation ends, or a signal handler (of Ctrl-C, say) raises.
fn run<T>(runtime: &LocalRuntime, operation: impl Future<Output = T>, was_idle: bool) -> PyResult<T> {
    let _guard = InCall::enter();
    runtime.block_on(async {
        if was_idle {
            // Nothing has read the sockets since the last call: detect closed connections first.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        // Hundreds of requests may be polled here at once. Under tokio's budget some of them would
        // be deferred. `block_on` keeps the wake-ups of deferred tasks, and loses them when it
        // returns.
        let outcome = tokio::task::unconstrained(async {
            tokio::select! {
                biased;
                outcome = operation => Ok(outcome),
                never = busy_poll() => match never {},
                interrupt = interrupted() => Err(interrupt),
            }
        })
        .await;
        if begun.elapsed() < BUSY_POLL {
            LATE_REPLIES.set(0);
        }
        // For the same reason, deliver the deferred wake-ups of the connections before the loop
        // ends.
        tokio::task::yield_now().await;
        outcome
    })
}

/// Guard of one call in progress: counts it in `CALLS`, and sets `IN_CALL` of the thread.
struct InCall;

impl InCall {
    fn enter() -> InCall {
        IN_CALL.set(true);
        let process = u64::from(std::process::id()) << 32;
        let count = |calls| if calls >> 32 << 32 == process { calls + 1 } else { process + 1 };
        let (set, fetch) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = CALLS.fetch_update(set, fetch, |calls| Some(count(calls)));
        InCall
    }
}

impl Drop for InCall {
    fn drop(&mut self) {
        IN_CALL.set(false);
        CALLS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Busy polling: makes the event loop poll its sockets for up to `BUSY_POLL`, instead of sleeping
/// until the kernel wakes it. Never completes.
async fn busy_poll() -> std::convert::Infallible {
    let late = LATE_REPLIES.get();
    LATE_REPLIES.set(late.saturating_add(1));
    if *MAY_BUSY_POLL && (late < LATE_LIMIT || late.is_multiple_of(PROBE_INTERVAL)) {
        let begun = Instant::now();
        while begun.elapsed() < BUSY_POLL && CALLS.load(Ordering::Relaxed) & 0xffff_ffff == 1 {
            // Returns after the event loop has polled the sockets.
            tokio::task::yield_now().await;
        }
    }
    std::future::pending().await
}

/// Waits until the handler of Ctrl-C or of another signal raises, and returns the exception.
async fn interrupted() -> PyErr {
    loop {
        tokio::time::sleep(SIGNAL_CHECK).await;
        if let Err(raised) = Python::attach(|py| py.check_signals()) {
            return raised;
        }
    }
}

/// Drops this thread's connections of clients that are closed.
fn sweep() {
    let closed = LOCALS.with_borrow_mut(|Locals(locals)| {
        let is_closed = |local: &Local| local.closed.load(Ordering::Acquire);
        let numbers: Vec<u64> =
            locals.iter().filter(|(_, local)| is_closed(local)).map(|(number, _)| *number).collect();
        Locals(numbers.into_iter().filter_map(|number| Some((number, locals.remove(&number)?))).collect())
    });
    drop(closed);
}

/// Runs `work` on this thread with the interpreter released.
fn released<T>(py: Python<'_>, work: impl FnOnce() -> T) -> T {
    /// Wrapper that is `Send`. `detach` requires `Send`, because it cannot know that the closure
    /// stays on this thread. It does: `detach` calls the closure here, before it returns.
    struct SameThread<T>(T);
    // SAFETY: `Python::detach` runs its closure on the calling thread and returns its result there.
    // No other thread ever accesses the closure or the result, and neither uses Python objects.
    unsafe impl<T> Send for SameThread<T> {}
    impl<R, F: FnOnce() -> R> SameThread<F> {
        fn run(self) -> SameThread<R> {
            SameThread((self.0)())
        }
    }
    let work = SameThread(work);
    py.detach(move || work.run()).0
}

//! One blocking call. It runs on the event loop and the connections of the calling thread. During
//! the call, other threads may run Python code.
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

/// Time without a call after which the next call polls the connections before it sends. A node may
/// have closed a connection in that time.
const IDLE_LIMIT: Duration = Duration::from_millis(100);

/// Longest time for which a call polls the sockets in a loop, before it sleeps until the kernel
/// wakes it. If the nodes are near, the wake-up takes about as long as the reply.
const BUSY_POLL: Duration = Duration::from_micros(250);
/// Interval, counted in calls, at which a thread tries busy polling (see `BUSY_POLL`) again while
/// it is off.
const PROBE_INTERVAL: u32 = 64;
/// Late replies in a row after which a thread turns busy polling off. A reply is late if it takes
/// longer than `BUSY_POLL`.
const LATE_LIMIT: u32 = 4;

/// Number of calls in progress, in the lower 32 bits. The upper 32 bits are the id of the process.
/// A forked child has another id, so it discards the count of its parent. A call polls busily only
/// while it is the only one, because other calls make better use of the processor.
static CALLS: AtomicU64 = AtomicU64::new(0);
/// True if the machine has several processors. With only one, busy polling would take it from a
/// node on the same machine that must reply.
static MAY_BUSY_POLL: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// Number of clients that this process has closed so far. When a thread sees that the number has
/// changed since its last call, it drops its own connections of these clients.
static CLOSED: AtomicU64 = AtomicU64::new(0);
/// Number that the next new [`Handle`] gets.
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

/// The connections of one thread for all clients, by the `number` of their handle.
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
    /// Value of `CLOSED` when this thread last read it. If `CLOSED` differs, clients were closed
    /// since.
    static CLOSED_AT_SWEEP: Cell<u64> = const { Cell::new(0) };
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
    /// Number of late replies in a row, see `LATE_LIMIT`.
    static LATE_REPLIES: Cell<u32> = const { Cell::new(0) };
}

fn event_loop() -> std::io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// Makes tokio create its thread-local state before `LOCALS` is first used. Thread-locals are
/// destroyed in the reverse order of their first use. So when the thread ends and the connections
/// are dropped, tokio's state still exists and can handle their wake-ups.
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

    /// Removes the connections of this thread from `LOCALS` and returns them. Connects if the
    /// thread has none. Python code may run during a call, and `LOCALS` must not be borrowed then.
    fn take_local(&self, py: Python<'_>) -> PyResult<Local> {
        if IN_CALL.get() {
            let detail = "a signal handler can't use a client while it interrupts a client's call: set a flag, and use the client after the call";
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
            // would disturb the parent.
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

/// Runs the event loop until the operation ends, or until a signal handler (of Ctrl-C, for example)
/// raises an exception.
fn run<T>(runtime: &LocalRuntime, operation: impl Future<Output = T>, was_idle: bool) -> PyResult<T> {
    let _guard = InCall::enter();
    runtime.block_on(async {
        if was_idle {
            // Nothing has read the sockets since the last call: detect closed connections first.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        // Hundreds of requests may be polled here at once (`get_many`). Tokio's budget for one poll
        // would defer some of them, and deferred wake-ups are lost when `block_on` returns. So the
        // operation runs without a budget.
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
        // The connections may have deferred wake-ups, which would be lost when `block_on` returns.
        // This yield delivers them first.
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
            // The event loop polls the sockets before this task continues.
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

/// Runs `work` on this thread, and lets other threads run Python code meanwhile.
fn released<T>(py: Python<'_>, work: impl FnOnce() -> T) -> T {
    /// Wrapper that is `Send`, which `detach` requires of its closure. The closure never leaves
    /// this thread: `detach` calls it here, before it returns.
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

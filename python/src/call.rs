//! One blocking call: on the calling thread's own event loop and connections, with the interpreter released.
//!
//! A hop to another thread would cost more than the call. So each thread that uses a client has an event loop of its
//! own, which runs only during calls; nothing reads the sockets between them.

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

/// How often a call looks whether Ctrl-C was pressed.
const SIGNAL_CHECK: Duration = Duration::from_millis(50);

/// After this long between two calls the connections are looked at before one is used.
const RESTED: Duration = Duration::from_millis(100);

/// How long a call looks for its answer itself before it lets the kernel wake it: where nodes are near, being woken takes
/// about as long as the answer does.
const LOOKING: Duration = Duration::from_micros(250);
/// Where the answers of a thread's last calls came too late for that, only one of so many calls tries again.
const TRIES_AGAIN: u32 = 64;
const GIVES_UP_AFTER: u32 = 4;

/// Calls under way, in the lower half, and in the upper one in which process: a forked child has none of its parent's. With others there is better use for the
/// processor than looking, and where there is only one, the answer needs it.
static CALLS: AtomicU64 = AtomicU64::new(0);
static MAY_LOOK: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// Counts closed clients: a thread that sees it change closes its own connections of them.
static CLOSED: AtomicU64 = AtomicU64::new(0);
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(1);

/// What the threads of a process share of a client.
pub(crate) struct Handle {
    number: u64,
    config: ClientConfig,
    closed: Arc<AtomicBool>,
}

/// A thread's own connections of one client.
struct Local {
    client: Rc<Client>,
    runtime: LocalRuntime,
    process: u32,
    closed: Arc<AtomicBool>,
    last_used: Cell<Instant>,
}

/// A thread's connections of all clients, by their handles' numbers.
struct Locals(BTreeMap<u64, Local>);

impl Drop for Locals {
    /// At the thread's end. In a forked child what was inherited is forgotten, not dropped: it is the parent's.
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
    static SWEPT: Cell<u64> = const { Cell::new(0) };
    static IN_CALL: Cell<bool> = const { Cell::new(false) };
    /// Calls in a row whose answer came later than `LOOKING`.
    static LATE: Cell<u32> = const { Cell::new(0) };
}

fn event_loop() -> std::io::Result<LocalRuntime> {
    Builder::new_current_thread().enable_all().build_local(LocalOptions::default())
}

/// Lets tokio set up what it keeps a thread before `LOCALS` is first touched. A thread's variables are destroyed in the
/// reverse order: so at its end the connections go while tokio can still take their wake-ups.
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

    /// Runs one operation to its end, or until Ctrl-C.
    pub(crate) fn call<T, F>(&self, py: Python<'_>, operation: impl FnOnce(Rc<Client>) -> F) -> PyResult<T>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let local = self.take_local(py)?;
        let future = operation(local.client.clone());
        let rested = local.last_used.get().elapsed() > RESTED;
        let outcome = released(py, || run(&local.runtime, future, rested));
        local.last_used.set(Instant::now());
        self.put_back(local);
        outcome?.map_err(|error| raise(py, &error))
    }

    /// Closes this thread's connections now, other threads' when they next use any client, and refuses further calls.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        CLOSED.fetch_add(1, Ordering::AcqRel);
        if TOKIO_IS_READY.get() {
            sweep();
        }
    }

    /// This thread's connections, taken out so that nothing is borrowed while Python code may run.
    fn take_local(&self, py: Python<'_>) -> PyResult<Local> {
        if IN_CALL.get() {
            let detail =
                "a signal handler can't use a client while it interrupts a call of one: set a flag instead";
            return Err(raise(py, &RequestError::invalid(detail).into()));
        }
        if TOKIO_IS_READY.get()
            && SWEPT.replace(CLOSED.load(Ordering::Acquire)) != CLOSED.load(Ordering::Acquire)
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
            // After a fork the event loop and the sockets are the parent's: touching them, even to drop them, would
            // disturb it.
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

/// Runs the event loop until the operation ends, or Ctrl-C raises.
fn run<T>(runtime: &LocalRuntime, operation: impl Future<Output = T>, rested: bool) -> PyResult<T> {
    let _guard = InCall::enter();
    runtime.block_on(async {
        if rested {
            // Nobody read the sockets meanwhile: first see which connections are gone.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let begun = Instant::now();
        // Hundreds of requests may be polled here at once. Under tokio's budget some of them would be put off, by a
        // wake-up that is kept in `block_on` and is lost when that returns.
        let outcome = tokio::task::unconstrained(async {
            tokio::select! {
                biased;
                outcome = operation => Ok(outcome),
                never = look() => match never {},
                interrupt = interrupted() => Err(interrupt),
            }
        })
        .await;
        if begun.elapsed() < LOOKING {
            LATE.set(0);
        }
        // For the same reason the connections' tasks get their put-off wake-ups before this loop is left.
        tokio::task::yield_now().await;
        outcome
    })
}

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

/// Has the event loop look at its sockets again and again for a while, instead of sleeping until the kernel wakes it.
async fn look() -> std::convert::Infallible {
    let late = LATE.get();
    LATE.set(late.saturating_add(1));
    if *MAY_LOOK && (late < GIVES_UP_AFTER || late.is_multiple_of(TRIES_AGAIN)) {
        let begun = Instant::now();
        while begun.elapsed() < LOOKING && CALLS.load(Ordering::Relaxed) & 0xffff_ffff == 1 {
            // Comes back after a look at the sockets.
            tokio::task::yield_now().await;
        }
    }
    std::future::pending().await
}

/// Returns what Ctrl-C (or another signal's handler) raised.
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
    /// `detach` asks for `Send`, since it cannot know that the closure stays on this thread. It does: it is called once,
    /// at once, here.
    struct SameThread<T>(T);
    // SAFETY: `Python::detach` runs its closure on the calling thread and returns its result there; neither the closure
    // nor the result is ever seen by another thread, and neither touches Python objects.
    unsafe impl<T> Send for SameThread<T> {}
    impl<R, F: FnOnce() -> R> SameThread<F> {
        fn run(self) -> SameThread<R> {
            SameThread((self.0)())
        }
    }
    let work = SameThread(work);
    py.detach(move || work.run()).0
}

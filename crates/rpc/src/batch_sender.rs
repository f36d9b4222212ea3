//! The sending side of a connection: operations gather here while earlier ones are under way.
//!
//! No timers and no waiting for company: an operation that finds the sender idle is sent at the end of the event loop's
//! turn; under load, what gathers while two calls are under way makes the next call (while up to eight are, once there is
//! enough of it, or it has a read, and both are writes that wait for their commit).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_core::NodeId;
use quorate_core::seams::ReplyTo;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::connection::{self, SizeHint};
use crate::network::Duplex;
use crate::stream::SignsOfLife;

/// Calls under way at a time: one that the other side works on, one on the wire.
const USUAL_CALLS: usize = 2;
/// Calls under way where the other side takes long (a commit) and this many operations have gathered behind it.
const MAX_CALLS: usize = 8;
const WORTH_A_CALL: usize = 8;
/// Most operations of a call.
pub const MAX_BATCH_OPERATIONS: usize = 1024;
/// A call is full when its operations make this many bytes; a single larger one travels alone.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Most operations that may wait for an answer on one sender.
pub const MAX_OUTSTANDING: usize = 16_384;
/// Most bytes that may wait to be sent on one sender.
pub const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// The other side answers a call within [`crate::reply_buffer::LONGEST_HOLD`], be it with nothing. After this many of these
/// looks in which nothing came from it, and nothing went to it that it had to make room for, it is taken for dead.
const WATCH_EVERY: Duration = Duration::from_millis(250);
const SILENT_LOOKS: u32 = 5;
/// An idle sender that is to notice a dead peer asks for a sign of life after this many looks.
const IDLE_LOOKS: u32 = 2;

/// How many operations wait for each peer's answer, on all lanes to it, for people: as of each sender's last look.
#[derive(Clone, Default)]
pub struct PeerQueues(Arc<Mutex<BTreeMap<NodeId, usize>>>);

impl PeerQueues {
    /// Peers and operations.
    pub fn depths(&self) -> BTreeMap<NodeId, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One sender's part of it.
pub(crate) struct Waits {
    queues: PeerQueues,
    peer: NodeId,
    shown: usize,
}

impl Waits {
    pub(crate) fn new(queues: PeerQueues, peer: NodeId) -> Waits {
        Waits { queues, peer, shown: 0 }
    }

    fn show(&mut self, waiting: usize) {
        if waiting != self.shown {
            let mut queues = self.queues.0.lock().unwrap_or_else(PoisonError::into_inner);
            let all = queues.entry(self.peer).or_default();
            *all = (*all + waiting).saturating_sub(std::mem::replace(&mut self.shown, waiting));
        }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.show(0);
    }
}

/// One of the two protocols, as a sender sees it.
pub trait Protocol: 'static {
    /// An operation.
    type Request: 'static;
    /// Its result.
    type Reply: 'static;
    /// The Cap'n Proto capability that takes batches.
    type Port: capnp::capability::FromClientHook + Clone + 'static;

    /// True if the operation usually waits for no commit: it is not to wait behind others that do.
    fn is_quick(request: &Self::Request) -> bool;

    /// About how many bytes the operation takes on the wire.
    fn bytes_of(request: &Self::Request) -> usize;

    /// Sends a batch and takes its answer apart.
    fn exchange(
        port: &Self::Port,
        batch: Vec<Queued<Self::Request>>,
    ) -> impl Future<Output = Result<Vec<(u64, Self::Reply)>, capnp::Error>> + 'static;

    /// What an operation is answered with if the connection is gone.
    fn disconnected() -> Self::Reply;

    /// What an operation is answered with whose deadline passed before it was sent.
    fn expired() -> Self::Reply;

    /// What an operation is answered with if the sender is full.
    fn overloaded(what: &str, limit: usize) -> Self::Reply;
}

/// An operation with its number on this connection.
pub struct Queued<Q> {
    /// Its number.
    pub id: u64,
    /// When it is too late for it.
    pub deadline: Instant,
    /// What to do.
    pub request: Q,
}

impl<Q> Queued<Q> {
    /// What is left of its deadline.
    pub fn timeout(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

/// Who waits for an operation's result.
struct WaitingOperation<A> {
    reply: ReplyTo<A>,
    is_quick: bool,
}

/// The sending side of one connection.
pub struct BatchSender<P: Protocol> {
    port: P::Port,
    size_hint: SizeHint,
    queue: RefCell<VecDeque<Queued<P::Request>>>,
    queued_bytes: Cell<usize>,
    waiting: RefCell<BTreeMap<u64, WaitingOperation<P::Reply>>>,
    /// Quick operations in the queue, and those sent and not answered.
    quick: Cell<usize>,
    quick_under_way: Cell<usize>,
    next_id: Cell<u64>,
    calls: Cell<usize>,
    pump_scheduled: Cell<bool>,
    closed: RefCell<Option<String>>,
    on_close: Notify,
}

impl<P: Protocol> BatchSender<P> {
    /// Opens a sender on a stream that has passed its preamble. The connection lives as long as the sender, or until it
    /// fails. Between nodes, an idle sender asks for signs of life, and `waits` is where it shows how much waits.
    pub(crate) fn open_between_nodes(duplex: Duplex, waits: Waits) -> Rc<BatchSender<P>> {
        BatchSender::start(duplex, Some(waits))
    }

    /// Opens a client's sender on a stream that has passed its preamble.
    pub fn open(duplex: Duplex) -> Rc<BatchSender<P>> {
        BatchSender::start(duplex, None)
    }

    fn start(duplex: Duplex, waits: Option<Waits>) -> Rc<BatchSender<P>> {
        let signs = SignsOfLife::default();
        let size_hint = SizeHint::default();
        let (port, driver) = connection::dial::<P::Port>(duplex, signs.clone(), size_hint.clone());
        let sender = Rc::new(BatchSender {
            port,
            size_hint,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            waiting: RefCell::default(),
            quick: Cell::new(0),
            quick_under_way: Cell::new(0),
            next_id: Cell::new(1),
            calls: Cell::new(0),
            pump_scheduled: Cell::new(false),
            closed: RefCell::new(None),
            on_close: Notify::new(),
        });
        let theirs = Rc::downgrade(&sender);
        let watch = BatchSender::watch(Rc::downgrade(&sender), signs, waits);
        tokio::task::spawn_local(async move {
            let reason = tokio::select! {
                biased;
                ended = driver => ended.unwrap_or_else(|| "the other side closed the connection".into()),
                silent = watch => silent,
            };
            if let Some(sender) = theirs.upgrade() {
                sender.close(&reason);
            }
        });
        sender
    }

    /// Queues an operation; `reply` gets its result, or that there will be none.
    pub fn send(self: &Rc<Self>, request: P::Request, timeout: Duration, reply: ReplyTo<P::Reply>) {
        if self.closed.borrow().is_some() {
            return reply.send(P::disconnected());
        }
        let bytes = P::bytes_of(&request);
        if self.waiting.borrow().len() >= MAX_OUTSTANDING {
            return reply.send(P::overloaded("operations waiting on one connection", MAX_OUTSTANDING));
        }
        if self.queued_bytes.get() + bytes > MAX_QUEUED_BYTES {
            return reply.send(P::overloaded("bytes queued for one connection", MAX_QUEUED_BYTES));
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        self.queued_bytes.set(self.queued_bytes.get() + bytes);
        let is_quick = P::is_quick(&request);
        self.quick.set(self.quick.get() + usize::from(is_quick));
        self.queue.borrow_mut().push_back(Queued { id, deadline: Instant::now() + timeout, request });
        self.waiting.borrow_mut().insert(id, WaitingOperation { reply, is_quick });
        if !self.pump_scheduled.replace(true) {
            let sender = self.clone();
            tokio::task::spawn_local(async move {
                sender.pump_scheduled.set(false);
                sender.pump();
            });
        }
    }

    /// Why the sender is closed, if it is.
    pub fn closed(&self) -> Option<String> {
        self.closed.borrow().clone()
    }

    /// Waits until the sender is closed, and says why.
    pub async fn until_closed(&self) -> String {
        loop {
            let notified = self.on_close.notified();
            if let Some(reason) = self.closed() {
                return reason;
            }
            notified.await;
        }
    }

    /// Answers everything that waits with "disconnected", and takes nothing more.
    pub fn close(&self, reason: &str) {
        if self.closed.borrow().is_some() {
            return;
        }
        *self.closed.borrow_mut() = Some(reason.to_owned());
        self.queue.borrow_mut().clear();
        for (_, waiting) in std::mem::take(&mut *self.waiting.borrow_mut()) {
            waiting.reply.send(P::disconnected());
        }
        self.on_close.notify_waiters();
    }

    /// Sends what has gathered, as far as calls are free; keeps one call out while results are owed.
    fn pump(self: &Rc<Self>) {
        while self.closed.borrow().is_none() && self.may_call() {
            let batch = self.take_batch();
            let collecting = self.calls.get() == 0 && !self.waiting.borrow().is_empty();
            if batch.is_empty() && !collecting {
                return;
            }
            self.call(batch);
        }
    }

    fn may_call(&self) -> bool {
        let calls = self.calls.get();
        let only_slow_ones = self.quick.get() > 0 && self.quick_under_way.get() == 0;
        let is_worth_it = only_slow_ones || self.queue.borrow().len() >= WORTH_A_CALL;
        calls < USUAL_CALLS || (calls < MAX_CALLS && is_worth_it)
    }

    fn call(self: &Rc<Self>, batch: Vec<Queued<P::Request>>) {
        self.calls.set(self.calls.get() + 1);
        self.size_hint.expect(batch.iter().map(|queued| P::bytes_of(&queued.request)).sum());
        let answer = P::exchange(&self.port, batch);
        let sender = self.clone();
        tokio::task::spawn_local(async move {
            let answer = answer.await;
            sender.calls.set(sender.calls.get() - 1);
            match answer {
                Ok(results) => {
                    for (id, result) in results {
                        let waiting = sender.waiting.borrow_mut().remove(&id);
                        if let Some(WaitingOperation { reply, is_quick }) = waiting {
                            let quick = sender.quick_under_way.get().saturating_sub(usize::from(is_quick));
                            sender.quick_under_way.set(quick);
                            reply.send(result);
                        }
                    }
                    sender.pump();
                }
                Err(error) => sender.close(&error.to_string()),
            }
        });
    }

    fn take_batch(&self) -> Vec<Queued<P::Request>> {
        let mut queue = self.queue.borrow_mut();
        let mut batch = Vec::new();
        let mut expired = Vec::new();
        let mut bytes = 0;
        let now = Instant::now();
        while let Some(next) = queue.front() {
            let next_bytes = P::bytes_of(&next.request);
            if batch.len() >= MAX_BATCH_OPERATIONS
                || (!batch.is_empty() && bytes + next_bytes > MAX_BATCH_BYTES)
            {
                break;
            }
            bytes += next_bytes;
            let Some(next) = queue.pop_front() else { break };
            let quick = usize::from(P::is_quick(&next.request));
            self.quick.set(self.quick.get() - quick);
            if next.timeout(now).is_zero() {
                expired.push(next.id);
            } else {
                // One that was answered before it was sent is owed nothing more.
                let is_owed = self.waiting.borrow().contains_key(&next.id);
                self.quick_under_way.set(self.quick_under_way.get() + quick * usize::from(is_owed));
                batch.push(next);
            }
        }
        drop(queue);
        for id in expired {
            let waiting = self.waiting.borrow_mut().remove(&id);
            if let Some(WaitingOperation { reply, .. }) = waiting {
                reply.send(P::expired());
            }
        }
        self.queued_bytes.set(self.queued_bytes.get() - bytes);
        batch
    }

    /// Returns when the other side has been silent for too long. Counts looks, not time: a process that was stopped,
    /// or a client that does not run between its calls, must not take its own absence for the other side's.
    async fn watch(
        sender: std::rc::Weak<BatchSender<P>>,
        signs: SignsOfLife,
        mut waits: Option<Waits>,
    ) -> String {
        let mut every = tokio::time::interval(WATCH_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut seen, mut silent, mut idle) = (0, 0, 0);
        loop {
            every.tick().await;
            let Some(sender) = sender.upgrade() else {
                return "dropped".into();
            };
            if let Some(waits) = &mut waits {
                waits.show(sender.waiting.borrow().len());
            }
            if sender.calls.get() == 0 || signs.count() != seen {
                seen = signs.count();
                silent = 0;
                idle = if sender.calls.get() == 0 { idle + 1 } else { 0 };
                if waits.is_some() && idle >= IDLE_LOOKS {
                    idle = 0;
                    sender.call(Vec::new());
                }
                continue;
            }
            silent += 1;
            if silent >= SILENT_LOOKS {
                return format!("no answer for {} ms", WATCH_EVERY.as_millis() * u128::from(SILENT_LOOKS));
            }
        }
    }
}

impl<P: Protocol> Drop for BatchSender<P> {
    fn drop(&mut self) {
        self.close("dropped");
    }
}

#[cfg(test)]
mod tests {
    use quorate_core::request::ClientRequest;

    use super::*;
    use crate::convert::client::{ClientAnswer, ClientProtocol};

    /// A peer that never says anything: what waits is answered, and nothing of the connection is kept.
    #[tokio::test]
    async fn nothing_is_left_of_a_connection_to_a_silent_peer() {
        let local = tokio::task::LocalSet::new();
        let (ours, _theirs) = tokio::io::duplex(1024);
        let (read, write) = tokio::io::split(ours);
        let answers = Rc::new(RefCell::new(Vec::new()));
        let arrived = answers.clone();
        let sender = local
            .run_until(async move {
                let sender = BatchSender::<ClientProtocol>::open(Duplex {
                    read: Box::new(read),
                    write: Box::new(write),
                });
                sender.send(
                    ClientRequest::Ping,
                    Duration::from_secs(9),
                    ReplyTo::call(move |answer| arrived.borrow_mut().push(answer)),
                );
                sender.until_closed().await;
                let weak = Rc::downgrade(&sender);
                drop(sender);
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                weak
            })
            .await;
        assert_eq!(*answers.borrow(), [ClientAnswer::ConnectionLost]);
        assert!(sender.upgrade().is_none(), "something still holds it");
    }
}

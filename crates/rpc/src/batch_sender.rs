//! The sending side of a connection. Operations gather in its queue while earlier calls are under
//! way. The next call carries them as one batch.
//!
//! No timer delays an operation. With fewer than two calls under way, an operation is sent at the
//! end of the event loop's turn. Otherwise it waits in the queue until a call is answered. Up to
//! eight calls may be under way in two cases. In the first, at least eight operations are queued.
//! In the second, a quick operation (a read) would otherwise wait behind slow ones (writes that
//! wait for their commit).

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

/// Largest number of calls under way at a time, except in two cases (see [`MAX_CALLS`]). The other
/// side can work on one call while the second is on the wire.
const USUAL_CALLS: usize = 2;
/// Largest number of calls under way at a time if many operations are queued, or if a quick
/// operation would otherwise wait behind slow ones.
const MAX_CALLS: usize = 8;
/// Number of queued operations from which on the sender may exceed [`USUAL_CALLS`].
const EXTRA_CALL_OPERATIONS: usize = 8;
/// Largest number of operations in one call.
pub const MAX_BATCH_OPERATIONS: usize = 1024;
/// Largest number of bytes of operations in one call. A single larger operation travels alone.
pub const MAX_BATCH_BYTES: usize = 1024 * 1024;
/// Largest number of operations of one connection that wait for a result. Further operations are
/// refused.
pub const MAX_OUTSTANDING: usize = 16_384;
/// Largest number of bytes of operations in the queue of one sender. Further operations are
/// refused.
pub const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// Interval at which a sender checks for signs of life from the other side. A live side answers a
/// call within [`crate::reply_buffer::LONGEST_HOLD`], even if it has no results.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);
/// Number of checks in a row without a sign of life (see [`SignsOfLife`]) while a call is under
/// way. After them, the sender counts the other side as dead and closes the connection.
const MAX_SILENT_CHECKS: u32 = 5;
/// Number of checks in a row without a call under way. After them, a sender between nodes sends an
/// empty call. Without that call, an idle sender would not notice a dead peer.
const IDLE_CHECKS: u32 = 2;

/// Number of operations that wait for each peer's answer, over all senders to that peer. For
/// display only: each sender updates its share at its checks for signs of life.
#[derive(Clone, Default)]
pub struct PeerQueues(Arc<Mutex<BTreeMap<NodeId, usize>>>);

impl PeerQueues {
    /// Returns the number of waiting operations for each peer.
    pub fn depths(&self) -> BTreeMap<NodeId, usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One sender's part of the numbers in [`PeerQueues`]. The number of its peer includes `shown`
/// waiting operations of this sender.
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

/// One of the two protocols, with the parts that a sender needs: the protocol between clients and
/// nodes, or the one between nodes.
pub trait Protocol: 'static {
    /// An operation.
    type Request: 'static;
    /// The result of an operation.
    type Reply: 'static;
    /// The Cap'n Proto capability that accepts batches.
    type Port: capnp::capability::FromClientHook + Clone + 'static;

    /// True if the operation usually needs no commit of the storage engine. Such an operation must
    /// not wait behind operations that need one.
    fn is_quick(request: &Self::Request) -> bool;

    /// Estimates the operation's size on the wire, in bytes.
    fn bytes_of(request: &Self::Request) -> usize;

    /// Sends a batch in one call. Returns the results in the call's answer, each with the number of
    /// its operation. A result may belong to an operation of an earlier batch.
    fn exchange(
        port: &Self::Port,
        batch: Vec<Queued<Self::Request>>,
    ) -> impl Future<Output = Result<Vec<(u64, Self::Reply)>, capnp::Error>> + 'static;

    /// Returns the reply to an operation whose connection was lost before its result arrived.
    fn disconnected() -> Self::Reply;

    /// Returns the reply to an operation whose deadline passed before it was sent.
    fn expired() -> Self::Reply;

    /// Returns the reply to an operation that the sender refuses because a limit is reached. `what`
    /// names the limited quantity.
    fn overloaded(what: &str, limit: usize) -> Self::Reply;
}

/// An operation with its number on this connection.
pub struct Queued<Q> {
    /// Number of the operation, unique on this connection.
    pub id: u64,
    /// Deadline of the operation. An operation that is still queued at its deadline is not sent,
    /// but answered with [`Protocol::expired`].
    pub deadline: Instant,
    /// The operation itself.
    pub request: Q,
}

impl<Q> Queued<Q> {
    /// Returns the time from `now` to the deadline; zero if it has passed.
    pub fn timeout(&self, now: Instant) -> Duration {
        self.deadline.saturating_duration_since(now)
    }
}

/// An operation that is queued or sent, and has no result yet.
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
    /// Number of quick operations in the queue.
    quick: Cell<usize>,
    /// Number of quick operations that were sent and have no result yet.
    quick_under_way: Cell<usize>,
    next_id: Cell<u64>,
    calls: Cell<usize>,
    pump_scheduled: Cell<bool>,
    closed: RefCell<Option<String>>,
    on_close: Notify,
}

impl<P: Protocol> BatchSender<P> {
    /// Opens a sender to a peer, on a stream whose preamble ([`crate::preamble`]) is complete. The
    /// connection lives until the sender is dropped or the connection fails. An idle sender sends
    /// empty calls, to notice a dead peer. The sender reports its number of waiting operations to
    /// `waits`.
    pub(crate) fn open_between_nodes(duplex: Duplex, waits: Waits) -> Rc<BatchSender<P>> {
        BatchSender::start(duplex, Some(waits))
    }

    /// Opens a client's sender to a node, on a stream whose preamble ([`crate::preamble`]) is
    /// complete.
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

    /// Queues an operation. `reply` receives its result, or the reason why there is none.
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

    /// Returns the reason why the sender is closed; `None` while it is open.
    pub fn closed(&self) -> Option<String> {
        self.closed.borrow().clone()
    }

    /// Waits until the sender is closed. Returns the reason.
    pub async fn until_closed(&self) -> String {
        loop {
            let notified = self.on_close.notified();
            if let Some(reason) = self.closed() {
                return reason;
            }
            notified.await;
        }
    }

    /// Closes the sender: answers all waiting operations, and all later ones, as disconnected.
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

    /// Sends the queued operations while another call is allowed. Keeps at least one call under way
    /// while operations wait for results, because results travel only in answers to calls.
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
        let quick_waits_for_slow = self.quick.get() > 0 && self.quick_under_way.get() == 0;
        let needs_extra = quick_waits_for_slow || self.queue.borrow().len() >= EXTRA_CALL_OPERATIONS;
        calls < USUAL_CALLS || (calls < MAX_CALLS && needs_extra)
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
                // False only if a faulty peer has answered this operation before it was sent. The
                // operation then is no longer in `waiting`.
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

    /// Waits until the other side has been silent for too long. Returns the reason. Counts checks
    /// and not time. A process that was stopped, or a client whose event loop does not run between
    /// its calls, must not mistake its own pause for the other side's silence.
    async fn watch(
        sender: std::rc::Weak<BatchSender<P>>,
        signs: SignsOfLife,
        mut waits: Option<Waits>,
    ) -> String {
        let mut checks = tokio::time::interval(WATCH_INTERVAL);
        checks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut seen, mut silent, mut idle) = (0, 0, 0);
        loop {
            checks.tick().await;
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
                if waits.is_some() && idle >= IDLE_CHECKS {
                    idle = 0;
                    sender.call(Vec::new());
                }
                continue;
            }
            silent += 1;
            if silent >= MAX_SILENT_CHECKS {
                let silent_ms = WATCH_INTERVAL.as_millis() * u128::from(MAX_SILENT_CHECKS);
                return format!("no answer for {silent_ms} ms");
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

    /// The peer never sends a byte. The sender then closes, and answers its waiting operation as
    /// disconnected. Dropping the sender frees the connection.
    #[tokio::test]
    async fn a_connection_to_a_silent_peer_is_closed_and_freed() {
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
        assert!(sender.upgrade().is_none(), "a reference to the dropped sender is left");
    }
}

//! The queue that brings outcomes of updates from the engine's threads back to the worker.
//!
//! One wake-up of the worker delivers all outcomes that are ready.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use bytes::Bytes;
use futures::task::AtomicWaker;
use quorate_core::PartitionId;
use quorate_core::event::EventKind;
use quorate_core::object::Written;
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{PeerReply, PeerResult};
use quorate_core::seams::ReplyTo;
use quorate_core::storage::{StorageEngine, StorageError, Update};
use tokio::sync::oneshot;

use super::failure::WriteFailure;
use crate::state::shared::Shared;

/// The result of a write that this node coordinates, once it is applied: the object that the other
/// replicas merge, and the reply to the client.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The merged object, encoded.
    pub(crate) object: Bytes,
    pub(crate) written: Written,
}

/// The outcome of one step of an update, for its worker: applied, acked or failed.
#[derive(Default)]
pub(crate) struct Completion {
    /// The number that the worker gave the update.
    pub(crate) ticket: u64,
    pub(crate) applied: Option<Applied>,
    /// The ack of the update, or its error.
    pub(crate) acked: Option<Result<(), WriteFailure>>,
    /// The partition whose actor the update renewed, if it did.
    pub(crate) renewed: Option<PartitionId>,
}

/// The queue of outcomes for one worker. The engine's threads fill it.
#[derive(Default)]
pub(crate) struct CompletionQueue {
    posted: Mutex<Posted>,
    worker: AtomicWaker,
}

#[derive(Default)]
struct Posted {
    completions: Vec<Completion>,
    /// True while the worker submits updates. Nothing needs to wake the worker then, because it
    /// reads the queue directly after that.
    submitting: bool,
}

impl CompletionQueue {
    /// Adds an outcome, and wakes the worker if necessary.
    pub(crate) fn post(&self, completion: Completion) {
        let wake = {
            let mut posted = self.lock();
            posted.completions.push(completion);
            posted.completions.len() == 1 && !posted.submitting
        };
        if wake {
            self.worker.wake();
        }
    }

    /// Removes and returns all outcomes.
    fn take(&self) -> Vec<Completion> {
        let mut posted = self.lock();
        posted.submitting = false;
        std::mem::take(&mut posted.completions)
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Completion {
    /// Creates an empty completion of this ticket.
    pub(super) fn of(ticket: u64) -> Completion {
        Completion { ticket, ..Completion::default() }
    }
}

/// The moment at which an update is acked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AckWhen {
    Applied,
    Durable,
}

/// The sender of one update's outcomes to the worker.
pub(super) struct Ack {
    queue: Arc<CompletionQueue>,
    ticket: u64,
    when: AckWhen,
    /// The reason why the update was rejected. The engine itself only knows that the update left
    /// its record unchanged.
    failure: Option<WriteFailure>,
    /// The partition whose actor this update had to renew.
    renewed: Option<PartitionId>,
}

impl Ack {
    pub(super) fn new(queue: Arc<CompletionQueue>, ticket: u64, when: AckWhen) -> Ack {
        Ack { queue, ticket, when, failure: None, renewed: None }
    }

    /// Stores the reason why the update leaves its record unchanged, and returns the error for the
    /// engine.
    pub(super) fn reject(&mut self, failure: WriteFailure, detail: String) -> StorageError {
        self.failure = Some(failure);
        StorageError::Rejected { detail }
    }

    /// Posts that the update was applied. Acks the update too, unless its ack has to wait until the
    /// change is durable.
    pub(super) fn applied(&mut self, applied: Option<Applied>) {
        let now = self.when == AckWhen::Applied || planted(Bug::AckBeforeDurable);
        let acked = now.then_some(Ok(()));
        if applied.is_some() || acked.is_some() {
            self.queue.post(Completion { applied, acked, ..Completion::of(self.ticket) });
        }
    }

    /// Posts the end of the update. The engine may call this while it holds a lock, so events are
    /// emitted only when the worker delivers the outcome.
    pub(super) fn finished(self, outcome: Result<(), StorageError>) {
        let acked = match outcome {
            Ok(()) if self.when == AckWhen::Applied && self.renewed.is_none() => return,
            Ok(()) => Ok(()),
            Err(error) => Err(self.failure.unwrap_or(WriteFailure::Storage(error))),
        };
        let Ack { queue, ticket, renewed, .. } = self;
        queue.post(Completion { acked: Some(acked), renewed, ..Completion::of(ticket) });
    }

    /// Renews the actor of a partition. The worker emits the event `ActorRenewed` when it delivers
    /// the outcome.
    pub(super) fn renew_actor(&mut self, shared: &Shared, partition: PartitionId) {
        shared.actors.renew(partition);
        self.renewed = Some(partition);
    }
}

/// The updates whose outcomes this worker waits for, by ticket.
pub(crate) struct Completions {
    queue: Arc<CompletionQueue>,
    shared: Arc<Shared>,
    waiting: RefCell<BTreeMap<u64, WaitingUpdate>>,
    next: Cell<u64>,
}

/// The receivers of one update's outcomes.
struct WaitingUpdate {
    applied: Option<oneshot::Sender<Result<Applied, WriteFailure>>>,
    acked: Option<ReplyTo<PeerResult>>,
}

impl Completions {
    /// Creates an empty table, and starts the task that delivers outcomes. The task ends at the
    /// first outcome that arrives after the table was dropped.
    pub(crate) fn start(shared: Arc<Shared>) -> Rc<Completions> {
        let completions = Rc::new(Completions {
            queue: Arc::default(),
            shared,
            waiting: RefCell::default(),
            next: Cell::new(0),
        });
        let queue = completions.queue.clone();
        let weak = Rc::downgrade(&completions);
        tokio::task::spawn_local(async move {
            loop {
                let posted = std::future::poll_fn(|cx| {
                    queue.worker.register(cx.waker());
                    let posted = queue.take();
                    if posted.is_empty() { Poll::Pending } else { Poll::Ready(posted) }
                })
                .await;
                let Some(completions) = weak.upgrade() else {
                    return;
                };
                for completion in posted {
                    completions.deliver(completion);
                }
            }
        });
        completions
    }

    /// Submits updates, and delivers the outcomes that were posted during the call of the engine.
    /// An engine without threads of its own posts all outcomes during that call.
    pub(crate) fn submit(&self, engine: &dyn StorageEngine, updates: Vec<Box<dyn Update>>) {
        self.queue.lock().submitting = true;
        engine.update(updates);
        for completion in self.queue.take() {
            self.deliver(completion);
        }
    }

    /// Returns the queue to which updates post their outcomes.
    pub(super) fn queue(&self) -> Arc<CompletionQueue> {
        self.queue.clone()
    }

    /// Creates a ticket for an update. `acked` gets the update's ack, or its error.
    pub(crate) fn for_ack(&self, acked: ReplyTo<PeerResult>) -> u64 {
        self.register(WaitingUpdate { applied: None, acked: Some(acked) })
    }

    /// Creates a ticket for an update. The receiver gets the result once the update is applied.
    /// `acked` gets the update's ack. An error goes to both.
    pub(crate) fn for_both(
        &self,
        acked: ReplyTo<PeerResult>,
    ) -> (u64, oneshot::Receiver<Result<Applied, WriteFailure>>) {
        let (sender, receiver) = oneshot::channel();
        (self.register(WaitingUpdate { applied: Some(sender), acked: Some(acked) }), receiver)
    }

    fn register(&self, waiting: WaitingUpdate) -> u64 {
        let ticket = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().insert(ticket, waiting);
        ticket
    }

    /// Passes an outcome on to the part of the node that waits for it, and emits its events.
    fn deliver(&self, completion: Completion) {
        let Completion { ticket, applied, acked, renewed } = completion;
        if let Some(partition) = renewed {
            self.shared.emit(None, EventKind::ActorRenewed { partition: partition.0 });
        }
        if let Some(Err(WriteFailure::Storage(error))) = &acked
            && !matches!(error, StorageError::QueueFull { .. })
        {
            self.shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
        }
        if let Some(Err(WriteFailure::HintBudget { target, .. })) = &acked {
            let target = self.shared.view().name_of(*target);
            self.shared.emit(None, EventKind::HintRefused { target });
        }
        if let Some(applied) = applied
            && let Some(waiting) = self.waiting.borrow_mut().get_mut(&ticket)
            && let Some(sender) = waiting.applied.take()
        {
            let _ = sender.send(Ok(applied));
        }
        let Some(acked) = acked else { return };
        let Some(waiting) = self.waiting.borrow_mut().remove(&ticket) else {
            return;
        };
        match acked {
            Ok(()) => {
                if let Some(reply) = waiting.acked {
                    reply.send(Ok(PeerReply::Acked));
                }
            }
            Err(failure) => {
                if let Some(reply) = waiting.acked {
                    reply.send(Err(failure.for_peer()));
                }
                if let Some(sender) = waiting.applied {
                    let _ = sender.send(Err(failure));
                }
            }
        }
    }
}

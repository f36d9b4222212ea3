//! Outcomes of updates, on their way from the engine's threads back to the worker.
//!
//! One wake-up brings all outcomes that are ready, instead of one wake-up for each.

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

/// A write of this node's own, applied: what the other replicas are to merge, and what its client is told.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The merged object, encoded.
    pub(crate) object: Bytes,
    pub(crate) written: Written,
}

/// A step in an update's life, for the worker that submitted it.
#[derive(Default)]
pub(crate) struct Completion {
    pub(crate) ticket: u64,
    pub(crate) applied: Option<Applied>,
    pub(crate) acked: Option<Result<(), WriteFailure>>,
    /// The partition whose actor had to be replaced.
    pub(crate) renewed: Option<PartitionId>,
}

/// The queue in which the engine's threads leave outcomes for one worker.
#[derive(Default)]
pub(crate) struct CompletionQueue {
    posted: Mutex<Posted>,
    worker: AtomicWaker,
}

#[derive(Default)]
struct Posted {
    progress: Vec<Completion>,
    /// The worker is submitting, and will look itself when it has: no need to wake it.
    submitting: bool,
}

impl CompletionQueue {
    pub(crate) fn post(&self, progress: Completion) {
        let wake = {
            let mut posted = self.lock();
            posted.progress.push(progress);
            posted.progress.len() == 1 && !posted.submitting
        };
        if wake {
            self.worker.wake();
        }
    }

    fn take(&self) -> Vec<Completion> {
        let mut posted = self.lock();
        posted.submitting = false;
        std::mem::take(&mut posted.progress)
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Completion {
    /// A completion of this ticket that says nothing yet.
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

/// The ack of one update: posts its outcome to the worker.
pub(super) struct Ack {
    queue: Arc<CompletionQueue>,
    ticket: u64,
    when: AckWhen,
    /// The typed reason of a rejection. The engine only knows that the update rejected its record.
    failure: Option<WriteFailure>,
    /// The partition whose actor this update had to renew.
    renewed: Option<PartitionId>,
}

impl Ack {
    pub(super) fn new(queue: Arc<CompletionQueue>, ticket: u64, when: AckWhen) -> Ack {
        Ack { queue, ticket, when, failure: None, renewed: None }
    }

    /// Notes why the update leaves its record alone, and returns the error for the engine.
    pub(super) fn reject(&mut self, failure: WriteFailure, detail: String) -> StorageError {
        self.failure = Some(failure);
        StorageError::Rejected { detail }
    }

    /// Posts that the update was applied, and acks it if that is the moment.
    pub(super) fn applied(&mut self, applied: Option<Applied>) {
        let now = self.when == AckWhen::Applied || planted(Bug::AckBeforeDurable);
        let acked = now.then_some(Ok(()));
        if applied.is_some() || acked.is_some() {
            self.queue.post(Completion { applied, acked, ..Completion::of(self.ticket) });
        }
    }

    /// Posts the end of the update. The engine may call this under its lock: nothing is logged here,
    /// but where the outcome is delivered.
    pub(super) fn finished(self, outcome: Result<(), StorageError>) {
        let acked = match outcome {
            Ok(()) if self.when == AckWhen::Applied && self.renewed.is_none() => return,
            Ok(()) => Ok(()),
            Err(error) => Err(self.failure.unwrap_or(WriteFailure::Storage(error))),
        };
        let Ack { queue, ticket, renewed, .. } = self;
        queue.post(Completion { acked: Some(acked), renewed, ..Completion::of(ticket) });
    }

    /// Renews the actor of a partition, and has the worker emit an event for it.
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

struct WaitingUpdate {
    applied: Option<oneshot::Sender<Result<Applied, WriteFailure>>>,
    acked: Option<ReplyTo<PeerResult>>,
}

impl Completions {
    /// Starts to deliver, for as long as the value lives.
    pub(crate) fn start(shared: Arc<Shared>) -> Rc<Completions> {
        let completions = Rc::new(Completions {
            queue: Arc::default(),
            shared,
            waiting: RefCell::default(),
            next: Cell::new(0),
        });
        let queue = completions.queue.clone();
        let theirs = Rc::downgrade(&completions);
        tokio::task::spawn_local(async move {
            loop {
                let posted = std::future::poll_fn(|cx| {
                    queue.worker.register(cx.waker());
                    let posted = queue.take();
                    if posted.is_empty() { Poll::Pending } else { Poll::Ready(posted) }
                })
                .await;
                let Some(completions) = theirs.upgrade() else {
                    return;
                };
                for progress in posted {
                    completions.deliver(progress);
                }
            }
        });
        completions
    }

    /// Submits updates, and delivers at once what an engine that works in place has done by then.
    pub(crate) fn submit(&self, engine: &dyn StorageEngine, updates: Vec<Box<dyn Update>>) {
        self.queue.lock().submitting = true;
        engine.update(updates);
        for progress in self.queue.take() {
            self.deliver(progress);
        }
    }

    /// A queue for the updates to post their outcomes to.
    pub(super) fn queue(&self) -> Arc<CompletionQueue> {
        self.queue.clone()
    }

    /// Makes a ticket for an update. `acked` is sent its ack, or its error.
    pub(crate) fn for_ack(&self, acked: ReplyTo<PeerResult>) -> u64 {
        self.register(WaitingUpdate { applied: None, acked: Some(acked) })
    }

    /// Makes a ticket for an update. The receiver hears that it was applied, `acked` its ack.
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

    fn deliver(&self, progress: Completion) {
        let Completion { ticket, applied, acked, renewed } = progress;
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

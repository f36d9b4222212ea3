//! From the engine's threads back to the worker: one wake-up for all that was done, not one for each.

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
use quorate_core::request::{PeerReply, PeerResult};
use quorate_core::seams::ReplyTo;
use quorate_core::storage::{StorageEngine, StorageError, Update};
use tokio::sync::oneshot;

use crate::replica::WriteFailure;
use crate::shared::Shared;

/// A write of this node's own, applied: what the other replicas are to merge, and what its client is told.
#[derive(Debug)]
pub(crate) struct Applied {
    /// The merged object, encoded.
    pub(crate) object: Bytes,
    pub(crate) written: Written,
}

/// What an engine's update says on its way.
pub(crate) struct Progress {
    pub(crate) ticket: u64,
    pub(crate) applied: Option<Applied>,
    pub(crate) acked: Option<Result<(), WriteFailure>>,
    /// The partition whose actor had to be replaced.
    pub(crate) renewed: Option<PartitionId>,
}

/// Where engine threads leave what they did.
#[derive(Default)]
pub(crate) struct Outbox {
    posted: Mutex<Posted>,
    worker: AtomicWaker,
}

#[derive(Default)]
struct Posted {
    progress: Vec<Progress>,
    /// The worker is submitting, and will look itself when it has: no need to wake it.
    submitting: bool,
}

impl Outbox {
    pub(crate) fn post(&self, progress: Progress) {
        let wake = {
            let mut posted = self.lock();
            posted.progress.push(progress);
            posted.progress.len() == 1 && !posted.submitting
        };
        if wake {
            self.worker.wake();
        }
    }

    fn take(&self) -> Vec<Progress> {
        let mut posted = self.lock();
        posted.submitting = false;
        std::mem::take(&mut posted.progress)
    }

    fn lock(&self) -> MutexGuard<'_, Posted> {
        self.posted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits on this worker for which update.
pub(crate) struct Completions {
    pub(crate) outbox: Arc<Outbox>,
    shared: Arc<Shared>,
    waiting: RefCell<BTreeMap<u64, Waiting>>,
    next: Cell<u64>,
}

struct Waiting {
    applied: Option<oneshot::Sender<Result<Applied, WriteFailure>>>,
    acked: Option<ReplyTo<PeerResult>>,
}

impl Completions {
    /// Starts to deliver, for as long as the value lives.
    pub(crate) fn start(shared: Arc<Shared>) -> Rc<Completions> {
        let completions = Rc::new(Completions {
            outbox: Arc::default(),
            shared,
            waiting: RefCell::default(),
            next: Cell::new(0),
        });
        let outbox = completions.outbox.clone();
        let theirs = Rc::downgrade(&completions);
        tokio::task::spawn_local(async move {
            loop {
                let posted = std::future::poll_fn(|cx| {
                    outbox.worker.register(cx.waker());
                    let posted = outbox.take();
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
        self.outbox.lock().submitting = true;
        engine.update(updates);
        for progress in self.outbox.take() {
            self.deliver(progress);
        }
    }

    /// Waits for an update's ack.
    pub(crate) fn for_ack(&self, acked: ReplyTo<PeerResult>) -> u64 {
        self.register(Waiting { applied: None, acked: Some(acked) })
    }

    /// Waits for an update to be applied, and for its ack.
    pub(crate) fn for_both(
        &self,
        acked: ReplyTo<PeerResult>,
    ) -> (u64, oneshot::Receiver<Result<Applied, WriteFailure>>) {
        let (sender, receiver) = oneshot::channel();
        (self.register(Waiting { applied: Some(sender), acked: Some(acked) }), receiver)
    }

    fn register(&self, waiting: Waiting) -> u64 {
        let ticket = self.next.replace(self.next.get() + 1);
        self.waiting.borrow_mut().insert(ticket, waiting);
        ticket
    }

    fn deliver(&self, progress: Progress) {
        let Progress { ticket, applied, acked, renewed } = progress;
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

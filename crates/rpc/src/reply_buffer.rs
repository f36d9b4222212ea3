//! The receiving side of a connection: admits operations within limits, keeps their results, and
//! answers calls with the results that are ready.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use quorate_core::seams::{ReplySink, ReplyTo};
use tokio::sync::Notify;

use crate::batch_sender::{MAX_BATCH_BYTES, MAX_BATCH_OPERATIONS, MAX_OUTSTANDING};

/// Longest time for which a call waits for results. Then it is answered without results, as a sign
/// of life.
pub const LONGEST_HOLD: Duration = Duration::from_millis(250);
/// Longest time for which a call waits while another call of the connection already waits. The
/// sender may have only a few calls under way. If all of them waited for slow operations (a quorum
/// that misses a node), it could send nothing.
const SURPLUS_HOLD: Duration = Duration::from_millis(5);
/// Largest number of calls of one connection that wait for results at a time. Further calls are
/// answered at once.
const MAX_HELD_CALLS: usize = 8;
/// Largest number of bytes of one connection's operations under way and uncollected results
/// together. Beyond this, new operations are refused.
const MAX_OUTSTANDING_BYTES: usize = 128 * 1024 * 1024;

/// Results of one connection that are ready, and the number and size of its operations under way.
pub struct ReplyBuffer<A> {
    ready: RefCell<VecDeque<(u64, A)>>,
    outstanding: Cell<usize>,
    outstanding_bytes: Cell<usize>,
    ready_bytes: Cell<usize>,
    held: Cell<usize>,
    arrived: Notify,
    abandoned: fn() -> A,
    bytes_of: fn(&A) -> usize,
}

/// Reply sink of one operation. When the operation is answered, the sink subtracts its bytes from
/// the bytes under way.
struct BufferedReply<A> {
    buffer: Rc<ReplyBuffer<A>>,
    bytes: usize,
}

impl<A: 'static> ReplyBuffer<A> {
    /// Returns an empty buffer. An operation whose sink is dropped unused is answered with
    /// `abandoned`. `bytes_of` estimates the size of a result.
    pub fn new(abandoned: fn() -> A, bytes_of: fn(&A) -> usize) -> Rc<ReplyBuffer<A>> {
        Rc::new(ReplyBuffer {
            ready: RefCell::default(),
            outstanding: Cell::new(0),
            outstanding_bytes: Cell::new(0),
            ready_bytes: Cell::new(0),
            held: Cell::new(0),
            arrived: Notify::new(),
            abandoned,
            bytes_of,
        })
    }

    /// Admits an operation of `bytes` bytes. Returns the sink for its result, or the limit that it
    /// would exceed.
    pub fn admit(self: &Rc<Self>, id: u64, bytes: usize) -> Result<ReplyTo<A>, usize> {
        if self.outstanding.get() + self.ready.borrow().len() >= MAX_OUTSTANDING {
            return Err(MAX_OUTSTANDING);
        }
        if self.outstanding_bytes.get() + self.ready_bytes.get() + bytes > MAX_OUTSTANDING_BYTES {
            return Err(MAX_OUTSTANDING_BYTES);
        }
        self.outstanding.set(self.outstanding.get() + 1);
        self.outstanding_bytes.set(self.outstanding_bytes.get() + bytes);
        Ok(ReplyTo::new(Rc::new(BufferedReply { buffer: self.clone(), bytes }), id))
    }

    /// Stores a result for the next call to collect.
    pub fn push(&self, id: u64, result: A) {
        self.ready_bytes.set(self.ready_bytes.get() + (self.bytes_of)(&result));
        let first = {
            let mut ready = self.ready.borrow_mut();
            ready.push_back((id, result));
            ready.len() == 1
        };
        if first {
            self.arrived.notify_one();
        }
    }

    /// Removes and returns results that are ready, as many as fit into one answer. If none is ready
    /// and operations are under way, waits for the first result, at most [`LONGEST_HOLD`].
    pub async fn collect(&self) -> Vec<(u64, A)> {
        let waits = || self.ready.borrow().is_empty() && self.outstanding.get() > 0;
        if waits() && self.held.get() < MAX_HELD_CALLS {
            let hold = if self.held.get() == 0 { LONGEST_HOLD } else { SURPLUS_HOLD };
            self.held.set(self.held.get() + 1);
            let _guard = HeldCall(&self.held);
            let _ = tokio::time::timeout(hold, async {
                while waits() {
                    self.arrived.notified().await;
                }
            })
            .await;
        }
        let mut results = Vec::new();
        let mut bytes = 0;
        let mut ready = self.ready.borrow_mut();
        while let Some((_, next)) = ready.front() {
            let next_bytes = (self.bytes_of)(next);
            if results.len() >= MAX_BATCH_OPERATIONS
                || (!results.is_empty() && bytes + next_bytes > MAX_BATCH_BYTES)
            {
                self.arrived.notify_one();
                break;
            }
            bytes += next_bytes;
            results.extend(ready.pop_front());
        }
        self.ready_bytes.set(self.ready_bytes.get() - bytes);
        if ready.is_empty() && self.outstanding.get() == 0 && self.held.get() > 0 {
            // No operation is under way, so the calls that still wait would receive no result. They
            // are answered now, because the sender may have only a few calls under way.
            self.arrived.notify_waiters();
        }
        results
    }
}

struct HeldCall<'a>(&'a Cell<usize>);

impl Drop for HeldCall<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl<A: 'static> ReplySink<A> for BufferedReply<A> {
    fn reply(&self, id: u64, answer: Option<A>) {
        let buffer = &self.buffer;
        buffer.outstanding.set(buffer.outstanding.get() - 1);
        buffer.outstanding_bytes.set(buffer.outstanding_bytes.get() - self.bytes);
        buffer.push(id, answer.unwrap_or_else(buffer.abandoned));
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use super::*;

    /// Two calls wait, both results arrive in one turn, and the first call collects both. The
    /// second call must then return at once. It would otherwise wait for its full time, and count
    /// as one of the few calls that the sender may have under way.
    #[test]
    fn no_call_waits_when_no_result_is_outstanding() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build_local(tokio::runtime::LocalOptions::default())
            .unwrap();
        runtime.block_on(async {
            let buffer = ReplyBuffer::<u8>::new(|| 0, |_| 1);
            let (one, two) = (buffer.admit(1, 1).unwrap(), buffer.admit(2, 1).unwrap());
            let (mut first, mut second) = (pin!(buffer.collect()), pin!(buffer.collect()));
            std::future::poll_fn(|cx| {
                assert!(first.as_mut().poll(cx).is_pending() && second.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            one.send(7);
            two.send(8);
            std::future::poll_fn(|cx| {
                assert_eq!(first.as_mut().poll(cx), Poll::Ready(vec![(1, 7), (2, 8)]));
                assert_eq!(second.as_mut().poll(cx), Poll::Ready(vec![]));
                Poll::Ready(())
            })
            .await;
            assert_eq!((buffer.held.get(), buffer.outstanding.get()), (0, 0));
        });
    }
}

//! The answers of several replicas to one request, as they come.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use quorate_core::NodeId;
use quorate_core::request::{PeerError, PeerResult};
use quorate_core::seams::{ReplySink, ReplyTo};
use tokio::time::{Instant, Sleep};

/// Collects answers. Slots are handed out, one a node asked; answers come out in the order of their arrival.
#[derive(Default)]
pub(crate) struct Gather {
    inbox: Rc<Inbox>,
    /// One timer a request, kept while its answers come.
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

#[derive(Default)]
struct Inbox {
    arrived: RefCell<VecDeque<(NodeId, PeerResult)>>,
    waker: RefCell<Option<Waker>>,
}

impl ReplySink<PeerResult> for Inbox {
    fn reply(&self, node: u64, answer: Option<PeerResult>) {
        let answer = answer.unwrap_or(Err(PeerError::Disconnected));
        self.arrived.borrow_mut().push_back((NodeId(node), answer));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Gather {
    /// Where the answer of `node` goes.
    pub(crate) fn slot(&self, node: NodeId) -> ReplyTo<PeerResult> {
        ReplyTo::new(self.inbox.clone(), node.0)
    }

    /// The next answer, or `None` once `until` has passed.
    pub(crate) async fn next(&self, until: Instant) -> Option<(NodeId, PeerResult)> {
        std::future::poll_fn(|cx| {
            if let Some(answer) = self.inbox.arrived.borrow_mut().pop_front() {
                return Poll::Ready(Some(answer));
            }
            *self.inbox.waker.borrow_mut() = Some(cx.waker().clone());
            let mut timer = self.timer.borrow_mut();
            let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            if timer.deadline() != until {
                timer.as_mut().reset(until);
            }
            timer.as_mut().poll(cx).map(|()| None)
        })
        .await
    }
}

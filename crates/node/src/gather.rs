//! The answers of several nodes to one request, in the order of their arrival.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use quorate_core::NodeId;
use quorate_core::request::{PeerError, PeerResult};
use quorate_core::seams::{ReplySink, ReplyTo};
use tokio::time::{Instant, Sleep};

/// Receiver of several nodes' answers. The request to a node is sent with the sink that
/// [`Gather::reply_to`] returns for that node.
#[derive(Default)]
pub(crate) struct Gather {
    replies: Rc<ArrivedReplies>,
    /// Timer for the time limit of [`Gather::next`]. It is created once, and reset for later calls.
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

/// Answers that have arrived and were not read yet.
#[derive(Default)]
struct ArrivedReplies {
    arrived: RefCell<VecDeque<(NodeId, PeerResult)>>,
    waker: RefCell<Option<Waker>>,
}

impl ReplySink<PeerResult> for ArrivedReplies {
    fn reply(&self, node: u64, answer: Option<PeerResult>) {
        let answer = answer.unwrap_or(Err(PeerError::Disconnected));
        self.arrived.borrow_mut().push_back((NodeId(node), answer));
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl Gather {
    /// Returns the sink for the answer of `node`.
    pub(crate) fn reply_to(&self, node: NodeId) -> ReplyTo<PeerResult> {
        ReplyTo::new(self.replies.clone(), node.0)
    }

    /// Returns the next answer that arrives, or `None` if no answer has arrived by `until`.
    pub(crate) async fn next(&self, until: Instant) -> Option<(NodeId, PeerResult)> {
        std::future::poll_fn(|cx| {
            if let Some(answer) = self.replies.arrived.borrow_mut().pop_front() {
                return Poll::Ready(Some(answer));
            }
            *self.replies.waker.borrow_mut() = Some(cx.waker().clone());
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

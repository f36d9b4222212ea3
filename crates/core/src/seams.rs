//! The two seams between the crates: a node receives requests through [`NodeService`], and sends
//! requests through [`PeerTransport`].
//!
//! Both carry batches: many requests travel together, and each gets a reply of its own.

use std::cell::Cell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use crate::member::{Member, NodeId};
use crate::request::{ClientRequest, ClientResult, PeerRequest, PeerResult};

/// The receiver of the answers to several requests, each under the number of its request.
pub trait ReplySink<A> {
    /// Accepts the answer to request `id`. `None`: the request was dropped without an answer.
    fn reply(&self, id: u64, answer: Option<A>);
}

/// A handle for the answer to one request, to be used once. If it is dropped unused, the sink
/// receives `None`, so that no caller waits in vain.
pub struct ReplyTo<A> {
    sink: Option<Rc<dyn ReplySink<A>>>,
    id: u64,
}

impl<A> ReplyTo<A> {
    /// Creates a reply that passes the answer to request `id` on to `sink`.
    pub fn new(sink: Rc<dyn ReplySink<A>>, id: u64) -> ReplyTo<A> {
        ReplyTo { sink: Some(sink), id }
    }

    /// Creates a reply that calls `then` with the answer. If there is no answer, `then` is dropped.
    pub fn call(then: impl FnOnce(A) + 'static) -> ReplyTo<A>
    where
        A: 'static,
    {
        ReplyTo { sink: Some(Rc::new(Call(Cell::new(Some(then)), PhantomData))), id: 0 }
    }

    /// Creates a reply that discards the answer.
    pub fn ignored() -> ReplyTo<A> {
        ReplyTo { sink: None, id: 0 }
    }

    /// Sends the answer.
    pub fn send(mut self, answer: A) {
        if let Some(sink) = self.sink.take() {
            sink.reply(self.id, Some(answer));
        }
    }
}

/// The sink of [`ReplyTo::call`]: it calls a closure with the answer.
struct Call<A, F>(Cell<Option<F>>, PhantomData<fn(A)>);

impl<A, F: FnOnce(A)> ReplySink<A> for Call<A, F> {
    fn reply(&self, _: u64, answer: Option<A>) {
        if let (Some(then), Some(answer)) = (self.0.take(), answer) {
            then(answer);
        }
    }
}

impl<A> Drop for ReplyTo<A> {
    fn drop(&mut self) {
        if let Some(sink) = self.sink.take() {
            sink.reply(self.id, None);
        }
    }
}

/// A received request, with the time left until its deadline and the receiver of its answer.
pub struct Incoming<Q, A> {
    /// The request.
    pub request: Q,
    /// Time left until the request's deadline: a duration, because the clocks of two nodes differ.
    pub timeout: Duration,
    /// The receiver of the answer.
    pub reply: ReplyTo<A>,
}

/// A node, as its connections see it. The crate `node` implements it, `rpc` calls it.
pub trait NodeService: 'static {
    /// Serves a batch of a client's requests, and answers each when its result is known. A client
    /// that disconnects cancels nothing.
    fn client(&self, batch: Vec<Incoming<ClientRequest, ClientResult>>);

    /// Serves a batch of a peer's requests.
    fn peer(&self, from: NodeId, batch: Vec<Incoming<PeerRequest, PeerResult>>);
}

/// The connections to the other nodes. The crate `rpc` implements it, `node` calls it.
pub trait PeerTransport: 'static {
    /// Queues a request to a peer. Requests that are queued while earlier ones are under way travel
    /// together.
    ///
    /// The answer arrives within `timeout`, or it is `Expired`. It is `Disconnected` if there is no
    /// connection.
    fn send(&self, to: NodeId, request: PeerRequest, timeout: Duration, reply: ReplyTo<PeerResult>);

    /// Begins to connect to a node, or records its new address.
    fn meet(&self, member: Member);

    /// Returns the address to which this transport connects for the node, or `None` if it was never
    /// told one (`meet`).
    fn address(&self, node: NodeId) -> Option<String>;

    /// True if there is an open connection to the node.
    fn is_up(&self, node: NodeId) -> bool;

    /// Returns the reason why the last connection to the node was refused, if it was.
    fn last_error(&self, node: NodeId) -> Option<String>;

    /// Returns the latency that 95 of 100 replies of this node do not exceed. `None` until enough
    /// replies are known.
    fn usual_latency(&self, node: NodeId) -> Option<Duration>;
}

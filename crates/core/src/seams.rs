//! The two seams that join the crates: requests come in through [`NodeService`], requests go out through
//! [`PeerTransport`]. Both are batch-shaped: many requests travel together, and each is answered by itself.

use std::cell::Cell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use crate::member::{Member, NodeId};
use crate::request::{ClientRequest, ClientResult, PeerRequest, PeerResult};

/// Where answers of one kind go, each under the number of its request.
pub trait ReplySink<A> {
    /// Takes the answer to request `id`. `None`: whoever was to answer gave up without doing so.
    fn reply(&self, id: u64, answer: Option<A>);
}

/// The right, and the duty, to answer one request once. Dropped unused, it tells the asker so: nobody waits in vain.
pub struct ReplyTo<A> {
    sink: Option<Rc<dyn ReplySink<A>>>,
    id: u64,
}

impl<A> ReplyTo<A> {
    /// The answer to request `id` goes to `sink`.
    pub fn new(sink: Rc<dyn ReplySink<A>>, id: u64) -> ReplyTo<A> {
        ReplyTo { sink: Some(sink), id }
    }

    /// The answer goes to `then`. An answer that never comes drops `then`.
    pub fn call(then: impl FnOnce(A) + 'static) -> ReplyTo<A>
    where
        A: 'static,
    {
        ReplyTo { sink: Some(Rc::new(Call(Cell::new(Some(then)), PhantomData))), id: 0 }
    }

    /// The answer goes nowhere.
    pub fn ignored() -> ReplyTo<A> {
        ReplyTo { sink: None, id: 0 }
    }

    /// Answers.
    pub fn send(mut self, answer: A) {
        if let Some(sink) = self.sink.take() {
            sink.reply(self.id, Some(answer));
        }
    }
}

/// The sink of [`ReplyTo::call`].
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

/// A request that came in, with what is left of its deadline and where its answer goes.
pub struct Incoming<Q, A> {
    /// What is asked.
    pub request: Q,
    /// What is left of the request's deadline: a duration, never a point in time.
    pub timeout: Duration,
    /// Where the answer goes.
    pub reply: ReplyTo<A>,
}

/// A node, as its connections see it. `cluster` implements it, `rpc` calls it.
pub trait NodeService: 'static {
    /// Takes what a client sent together. Answers each when it is known; a client that goes away cancels nothing.
    fn client(&self, batch: Vec<Incoming<ClientRequest, ClientResult>>);

    /// Takes what a peer sent together.
    fn peer(&self, from: NodeId, batch: Vec<Incoming<PeerRequest, PeerResult>>);
}

/// The way to the other nodes. `rpc` implements it, `cluster` calls it.
pub trait PeerTransport: 'static {
    /// Queues a request to a peer; what gathers while earlier ones are under way travels together. The answer comes
    /// within `timeout` or is `Expired`; `Disconnected` if there is no connection.
    fn send(&self, to: NodeId, request: PeerRequest, timeout: Duration, reply: ReplyTo<PeerResult>);

    /// Begins to connect to a node, or learns its new address.
    fn meet(&self, member: Member);

    /// Where the node is looked for.
    fn address(&self, node: NodeId) -> Option<String>;

    /// True if there is an open connection.
    fn is_up(&self, node: NodeId) -> bool;

    /// The reason why the last connection to the node was refused, if it was.
    fn last_error(&self, node: NodeId) -> Option<String>;

    /// How long a reply of this node usually takes at most (95 of 100), once enough are known.
    fn usual_latency(&self, node: NodeId) -> Option<Duration>;
}

//! The simulated network: byte streams with latency, and faults on each direction of a link.
//!
//! A link can be cut in one direction or both, or held back. These faults are as hard for the nodes
//! as the worst faults of real networks:
//!
//! - A cut drops all bytes. Neither side gets an error before the cut ends.
//! - When a host loses power, its peers' connections to it stay open.
//! - Held bytes arrive late and complete, even if the sender has given up the connection.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use quorate_core::NodeId;
use quorate_rpc::network::{Duplex, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::random::Random;

/// The network of a run. Clones share it.
#[derive(Clone)]
pub struct Net(Rc<RefCell<NetState>>);

/// A host's number: nodes have numbers from 0, clients from `FIRST_CLIENT`.
pub type Host = usize;

/// The first client's number as a host. No fault cuts a client off.
pub(super) const FIRST_CLIENT: Host = 1_000;

/// Bytes that may be in flight in one direction of a connection. At this limit the writer waits.
const WINDOW_BYTES: usize = 256 * 1024;

struct NetState {
    random: Random,
    listeners: BTreeMap<String, Listener>,
    cuts: BTreeSet<Direction>,
    held: BTreeSet<Direction>,
    pipes: Vec<Weak<RefCell<Pipe>>>,
    /// Extra latency of the bytes that each host sends, in milliseconds.
    extra_latency_ms: BTreeMap<Host, u64>,
}

/// One direction of the link between two hosts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Direction {
    from: Host,
    to: Host,
}

/// A host that accepts connections.
#[derive(Clone)]
struct Listener {
    host: Host,
    accept: mpsc::UnboundedSender<Duplex>,
}

/// One direction of a connection.
struct Pipe {
    direction: Direction,
    net: Weak<RefCell<NetState>>,
    in_flight: VecDeque<Segment>,
    /// Sum of the segments' lengths.
    bytes: usize,
    /// True if written bytes were dropped. The connection fails as soon as the cut that dropped
    /// them ends.
    lost: bool,
    /// True if the host of one end lost power. The other end does not learn that this end is gone.
    silent: bool,
    writer_gone: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Bytes of one write, and the time at which they arrive.
struct Segment {
    at: Instant,
    bytes: Vec<u8>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Net {
    /// Creates a network without hosts.
    pub(super) fn new(random: Random) -> Net {
        Net(Rc::new(RefCell::new(NetState {
            random,
            listeners: BTreeMap::new(),
            cuts: BTreeSet::new(),
            held: BTreeSet::new(),
            pipes: Vec::new(),
            extra_latency_ms: BTreeMap::new(),
        })))
    }

    /// Accepts connections to an address, until the receiver is dropped.
    pub(super) fn listen(&self, host: Host, address: &str) -> mpsc::UnboundedReceiver<Duplex> {
        let (accept, accepted) = mpsc::unbounded_channel();
        self.0.borrow_mut().listeners.insert(address.to_owned(), Listener { host, accept });
        accepted
    }

    /// Drops all bytes that `from` sends to `to` from now on.
    pub fn cut(&self, from: Host, to: Host) {
        self.0.borrow_mut().cuts.insert(Direction { from, to });
        self.wake_all();
    }

    /// Ends all cuts. Dropped bytes stay lost.
    pub fn heal(&self) {
        self.0.borrow_mut().cuts.clear();
        self.wake_all();
    }

    /// Ends the cut from one host to another.
    pub fn heal_link(&self, from: Host, to: Host) {
        self.0.borrow_mut().cuts.remove(&Direction { from, to });
        self.wake_all();
    }

    /// Holds back all bytes that `from` sends to `to`, until they are released.
    pub fn hold(&self, from: Host, to: Host) {
        self.0.borrow_mut().held.insert(Direction { from, to });
    }

    /// Releases the bytes that were held back from one host to another.
    pub fn release_link(&self, from: Host, to: Host) {
        self.0.borrow_mut().held.remove(&Direction { from, to });
        self.wake_all();
    }

    /// Releases all bytes that were held back.
    pub fn release(&self) {
        self.0.borrow_mut().held.clear();
        self.wake_all();
    }

    /// Sets an extra latency of all bytes that a host sends.
    pub fn set_extra_latency(&self, host: Host, extra_ms: u64) {
        self.0.borrow_mut().extra_latency_ms.insert(host, extra_ms);
    }

    /// Marks the connections of a host that loses power. Its peers do not learn that they are
    /// closed.
    pub(super) fn silence(&self, host: Host) {
        for pipe in self.pipes() {
            let mut pipe = pipe.borrow_mut();
            if pipe.direction.from == host || pipe.direction.to == host {
                pipe.silent = true;
            }
        }
    }

    fn pipes(&self) -> Vec<Rc<RefCell<Pipe>>> {
        let mut state = self.0.borrow_mut();
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.iter().filter_map(Weak::upgrade).collect()
    }

    fn wake_all(&self) {
        for pipe in self.pipes() {
            pipe.borrow_mut().wake();
        }
    }

    fn latency(&self, from: Host) -> Duration {
        let mut state = self.0.borrow_mut();
        let extra = state.extra_latency_ms.get(&from).copied().unwrap_or(0) * 1_000;
        Duration::from_micros(200 + extra + state.random.below(2_000))
    }

    fn is_cut(&self, direction: Direction) -> bool {
        self.0.borrow().cuts.contains(&direction)
    }

    fn pipe(&self, direction: Direction) -> (ReadEnd, WriteEnd) {
        let pipe = Rc::new(RefCell::new(Pipe {
            direction,
            net: Rc::downgrade(&self.0),
            in_flight: VecDeque::new(),
            bytes: 0,
            lost: false,
            silent: false,
            writer_gone: false,
            reader_gone: false,
            reader: None,
            writer: None,
        }));
        self.0.borrow_mut().pipes.push(Rc::downgrade(&pipe));
        (ReadEnd { pipe: pipe.clone(), timer: None }, WriteEnd { pipe })
    }
}

/// The network of one host: opens the host's connections.
pub(super) struct HostNetwork {
    pub(super) net: Net,
    pub(super) host: Host,
}

#[async_trait(?Send)]
impl Network for HostNetwork {
    async fn connect(&self, address: &str, _: Option<NodeId>) -> io::Result<Duplex> {
        tokio::time::sleep(self.net.latency(self.host) * 2).await;
        let listener = self.net.0.borrow().listeners.get(address).cloned();
        let Some(listener) = listener else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        let outgoing = Direction { from: self.host, to: listener.host };
        let incoming = Direction { from: listener.host, to: self.host };
        while self.net.is_cut(outgoing) || self.net.is_cut(incoming) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (read_here, write_there) = self.net.pipe(incoming);
        let (read_there, write_here) = self.net.pipe(outgoing);
        let theirs = Duplex { read: Box::new(read_there), write: Box::new(write_there) };
        if listener.accept.send(theirs).is_err() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        Ok(Duplex { read: Box::new(read_here), write: Box::new(write_here) })
    }
}

struct ReadEnd {
    pipe: Rc<RefCell<Pipe>>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for ReadEnd {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut pipe = this.pipe.borrow_mut();
        pipe.reader = Some(cx.waker().clone());
        let Some(net) = pipe.net.upgrade() else { return Poll::Pending };
        let (cut, held) = {
            let state = net.borrow();
            (state.cuts.contains(&pipe.direction), state.held.contains(&pipe.direction))
        };
        if cut || held {
            return Poll::Pending;
        }
        if pipe.lost {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match pipe.in_flight.front().map(|segment| segment.at) {
            Some(at) if at <= Instant::now() => {
                let mut segment = pipe.in_flight.pop_front().expect("the segment exists");
                let count = segment.bytes.len().min(out.remaining());
                out.put_slice(&segment.bytes[..count]);
                if count < segment.bytes.len() {
                    let rest = segment.bytes.split_off(count);
                    pipe.in_flight.push_front(Segment { at, bytes: rest });
                }
                pipe.bytes -= count;
                if let Some(writer) = pipe.writer.take() {
                    writer.wake();
                }
                Poll::Ready(Ok(()))
            }
            Some(at) => {
                drop(pipe);
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
                if timer.deadline() != at {
                    timer.as_mut().reset(at);
                }
                if timer.as_mut().poll(cx).is_ready() {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            None if pipe.writer_gone && !pipe.silent => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.reader_gone = true;
        pipe.wake();
    }
}

struct WriteEnd {
    pipe: Rc<RefCell<Pipe>>,
}

impl AsyncWrite for WriteEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = self.pipe.borrow_mut();
        let Some(net) = pipe.net.upgrade() else { return Poll::Pending };
        let net = Net(net);
        if net.is_cut(pipe.direction) || (pipe.silent && pipe.reader_gone) {
            pipe.lost = true;
            return Poll::Ready(Ok(bytes.len()));
        }
        if pipe.lost || pipe.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.bytes >= WINDOW_BYTES {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let last = pipe.in_flight.back().map(|segment| segment.at);
        let arrival = Instant::now() + net.latency(pipe.direction.from);
        let at = arrival.max(last.unwrap_or_else(Instant::now));
        pipe.in_flight.push_back(Segment { at, bytes: bytes.to_vec() });
        pipe.bytes += bytes.len();
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        let mut pipe = self.pipe.borrow_mut();
        pipe.writer_gone = true;
        pipe.wake();
    }
}

//! The simulated network: streams with latency that can be cut, one way or both, held back, and lost without a word.
//!
//! It is unkinder than a real one where that matters: a cut is a black hole, a power loss sends no farewell, and what is
//! held back arrives late and whole, also after its connection was given up by the sender.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use quorate_core::NodeId;
use quorate_rpc::network::{Duplex, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};

use crate::random::Random;

/// Who takes part: nodes have numbers from 0, clients from [`FIRST_CLIENT`].
pub type Host = usize;
/// Clients are never cut off.
pub const FIRST_CLIENT: Host = 1_000;

/// Bytes of one direction that a sender may be ahead of its receiver.
const WINDOW_BYTES: usize = 256 * 1024;

/// The whole network.
#[derive(Clone)]
pub struct Net(Rc<RefCell<State>>);

struct State {
    random: Random,
    listeners: BTreeMap<String, (Host, mpsc::UnboundedSender<Duplex>)>,
    cuts: BTreeSet<(Host, Host)>,
    held: BTreeSet<(Host, Host)>,
    pipes: Vec<std::rc::Weak<RefCell<Pipe>>>,
    slow: BTreeMap<Host, u64>,
}

/// One direction of a connection.
struct Pipe {
    from: Host,
    to: Host,
    net: std::rc::Weak<RefCell<State>>,
    /// When each part arrives.
    flying: VecDeque<(Instant, Vec<u8>)>,
    bytes: usize,
    /// Something was lost on it: it can't go on.
    lost: bool,
    /// One side has gone without a word.
    silent: bool,
    writer_gone: bool,
    reader_gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl Net {
    /// An empty network.
    pub fn new(random: Random) -> Net {
        Net(Rc::new(RefCell::new(State {
            random,
            listeners: BTreeMap::new(),
            cuts: BTreeSet::new(),
            held: BTreeSet::new(),
            pipes: Vec::new(),
            slow: BTreeMap::new(),
        })))
    }

    /// Takes connections to an address, until the receiver is dropped.
    pub fn listen(&self, host: Host, address: &str) -> mpsc::UnboundedReceiver<Duplex> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.borrow_mut().listeners.insert(address.to_owned(), (host, sender));
        receiver
    }

    /// Loses everything that `from` sends to `to` from now on.
    pub fn cut(&self, from: Host, to: Host) {
        self.0.borrow_mut().cuts.insert((from, to));
        self.wake_all();
    }

    /// Ends all cuts. What was lost stays lost.
    pub fn heal(&self) {
        self.0.borrow_mut().cuts.clear();
        self.wake_all();
    }

    /// Ends the cut from one to the other.
    pub fn mend(&self, from: Host, to: Host) {
        self.0.borrow_mut().cuts.remove(&(from, to));
        self.wake_all();
    }

    /// Keeps back what `from` sends to `to`, until it is released.
    pub fn hold(&self, from: Host, to: Host) {
        self.0.borrow_mut().held.insert((from, to));
    }

    /// Lets through what one held back from another.
    pub fn release_from(&self, from: Host, to: Host) {
        self.0.borrow_mut().held.remove(&(from, to));
        self.wake_all();
    }

    /// Lets everything through that was held back.
    pub fn release(&self) {
        self.0.borrow_mut().held.clear();
        self.wake_all();
    }

    /// Adds a latency to everything that a host sends.
    pub fn slow(&self, host: Host, extra_ms: u64) {
        self.0.borrow_mut().slow.insert(host, extra_ms);
    }

    /// A host is gone without a word: nobody hears that its connections are closed.
    pub fn silence(&self, host: Host) {
        for pipe in self.pipes() {
            let mut pipe = pipe.borrow_mut();
            if pipe.from == host || pipe.to == host {
                pipe.silent = true;
            }
        }
    }

    fn pipes(&self) -> Vec<Rc<RefCell<Pipe>>> {
        let mut state = self.0.borrow_mut();
        state.pipes.retain(|pipe| pipe.strong_count() > 0);
        state.pipes.iter().filter_map(std::rc::Weak::upgrade).collect()
    }

    fn wake_all(&self) {
        for pipe in self.pipes() {
            pipe.borrow_mut().wake();
        }
    }

    fn latency(&self, from: Host) -> Duration {
        let mut state = self.0.borrow_mut();
        let extra = state.slow.get(&from).copied().unwrap_or(0) * 1_000;
        Duration::from_micros(200 + extra + state.random.below(2_000))
    }

    fn is_cut(&self, from: Host, to: Host) -> bool {
        self.0.borrow().cuts.contains(&(from, to))
    }

    fn pipe(&self, from: Host, to: Host) -> (ReadEnd, WriteEnd) {
        let pipe = Rc::new(RefCell::new(Pipe {
            from,
            to,
            net: Rc::downgrade(&self.0),
            flying: VecDeque::new(),
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

/// The network as one host sees it.
pub struct HostNetwork {
    /// All of it.
    pub net: Net,
    /// Who sees it.
    pub host: Host,
}

#[async_trait(?Send)]
impl Network for HostNetwork {
    async fn connect(&self, address: &str, _: Option<NodeId>) -> io::Result<Duplex> {
        tokio::time::sleep(self.net.latency(self.host) * 2).await;
        let listener = self.net.0.borrow().listeners.get(address).cloned();
        let Some((there, listener)) = listener else { return Err(io::ErrorKind::ConnectionRefused.into()) };
        while self.net.is_cut(self.host, there) || self.net.is_cut(there, self.host) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let (read_here, write_there) = self.net.pipe(there, self.host);
        let (read_there, write_here) = self.net.pipe(self.host, there);
        let theirs = Duplex { read: Box::new(read_there), write: Box::new(write_there) };
        if listener.send(theirs).is_err() {
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
            let way = (pipe.from, pipe.to);
            (state.cuts.contains(&way), state.held.contains(&way))
        };
        if cut || held {
            return Poll::Pending;
        }
        if pipe.lost {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        match pipe.flying.front() {
            Some((at, _)) if *at <= Instant::now() => {
                let (at, mut part) = pipe.flying.pop_front().expect("looked at");
                let count = part.len().min(out.remaining());
                out.put_slice(&part[..count]);
                if count < part.len() {
                    pipe.flying.push_front((at, part.split_off(count)));
                }
                pipe.bytes -= count;
                if let Some(writer) = pipe.writer.take() {
                    writer.wake();
                }
                Poll::Ready(Ok(()))
            }
            Some((at, _)) => {
                let at = *at;
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
        if net.is_cut(pipe.from, pipe.to) || (pipe.silent && pipe.reader_gone) {
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
        let last = pipe.flying.back().map(|(at, _)| *at);
        let at = (Instant::now() + net.latency(pipe.from)).max(last.unwrap_or_else(Instant::now));
        pipe.flying.push_back((at, bytes.to_vec()));
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

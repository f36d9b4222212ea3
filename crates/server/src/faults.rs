//! The fault switch, for tests: a node can be cut off from peers without any right over the machine's network.
//!
//! A cut behaves like a black hole, as a real one does: bytes vanish, nothing is closed, new connections never finish.
//! After the heal, streams that lost bytes fail and are dialled again.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use quorate_client::system::Tcp;
use quorate_node::node::Fault;
use quorate_core::NodeId;
use quorate_rpc::network::{Duplex, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Interval, interval};

/// How often a stream in a cut looks whether it is healed.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whom this node is cut off from. Shared by all workers.
#[derive(Default)]
pub(crate) struct Cut {
    both_ways: ArcSwap<BTreeSet<NodeId>>,
    /// Only what this node sends to them is lost.
    sending: ArcSwap<BTreeSet<NodeId>>,
}

impl Cut {
    pub(crate) fn set(&self, faults: &[Fault]) {
        let of = |one_way: bool| {
            faults.iter().filter(|fault| fault.one_way == one_way).map(|fault| fault.peer).collect()
        };
        self.both_ways.store(Arc::new(of(false)));
        self.sending.store(Arc::new(of(true)));
    }

    fn is_cut(&self, node: NodeId) -> bool {
        self.both_ways.load().contains(&node)
    }

    fn loses_what_is_sent_to(&self, node: NodeId) -> bool {
        self.is_cut(node) || self.sending.load().contains(&node)
    }
}

/// TCP, through the fault switch.
pub(crate) struct FaultyTcp {
    pub(crate) cut: Arc<Cut>,
}

#[async_trait(?Send)]
impl Network for FaultyTcp {
    async fn connect(&self, address: &str, peer: Option<NodeId>) -> io::Result<Duplex> {
        while peer.is_some_and(|peer| self.cut.is_cut(peer)) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let duplex = Tcp.connect(address, peer).await?;
        Ok(match peer {
            Some(peer) => self.accepted(peer, duplex),
            None => duplex,
        })
    }

    fn accepted(&self, peer: NodeId, duplex: Duplex) -> Duplex {
        let lost = Rc::new(Cell::new(false));
        let stream = |look| Stream { cut: self.cut.clone(), peer, lost: lost.clone(), look };
        Duplex {
            read: Box::new(FaultyRead { fault: stream(interval(LOOK_EVERY)), stream: duplex.read }),
            write: Box::new(FaultyWrite { fault: stream(interval(LOOK_EVERY)), stream: duplex.write }),
        }
    }
}

struct Stream {
    cut: Arc<Cut>,
    peer: NodeId,
    /// Bytes of this connection vanished: it can't go on after the heal.
    lost: Rc<Cell<bool>>,
    look: Interval,
}

struct FaultyRead {
    fault: Stream,
    stream: Box<dyn AsyncRead + Unpin>,
}

impl AsyncRead for FaultyRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // Keeps this read awake: a cut may begin while it waits, and end without a byte.
        while this.fault.look.poll_tick(cx).is_ready() {}
        if this.fault.cut.is_cut(this.fault.peer) {
            this.fault.lost.set(true);
            return Poll::Pending;
        }
        if this.fault.lost.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, out)
    }
}

struct FaultyWrite {
    fault: Stream,
    stream: Box<dyn AsyncWrite + Unpin>,
}

impl AsyncWrite for FaultyWrite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.fault.cut.loses_what_is_sent_to(this.fault.peer) {
            this.fault.lost.set(true);
            return Poll::Ready(Ok(bytes.len()));
        }
        if this.fault.lost.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

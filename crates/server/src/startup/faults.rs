//! The fault switch, for tests. It cuts the node off from peers. It works inside the node's
//! process, and so needs no administrator rights on the machine's network.
//!
//! A cut behaves like a real network partition: bytes vanish, no connection is closed, and new
//! connections are not established. When the cut ends, connections that have lost bytes fail, and
//! the nodes connect again.

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
use quorate_core::NodeId;
use quorate_node::Fault;
use quorate_rpc::network::{Duplex, Network};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Interval, interval};

/// The peers that this node is cut off from. Shared by all workers.
#[derive(Default)]
pub(super) struct PeerCuts {
    both_ways: ArcSwap<BTreeSet<NodeId>>,
    /// Peers with a one-way cut: the bytes that this node sends to them are lost, but the bytes
    /// that they send arrive.
    sending: ArcSwap<BTreeSet<NodeId>>,
}

/// Interval at which a connection checks if a cut has begun or ended.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl PeerCuts {
    /// Replaces all cuts with those that `faults` names.
    pub(super) fn set(&self, faults: &[Fault]) {
        let peers = |one_way: bool| {
            faults.iter().filter(|fault| fault.one_way == one_way).map(|fault| fault.peer).collect()
        };
        self.both_ways.store(Arc::new(peers(false)));
        self.sending.store(Arc::new(peers(true)));
    }

    fn is_cut(&self, peer: NodeId) -> bool {
        self.both_ways.load().contains(&peer)
    }

    fn loses_sent_bytes(&self, peer: NodeId) -> bool {
        self.is_cut(peer) || self.sending.load().contains(&peer)
    }
}

/// Returns the TCP network. If `cuts` is given, its connections pass through the fault switch.
pub(super) fn network(cuts: Option<&Arc<PeerCuts>>) -> Rc<dyn Network> {
    match cuts {
        Some(cuts) => Rc::new(FaultyTcp { cuts: cuts.clone() }),
        None => Rc::new(Tcp),
    }
}

/// TCP network whose connections pass through the fault switch.
struct FaultyTcp {
    cuts: Arc<PeerCuts>,
}

#[async_trait(?Send)]
impl Network for FaultyTcp {
    async fn connect(&self, address: &str, peer: Option<NodeId>) -> io::Result<Duplex> {
        while peer.is_some_and(|peer| self.cuts.is_cut(peer)) {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let duplex = Tcp.connect(address, peer).await?;
        Ok(match peer {
            Some(peer) => self.accepted(peer, duplex),
            None => duplex,
        })
    }

    fn accepted(&self, peer: NodeId, duplex: Duplex) -> Duplex {
        let lost_bytes = Rc::new(Cell::new(false));
        let fault = || StreamFault {
            cuts: self.cuts.clone(),
            peer,
            lost_bytes: lost_bytes.clone(),
            poll_timer: interval(POLL_INTERVAL),
        };
        Duplex {
            read: Box::new(FaultyRead { fault: fault(), stream: duplex.read }),
            write: Box::new(FaultyWrite { fault: fault(), stream: duplex.write }),
        }
    }
}

/// The fault switch for one direction of a connection.
struct StreamFault {
    cuts: Arc<PeerCuts>,
    peer: NodeId,
    /// True once bytes of this connection may have been lost. The connection then fails when the
    /// cut ends. Both directions share this flag.
    lost_bytes: Rc<Cell<bool>>,
    poll_timer: Interval,
}

struct FaultyRead {
    fault: StreamFault,
    stream: Box<dyn AsyncRead + Unpin>,
}

impl AsyncRead for FaultyRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        // The timer wakes this read at intervals. Without it, a read that waits for bytes would not
        // notice that a cut begins or ends.
        while this.fault.poll_timer.poll_tick(cx).is_ready() {}
        if this.fault.cuts.is_cut(this.fault.peer) {
            this.fault.lost_bytes.set(true);
            return Poll::Pending;
        }
        if this.fault.lost_bytes.get() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut this.stream).poll_read(cx, out)
    }
}

struct FaultyWrite {
    fault: StreamFault,
    stream: Box<dyn AsyncWrite + Unpin>,
}

impl AsyncWrite for FaultyWrite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.fault.cuts.loses_sent_bytes(this.fault.peer) {
            this.fault.lost_bytes.set(true);
            return Poll::Ready(Ok(bytes.len()));
        }
        if this.fault.lost_bytes.get() {
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

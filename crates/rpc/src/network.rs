//! Byte streams under a connection, and the trait that opens them.

use std::io;

use async_trait::async_trait;
use quorate_core::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};

/// The two directions of a byte stream.
pub struct Duplex {
    /// Bytes from the other side.
    pub read: Box<dyn AsyncRead + Unpin>,
    /// Bytes to the other side.
    pub write: Box<dyn AsyncWrite + Unpin>,
}

/// Source of connections: TCP in a real node, simulated streams in a simulation.
#[async_trait(?Send)]
pub trait Network: 'static {
    /// Connects to "host:port". `peer` is the node expected there, if it is known.
    async fn connect(&self, address: &str, peer: Option<NodeId>) -> io::Result<Duplex>;

    /// Wraps an accepted connection after `peer` has introduced itself on it. A simulation, or a
    /// node with fault injection, adds its faults to the stream here.
    fn accepted(&self, _peer: NodeId, duplex: Duplex) -> Duplex {
        duplex
    }
}

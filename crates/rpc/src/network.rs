//! What a connection is made of.

use std::io;

use async_trait::async_trait;
use quorate_core::NodeId;
use tokio::io::{AsyncRead, AsyncWrite};

/// The two directions of a byte stream.
pub struct Duplex {
    /// What the other side sends.
    pub read: Box<dyn AsyncRead + Unpin>,
    /// What goes to the other side.
    pub write: Box<dyn AsyncWrite + Unpin>,
}

/// Opens connections: TCP in the real node, something simulated in a simulation.
#[async_trait(?Send)]
pub trait Network: 'static {
    /// Connects to "host:port"; `peer` is the node expected there, if it is known.
    async fn connect(&self, address: &str, peer: Option<NodeId>) -> io::Result<Duplex>;

    /// A node has introduced itself on an accepted connection: the place to put a fault into its stream.
    fn accepted(&self, _peer: NodeId, duplex: Duplex) -> Duplex {
        duplex
    }
}

//! Communication between clients and nodes, and between nodes: connections, batches of operations,
//! and conversions. No other crate of a node or a client uses Cap'n Proto.
//!
//! The caller supplies the byte streams ([`network::Network`]) and the randomness
//! ([`quorate_core::environment::Environment`]). The clock is tokio's, which a simulation drives.
//! A simulation therefore runs this crate unchanged.
//!
//! The path of a request: [`batch_sender`] gathers operations into calls. At the receiver,
//! [`serve`] splits a call into operations and passes them to the node. [`reply_buffer`] answers
//! with the results that are ready. [`serve`] accepts connections and [`peers`] dials them;
//! [`preamble`] holds the introductions that both sides exchange before Cap'n Proto begins.

pub mod batch_sender;
mod connection;
mod convert;
#[allow(missing_docs, clippy::all, unused_qualifications)]
#[rustfmt::skip]
#[doc(hidden)]
pub mod generated {
    pub mod client_capnp;
    pub mod peer_capnp;
}
pub mod network;
pub mod peers;
pub mod preamble;
pub mod reply_buffer;
pub mod serve;
mod stream;

pub use convert::client::{ClientAnswer, ClientProtocol};
pub use convert::peer::PeerProtocol;

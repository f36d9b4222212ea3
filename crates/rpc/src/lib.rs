//! The only crate that names Cap'n Proto: conversions, serving, dialling, and the batched lanes.
//!
//! Generic over the byte streams ([`network::Network`]), the clock (tokio's, which a simulation drives) and the
//! randomness ([`quorate_core::environment::Environment`]) it is given, so that a simulation runs it as it is.
//!
//! How a request travels: [`lane`] gathers operations into calls on the sender; [`session`] takes a call apart on the
//! receiver, hands the operations to the node, and answers with whatever is ready. [`serve`] and [`peers`] open the
//! connections; [`preamble`] is what is said before Cap'n Proto begins.

mod connection;
mod convert;
#[allow(missing_docs, clippy::all, unused_qualifications)]
#[rustfmt::skip]
#[doc(hidden)]
pub mod generated {
    pub mod client_capnp;
    pub mod peer_capnp;
}
pub mod lane;
pub mod network;
pub mod peers;
pub mod preamble;
pub mod serve;
pub mod session;
mod stream;

pub use convert::client::ClientProtocol;
pub use convert::peer::PeerProtocol;

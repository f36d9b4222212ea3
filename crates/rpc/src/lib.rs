//! The only crate that names Cap'n Proto: conversions, serving, dialling, and batches of operations.
//!
//! Generic over the byte streams ([`network::Network`]), the clock (tokio's, which a simulation drives) and the
//! randomness ([`quorate_core::environment::Environment`]) it is given, so that a simulation runs it as it is.
//!
//! How a request travels: [`batch_sender`] gathers operations into calls; [`serve`] takes a call apart at the
//! receiver and hands the operations to the node; [`reply_buffer`] answers with the results that are ready. [`serve`] and [`peers`] open the
//! connections; [`preamble`] is what is said before Cap'n Proto begins.

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

//! One Cap'n Proto connection over a byte stream that has passed its preamble.

use capnp::capability::FromClientHook;
use capnp::message::ReaderOptions;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{RpcSystem, twoparty};

use crate::network::Duplex;
use crate::stream::{BufferedRead, SignsOfLife, deferred};

/// Largest message that is read. A batch is bounded far below it, one operation with the largest value is too.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
const MAX_NESTING: i32 = 32;

fn reader_options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MAX_MESSAGE_BYTES / 8)).nesting_limit(MAX_NESTING);
    options
}

fn start(
    duplex: Duplex,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
    signs: SignsOfLife,
) -> (RpcSystem<Side>, impl Future<Output = ()>) {
    let (write, flusher) = deferred(duplex.write, signs.clone());
    let network =
        twoparty::VatNetwork::new(BufferedRead::new(duplex.read, signs), write, side, reader_options());
    (RpcSystem::new(Box::new(network), bootstrap), flusher.run())
}

/// Serves `bootstrap` until the other side is gone. Returns why, if it was not a plain end.
pub(crate) async fn serve(duplex: Duplex, bootstrap: capnp::capability::Client) -> Option<String> {
    let (system, flusher) = start(duplex, Side::Server, Some(bootstrap), SignsOfLife::default());
    run(system, flusher).await
}

/// Opens the client's side: the port to call, and the future that drives the connection until it ends.
pub(crate) fn dial<C: FromClientHook>(
    duplex: Duplex,
    signs: SignsOfLife,
) -> (C, impl Future<Output = Option<String>>) {
    let (mut system, flusher) = start(duplex, Side::Client, None, signs);
    let port = system.bootstrap(Side::Server);
    (port, run(system, flusher))
}

async fn run(system: RpcSystem<Side>, flusher: impl Future<Output = ()>) -> Option<String> {
    let mut flusher = std::pin::pin!(flusher);
    let mut system = std::pin::pin!(system);
    tokio::select! {
        biased;
        outcome = &mut system => outcome.err().map(|error| error.to_string()),
        () = &mut flusher => Some("the stream can't be written to any more".into()),
    }
}

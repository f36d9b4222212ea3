//! One Cap'n Proto connection over a byte stream whose preamble ([`crate::preamble`]) is complete.
//! It is a two-party network of `capnp-rpc` that uses the inbox and outbox of
//! [`stream`](crate::stream).

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use bytes::Bytes;
use capnp::any_pointer;
use capnp::capability::{FromClientHook, Promise};
use capnp::message::{HeapAllocator, Reader, ReaderOptions};
use capnp::serialize::BufferSegments;
use capnp::{Error, ErrorKind};
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{Disconnector, IncomingMessage, OutgoingMessage, RpcSystem, VatNetwork};

use crate::network::Duplex;
use crate::stream::{Flusher, Inbox, Message, Outbox, SignsOfLife};

/// Largest message that is read, in bytes. A larger one ends the connection. A batch of several
/// operations is far smaller, and so is one operation with the largest value. An operation whose
/// object has several large siblings can be nearly as large (see `MAX_OBJECT_BYTES`).
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
const MAX_NESTING: i32 = 32;
/// Size, in words, that `capnp-rpc` requests for a call or results whose size it does not know. It
/// requests less for all other messages. [`SizeHint`] replaces this size.
const UNKNOWN_WORDS: u32 = 100;
/// Words that are allocated in a message for everything except its operations or results.
const FRAME_WORDS: usize = 64;

/// Expected size, in words, of the next call or of the next results. The message is allocated at
/// this size. It is then one segment, and no more memory is zeroed for it than it needs.
#[derive(Clone)]
pub(crate) struct SizeHint(Rc<Cell<u32>>);

impl Default for SizeHint {
    fn default() -> SizeHint {
        SizeHint(Rc::new(Cell::new(UNKNOWN_WORDS)))
    }
}

impl SizeHint {
    /// Sets the expected size of the next message to `bytes` bytes of operations or results.
    pub(crate) fn expect(&self, bytes: usize) {
        self.0.set((bytes / 8 + FRAME_WORDS) as u32);
    }
}

fn reader_options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MAX_MESSAGE_BYTES / 8)).nesting_limit(MAX_NESTING);
    options
}

/// Network of `capnp-rpc` with two parties, which are the two sides of one stream. Every call of
/// `connect` returns the same connection.
struct TwoPartyNetwork {
    side: Side,
    connection: Connection,
    accepted: bool,
}

impl VatNetwork<Side> for TwoPartyNetwork {
    fn connect(&mut self, side: Side) -> Option<Box<dyn capnp_rpc::Connection<Side>>> {
        (side != self.side).then(|| Box::new(self.connection.clone()) as Box<_>)
    }

    fn accept(&mut self) -> Promise<Box<dyn capnp_rpc::Connection<Side>>, Error> {
        match std::mem::replace(&mut self.accepted, true) {
            false => Promise::ok(Box::new(self.connection.clone())),
            true => Promise::from_future(std::future::pending()),
        }
    }

    fn drive_until_shutdown(&mut self) -> Promise<(), Error> {
        // Nothing is driven here. `Connected::run` drives the flusher in the connection's own task.
        // There, the flusher can let all other ready tasks run before it writes.
        Promise::from_future(std::future::pending())
    }
}

#[derive(Clone)]
struct Connection {
    side: Side,
    /// The inbox. `None` while `receive_incoming_message` is in progress and owns the inbox.
    inbox: Rc<RefCell<Option<Inbox>>>,
    outbox: Outbox,
    size_hint: SizeHint,
}

impl capnp_rpc::Connection<Side> for Connection {
    fn get_peer_vat_id(&self) -> Side {
        self.side
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn OutgoingMessage> {
        let words = if words < UNKNOWN_WORDS { words } else { self.size_hint.0.replace(UNKNOWN_WORDS) };
        let message = Message::new(HeapAllocator::new().first_segment_words(words));
        Box::new(MessageToSend { message, connection: self.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, Error> {
        let Some(mut inbox) = self.inbox.borrow_mut().take() else {
            return Promise::err(Error::failed("another receive on this connection is in progress".into()));
        };
        let slot = self.inbox.clone();
        // Backpressure: a server stops reading from a client that does not read its replies. A
        // client always reads, because otherwise both sides could wait for each other.
        let full_outbox = (self.side == Side::Server && self.outbox.is_full()).then(|| self.outbox.clone());
        if full_outbox.is_none()
            && let Some(received) = inbox.take().transpose()
        {
            *slot.borrow_mut() = Some(inbox);
            return match received.and_then(incoming) {
                Ok(message) => Promise::ok(Some(message)),
                Err(error) => Promise::err(error),
            };
        }
        Promise::from_future(async move {
            if let Some(outbox) = full_outbox {
                outbox.has_room().await;
            }
            let received = inbox.next().await?;
            *slot.borrow_mut() = Some(inbox);
            received.map(incoming).transpose()
        })
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        self.outbox.end(result);
        Promise::ok(())
    }
}

struct ReceivedMessage(Reader<BufferSegments<Bytes>>);

fn incoming(bytes: Bytes) -> Result<Box<dyn IncomingMessage>, Error> {
    let segments = BufferSegments::new(bytes, reader_options())?;
    Ok(Box::new(ReceivedMessage(Reader::new(segments, reader_options()))))
}

impl IncomingMessage for ReceivedMessage {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

struct MessageToSend {
    message: Message,
    connection: Connection,
}

impl OutgoingMessage for MessageToSend {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<Message>) {
        let MessageToSend { message, connection } = *self;
        let message = Rc::new(message);
        connection.outbox.send(&message);
        (Promise::ok(()), message)
    }

    fn take(self: Box<Self>) -> Message {
        self.message
    }

    fn size_in_words(&self) -> usize {
        self.message.size_in_words()
    }
}

/// RPC system and flusher of one connection. Both run until one of them ends.
struct Connected {
    system: RpcSystem<Side>,
    flusher: Flusher,
}

fn start(
    duplex: Duplex,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
    signs: SignsOfLife,
    size_hint: SizeHint,
) -> Connected {
    let outbox = Outbox::default();
    let inbox = Inbox::new(duplex.read, MAX_MESSAGE_BYTES, signs.clone());
    let flusher = Flusher::new(duplex.write, outbox.clone(), signs);
    let inbox = Rc::new(RefCell::new(Some(inbox)));
    let connection = Connection { side, inbox, outbox, size_hint };
    let network = TwoPartyNetwork { side, connection, accepted: false };
    Connected { system: RpcSystem::new(Box::new(network), bootstrap), flusher }
}

/// Serves `bootstrap` until the connection ends. Returns the error, unless the other side merely
/// closed the connection.
pub(crate) async fn serve(
    duplex: Duplex,
    bootstrap: capnp::capability::Client,
    size_hint: SizeHint,
) -> Option<String> {
    start(duplex, Side::Server, Some(bootstrap), SignsOfLife::default(), size_hint).run().await
}

/// Opens the calling side. Returns the port, which is the object on the other side that receives
/// calls, and the future that drives the connection until it ends.
pub(crate) fn dial<C: FromClientHook>(
    duplex: Duplex,
    signs: SignsOfLife,
    size_hint: SizeHint,
) -> (C, impl Future<Output = Option<String>>) {
    let mut connected = start(duplex, Side::Client, None, signs, size_hint);
    let port = connected.system.bootstrap(Side::Server);
    (port, connected.run())
}

/// Guard that disconnects the RPC system when it is dropped. Without it, unanswered calls would
/// keep each other and their connection in memory.
struct Disconnects(Disconnector<Side>);

impl Drop for Disconnects {
    fn drop(&mut self) {
        // The first poll disconnects; its result is not needed.
        let _ = Pin::new(&mut self.0).poll(&mut Context::from_waker(Waker::noop()));
    }
}

impl Connected {
    async fn run(mut self) -> Option<String> {
        let _ends = Disconnects(self.system.get_disconnector());
        let ended = tokio::select! {
            biased;
            ended = &mut self.system => ended,
            ended = self.flusher.run() => ended,
        };
        ended.err().filter(|error| error.kind != ErrorKind::Disconnected).map(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use capnp_rpc::Connection as _;

    use super::*;

    /// A call whose size was announced is one segment. An announcement applies to one call only.
    #[test]
    fn a_message_of_announced_size_is_one_segment() {
        let size_hint = SizeHint::default();
        let mut connection = Connection {
            side: Side::Client,
            inbox: Rc::default(),
            outbox: Outbox::default(),
            size_hint: size_hint.clone(),
        };
        size_hint.expect(1024 * 1024);
        for (bytes, segments) in [(1024 * 1024, 1), (2_000, 2)] {
            let mut message = connection.new_outgoing_message(1024);
            let mut list = message.get_body().unwrap().initn_as::<capnp::data_list::Builder<'_>>(1);
            list.reborrow().set(0, &vec![7; bytes]);
            let (_, message) = message.send();
            assert_eq!(message.get_segments_for_output().len(), segments);
        }
    }
}

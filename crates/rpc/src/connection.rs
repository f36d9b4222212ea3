//! One Cap'n Proto connection over a byte stream that has passed its preamble: `capnp-rpc`'s network of two, on
//! [`stream`](crate::stream)'s inbox and outbox.

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

/// Largest message that is read. A batch is bounded far below it, one operation with the largest value is too.
const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
const MAX_NESTING: i32 = 32;
/// `capnp-rpc` asks for so many words where it can't know how many a call or its results will take; for less where it does.
const UNKNOWN_WORDS: u32 = 100;
/// What they take besides operations or results.
const FRAME_WORDS: usize = 64;

/// How large the next call, or the next results, will be: a message that has its room from the beginning is one piece, and no
/// more is zeroed for it than it needs.
#[derive(Clone)]
pub(crate) struct SizeHint(Rc<Cell<u32>>);

impl Default for SizeHint {
    fn default() -> SizeHint {
        SizeHint(Rc::new(Cell::new(UNKNOWN_WORDS)))
    }
}

impl SizeHint {
    /// Operations or results of so many bytes come next.
    pub(crate) fn expect(&self, bytes: usize) {
        self.0.set((bytes / 8 + FRAME_WORDS) as u32);
    }
}

fn reader_options() -> ReaderOptions {
    let mut options = ReaderOptions::new();
    options.traversal_limit_in_words(Some(MAX_MESSAGE_BYTES / 8)).nesting_limit(MAX_NESTING);
    options
}

/// The two sides of one stream, as `capnp-rpc` sees them. There is one connection, however often it is asked for.
struct Two {
    side: Side,
    connection: Connection,
    accepted: bool,
}

impl VatNetwork<Side> for Two {
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
        // The flusher runs beside it: a task of its own puts itself behind all others that are ready.
        Promise::from_future(std::future::pending())
    }
}

#[derive(Clone)]
struct Connection {
    side: Side,
    /// Elsewhere while somebody waits for a message.
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
            return Promise::err(Error::failed("a message is waited for already".into()));
        };
        let place = self.inbox.clone();
        // Who asks and does not read the answers is asked to wait. Who asks always reads, or two could wait for each other.
        let held_up = (self.side == Side::Server && self.outbox.is_full()).then(|| self.outbox.clone());
        if held_up.is_none()
            && let Some(came) = inbox.take().transpose()
        {
            *place.borrow_mut() = Some(inbox);
            return match came.and_then(incoming) {
                Ok(message) => Promise::ok(Some(message)),
                Err(error) => Promise::err(error),
            };
        }
        Promise::from_future(async move {
            if let Some(outbox) = held_up {
                outbox.has_room().await;
            }
            let came = inbox.next().await?;
            *place.borrow_mut() = Some(inbox);
            came.map(incoming).transpose()
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

/// Both run together until one of them ends.
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
    let network = Two { side, connection: Connection { side, inbox, outbox, size_hint }, accepted: false };
    Connected { system: RpcSystem::new(Box::new(network), bootstrap), flusher }
}

/// Serves `bootstrap` until the other side is gone. Returns why, if it was not a plain end.
pub(crate) async fn serve(
    duplex: Duplex,
    bootstrap: capnp::capability::Client,
    size_hint: SizeHint,
) -> Option<String> {
    start(duplex, Side::Server, Some(bootstrap), SignsOfLife::default(), size_hint).run().await
}

/// Opens the client's side: the port to call, and the future that drives the connection until it ends.
pub(crate) fn dial<C: FromClientHook>(
    duplex: Duplex,
    signs: SignsOfLife,
    size_hint: SizeHint,
) -> (C, impl Future<Output = Option<String>>) {
    let mut connected = start(duplex, Side::Client, None, signs, size_hint);
    let port = connected.system.bootstrap(Side::Server);
    (port, connected.run())
}

/// Lets go of calls that are not answered, which otherwise keep each other and their connection.
struct Disconnects(Disconnector<Side>);

impl Drop for Disconnects {
    fn drop(&mut self) {
        // It does so when it is first asked; that it is done is of no interest.
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

    /// A call whose size is foretold is one piece; the next one knows nothing of it.
    #[test]
    fn a_message_has_its_room_from_the_beginning() {
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

//! One Cap'n Proto connection over a byte stream that has passed its preamble: `capnp-rpc`'s network of two, on
//! [`stream`](crate::stream)'s inbox and outbox.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use bytes::Bytes;
use capnp::Error;
use capnp::any_pointer;
use capnp::capability::{FromClientHook, Promise};
use capnp::message::{HeapAllocator, Reader, ReaderOptions};
use capnp::serialize::BufferSegments;
use capnp_rpc::rpc_twoparty_capnp::Side;
use capnp_rpc::{IncomingMessage, OutgoingMessage, RpcSystem, VatNetwork};

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
pub(crate) struct Room(Rc<Cell<u32>>);

impl Default for Room {
    fn default() -> Room {
        Room(Rc::new(Cell::new(UNKNOWN_WORDS)))
    }
}

impl Room {
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
    flusher: Option<Flusher>,
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
        match self.flusher.take() {
            Some(flusher) => Promise::from_future(flusher.run()),
            None => Promise::from_future(std::future::pending()),
        }
    }
}

#[derive(Clone)]
struct Connection {
    side: Side,
    /// Elsewhere while somebody waits for a message.
    inbox: Rc<RefCell<Option<Inbox>>>,
    outbox: Outbox,
    room: Room,
}

impl capnp_rpc::Connection<Side> for Connection {
    fn get_peer_vat_id(&self) -> Side {
        self.side
    }

    fn new_outgoing_message(&mut self, words: u32) -> Box<dyn OutgoingMessage> {
        let words = if words < UNKNOWN_WORDS { words } else { self.room.0.replace(UNKNOWN_WORDS) };
        let message = Message::new(HeapAllocator::new().first_segment_words(words));
        Box::new(Outgoing { message, connection: self.clone() })
    }

    fn receive_incoming_message(&mut self) -> Promise<Option<Box<dyn IncomingMessage>>, Error> {
        let Some(mut inbox) = self.inbox.borrow_mut().take() else {
            return Promise::err(Error::failed("a message is waited for already".into()));
        };
        let place = self.inbox.clone();
        match inbox.take() {
            Ok(None) => Promise::from_future(async move {
                let came = inbox.next().await?;
                *place.borrow_mut() = Some(inbox);
                came.map(incoming).transpose()
            }),
            came => {
                *place.borrow_mut() = Some(inbox);
                match came.and_then(|bytes| bytes.map(incoming).transpose()) {
                    Ok(message) => Promise::ok(message),
                    Err(error) => Promise::err(error),
                }
            }
        }
    }

    fn shutdown(&mut self, result: capnp::Result<()>) -> Promise<(), Error> {
        self.outbox.end(result);
        Promise::ok(())
    }
}

struct Incoming(Reader<BufferSegments<Bytes>>);

fn incoming(bytes: Bytes) -> Result<Box<dyn IncomingMessage>, Error> {
    let segments = BufferSegments::new(bytes, reader_options())?;
    Ok(Box::new(Incoming(Reader::new(segments, reader_options()))))
}

impl IncomingMessage for Incoming {
    fn get_body(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.0.get_root()
    }
}

struct Outgoing {
    message: Message,
    connection: Connection,
}

impl OutgoingMessage for Outgoing {
    fn get_body(&mut self) -> capnp::Result<any_pointer::Builder<'_>> {
        self.message.get_root()
    }

    fn get_body_as_reader(&self) -> capnp::Result<any_pointer::Reader<'_>> {
        self.message.get_root_as_reader()
    }

    fn send(self: Box<Self>) -> (Promise<(), Error>, Rc<Message>) {
        let Outgoing { message, connection } = *self;
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

fn start(
    duplex: Duplex,
    side: Side,
    bootstrap: Option<capnp::capability::Client>,
    signs: SignsOfLife,
    room: Room,
) -> RpcSystem<Side> {
    let outbox = Outbox::default();
    let inbox = Inbox::new(duplex.read, MAX_MESSAGE_BYTES, signs.clone());
    let flusher = Flusher::new(duplex.write, outbox.clone(), signs);
    let connection = Connection { side, inbox: Rc::new(RefCell::new(Some(inbox))), outbox, room };
    let network = Two { side, connection, accepted: false, flusher: Some(flusher) };
    RpcSystem::new(Box::new(network), bootstrap)
}

/// Serves `bootstrap` until the other side is gone. Returns why, if it was not a plain end.
pub(crate) async fn serve(
    duplex: Duplex,
    bootstrap: capnp::capability::Client,
    room: Room,
) -> Option<String> {
    run(start(duplex, Side::Server, Some(bootstrap), SignsOfLife::default(), room)).await
}

/// Opens the client's side: the port to call, and the future that drives the connection until it ends.
pub(crate) fn dial<C: FromClientHook>(
    duplex: Duplex,
    signs: SignsOfLife,
    room: Room,
) -> (C, impl Future<Output = Option<String>>) {
    let mut system = start(duplex, Side::Client, None, signs, room);
    let port = system.bootstrap(Side::Server);
    (port, run(system))
}

async fn run(system: RpcSystem<Side>) -> Option<String> {
    system.await.err().map(|error| error.to_string())
}

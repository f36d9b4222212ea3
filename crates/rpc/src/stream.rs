//! Cap'n Proto's messages on a byte stream: those that come lie where the stream's bytes were read to, and those that go are
//! written together at the end of the event loop's turn, large ones from where they were built.
//!
//! Source: the stream framing of Cap'n Proto's encoding specification (a table of segment sizes, then the segments).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::{Bytes, BytesMut};
use capnp::Error;
use capnp::message::{Builder, HeapAllocator};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// A message that goes.
pub(crate) type Message = Builder<HeapAllocator>;

/// What is read at a time, and how much of it must be free for another read.
const READ_BYTES: usize = 64 * 1024;
const LEAST_ROOM: usize = 8 * 1024;
/// A message that claims to be larger gets room as it comes.
const MOST_ROOM: usize = 1024 * 1024;
/// Most segments of a message: the library reads no more either.
const MAX_SEGMENTS: usize = 511;
/// A message of this size is written from where it was built. Smaller ones are put together.
const LARGE_BYTES: usize = 8 * 1024;
/// Pieces written by one system call.
const MAX_SLICES: usize = 64;
/// Who serves reads nothing more while so much waits to be written to the other side.
const MOST_WAITING: usize = 16 * 1024 * 1024;
/// A buffer that grew larger than this is given back when it is empty.
const KEEP_BYTES: usize = 256 * 1024;
const WORD_BYTES: usize = 8;

/// Counts what shows that the other side is there: bytes that came from it, and bytes that it made room for after the
/// stream had been full. (What merely fits the local buffers shows nothing.)
#[derive(Clone, Default)]
pub(crate) struct SignsOfLife(Rc<Cell<u64>>);

impl SignsOfLife {
    pub(crate) fn count(&self) -> u64 {
        self.0.get()
    }

    fn add(&self) {
        self.0.set(self.0.get() + 1);
    }
}

/// Takes a stream apart into messages.
pub(crate) struct Inbox {
    stream: Box<dyn AsyncRead + Unpin>,
    buffer: BytesMut,
    max_message_bytes: usize,
    signs: SignsOfLife,
}

impl Inbox {
    pub(crate) fn new(
        stream: Box<dyn AsyncRead + Unpin>,
        max_message_bytes: usize,
        signs: SignsOfLife,
    ) -> Inbox {
        Inbox { stream, buffer: BytesMut::new(), max_message_bytes, signs }
    }

    /// The next message, table of segments and all, if it is here as a whole.
    ///
    /// # Errors
    /// What came is no message, or one that is too large.
    pub(crate) fn take(&mut self) -> Result<Option<Bytes>, Error> {
        match message_bytes(&self.buffer, self.max_message_bytes)? {
            Some(whole) if self.buffer.len() >= whole => {
                let message = self.buffer.split_to(whole).freeze();
                if self.buffer.is_empty() && self.buffer.capacity() > KEEP_BYTES {
                    self.buffer = BytesMut::new();
                }
                Ok(Some(aligned(message)))
            }
            _ => Ok(None),
        }
    }

    /// Waits for the next message. `None`: the stream ended after the last one.
    ///
    /// # Errors
    /// Those of [`Inbox::take`], and the stream's.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let have = self.buffer.len();
            let missing =
                message_bytes(&self.buffer, self.max_message_bytes)?.unwrap_or(0).saturating_sub(have);
            // Nobody gets much memory for a claim alone.
            let room = missing.min(MOST_ROOM.max(have)).max(LEAST_ROOM);
            if self.buffer.capacity() - have < room {
                self.buffer.reserve(room.max(READ_BYTES));
            }
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                return match have {
                    0 => Ok(None),
                    _ => Err(Error::disconnected("the stream ended within a message".into())),
                };
            }
            self.signs.add();
        }
    }
}

/// How long the message is that these bytes begin with, if they tell yet.
fn message_bytes(bytes: &[u8], max: usize) -> Result<Option<usize>, Error> {
    let Some(count) = number(bytes, 0) else { return Ok(None) };
    let count = count.saturating_add(1);
    if count > MAX_SEGMENTS {
        return Err(Error::failed(format!("a message of {count} segments: at most {MAX_SEGMENTS}")));
    }
    let table = (4 + 4 * count).next_multiple_of(WORD_BYTES);
    if bytes.len() < table {
        return Ok(None);
    }
    let words = (1..=count).filter_map(|at| number(bytes, 4 * at)).sum::<usize>();
    match words * WORD_BYTES {
        segments if segments > max => {
            Err(Error::failed(format!("a message of {segments} bytes: at most {max}")))
        }
        segments => Ok(Some(table + segments)),
    }
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_le_bytes(*four) as usize)
}

/// The message at an address that its words can be read from. Buffers are allocated at such addresses, and messages are
/// whole words: it is there already, unless the allocator does as it likes.
fn aligned(message: Bytes) -> Bytes {
    if message.as_ptr().align_offset(WORD_BYTES) == 0 {
        return message;
    }
    let mut copy: Vec<u8> = Vec::with_capacity(message.len() + WORD_BYTES);
    let skipped = copy.as_ptr().align_offset(WORD_BYTES);
    copy.resize(skipped, 0);
    copy.extend_from_slice(&message);
    Bytes::from(copy).slice(skipped..)
}

/// Takes messages; [`Flusher`] brings them to the stream.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Rc<RefCell<OutboxState>>);

/// Brings what was sent to the stream, once an event loop's turn.
pub(crate) struct Flusher {
    outbox: Outbox,
    stream: Box<dyn AsyncWrite + Unpin>,
    signs: SignsOfLife,
}

#[derive(Default)]
struct OutboxState {
    pieces: Pieces,
    /// Bytes sent and not written yet.
    waiting: usize,
    /// Nothing more is sent: the flusher's outcome.
    end: Option<Result<(), Error>>,
    /// Nobody writes any more.
    is_gone: bool,
    flusher: Option<Waker>,
    /// Who waits for less to wait.
    held_up: Option<Waker>,
}

impl Outbox {
    /// Takes a message.
    pub(crate) fn send(&self, message: &Rc<Message>) {
        let mut outgoing = self.0.borrow_mut();
        if !outgoing.is_gone && outgoing.end.is_none() {
            outgoing.waiting += outgoing.pieces.add(message);
            wake(&mut outgoing.flusher);
        }
    }

    /// Nothing more is sent. The flusher returns this once everything is written, or the stream takes no more at once: who
    /// ends has been told by the other side that it is gone.
    pub(crate) fn end(&self, outcome: Result<(), Error>) {
        let mut outgoing = self.0.borrow_mut();
        outgoing.end.get_or_insert(outcome);
        wake(&mut outgoing.flusher);
    }

    /// Waits while too much waits to be written. For one task.
    pub(crate) async fn has_room(&self) {
        std::future::poll_fn(|cx| {
            let mut outgoing = self.0.borrow_mut();
            if outgoing.waiting <= MOST_WAITING || outgoing.is_gone {
                return Poll::Ready(());
            }
            outgoing.held_up = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.borrow().waiting > MOST_WAITING
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

enum Piece {
    /// Small messages, and tables of large ones.
    Copied(Vec<u8>),
    /// A large message's segments.
    Large(Rc<Message>),
}

/// What is to be written.
#[derive(Default)]
struct Pieces {
    queue: VecDeque<Piece>,
    /// How much of the first one is written.
    written: usize,
    /// For the next piece that is copied.
    spare: Vec<u8>,
}

impl Pieces {
    /// Adds a message; returns how many bytes it takes.
    fn add(&mut self, message: &Rc<Message>) -> usize {
        let segments = message.get_segments_for_output();
        let spare = &mut self.spare;
        if !matches!(self.queue.back(), Some(Piece::Copied(_))) {
            self.queue.push_back(Piece::Copied(std::mem::take(spare)));
        }
        let Some(Piece::Copied(bytes)) = self.queue.back_mut() else { return 0 };
        let before = bytes.len();
        bytes.extend_from_slice(&(segments.len() as u32 - 1).to_le_bytes());
        for segment in &segments[..] {
            bytes.extend_from_slice(&((segment.len() / WORD_BYTES) as u32).to_le_bytes());
        }
        if segments.len().is_multiple_of(2) {
            bytes.extend_from_slice(&[0; 4]);
        }
        let table = bytes.len() - before;
        let length = message.size_in_words() * WORD_BYTES;
        if length >= LARGE_BYTES {
            self.queue.push_back(Piece::Large(message.clone()));
        } else {
            segments.iter().for_each(|segment| bytes.extend_from_slice(segment));
        }
        table + length
    }

    /// What to write next.
    fn slices(&self) -> Vec<IoSlice<'_>> {
        let mut slices = Vec::new();
        let mut skip = self.written;
        for piece in &self.queue {
            match piece {
                Piece::Copied(bytes) => add_slice(&mut slices, &mut skip, bytes),
                Piece::Large(message) => {
                    for segment in message.get_segments_for_output().iter() {
                        add_slice(&mut slices, &mut skip, segment);
                    }
                }
            }
            if slices.len() == MAX_SLICES {
                break;
            }
        }
        slices
    }

    /// So many bytes more are written.
    fn advance(&mut self, count: usize) {
        self.written += count;
        while let Some(first) = self.queue.front_mut() {
            let length = match first {
                Piece::Copied(bytes) => bytes.len(),
                Piece::Large(message) => message.size_in_words() * WORD_BYTES,
            };
            if self.written < length {
                return;
            }
            self.written -= length;
            if let Some(Piece::Copied(mut bytes)) = self.queue.pop_front()
                && bytes.capacity() > self.spare.capacity()
                && bytes.capacity() <= KEEP_BYTES
            {
                bytes.clear();
                self.spare = bytes;
            }
        }
    }
}

/// Adds what is left of these bytes, if there is something left and room for it.
fn add_slice<'a>(slices: &mut Vec<IoSlice<'a>>, skip: &mut usize, bytes: &'a [u8]) {
    let rest = &bytes[(*skip).min(bytes.len())..];
    *skip -= bytes.len() - rest.len();
    if !rest.is_empty() && slices.len() < MAX_SLICES {
        slices.push(IoSlice::new(rest));
    }
}

/// Lets every task that is ready now run first, by standing in the queue behind them.
///
/// Not `tokio::task::yield_now`: that parks the wake-up in the runtime's `block_on`, and loses it if that returns first,
/// as a synchronous client's does all the time.
async fn end_of_turn() {
    let mut waited = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut waited, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

impl Flusher {
    pub(crate) fn new(stream: Box<dyn AsyncWrite + Unpin>, outbox: Outbox, signs: SignsOfLife) -> Flusher {
        Flusher { outbox, stream, signs }
    }

    /// Runs until [`Outbox::end`], or the stream fails.
    ///
    /// # Errors
    /// The stream's, or that which the outbox was ended with.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        let mut pieces = Pieces::default();
        loop {
            let end = std::future::poll_fn(|cx| {
                let mut outgoing = self.outbox.0.borrow_mut();
                if !outgoing.pieces.queue.is_empty() {
                    return Poll::Ready(None);
                }
                if outgoing.end.is_some() {
                    return Poll::Ready(outgoing.end.clone());
                }
                outgoing.flusher = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            if let Some(end) = end {
                return end;
            }
            end_of_turn().await;
            std::mem::swap(&mut pieces, &mut self.outbox.0.borrow_mut().pieces);
            if let Some(end) = self.write_out(&mut pieces).await? {
                return end;
            }
        }
    }

    /// Writes all of these. The end, if it comes while the stream is full.
    async fn write_out(&mut self, pieces: &mut Pieces) -> io::Result<Option<Result<(), Error>>> {
        while !pieces.queue.is_empty() {
            let mut was_full = false;
            let outbox = &self.outbox.0;
            let stream = &mut self.stream;
            let written = std::future::poll_fn(|cx| {
                let slices = pieces.slices();
                let stream = Pin::new(&mut *stream);
                let polled = match &slices[..] {
                    [only] => stream.poll_write(cx, only),
                    several => stream.poll_write_vectored(cx, several),
                };
                if let Poll::Ready(written) = polled {
                    return Poll::Ready(written.map(Ok));
                }
                was_full = true;
                let mut outgoing = outbox.borrow_mut();
                if let Some(end) = &outgoing.end {
                    return Poll::Ready(Ok(Err(end.clone())));
                }
                outgoing.flusher = Some(cx.waker().clone());
                Poll::Pending
            })
            .await?;
            let written = match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => written,
                Err(end) => return Ok(Some(end)),
            };
            if was_full {
                self.signs.add();
            }
            pieces.advance(written);
            let mut outgoing = self.outbox.0.borrow_mut();
            outgoing.waiting -= written;
            if outgoing.waiting <= MOST_WAITING {
                wake(&mut outgoing.held_up);
            }
        }
        std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_flush(cx)).await?;
        Ok(None)
    }
}

impl Drop for Flusher {
    /// What is not written never will be; whoever still sends sends to nobody.
    fn drop(&mut self) {
        let mut outgoing = self.outbox.0.borrow_mut();
        outgoing.is_gone = true;
        outgoing.pieces = Pieces::default();
        outgoing.waiting = 0;
        wake(&mut outgoing.held_up);
    }
}

#[cfg(test)]
mod tests;

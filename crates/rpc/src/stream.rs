//! Cap'n Proto's messages on a byte stream. A received message stays in the buffer that the stream
//! was read into, without a copy. Messages to send are written together at the end of the event
//! loop's turn; large ones are written from the memory in which they were built.
//!
//! Source: the stream framing of Cap'n Proto's encoding specification (a table of segment sizes,
//! then the segments).

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

/// A message to send.
pub(crate) type Message = Builder<HeapAllocator>;

/// Smallest growth of the read buffer, in bytes.
const READ_BYTES: usize = 64 * 1024;
/// Bytes that must be free in the read buffer before each read.
const MIN_FREE_BYTES: usize = 8 * 1024;
/// Largest number of bytes of memory that are reserved for a message before its bytes arrive. A
/// message that claims to be larger gets more memory as its bytes arrive, so a false claim costs
/// little.
const MAX_RESERVED_BYTES: usize = 1024 * 1024;
/// Largest number of segments (Cap'n Proto's blocks of memory) of a message. The Cap'n Proto
/// library has the same limit.
const MAX_SEGMENTS: usize = 511;
/// Smallest size, in bytes, of a message that is written from the memory in which it was built.
/// Smaller messages are first copied into one common buffer.
const LARGE_BYTES: usize = 8 * 1024;
/// Largest number of slices of bytes that one system call writes.
const MAX_SLICES: usize = 64;
/// Number of unwritten bytes of answers above which the serving side reads no further calls.
const MAX_UNWRITTEN_BYTES: usize = 16 * 1024 * 1024;
/// Largest buffer, in bytes, that is kept for reuse when it is empty. A larger one is freed.
const KEEP_BYTES: usize = 256 * 1024;
const WORD_BYTES: usize = 8;

/// Counter of the signs that the other side is alive: reads that returned bytes, and writes that
/// succeeded after the stream had been full. A write that succeeds at once proves nothing, because
/// it may only have filled the local send buffer.
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

/// Reader that splits a stream into messages.
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

    /// Returns the next message, including its segment table, if it has arrived completely.
    ///
    /// # Errors
    /// The received bytes are no message, or the message is too large.
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

    /// Waits for the next message. Returns `None` if the stream ended after a whole message.
    ///
    /// # Errors
    /// Those of [`Inbox::take`], and errors of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            let have = self.buffer.len();
            let missing =
                message_bytes(&self.buffer, self.max_message_bytes)?.unwrap_or(0).saturating_sub(have);
            // Reserve at most `MAX_RESERVED_BYTES`, or as much as has arrived already. The size
            // that a message claims would otherwise reserve memory for bytes that may never come.
            let wanted = missing.min(MAX_RESERVED_BYTES.max(have)).max(MIN_FREE_BYTES);
            if self.buffer.capacity() - have < wanted {
                self.buffer.reserve(wanted.max(READ_BYTES));
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

/// Returns the length in bytes of the message that begins with `bytes`; `None` if its segment table
/// has not arrived completely.
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

/// Returns the message at an address that is aligned to a word, as its reader requires. A copy is
/// rare: allocators align buffers, and messages are whole words.
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

/// Queue of messages to send, which [`Flusher`] writes to the stream.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Rc<RefCell<OutboxState>>);

/// Writer of the outbox's messages to the stream, once per turn of the event loop.
pub(crate) struct Flusher {
    outbox: Outbox,
    stream: Box<dyn AsyncWrite + Unpin>,
    signs: SignsOfLife,
}

#[derive(Default)]
struct OutboxState {
    pieces: Pieces,
    /// Bytes that are queued and not yet written.
    unwritten: usize,
    /// Result that the flusher returns, set by [`Outbox::end`].
    end: Option<Result<(), Error>>,
    /// True if the flusher was dropped.
    is_gone: bool,
    flusher: Option<Waker>,
    /// Waker of the task that waits in [`Outbox::has_room`].
    waiting_task: Option<Waker>,
}

impl Outbox {
    /// Queues a message. Drops it if the outbox was ended or the flusher was dropped.
    pub(crate) fn send(&self, message: &Rc<Message>) {
        let mut outgoing = self.0.borrow_mut();
        if !outgoing.is_gone && outgoing.end.is_none() {
            outgoing.unwritten += outgoing.pieces.add(message);
            wake(&mut outgoing.flusher);
        }
    }

    /// Ends the outbox: later messages are dropped. The flusher returns `outcome` once everything
    /// is written, or as soon as the stream is full. It does not wait for a full stream, because
    /// the caller has learned that the other side is gone.
    pub(crate) fn end(&self, outcome: Result<(), Error>) {
        let mut outgoing = self.0.borrow_mut();
        outgoing.end.get_or_insert(outcome);
        wake(&mut outgoing.flusher);
    }

    /// Waits until at most `MAX_UNWRITTEN_BYTES` are unwritten. Only one task may wait at a time.
    pub(crate) async fn has_room(&self) {
        std::future::poll_fn(|cx| {
            let mut outgoing = self.0.borrow_mut();
            if outgoing.unwritten <= MAX_UNWRITTEN_BYTES || outgoing.is_gone {
                return Poll::Ready(());
            }
            outgoing.waiting_task = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.borrow().unwritten > MAX_UNWRITTEN_BYTES
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

enum Piece {
    /// Small messages, and segment tables of large messages.
    Copied(Vec<u8>),
    /// Segments of one large message.
    Large(Rc<Message>),
}

/// Queue of bytes to write.
#[derive(Default)]
struct Pieces {
    queue: VecDeque<Piece>,
    /// Bytes of the first piece that are already written.
    written: usize,
    /// Empty buffer that the next [`Piece::Copied`] reuses.
    spare: Vec<u8>,
}

impl Pieces {
    /// Adds a message. Returns its length on the stream, in bytes.
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

    /// Returns the bytes to write next, in at most [`MAX_SLICES`] slices.
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

    /// Records that `count` more bytes are written, and removes pieces that are written completely.
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

/// Adds `bytes` without its first `skip` bytes to `slices`, unless nothing is left or the list is
/// full. Reduces `skip` by the number of bytes that were skipped here.
fn add_slice<'a>(slices: &mut Vec<IoSlice<'a>>, skip: &mut usize, bytes: &'a [u8]) {
    let rest = &bytes[(*skip).min(bytes.len())..];
    *skip -= bytes.len() - rest.len();
    if !rest.is_empty() && slices.len() < MAX_SLICES {
        slices.push(IoSlice::new(rest));
    }
}

/// Waits until every task that is ready now has run, by queuing this task behind them.
///
/// This is not `tokio::task::yield_now`, which defers the wake-up to the runtime's `block_on`. The
/// wake-up is lost if `block_on` returns first, as it does after each call of a synchronous client.
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

    /// Writes messages until [`Outbox::end`] is called or the stream fails.
    ///
    /// # Errors
    /// The error of the stream, or the one that was passed to [`Outbox::end`].
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

    /// Writes all pieces. If the outbox is ended while the stream is full, returns the result that
    /// the outbox was ended with.
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
            outgoing.unwritten -= written;
            if outgoing.unwritten <= MAX_UNWRITTEN_BYTES {
                wake(&mut outgoing.waiting_task);
            }
        }
        std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_flush(cx)).await?;
        Ok(None)
    }
}

impl Drop for Flusher {
    /// Discards the messages that are not written. [`Outbox::send`] drops later messages.
    fn drop(&mut self) {
        let mut outgoing = self.outbox.0.borrow_mut();
        outgoing.is_gone = true;
        outgoing.pieces = Pieces::default();
        outgoing.unwritten = 0;
        wake(&mut outgoing.waiting_task);
    }
}

#[cfg(test)]
mod tests;

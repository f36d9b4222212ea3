//! Between Cap'n Proto and the byte stream: reads are buffered, and flushes are put off to the end of the event loop's
//! turn, since capnp-rpc flushes every message by itself.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const READ_BUFFER_BYTES: usize = 64 * 1024;
/// A writer waits while this much is not yet taken by the stream.
const HIGH_WATER_BYTES: usize = 256 * 1024;
/// A buffer that grew larger than this is given back when it is empty.
const KEEP_BYTES: usize = 256 * 1024;

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

/// Reads from a tokio stream, for a library that wants the `futures` trait.
pub(crate) struct BufferedRead {
    stream: Box<dyn AsyncRead + Unpin>,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    signs: SignsOfLife,
}

impl BufferedRead {
    pub(crate) fn new(stream: Box<dyn AsyncRead + Unpin>, signs: SignsOfLife) -> BufferedRead {
        BufferedRead { stream, buffer: vec![0; READ_BUFFER_BYTES].into(), start: 0, end: 0, signs }
    }
}

impl futures::io::AsyncRead for BufferedRead {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.start == this.end {
            if out.len() >= READ_BUFFER_BYTES {
                // A large value goes straight to where it belongs.
                let mut direct = ReadBuf::new(out);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut direct))?;
                this.signs.add();
                return Poll::Ready(Ok(direct.filled().len()));
            }
            let mut buffer = ReadBuf::new(&mut this.buffer);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer))?;
            this.signs.add();
            this.start = 0;
            this.end = buffer.filled().len();
        }
        let count = out.len().min(this.end - this.start);
        out[..count].copy_from_slice(&this.buffer[this.start..this.start + count]);
        this.start += count;
        Poll::Ready(Ok(count))
    }
}

/// Takes what is written into memory; [`Flusher`] brings it to the stream.
pub(crate) struct DeferredWrite {
    shared: Rc<RefCell<Shared>>,
}

/// Brings what was written to the stream, once an event loop's turn. The only one that polls the stream.
pub(crate) struct Flusher {
    shared: Rc<RefCell<Shared>>,
    stream: Box<dyn AsyncWrite + Unpin>,
    signs: SignsOfLife,
}

#[derive(Default)]
struct Shared {
    waiting: Vec<u8>,
    failed: Option<io::ErrorKind>,
    writer_gone: bool,
    flusher: Option<Waker>,
    blocked_writer: Option<Waker>,
}

impl Shared {
    fn wake_flusher(&mut self) {
        if let Some(waker) = self.flusher.take() {
            waker.wake();
        }
    }
}

pub(crate) fn deferred(stream: Box<dyn AsyncWrite + Unpin>, signs: SignsOfLife) -> (DeferredWrite, Flusher) {
    let shared = Rc::new(RefCell::new(Shared::default()));
    (DeferredWrite { shared: shared.clone() }, Flusher { shared, stream, signs })
}

impl futures::io::AsyncWrite for DeferredWrite {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut shared = self.shared.borrow_mut();
        if let Some(kind) = shared.failed {
            return Poll::Ready(Err(kind.into()));
        }
        if shared.waiting.len() >= HIGH_WATER_BYTES {
            shared.blocked_writer = Some(cx.waker().clone());
            shared.wake_flusher();
            return Poll::Pending;
        }
        shared.waiting.extend_from_slice(bytes);
        shared.wake_flusher();
        Poll::Ready(Ok(bytes.len()))
    }

    /// Done at once: the flusher runs at the end of this turn.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for DeferredWrite {
    fn drop(&mut self) {
        let mut shared = self.shared.borrow_mut();
        shared.writer_gone = true;
        shared.wake_flusher();
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
    /// Runs until the writer is gone and everything is written, or the stream fails.
    pub(crate) async fn run(mut self) {
        let mut writing = Vec::new();
        loop {
            let more = std::future::poll_fn(|cx| {
                let mut shared = self.shared.borrow_mut();
                if !shared.waiting.is_empty() {
                    return Poll::Ready(true);
                }
                if shared.writer_gone {
                    return Poll::Ready(false);
                }
                shared.flusher = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            if !more {
                return;
            }
            end_of_turn().await;
            std::mem::swap(&mut writing, &mut self.shared.borrow_mut().waiting);
            if let Err(error) = self.write_out(&writing).await {
                self.shared.borrow_mut().failed = Some(error.kind());
            }
            writing.clear();
            if writing.capacity() > KEEP_BYTES {
                writing = Vec::new();
            }
            let mut shared = self.shared.borrow_mut();
            if let Some(waker) = shared.blocked_writer.take() {
                waker.wake();
            }
            if shared.failed.is_some() {
                return;
            }
        }
    }

    async fn write_out(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut was_full = false;
            let written = std::future::poll_fn(|cx| {
                let polled = Pin::new(&mut self.stream).poll_write(cx, bytes);
                was_full |= polled.is_pending();
                polled
            })
            .await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            if was_full {
                self.signs.add();
            }
            bytes = &bytes[written..];
        }
        std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_flush(cx)).await
    }
}

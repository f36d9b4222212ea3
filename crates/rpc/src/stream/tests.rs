use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use capnp::message::ReaderOptions;
use capnp::serialize::BufferSegments;
use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;

const MAX: usize = 8 * 1024 * 1024;

/// Builds a message that is a list of byte strings of these lengths. A small first segment makes it
/// a message of several segments.
fn message(lengths: &[usize], first_words: u32) -> Rc<Message> {
    let mut message = Message::new(HeapAllocator::new().first_segment_words(first_words));
    let mut list = message.initn_root::<capnp::data_list::Builder<'_>>(lengths.len() as u32);
    for (at, &length) in lengths.iter().enumerate() {
        list.set(at as u32, &vec![at as u8 ^ length as u8; length]);
    }
    Rc::new(message)
}

fn lengths_in(message: Bytes) -> Vec<usize> {
    let segments = BufferSegments::new(message, ReaderOptions::new()).unwrap();
    let reader = capnp::message::Reader::new(segments, ReaderOptions::new());
    let list: capnp::data_list::Reader<'_> = reader.get_root().unwrap();
    let check = |(at, bytes): (usize, capnp::Result<&[u8]>)| {
        let bytes = bytes.unwrap();
        assert!(bytes.iter().all(|&byte| byte == at as u8 ^ bytes.len() as u8));
        bytes.len()
    };
    list.iter().enumerate().map(check).collect()
}

/// Returns the message as the Cap'n Proto library itself writes it to a stream.
fn framed(message: &Message) -> Vec<u8> {
    capnp::serialize::write_message_to_words(message)
}

fn inbox(stream: impl AsyncRead + Unpin + 'static) -> Inbox {
    Inbox::new(Box::new(stream), MAX, SignsOfLife::default())
}

/// Stream that accepts and returns only a few bytes at a time. A vectored write may end within any
/// slice.
struct Trickle {
    stream: DuplexStream,
    step: usize,
}

impl Trickle {
    fn next(&mut self) -> usize {
        self.step = self.step * 7 % 1009;
        1 + self.step
    }
}

impl AsyncWrite for Trickle {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let some = self.next().min(bytes.len());
        Pin::new(&mut self.stream).poll_write(cx, &bytes[..some])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        let some = (8 * self.next()).min(all.len());
        Pin::new(&mut self.stream).poll_write(cx, &all[..some])
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}

impl AsyncRead for Trickle {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut some = out.take(out.remaining().min(self.next()));
        let polled = Pin::new(&mut self.stream).poll_read(cx, &mut some);
        let count = some.filled().len();
        // `some` reads into the memory of `out`, but `out` does not count these bytes yet.
        // `put_slice` counts them, and writes the same bytes again.
        let bytes = some.filled().to_vec();
        out.put_slice(&bytes[..count]);
        polled
    }
}

/// Messages of all sizes arrive whole and in order over a stream that splits them. The flusher
/// returns the error that the outbox was ended with.
#[tokio::test]
async fn messages_arrive_whole() {
    let sizes: [(&[usize], u32); 9] = [
        (&[], 1),
        (&[1, 2, 3], 100),
        (&[100; 60], 1),
        (&[10_240; 3], 1),
        (&[8_000], 2_000),
        (&[0, 100_000, 5, 200_000], 100),
        (&[7; 200], 1_024),
        (&[600_000], 1),
        (&[1], 1),
    ];
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let outbox = Outbox::default();
    let flusher =
        Flusher::new(Box::new(Trickle { stream: ours, step: 3 }), outbox.clone(), SignsOfLife::default());
    let mut inbox = inbox(Trickle { stream: theirs, step: 5 });
    let reads = async {
        let mut found = Vec::new();
        while found.len() < sizes.len() {
            found.push(lengths_in(inbox.next().await.unwrap().unwrap()));
        }
        outbox.end(Err(Error::disconnected("done".into())));
        assert!(inbox.next().await.unwrap().is_none(), "the stream ends after a whole message");
        found
    };
    let writes = async {
        for (lengths, first_words) in sizes {
            outbox.send(&message(lengths, first_words));
            if lengths.len() > 2 {
                tokio::task::yield_now().await;
            }
        }
    };
    let (found, ended, ()) = tokio::join!(reads, flusher.run(), writes);
    assert_eq!(found, sizes.map(|(lengths, _)| lengths.to_vec()));
    assert_eq!(ended.unwrap_err().kind, capnp::ErrorKind::Disconnected);
    outbox.send(&message(&[1], 1));
    assert!(outbox.0.borrow().pieces.queue.is_empty(), "an ended outbox drops messages");
}

/// Stream that records the written bytes and the number of writes.
#[derive(Clone, Default)]
struct Sink {
    bytes: Rc<RefCell<Vec<u8>>>,
    writes: Rc<Cell<usize>>,
    /// Bytes after which the stream is full; `None`: never.
    capacity: Option<usize>,
    /// True if a write to the full stream fails. Otherwise it waits forever.
    fails: bool,
}

impl AsyncWrite for Sink {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let before = self.bytes.borrow().len();
        let free = self.capacity.map_or(usize::MAX, |capacity| capacity - before);
        if free == 0 {
            return if self.fails {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            } else {
                Poll::Pending
            };
        }
        assert!(slices.len() <= MAX_SLICES);
        self.writes.set(self.writes.get() + 1);
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(free).collect();
        self.bytes.borrow_mut().extend_from_slice(&all);
        Poll::Ready(Ok(all.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn flusher(sink: &Sink, outbox: &Outbox) -> Flusher {
    Flusher::new(Box::new(sink.clone()), outbox.clone(), SignsOfLife::default())
}

/// Messages that several tasks send in one turn are one write, even if the first task woke the
/// flusher.
#[tokio::test]
async fn messages_of_one_turn_are_written_together() {
    let local = tokio::task::LocalSet::new();
    let (sink, outbox) = (Sink::default(), Outbox::default());
    let running = local.spawn_local(flusher(&sink, &outbox).run());
    local.run_until(tokio::task::yield_now()).await;
    for at in 0..5 {
        let outbox = outbox.clone();
        local.spawn_local(async move { outbox.send(&message(&[at], 10)) });
    }
    local
        .run_until(async {
            while sink.writes.get() == 0 {
                tokio::task::yield_now().await
            }
        })
        .await;
    assert_eq!(sink.writes.get(), 1);
    outbox.end(Ok(()));
    local.run_until(running).await.unwrap().unwrap();
    let expected: Vec<u8> = (0..5).flat_map(|at| framed(&message(&[at], 10))).collect();
    assert_eq!(*sink.bytes.borrow(), expected);
}

/// Large messages that do not fit into one system call are written in order.
#[tokio::test]
async fn many_large_messages_are_written_in_order() {
    let (sink, outbox) = (Sink::default(), Outbox::default());
    let messages: Vec<_> = (0..100).map(|at| message(&[10_000 + at, 1, 9_000], 1)).collect();
    messages.iter().for_each(|message| outbox.send(message));
    outbox.end(Ok(()));
    flusher(&sink, &outbox).run().await.unwrap();
    assert!(sink.writes.get() > 1);
    let expected: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
    assert!(*sink.bytes.borrow() == expected);
}

/// No message stays in memory after the stream failed, or after the flusher was dropped while it
/// waited. Messages that are sent after that are freed, too.
#[tokio::test]
async fn messages_for_a_lost_stream_are_freed() {
    for fails in [true, false] {
        let (mut sink, outbox) = (Sink::default(), Outbox::default());
        (sink.capacity, sink.fails) = (Some(10), fails);
        let large = message(&[20_000], 1);
        outbox.send(&large);
        let ended =
            tokio::time::timeout(std::time::Duration::from_millis(20), flusher(&sink, &outbox).run()).await;
        assert_eq!(ended.is_ok_and(|ended| ended.is_err()), fails);
        outbox.send(&large);
        assert_eq!(Rc::strong_count(&large), 1);
        outbox.has_room().await;
    }
}

/// A flusher whose outbox was ended does not wait for a full stream.
#[tokio::test]
async fn an_end_does_not_wait_for_a_full_stream() {
    let (mut sink, outbox) = (Sink::default(), Outbox::default());
    sink.capacity = Some(10);
    outbox.send(&message(&[20_000], 1));
    let ends = async {
        tokio::task::yield_now().await;
        outbox.end(Ok(()));
    };
    let (ended, ()) = tokio::join!(flusher(&sink, &outbox).run(), ends);
    ended.unwrap();
}

/// An outbox with too many unwritten bytes is full, and has room again once the other side has
/// read.
#[tokio::test]
async fn an_outbox_is_full_until_the_other_side_reads() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let outbox = Outbox::default();
    let flusher = Flusher::new(Box::new(ours), outbox.clone(), SignsOfLife::default());
    assert!(!outbox.is_full());
    for _ in 0..=MAX_UNWRITTEN_BYTES / 1_000_000 {
        outbox.send(&message(&[1_000_000], 1));
    }
    assert!(outbox.is_full());
    let reads = async {
        let mut read = 0;
        let mut buffer = vec![0; 64 * 1024];
        while read < 2_000_000 {
            read += theirs.read(&mut buffer).await.unwrap();
        }
    };
    tokio::select! {
        _ = flusher.run() => panic!("the flusher ended before the outbox did"),
        ((), ()) = async { tokio::join!(outbox.has_room(), reads) } => {}
    }
}

/// The bytes that `Pieces` gives for a message are those that the Cap'n Proto library writes for
/// it.
#[test]
fn the_framing_is_that_of_the_library() {
    for (lengths, first_words) in
        [(&[][..], 1), (&[1, 2, 3], 1), (&[5_000, 9_000], 1), (&[20_000], 1), (&[9; 900], 50)]
    {
        let message = message(lengths, first_words);
        let mut pieces = Pieces::default();
        pieces.add(&message);
        let written: Vec<u8> = pieces.slices().iter().flat_map(|slice| slice.iter().copied()).collect();
        assert!(written == framed(&message), "{lengths:?}");
        assert_eq!(message_bytes(&written, MAX).unwrap(), Some(written.len()));
        pieces.advance(written.len());
        assert!(pieces.slices().is_empty());
    }
}

/// A malformed message, and one that claims a size above the limit, is an error at once. A stream
/// that ends within a message is an error, too.
#[tokio::test]
async fn malformed_and_truncated_messages_are_errors() {
    let words = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
    let whole = framed(&message(&[100], 50));
    for (bytes, says) in [
        (words(&[u32::MAX, 1]), "segments"),
        (words(&[512, 1]), "segments"),
        (words(&[0, u32::MAX]), "bytes: at most"),
        (words(&[0, MAX as u32 / 8 + 1]), "bytes: at most"),
        (words(&[2, u32::MAX, u32::MAX, u32::MAX]), "bytes: at most"),
        (whole[..3].to_vec(), "within a message"),
        (whole[..whole.len() - 1].to_vec(), "within a message"),
    ] {
        let (mut ours, theirs) = tokio::io::duplex(1024);
        ours.write_all(&bytes).await.unwrap();
        drop(ours);
        let error = inbox(theirs).next().await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// A message that claims a large size reserves little memory before its bytes arrive.
#[tokio::test]
async fn memory_is_reserved_as_bytes_arrive() {
    let (mut ours, theirs) = tokio::io::duplex(1024);
    let mut inbox = inbox(theirs);
    ours.write_all(&[0, 0, 0, 0]).await.unwrap();
    ours.write_all(&(MAX as u32 / 8).to_le_bytes()).await.unwrap();
    tokio::select! {
        _ = inbox.next() => panic!("no whole message has arrived"),
        () = tokio::task::yield_now() => {}
    }
    assert!(inbox.buffer.capacity() <= 2 * MAX_RESERVED_BYTES, "{}", inbox.buffer.capacity());
}

#[test]
fn messages_are_aligned_to_words() {
    let bytes: Vec<u8> = (0..=255).collect();
    for begin in 0..16 {
        let message = aligned(Bytes::from(bytes.clone()).slice(begin..));
        assert_eq!(message.as_ptr().align_offset(WORD_BYTES), 0);
        assert_eq!(message, bytes[begin..]);
    }
}

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use capnp::message::ReaderOptions;
use capnp::serialize::BufferSegments;
use tokio::io::{AsyncWriteExt, DuplexStream, ReadBuf};

use super::*;

const MAX: usize = 8 * 1024 * 1024;

/// Lists of bytes, each in what room there is: several segments if there is little.
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

/// What a message is on the wire, by the library itself.
fn framed(message: &Message) -> Vec<u8> {
    capnp::serialize::write_message_to_words(message)
}

fn inbox(stream: impl AsyncRead + Unpin + 'static) -> Inbox {
    Inbox::new(Box::new(stream), MAX, SignsOfLife::default())
}

/// Takes, and gives, a few bytes at a time, of several slices.
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
        // The bytes are there: the part was one of the whole.
        let bytes = some.filled().to_vec();
        out.put_slice(&bytes[..count]);
        polled
    }
}

/// Messages of all sizes arrive in order and whole, however the stream cuts them; the flusher ends as it was told to.
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
        assert!(inbox.next().await.unwrap().is_none(), "the end comes between messages");
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
    assert!(outbox.0.borrow().pieces.queue.is_empty(), "who ended takes nothing more");
}

/// Counts what is written, and how often; takes nothing any more after so many bytes.
#[derive(Clone, Default)]
struct Sink {
    bytes: Rc<RefCell<Vec<u8>>>,
    writes: Rc<Cell<usize>>,
    room: Option<usize>,
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
        let room = self.room.map_or(usize::MAX, |room| room - before);
        if room == 0 {
            return if self.fails {
                Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
            } else {
                Poll::Pending
            };
        }
        assert!(slices.len() <= MAX_SLICES);
        self.writes.set(self.writes.get() + 1);
        let all: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).take(room).collect();
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

/// What several tasks send in one turn is one write, also if the first of them woke the flusher.
#[tokio::test]
async fn what_is_sent_in_one_turn_is_written_together() {
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

/// More large messages than one system call takes.
#[tokio::test]
async fn many_large_messages_go_out_in_order() {
    let (sink, outbox) = (Sink::default(), Outbox::default());
    let messages: Vec<_> = (0..100).map(|at| message(&[10_000 + at, 1, 9_000], 1)).collect();
    messages.iter().for_each(|message| outbox.send(message));
    outbox.end(Ok(()));
    flusher(&sink, &outbox).run().await.unwrap();
    assert!(sink.writes.get() > 1);
    let expected: Vec<u8> = messages.iter().flat_map(|message| framed(message)).collect();
    assert!(*sink.bytes.borrow() == expected);
}

/// A stream that fails, and a flusher that is dropped as it waits, keep nothing; nothing is kept of what is sent later.
#[tokio::test]
async fn nothing_is_kept_for_a_stream_that_is_gone() {
    for fails in [true, false] {
        let (mut sink, outbox) = (Sink::default(), Outbox::default());
        (sink.room, sink.fails) = (Some(10), fails);
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

/// Who ends does not wait for a stream that takes nothing.
#[tokio::test]
async fn an_end_does_not_wait_for_a_full_stream() {
    let (mut sink, outbox) = (Sink::default(), Outbox::default());
    sink.room = Some(10);
    outbox.send(&message(&[20_000], 1));
    let ends = async {
        tokio::task::yield_now().await;
        outbox.end(Ok(()));
    };
    let (ended, ()) = tokio::join!(flusher(&sink, &outbox).run(), ends);
    ended.unwrap();
}

/// Who serves waits while too much waits to be written, and goes on when there is room.
#[tokio::test]
async fn who_does_not_read_is_asked_to_wait() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let outbox = Outbox::default();
    let flusher = Flusher::new(Box::new(ours), outbox.clone(), SignsOfLife::default());
    assert!(!outbox.is_full());
    for _ in 0..=MOST_WAITING / 1_000_000 {
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
        _ = flusher.run() => panic!("there is more to write"),
        ((), ()) = async { tokio::join!(outbox.has_room(), reads) } => {}
    }
}

/// What is written is what the library itself writes.
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

/// Nonsense, and what claims too much, is an error at once; a stream that ends within a message is one, too.
#[tokio::test]
async fn nonsense_is_an_error() {
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

/// A claim of a large message gets no room before its bytes are there.
#[tokio::test]
async fn room_comes_with_the_bytes() {
    let (mut ours, theirs) = tokio::io::duplex(1024);
    let mut inbox = inbox(theirs);
    ours.write_all(&[0, 0, 0, 0]).await.unwrap();
    ours.write_all(&(MAX as u32 / 8).to_le_bytes()).await.unwrap();
    tokio::select! {
        _ = inbox.next() => panic!("there is no message"),
        () = tokio::task::yield_now() => {}
    }
    assert!(inbox.buffer.capacity() <= 2 * MOST_ROOM, "{}", inbox.buffer.capacity());
}

#[test]
fn messages_lie_at_whole_words() {
    let bytes: Vec<u8> = (0..=255).collect();
    for begin in 0..16 {
        let message = aligned(Bytes::from(bytes.clone()).slice(begin..));
        assert_eq!(message.as_ptr().align_offset(WORD_BYTES), 0);
        assert_eq!(message, bytes[begin..]);
    }
}

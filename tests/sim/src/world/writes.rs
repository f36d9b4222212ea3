//! Writes of clients. Each is reported to the oracle before it is sent and when it is acked.

use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::decode_context;
use quorate_core::quorum::QuorumSize;
use quorate_core::request::{ClientReply, ClientRequest, EncodedWriteMode, PutReply, PutRequest};
use quorate_core::{CausalContext, Key, Payload, RequestError, RequestId, StorageKey};

use super::options::LAST_WINS;
use super::requests::summary;
use super::sim::Sim;
use crate::oracle::{Ack, ClientWrite};

/// The versions that a client's write replaces.
#[derive(Clone, Debug)]
pub enum WriteMode {
    /// No version: the write is concurrent with all others.
    Concurrent,
    /// The versions in this context.
    Exactly(Bytes),
    /// The versions that the coordinator holds, and those in this context.
    Overwrite(Bytes),
}

/// A client's options for a write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// The client's number.
    pub client: usize,
    /// Acks to wait for.
    pub w: QuorumSize,
    /// True if acks of fallbacks count; `None`: as the bucket defines it.
    pub sloppy: Option<bool>,
    /// Time that the client waits for the reply.
    pub timeout_ms: u64,
    /// Number of earlier attempts of the same write: 0 for the first one.
    pub attempt: u16,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions { client: 0, w: QuorumSize::Default, sloppy: None, timeout_ms: 1_000, attempt: 0 }
    }
}

impl Sim {
    /// Sends one attempt of a write. `None`: no reply arrived in time.
    pub async fn attempt(
        &self,
        via: usize,
        key: &Key,
        payload: Payload,
        mode: &WriteMode,
        request: RequestId,
        options: WriteOptions,
    ) -> Option<Result<PutReply, RequestError>> {
        let WriteOptions { client, w, sloppy, timeout_ms, attempt } = options;
        let stored_key = self.storage_key(key);
        if key.bucket() == LAST_WINS {
            self.oracle.last_write_wins(&stored_key);
        }
        let context = mode.context(key);
        if attempt == 0 {
            let write = ClientWrite {
                key: stored_key.clone(),
                payload: payload.clone(),
                context: context.clone(),
                overwrites: matches!(mode, WriteMode::Overwrite(_)),
                acked: None,
            };
            self.oracle.write_sent(request, write);
        }
        self.log.add(format!("c{client} put {key:?} {request:?} {payload:?} via n{via} attempt {attempt}"));
        let mode = mode.encoded();
        let put = PutRequest { key: key.clone(), payload, mode, request, w, sloppy, attempt };
        let (timeout, since_ms) = (Duration::from_millis(timeout_ms), self.now_ms());
        let reply = self.request(client, via, ClientRequest::Put(put), timeout).await;
        self.log.add(format!("c{client} heard {request:?} {}", summary(&reply)));
        match reply? {
            Ok(ClientReply::Put(reply)) => {
                let ack = self.ack(&stored_key, w, since_ms, &reply);
                let after = decoded_context(key, &reply.context);
                self.oracle.write_acked(request, ack, &after);
                self.oracle.check_context(&stored_key, &after, &context, &[request], "a put's context");
                Some(Ok(reply))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Describes the ack in a reply that the client has just received.
    fn ack(&self, key: &StorageKey, w: QuorumSize, since_ms: u64, reply: &PutReply) -> Ack {
        let n = self.replicas_of(key).len() as u8;
        let w = if w == QuorumSize::Default { self.options.bucket.w } else { w };
        Ack {
            at_ms: self.now_ms(),
            since_ms,
            w: w.of(n).into(),
            nodes: reply.receipt.acked.iter().map(|&id| self.number_of(id)).collect(),
            fallbacks: reply.receipt.fallbacks.iter().map(|&id| self.number_of(id)).collect(),
            dots: Vec::new(),
        }
    }

    /// Writes a value, as client 0 with the default options. Panics if the write is not acked.
    pub async fn put(&self, via: usize, key: &Key, value: &str, mode: WriteMode) -> PutReply {
        let reply = self.try_put(via, key, value, mode, WriteOptions::default()).await;
        reply.expect("the put is acked")
    }

    /// Writes a value. `None`: the write was not acked.
    pub async fn try_put(
        &self,
        via: usize,
        key: &Key,
        value: &str,
        mode: WriteMode,
        options: WriteOptions,
    ) -> Option<PutReply> {
        let request = self.new_request();
        let reply = self.attempt(via, key, value_payload(value), &mode, request, options).await;
        reply.and_then(Result::ok)
    }

    /// Writes a value through a node that may not be ready yet. Sends a new write, with another
    /// request id, while the node does not reply or answers `Unavailable`.
    pub async fn put_when_ready(&self, via: usize, key: &Key, value: &str, mode: WriteMode) -> PutReply {
        self.put_when_ready_with(via, key, value, mode, WriteOptions::default()).await
    }

    /// Writes a value as [`Sim::put_when_ready`] does, with these options.
    pub async fn put_when_ready_with(
        &self,
        via: usize,
        key: &Key,
        value: &str,
        mode: WriteMode,
        options: WriteOptions,
    ) -> PutReply {
        for _ in 0..1_000 {
            let request = self.new_request();
            match self.attempt(via, key, value_payload(value), &mode, request, options).await {
                Some(Ok(reply)) => return reply,
                Some(Err(RequestError::Unavailable { .. })) | None => self.sleep(5).await,
                Some(Err(error)) => panic!("{error}"),
            }
        }
        panic!("n{via} takes no write");
    }

    /// Deletes a key, as client 0 with the default options. Panics if the delete is not acked.
    pub async fn delete(&self, via: usize, key: &Key, mode: WriteMode) -> PutReply {
        let request = self.new_request();
        let options = WriteOptions::default();
        let reply = self.attempt(via, key, Payload::Tombstone, &mode, request, options).await;
        reply.and_then(Result::ok).expect("the delete is acked")
    }
}

impl WriteMode {
    /// Returns the context that the client sends.
    fn context(&self, key: &Key) -> CausalContext {
        match self {
            WriteMode::Concurrent => CausalContext::EMPTY,
            WriteMode::Exactly(context) | WriteMode::Overwrite(context) => decoded_context(key, context),
        }
    }

    fn encoded(&self) -> EncodedWriteMode {
        match self {
            WriteMode::Concurrent => EncodedWriteMode::Exactly { context: Bytes::new() },
            WriteMode::Exactly(context) => EncodedWriteMode::Exactly { context: context.clone() },
            WriteMode::Overwrite(seen) => EncodedWriteMode::Overwrite { seen: seen.clone() },
        }
    }
}

/// Decodes a context of `key`, as clients hold it.
pub(super) fn decoded_context(key: &Key, context: &Bytes) -> CausalContext {
    decode_context(context, key.hash()).expect("a context of this key")
}

fn value_payload(value: &str) -> Payload {
    Payload::Value(Bytes::copy_from_slice(value.as_bytes()))
}

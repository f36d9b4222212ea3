//! Reads of clients. The oracle checks each reply.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::quorum::QuorumSize;
use quorate_core::request::{ClientReply, ClientRequest, GetReply, GetRequest};
use quorate_core::{CausalContext, Key, RequestError, RequestId, StorageKey};

use super::options::REDEFINED;
use super::requests::summary;
use super::sim::Sim;
use super::writes::decoded_context;
use crate::oracle::{QuorumRead, Rule};

/// The values that a read showed, and the context to write with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadValues {
    /// The values of all siblings.
    pub values: BTreeSet<String>,
    /// The reply's context.
    pub context: Bytes,
}

/// A read that was sent, with the writes that its reply must contain.
struct SentRead<'a> {
    key: &'a Key,
    stored_key: StorageKey,
    via: usize,
    since_ms: u64,
    /// The key's replicas in the newest layout.
    replicas: Vec<usize>,
    /// Replies that the read waits for.
    r: usize,
    /// The number of the newest layout.
    layout: u64,
    /// The writes that the reply must contain if the newest layout served the read.
    due: Vec<RequestId>,
    /// The writes that the reply must contain if the read used the default n, which the bucket
    /// [`REDEFINED`] has at first.
    due_before: Vec<RequestId>,
}

impl Sim {
    /// Reads a key. `None`: no reply arrived in time.
    pub async fn read(
        &self,
        client: usize,
        via: usize,
        key: &Key,
        r: QuorumSize,
    ) -> Option<Result<GetReply, RequestError>> {
        let read = self.expected_read(via, key, r);
        let get = ClientRequest::Get(GetRequest { key: key.clone(), r });
        let reply = self.request(client, via, get, Duration::from_secs(1)).await;
        self.log.add(format!("c{client} get {key:?} via n{via}: {}", summary(&reply)));
        match reply? {
            Ok(ClientReply::Get(reply)) => {
                self.check_read(read, &reply);
                Some(Ok(reply))
            }
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }

    /// Describes a read that is sent now, with the writes that its reply must contain.
    fn expected_read<'a>(&self, via: usize, key: &'a Key, r: QuorumSize) -> SentRead<'a> {
        let since_ms = self.now_ms();
        let stored_key = self.storage_key(key);
        let r_of = |replicas: &[usize]| -> usize {
            let r = if r == QuorumSize::Default { self.options.bucket.r } else { r };
            r.of(replicas.len() as u8).into()
        };
        let replicas = self.replicas_of(&stored_key);
        let due = self.oracle.writes_due(&stored_key, since_ms, &replicas, r_of(&replicas));
        // A redefined bucket has two definitions, with a different n. The client does not know
        // which one serves the read.
        let newest = self.layout();
        let before: Vec<usize> = newest
            .replicas_of(stored_key.partition(), u8::MAX)
            .iter()
            .map(|&id| self.number_of(id))
            .collect();
        let due_before = self.oracle.writes_due(&stored_key, since_ms, &before, r_of(&before));
        let r = r_of(&replicas);
        SentRead { key, stored_key, via, since_ms, replicas, r, layout: newest.number(), due, due_before }
    }

    /// Checks the reply of a read.
    fn check_read(&self, read: SentRead<'_>, reply: &GetReply) {
        let SentRead { key, stored_key, via, since_ms, replicas, r, layout, due, due_before } = read;
        let redefined = key.bucket() == REDEFINED && reply.receipt.layout != layout;
        let due = match redefined {
            true => due.into_iter().filter(|request| due_before.contains(request)).collect(),
            false => due,
        };
        let context = decoded_context(key, &reply.context);
        let shown = self.check_siblings(key, &stored_key, reply);
        self.oracle.check_shown(&stored_key, &shown);
        self.oracle.check_context(&stored_key, &context, &CausalContext::EMPTY, &shown, "a read's context");
        if !reply.receipt.fallbacks.is_empty() {
            if reply.context.is_empty() {
                let text = format!(
                    "{key:?}: a read through fallbacks shows absence, which they can't know: {reply:?}"
                );
                self.oracle.report(Rule::ReadsGoForward, text);
            }
            return;
        }
        let quorum_read = QuorumRead { since_ms, at_ms: self.now_ms(), r, replicas: &replicas };
        self.oracle.record_shown(&stored_key, &shown, quorum_read);
        for request in due {
            if !self.oracle.covers(&context, request, &stored_key) {
                let text = format!(
                    "{key:?}: a read begun at {since_ms} ms via n{via} does not know of {request:?}, which was acked before: {reply:?}"
                );
                self.oracle.report(Rule::ReadsGoForward, text);
            }
        }
    }

    /// Returns the writes that a reply shows. Checks that each value was written, and no write is
    /// shown twice.
    fn check_siblings(&self, key: &Key, stored_key: &StorageKey, reply: &GetReply) -> Vec<RequestId> {
        let mut shown = Vec::new();
        for sibling in &reply.siblings {
            match self.oracle.writer_of(stored_key, &sibling.value) {
                Some(request) if shown.contains(&request) => {
                    let text = format!("{key:?}: a read shows {request:?} twice");
                    self.oracle.report(Rule::RetriesAreOne, text);
                }
                Some(request) => shown.push(request),
                None => {
                    let text = format!("{key:?}: a read shows {sibling:?}");
                    self.oracle.report(Rule::NoInventedValue, text);
                }
            }
        }
        shown
    }

    /// Reads the values of a key, as client 0. Repeats the read until it succeeds.
    pub async fn read_values(&self, via: usize, key: &Key) -> ReadValues {
        for _ in 0..1_000 {
            if let Some(Ok(reply)) = self.read(0, via, key, QuorumSize::Default).await {
                let text = |value: &Bytes| String::from_utf8_lossy(value).into_owned();
                let values = reply.siblings.iter().map(|sibling| text(&sibling.value)).collect();
                return ReadValues { values, context: reply.context };
            }
            self.sleep(5).await;
        }
        panic!("n{via} answers no read:\n{}", self.log.take().join("\n"));
    }
}

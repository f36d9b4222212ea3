//! Reads of R replicas. They serve a get, a key with a damaged record in a scan, a retry of a put,
//! and a put whose coordinator recovers. Explain asks single replicas.

use bytes::Bytes;
use quorate_core::codec::{CodecError, decode_object, encode_object};
use quorate_core::event::EventKind;
use quorate_core::planted::{Bug, planted};
use quorate_core::quorum::{ReadQuorum, Step};
use quorate_core::request::{PeerError, PeerReply, PeerRequest, PeerResult};
use quorate_core::{NodeId, Object, RequestError};
use tokio::time::{Duration, Instant};

use super::placement::KeyPlacement;
use crate::gather::Gather;
use crate::node::Node;

/// Minimum wait before a hedge asks one more replica. After a shorter wait, the additional read
/// would cost more than it saves.
const SHORTEST_HEDGE: Duration = Duration::from_millis(5);

/// The result of reading a key from R replicas.
pub(crate) struct Read {
    /// The objects of all replies, merged into one.
    pub(crate) merged: Object,
    /// The merged object, encoded. `None` if no replica holds an object.
    pub(crate) encoded: Option<Bytes>,
    /// The nodes that replied.
    pub(crate) replied: Vec<NodeId>,
    /// The nodes whose reply lacks something that the merged object has.
    pub(crate) stale: Vec<NodeId>,
    /// Replicas whose record is damaged. They did not count towards R.
    pub(crate) damaged: Vec<NodeId>,
}

impl Read {
    /// True if all repliers hold the same object, and each record could be read.
    pub(crate) fn replicas_agree(&self) -> bool {
        self.stale.is_empty() && self.damaged.is_empty()
    }
}

/// Reads `required` replicas and merges their objects.
///
/// If replicas cannot be reached and `sloppy` is true, fallbacks may be asked, but only after all
/// replicas that can be reached. The reply of a fallback that holds a hint counts as a replica's. A
/// fallback without a hint does not count: it cannot know that the key is absent.
///
/// # Errors
/// `Unavailable` if fewer than `required` nodes can be reached. If fewer of them reply,
/// `DeadlineExceeded` or an error that follows from the last failure.
pub(crate) async fn read_replicas(
    node: &Node,
    placement: &KeyPlacement,
    required: u8,
    sloppy: bool,
    deadline: Instant,
) -> Result<Read, RequestError> {
    let begun = Instant::now();
    let mut candidates = placement.live(node);
    if sloppy && (candidates.len() < placement.replicas.len() || candidates.len() < required as usize) {
        candidates.extend(placement.live_fallbacks(node));
    }
    let mut quorum = ReadQuorum::new(required, candidates)
        .map_err(|reachable| RequestError::Unavailable { needed: required, reachable })?;
    let gather = Gather::default();
    for &replica in quorum.first_asked() {
        ask(node, placement, replica, deadline, &gather);
    }
    let mut hedge_at = hedge_time(node, &quorum);
    let mut replies: Vec<Reply> = Vec::with_capacity(required as usize);
    let mut last_failure = None;
    let mut damaged = Vec::new();
    loop {
        let until = hedge_at.unwrap_or(deadline).min(deadline);
        let step = match gather.next(until).await {
            Some((from, Ok(PeerReply::Object(None))))
                if !placement.replicas.contains(&from) && !planted(Bug::FallbackAnswersAbsent) =>
            {
                quorum.failure()
            }
            Some((from, Ok(PeerReply::Object(bytes)))) => match Reply::decode(from, bytes, &replies) {
                Ok(reply) => {
                    replies.push(reply);
                    quorum.reply(from)
                }
                // An unreadable record is not an absent one: another replica must answer instead.
                Err(error) => {
                    let detail = format!(
                        "record {:?} of node {} cannot be read: {error}",
                        placement.key,
                        placement.view.name_of(from)
                    );
                    node.shared.emit(None, EventKind::StorageFailed { detail: detail.clone() });
                    last_failure = Some(PeerError::Storage { detail });
                    // A record in the format of a newer version of this program is not damaged.
                    if placement.replicas.contains(&from) && !matches!(error, CodecError::NewerVersion { .. })
                    {
                        damaged.push(from);
                    }
                    quorum.failure()
                }
            },
            Some((_, Ok(_))) => quorum.failure(),
            Some((_, Err(error))) => {
                last_failure = Some(error);
                quorum.failure()
            }
            None if Instant::now() < deadline => {
                hedge_at = None;
                match quorum.next_candidate() {
                    Some(next) if placement.replicas.contains(&next) => quorum.slow(),
                    _ => Step::Wait,
                }
            }
            None => {
                let after_ms = begun.elapsed().as_millis() as u32;
                return Err(RequestError::DeadlineExceeded {
                    needed: required,
                    received: replies.len() as u8,
                    after_ms,
                });
            }
        };
        match step {
            Step::Ask(replica) => ask(node, placement, replica, deadline, &gather),
            Step::Wait => {}
            Step::Reached => return Ok(Read { damaged, ..merge(node, placement, replies) }),
            Step::Impossible => return Err(too_few(required, replies.len(), last_failure)),
        }
    }
}

/// Sends the read to a replica, or asks a fallback for its hints.
fn ask(node: &Node, placement: &KeyPlacement, replica: NodeId, deadline: Instant, gather: &Gather) {
    let key = placement.key.clone();
    let request = match placement.replicas.contains(&replica) {
        true => PeerRequest::Read { key, layout: placement.view.read.digest() },
        false => PeerRequest::ReadHints(key),
    };
    let timeout = deadline.saturating_duration_since(Instant::now());
    node.send(replica, request, timeout, gather.reply_to(replica));
}

/// Returns the time of the hedge: by then, even the slowest of the replicas that are asked first
/// usually replies. `None` if no usual latency is known, or if only this node is asked.
fn hedge_time(node: &Node, quorum: &ReadQuorum) -> Option<Instant> {
    let others = quorum.first_asked().iter().filter(|&&replica| replica != node.shared.node());
    let usual = others.map(|&replica| node.transport.usual_latency(replica)).max()??;
    Some(Instant::now() + usual.max(SHORTEST_HEDGE))
}

/// Returns the error of a read that too few replicas answered. `last`: the error of the node that
/// failed last.
fn too_few(required: u8, received: usize, last: Option<PeerError>) -> RequestError {
    match last {
        Some(PeerError::Storage { detail }) => RequestError::StorageFailed { detail },
        Some(PeerError::Overloaded { what, limit }) => RequestError::Overloaded { what, limit },
        _ => RequestError::Unavailable { needed: required, reachable: received as u8 },
    }
}

/// One replica's answer.
struct Reply {
    from: NodeId,
    /// The encoded object. `None` if the replica holds none.
    bytes: Option<Bytes>,
    /// The decoded object. `None` if `bytes` equal those of the first reply. Mostly all replies are
    /// equal, so only the first is decoded.
    object: Option<Object>,
}

impl Reply {
    fn decode(from: NodeId, bytes: Option<Bytes>, others: &[Reply]) -> Result<Reply, CodecError> {
        let object = match (&bytes, others.first()) {
            (same, Some(first)) if *same == first.bytes => None,
            (Some(bytes), _) => Some(decode_object(bytes)?.object),
            (None, _) => Some(Object::default()),
        };
        Ok(Reply { from, bytes, object })
    }
}

/// Merges the replies, and finds the nodes whose reply lacks something that the merged object has.
fn merge(node: &Node, placement: &KeyPlacement, mut replies: Vec<Reply>) -> Read {
    let replied: Vec<NodeId> = replies.iter().map(|reply| reply.from).collect();
    let first = replies[0].object.take().unwrap_or_default();
    if replies.iter().all(|reply| reply.object.is_none()) {
        let (encoded, stale) = (replies[0].bytes.take(), Vec::new());
        return Read { merged: first, encoded, replied, stale, damaged: Vec::new() };
    }
    let rule = node.shared.merge_rule(placement.key.bucket());
    let mut merged = first.clone();
    for object in replies.iter().filter_map(|reply| reply.object.as_ref()) {
        merged.merge(object, rule);
    }
    let digest = merged.digest();
    let is_stale = |reply: &&Reply| reply.object.as_ref().unwrap_or(&first).digest() != digest;
    let stale = replies.iter().filter(is_stale).map(|reply| reply.from).collect();
    let encoded = encode_object(&merged, placement.long_key.as_deref());
    Read { merged, encoded: Some(encoded), replied, stale, damaged: Vec::new() }
}

/// Sends a read that is not part of a quorum to one replica, for explain.
pub(crate) fn ask_one(
    node: &Node,
    placement: &KeyPlacement,
    replica: NodeId,
    deadline: Instant,
    gather: &Gather,
) {
    ask(node, placement, replica, deadline, gather);
}

/// Decodes one replica's answer.
///
/// # Errors
/// The reason why the answer contains no object. The report of explain shows this reason.
pub(crate) fn object_of(answer: PeerResult) -> Result<Option<Object>, String> {
    match answer {
        Ok(PeerReply::Object(None)) => Ok(None),
        Ok(PeerReply::Object(Some(bytes))) => {
            decode_object(&bytes).map(|record| Some(record.object)).map_err(|error| error.to_string())
        }
        Ok(_) => Err("the peer's answer does not fit the request".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

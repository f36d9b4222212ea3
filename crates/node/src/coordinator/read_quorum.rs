//! Asking R replicas for an object: what get, delete, a retry and explain begin with.

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

/// No hedge is sent earlier than this: below it, a second read costs more than it saves.
const SHORTEST_HEDGE: Duration = Duration::from_millis(5);

/// What R replicas hold of a key.
pub(crate) struct Read {
    /// The join of all replies.
    pub(crate) merged: Object,
    /// The merged object, encoded; `None` if no replica holds any.
    pub(crate) encoded: Option<Bytes>,
    /// Who replied.
    pub(crate) replied: Vec<NodeId>,
    /// Those of them that hold less than the merged object.
    pub(crate) stale: Vec<NodeId>,
    /// Replicas whose record can't be read: they did not count.
    pub(crate) damaged: Vec<NodeId>,
}

/// Reads `required` replicas and merges what they hold. `sloppy`: where replicas can't be reached, a fallback that holds a hint
/// counts; one that holds none knows nothing, least of all that the key is absent.
///
/// # Errors
/// `Unavailable` if too few are live, `DeadlineExceeded` or `StorageFailed` if too few answered.
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
                // An unreadable record is not an absent one: another replica has to say.
                Err(error) => {
                    let detail =
                        format!("record {:?} of {}: {error}", placement.key, placement.view.name_of(from));
                    node.shared.emit(None, EventKind::StorageFailed { detail: detail.clone() });
                    last_failure = Some(PeerError::Storage { detail });
                    // What only a newer build can read is not damaged.
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

fn ask(node: &Node, placement: &KeyPlacement, replica: NodeId, deadline: Instant, gather: &Gather) {
    let key = placement.key.clone();
    let request = match placement.replicas.contains(&replica) {
        true => PeerRequest::Read { key, layout: placement.view.read.digest() },
        false => PeerRequest::ReadHints(key),
    };
    let timeout = deadline.saturating_duration_since(Instant::now());
    node.send(replica, request, timeout, gather.reply_to(replica));
}

/// When the slowest of those asked is later than usual.
fn hedge_time(node: &Node, quorum: &ReadQuorum) -> Option<Instant> {
    let others = quorum.first_asked().iter().filter(|&&replica| replica != node.shared.node());
    let usual = others.map(|&replica| node.transport.usual_latency(replica)).max()??;
    Some(Instant::now() + usual.max(SHORTEST_HEDGE))
}

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
    bytes: Option<Bytes>,
    /// `None`: the same as the first reply's, the usual case, which is decoded once.
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

/// Joins the replies.
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

/// One replica's answer to a read that is not part of a quorum (explain).
pub(crate) fn ask_one(
    node: &Node,
    placement: &KeyPlacement,
    replica: NodeId,
    deadline: Instant,
    gather: &Gather,
) {
    ask(node, placement, replica, deadline, gather);
}

/// The object of one replica's answer.
pub(crate) fn object_of(answer: PeerResult) -> Result<Option<Object>, String> {
    match answer {
        Ok(PeerReply::Object(None)) => Ok(None),
        Ok(PeerReply::Object(Some(bytes))) => {
            decode_object(&bytes).map(|record| Some(record.object)).map_err(|error| error.to_string())
        }
        Ok(_) => Err("unexpected answer".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

//! Explain: reports the placement of a key, and the object that each of its replicas holds.

use std::rc::Rc;

use quorate_core::report::{Explanation, ReplicaState, VersionSummary};
use quorate_core::request::{PeerReply, PeerRequest};
use quorate_core::{Key, NodeId, Object, Payload, RequestError};
use tokio::time::Instant;

use super::placement::KeyPlacement;
use super::read_quorum::{ask_one, object_of};
use crate::gather::Gather;
use crate::node::Node;

/// Reports where a key lies: its partition, its replicas, and the versions that each replica holds.
///
/// # Errors
/// If the key's bucket is being created, or the bucket's r or w exceeds the number of replicas.
pub(crate) async fn explain(
    node: &Rc<Node>,
    key: Key,
    deadline: Instant,
) -> Result<Explanation, RequestError> {
    let placement = KeyPlacement::of(node, &key)?;
    let layout = placement.view.read.clone();
    let definition = &placement.bucket.definition;
    let gather = Gather::default();
    for &replica in &placement.replicas {
        ask_one(node, &placement, replica, deadline, &gather);
    }
    let mut holdings: Vec<ReplicaState> =
        placement.replicas.iter().map(|&replica| unknown(layout.name_of(replica))).collect();
    for _ in &placement.replicas {
        let Some((from, answer)) = gather.next(deadline).await else {
            break;
        };
        if let Some(at) = placement.replicas.iter().position(|&replica| replica == from) {
            holdings[at] = describe(layout.name_of(from), object_of(answer));
        }
    }
    let hints = hint_holders(node, &placement, deadline).await;
    let agree =
        holdings.iter().all(|h| (h.state == "held" || h.state == "absent") && h.digest == holdings[0].digest);
    let names = |nodes: &[NodeId]| nodes.iter().map(|&node| layout.name_of(node)).collect();
    Ok(Explanation {
        bucket: key.bucket().to_owned(),
        key: match std::str::from_utf8(key.bytes()) {
            Ok(text) => text.to_owned(),
            Err(_) => key.bytes().escape_ascii().to_string(),
        },
        partition: placement.partition().0,
        layout: layout.number(),
        n: placement.n(),
        r: placement.bucket.required(Default::default(), definition.r, "r", placement.n())?,
        w: placement.bucket.required(Default::default(), definition.w, "w", placement.n())?,
        replicas: names(&placement.replicas),
        fallbacks: names(&layout.fallbacks_of(placement.partition(), placement.bucket.n)),
        holdings,
        agree,
        hints,
    })
}

/// Asks all participants that can be reached for hints for the key. Returns the sorted names of the
/// nodes that keep one.
async fn hint_holders(node: &Rc<Node>, placement: &KeyPlacement, deadline: Instant) -> Vec<String> {
    let gather = Gather::default();
    let participants = placement.view.participants.iter().copied();
    let live: Vec<NodeId> = participants.filter(|&id| node.is_live(id)).collect();
    for &id in &live {
        let timeout = deadline.saturating_duration_since(Instant::now());
        let request = PeerRequest::ReadHints(placement.key.clone());
        node.send(id, request, timeout, gather.reply_to(id));
    }
    let mut hints = Vec::new();
    for _ in &live {
        match gather.next(deadline).await {
            Some((from, Ok(PeerReply::Object(Some(_))))) => hints.push(placement.view.name_of(from)),
            Some(_) => {}
            None => break,
        }
    }
    hints.sort();
    hints
}

/// Returns the state that is shown for a replica unless it answers in time.
fn unknown(node: String) -> ReplicaState {
    ReplicaState { node, state: "no answer in time".to_owned(), digest: None, versions: Vec::new() }
}

/// Returns the state of a replica that answered.
fn describe(node: String, answer: Result<Option<Object>, String>) -> ReplicaState {
    match answer {
        Err(reason) => ReplicaState { node, state: reason, digest: None, versions: Vec::new() },
        Ok(None) => ReplicaState { node, state: "absent".to_owned(), digest: None, versions: Vec::new() },
        Ok(Some(object)) => ReplicaState {
            node,
            state: "held".to_owned(),
            digest: Some(format!("{:016x}", object.digest().0)),
            versions: object
                .live()
                .iter()
                .map(|version| VersionSummary {
                    dot: format!("{:?}@{:?}", version.dot.actor, version.dot.stamp),
                    value_bytes: match &version.payload {
                        Payload::Value(value) => Some(value.len() as u64),
                        Payload::Tombstone => None,
                    },
                    written_ms: version.dot.stamp.wall_ms(),
                })
                .collect(),
        },
    }
}

//! One look at a peer: compare hash trees of what both hold, then leaves, then keys, and exchange what differs by merging.
//!
//! What a recovering replica and what anti-entropy do is this; they differ in when, and in what they conclude.
//!
//! Source: Dynamo §4.7.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::key::StorageKey;
use quorate_core::layout_change::View;
use quorate_core::request::{
    DigestPage, DigestsOf, Likeness, MAX_KEYS_ASKED, PeerError, PeerReply, PeerRequest, PeerResult,
    PeerWrite, TreeName, TreeRoot, WritePurpose,
};
use quorate_core::{Digest, NodeId, PartitionId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::merkle_answers::digest_page;
use crate::gather::Gather;
use crate::node::Node;
use crate::state::shared::Shared;

/// How long a peer may take for one question.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Trees compared side by side.
const TREES_TOGETHER: usize = 16;
/// Keys exchanged together, and side by side by all trees: each may be a large object.
const KEYS_TOGETHER: usize = 16;
const KEYS_UNDER_WAY: usize = 128;

/// What a look at a peer came to.
#[derive(Default)]
pub(crate) struct Synced {
    /// Partitions of which the peer may have forgotten something, too.
    pub(crate) recovering: BTreeSet<PartitionId>,
    /// Partitions that could not be compared, or not wholly exchanged: a tree is still being built, or a record can't be
    /// read or written.
    pub(crate) unknown: BTreeSet<PartitionId>,
    /// Keys that differed.
    pub(crate) keys: u64,
}

/// Which way objects go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// Both: afterwards both hold the same.
    Both,
    /// From here to the peer only: it keeps the partition up, and this node does so no more.
    Push,
    /// From the peer to here only: whatever it holds by any active layout.
    Pull,
}

/// Makes this node and `peer` hold the same of these partitions, as far as both are replicas of them, or the one what the
/// other holds: durably, and as of when it began.
///
/// # Errors
/// The first thing that failed; what was exchanged by then stays.
pub(crate) async fn sync(
    node: &Rc<Node>,
    peer: NodeId,
    partitions: &[PartitionId],
    direction: Direction,
    keys_per_second: u64,
) -> Result<Synced, PeerError> {
    let shared = &node.shared;
    let mut synced = Synced::default();
    let mut roots = Vec::new();
    let view = shared.view();
    for &partition in partitions {
        for tree in trees_shared_with(shared, &view, peer, partition, direction) {
            match shared.trees.root(tree) {
                Some(root) => roots.push(TreeRoot { tree, root }),
                None => {
                    synced.unknown.insert(partition);
                }
            }
        }
    }
    // A round may take long, and is no request that a change of layout has to wait for.
    drop(view);
    let places = Semaphore::new(KEYS_UNDER_WAY);
    let pace = Pace { begun: Instant::now(), keys_per_second: keys_per_second.max(1) };
    for chunk in roots.chunks(MAX_KEYS_ASKED) {
        let PeerReply::Trees(states) = node.ask(peer, PeerRequest::Roots(chunk.to_vec())).await? else {
            return Err(unexpected());
        };
        let mut differing = Vec::new();
        for (TreeRoot { tree, .. }, state) in chunk.iter().zip(states) {
            if state.recovering {
                synced.recovering.insert(tree.partition);
            }
            match state.likeness {
                Likeness::Same => {}
                Likeness::Differs => differing.push(*tree),
                Likeness::Unknown => {
                    synced.unknown.insert(tree.partition);
                }
            }
        }
        for trees in differing.chunks(TREES_TOGETHER) {
            let exchanges = trees.iter().map(|&tree| exchange_tree(node, peer, tree, direction, &places));
            for (tree, exchanged) in trees.iter().zip(futures::future::join_all(exchanges).await) {
                let Exchanged { keys, whole } = exchanged?;
                synced.keys += keys;
                if !whole {
                    synced.unknown.insert(tree.partition);
                }
            }
            pace.keep(synced.keys).await;
        }
    }
    Ok(synced)
}

/// Holds a round back so that it exchanges no more keys a second than allowed.
struct Pace {
    begun: Instant,
    keys_per_second: u64,
}

impl Pace {
    async fn keep(&self, keys: u64) {
        let due = self.begun + Duration::from_millis(keys * 1_000 / self.keys_per_second);
        tokio::time::sleep_until(due).await;
    }
}

fn unexpected() -> PeerError {
    PeerError::Refused { detail: "unexpected answer".into() }
}

/// What the exchange of one tree came to.
struct Exchanged {
    /// Keys that differed.
    keys: u64,
    /// False if one of them could not be read or written: the others were exchanged all the same.
    whole: bool,
}

/// Exchanges what differs under the differing leaves of one tree.
async fn exchange_tree(
    node: &Rc<Node>,
    peer: NodeId,
    tree: TreeName,
    direction: Direction,
    places: &Semaphore,
) -> Result<Exchanged, PeerError> {
    let PeerReply::Leaves(theirs) = node.ask(peer, PeerRequest::Leaves(tree)).await? else {
        return Err(unexpected());
    };
    let Some(ours) = node.shared.trees.tree(tree) else { return Ok(Exchanged { keys: 0, whole: false }) };
    let leaves = ours.differing(&theirs);
    let (mut keys, mut whole) = (0, true);
    let mut after = Bytes::new();
    if leaves == 0 {
        return Ok(Exchanged { keys, whole });
    }
    loop {
        let wanted = DigestsOf { tree, leaves, after: after.clone() };
        let PeerReply::Digests(theirs) = node.ask(peer, PeerRequest::Digests(wanted)).await? else {
            return Err(unexpected());
        };
        if !theirs.next.is_empty() && theirs.next <= after {
            return Err(unexpected());
        }
        let ours = digests_up_to(node, tree, leaves, after, &theirs.next).await?;
        let differing = differing_keys(tree, &ours, &theirs);
        keys += differing.len() as u64;
        for chunk in differing.chunks(KEYS_TOGETHER) {
            let _places = places.acquire_many(chunk.len() as u32).await;
            whole &= exchange_keys(node, peer, chunk, direction).await?;
        }
        after = theirs.next;
        if after.is_empty() {
            break;
        }
    }
    Ok(Exchanged { keys, whole })
}

/// A key that differs, and who has something of it.
struct Differing {
    key: StorageKey,
    here: bool,
    there: bool,
}

fn differing_keys(tree: TreeName, ours: &BTreeMap<Bytes, Digest>, theirs: &DigestPage) -> Vec<Differing> {
    let theirs: BTreeMap<&Bytes, Digest> =
        theirs.entries.iter().map(|(key, digest)| (key, *digest)).collect();
    let all: BTreeSet<&Bytes> = ours.keys().chain(theirs.keys().copied()).collect();
    let differs = |key: &&Bytes| ours.get(*key) != theirs.get(*key);
    all.into_iter()
        .filter(differs)
        .filter_map(|key| {
            let named = StorageKey::from_peer(key).filter(|named| named.partition() == tree.partition)?;
            Some(Differing { key: named, here: ours.contains_key(key), there: theirs.contains_key(key) })
        })
        .collect()
}

/// False if one of the keys can't be read or written: no reason to leave the others.
async fn exchange_keys(
    node: &Rc<Node>,
    peer: NodeId,
    differing: &[Differing],
    direction: Direction,
) -> Result<bool, PeerError> {
    let deadline = Instant::now() + TIMEOUT;
    // Before anything is read: what is read is void a message's life after that.
    let valid_until_ms = node.shared.valid_until_ms(TIMEOUT);
    let write = |key: &StorageKey, object: Bytes| PeerWrite {
        key: key.clone(),
        object,
        purpose: WritePurpose::HandOff,
        valid_until_ms,
        layout: 0,
    };
    let (fetched, acked) = (Gather::default(), Gather::default());
    let (mut fetches, mut acks) = (0, 0);
    let mut whole = true;
    for (at, one) in differing.iter().enumerate() {
        if one.there && direction != Direction::Push {
            // The number of the reply is the key's position.
            let reply = fetched.reply_to(NodeId(at as u64));
            node.send(peer, PeerRequest::Fetch(one.key.clone()), TIMEOUT, reply);
            fetches += 1;
        }
        if one.here && direction != Direction::Pull {
            match node.shared.engine.get(&one.key) {
                Ok(Some(object)) => {
                    node.send(
                        peer,
                        PeerRequest::Write(write(&one.key, object)),
                        TIMEOUT,
                        acked.reply_to(peer),
                    );
                    acks += 1;
                }
                Ok(None) => {}
                Err(_) => whole = false,
            }
        }
    }
    for _ in 0..fetches {
        let (NodeId(at), answer) = fetched.next(deadline).await.ok_or(PeerError::Expired)?;
        match of_one_key(answer)? {
            Some(PeerReply::Object(Some(object))) => {
                let key = &differing[at as usize].key;
                let write = PeerRequest::Write(write(key, object));
                node.send(node.shared.node(), write, TIMEOUT, acked.reply_to(peer));
                acks += 1;
            }
            Some(_) => {}
            None => whole = false,
        }
    }
    for _ in 0..acks {
        let (_, answer) = acked.next(deadline).await.ok_or(PeerError::Expired)?;
        whole &= of_one_key(answer)?.is_some();
    }
    Ok(whole)
}

/// The answer, or `None` if it is an error of one key; the error if it is one of the peer.
fn of_one_key(answer: PeerResult) -> Result<Option<PeerReply>, PeerError> {
    match answer {
        Ok(reply) => Ok(Some(reply)),
        Err(
            PeerError::Storage { .. }
            | PeerError::Refused { .. }
            | PeerError::Recovering
            | PeerError::StaleLayout
            | PeerError::Overloaded { .. },
        ) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All of this node's keys under some leaves, after one key and up to another, included; empty: to the end.
async fn digests_up_to(
    node: &Node,
    tree: TreeName,
    leaves: u64,
    mut after: Bytes,
    until: &Bytes,
) -> Result<BTreeMap<Bytes, Digest>, PeerError> {
    let mut found = BTreeMap::new();
    loop {
        let page =
            node.replica.scans.run(|| digest_page(&node.shared, &DigestsOf { tree, leaves, after })).await?;
        let last = page.next.is_empty() || (!until.is_empty() && page.next >= *until);
        let within = |key: &Bytes| until.is_empty() || key <= until;
        found.extend(page.entries.into_iter().filter(|(key, _)| within(key)));
        if last {
            return Ok(found);
        }
        after = page.next;
    }
}

/// The trees of a partition whose keys go this way between two nodes: whoever takes is a replica by a layout that is kept
/// up, whoever gives by some active one; and both are by the one that is read where keys go both ways.
fn trees_shared_with(
    shared: &Shared,
    view: &View,
    peer: NodeId,
    partition: PartitionId,
    direction: Direction,
) -> Vec<TreeName> {
    let both = |n: &u8| {
        let gives =
            |node: NodeId| view.active.iter().any(|layout| layout.replicas_of(partition, *n).contains(&node));
        let takes = |node: NodeId| view.keeps(node, partition, *n);
        let reads = |node: NodeId| view.read.replicas_of(partition, *n).contains(&node);
        match direction {
            Direction::Pull => takes(shared.node()) && gives(peer),
            Direction::Push => gives(shared.node()) && takes(peer),
            // What moves is copied, and at the rate that was set for it.
            Direction::Both => reads(shared.node()) && reads(peer),
        }
    };
    shared.sizes().into_iter().filter(both).map(|n| TreeName { partition, n }).collect()
}

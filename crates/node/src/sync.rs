//! One look at a peer: compare hash trees of what both hold, then leaves, then keys, and exchange what differs by merging.
//!
//! What a recovering replica and what anti-entropy do is this; they differ in when, and in what they conclude.
//!
//! Source: Dynamo §4.7.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::key::{StorageKey, end_of_prefix};
use quorate_core::request::{
    DigestPage, DigestsOf, Likeness, MAX_KEYS_ASKED, PeerError, PeerReply, PeerRequest, PeerResult,
    PeerWrite, TreeName, TreeRoot, WritePurpose,
};
use quorate_core::storage::{Range, StorageError};
use quorate_core::tree::leaf_of;
use quorate_core::{Digest, NodeId, PartitionId};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::gather::Gather;
use crate::node::Node;
use crate::shared::Shared;
use crate::trees::describe;
use crate::turns::cost_of;

/// How long a peer may take for one question.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Records that one page of digests looks at.
const PAGE_RECORDS: usize = 256;
const PAGE_BYTES: usize = 128 * 1024;
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
pub(crate) enum Way {
    /// Both: afterwards both hold the same.
    Both,
    /// From here to the peer only: it keeps the partition up, and this node does so no more.
    There,
    /// From the peer to here only: whatever it holds by any active layout.
    Here,
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
    way: Way,
    keys_per_second: u64,
) -> Result<Synced, PeerError> {
    let shared = &node.shared;
    let mut synced = Synced::default();
    let mut roots = Vec::new();
    let view = shared.view();
    for &partition in partitions {
        for tree in shared.trees_shared_with(&view, peer, partition, way) {
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
        let PeerReply::Trees(states) = ask(node, peer, PeerRequest::Roots(chunk.to_vec())).await? else {
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
            let exchanges = trees.iter().map(|&tree| exchange_tree(node, peer, tree, way, &places));
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

/// Asks a peer one thing.
pub(crate) async fn ask(node: &Node, peer: NodeId, request: PeerRequest) -> PeerResult {
    let gather = Gather::default();
    node.transport.send(peer, request, TIMEOUT, gather.slot(peer));
    match gather.next(Instant::now() + TIMEOUT).await {
        Some((_, answer)) => answer,
        None => Err(PeerError::Expired),
    }
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
    way: Way,
    places: &Semaphore,
) -> Result<Exchanged, PeerError> {
    let PeerReply::Leaves(theirs) = ask(node, peer, PeerRequest::Leaves(tree)).await? else {
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
        let PeerReply::Digests(theirs) = ask(node, peer, PeerRequest::Digests(wanted)).await? else {
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
            whole &= exchange_keys(node, peer, chunk, way).await?;
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
    way: Way,
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
        if one.there && way != Way::There {
            let slot = fetched.slot(NodeId(at as u64));
            node.transport.send(peer, PeerRequest::Fetch(one.key.clone()), TIMEOUT, slot);
            fetches += 1;
        }
        if one.here && way != Way::Here {
            match node.shared.engine.get(&one.key) {
                Ok(Some(object)) => {
                    node.send_write(peer, write(&one.key, object), TIMEOUT, acked.slot(peer));
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
                node.send_write(node.shared.node(), write(key, object), TIMEOUT, acked.slot(peer));
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

fn storage_failed(error: StorageError) -> PeerError {
    PeerError::Storage { detail: error.to_string() }
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
        let page = node.turns.look(|| digest_page(&node.shared, &DigestsOf { tree, leaves, after })).await?;
        let last = page.next.is_empty() || (!until.is_empty() && page.next >= *until);
        let within = |key: &Bytes| until.is_empty() || key <= until;
        found.extend(page.entries.into_iter().filter(|(key, _)| within(key)));
        if last {
            return Ok(found);
        }
        after = page.next;
    }
}

/// A page of keys and digests of this node, and what it cost.
pub(crate) fn digest_page(shared: &Shared, wanted: &DigestsOf) -> (Result<DigestPage, PeerError>, usize) {
    let mut cost = 0;
    (read_digests(shared, wanted, &mut cost), cost)
}

fn read_digests(shared: &Shared, wanted: &DigestsOf, cost: &mut usize) -> Result<DigestPage, PeerError> {
    let begin = StorageKey::partition_start(wanted.tree.partition);
    if !wanted.after.is_empty() && !wanted.after.starts_with(&begin) {
        return Err(PeerError::Refused { detail: "digests of one partition at a time".into() });
    }
    let end = end_of_prefix(&begin);
    let after = !wanted.after.is_empty();
    let range = Range {
        start: if after { &wanted.after } else { &begin },
        after,
        end: end.as_deref(),
        limit: PAGE_RECORDS,
        max_bytes: PAGE_BYTES,
    };
    let page = shared.engine.scan(range).map_err(storage_failed)?;
    *cost = cost_of(&page.records);
    let mut entries = Vec::new();
    for (key, object) in &page.records {
        if wanted.leaves & (1 << leaf_of(key)) == 0 {
            continue;
        }
        let Some((named, held)) = describe(shared, key, object) else { continue };
        let n = shared.n_of(named.bucket());
        if n == wanted.tree.n && !shared.was_reaped(&named, held.digest) {
            entries.push((key.clone(), held.digest));
        }
    }
    let next = match page.records.last() {
        Some((last, _)) if page.more => last.clone(),
        _ => Bytes::new(),
    };
    Ok(DigestPage { entries, next })
}

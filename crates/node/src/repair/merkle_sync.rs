//! Synchronization with one peer. It compares the roots of hash trees, then leaves, then keys, and
//! merges the objects that differ.
//!
//! Anti-entropy, recovery, transfer and range handoff all use this module. They differ in the
//! direction in which objects are sent, and in what they conclude from the outcome.
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

/// Timeout of the exchange of some keys with the peer. When it passes, the whole synchronization
/// ends with an error.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Trees that are compared at the same time.
const TREES_TOGETHER: usize = 16;
/// Keys of one tree that are exchanged together. They are few, because each may have a large
/// object.
const KEYS_TOGETHER: usize = 16;
/// Largest number of keys, over all trees, that are exchanged at the same time.
const KEYS_IN_FLIGHT: usize = 128;

/// The outcome of a synchronization with a peer.
#[derive(Default)]
pub(crate) struct SyncOutcome {
    /// Partitions of which the peer itself may have forgotten records.
    pub(crate) recovering: BTreeSet<PartitionId>,
    /// Partitions that could not be compared or exchanged completely. A tree is still being built,
    /// the peer does not hold the partition, or a record cannot be read or written.
    pub(crate) unknown: BTreeSet<PartitionId>,
    /// Number of keys whose objects differed on the two nodes.
    pub(crate) keys: u64,
}

/// The direction in which objects are sent. Each variant names what the two nodes must be for a
/// tree's partition and n. The synchronization skips the trees for which they are not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From each node to the other. Both must be replicas in the layout that reads use.
    Both,
    /// From this node to the peer only. The peer must be a replica in a layout that requests use.
    /// This node must be a replica in some active layout.
    Push,
    /// From the peer to this node only. This node must be a replica in a layout that requests use.
    /// The peer must be a replica in some active layout.
    Pull,
}

/// Merges the objects of these partitions from this node to `peer`, from `peer` to this node, or
/// both, as `direction` says. Afterwards the receiver durably holds everything that the sender held
/// at the start, except in the partitions of [`SyncOutcome::unknown`].
///
/// # Errors
/// The first error of the peer. Objects that were exchanged before the error stay merged.
pub(crate) async fn sync(
    node: &Rc<Node>,
    peer: NodeId,
    partitions: &[PartitionId],
    direction: Direction,
    keys_per_second: u64,
) -> Result<SyncOutcome, PeerError> {
    let shared = &node.shared;
    let mut synced = SyncOutcome::default();
    let mut roots = Vec::new();
    let view = shared.view();
    for &partition in partitions {
        for tree in trees_to_compare(shared, &view, peer, partition, direction) {
            match shared.trees.root(tree) {
                Some(root) => roots.push(TreeRoot { tree, root }),
                None => {
                    synced.unknown.insert(partition);
                }
            }
        }
    }
    // Drop the view now. A layout change waits for all tasks that hold an older view, and the
    // synchronization may take long.
    drop(view);
    let permits = Semaphore::new(KEYS_IN_FLIGHT);
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
            let exchanges = trees.iter().map(|&tree| exchange_tree(node, peer, tree, direction, &permits));
            for (tree, exchanged) in trees.iter().zip(futures::future::join_all(exchanges).await) {
                let TreeExchange { keys, complete } = exchanged?;
                synced.keys += keys;
                if !complete {
                    synced.unknown.insert(tree.partition);
                }
            }
            pace.keep(synced.keys).await;
        }
    }
    Ok(synced)
}

/// The limit of a round, in keys per second.
struct Pace {
    begun: Instant,
    keys_per_second: u64,
}

impl Pace {
    /// Waits until the limit allows `keys` exchanged keys since the round began.
    async fn keep(&self, keys: u64) {
        let due = self.begun + Duration::from_millis(keys * 1_000 / self.keys_per_second);
        tokio::time::sleep_until(due).await;
    }
}

fn unexpected() -> PeerError {
    PeerError::Refused { detail: "the peer's answer does not fit the request".into() }
}

/// The outcome of the exchange of one tree.
struct TreeExchange {
    /// Number of keys whose objects differed on the two nodes.
    keys: u64,
    /// False if this node's tree is being built: no key was exchanged. Also false if an object
    /// could not be read or written: the other keys were exchanged all the same.
    complete: bool,
}

/// Compares one tree with the peer's tree, and exchanges the keys whose objects differ.
async fn exchange_tree(
    node: &Rc<Node>,
    peer: NodeId,
    tree: TreeName,
    direction: Direction,
    permits: &Semaphore,
) -> Result<TreeExchange, PeerError> {
    let PeerReply::Leaves(theirs) = node.ask(peer, PeerRequest::Leaves(tree)).await? else {
        return Err(unexpected());
    };
    let Some(ours) = node.shared.trees.tree(tree) else {
        return Ok(TreeExchange { keys: 0, complete: false });
    };
    let leaves = ours.differing(&theirs);
    let (mut keys, mut complete) = (0, true);
    let mut after = Bytes::new();
    if leaves == 0 {
        return Ok(TreeExchange { keys, complete });
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
            let _permits = permits.acquire_many(chunk.len() as u32).await;
            complete &= exchange_keys(node, peer, chunk, direction).await?;
        }
        after = theirs.next;
        if after.is_empty() {
            break;
        }
    }
    Ok(TreeExchange { keys, complete })
}

/// A key whose objects differ, and the nodes that hold an object of it.
struct DifferingKey {
    key: StorageKey,
    held_here: bool,
    held_by_peer: bool,
}

/// Returns the keys whose digests differ. Ignores keys of other partitions that the peer sent.
fn differing_keys(tree: TreeName, ours: &BTreeMap<Bytes, Digest>, theirs: &DigestPage) -> Vec<DifferingKey> {
    let theirs: BTreeMap<&Bytes, Digest> =
        theirs.entries.iter().map(|(key, digest)| (key, *digest)).collect();
    let all: BTreeSet<&Bytes> = ours.keys().chain(theirs.keys().copied()).collect();
    let differs = |key: &&Bytes| ours.get(*key) != theirs.get(*key);
    all.into_iter()
        .filter(differs)
        .filter_map(|key| {
            let named = StorageKey::from_peer(key).filter(|named| named.partition() == tree.partition)?;
            Some(DifferingKey {
                key: named,
                held_here: ours.contains_key(key),
                held_by_peer: theirs.contains_key(key),
            })
        })
        .collect()
}

/// Exchanges the objects of some keys. Returns false if one of the objects could not be read or
/// written. The other objects were exchanged all the same.
async fn exchange_keys(
    node: &Rc<Node>,
    peer: NodeId,
    differing: &[DifferingKey],
    direction: Direction,
) -> Result<bool, PeerError> {
    let deadline = Instant::now() + TIMEOUT;
    // The peer refuses the objects after this time, because tombstones that they lack may have been
    // collected. The time is computed before the objects are read. Computed later, it would let the
    // peer accept an object for too long.
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
    let mut complete = true;
    for (at, one) in differing.iter().enumerate() {
        if one.held_by_peer && direction != Direction::Push {
            // In place of a node's id, the reply carries the key's position in `differing`.
            let reply = fetched.reply_to(NodeId(at as u64));
            node.send(peer, PeerRequest::Fetch(one.key.clone()), TIMEOUT, reply);
            fetches += 1;
        }
        if one.held_here && direction != Direction::Pull {
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
                Err(_) => complete = false,
            }
        }
    }
    for _ in 0..fetches {
        let (NodeId(at), answer) = fetched.next(deadline).await.ok_or(PeerError::Expired)?;
        match reply_for_key(answer)? {
            Some(PeerReply::Object(Some(object))) => {
                let key = &differing[at as usize].key;
                let write = PeerRequest::Write(write(key, object));
                node.send(node.shared.node(), write, TIMEOUT, acked.reply_to(peer));
                acks += 1;
            }
            Some(_) => {}
            None => complete = false,
        }
    }
    for _ in 0..acks {
        let (_, answer) = acked.next(deadline).await.ok_or(PeerError::Expired)?;
        complete &= reply_for_key(answer)?.is_some();
    }
    Ok(complete)
}

/// Returns the reply. `None` if the answer is an error that concerns only one key.
///
/// # Errors
/// An error that concerns the whole peer.
fn reply_for_key(answer: PeerResult) -> Result<Option<PeerReply>, PeerError> {
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

/// Reads this node's digests of the keys under some leaves, from `after` (excluded) to `until`
/// (included). If `until` is empty, reads to the end of the partition.
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

/// Returns the trees of a partition that this node and the peer compare. A receiver of objects must
/// be a replica in a layout that requests use. A sender must be a replica in some active layout.
/// For [`Direction::Both`], both nodes must be replicas in the layout that reads use.
fn trees_to_compare(
    shared: &Shared,
    view: &View,
    peer: NodeId,
    partition: PartitionId,
    direction: Direction,
) -> Vec<TreeName> {
    let must_compare = |n: &u8| {
        let may_send =
            |node: NodeId| view.active.iter().any(|layout| layout.replicas_of(partition, *n).contains(&node));
        let may_receive = |node: NodeId| view.keeps(node, partition, *n);
        let is_read = |node: NodeId| view.read.replicas_of(partition, *n).contains(&node);
        match direction {
            Direction::Pull => may_receive(shared.node()) && may_send(peer),
            Direction::Push => may_send(shared.node()) && may_receive(peer),
            // A partition that moves to a node is left out here: the transfer copies it, with a
            // throttle of its own.
            Direction::Both => is_read(shared.node()) && is_read(peer),
        }
    };
    shared.sizes().into_iter().filter(must_compare).map(|n| TreeName { partition, n }).collect()
}

//! Scan: reads every partition from R of its replicas, merges each key as a get does, and returns
//! pages of limited size.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use quorate_core::codec::{decode_object, encode_context};
use quorate_core::layout_change::View;
use quorate_core::quorum::{ReadQuorum, Step};
use quorate_core::request::{
    PeerReply, PeerRequest, ScanEntry, ScanPage, ScanPartition, ScanReply, ScanRequest, scan_cursor,
};
use quorate_core::{Key, Layout, NodeId, Object, PartitionId, RequestError, StorageKey};
use tokio::time::Instant;

use super::get::shown;
use super::placement::{KeyPlacement, bucket_of, live_first};
use super::read_quorum::{Read, read_replicas};
use super::read_repair::{HoldersNeeded, repair};
use crate::gather::Gather;
use crate::node::Node;

/// Largest number of entries of a page, if the request names no limit.
const DEFAULT_ENTRIES: u32 = 1_000;
/// Largest number of entries of a page, whatever limit the request names.
const MAX_ENTRIES: u32 = 10_000;
/// Bytes of entries after which a page ends.
const MAX_PAGE_BYTES: usize = 1024 * 1024;
/// Bytes after which a replica's answer to one request ends. The rest of the partition is read
/// later.
const MAX_PARTITION_BYTES: u32 = 256 * 1024;
/// Partitions that are read together at the start of a page. The number is small, because few
/// partitions with many keys fill the page.
const FIRST_WINDOW: usize = 4;
/// Largest number of partitions that are read together. The number doubles up to this limit while
/// the page is not full.
const LARGEST_WINDOW: usize = 128;

/// Serves one page of a scan.
pub(crate) async fn scan(
    node: &Rc<Node>,
    request: ScanRequest,
    deadline: Instant,
) -> Result<ScanReply, RequestError> {
    // The view is kept until the page ends, so that a layout change waits for the page.
    let view = node.shared.view();
    let partitions = node.shared.partitions();
    let mut position = Position::decode(&request.cursor, partitions)?;
    let bucket = bucket_of(&view, request.bucket.as_str())?.clone();
    let n = bucket.n.min(view.read.replicas());
    let required = bucket.required(request.r, bucket.definition.r, "r", n)?;
    let limit = if request.limit == 0 { DEFAULT_ENTRIES } else { request.limit.min(MAX_ENTRIES) } as usize;
    let mut entries: Vec<ScanEntry> = Vec::new();
    let mut bytes = 0;
    let mut window = FIRST_WINDOW;
    while position.partition < partitions && entries.len() < limit && bytes < MAX_PAGE_BYTES {
        let last = (position.partition + window as u32).min(partitions);
        let reads = (position.partition..last).map(|partition| {
            let after = if partition == position.partition { position.after.clone() } else { Bytes::new() };
            let partition = PartitionId(partition as u16);
            let scan = ScanPartition {
                partition,
                prefix: StorageKey::prefix_start(partition, request.bucket.as_str(), &request.prefix).into(),
                after,
                limit: (limit - entries.len() + 1) as u32,
                max_bytes: MAX_PARTITION_BYTES,
                layout: view.read.digest(),
            };
            read_partition(node, &view, &request, scan, required, deadline)
        });
        'window: for slice in futures::future::join_all(reads).await {
            let slice = slice?;
            for (storage_key, entry) in slice.entries {
                position.after = storage_key;
                let Some(entry) = entry else { continue };
                bytes +=
                    entry.key.len() + entry.siblings.iter().map(|s| s.value.len() + 32).sum::<usize>() + 64;
                entries.push(entry);
                if entries.len() >= limit || bytes >= MAX_PAGE_BYTES {
                    break 'window;
                }
            }
            if slice.more {
                break;
            }
            position = Position { partition: position.partition + 1, after: Bytes::new() };
        }
        window = (window * 2).min(LARGEST_WINDOW);
    }
    let cursor = if position.partition < partitions { position.encode() } else { Bytes::new() };
    Ok(ScanReply { entries, cursor })
}

/// The position at which a page ends. All partitions before `partition` were shown, and in
/// `partition` all storage keys up to `after`.
struct Position {
    partition: u32,
    after: Bytes,
}

impl Position {
    fn decode(cursor: &Bytes, partitions: u32) -> Result<Position, RequestError> {
        if cursor.is_empty() {
            return Ok(Position { partition: 0, after: Bytes::new() });
        }
        let invalid = || {
            RequestError::invalid(format!("cursor of {} bytes: not one that a scan returned", cursor.len()))
        };
        let (number, after) = cursor.split_first_chunk::<2>().ok_or_else(invalid)?;
        let partition = u32::from(u16::from_be_bytes(*number));
        let of_partition = after.is_empty()
            || StorageKey::from_peer(after).is_some_and(|key| u32::from(key.partition().0) == partition);
        if partition >= partitions || !of_partition {
            return Err(invalid());
        }
        Ok(Position { partition, after: cursor.slice(2..) })
    }

    fn encode(&self) -> Bytes {
        scan_cursor(PartitionId(self.partition as u16), &self.after)
    }
}

/// A part of one partition: storage keys in order, each with its entry. `None`: the client is not
/// shown the key, because it is deleted or does not begin with the prefix.
struct Slice {
    entries: Vec<(Bytes, Option<ScanEntry>)>,
    /// True if the partition may have more keys.
    more: bool,
}

/// Reads a part of one partition from R replicas, and merges each of its keys.
async fn read_partition(
    node: &Rc<Node>,
    view: &View,
    request: &ScanRequest,
    scan: ScanPartition,
    required: u8,
    deadline: Instant,
) -> Result<Slice, RequestError> {
    let replicas = view.read.replicas_for(scan.partition, request.bucket.as_str());
    let mut live = live_first(node, replicas);
    // Replicas that are replicas in all pending layouts too come first. Their reply counts in each
    // of these layouts, which saves a second check by read repair.
    let is_in_all = |replica: &NodeId| {
        let set =
            |layout: &Arc<Layout>| layout.replicas_for(scan.partition, request.bucket.as_str()).to_vec();
        view.pending_write_layouts.iter().all(|layout| set(layout).contains(replica))
    };
    live.sort_by_key(|replica| !is_in_all(replica));
    let pages = read_pages(node, live, &scan, required, deadline).await?;
    // If a limit ended a replica's page, the replica's keys after that end are unknown. So all
    // pages are cut at the first such end.
    let cut = pages.iter().filter(|(_, page)| page.more).filter_map(|(_, page)| page.records.last());
    let bound: Option<Bytes> = cut.map(|(key, _)| key.clone()).min();
    let mut keys: BTreeMap<&Bytes, Vec<(NodeId, Option<&Bytes>)>> = BTreeMap::new();
    for (_, page) in &pages {
        for (key, _) in page.records.iter().filter(|(key, _)| bound.as_ref().is_none_or(|bound| key <= bound))
        {
            keys.entry(key).or_default();
        }
    }
    for (from, page) in &pages {
        let held: BTreeMap<&Bytes, &Bytes> = page.records.iter().map(|(key, object)| (key, object)).collect();
        for (key, replies) in &mut keys {
            replies.push((*from, held.get(key).copied()));
        }
    }
    let entries =
        keys.into_iter().map(|(key, replies)| show(node, view, request, key, replies, required, deadline));
    let entries = futures::future::try_join_all(entries).await?;
    Ok(Slice { entries, more: bound.is_some() })
}

/// Reads one page of a partition from each of R replicas.
async fn read_pages(
    node: &Rc<Node>,
    live: Vec<NodeId>,
    scan: &ScanPartition,
    required: u8,
    deadline: Instant,
) -> Result<Vec<(NodeId, ScanPage)>, RequestError> {
    let begun = Instant::now();
    let mut quorum = ReadQuorum::new(required, live)
        .map_err(|reachable| RequestError::Unavailable { needed: required, reachable })?;
    let gather = Gather::default();
    let ask = |replica: NodeId| {
        let timeout = deadline.saturating_duration_since(Instant::now());
        node.send(replica, PeerRequest::ScanPartition(scan.clone()), timeout, gather.reply_to(replica));
    };
    for &replica in quorum.first_asked() {
        ask(replica);
    }
    let mut pages = Vec::new();
    loop {
        let received = pages.len() as u8;
        let step = match gather.next(deadline).await {
            Some((from, Ok(PeerReply::Page(page)))) => {
                pages.push((from, page));
                quorum.reply(from)
            }
            Some(_) => quorum.failure(),
            None => {
                let after_ms = begun.elapsed().as_millis() as u32;
                return Err(RequestError::DeadlineExceeded { needed: required, received, after_ms });
            }
        };
        match step {
            Step::Ask(replica) => ask(replica),
            Step::Wait => {}
            Step::Reached => return Ok(pages),
            Step::Impossible => {
                return Err(RequestError::Unavailable { needed: required, reachable: received });
            }
        }
    }
}

/// Merges one key's records from several replicas, repairs replicas that hold less, and returns the
/// key's entry.
async fn show(
    node: &Rc<Node>,
    view: &View,
    request: &ScanRequest,
    storage_key: &Bytes,
    replies: Vec<(NodeId, Option<&Bytes>)>,
    required: u8,
    deadline: Instant,
) -> Result<(Bytes, Option<ScanEntry>), RequestError> {
    let failed = |detail: String| RequestError::StorageFailed { detail };
    let parsed_key =
        StorageKey::from_peer(storage_key).ok_or_else(|| failed("a replica sent a malformed key".into()))?;
    let rule = node.shared.merge_rule(request.bucket.as_str());
    let mut merged = Object::default();
    let mut long_key = None;
    let mut digests = Vec::with_capacity(replies.len());
    let mut damaged = false;
    for (from, object) in &replies {
        let mut held = Object::default();
        match object.map(decode_object) {
            None => {}
            Some(Ok(record)) => {
                held = record.object;
                long_key = long_key.or(record.long_key);
            }
            Some(Err(_)) => damaged = true,
        }
        digests.push((*from, held.digest()));
        merged.merge(&held, rule);
    }
    let client_key = match (parsed_key.client_key(), long_key) {
        (Some(key), _) => Bytes::copy_from_slice(key),
        (None, Some(key)) => key,
        (None, None) => {
            return Err(failed(format!(
                "{parsed_key:?}: the record is damaged: it lacks the full key, which is too long for the storage key"
            )));
        }
    };
    let key = Key::new(request.bucket.as_str().as_bytes(), &client_key)?;
    let digest = merged.digest();
    if damaged {
        // An unreadable record is not an absent one, so this key is read again from R replicas that
        // can read theirs.
        let placement = KeyPlacement::of(node, &key)?;
        let sloppy = placement.bucket.definition.sloppy;
        let read = read_replicas(node, &placement, required, sloppy, deadline).await?;
        repair(node, &placement, &read, HoldersNeeded { size: request.r, required }, deadline).await?;
        merged = read.merged;
    } else if digests.iter().any(|(_, held)| *held != digest) || !view.pending_write_layouts.is_empty() {
        let placement = KeyPlacement::of(node, &key)?;
        let read = Read {
            encoded: Some(quorate_core::codec::encode_object(&merged, placement.long_key.as_deref())),
            merged: merged.clone(),
            replied: digests.iter().map(|(from, _)| *from).collect(),
            damaged: Vec::new(),
            stale: digests.iter().filter(|(_, held)| *held != digest).map(|(from, _)| *from).collect(),
        };
        repair(node, &placement, &read, HoldersNeeded { size: request.r, required }, deadline).await?;
    }
    let mut siblings = shown(node, bucket_of(view, request.bucket.as_str())?, &merged)?;
    if siblings.is_empty() || !client_key.starts_with(&request.prefix) {
        return Ok((storage_key.clone(), None));
    }
    if request.keys_only {
        siblings.iter_mut().for_each(|sibling| sibling.value = Bytes::new());
    }
    let context = encode_context(&merged.context(), key.hash()).into();
    Ok((
        storage_key.clone(),
        Some(ScanEntry { partition: parsed_key.partition(), key: client_key, siblings, context }),
    ))
}

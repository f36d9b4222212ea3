//! Conversions of the operations that nodes send to peers, and of their results.

use bytes::Bytes;
use capnp::Error;
use quorate_core::key::{PartitionId, StorageKey};
use quorate_core::request::{
    CollectTombstones, DigestPage, DigestsOf, Likeness, MAX_KEYS_ASKED, PeerError, PeerReply, PeerRequest,
    PeerResult, PeerWrite, ScanPage, ScanPartition, TreeName, TreeRoot, TreeState, WritePurpose,
};
use quorate_core::{Digest, NodeId};

use tokio::time::Instant;

use super::{client, text, timeout_ms, unknown};
use crate::batch_sender::{Protocol, Queued};
use crate::generated::peer_capnp::{self as wire, failure, operation, result};

/// Protocol between nodes.
pub struct PeerProtocol;

impl Protocol for PeerProtocol {
    type Request = PeerRequest;
    type Reply = PeerResult;
    type Port = wire::peer::Client;

    fn is_quick(request: &PeerRequest) -> bool {
        match request {
            PeerRequest::Write(_) | PeerRequest::CollectTombstones(_) | PeerRequest::DurableDigests(_) => {
                false
            }
            PeerRequest::Forward(request) => client::is_quick(request),
            _ => true,
        }
    }

    fn bytes_of(request: &PeerRequest) -> usize {
        let fixed = 96;
        fixed
            + match request {
                PeerRequest::Read { key, .. } | PeerRequest::ReadHints(key) | PeerRequest::Fetch(key) => {
                    key.as_bytes().len()
                }
                PeerRequest::Write(write) => write.key.as_bytes().len() + write.object.len(),
                PeerRequest::ScanPartition(scan) => scan.prefix.len() + scan.after.len(),
                PeerRequest::Forward(request) => client::request_bytes(request),
                PeerRequest::Roots(roots) => roots.len() * 16,
                PeerRequest::DurableDigests(keys) | PeerRequest::MayCollect { keys, .. } => {
                    keys.iter().map(|key| key.as_bytes().len() + 16).sum()
                }
                PeerRequest::CollectTombstones(order) => {
                    order.entries.iter().map(|(key, _)| key.as_bytes().len() + 32).sum()
                }
                PeerRequest::Gossip(message) | PeerRequest::LayoutSummary(message) => message.len(),
                PeerRequest::Leaves(_)
                | PeerRequest::Digests(_)
                | PeerRequest::Clock
                | PeerRequest::Layouts => 0,
            }
    }

    fn exchange(
        port: &Self::Port,
        batch: Vec<Queued<PeerRequest>>,
    ) -> impl Future<Output = Result<Vec<(u64, PeerResult)>, Error>> + 'static {
        let mut call = port.exchange_request();
        let mut operations = call.get().init_operations(batch.len() as u32);
        let now = Instant::now();
        for (at, queued) in batch.iter().enumerate() {
            write_operation(operations.reborrow().get(at as u32), queued, now);
        }
        let answer = call.send().promise;
        async move {
            let answer = answer.await?;
            let results = answer.get()?.get_results()?;
            results.iter().map(|result| Ok((result.get_id(), read_result(result)?))).collect()
        }
    }

    fn disconnected() -> PeerResult {
        Err(PeerError::Disconnected)
    }

    fn expired() -> PeerResult {
        Err(PeerError::Expired)
    }

    fn overloaded(what: &str, limit: usize) -> PeerResult {
        Err(PeerError::Overloaded { what: what.to_owned(), limit: limit as u64 })
    }
}

/// Estimates the encoded size of a result, in bytes.
pub(crate) fn result_bytes(result: &PeerResult) -> usize {
    let fixed = 64;
    fixed
        + match result {
            Ok(PeerReply::Object(Some(object))) => object.len(),
            Ok(PeerReply::Page(page)) => {
                page.records.iter().map(|(key, object)| key.len() + object.len() + 32).sum()
            }
            Ok(PeerReply::Client(result)) => client::result_bytes(result),
            Ok(PeerReply::Trees(states)) => states.len() * 8,
            Ok(PeerReply::Leaves(leaves)) => leaves.len() * 8,
            Ok(PeerReply::Digests(page)) => page.entries.iter().map(|(key, _)| key.len() + 32).sum(),
            Ok(PeerReply::DurableDigests(held)) => held.len() * 8,
            Ok(PeerReply::MayCollect(free)) => free.len(),
            Ok(PeerReply::LayoutSummary(bytes) | PeerReply::Layouts(bytes)) => bytes.len(),
            _ => 0,
        }
}

fn write_operation(mut out: operation::Builder<'_>, queued: &Queued<PeerRequest>, now: Instant) {
    out.set_id(queued.id);
    out.set_timeout_ms(timeout_ms(queued.timeout(now)));
    match &queued.request {
        PeerRequest::Read { key, layout } => {
            out.set_layout(*layout);
            out.set_read(key.as_bytes());
        }
        PeerRequest::ReadHints(key) => out.set_read_hints(key.as_bytes()),
        PeerRequest::Fetch(key) => out.set_fetch(key.as_bytes()),
        PeerRequest::Write(write) => {
            out.set_layout(write.layout);
            let mut builder = out.init_write();
            builder.set_key(write.key.as_bytes());
            builder.set_object(&write.object);
            builder.set_valid_until_ms(write.valid_until_ms);
            match write.purpose {
                WritePurpose::Replicate => {}
                WritePurpose::Hint(target) => builder.set_hint_for(target.0),
                WritePurpose::HandOff => builder.set_hand_off(true),
            }
        }
        PeerRequest::Roots(roots) => {
            let mut list = out.init_roots(roots.len() as u32);
            for (at, TreeRoot { tree, root }) in roots.iter().enumerate() {
                let mut builder = list.reborrow().get(at as u32);
                builder.set_partition(tree.partition.0);
                builder.set_n(tree.n);
                builder.set_root(*root);
            }
        }
        PeerRequest::Leaves(tree) => {
            let mut builder = out.init_leaves();
            builder.set_partition(tree.partition.0);
            builder.set_n(tree.n);
        }
        PeerRequest::Digests(wanted) => {
            let mut builder = out.init_digests();
            builder.set_partition(wanted.tree.partition.0);
            builder.set_n(wanted.tree.n);
            builder.set_leaves(wanted.leaves);
            builder.set_after(&wanted.after);
        }
        PeerRequest::DurableDigests(keys) => write_keys(out.init_durable_digests(keys.len() as u32), keys),
        PeerRequest::MayCollect { keys, layout } => {
            out.set_layout(*layout);
            write_keys(out.init_may_collect(keys.len() as u32), keys);
        }
        PeerRequest::LayoutSummary(summary) => out.set_layout_summary(summary),
        PeerRequest::Layouts => out.set_layouts(()),
        PeerRequest::CollectTombstones(order) => {
            let mut builder = out.init_collect_tombstones();
            builder.set_valid_until_ms(order.valid_until_ms);
            let mut list = builder.init_entries(order.entries.len() as u32);
            for (at, (key, digest)) in order.entries.iter().enumerate() {
                let mut entry = list.reborrow().get(at as u32);
                entry.set_key(key.as_bytes());
                entry.set_digest(digest.0);
            }
        }
        PeerRequest::Clock => out.set_clock(()),
        PeerRequest::Gossip(message) => out.set_gossip(message),
        PeerRequest::ScanPartition(scan) => {
            out.set_layout(scan.layout);
            let mut builder = out.init_scan();
            builder.set_partition(scan.partition.0);
            builder.set_prefix(&scan.prefix);
            builder.set_after(&scan.after);
            builder.set_limit(scan.limit);
            builder.set_max_bytes(scan.max_bytes);
        }
        PeerRequest::Forward(request) => {
            client::write_operation(out.init_forward(), queued.id, queued.timeout(now), request);
        }
    }
}

fn write_keys(mut list: capnp::data_list::Builder<'_>, keys: &[StorageKey]) {
    for (at, key) in keys.iter().enumerate() {
        list.set(at as u32, key.as_bytes());
    }
}

fn read_key(bytes: &[u8]) -> Result<StorageKey, PeerError> {
    StorageKey::from_peer(bytes).ok_or_else(|| PeerError::Refused { detail: "malformed storage key".into() })
}

fn too_many(count: u32) -> Option<PeerError> {
    let detail = format!("a request names {count} keys or hash trees: the limit is {MAX_KEYS_ASKED}");
    (count as usize > MAX_KEYS_ASKED).then_some(PeerError::Refused { detail })
}

fn read_keys(list: capnp::data_list::Reader<'_>) -> Result<Result<Vec<StorageKey>, PeerError>, Error> {
    if let Some(refusal) = too_many(list.len()) {
        return Ok(Err(refusal));
    }
    let mut keys = Vec::with_capacity(list.len() as usize);
    for bytes in list {
        match read_key(bytes?) {
            Ok(key) => keys.push(key),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(Ok(keys))
}

fn read_entries(
    list: capnp::struct_list::Reader<'_, wire::entry::Owned>,
) -> Result<Result<Vec<(StorageKey, Digest)>, PeerError>, Error> {
    if let Some(refusal) = too_many(list.len()) {
        return Ok(Err(refusal));
    }
    let mut entries = Vec::with_capacity(list.len() as usize);
    for entry in list {
        match read_key(entry.get_key()?) {
            Ok(key) => entries.push((key, Digest(entry.get_digest()))),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    Ok(Ok(entries))
}

/// Returns the operation's request, or an inner error that concerns this operation only. A ping
/// gives `None`.
///
/// # Errors
/// The outer error: the message is malformed, which fails the whole batch.
pub(crate) fn read_operation(
    operation: operation::Reader<'_>,
) -> Result<Result<Option<PeerRequest>, PeerError>, Error> {
    let refused = |detail: &str| PeerError::Refused { detail: detail.into() };
    let key = read_key;
    let layout = operation.get_layout();
    Ok(match operation.which().map_err(unknown)? {
        operation::Ping(()) => Ok(None),
        operation::Read(bytes) => key(bytes?).map(|key| Some(PeerRequest::Read { key, layout })),
        operation::ReadHints(bytes) => key(bytes?).map(|key| Some(PeerRequest::ReadHints(key))),
        operation::Fetch(bytes) => key(bytes?).map(|key| Some(PeerRequest::Fetch(key))),
        operation::Write(write) => {
            let write = write?;
            let object = Bytes::copy_from_slice(write.get_object()?);
            let purpose = match (write.get_hint_for(), write.get_hand_off()) {
                (0, false) => WritePurpose::Replicate,
                (0, true) => WritePurpose::HandOff,
                (target, _) => WritePurpose::Hint(NodeId(target)),
            };
            let valid_until_ms = write.get_valid_until_ms();
            key(write.get_key()?).map(|key| {
                Some(PeerRequest::Write(PeerWrite { key, object, purpose, valid_until_ms, layout }))
            })
        }
        operation::Roots(list) => {
            let list = list?;
            match too_many(list.len()) {
                Some(refusal) => Err(refusal),
                None => Ok(Some(PeerRequest::Roots(
                    list.iter()
                        .map(|root| TreeRoot {
                            tree: TreeName { partition: PartitionId(root.get_partition()), n: root.get_n() },
                            root: root.get_root(),
                        })
                        .collect(),
                ))),
            }
        }
        operation::Leaves(tree) => {
            let tree = tree?;
            let partition = PartitionId(tree.get_partition());
            Ok(Some(PeerRequest::Leaves(TreeName { partition, n: tree.get_n() })))
        }
        operation::Digests(wanted) => {
            let wanted = wanted?;
            Ok(Some(PeerRequest::Digests(DigestsOf {
                tree: TreeName { partition: PartitionId(wanted.get_partition()), n: wanted.get_n() },
                leaves: wanted.get_leaves(),
                after: Bytes::copy_from_slice(wanted.get_after()?),
            })))
        }
        operation::DurableDigests(keys) => {
            read_keys(keys?)?.map(|keys| Some(PeerRequest::DurableDigests(keys)))
        }
        operation::MayCollect(keys) => {
            read_keys(keys?)?.map(|keys| Some(PeerRequest::MayCollect { keys, layout }))
        }
        operation::LayoutSummary(summary) => {
            Ok(Some(PeerRequest::LayoutSummary(Bytes::copy_from_slice(summary?))))
        }
        operation::Layouts(()) => Ok(Some(PeerRequest::Layouts)),
        operation::CollectTombstones(order) => {
            let order = order?;
            let valid_until_ms = order.get_valid_until_ms();
            read_entries(order.get_entries()?)?.map(|entries| {
                Some(PeerRequest::CollectTombstones(CollectTombstones { entries, valid_until_ms }))
            })
        }
        operation::Clock(()) => Ok(Some(PeerRequest::Clock)),
        operation::Gossip(message) => Ok(Some(PeerRequest::Gossip(Bytes::copy_from_slice(message?)))),
        operation::Scan(scan) => {
            let scan = scan?;
            Ok(Some(PeerRequest::ScanPartition(ScanPartition {
                partition: PartitionId(scan.get_partition()),
                prefix: Bytes::copy_from_slice(scan.get_prefix()?),
                after: Bytes::copy_from_slice(scan.get_after()?),
                limit: scan.get_limit(),
                max_bytes: scan.get_max_bytes(),
                layout,
            })))
        }
        operation::Forward(operation) => match client::read_operation(operation?)? {
            Ok(request) => Ok(Some(PeerRequest::Forward(request))),
            Err(error) => Err(refused(&error.to_string())),
        },
    })
}

pub(crate) fn write_result(mut out: result::Builder<'_>, id: u64, result: &PeerResult) {
    out.set_id(id);
    match result {
        Ok(PeerReply::Object(Some(object))) => out.set_object(object),
        Ok(PeerReply::Object(None)) => out.set_absent(()),
        Ok(PeerReply::Acked) => out.set_acked(()),
        Ok(PeerReply::Page(page)) => {
            let mut builder = out.init_page();
            builder.set_more(page.more);
            let mut records = builder.init_records(page.records.len() as u32);
            for (at, (key, object)) in page.records.iter().enumerate() {
                let mut record = records.reborrow().get(at as u32);
                record.set_key(key);
                record.set_object(object);
            }
        }
        Ok(PeerReply::Client(result)) => client::write_result(out.init_forwarded(), id, result),
        Ok(PeerReply::Trees(states)) => {
            let mut list = out.init_trees(states.len() as u32);
            for (at, state) in states.iter().enumerate() {
                let mut builder = list.reborrow().get(at as u32);
                builder.set_recovering(state.recovering);
                builder.set_likeness(match state.likeness {
                    Likeness::Same => wire::tree_state::Likeness::Same,
                    Likeness::Differs => wire::tree_state::Likeness::Differs,
                    Likeness::Unknown => wire::tree_state::Likeness::Unknown,
                });
            }
        }
        Ok(PeerReply::Leaves(leaves)) => {
            let mut list = out.init_leaves(leaves.len() as u32);
            for (at, leaf) in leaves.iter().enumerate() {
                list.set(at as u32, *leaf);
            }
        }
        Ok(PeerReply::Digests(page)) => {
            let mut builder = out.init_digests();
            builder.set_next(&page.next);
            let mut list = builder.init_entries(page.entries.len() as u32);
            for (at, (key, digest)) in page.entries.iter().enumerate() {
                let mut entry = list.reborrow().get(at as u32);
                entry.set_key(key);
                entry.set_digest(digest.0);
            }
        }
        Ok(PeerReply::DurableDigests(held)) => {
            let mut list = out.init_durable_digests(held.len() as u32);
            for (at, digest) in held.iter().enumerate() {
                list.set(at as u32, digest.map_or(0, |digest| digest.0));
            }
        }
        Ok(PeerReply::MayCollect(free)) => {
            let mut list = out.init_may_collect(free.len() as u32);
            for (at, free) in free.iter().enumerate() {
                list.set(at as u32, *free);
            }
        }
        Ok(PeerReply::Clock(now_ms)) => out.set_clock(*now_ms),
        Ok(PeerReply::LayoutSummary(summary)) => out.set_layout_summary(summary),
        Ok(PeerReply::Layouts(layouts)) => out.set_layouts(layouts),
        Err(error) => write_failure(out.init_failure(), error),
    }
}

fn read_result(result: result::Reader<'_>) -> Result<PeerResult, Error> {
    Ok(Ok(match result.which().map_err(unknown)? {
        result::Absent(()) => PeerReply::Object(None),
        result::Object(object) => PeerReply::Object(Some(Bytes::copy_from_slice(object?))),
        result::Pong(()) | result::Acked(()) => PeerReply::Acked,
        result::Page(page) => {
            let page = page?;
            let mut records = Vec::new();
            for record in page.get_records()? {
                records.push((
                    Bytes::copy_from_slice(record.get_key()?),
                    Bytes::copy_from_slice(record.get_object()?),
                ));
            }
            PeerReply::Page(ScanPage { records, more: page.get_more() })
        }
        result::Forwarded(result) => PeerReply::Client(client::read_result(result?)?),
        result::Trees(states) => {
            let likeness = |state: wire::tree_state::Reader<'_>| -> Result<TreeState, Error> {
                let likeness = match state.get_likeness().map_err(unknown)? {
                    wire::tree_state::Likeness::Same => Likeness::Same,
                    wire::tree_state::Likeness::Differs => Likeness::Differs,
                    wire::tree_state::Likeness::Unknown => Likeness::Unknown,
                };
                Ok(TreeState { likeness, recovering: state.get_recovering() })
            };
            PeerReply::Trees(states?.iter().map(likeness).collect::<Result<_, _>>()?)
        }
        result::Leaves(leaves) => PeerReply::Leaves(leaves?.iter().collect()),
        result::Digests(page) => {
            let page = page?;
            let mut entries = Vec::new();
            for entry in page.get_entries()? {
                entries.push((Bytes::copy_from_slice(entry.get_key()?), Digest(entry.get_digest())));
            }
            PeerReply::Digests(DigestPage { entries, next: Bytes::copy_from_slice(page.get_next()?) })
        }
        result::DurableDigests(held) => {
            let digest = |digest| Some(Digest(digest)).filter(|digest| digest.0 != 0);
            PeerReply::DurableDigests(held?.iter().map(digest).collect())
        }
        result::MayCollect(free) => PeerReply::MayCollect(free?.iter().collect()),
        result::Clock(now_ms) => PeerReply::Clock(now_ms),
        result::LayoutSummary(summary) => PeerReply::LayoutSummary(Bytes::copy_from_slice(summary?)),
        result::Layouts(layouts) => PeerReply::Layouts(Bytes::copy_from_slice(layouts?)),
        result::Failure(failure) => return Ok(Err(read_failure(failure?)?)),
    }))
}

fn write_failure(mut out: failure::Builder<'_>, error: &PeerError) {
    use failure::Kind;
    match error {
        PeerError::Disconnected => out.set_kind(Kind::Disconnected),
        PeerError::Expired => out.set_kind(Kind::Expired),
        PeerError::Overloaded { what, limit } => {
            out.set_kind(Kind::Overloaded);
            out.set_detail(what.as_str());
            out.set_limit(*limit);
        }
        PeerError::Recovering => out.set_kind(Kind::Recovering),
        PeerError::StaleLayout => out.set_kind(Kind::StaleLayout),
        PeerError::Storage { detail } => {
            out.set_kind(Kind::Storage);
            out.set_detail(detail.as_str());
        }
        PeerError::Refused { detail } => {
            out.set_kind(Kind::Refused);
            out.set_detail(detail.as_str());
        }
    }
}

fn read_failure(failure: failure::Reader<'_>) -> Result<PeerError, Error> {
    use failure::Kind;
    let detail = || text(failure.get_detail());
    Ok(match failure.get_kind().map_err(unknown)? {
        Kind::Disconnected => PeerError::Disconnected,
        Kind::Expired => PeerError::Expired,
        Kind::Overloaded => PeerError::Overloaded { what: detail()?, limit: failure.get_limit() },
        Kind::Storage => PeerError::Storage { detail: detail()? },
        Kind::Recovering => PeerError::Recovering,
        Kind::StaleLayout => PeerError::StaleLayout,
        Kind::Refused => PeerError::Refused { detail: detail()? },
    })
}

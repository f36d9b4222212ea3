//! Conversions of the operations that clients send to nodes, and of their results.

use std::time::Duration;

use bytes::Bytes;
use capnp::Error;
use quorate_core::change::{LayoutChange, StagedChange};
use quorate_core::clock::Stamp;
use quorate_core::key::{BucketName, Key, PartitionId};
use quorate_core::object::{Payload, RequestId};
use quorate_core::quorum::QuorumSize;
use quorate_core::request::{
    ClientReply, ClientRequest, ClientResult, ClusterRequest, EncodedWriteMode, GetReply, GetRequest,
    PartitionFingerprint, PutReply, PutRequest, Receipt, ScanEntry, ScanReply, ScanRequest, Sibling,
};
use quorate_core::{NodeId, RequestError};
use tokio::time::Instant;

use super::{text, timeout_ms, unknown};
use crate::batch_sender::{Protocol, Queued};
use crate::generated::client_capnp::cluster::Verb;
use crate::generated::client_capnp::{self as wire, failure, operation, put, result};

/// The answer to a client's operation.
#[derive(Clone, PartialEq, Debug)]
pub enum ClientAnswer {
    /// The node's result.
    Result(ClientResult),
    /// The connection was lost. The node may have done the operation, or not.
    ConnectionLost,
}

/// Protocol between clients and nodes.
pub struct ClientProtocol;

impl Protocol for ClientProtocol {
    type Request = ClientRequest;
    type Reply = ClientAnswer;
    type Port = wire::node::Client;

    fn is_quick(request: &ClientRequest) -> bool {
        is_quick(request)
    }

    fn bytes_of(request: &ClientRequest) -> usize {
        request_bytes(request)
    }

    fn exchange(
        port: &Self::Port,
        batch: Vec<Queued<ClientRequest>>,
    ) -> impl Future<Output = Result<Vec<(u64, ClientAnswer)>, Error>> + 'static {
        let mut call = port.exchange_request();
        let mut operations = call.get().init_operations(batch.len() as u32);
        let now = Instant::now();
        for (at, queued) in batch.into_iter().enumerate() {
            let builder = operations.reborrow().get(at as u32);
            write_operation(builder, queued.id, queued.timeout(now), &queued.request);
        }
        let answer = call.send().promise;
        async move {
            let answer = answer.await?;
            let results = answer.get()?.get_results()?;
            results
                .iter()
                .map(|result| Ok((result.get_id(), ClientAnswer::Result(read_result(result)?))))
                .collect()
        }
    }

    fn disconnected() -> ClientAnswer {
        ClientAnswer::ConnectionLost
    }

    fn expired() -> ClientAnswer {
        let what = "the request waited in the queue to the node until its deadline".to_owned();
        ClientAnswer::Result(Err(RequestError::Overloaded { what, limit: 0 }))
    }

    fn overloaded(what: &str, limit: usize) -> ClientAnswer {
        let what = what.to_owned();
        ClientAnswer::Result(Err(RequestError::Overloaded { what, limit: limit as u64 }))
    }
}

/// True if the request usually waits for no commit of the storage engine.
pub(crate) fn is_quick(request: &ClientRequest) -> bool {
    !matches!(request, ClientRequest::Put(_) | ClientRequest::Cluster(_))
}

/// Estimates the encoded size of a request, in bytes.
pub(crate) fn request_bytes(request: &ClientRequest) -> usize {
    let fixed = 128;
    fixed
        + match request {
            ClientRequest::Get(get) => get.key.bytes().len(),
            ClientRequest::Put(put) => {
                let value = if let Payload::Value(value) = &put.payload { value.len() } else { 0 };
                let (EncodedWriteMode::Overwrite { seen: context } | EncodedWriteMode::Exactly { context }) =
                    &put.mode;
                put.key.bytes().len() + value + context.len()
            }
            ClientRequest::Scan(scan) => scan.prefix.len() + scan.cursor.len(),
            _ => 0,
        }
}

/// Estimates the encoded size of a result, in bytes.
pub(crate) fn result_bytes(result: &ClientResult) -> usize {
    let of = |siblings: &[Sibling]| siblings.iter().map(|sibling| sibling.value.len() + 32).sum::<usize>();
    let fixed = 192;
    fixed
        + match result {
            Ok(ClientReply::Get(reply)) => of(&reply.siblings) + reply.context.len(),
            Ok(ClientReply::Scan(page)) => {
                page.entries.iter().map(|e| e.key.len() + e.context.len() + 64 + of(&e.siblings)).sum()
            }
            Ok(ClientReply::Report(text)) => text.len(),
            Ok(ClientReply::Layout(bytes)) => bytes.len(),
            Ok(ClientReply::Fingerprint(partitions)) => partitions.len() * 24,
            _ => 0,
        }
}

pub(crate) fn write_operation(
    mut out: operation::Builder<'_>,
    id: u64,
    timeout: Duration,
    request: &ClientRequest,
) {
    out.set_id(id);
    out.set_timeout_ms(timeout_ms(timeout));
    let mut set_key = |key: &Key| {
        out.set_bucket(key.bucket());
        out.set_key(key.bytes());
    };
    match request {
        ClientRequest::Ping => out.set_ping(()),
        ClientRequest::Get(get) => {
            set_key(&get.key);
            out.set_quorum(quorum_number(get.r));
            out.set_get(());
        }
        ClientRequest::Put(put) => {
            set_key(&put.key);
            out.set_quorum(quorum_number(put.w));
            write_put(out.init_put(), put);
        }
        ClientRequest::Scan(scan) => {
            out.set_bucket(scan.bucket.as_str());
            out.set_quorum(quorum_number(scan.r));
            let mut builder = out.init_scan();
            builder.set_prefix(&scan.prefix);
            builder.set_cursor(&scan.cursor);
            builder.set_limit(scan.limit);
            builder.set_keys_only(scan.keys_only);
        }
        ClientRequest::Explain(key) => {
            set_key(key);
            out.set_explain(());
        }
        ClientRequest::Status => out.set_status(()),
        ClientRequest::Layout => out.set_layout(()),
        ClientRequest::Fingerprint => out.set_fingerprint(()),
        ClientRequest::Repair { start } => out.set_repair(*start),
        ClientRequest::Cluster(request) => {
            let mut builder = out.init_cluster();
            let verb = match request {
                ClusterRequest::Show => Verb::Show,
                ClusterRequest::Stage(change) => {
                    builder.set_change(&change.encode());
                    Verb::Stage
                }
                ClusterRequest::Apply(change) => {
                    builder.set_change(&change.encode());
                    Verb::Apply
                }
                ClusterRequest::Plan => Verb::Plan,
                ClusterRequest::Commit { plan } => {
                    if let Some(plan) = plan {
                        builder.set_change(&plan.to_be_bytes());
                    }
                    Verb::Commit
                }
                ClusterRequest::Clear => Verb::Clear,
                ClusterRequest::Drain => Verb::Drain,
                ClusterRequest::CreateBucket { name, definition } => {
                    let (name, definition) = (name.clone(), definition.clone());
                    builder.set_change(&LayoutChange::Bucket { name, definition }.encode());
                    Verb::CreateBucket
                }
                ClusterRequest::Buckets => Verb::Buckets,
            };
            builder.set_verb(verb);
        }
        ClientRequest::Faults { cut } => {
            let mut names = out.init_faults(cut.len() as u32);
            for (at, name) in cut.iter().enumerate() {
                names.set(at as u32, name);
            }
        }
    }
}

fn write_put(mut out: put::Builder<'_>, put: &PutRequest) {
    match &put.payload {
        Payload::Value(value) => out.set_value(value),
        Payload::Tombstone => out.set_tombstone(true),
    }
    let (kind, context) = match &put.mode {
        EncodedWriteMode::Overwrite { seen } => (put::WriteMode::Overwrite, &seen[..]),
        EncodedWriteMode::Exactly { context } => (put::WriteMode::Exactly, &context[..]),
    };
    out.set_mode(kind);
    out.set_context(context);
    out.set_request_id(put.request.0);
    out.set_attempt(put.attempt);
    out.set_sloppy(match put.sloppy {
        None => put::Choice::Bucket,
        Some(true) => put::Choice::Yes,
        Some(false) => put::Choice::No,
    });
}

/// Returns the operation's request, or an inner error that concerns this operation only.
///
/// # Errors
/// The outer error: the message is malformed, which fails the whole batch.
pub(crate) fn read_operation(
    operation: operation::Reader<'_>,
) -> Result<Result<ClientRequest, RequestError>, Error> {
    let key = || -> Result<Result<Key, RequestError>, Error> {
        Ok(Key::new(operation.get_bucket()?.as_bytes(), operation.get_key()?))
    };
    let quorum = match quorum_size(operation.get_quorum()) {
        Ok(quorum) => quorum,
        Err(error) => return Ok(Err(error)),
    };
    Ok(match operation.which().map_err(unknown)? {
        operation::Ping(()) => Ok(ClientRequest::Ping),
        operation::Get(()) => key()?.map(|key| ClientRequest::Get(GetRequest { key, r: quorum })),
        operation::Put(put) => match key()? {
            Ok(key) => Ok(ClientRequest::Put(read_put(put?, key, quorum)?)),
            Err(error) => Err(error),
        },
        operation::Scan(scan) => {
            let scan = scan?;
            let bucket = text(operation.get_bucket())?;
            let (prefix, cursor) = (copy(scan.get_prefix()?), copy(scan.get_cursor()?));
            let (limit, keys_only) = (scan.get_limit(), scan.get_keys_only());
            BucketName::new(&bucket).map(|bucket| {
                ClientRequest::Scan(ScanRequest { bucket, prefix, cursor, limit, keys_only, r: quorum })
            })
        }
        operation::Explain(()) => key()?.map(ClientRequest::Explain),
        operation::Status(()) => Ok(ClientRequest::Status),
        operation::Layout(()) => Ok(ClientRequest::Layout),
        operation::Fingerprint(()) => Ok(ClientRequest::Fingerprint),
        operation::Repair(start) => Ok(ClientRequest::Repair { start }),
        operation::Cluster(request) => {
            let request = request?;
            let read = match request.get_verb().map_err(unknown)? {
                Verb::Show => Ok(ClusterRequest::Show),
                Verb::Stage => staged(request.get_change()?).map(ClusterRequest::Stage),
                Verb::Apply => staged(request.get_change()?).map(ClusterRequest::Apply),
                Verb::Plan => Ok(ClusterRequest::Plan),
                Verb::Commit => match request.get_change()? {
                    [] => Ok(ClusterRequest::Commit { plan: None }),
                    plan => match plan.try_into() {
                        Ok(plan) => Ok(ClusterRequest::Commit { plan: Some(u64::from_be_bytes(plan)) }),
                        Err(_) => {
                            let detail = format!("digest of a plan: {} bytes instead of 8", plan.len());
                            Err(RequestError::invalid(detail))
                        }
                    },
                },
                Verb::Clear => Ok(ClusterRequest::Clear),
                Verb::Drain => Ok(ClusterRequest::Drain),
                Verb::CreateBucket => match LayoutChange::decode(request.get_change()?) {
                    Ok(LayoutChange::Bucket { name, definition }) => {
                        Ok(ClusterRequest::CreateBucket { name, definition })
                    }
                    Ok(other) => Err(RequestError::invalid(format!("{other}: not a bucket definition"))),
                    Err(error) => Err(RequestError::invalid(format!("change: {error}"))),
                },
                Verb::Buckets => Ok(ClusterRequest::Buckets),
            };
            read.map(ClientRequest::Cluster)
        }
        operation::Faults(names) => {
            let cut = names?.iter().map(text).collect::<Result<Vec<String>, Error>>()?;
            Ok(ClientRequest::Faults { cut })
        }
    })
}

fn staged(bytes: &[u8]) -> Result<StagedChange, RequestError> {
    StagedChange::decode(bytes).map_err(|error| RequestError::invalid(format!("change: {error}")))
}

fn read_put(put: put::Reader<'_>, key: Key, w: QuorumSize) -> Result<PutRequest, Error> {
    let payload =
        if put.get_tombstone() { Payload::Tombstone } else { Payload::Value(copy(put.get_value()?)) };
    let context = copy(put.get_context()?);
    let mode = match put.get_mode().map_err(unknown)? {
        put::WriteMode::Overwrite => EncodedWriteMode::Overwrite { seen: context },
        put::WriteMode::Exactly => EncodedWriteMode::Exactly { context },
    };
    let sloppy = match put.get_sloppy().map_err(unknown)? {
        put::Choice::Bucket => None,
        put::Choice::Yes => Some(true),
        put::Choice::No => Some(false),
    };
    let request = RequestId(put.get_request_id());
    Ok(PutRequest { key, payload, mode, request, w, sloppy, attempt: put.get_attempt() })
}

pub(crate) fn write_result(mut out: result::Builder<'_>, id: u64, result: &ClientResult) {
    out.set_id(id);
    match result {
        Ok(ClientReply::Get(reply)) => {
            let mut got = out.init_got();
            got.set_context(&reply.context);
            write_siblings(got.reborrow().init_siblings(reply.siblings.len() as u32), &reply.siblings);
            write_receipt(got.init_receipt(), &reply.receipt);
        }
        Ok(ClientReply::Put(reply)) => {
            let mut written = out.init_written();
            written.set_context(&reply.context);
            written.set_conflict(reply.conflict);
            written.set_hinted(reply.hinted);
            write_receipt(written.init_receipt(), &reply.receipt);
        }
        Ok(ClientReply::Scan(reply)) => {
            let mut page = out.init_page();
            page.set_cursor(&reply.cursor);
            let mut entries = page.init_entries(reply.entries.len() as u32);
            for (at, entry) in reply.entries.iter().enumerate() {
                let mut builder = entries.reborrow().get(at as u32);
                builder.set_partition(entry.partition.0);
                builder.set_key(&entry.key);
                builder.set_context(&entry.context);
                write_siblings(builder.init_siblings(entry.siblings.len() as u32), &entry.siblings);
            }
        }
        Ok(ClientReply::Report(json)) => out.set_report(json.as_str()),
        Ok(ClientReply::Layout(bytes)) => out.set_layout(bytes),
        Ok(ClientReply::Fingerprint(partitions)) => {
            let mut list = out.init_fingerprint(partitions.len() as u32);
            for (at, partition) in partitions.iter().enumerate() {
                let mut builder = list.reborrow().get(at as u32);
                builder.set_partition(partition.partition.0);
                builder.set_replicas(partition.n);
                builder.set_records(partition.records);
                builder.set_digest(partition.digest);
            }
        }
        Ok(ClientReply::Done) => out.set_done(()),
        Err(error) => write_failure(out.init_failure(), error),
    }
}

pub(crate) fn read_result(result: result::Reader<'_>) -> Result<ClientResult, Error> {
    Ok(Ok(match result.which().map_err(unknown)? {
        result::Pong(()) | result::Done(()) => ClientReply::Done,
        result::Got(got) => {
            let got = got?;
            ClientReply::Get(GetReply {
                siblings: read_siblings(got.get_siblings()?)?,
                context: copy(got.get_context()?),
                receipt: read_receipt(got.get_receipt()?)?,
            })
        }
        result::Written(written) => {
            let written = written?;
            ClientReply::Put(PutReply {
                context: copy(written.get_context()?),
                conflict: written.get_conflict(),
                hinted: written.get_hinted(),
                receipt: read_receipt(written.get_receipt()?)?,
            })
        }
        result::Page(page) => {
            let page = page?;
            let mut entries = Vec::new();
            for entry in page.get_entries()? {
                entries.push(ScanEntry {
                    partition: PartitionId(entry.get_partition()),
                    key: copy(entry.get_key()?),
                    siblings: read_siblings(entry.get_siblings()?)?,
                    context: copy(entry.get_context()?),
                });
            }
            ClientReply::Scan(ScanReply { entries, cursor: copy(page.get_cursor()?) })
        }
        result::Report(json) => ClientReply::Report(text(json)?),
        result::Layout(bytes) => ClientReply::Layout(copy(bytes?)),
        result::Fingerprint(list) => {
            let read = |f: wire::fingerprint::Reader<'_>| PartitionFingerprint {
                partition: PartitionId(f.get_partition()),
                n: f.get_replicas(),
                records: f.get_records(),
                digest: f.get_digest(),
            };
            ClientReply::Fingerprint(list?.iter().map(read).collect())
        }
        result::Failure(failure) => return Ok(Err(read_failure(failure?)?)),
    }))
}

fn copy(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

fn write_siblings(mut list: capnp::struct_list::Builder<'_, wire::sibling::Owned>, siblings: &[Sibling]) {
    for (at, sibling) in siblings.iter().enumerate() {
        let mut builder = list.reborrow().get(at as u32);
        builder.set_stamp(sibling.stamp.0);
        builder.set_value(&sibling.value);
    }
}

fn read_siblings(list: capnp::struct_list::Reader<'_, wire::sibling::Owned>) -> Result<Vec<Sibling>, Error> {
    list.iter()
        .map(|sibling| Ok(Sibling { stamp: Stamp(sibling.get_stamp()), value: copy(sibling.get_value()?) }))
        .collect()
}

fn write_receipt(mut out: wire::receipt::Builder<'_>, receipt: &Receipt) {
    out.set_coordinator(receipt.coordinator.0);
    out.set_layout(receipt.layout);
    out.set_micros(receipt.micros);
    write_nodes(&receipt.acked, |count| out.reborrow().init_acked(count));
    if !receipt.fallbacks.is_empty() {
        write_nodes(&receipt.fallbacks, |count| out.reborrow().init_fallbacks(count));
    }
    if !receipt.repaired.is_empty() {
        write_nodes(&receipt.repaired, |count| out.reborrow().init_repaired(count));
    }
}

fn write_nodes<'a>(nodes: &[NodeId], init: impl FnOnce(u32) -> capnp::primitive_list::Builder<'a, u64>) {
    let mut list = init(nodes.len() as u32);
    for (at, node) in nodes.iter().enumerate() {
        list.set(at as u32, node.0);
    }
}

fn read_receipt(receipt: wire::receipt::Reader<'_>) -> Result<Receipt, Error> {
    let nodes = |list: capnp::primitive_list::Reader<'_, u64>| list.iter().map(NodeId).collect();
    Ok(Receipt {
        coordinator: NodeId(receipt.get_coordinator()),
        layout: receipt.get_layout(),
        acked: nodes(receipt.get_acked()?),
        fallbacks: nodes(receipt.get_fallbacks()?),
        repaired: nodes(receipt.get_repaired()?),
        micros: receipt.get_micros(),
    })
}

fn quorum_number(size: QuorumSize) -> i16 {
    match size {
        QuorumSize::Default => 0,
        QuorumSize::Majority => -1,
        QuorumSize::All => -2,
        QuorumSize::Count(count) => i16::from(count),
    }
}

fn quorum_size(number: i16) -> Result<QuorumSize, RequestError> {
    match number {
        0 => Ok(QuorumSize::Default),
        -1 => Ok(QuorumSize::Majority),
        -2 => Ok(QuorumSize::All),
        count => u8::try_from(count).map(QuorumSize::Count).map_err(|_| {
            RequestError::invalid(format!("quorum {count}: use 1 to 255, \"quorum\" or \"all\""))
        }),
    }
}

fn write_failure(mut out: failure::Builder<'_>, error: &RequestError) {
    use failure::Kind;
    match error {
        RequestError::Unavailable { needed, reachable } => {
            out.set_kind(Kind::Unavailable);
            out.set_needed(*needed);
            out.set_received(*reachable);
        }
        RequestError::Indeterminate { needed, received } => {
            out.set_kind(Kind::Indeterminate);
            out.set_needed(*needed);
            out.set_received(*received);
        }
        RequestError::Overloaded { what, limit } => {
            out.set_kind(Kind::Overloaded);
            out.set_limit(*limit);
            out.set_detail(what.as_str());
        }
        RequestError::DeadlineExceeded { needed, received, after_ms } => {
            out.set_kind(Kind::DeadlineExceeded);
            out.set_needed(*needed);
            out.set_received(*received);
            out.set_number(u64::from(*after_ms));
        }
        RequestError::TooManySiblings { siblings, limit } => {
            out.set_kind(Kind::TooManySiblings);
            out.set_number(u64::from(*siblings));
            out.set_limit(u64::from(*limit));
        }
        RequestError::StorageFailed { detail } => {
            out.set_kind(Kind::StorageFailed);
            out.set_detail(detail.as_str());
        }
        RequestError::InvalidRequest { detail } => {
            out.set_kind(Kind::InvalidRequest);
            out.set_detail(detail.as_str());
        }
    }
}

fn read_failure(failure: failure::Reader<'_>) -> Result<RequestError, Error> {
    use failure::Kind;
    let (needed, received) = (failure.get_needed(), failure.get_received());
    let (number, limit) = (failure.get_number() as u32, failure.get_limit());
    Ok(match failure.get_kind().map_err(unknown)? {
        Kind::Unavailable => RequestError::Unavailable { needed, reachable: received },
        Kind::Indeterminate => RequestError::Indeterminate { needed, received },
        Kind::Overloaded => RequestError::Overloaded { what: text(failure.get_detail())?, limit },
        Kind::DeadlineExceeded => RequestError::DeadlineExceeded { needed, received, after_ms: number },
        Kind::TooManySiblings => RequestError::TooManySiblings { siblings: number, limit: limit as u32 },
        Kind::StorageFailed => RequestError::StorageFailed { detail: text(failure.get_detail())? },
        Kind::InvalidRequest => RequestError::InvalidRequest { detail: text(failure.get_detail())? },
    })
}

//! Peers' operations and results.

use bytes::Bytes;
use capnp::Error;
use quorate_core::NodeId;
use quorate_core::key::{PartitionId, StorageKey};
use quorate_core::request::{PeerError, PeerReply, PeerRequest, PeerResult, ScanPage, ScanPartition};

use tokio::time::Instant;

use super::{client, text, timeout_ms, unknown};
use crate::generated::peer_capnp::{self as wire, failure, operation, result};
use crate::lane::{Protocol, Queued};

/// What nodes speak among themselves.
pub struct PeerProtocol;

impl Protocol for PeerProtocol {
    type Request = PeerRequest;
    type Reply = PeerResult;
    type Port = wire::peer::Client;

    fn bytes_of(request: &PeerRequest) -> usize {
        let fixed = 96;
        fixed
            + match request {
                PeerRequest::Read(key) => key.as_bytes().len(),
                PeerRequest::Write { key, object, .. } => key.as_bytes().len() + object.len(),
                PeerRequest::ScanPartition(scan) => scan.prefix.len() + scan.after.len(),
                PeerRequest::Forward(request) => client::request_bytes(request),
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

/// About how many bytes a result takes.
pub(crate) fn result_bytes(result: &PeerResult) -> usize {
    let fixed = 64;
    fixed
        + match result {
            Ok(PeerReply::Object(Some(object))) => object.len(),
            Ok(PeerReply::Page(page)) => {
                page.records.iter().map(|(key, object)| key.len() + object.len() + 32).sum()
            }
            Ok(PeerReply::Client(result)) => client::result_bytes(result),
            _ => 0,
        }
}

fn write_operation(mut out: operation::Builder<'_>, queued: &Queued<PeerRequest>, now: Instant) {
    out.set_id(queued.id);
    out.set_timeout_ms(timeout_ms(queued.timeout(now)));
    match &queued.request {
        PeerRequest::Read(key) => out.set_read(key.as_bytes()),
        PeerRequest::Write { key, object, hint_for } => {
            let mut write = out.init_write();
            write.set_key(key.as_bytes());
            write.set_object(object);
            write.set_hint_for(hint_for.map_or(0, |node| node.0));
        }
        PeerRequest::ScanPartition(scan) => {
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

/// The operation's request, or what is wrong with it: an error of this one operation, not of its batch. `None`: a ping.
pub(crate) fn read_operation(
    operation: operation::Reader<'_>,
) -> Result<Result<Option<PeerRequest>, PeerError>, Error> {
    let refused = |detail: &str| PeerError::Refused { detail: detail.into() };
    let key = |bytes: &[u8]| StorageKey::from_peer(bytes).ok_or_else(|| refused("malformed storage key"));
    Ok(match operation.which().map_err(unknown)? {
        operation::Ping(()) => Ok(None),
        operation::Read(bytes) => key(bytes?).map(|key| Some(PeerRequest::Read(key))),
        operation::Write(write) => {
            let write = write?;
            let object = Bytes::copy_from_slice(write.get_object()?);
            let hint_for = Some(write.get_hint_for()).filter(|&node| node != 0).map(NodeId);
            key(write.get_key()?).map(|key| Some(PeerRequest::Write { key, object, hint_for }))
        }
        operation::Scan(scan) => {
            let scan = scan?;
            Ok(Some(PeerRequest::ScanPartition(ScanPartition {
                partition: PartitionId(scan.get_partition()),
                prefix: Bytes::copy_from_slice(scan.get_prefix()?),
                after: Bytes::copy_from_slice(scan.get_after()?),
                limit: scan.get_limit(),
                max_bytes: scan.get_max_bytes(),
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
        Kind::Refused => PeerError::Refused { detail: detail()? },
    })
}

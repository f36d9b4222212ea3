//! Reads of this replica: one record, the hints for one key, or a page of a partition.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use quorate_core::codec::{decode_object, encode_object};
use quorate_core::event::EventKind;
use quorate_core::hint::hint_key;
use quorate_core::planted::{Bug, planted};
use quorate_core::request::{PeerError, PeerReply, PeerResult, ScanPage, ScanPartition};
use quorate_core::seams::ReplyTo;
use quorate_core::storage::{Range, StorageError};
use quorate_core::{Object, PartitionId, StorageKey};
use tokio::time::Instant;

use super::Replica;
use super::failure::storage_error_for_peer;
use crate::state::scan_scheduler::{Scanned, cost_of};
use crate::state::shared::Shared;

/// Largest number of records of one page, whatever a peer asks for.
const MAX_PAGE_RECORDS: usize = 4_096;

/// Largest number of bytes of one page, whatever a peer asks for.
const MAX_PAGE_BYTES: usize = 1024 * 1024;

impl Replica {
    /// Answers with the encoded object under a key, for a coordinator whose reads use the layout
    /// with this digest. Refuses if this replica may have forgotten the object.
    pub(crate) fn read(&self, key: &StorageKey, layout: u64) -> PeerResult {
        if !self.accepts_read(layout, key.partition()) {
            return Err(PeerError::StaleLayout);
        }
        if self.shared.is_recovering(key.partition()) && !planted(Bug::AmnesiacAnswers) {
            return Err(PeerError::Recovering);
        }
        self.fetch(key)
    }

    /// True if this node may answer a read of the partition by a coordinator whose reads use the
    /// layout with this digest.
    fn accepts_read(&self, layout: u64, partition: PartitionId) -> bool {
        self.shared.has_partition(partition)
            && self.shared.view().takes_read(layout, self.shared.node(), partition)
    }

    /// Answers with the encoded object under a key, for a repair. Does so also while this replica
    /// recovers.
    pub(crate) fn fetch(&self, key: &StorageKey) -> PeerResult {
        self.answer(self.shared.engine.get(key))
    }

    /// Answers with this node's hints for the key, merged into one object. `None` means that this
    /// node keeps no hint, never that the key is absent.
    pub(crate) fn read_hints(&self, key: &StorageKey) -> PeerResult {
        if !self.shared.has_partition(key.partition()) {
            return Err(PeerError::Refused { detail: "the cluster has no partition of this number".into() });
        }
        self.answer(hints_of(&self.shared, key))
    }

    fn answer(&self, found: Result<Option<Bytes>, StorageError>) -> PeerResult {
        match found {
            Ok(object) => Ok(PeerReply::Object(object)),
            Err(error) => {
                self.shared.emit(None, EventKind::StorageFailed { detail: error.to_string() });
                Err(storage_error_for_peer(&error))
            }
        }
    }

    /// Answers with a page of a partition. The scan waits for its turn, because the scans of one
    /// worker run one after the other.
    pub(crate) fn scan(self: &Rc<Self>, scan: ScanPartition, timeout: Duration, reply: ReplyTo<PeerResult>) {
        self.clone().scan_in_turn(timeout, reply, move |replica| {
            let answer = replica.scan_page(&scan);
            let cost = match &answer {
                Ok(PeerReply::Page(page)) => cost_of(&page.records),
                _ => 0,
            };
            Scanned { found: answer, cost }
        });
    }

    fn scan_page(&self, scan: &ScanPartition) -> PeerResult {
        if !self.accepts_read(scan.layout, scan.partition) {
            return Err(PeerError::StaleLayout);
        }
        if self.shared.is_recovering(scan.partition) && !planted(Bug::AmnesiacAnswers) {
            return Err(PeerError::Recovering);
        }
        let begin = StorageKey::partition_start(scan.partition);
        if !scan.prefix.starts_with(&begin) || !(scan.after.is_empty() || scan.after.starts_with(&begin)) {
            return Err(PeerError::Refused {
                detail: "the prefix or the position of the scan lies outside of its partition".into(),
            });
        }
        let end = quorate_core::key::end_of_prefix(&scan.prefix);
        let start = scan.after.clone().max(scan.prefix.clone());
        let range = Range {
            start: &start,
            after: !scan.after.is_empty() && start == scan.after,
            end: end.as_deref(),
            limit: (scan.limit as usize).clamp(1, MAX_PAGE_RECORDS),
            max_bytes: (scan.max_bytes as usize).min(MAX_PAGE_BYTES),
        };
        match self.shared.engine.scan(range) {
            Ok(page) => Ok(PeerReply::Page(ScanPage { records: page.records, more: page.more })),
            Err(error) => Err(storage_error_for_peer(&error)),
        }
    }

    /// Runs a scan when its turn comes, and answers with its result. Answers `Expired` if the
    /// deadline has passed by then.
    pub(crate) fn scan_in_turn(
        self: Rc<Self>,
        timeout: Duration,
        reply: ReplyTo<PeerResult>,
        scan: impl FnOnce(&Replica) -> Scanned<PeerResult> + 'static,
    ) {
        let deadline = Instant::now() + timeout;
        tokio::task::spawn_local(async move {
            let answer = || {
                let Scanned { found, cost } = match Instant::now() < deadline {
                    true => scan(&self),
                    false => Scanned { found: Err(PeerError::Expired), cost: 0 },
                };
                reply.send(found);
                Scanned { found: (), cost }
            };
            self.scans.run(answer).await;
        });
    }
}

/// Merges this node's hints for the key into one object. `None`: there are no hints.
fn hints_of(shared: &Shared, key: &StorageKey) -> Result<Option<Bytes>, StorageError> {
    let rule = shared.merge_rule(key.bucket());
    let mut merged: Option<Object> = None;
    let mut long_key = None;
    let mut only: Option<Bytes> = None;
    // The search includes hints for nodes that are no longer replicas of the key.
    for target in shared.hints.targets() {
        let Some(hint) = shared.engine.get(&hint_key(target, key))? else { continue };
        let record = decode_object(&hint).map_err(|error| StorageError::Io { detail: error.to_string() })?;
        long_key = long_key.or(record.long_key);
        match &mut merged {
            None => {
                only = Some(hint);
                merged = Some(record.object);
            }
            Some(merged) => {
                only = None;
                merged.merge(&record.object, rule);
            }
        }
    }
    Ok(only.or_else(|| merged.map(|merged| encode_object(&merged, long_key.as_deref()))))
}

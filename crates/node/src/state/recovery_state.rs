//! The data that this node may have forgotten. The reason is a start with an empty disk, a storage
//! engine that is not durable, or a damaged record.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_core::PartitionId;

/// The data that this node may have forgotten and has not merged from enough other nodes yet.
pub(crate) struct RecoveryState {
    /// True if this node may have forgotten data before its start and has not recovered all of it
    /// yet.
    forgot: AtomicBool,
    /// True once this node has compared layouts with enough other nodes. Until then it accepts no
    /// records from a peer, because a peer that seems to be a member may have been removed.
    layouts_confirmed: AtomicBool,
    /// Per partition: true if this node may have forgotten records, and has not merged with enough
    /// replicas yet.
    recovering: Vec<AtomicBool>,
    /// Per partition: the number of lost records (damaged ones) that were found since the start.
    losses: Vec<AtomicU64>,
}

impl RecoveryState {
    /// Creates the state at a node's start. `recovering` has one value for each partition: true if
    /// this node must recover the partition before it answers reads of it.
    pub(crate) fn new(
        forgot: Amnesia,
        layouts_confirmed: Confirmation,
        recovering: impl ExactSizeIterator<Item = bool>,
    ) -> RecoveryState {
        RecoveryState {
            losses: (0..recovering.len()).map(|_| AtomicU64::new(0)).collect(),
            recovering: recovering.map(AtomicBool::new).collect(),
            forgot: AtomicBool::new(forgot == Amnesia::Possible),
            layouts_confirmed: AtomicBool::new(layouts_confirmed == Confirmation::Given),
        }
    }

    /// Records that a layout change gave this node a partition. If the node may have forgotten data
    /// at its start, it may have forgotten that partition too, so the partition recovers.
    pub(crate) fn gained(&self, partition: PartitionId) {
        if self.forgot.load(Ordering::Acquire) {
            self.recovering[partition.0 as usize].store(true, Ordering::Release);
        }
    }

    /// Records that all data that may have been forgotten at the start has been recovered.
    pub(crate) fn start_is_recovered(&self) {
        self.forgot.store(false, Ordering::Release);
    }

    /// True if this node cannot have lost its layouts, or has compared them with enough nodes.
    pub(crate) fn are_layouts_confirmed(&self) -> bool {
        self.layouts_confirmed.load(Ordering::Acquire)
    }

    pub(crate) fn confirm_layouts(&self) {
        self.layouts_confirmed.store(true, Ordering::Release);
    }

    /// Ends the recovery of a partition of which this node no longer holds anything.
    pub(crate) fn forget(&self, partition: PartitionId) {
        self.recovering[partition.0 as usize].store(false, Ordering::Release);
    }

    /// True if this node may have forgotten records of the partition. It then refuses reads of it.
    pub(crate) fn is_recovering(&self, partition: PartitionId) -> bool {
        self.recovering.get(partition.0 as usize).is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// Returns the partitions of which this node may have forgotten records.
    pub(crate) fn partitions(&self) -> Vec<PartitionId> {
        let numbered = self.recovering.iter().enumerate();
        let recovering = numbered.filter(|(_, flag)| flag.load(Ordering::Acquire));
        recovering.map(|(number, _)| PartitionId(number as u16)).collect()
    }

    /// Counts a lost record. Starts the recovery of its partition, if other replicas exist. Without
    /// them, no node could restore the record.
    pub(crate) fn lost_record(&self, partition: PartitionId, copies: Copies) {
        self.losses[partition.0 as usize].fetch_add(1, Ordering::AcqRel);
        self.recovering[partition.0 as usize].store(copies == Copies::Several, Ordering::Release);
    }

    /// Returns the number of lost records that were found in the partition.
    pub(crate) fn losses(&self, partition: PartitionId) -> u64 {
        self.losses[partition.0 as usize].load(Ordering::Acquire)
    }

    /// Ends the recovery of the partition. The recovery continues if another record was lost since
    /// the caller read the number `losses`.
    pub(crate) fn recovered(&self, partition: PartitionId, losses: u64) {
        self.recovering[partition.0 as usize].store(false, Ordering::Release);
        if self.losses(partition) != losses {
            self.recovering[partition.0 as usize].store(true, Ordering::Release);
        }
    }
}

/// Possible loss of data before this node's start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Amnesia {
    Possible,
    None,
}

/// Agreement of enough other nodes on the layouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Confirmation {
    Given,
    Missing,
}

/// The number of replicas that each partition has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copies {
    One,
    Several,
}

//! The data that this node may have forgotten: after a start with an empty or volatile disk, or when
//! it finds a damaged record.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quorate_core::PartitionId;

/// What this node may have forgotten and has not asked enough other nodes for yet.
pub(crate) struct RecoveryState {
    /// Not all that was forgotten at the start was asked for yet.
    forgot: AtomicBool,
    /// Enough other nodes were asked about layouts. Until then this node takes nothing from a peer,
    /// because a peer that it takes for a member may have been removed.
    layouts_confirmed: AtomicBool,
    /// Per partition: this node may have forgotten records, and has not asked enough replicas yet.
    recovering: Vec<AtomicBool>,
    /// Per partition: the number of records that were found lost.
    losses: Vec<AtomicU64>,
}

impl RecoveryState {
    /// `recovering`: per partition, whether it must recover.
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

    /// A layout change gave this node a partition. If it forgot data at its start, it may have
    /// forgotten that partition too.
    pub(crate) fn gained(&self, partition: PartitionId) {
        if self.forgot.load(Ordering::Acquire) {
            self.recovering[partition.0 as usize].store(true, Ordering::Release);
        }
    }

    /// Records that all that was forgotten at the start has been asked for.
    pub(crate) fn start_is_recovered(&self) {
        self.forgot.store(false, Ordering::Release);
    }

    /// True once enough other nodes were asked about layouts, if this node may have forgotten those.
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

    /// True if this node may have forgotten records of the partition: it answers no reads of it.
    pub(crate) fn is_recovering(&self, partition: PartitionId) -> bool {
        self.recovering.get(partition.0 as usize).is_some_and(|flag| flag.load(Ordering::Acquire))
    }

    /// The partitions of which this node may have forgotten records.
    pub(crate) fn partitions(&self) -> Vec<PartitionId> {
        let numbered = self.recovering.iter().enumerate();
        let recovering = numbered.filter(|(_, flag)| flag.load(Ordering::Acquire));
        recovering.map(|(number, _)| PartitionId(number as u16)).collect()
    }

    /// Counts a lost record. Starts the recovery of its partition, unless this node is its only replica.
    pub(crate) fn lost_record(&self, partition: PartitionId, copies: Copies) {
        self.losses[partition.0 as usize].fetch_add(1, Ordering::AcqRel);
        self.recovering[partition.0 as usize].store(copies == Copies::Several, Ordering::Release);
    }

    /// The number of records of the partition that were found lost.
    pub(crate) fn losses(&self, partition: PartitionId) -> u64 {
        self.losses[partition.0 as usize].load(Ordering::Acquire)
    }

    /// Ends the recovery of the partition, unless another record was lost since `losses` were counted.
    pub(crate) fn recovered(&self, partition: PartitionId, losses: u64) {
        self.recovering[partition.0 as usize].store(false, Ordering::Release);
        if self.losses(partition) != losses {
            self.recovering[partition.0 as usize].store(true, Ordering::Release);
        }
    }
}

/// Whether this node may have forgotten data when it started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Amnesia {
    Possible,
    None,
}

/// Whether enough nodes were asked about layouts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Confirmation {
    Given,
    Missing,
}

/// The number of replicas that the partitions have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copies {
    One,
    Several,
}

//! A machine of the cluster: its disk and clock, which outlive the processes of its node.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use quorate_core::Member;

use super::disk::Disk;
use super::storage::Durability;
use crate::naming::node_name;
use crate::oracle::Oracle;
use crate::random::Random;

/// One node's machine.
pub(super) struct Machine {
    pub(super) number: usize,
    pub(super) member: Member,
    pub(super) disk: Arc<Disk>,
    /// Difference of the wall clock from the true time, in milliseconds.
    pub(super) skew_ms: Arc<AtomicI64>,
    /// Generator from which each process of the node gets a generator of its own.
    pub(super) random: Random,
    pub(super) durability: Durability,
}

impl Machine {
    /// Creates a machine with an empty disk and a correct clock.
    pub(super) fn new(
        number: usize,
        durability: Durability,
        oracle: &Arc<Oracle>,
        random: &mut Random,
    ) -> Machine {
        let name = node_name(number);
        Machine {
            number,
            member: Member::new(&name, &format!("{name}:7400"), ""),
            disk: Disk::new(number, oracle.clone(), random.fork()),
            skew_ms: Arc::default(),
            random: random.fork(),
            durability,
        }
    }
}

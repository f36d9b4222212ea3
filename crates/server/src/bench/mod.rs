//! The load generator behind `quorate bench`: real clients, real requests, latencies that can be trusted.
//!
//! - `workload.rs`: which operation on which key (pure, seeded).
//! - `ledger.rs`: what a value holds, and what a read may return.
//! - `drive.rs`: threads, clients, closed loop and open loop.
//! - `report.rs`: figures for people and for scripts.

mod drive;
mod ledger;
mod report;
mod workload;

pub(crate) use drive::{Plan, Progress, run};
pub(crate) use ledger::MIN_VERIFIED_BYTES;
pub(crate) use report::{Report, extend};
pub(crate) use workload::{Distribution, Workload};

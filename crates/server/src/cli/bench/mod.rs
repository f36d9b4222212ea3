//! The command `bench`, a load generator: real clients, real requests, and latencies that can be
//! trusted.
//!
//! - `command.rs`: the command's arguments, and the printed result.
//! - `plan.rs`: the parameters of one run.
//! - `drive.rs`: threads, clients, closed loop and open loop.
//! - `clock.rs`: the times of a run, and the pace of an open loop.
//! - `workload.rs`: which operation on which key (pure, seeded).
//! - `ledger.rs`: the content of values, and what a read may return.
//! - `report.rs`: figures for people and for scripts.
//! - `progress.rs`: a progress bar.

mod clock;
mod command;
mod drive;
mod ledger;
mod plan;
mod progress;
mod report;
mod workload;

pub(super) use command::Bench;

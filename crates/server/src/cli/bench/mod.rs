//! The command `bench`: a load generator. It sends requests through the client that applications
//! use, and measures their latencies.
//!
//! - `command.rs`: the command's arguments, and the printed result.
//! - `plan.rs`: the parameters of one run.
//! - `drive.rs`: threads, clients, closed loop and open loop.
//! - `clock.rs`: the times of a run, and the pace of an open loop.
//! - `workload.rs`: the operations and their keys, chosen at random from a seed.
//! - `ledger.rs`: the content of values, and what a read may return.
//! - `report.rs`: the results, for people and for scripts.
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

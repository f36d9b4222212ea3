//! The random workload of one seed: clients that read and write while faults are injected.
//!
//! - `seed`: draws a run from a seed, runs it, and checks it.
//! - `clients`: clients that read, write, delete and retry.
//! - `nemesis`: injects random faults, and repairs them.
//! - `scripted_faults`: sequences of faults that random ones rarely form.
//! - `operator`: random changes of the layout and of a bucket's definition.
//! - `limits`: bounds of the faults in one run.

mod clients;
mod limits;
mod nemesis;
mod operator;
mod scripted_faults;
mod seed;

pub use seed::run_seed;

//! Tests of the cluster in simulation: named scenarios, random seeds, and planted bugs.

mod scenarios;
mod seeds;

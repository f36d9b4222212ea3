//! The simulation's tests: the named scenarios, random seeds, and that planted bugs are found.

mod scenarios;
mod seeds;

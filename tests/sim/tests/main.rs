//! The simulation's tests.

mod scenarios;

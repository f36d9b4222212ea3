//! The suites that a plugin runs to show that it keeps its trait's contract. Behind the feature `conformance`.
//!
//! ```ignore
//! #[test]
//! fn keeps_the_contract() {
//!     quorate_core::conformance::storage::run(|context| Arc::new(open(Config::default(), context).unwrap()));
//! }
//! ```
//!
//! A suite panics with the sentence of the contract that is broken. It is itself tested against plugins that are broken
//! on purpose (`crates/core/tests/broken_plugins.rs`).

pub mod membership;
pub mod resolver;
pub mod storage;

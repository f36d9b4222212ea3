//! The conformance suites. A plugin runs one to show that it keeps its trait's contract. They need
//! the feature `conformance`.
//!
//! ```ignore
//! #[test]
//! fn keeps_the_contract() {
//!     quorate_core::conformance::storage::run(|context| Arc::new(open(Config::default(), context).unwrap()));
//! }
//! ```
//!
//! A suite panics with the sentence of the contract that is broken. The suites themselves are
//! tested against plugins that are broken on purpose (`crates/core/tests/broken_plugins.rs`).

pub mod membership;
pub mod resolver;
pub mod storage;

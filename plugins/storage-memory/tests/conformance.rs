//! The memory engine passes the conformance suite of storage engines.

use std::sync::Arc;

use quorate_storage_memory::{Config, open};

#[test]
fn memory_keeps_the_contract() {
    quorate_core::conformance::storage::run(|context| Arc::new(open(Config::default(), context).unwrap()));
}

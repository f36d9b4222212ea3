//! The engine passes the conformance suite of storage engines.

use std::sync::Arc;

use my_engine::{Config, open};

#[test]
fn keeps_the_contract() {
    quorate_core::conformance::storage::run(|context| Arc::new(open(Config::default(), context).unwrap()));
}

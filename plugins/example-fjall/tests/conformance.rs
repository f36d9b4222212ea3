//! The example keeps the contract of storage engines, through the same suite as the built-in ones.

use std::sync::Arc;

#[test]
fn fjall_keeps_the_contract() {
    quorate_core::conformance::storage::run(|context| {
        Arc::new(quorate_example_fjall::open(quorate_example_fjall::Config::default(), context).unwrap())
    });
}

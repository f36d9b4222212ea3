//! The example engine passes the conformance suite of storage engines, as the built-in ones do.

use std::sync::Arc;

#[test]
fn fjall_keeps_the_contract() {
    quorate_core::conformance::storage::run(|context| {
        Arc::new(quorate_example_fjall::open(quorate_example_fjall::Config::default(), context).unwrap())
    });
}

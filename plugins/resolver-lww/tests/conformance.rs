//! The last-write-wins resolver passes the conformance suite of resolvers.

#[test]
fn lww_keeps_the_contract() {
    quorate_core::conformance::resolver::run(|context| {
        quorate_resolver_lww::open(Default::default(), context).unwrap()
    });
}

//! The siblings resolver passes the conformance suite of resolvers.

#[test]
fn siblings_keeps_the_contract() {
    quorate_core::conformance::resolver::run(|context| {
        quorate_resolver_siblings::open(Default::default(), context).unwrap()
    });
}

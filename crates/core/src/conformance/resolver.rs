//! The conformance suite of [`ConflictResolver`].

use std::path::Path;

use crate::causality::{Actor, Dot};
use crate::clock::Stamp;
use crate::member::Member;
use crate::object::{MergeRule, Payload, RequestId, Version};
use crate::plugin::PluginContext;
use crate::resolver::ConflictResolver;

/// Runs the whole suite. `open` opens the resolver.
///
/// # Panics
/// If the resolver breaks the contract, with the sentence that it breaks.
pub fn run<R: ConflictResolver>(open: impl FnOnce(&PluginContext<'_>) -> R) {
    let this = Member::new("n1", "127.0.0.1:7400", "");
    let resolver = &open(&PluginContext { data_folder: Path::new(""), this: &this });
    for count in 1..6 {
        let versions: Vec<Version> = (0..count).map(version).collect();
        check(resolver, &versions);
    }
    // These versions have equal stamps of several actors. Two have equal values, one has an empty
    // value.
    let mut tied: Vec<Version> = (0..4).map(version).collect();
    tied.iter_mut().for_each(|version| version.dot.stamp = Stamp(7));
    tied[1].payload = Payload::Value("".into());
    tied[2].payload = tied[0].payload.clone();
    check(resolver, &tied);
}

fn version(number: u64) -> Version {
    // The order of the actors differs from that of the stamps.
    let dot = Dot { actor: Actor((number * 5 + 3) % 7), stamp: Stamp(10 + number) };
    Version { dot, request: RequestId(number), payload: Payload::Value(vec![number as u8; 3].into()) }
}

fn check(resolver: &dyn ConflictResolver, versions: &[Version]) {
    let shown = resolver.resolve(versions.iter().collect());
    assert!(!shown.is_empty(), "a resolver shows at least one version");
    assert!(
        shown.iter().all(|version| versions.contains(version)),
        "a resolver shows only versions it was given"
    );
    assert!(shown.is_sorted_by_key(|version| version.dot.stamp), "shown versions are in stamp order");
    let set = |shown: &[&Version]| {
        let mut dots: Vec<Dot> = shown.iter().map(|version| version.dot).collect();
        dots.sort();
        dots
    };
    for rotation in 0..versions.len() {
        let mut turned: Vec<&Version> = versions.iter().collect();
        turned.rotate_left(rotation);
        assert_eq!(
            set(&resolver.resolve(turned.clone())),
            set(&shown),
            "the order of versions changes nothing"
        );
        turned.reverse();
        assert_eq!(set(&resolver.resolve(turned)), set(&shown), "the order of versions changes nothing");
    }
    assert_eq!(set(&resolver.resolve(versions.iter().collect())), set(&shown), "a resolver is deterministic");
    assert_eq!(
        set(&resolver.resolve(shown.clone())),
        set(&shown),
        "resolving the shown versions shows all of them again"
    );
    if resolver.merge_rule() == MergeRule::KeepNewest {
        let newest = versions.iter().max_by_key(|version| (version.dot.stamp, version.dot.actor));
        assert_eq!(
            set(&shown),
            set(&newest.into_iter().collect::<Vec<_>>()),
            "a resolver whose replicas keep the newest version shows that one"
        );
    }
}

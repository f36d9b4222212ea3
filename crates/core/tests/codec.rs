//! The encoding survives truncation, bit flips and hostile bytes.

use bytes::Bytes;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use quorate_core::codec::{
    CodecError, decode_context, decode_object, decode_unread, encode_context, encode_object,
};
use quorate_core::object::{ReplacedRequest, RequestId};
use quorate_core::{Actor, CausalContext, Dot, Layout, Member, Object, Payload, Stamp, Version};

fn stamps() -> impl Strategy<Value = Stamp> {
    (0..=Stamp::MAX.0).prop_map(Stamp)
}

fn dots() -> impl Strategy<Value = Dot> {
    (0u64..5, stamps()).prop_map(|(actor, stamp)| Dot { actor: Actor(actor), stamp })
}

fn contexts() -> impl Strategy<Value = CausalContext> {
    (btree_map(0u64..5, stamps(), 0..5), vec(dots(), 0..5)).prop_map(|(vector, extra)| {
        let vector = vector.into_iter().map(|(actor, stamp)| (Actor(actor), stamp)).collect();
        let mut context = CausalContext::from_parts(vector, Vec::new()).unwrap();
        extra.into_iter().for_each(|dot| context.add_dot(dot));
        context
    })
}

fn objects() -> impl Strategy<Value = Object> {
    let large = vec(any::<u8>(), 1_000..1_100);
    let payload = prop_oneof![Just(None), vec(any::<u8>(), 0..300).prop_map(Some), large.prop_map(Some)];
    let live = vec((dots(), any::<u64>(), payload), 0..5);
    let requests = btree_set(any::<u64>(), 0..10);
    (contexts(), live, requests).prop_map(|(replaced, live, requests)| {
        let mut versions: Vec<Version> = live
            .into_iter()
            .filter(|(dot, ..)| !replaced.contains(*dot))
            .map(|(dot, request, payload)| Version {
                dot,
                request: RequestId(request),
                payload: payload.map_or(Payload::Tombstone, |value| Payload::Value(value.into())),
            })
            .collect();
        versions.sort_by_key(|version| version.dot);
        versions.dedup_by_key(|version| version.dot);
        let requests = requests
            .into_iter()
            .enumerate()
            // Each time is used for two requests, so that the order by (time, id) is tested too.
            .map(|(at, request)| ReplacedRequest {
                request: RequestId(request),
                replaced_ms: 1_000 - at as u64 / 2,
            })
            .collect();
        Object::from_parts(replaced, versions, requests).unwrap()
    })
}

proptest! {
    #[test]
    fn objects_round_trip(object in objects(), key in proptest::option::of(vec(any::<u8>(), 401..1024))) {
        let bytes = encode_object(&object, key.as_deref());
        let record = decode_object(&bytes).unwrap();
        prop_assert_eq!(&record.object, &object);
        prop_assert_eq!(record.object.digest(), object.digest());
        prop_assert_eq!(record.long_key.as_deref(), key.as_deref());
    }

    #[test]
    fn truncated_records_are_errors(object in objects()) {
        let bytes = encode_object(&object, None);
        for end in 0..bytes.len() {
            prop_assert!(decode_object(&bytes.slice(..end)).is_err());
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        prop_assert!(decode_object(&longer.into()).is_err());
    }

    #[test]
    fn flipped_bits_are_errors(object in objects(), at in any::<prop::sample::Index>(), bit in 0..8u32) {
        let mut bytes = encode_object(&object, None).to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(decode_object(&bytes.into()).is_err());
    }

    /// A decoder that does not read large values notices all other damage. The later check of the
    /// large values finds the damage in these.
    #[test]
    fn only_large_values_may_be_damaged_in_an_unread_record(
        object in objects(),
        at in any::<prop::sample::Index>(),
        bit in 0..8u32,
    ) {
        let whole = encode_object(&object, None);
        let mut bytes = whole.to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let lengths = object.live().iter().map(|version| version.payload.len());
        let apart: usize = lengths.filter(|&length| length > 1_024).sum();
        match decode_unread(&Bytes::from(bytes)) {
            Err(_) => prop_assert!(at < whole.len() - apart),
            Ok(unread) => {
                prop_assert!(at >= whole.len() - apart);
                prop_assert_eq!(unread.check(), Err(CodecError::Checksum));
                prop_assert_eq!(unread.unchecked().object.digest(), object.digest());
            }
        }
    }

    #[test]
    fn hostile_bytes_are_errors(bytes in vec(any::<u8>(), 0..400)) {
        prop_assert!(decode_object(&Bytes::from(bytes.clone())).is_err());
        prop_assert!(bytes.is_empty() || decode_context(&bytes, 7).is_err());
        prop_assert!(Layout::decode(&bytes).is_err());
    }

    /// Arbitrary bytes with a correct checksum are an error, or decode to an object that encodes to
    /// the same bytes. They never cause a panic.
    #[test]
    fn invalid_records_with_a_correct_checksum_are_no_panic(mut body in vec(any::<u8>(), 4..200), apart: bool, behind in 0..1_100usize) {
        let flags = if apart { 2 } else { 0 };
        let mut bytes = vec![2, flags];
        if apart {
            let head = 10 + body.len() as u32;
            body[..4].copy_from_slice(&head.to_le_bytes());
        }
        let lead = (2 * 256 + u64::from(flags)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        bytes.extend_from_slice(&(xxhash_rust::xxh3::xxh3_64(&body) ^ lead).to_le_bytes());
        bytes.extend_from_slice(&body);
        if apart {
            bytes.resize(bytes.len() + behind, 7);
        }
        let bytes = Bytes::from(bytes);
        match decode_object(&bytes) {
            Err(CodecError::Checksum) => prop_assert!(false, "the test computes the checksum as the codec does"),
            Err(_) => {}
            Ok(record) => {
                prop_assert_eq!(encode_object(&record.object, record.long_key.as_deref()), bytes);
            }
        }
    }

    #[test]
    fn contexts_round_trip_and_are_bound_to_their_key(context in contexts(), hash in any::<u64>()) {
        let bytes = encode_context(&context, hash);
        prop_assert_eq!(decode_context(&bytes, hash), Ok(context));
        prop_assert_eq!(decode_context(&bytes, hash ^ 1), Err(CodecError::OtherKey));
        for end in 1..bytes.len() {
            prop_assert!(decode_context(&bytes[..end], hash).is_err());
        }
    }
}

/// Records on existing disks stay readable: an encoding never changes without a new version.
#[test]
fn the_encoding_has_not_changed() {
    let version = |stamp, value: &[u8]| Version {
        dot: Dot { actor: Actor(3), stamp: Stamp(stamp) },
        request: RequestId(9),
        payload: Payload::Value(Bytes::copy_from_slice(value)),
    };
    let replaced = CausalContext::from_parts(vec![(Actor(2), Stamp(1))], Vec::new()).unwrap();
    let small = Object::from_parts(replaced.clone(), vec![version(5, b"v")], Vec::new()).unwrap();
    let body = "0102000000000000000100000000000000000001030000000000000005000000000000000900000000000000";
    assert_eq!(hex(&encode_object(&small, None)), format!("02007e823fd4d7c76459{body}010176"));
    let large = Object::from_parts(replaced, vec![version(5, &[7; 2_000])], Vec::new()).unwrap();
    let encoded = encode_object(&large, None);
    let head = format!("020266f752874ede3db245000000{body}02d00fa4503dce50802239");
    assert_eq!(hex(&encoded), head + &"07".repeat(2_000));

    // A record of the first version, with all values within the record's checksum.
    let mut first = vec![1, 0];
    let within: Vec<u8> = [&unhex(body)[..], &[1, 0xd0, 0x0f], &[7; 2_000]].concat();
    let checksum = xxhash_rust::xxh3::xxh3_64(&within) ^ 256u64.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    first.extend_from_slice(&checksum.to_le_bytes());
    first.extend_from_slice(&within);
    assert_eq!(decode_object(&first.into()).unwrap().object, large);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(digits: &str) -> Vec<u8> {
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn a_newer_format_is_named() {
    let mut bytes = encode_object(&Object::default(), None).to_vec();
    bytes[0] = 9;
    let error = decode_object(&bytes.into()).unwrap_err();
    assert!(error.to_string().contains("version 9"), "{error}");
}

#[test]
fn layouts_round_trip_and_truncations_are_errors() {
    let members = (0..5).map(|n| Member::new(&format!("n{n}"), &format!("h:{n}"), "z")).collect();
    let layout = Layout::first(members, 64, 3).unwrap();
    let bytes = layout.encode();
    assert_eq!(Layout::decode(&bytes).unwrap(), layout);
    for end in 0..bytes.len() {
        assert!(Layout::decode(&bytes[..end]).is_err());
    }
}

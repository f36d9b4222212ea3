"""Reads and writes on a healthy cluster, with both storage engines."""

from __future__ import annotations

import itertools
import json
import pickle
import warnings
from datetime import timedelta
from typing import Any

import pytest

import quorate
from quorate import EMPTY, Client, ConflictError, ConflictWarning, Context, InvalidRequest, LocalCluster

QUORUMS: list[Any] = [1, 2, 3, "quorum", "all"]


def wrong(value: object) -> Any:
    """Return a value as ``Any``: a type checker would refuse it, but a caller may still pass it."""
    return value


@pytest.mark.parametrize(("r", "w"), list(itertools.product(QUORUMS, QUORUMS)))
def test_a_read_returns_the_write_if_their_quorums_overlap(db: Client, name: str, r: Any, w: Any) -> None:
    bucket = db.bucket(name)
    put = bucket.put("k", b"v", w=w)
    acks = {"quorum": 2, "all": 3}.get(w, w)
    assert put.acks >= acks and not put.conflict and put.hinted == 0
    reads = {"quorum": 2, "all": 3}.get(r, r)
    if reads + acks > 3:
        entry = bucket.get("k", r=r)
        assert entry is not None and entry.value == b"v"


def test_quorums_are_never_clamped(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    with pytest.raises(InvalidRequest, match=r"w=4.*n=3"):
        bucket.put("k", b"v", w=4)
    with pytest.raises(InvalidRequest, match=r"r=4.*n=3"):
        bucket.get("k", r=4)
    with pytest.raises(InvalidRequest, match="r=0"):
        bucket.get("k", r=0)
    with pytest.raises(InvalidRequest, match="most"):
        db.bucket(name, w=wrong("most"))
    with pytest.raises(InvalidRequest, match=r"w=3.*n=2"):
        db.bucket("two").put("k", b"v", w=3)


def test_absent_and_deleted_keys(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    assert bucket.get("k") is None
    assert bucket.get_value("k") is None
    assert bucket.get_value("k", default=b"d") == b"d"
    assert not bucket.exists("k")
    bucket.put("k", b"v")
    assert bucket.exists("k") and bucket.get_value("k") == b"v"
    bucket.delete("k")
    assert bucket.get("k") is None and not bucket.exists("k")
    bucket.put("k", b"again")
    assert bucket.get_value("k") == b"again"
    bucket.delete("never written")


def test_put_with_a_context_replaces_what_was_read(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put("k", b"a")
    entry = bucket.get("k")
    assert entry is not None
    bucket.put("k", b"b", context=entry.context)
    late = bucket.put("k", b"c", context=entry.context)
    assert late.conflict
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"b", b"c"] and entry.conflict
    bucket.put("k", b"d", context=entry.context)
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"d"] and not entry.conflict


def test_put_without_a_context_overwrites(db: Client, cluster: LocalCluster, name: str) -> None:
    bucket = db.bucket(name)
    for value in [b"a", b"b", b"c"]:
        assert not bucket.put("k", value).conflict
    with cluster.connect() as other:
        other.bucket(name).put("k", b"d")
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"d"]


def test_put_with_the_empty_context_makes_a_sibling(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    puts = [bucket.put("k", value, context=EMPTY) for value in [b"a", b"b", b"c"]]
    assert [put.conflict for put in puts] == [False, True, True]
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"a", b"b", b"c"]


def test_the_sibling_limit_applies_to_empty_contexts_only(db: Client) -> None:
    bucket = db.bucket("narrow")
    for value in [b"a", b"b", b"c"]:
        bucket.put("k", value, context=EMPTY)
    with pytest.raises(quorate.TooManySiblings, match=r"the key has 3, the limit is 3"):
        bucket.put("k", b"d", context=EMPTY)
    entry = bucket.get("k")
    assert entry is not None and len(entry.siblings) == 3
    bucket.put("k", b"z", context=entry.context)
    assert bucket.get_value("k") == b"z"


def test_the_context_of_a_put_does_not_cover_unseen_siblings(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put("k", b"unseen", context=EMPTY)
    put = bucket.put("k", b"mine 0", context=EMPTY)
    for number in range(1, 50):
        put = bucket.put("k", f"mine {number}".encode(), context=put.context)
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"unseen", b"mine 49"]


def test_siblings_of_concurrent_writers_are_resolved_by_a_function(cluster: LocalCluster, name: str) -> None:
    def union(values: list[dict[str, int]]) -> dict[str, int]:
        return {key: count for value in values for key, count in value.items()}

    with cluster.connect() as one, cluster.connect() as two:
        ann, bob = (db.bucket(name, codec="json", resolve=union) for db in (one, two))
        ann.put("cart", {"milk": 1})
        seen_by_ann, seen_by_bob = ann.get("cart"), bob.get("cart")
        assert seen_by_ann is not None and seen_by_bob is not None
        ann.put("cart", {"milk": 1, "eggs": 6}, context=seen_by_ann.context)
        bob.put("cart", {"milk": 1, "tea": 2}, context=seen_by_bob.context)
        entry = ann.get("cart")
        assert entry is not None and entry.siblings == [{"milk": 1, "eggs": 6}, {"milk": 1, "tea": 2}]
        assert entry.value == {"milk": 1, "eggs": 6, "tea": 2}
        ann.update("cart", lambda cart: {**(cart or {}), "rice": 1})
        entry = bob.get("cart")
        assert entry is not None and entry.siblings == [{"milk": 1, "eggs": 6, "tea": 2, "rice": 1}]


def test_conflicts_without_a_resolver_warn_once_or_raise(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    for value in [b"a", b"b"]:
        bucket.put("k", value, context=EMPTY)
    with pytest.warns(ConflictWarning, match="2 siblings"):
        assert bucket.get_value("k") == b"b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bucket.get_value("k") == b"b"
    strict = db.bucket(name, on_conflict="raise")
    entry = strict.get("k")
    assert entry is not None
    with pytest.raises(ConflictError, match="2 siblings") as caught:
        _ = entry.value
    assert caught.value.siblings == [b"a", b"b"]
    with pytest.raises(ConflictError):
        bucket.update("k", lambda value: b"c")


def test_last_write_wins_bucket_keeps_one_version(db: Client) -> None:
    bucket = db.bucket("lww")
    for value in [b"a", b"b", b"c"]:
        put = bucket.put("k", value, context=EMPTY)
        assert not put.conflict
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"c"]
    assert all(len(holding["versions"]) == 1 for holding in bucket.explain("k")["holdings"])
    bucket.delete("k")
    assert bucket.get("k") is None


def test_delete_with_a_context_keeps_later_writes(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put("k", b"old")
    entry = bucket.get("k")
    assert entry is not None
    bucket.put("k", b"new", context=EMPTY)
    bucket.delete("k", context=entry.context)
    entry = bucket.get("k")
    assert entry is not None and entry.siblings == [b"new"]


def test_update_creates_and_changes_a_value(db: Client, name: str) -> None:
    counters = db.bucket(name, codec="json")
    for expected in [1, 2, 3]:
        counters.update("visits", lambda count: (count or 0) + 1)
        assert counters.get_value("visits") == expected


def test_many_keys_are_written_read_and_deleted_in_one_call(db: Client, name: str) -> None:
    bucket = db.bucket(name, codec="json")
    items = {f"k{number}": number for number in range(2_000)}
    puts = bucket.put_many(items)
    assert set(puts) == set(items) and all(put.acks >= 2 for put in puts.values())
    found = bucket.get_many([*items, "absent"])
    assert {key: entry.value for key, entry in found.items()} == items
    bucket.delete_many([f"k{number}" for number in range(1_000)])
    assert len(bucket.get_many(items)) == 1_000


def test_many_keys_report_those_that_failed(db: Client) -> None:
    bucket = db.bucket("narrow")
    with pytest.raises(quorate.PartialError, match="1 of 2 keys") as caught:
        bucket.put_many({"small": b"x", "large": b"x" * 1001})
    assert list(caught.value.results) == ["small"]
    assert isinstance(caught.value.errors["large"], InvalidRequest)
    assert pickle.loads(pickle.dumps(caught.value)).errors.keys() == {"large"}


def test_scan_shows_every_live_key_once(db: Client, name: str) -> None:
    bucket = db.bucket(name, keys=str)
    expected = {f"key-{number:05}": str(number).encode() for number in range(3_000)}
    bucket.put_many(expected)
    bucket.put_many({f"other-{number}": b"" for number in range(100)})
    bucket.delete_many([f"key-{number:05}" for number in range(0, 3_000, 3)])
    expected = {key: value for key, value in expected.items() if int(key[4:]) % 3}
    shown = [(key, entry.value) for key, entry in bucket.scan(prefix="key-")]
    assert len(shown) == len(expected) and dict(shown) == expected
    assert sorted(bucket.keys("key-")) == sorted(expected)
    assert len(list(bucket.keys())) == len(expected) + 100
    assert list(db.bucket(f"{name}-empty").scan()) == []


def test_scan_resumes_at_its_cursor(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put_many({f"k{number}": b"x" * 100 for number in range(5_000)})
    scan = bucket.scan()
    first = [next(scan)[0] for _ in range(2_345)]
    rest = [key for key, _ in bucket.scan(cursor=scan.cursor)]
    assert len(first) + len(rest) == 5_000
    assert set(first) | set(rest) == {f"k{number}".encode() for number in range(5_000)}
    with pytest.raises(InvalidRequest, match="cursor"):
        list(bucket.scan(cursor=b"nonsense"))


def test_keys_and_values_can_have_any_bytes(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    keys = [b"\x00", b"\xff" * 1024, "ключ".encode(), b"k" * 400, b"k" * 401, b"k" * 402, bytes(range(256))]
    for number, key in enumerate(keys):
        bucket.put(key, bytes([number]) * number)
    for number, key in enumerate(keys):
        assert bucket.get_value(key) == bytes([number]) * number
    assert sorted(key for key, _ in bucket.scan()) == sorted(keys)
    assert sorted(bucket.keys(b"k" * 401)) == [b"k" * 401, b"k" * 402]


def test_large_values_are_read_and_scanned(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    values = {f"k{number}": bytes([number]) * (1024 * 1024) for number in range(20)}
    bucket.put_many(values)
    assert {key: entry.value for key, entry in bucket.get_many(values).items()} == values
    assert sum(1 for _ in bucket.scan()) == 20


def test_arguments_outside_a_limit_are_refused_with_the_limit(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    with pytest.raises(InvalidRequest, match=r"key of 1025 bytes.*1024"):
        bucket.put(b"k" * 1025, b"")
    with pytest.raises(InvalidRequest, match=r"key of 0 bytes"):
        bucket.get("")
    with pytest.raises(InvalidRequest, match=r"value of 1048577 bytes.*1048576"):
        bucket.put("k", b"x" * (1024 * 1024 + 1))
    with pytest.raises(InvalidRequest, match=r"value of 17825792 bytes"):
        bucket.put("k", b"x" * (17 * 1024 * 1024))
    with pytest.raises(InvalidRequest, match="A-Z a-z 0-9"):
        db.bucket("no spaces").get("k")
    with pytest.raises(InvalidRequest, match="takes bytes"):
        bucket.put("k", wrong({"a": 1}))
    with pytest.raises(InvalidRequest, match="key=7"):
        bucket.get(wrong(7))
    with pytest.raises(InvalidRequest, match="timeout"):
        bucket.get("k", timeout=0)
    assert bucket.get("k", timeout=timedelta(seconds=1)) is None


def test_contexts_are_opaque_picklable_and_good_for_one_key(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    put = bucket.put("k", b"v")
    again = pickle.loads(pickle.dumps(put.context))
    assert again == put.context == Context(bytes(put.context))
    with pytest.raises(InvalidRequest, match="another key"):
        bucket.put("other", b"v", context=put.context)
    damaged = bytearray(bytes(put.context))
    damaged[-1] ^= 1
    with pytest.raises(InvalidRequest, match="damaged"):
        bucket.put("k", b"v", context=Context(bytes(damaged)))
    with pytest.raises(InvalidRequest, match=r"entry\.context"):
        bucket.put("k", b"v", context=wrong(b"raw"))


def test_codecs_convert_values_and_report_their_errors(db: Client, name: str) -> None:
    text = db.bucket(name, codec="str")
    text.put("k", "żółw")
    assert text.get_value("k") == "żółw"
    assert db.bucket(name).get_value("k") == "żółw".encode()
    with pytest.raises(quorate.CodecError, match="decode"):
        db.bucket(name, codec="json").get("k")
    with pytest.raises(quorate.CodecError, match="encode"):
        db.bucket(name, codec="json").put("k", {1, 2})

    class Sorted:
        def encode(self, value: dict[str, int]) -> bytes:
            return json.dumps(value, sort_keys=True).encode()

        def decode(self, data: bytes) -> dict[str, int]:
            return dict(json.loads(data))

    custom = db.bucket(name, codec=Sorted())
    custom.put("k", {"b": 1, "a": 2})
    assert db.bucket(name).get_value("k") == b'{"a": 2, "b": 1}'
    with pytest.raises(InvalidRequest, match="codec='xml'"):
        db.bucket(name, codec=wrong("xml"))


def test_explain_shows_the_placement_and_the_versions_of_a_key(db: Client, cluster: LocalCluster, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put("k", b"12345", w="all")
    explanation = bucket.explain("k")
    assert sorted(explanation["replicas"]) == ["n0", "n1", "n2"]
    assert explanation["agree"] and explanation["n"] == 3 and explanation["hints"] == []
    assert [holding["state"] for holding in explanation["holdings"]] == ["held"] * 3
    assert [holding["versions"][0]["value_bytes"] for holding in explanation["holdings"]] == [5] * 3
    assert len(db.bucket("two").explain("k")["replicas"]) == 2
    assert len(db.bucket("two").explain("k")["fallbacks"]) == 1


def test_status_and_ping_describe_the_cluster(db: Client, cluster: LocalCluster) -> None:
    status = db.status()
    assert [member["state"] for member in status["members"]] == ["up"] * 3
    assert sum(member["partitions"] for member in status["members"]) == 3 * 1024
    assert status["layout"] == 1 and status["hints"] == 0
    assert 0 < db.ping() < 5


def test_a_bucket_with_two_replicas_is_served_from_any_node(cluster: LocalCluster) -> None:
    # A node that is no replica of a key forwards the request.
    for number in range(3):
        with quorate.connect(cluster[number].address, follow=False) as db:
            bucket = db.bucket("two")
            for key in range(30):
                bucket.put(f"{number}-{key}", b"v", w=2)
                assert bucket.get_value(f"{number}-{key}", r=2) == b"v"


def test_replicas_converge(db: Client, cluster: LocalCluster, name: str) -> None:
    bucket = db.bucket(name)
    bucket.put_many({f"k{number}": b"v" for number in range(500)}, w="all")
    cluster.wait_converged()


def test_siblings_over_20_mib_together_are_refused(db: Client, name: str) -> None:
    bucket = db.bucket(name)
    for _ in range(20):
        bucket.put("k", b"x" * (1024 * 1024), context=EMPTY)
    with pytest.raises(InvalidRequest, match="siblings would be 22020096 bytes in all, the limit is 20971520"):
        bucket.put("k", b"x" * (1024 * 1024), context=EMPTY)
    entry = bucket.get("k")
    assert entry is not None and len(entry.siblings) == 20
    bucket.put("k", b"small", context=entry.context)
    assert bucket.get_value("k") == b"small"

"""Faults of real nodes: kills, freezes, partitions of the network, lost, full and damaged disks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

import quorate
from quorate import InvalidRequest, LocalCluster, QuorateError, Unavailable


@pytest.fixture
def fragile(storage: str) -> Iterator[LocalCluster]:
    with LocalCluster(nodes=3, storage=storage) as cluster:
        yield cluster


def test_one_dead_node_stops_neither_reads_nor_writes(fragile: LocalCluster) -> None:
    with fragile.connect(timeout=5.0) as db:
        bucket = db.bucket("b")
        bucket.put_many({f"k{number}": b"before" for number in range(300)}, w="all")
        fragile[0].kill()
        for number in range(300):
            assert bucket.get_value(f"k{number}", r=2) == b"before"
            put = bucket.put(f"k{number}", b"after", w=2)
            assert put.acks == 2
        for number in range(300):
            entry = bucket.get(f"k{number}", r=2)
            assert entry is not None and entry.siblings == [b"after"]
        assert len(list(bucket.keys())) == 300
        with pytest.raises(Unavailable, match="needed 3 replicas, 2 reachable") as caught:
            bucket.put("k0", b"all", w=3, timeout=0.5)
        assert isinstance(caught.value, ConnectionError)
        assert (caught.value.needed, caught.value.received) == (3, 2)
        with pytest.raises(Unavailable, match="needed 3 replicas, 2 reachable"):
            bucket.get("k0", r="all", timeout=0.5)
        down = [member["name"] for member in db.status()["members"] if member["state"] == "down"]
        assert down == ["n0"]


def test_a_returned_node_catches_up_without_a_read(fragile: LocalCluster) -> None:
    with fragile.connect(timeout=5.0) as db:
        bucket = db.bucket("b")
        bucket.put_many({f"k{number}": b"before" for number in range(200)}, w="all")
        fragile[1].kill()
        bucket.put_many({f"k{number}": b"after" for number in range(200)})
        with pytest.raises(QuorateError, match="is down"):
            fragile.wait_converged(timeout=0.1)
        fragile[1].start()
        fragile.wait_connected()
        fragile.wait_converged()
        entries = bucket.get_many([f"k{number}" for number in range(200)], r="all")
        assert {entry.value for entry in entries.values()} == {b"after"}


def test_a_clean_restart_keeps_data() -> None:
    with LocalCluster(nodes=3, storage="lmdb") as cluster:
        with cluster.connect(timeout=5.0) as db:
            items = {f"k{number}": b"v%d" % number for number in range(500)}
            db.bucket("b").put_many(items, w="all")
            for node in cluster.nodes:
                node.stop()
            for node in cluster.nodes:
                node.start()
            cluster.wait_connected()
            found = db.bucket("b").get_many(items, r=1)
            assert {key: entry.value for key, entry in found.items()} == items
            cluster.wait_converged()


def test_killing_all_nodes_loses_no_acked_write() -> None:
    with LocalCluster(nodes=3, storage="lmdb") as cluster:
        acked: dict[str, bytes] = {}
        with cluster.connect(timeout=5.0) as db:
            bucket = db.bucket("b")
            for number in range(2_000):
                key = f"k{number % 500}"
                value = b"v%d" % number
                bucket.put(key, value)
                acked[key] = value
            for node in cluster.nodes:
                node.kill()
        for node in cluster.nodes:
            node.start()
        cluster.wait_connected()
        with cluster.connect(timeout=5.0) as db:
            found = db.bucket("b").get_many(acked, r=2)
            assert {key: entry.siblings for key, entry in found.items()} == {k: [v] for k, v in acked.items()}


def test_killing_all_nodes_during_writes_tears_no_value() -> None:
    """Each write in progress when all nodes are killed is stored as a whole or not at all.

    No acknowledged write is missing.
    """
    with LocalCluster(nodes=3, storage="lmdb") as cluster:
        import threading

        acked: dict[str, int] = {}
        begun: dict[str, int] = {}

        def write(worker: int) -> None:
            with cluster.connect(timeout=0.5) as db:
                bucket = db.bucket("b", codec="json")
                for number in range(100_000):
                    key = f"{worker}-{number % 50}"
                    begun[key] = number
                    try:
                        bucket.put(key, {"number": number, "padding": "x" * 500})
                    except (QuorateError, OSError):
                        return
                    acked[key] = number

        threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        while len(acked) < 150:
            time.sleep(0.01)
        for node in cluster.nodes:
            node.kill()
        for thread in threads:
            thread.join()
        for node in cluster.nodes:
            node.start()
        cluster.wait_connected()
        with cluster.connect(timeout=5.0) as db:
            found = db.bucket("b", codec="json").get_many(begun, r=2)
            for key, number in acked.items():
                shown = [value["number"] for value in found[key].siblings]
                assert number in shown or begun[key] in shown, (key, number, shown)
                assert all(value["padding"] == "x" * 500 for value in found[key].siblings)


def test_a_clean_stop_loses_nothing_under_interval_durability() -> None:
    config = {"storage": {"durability": "interval", "interval_ms": 5_000}}
    with LocalCluster(nodes=1, storage="lmdb", config=config) as cluster:
        with cluster.connect(timeout=5.0) as db:
            db.bucket("b").put_many({f"k{number}": b"v" for number in range(1_000)})
        cluster[0].stop()
        cluster[0].start()
        with cluster.connect(timeout=5.0) as db:
            assert len(list(db.bucket("b").keys())) == 1_000


def test_interval_durability_keeps_committed_writes_over_a_restart() -> None:
    config = {"storage": {"durability": "interval", "interval_ms": 20}}
    with LocalCluster(nodes=3, storage="lmdb", config=config) as cluster:
        with cluster.connect(timeout=5.0) as db:
            bucket = db.bucket("b")
            bucket.put_many({f"k{number}": b"v" for number in range(1_000)}, w="all")
            assert len(list(bucket.keys())) == 1_000
            cluster[0].stop()
            cluster[0].start()
            cluster.wait_connected()
            assert len(bucket.get_many([f"k{number}" for number in range(1_000)], r=3)) == 1_000
            cluster.wait_converged()


def test_requests_avoid_a_frozen_node(fragile: LocalCluster) -> None:
    with fragile.connect(timeout=5.0) as db:
        bucket = db.bucket("b")
        bucket.put_many({f"k{number}": b"v" for number in range(60)}, w="all")
        fragile[2].pause()
        for number in range(60):
            assert bucket.get_value(f"k{number}") == b"v"
            bucket.put(f"k{number}", b"w")
        fragile[2].resume()
        fragile.wait_connected()
        entries = bucket.get_many([f"k{number}" for number in range(60)], r="all")
        assert [entry.siblings for entry in entries.values()] == [[b"w"]] * 60
        fragile.wait_converged()


def test_writes_on_both_sides_of_a_partition_become_siblings(fragile: LocalCluster) -> None:
    with fragile.connect(timeout=5.0) as db:
        bucket = db.bucket("b")
        bucket.put("k", b"start", w="all")
        seen = bucket.get("k")
        assert seen is not None
        fragile.partition([0], [1, 2])
        with quorate.connect(fragile[0].address, follow=False, timeout=3.0) as alone:
            lonely = alone.bucket("b")
            lonely.put("k", b"minority", context=seen.context, w=1)
            with pytest.raises((Unavailable, quorate.Indeterminate)):
                lonely.put("other", b"x", w=2)
        with quorate.connect(fragile[1].address, follow=False, timeout=3.0) as most:
            most.bucket("b").put("k", b"majority", context=seen.context, w=2)
            assert most.bucket("b").get_value("k") == b"majority"
        fragile.heal()
        entry = bucket.get("k", r="all")
        assert entry is not None and sorted(entry.siblings) == [b"majority", b"minority"]
        bucket.get("other", r="all")
        fragile.wait_converged()


def test_a_write_without_enough_acks_is_indeterminate(fragile: LocalCluster) -> None:
    with quorate.connect(fragile[0].address, follow=False, timeout=0.4) as db:
        # The node has not detected the partition yet: it begins the write, and no acks arrive.
        fragile.partition([0], [1, 2])
        with pytest.raises(quorate.Indeterminate, match="needed 2 acks, received 1") as caught:
            db.bucket("b").put("k", b"v", w=2)
        assert (caught.value.needed, caught.value.acks) == (2, 1)
        assert db.bucket("b").get_value("k", r=1) == b"v"
        # Once the node has detected the partition, it refuses writes before it begins them.
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                db.bucket("b").put("later", b"v", w=2)
            except Unavailable:
                break
            except quorate.Indeterminate:
                continue
        else:
            pytest.fail("the node did not detect within 10 s that its peers are cut off")
        assert db.bucket("b").get("untouched", r=1) is None


def test_a_retried_write_makes_no_sibling(fragile: LocalCluster) -> None:
    """A write to a frozen node is retried at another node under the same request id.

    When the frozen node continues, it serves the first attempt too. Both attempts are one write.
    """
    with fragile.connect(timeout=8.0) as db:
        bucket = db.bucket("b")
        bucket.put_many({f"{number}-{key}": b"before" for number in range(3) for key in range(5)}, w="all")
        for number in range(3):
            fragile[number].pause()
            for key in range(5):
                bucket.put(f"{number}-{key}", b"after", w=1)
            fragile[number].resume()
            fragile.wait_connected()
        for number in range(3):
            for key in range(5):
                entry = bucket.get(f"{number}-{key}", r="all")
                assert entry is not None and entry.siblings == [b"after"]
        fragile.wait_converged()


def test_a_wiped_node_starts_under_a_new_actor() -> None:
    """S1: after a lost disk, replicas must not mistake new writes of the node for known ones."""
    with LocalCluster(nodes=3, storage="lmdb") as cluster:
        for address in [node.address for node in cluster.nodes]:
            with quorate.connect(address, follow=False, timeout=5.0) as db:
                db.bucket("b").put("k", address.encode(), context=quorate.EMPTY, w="all")
        cluster[0].stop()
        cluster[0].wipe()
        cluster[0].start()
        cluster.wait_connected()
        with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as db:
            db.bucket("b").put("k", b"after the wipe", context=quorate.EMPTY, w="all")
        with cluster.connect(timeout=5.0) as db:
            entry = db.bucket("b").get("k", r="all")
            expected = [node.address.encode() for node in cluster.nodes] + [b"after the wipe"]
            assert entry is not None and sorted(entry.siblings) == sorted(expected)
        cluster.wait_converged()


def test_a_full_map_refuses_writes_and_serves_reads() -> None:
    config = {"storage": {"map_size_mib": 4, "reserve_mib": 1}}
    with LocalCluster(nodes=1, storage="lmdb", config=config) as cluster:
        with cluster.connect(timeout=1.0) as db:
            bucket = db.bucket("b")
            written = []
            with pytest.raises(quorate.StorageFailed, match="map of 4 MiB.*map_size_mib"):
                for number in range(10_000):
                    bucket.put(f"k{number}", b"x" * 10_000)
                    written.append(f"k{number}")
            assert len(written) > 50
            assert len(bucket.get_many(written)) == len(written)
            with pytest.raises(quorate.StorageFailed):
                bucket.put("another", b"x" * 10_000)
        cluster[0].stop()
        cluster[0].start()
        with cluster.connect() as db:
            assert len(db.bucket("b").get_many(written)) == len(written)


def test_a_full_memory_engine_refuses_writes_and_serves_reads() -> None:
    with LocalCluster(nodes=1, storage="memory", config={"storage": {"max_mib": 1}}) as cluster:
        with cluster.connect(timeout=1.0) as db:
            bucket = db.bucket("b")
            bucket.put("first", b"v")
            with pytest.raises(quorate.StorageFailed, match="max_mib"):
                for number in range(1_000):
                    bucket.put(f"k{number}", b"x" * 10_000)
            assert bucket.get_value("first") == b"v"
            bucket.put("first", b"w")


def test_faults_are_refused_unless_enabled() -> None:
    with LocalCluster(nodes=2, config={"faults": {"enabled": False}}) as cluster:
        with pytest.raises(InvalidRequest, match=r"\[faults\] enabled"):
            cluster.partition([0], [1])


def test_nodes_of_another_cluster_are_refused() -> None:
    """A node whose configuration lists a node of another cluster is refused.

    Both nodes log the difference, and both clusters continue.
    """
    with LocalCluster(nodes=1) as theirs:
        stranger = {"name": "n1", "address": theirs[0].address}
        folder_name = "n0"
        with LocalCluster(nodes=1) as ours:
            ours[0].stop()
            own = {"name": folder_name, "address": ours[0].address}
            _configure(ours, {"membership": {"members": [own, stranger]}, "cluster": {"replicas": 1}})
            ours[0].start()
            deadline = time.monotonic() + 10
            while "cluster ids differ" not in ours[0].log and time.monotonic() < deadline:
                time.sleep(0.02)
            assert "cluster ids differ" in ours[0].log
            assert "cluster ids differ" in theirs[0].log
            with quorate.connect(ours[0].address, follow=False) as db:
                errors = [member["last_error"] for member in db.status()["members"] if member["state"] == "down"]
                assert errors and "cluster ids differ" in errors[0]
        with theirs.connect() as db:
            db.bucket("b").put("k", b"v")


@pytest.mark.parametrize("config", [{"cluster": {"partitions": 512}}, {"buckets": {"b": {"n": 1}}}])
def test_nodes_with_another_first_layout_are_refused(config: dict[str, dict[str, object]]) -> None:
    what = "first layouts differ"
    with LocalCluster(nodes=2) as cluster:
        cluster[1].stop()
        cluster[1].wipe()
        _configure(cluster, config, number=1)
        cluster[1].start()
        deadline = time.monotonic() + 10
        while what not in cluster[0].log and time.monotonic() < deadline:
            time.sleep(0.02)
        assert what in cluster[0].log
        assert client_sees(cluster[0].address)["n1"] == "down"


def client_sees(address: str) -> dict[str, str]:
    with quorate.connect(address, follow=False) as db:
        return {member["name"]: member["state"] for member in db.status()["members"]}


def _configure(cluster: LocalCluster, config: dict[str, dict[str, object]], number: int = 0) -> None:
    import tomllib

    from quorate._cluster import _merge
    from quorate._toml import dumps

    path = cluster[number].folder / "node.toml"
    own = tomllib.loads(path.read_text())
    _merge(own, config)
    path.write_text(dumps(own))


def test_client_follows_from_one_address(fragile: LocalCluster) -> None:
    with quorate.connect(fragile[0].address, timeout=5.0) as db:
        db.bucket("b").put("k", b"v", w="all")
        fragile[0].kill()
        assert db.bucket("b").get_value("k") == b"v"




def test_read_repair_follows_the_definition_of_the_bucket() -> None:
    """The disk of one replica is restored to its state before the writes.

    No hint exists for that replica, and anti-entropy is off. So only read repair can restore the
    values.
    """
    config: dict[str, dict[str, object]] = {
        "buckets": {"blocking": {}, "background": {"read_repair": "background"}, "off": {"read_repair": "off"}},
        "repair": {"enabled": False},
    }
    with LocalCluster(nodes=3, storage="lmdb", config=config) as cluster, cluster.connect(timeout=5.0) as db:
        keys = [f"k{number}" for number in range(20)]
        cluster[0].stop()
        path = cluster[0].folder / "data" / "data.mdb"
        earlier = path.read_bytes()
        cluster[0].start()
        cluster.wait_connected()
        for name in config["buckets"]:
            db.bucket(name).put_many({key: b"v" for key in keys}, w="all")
        cluster[0].stop()
        path.write_bytes(earlier)
        cluster[0].start()
        cluster.wait_connected()
        for name in config["buckets"]:
            assert len(db.bucket(name).get_many(keys, r="all")) == len(keys)

        def agreeing(name: str) -> int:
            return sum(db.bucket(name).explain(key)["agree"] for key in keys)

        assert agreeing("blocking") == len(keys)
        deadline = time.monotonic() + 10
        while agreeing("background") < len(keys) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert agreeing("background") == len(keys)
        assert agreeing("off") == 0


def test_a_damaged_record_is_an_error_and_is_repaired() -> None:
    """Variant of S1: the disk of one replica returns other bytes than were written.

    Anti-entropy is off, so only requests can repair the records.
    """
    quiet = {"repair": {"enabled": False}}
    with LocalCluster(nodes=3, storage="lmdb", config=quiet) as cluster, cluster.connect(timeout=5.0) as db:
        bucket = db.bucket("b")
        marks = {f"k{number}": b"marked value %04d" % number for number in range(30)}
        bucket.put_many(marks, w="all")
        cluster[0].stop()
        path = cluster[0].folder / "data" / "data.mdb"
        path.write_bytes(path.read_bytes().replace(b"marked value", b"mangled text"))
        cluster[0].start()
        cluster.wait_connected()
        with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as damaged:
            # The damaged copy does not count, so two replicas are left: not enough for r=3.
            with pytest.raises(quorate.StorageFailed, match="checksum"):
                damaged.bucket("b").get("k0", r=3, timeout=0.5)
            with pytest.raises(quorate.StorageFailed, match="checksum"):
                damaged.bucket("b").put("k0", b"x", timeout=0.5)
            # With r=2 the other two replicas answer, and their object replaces the damaged one.
            found = damaged.bucket("b").get_many(marks, r=2)
            assert {key: entry.siblings for key, entry in found.items()} == {k: [v] for k, v in marks.items()}
            assert len(list(damaged.bucket("b").keys())) == len(marks)
            deadline = time.monotonic() + 20
            while True:
                try:
                    found = damaged.bucket("b").get_many(marks, r=3)
                    break
                except quorate.PartialError:
                    # The node first recovers: it asks the others for records that it may have lost.
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
            assert {key: entry.siblings for key, entry in found.items()} == {k: [v] for k, v in marks.items()}
        for key in marks:
            bucket.put(key, b"after")
        entries = bucket.get_many(marks, r="all")
        assert [entry.siblings for entry in entries.values()] == [[b"after"]] * len(marks)
        cluster.wait_converged()

"""Real nodes that are killed, frozen, cut off and restarted under load.

The simulation tests the exact histories of such faults.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import Bucket, LocalCluster, QuorateError
from quorate._toml import dumps


@pytest.fixture
def five() -> Iterator[LocalCluster]:
    """Five nodes that have discovered each other by gossip."""
    with LocalCluster(nodes=5, storage="lmdb", membership="gossip") as cluster:
        yield cluster


class Writer:
    """Client that writes in its own thread. It keeps the acknowledged values and the errors."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.acked: dict[str, bytes] = {}
        self.failed: list[Exception] = []
        self._stop = threading.Event()
        self._cluster = cluster
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._cluster.connect(timeout=10.0) as db:
            bucket = db.bucket("b")
            number = 0
            while not self._stop.is_set():
                key, value = f"w{number % 300}", b"v%d" % number
                try:
                    bucket.put(key, value)
                    self.acked[key] = value
                except QuorateError as error:
                    self.failed.append(error)
                number += 1

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def check(bucket: Bucket[bytes], acked: dict[str, bytes]) -> None:
    """Check that every acknowledged write is readable.

    An attempt may wait in the socket of a frozen node while the client retries it at another node.
    Then the frozen node may apply the write once more when it continues. The result is a sibling of
    the later value, and never hides that value.
    """
    found = bucket.get_many(acked, r="all")
    for key, value in acked.items():
        assert value in found[key].siblings, key
    assert sum(len(entry.siblings) - 1 for entry in found.values()) <= 2


def pending(cluster: LocalCluster) -> int:
    """Return the number of hints on all running nodes."""
    total = 0
    for node in cluster.nodes:
        if node.running:
            with quorate.connect(node.address, follow=False, timeout=5.0) as client:
                total += int(client.status()["hints"])
    return total


def until(what: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"the condition is not true after {timeout:g} s"
        time.sleep(0.05)


def test_one_killed_and_one_frozen_node_fail_no_request(five: LocalCluster) -> None:
    with Writer(five) as writer:
        time.sleep(0.5)
        five[1].kill()
        time.sleep(0.5)
        five[2].pause()
        time.sleep(3.0)
        with five.connect(timeout=5.0) as db:
            states = {member["name"]: member["state"] for member in db.status()["members"]}
            assert states["n1"].startswith("down") and states["n2"].startswith("down")
        with quorate.connect(five[0].address, follow=False) as client:
            waiting = {hints["target"]: hints["hints"] for hints in client.status()["hints_for"]}
            assert set(waiting) == {"n1", "n2"} and all(count > 0 for count in waiting.values())
        five[2].resume()
        five[1].start()
    assert writer.failed == []
    until(lambda: pending(five) == 0)
    five.wait_converged(timeout=20.0)
    with five.connect(timeout=5.0) as db:
        check(db.bucket("b"), writer.acked)


def test_a_node_that_was_frozen_for_30_s_is_still_a_member(five: LocalCluster) -> None:
    with five.connect(timeout=5.0) as db:
        db.bucket("b").put("k", b"before")
        five[3].pause()
        time.sleep(30.0)
        members = {member["name"]: member["state"] for member in db.status()["members"]}
        assert members == {"n0": "up", "n1": "up", "n2": "up", "n3": "down, suspected by all", "n4": "up"}
        db.bucket("b").put("k", b"meanwhile")
        five[3].resume()
        five.wait_connected()
        until(lambda: pending(five) == 0)
        five.wait_converged()
        assert db.bucket("b").get_value("k", r="all") == b"meanwhile"


def test_a_wiped_node_is_refilled_unattended(five: LocalCluster) -> None:
    with five.connect(timeout=10.0) as db:
        items = {f"k{number}": b"v%d" % number for number in range(3_000)}
        db.bucket("b").put_many(items, w="all")
        five[4].kill()
        five[4].wipe()
        five[4].start()
        five.wait_connected(timeout=20.0)
        five.wait_converged(timeout=20.0)
        assert "recovered" in five[4].log
        found = db.bucket("b").get_many(items, r="all")
        assert {key: entry.value for key, entry in found.items()} == items


def test_a_wiped_node_counts_for_no_read_before_it_has_recovered(five: LocalCluster) -> None:
    """The wiped node must merge with both other replicas first: it may have acked any write."""
    with LocalCluster(nodes=3, storage="lmdb", config={"buckets": {"default": {"sloppy": False}}}) as cluster:
        with cluster.connect(timeout=5.0) as db:
            db.bucket("b").put("k", b"v", w="all")
            cluster[0].kill()
            cluster[0].wipe()
            cluster[1].kill()
            cluster[0].start()
            with quorate.connect(cluster[0].address, follow=False, timeout=1.0) as forgetful:
                assert forgetful.status()["recovering"] > 0
                with pytest.raises(QuorateError):
                    forgetful.bucket("b").get("k", r=2)
                assert forgetful.bucket("b").get_value("k", r=1) == b"v"
            cluster[1].start()
            cluster.wait_connected()
            with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as client:
                assert client.status()["recovering"] == 0
                assert client.bucket("b").get_value("k", r="all") == b"v"


@pytest.mark.parametrize("kind", ["half", "one way", "each in turn", "flapping"])
def test_partitions_lose_nothing(kind: str) -> None:
    with LocalCluster(nodes=5, storage="memory") as cluster:
        with Writer(cluster) as writer:
            if kind == "half":
                cluster.partition([0, 1, 2], [3, 4])
                time.sleep(3.0)
            elif kind == "one way":
                cluster.cut(0, 1)
                cluster.cut(2, 3)
                time.sleep(3.0)
            elif kind == "each in turn":
                for number in range(5):
                    cluster.partition([other for other in range(5) if other != number])
                    time.sleep(1.0)
            else:
                for _ in range(3):
                    cluster.partition([0, 1], [2, 3, 4])
                    time.sleep(1.0)
                    for node in cluster.nodes:
                        cluster._set_faults(node, [])
                    time.sleep(1.0)
            for node in cluster.nodes:
                cluster._set_faults(node, [])
        cluster.wait_connected(timeout=20.0)
        until(lambda: pending(cluster) == 0)
        cluster.wait_converged(timeout=30.0)
        # A coordinator that is cut off cannot acknowledge writes: its clients wait, then use
        # another node. So the number of writes is low.
        assert len(writer.acked) > 10
        with cluster.connect(timeout=10.0) as db:
            found = db.bucket("b").get_many(writer.acked, r="all")
            for key, value in writer.acked.items():
                # A write that failed may have been stored too: then it is a sibling.
                assert value in found[key].siblings, key


def test_acked_writes_survive_the_kill_of_all_nodes_while_one_is_down(five: LocalCluster) -> None:
    """S29 with real processes: writes that were acknowledged by a hint survive too."""
    five[2].kill()
    with Writer(five) as writer:
        time.sleep(2.0)
        for node in five.nodes:
            node.kill()
        acked = dict(writer.acked)
        for node in five.nodes:
            node._spawn()
        for node in five.nodes:
            node._wait_ready(20.0, 0)
    five.wait_connected(timeout=20.0)
    until(lambda: pending(five) == 0)
    five.wait_converged(timeout=20.0)
    assert len(acked) > 50
    with five.connect(timeout=10.0) as db:
        found = db.bucket("b").get_many(acked, r=2)
        for key in acked:
            newest = max(int(value[1:]) for value in found[key].siblings)
            assert newest >= int(acked[key][1:]), key


def test_a_restored_image_reissues_no_dot(tmp_path: Path) -> None:
    """S4 with real processes and a real copy of the data folder."""
    with LocalCluster(nodes=3, storage="lmdb") as cluster, cluster.connect(timeout=5.0) as db:
        with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as a:
            bucket = a.bucket("b")
            first = bucket.put("k", b"a")
        cluster[0].stop()
        shutil.copytree(cluster[0].folder / "data", tmp_path / "image")
        cluster[0].start()
        cluster.wait_connected()
        with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as a:
            second = a.bucket("b").put("k", b"b", context=first.context)
            a.bucket("b").put("k", b"c", context=second.context)
        cluster[0].kill()
        shutil.rmtree(cluster[0].folder / "data")
        shutil.copytree(tmp_path / "image", cluster[0].folder / "data")
        cluster.partition([1, 2])
        cluster[0].start()
        cluster._set_faults(cluster[0], ["n1", "n2"])
        with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as a:
            a.bucket("b").put("k", b"d", context=first.context, w=1)
            seen = a.bucket("b").get("k", r=1)
            assert seen is not None
            a.bucket("b").put("k", b"e", context=seen.context, w=1)
        cluster.heal()
        cluster.wait_converged(timeout=20.0)
        entry = db.bucket("b").get("k", r="all")
        assert entry is not None and sorted(entry.siblings) == [b"c", b"e"]


def test_hints_over_the_limit_are_refused_and_anti_entropy_replaces_them() -> None:
    with LocalCluster(nodes=3, storage="memory", config={"hints": {"max_mib_per_target": 1}}) as cluster:
        with cluster.connect(timeout=5.0) as db:
            cluster[2].kill()
            for number in range(60):
                db.bucket("b").put(f"k{number}", bytes(50_000))
            assert 0 < pending(cluster) < 60
            assert "hint refused" in cluster[0].log
            cluster[2].start()
            cluster.wait_connected()
            until(lambda: pending(cluster) == 0)
            cluster.wait_converged(timeout=20.0)


def test_deleted_keys_are_collected_when_all_nodes_are_up() -> None:
    config = {
        "coordinator": {"max_request_timeout_ms": 1_000, "max_clock_skew_ms": 200},
        "tombstone_gc": {"interval_ms": 200, "grace_ms": 6_500},
    }
    with LocalCluster(nodes=3, storage="lmdb", config=config) as cluster, cluster.connect(timeout=5.0) as db:
        bucket = db.bucket("b")
        for number in range(50):
            bucket.put(f"k{number}", b"v", w="all")
            bucket.delete(f"k{number}")
        waiting = sum(int(status(node.address)["tombstone_gc"]["waiting"]) for node in cluster.nodes)
        assert waiting == 50
        cluster[2].pause()
        until(lambda: any(status(cluster[n].address)["tombstone_gc"]["blocked_by"] for n in (0, 1)))
        cluster[2].resume()
        cluster.wait_connected()
        until(lambda: sum(int(status(node.address)["tombstone_gc"]["waiting"]) for node in cluster.nodes) == 0, timeout=60.0)
        for node in cluster.nodes:
            with quorate.connect(node.address, follow=False) as client:
                assert client._native.fingerprint() == []
        assert bucket.get("k0") is None


def status(address: str) -> dict[str, Any]:
    with quorate.connect(address, follow=False, timeout=5.0) as client:
        return client.status()


def test_a_restart_at_another_address_is_the_same_member(five: LocalCluster) -> None:
    with five.connect(timeout=10.0) as db:
        db.bucket("b").put("k", b"v", w="all")
        five[2].stop()
        with LocalCluster(nodes=1) as elsewhere:
            address = elsewhere[0].address
        file = five[2].folder / "node.toml"
        file.write_text(file.read_text().replace(five[2].address, address))
        five[2].address = address
        five[2].start()
        five.wait_connected(timeout=20.0)
        members = {member["name"]: member["address"] for member in db.status()["members"]}
        assert len(members) == 5 and members["n2"] == address


def test_two_clusters_that_meet_do_not_merge() -> None:
    with LocalCluster(nodes=2, membership="gossip") as one:
        # A node of another cluster. It finds no node of its own cluster, so it never becomes ready.
        seeds = {"plugin": "gossip", "seeds": [one[0].address], "expect": 2}
        with LocalCluster(nodes=1) as ports:
            node = ports[0]
            node.stop()
            this = {"name": "stranger", "listen": node.address, "data": str(node.folder / "other")}
            stranger = {"node": this, "cluster": {"id": "another"}, "membership": seeds}
            (node.folder / "node.toml").write_text(dumps(stranger))
            node._spawn()
            until(lambda: "cluster ids differ" in one[0].log)
            with pytest.raises(QuorateError, match="has not found its cluster yet"):
                status(node.address)
        assert sorted(member["name"] for member in other_members(one)) == ["n0", "n1"]


def test_a_late_node_adopts_the_existing_layout() -> None:
    with LocalCluster(nodes=3, membership="gossip") as one, one.connect(timeout=5.0) as db:
        db.bucket("b").put("k", b"v")
        config = {
            "cluster": {"id": f"local-{one.folder.name}", "replicas": 3},
            "membership": {"seeds": [one[0].address], "expect": 3},
            "node": {"name": "late"},
        }
        with LocalCluster(nodes=1, membership="gossip", config=config) as late:
            assert sorted(member["name"] for member in other_members(late)) == ["n0", "n1", "n2"]
            with quorate.connect(late[0].address, follow=False, timeout=5.0) as client:
                # The late node is replica of no partition. It forwards requests.
                assert client.bucket("b").get_value("k") == b"v"
        assert sorted(member["name"] for member in other_members(one)) == ["n0", "n1", "n2"]


def other_members(cluster: LocalCluster) -> list[dict[str, str]]:
    with cluster.connect(timeout=5.0) as db:
        return list(db.status()["members"])


def fetch(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=5.0) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_node_without_a_cluster_is_alive_but_not_ready(tmp_path: Path) -> None:
    with LocalCluster(nodes=2) as ports:
        listen, address = ports[0].address, ports[1].address
    file = tmp_path / "node.toml"
    file.write_text(
        f'[node]\nname = "n0"\nlisten = "{listen}"\ndata = "{tmp_path / "data"}"\nmetrics = "{address}"\n'
        f'[membership]\nplugin = "gossip"\nseeds = ["{listen}"]\nexpect = 2\n'
    )
    node = subprocess.Popen([sys.executable, "-m", "quorate", "serve", "--config", str(file)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                assert fetch(address, "/livez") == (200, "alive\n")
                break
            except urllib.error.URLError:
                time.sleep(0.05)
        code, why = fetch(address, "/readyz")
        assert (code, "has not found its cluster" in why) == (503, True), why
        assert fetch(address, "/metrics")[0] == 503
        node.terminate()
        assert node.wait(10) == 0
    finally:
        node.kill()
        node.wait()


def test_metrics_show_requests_hints_and_waiting_messages() -> None:
    with LocalCluster(nodes=1) as ports:
        address = ports[0].address
    with LocalCluster(nodes=3, storage="memory") as cluster:
        cluster[0].stop()
        file = cluster[0].folder / "node.toml"
        file.write_text(file.read_text().replace('["node"]', f'["node"]\n"metrics" = "{address}"'))
        cluster[0].start()
        cluster.wait_connected()
        assert fetch(address, "/livez") == (200, "alive\n")
        assert fetch(address, "/readyz") == (200, "ready\n")
        assert fetch(address, "/other")[0] == 404
        with quorate.connect(cluster[0].address, follow=False, timeout=5.0) as client:
            bucket = client.bucket("carts")
            for number in range(100):
                bucket.put(f"secret-key-{number}", b"v")
                bucket.get(f"secret-key-{number}")
            cluster[2].kill()
            for number in range(50):
                bucket.put(f"secret-key-{number}", b"w")
            code, page = fetch(address, "/metrics")
            assert code == 200
            values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line[0] != "#"}
            assert values['quorate_requests_total{verb="put",outcome="ok"}'] >= 150
            assert values['quorate_requests_total{verb="get",outcome="ok"}'] >= 100
            assert values['quorate_request_duration_seconds_count{verb="get"}'] >= 100
            assert values['quorate_hints_pending{peer="n2"}'] > 0
            assert values["quorate_recovering_partitions"] == 0
            assert "quorate_tombstones_waiting" in values and "quorate_clock_ahead_ms" in values
            assert "quorate_storage_updates_waiting" in values and "quorate_repair_running" in values
            assert "secret" not in page, "a metric has a key as a label"
            assert "quorate_storage_updates_waiting" in values

            def waiting_for(peer: str) -> int:
                found = re.search(rf'quorate_peer_requests_waiting{{peer="{peer}"}} (\d+)', fetch(address, "/metrics")[1])
                return int(found[1]) if found else 0

            def read() -> None:
                with contextlib.suppress(quorate.QuorateError):
                    bucket.get_many([f"secret-key-{number}" for number in range(100)], timeout=3.0)

            cluster[1].pause()
            reader = threading.Thread(target=read)
            reader.start()
            until(lambda: waiting_for("n1") > 0)
            cluster[1].resume()
            reader.join()
            until(lambda: waiting_for("n1") == 0)


def test_the_commands_show_hints_tombstones_and_repair() -> None:
    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "quorate", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with LocalCluster(nodes=3, storage="memory") as cluster, cluster.connect(timeout=5.0) as db:
        cluster[2].kill()
        for number in range(100):
            db.bucket("b").put(f"k{number}", b"v")
            db.bucket("b").delete(f"k{number}")
        nodes = ["--nodes", cluster[0].address]
        assert "hints: " in run("status", *nodes) and "for n2" in run("status", *nodes)
        assert "tombstones: " in run("status", *nodes)
        explained = json.loads(run("explain", "b", "k0", "-o", "json", *nodes))
        assert explained["hints"], "explain names no node that keeps a hint"
        cluster[2].start()
        cluster.wait_connected()
        assert "begins a round with each peer" in run("repair", "start", *nodes)
        until(lambda: json.loads(run("repair", "status", "-o", "json", *nodes))["rounds"] >= 2)


def test_data_of_interval_durability_is_not_trusted_after_a_kill() -> None:
    """A node that ran with "interval", was killed, and restarts with "fsync" recovers first."""
    with LocalCluster(nodes=3, storage="lmdb", config={"storage": {"durability": "interval"}}) as cluster:
        with cluster.connect(timeout=5.0) as db:
            db.bucket("b").put_many({f"k{number}": b"v" for number in range(100)})
        for node in cluster.nodes:
            node.kill()
        file = cluster[2].folder / "node.toml"
        assert '"interval"' in file.read_text()
        file.write_text(file.read_text().replace('"interval"', '"fsync"'))
        cluster[2].start()
        assert status(cluster[2].address)["recovering"] > 0, "the node recovered although no other node runs"
        for other in (0, 1):
            cluster[other].start()
        cluster.wait_connected()
        until(lambda: status(cluster[2].address)["recovering"] == 0)
        cluster[2].kill()
        cluster[2].start()
        assert status(cluster[2].address)["recovering"] == 0, "the node recovers again although its data is durable now"

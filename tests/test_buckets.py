"""Buckets with a definition of their own, created while the cluster runs.

The simulation tests new definitions of buckets that are in use, under faults.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import quorate
from quorate import Indeterminate, InvalidRequest, LocalCluster

LMDB: Any = {"storage": "lmdb"}


def command(cluster: LocalCluster, *arguments: str, code: int = 0) -> str:
    ran = subprocess.run(
        [sys.executable, "-m", "quorate", *arguments, "--nodes", cluster.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def known_to(node: Any) -> dict[str, dict[str, Any]]:
    with quorate.connect(node.address, follow=False, timeout=5.0) as only:
        return only.buckets()


@pytest.mark.parametrize("membership", ["static", "gossip"])
def test_a_created_bucket_is_known_to_all_nodes_and_survives_a_restart(membership: str) -> None:
    with LocalCluster(nodes=4, storage="lmdb", membership=membership) as cluster:
        with cluster.connect(timeout=5.0) as db:
            carts = db.create_bucket("carts", n=2, r=1, w="all", resolver="lww", max_value_bytes=100)
            # The definition applies at once, through any node.
            for number, node in enumerate(cluster.nodes):
                with quorate.connect(node.address, follow=False, timeout=5.0) as only:
                    put = only.bucket("carts").put(f"k{number}", b"v")
                    assert put.acks == 2
                    where = only.bucket("carts").explain(f"k{number}")
                    assert (where["n"], where["r"], where["w"], len(where["replicas"])) == (2, 1, 2, 2)
            with pytest.raises(InvalidRequest, match="100"):
                carts.put("k", b"v" * 101)
            assert db.create_bucket("carts", n=2, r=1, w="all", resolver="lww", max_value_bytes=100).get("k0") is not None
            cluster.wait_converged(timeout=20)
        for node in cluster.nodes:
            node.kill()
        for node in cluster.nodes:
            node.start()
        for node in cluster.nodes:
            definition = known_to(node)["carts"]
            assert (definition["n"], definition["resolver"], definition["ready"]) == (2, "lww", True)
        with cluster.connect(timeout=5.0) as db:
            assert sorted(key for key, _ in db.bucket("carts").scan()) == [b"k0", b"k1", b"k2", b"k3"]
        # A node that joins later and a node that lost its disk use the definition too.
        cluster.add_node()
        cluster.wait_settled(timeout=60)
        assert known_to(cluster[-1])["carts"]["n"] == 2
        cluster[0].kill()
        cluster[0].wipe()
        cluster[0].start()
        deadline = time.monotonic() + 20
        while known_to(cluster[0]).get("carts", {}).get("n") != 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert known_to(cluster[0])["carts"]["n"] == 2
        cluster.wait_converged(timeout=60)


def test_buckets_are_created_while_others_are_used() -> None:
    with LocalCluster(nodes=3, storage="memory") as cluster, cluster.connect(timeout=5.0) as db:
        failed: list[Exception] = []
        ends = threading.Event()

        def use() -> None:
            bucket, count = db.bucket("in-use"), 0
            while not ends.is_set():
                try:
                    bucket.put(f"k{count % 50}", str(count).encode())
                    entry = bucket.get(f"k{count % 50}")
                    assert entry is not None and entry.value == str(count).encode()
                    count += 1
                except Exception as error:  # Any failure fails the test.
                    failed.append(error)
                    return

        thread = threading.Thread(target=use)
        thread.start()
        try:
            # Three threads create buckets at the same time, through three nodes. If two layout
            # changes conflict, a node repeats one of them.
            created: list[str] = []

            def create(number: int) -> None:
                with quorate.connect(cluster[number].address, follow=False, timeout=5.0) as own:
                    for step in range(5):
                        name = f"b{number}-{step}"
                        own.create_bucket(name, n=1 + (number + step) % 3, timeout=30)
                        created.append(name)

            creators = [threading.Thread(target=create, args=(number,)) for number in range(3)]
            for one in creators:
                one.start()
            for one in creators:
                one.join()
            assert len(created) == 15
            assert set(created) <= set(db.buckets())
        finally:
            ends.set()
            thread.join()
        assert failed == []


def test_invalid_definitions_are_refused_with_the_reason() -> None:
    config = {"buckets": {"first": {"n": 2, "resolver": "lww"}}}
    with LocalCluster(nodes=4, storage="memory", config=config) as cluster, cluster.connect(timeout=5.0) as db:
        assert db.buckets()["first"]["n"] == 2
        db.create_bucket("first", n=2, resolver="lww")
        db.create_bucket("carts", n=2)
        db.bucket("used").put("k", b"v")
        wrong: list[tuple[dict[str, Any], str]] = [
            ({"name": "carts", "n": 3}, 'bucket "carts" exists with another definition (n = 2, not 3)'),
            ({"name": "first"}, "resolver = lww, not siblings"),
            ({"name": "x", "n": 4}, "the cluster keeps 3 replicas"),
            ({"name": "x", "n": 0}, "n = 0"),
            ({"name": "x", "n": 300}, "300"),
            ({"name": "x", "n": 2, "w": 3}, "w=3: a key of this bucket has n=2 replicas"),
            ({"name": "x", "r": "most"}, "r='most'"),
            ({"name": "x", "resolver": "newest"}, "does not have it; use one of lww, siblings"),
            ({"name": "x", "read_repair": "sometimes"}, "sometimes"),
            ({"name": "x", "max_siblings": 0}, "max_siblings = 0: use 1 or more"),
            ({"name": "x", "max_value_bytes": 1 << 30}, "use 1 to 16777216"),
            ({"name": "a b"}, "A-Z a-z 0-9"),
            ({"name": "default", "n": 1}, "before the cluster begins"),
            ({"name": "used", "n": 1}, 'bucket "used" has keys already (k)'),
            ({"name": "used", "r": 1}, "with the cluster's n, r = quorum, w = quorum"),
        ]
        for arguments, words in wrong:
            with pytest.raises(InvalidRequest) as caught:
                db.create_bucket(**arguments)
            assert words in str(caught.value), str(caught.value)
        assert sorted(db.buckets()) == ["carts", "default", "first"]
        # A bucket with keys can be defined if its n, r and w do not change.
        db.create_bucket("used", max_siblings=5)
        entry = db.bucket("used").get("k")
        assert entry is not None and entry.value == b"v"

        cluster[3].kill()
        deadline = time.monotonic() + 20
        while {m["name"]: m["state"] for m in db.status()["members"]}["n3"] != "down" and time.monotonic() < deadline:
            time.sleep(0.1)
        with pytest.raises(InvalidRequest, match="node n3 cannot be reached"):
            db.create_bucket("later", n=1)
        # The nodes that are up accept a definition that moves no key. The other node accepts it
        # when it is back.
        with pytest.raises(Indeterminate, match="needed 4 acks, received 3"):
            db.create_bucket("meanwhile", max_siblings=7, timeout=1.0)
        db.bucket("meanwhile").put("k", b"v")
        cluster[3].start()
        db.create_bucket("meanwhile", max_siblings=7, timeout=20)
        assert known_to(cluster[3])["meanwhile"]["max_siblings"] == 7


def test_a_configuration_with_another_definition_is_refused() -> None:
    with LocalCluster(nodes=3, storage="lmdb") as cluster:
        with cluster.connect(timeout=5.0) as db:
            db.create_bucket("carts", n=2)
        cluster[0].stop()
        text = (cluster[0].folder / "node.toml").read_text()
        for section, words in [
            ("[buckets.carts]\nn = 3\n", "the cluster has another definition of this bucket, which cannot be changed"),
            ("[buckets.orders]\nn = 2\n", "the cluster began without this definition"),
        ]:
            (cluster[0].folder / "node.toml").write_text(text + "\n" + section)
            with pytest.raises(Exception, match="quorate: ") as caught:
                cluster[0].start()
            assert words in str(caught.value) + cluster[0].log
        (cluster[0].folder / "node.toml").write_text(text + "\n[buckets.carts]\nn = 2\n")
        cluster[0].start()


def test_the_command_line_creates_lists_and_shows() -> None:
    with LocalCluster(nodes=3, storage="memory") as cluster:
        made = command(cluster, "bucket", "create", "carts", "--n", "2", "--w", "all", "--strict", "--read-repair", "off")
        assert "bucket carts, ready" in made
        listed = command(cluster, "bucket", "list")
        assert "carts" in listed and "3 (the layout's)" in listed
        shown = json.loads(command(cluster, "bucket", "show", "carts", "--json"))
        assert shown == {
            "name": "carts",
            "declared": True,
            "ready": True,
            "n": 2,
            "r": "quorum",
            "w": "all",
            "resolver": "siblings",
            "sloppy": False,
            "read_repair": "off",
            "max_siblings": 100,
            "max_value_bytes": 1048576,
        }
        assert "has no definition of its own" in command(cluster, "bucket", "show", "other")
        assert "another definition" in command(cluster, "bucket", "create", "carts", "--n", "3", code=2)
        assert "bucket carts, resolver siblings, n = 2" in command(cluster, "layout", "history")

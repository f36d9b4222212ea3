"""Real nodes that join, leave and are replaced while clients read and write.

The simulation tests the exact histories of layout changes.
"""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate import InvalidRequest, LocalCluster

ROOT = Path(__file__).resolve().parent.parent


def command(cluster: LocalCluster, *arguments: str, code: int = 0) -> str:
    """Run a ``quorate`` command against the cluster, check its exit code, and return its output."""
    ran = subprocess.run(
        [sys.executable, "-m", "quorate", *arguments, "--nodes", cluster.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


def until(what: Callable[[], bool], timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert time.monotonic() < deadline, f"the condition is not true after {timeout:g} s"
        time.sleep(0.1)


def status(cluster: LocalCluster) -> dict[str, Any]:
    with cluster.connect(timeout=5.0) as db:
        return db.status()


class Load:
    """Load generator in its own process: reads and writes at a fixed rate, every read verified."""

    def __init__(self, cluster: LocalCluster, rate: int, seconds: float) -> None:
        self._ends = time.monotonic() + seconds
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quorate", "bench", "--nodes", cluster.url, "--workload", "a"]
            + ["--rate", str(rate), "--seconds", str(seconds), "--keys", "2000", "--in-flight", "64"]
            + ["--timeout", "10", "--verify", "-o", "json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def result(self) -> dict[str, Any]:
        out, log = self._process.communicate(timeout=120)
        assert self._process.returncode == 0, out + log
        found: dict[str, Any] = json.loads(out)
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


def partitions(cluster: LocalCluster) -> dict[str, int]:
    with cluster.connect(timeout=5.0) as db:
        return {member["name"]: member["partitions"] for member in db.status()["members"]}


def holds_only_its_own(cluster: LocalCluster) -> None:
    """Check that nodes hold only their own partitions.

    `wait_converged` fails if more or fewer nodes hold a partition than it has replicas.
    """
    cluster.wait_converged(timeout=30.0)


@pytest.mark.parametrize("membership", ["static", "gossip"])
def test_a_cluster_grows_and_shrinks_under_load_and_a_node_is_killed_in_each_step(membership: str) -> None:
    """The cluster changes from 3 to 5 to 4 to 3 nodes, at 500 reads and writes per second."""
    random.seed(7)
    with LocalCluster(nodes=3, storage="lmdb", membership=membership) as cluster:
        load = Load(cluster, rate=500, seconds=25.0)
        try:
            time.sleep(2.0)

            def kill_one() -> None:
                victim = random.choice(cluster.nodes)
                victim.kill()
                time.sleep(0.5)
                victim.start()

            for _ in range(2):
                cluster.add_node()
            kill_one()
            cluster.wait_settled()
            assert set(partitions(cluster)) == {"n0", "n1", "n2", "n3", "n4"}
            for number in (0, 1):
                killer = threading.Thread(target=kill_one)
                killer.start()
                try:
                    cluster.remove_node(number)
                finally:
                    killer.join()
            cluster.wait_settled()
            assert load.running, "the load generator ended before the layout changes"
            result = load.result()
        finally:
            load.kill()
        assert result["errors"] == {}, result
        assert partitions(cluster) == {"n1": 1024, "n3": 1024, "n4": 1024}
        holds_only_its_own(cluster)


def test_every_command_of_the_operations_page_works() -> None:
    """Run all commands of docs/operations.md, in order."""
    page = (ROOT / "docs/operations.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    ran = 0
    config = {"cluster": {"auto_commit": False}}
    with LocalCluster(nodes=3, storage="lmdb", membership="gossip", config=config) as cluster:
        nodes = {node.name: node for node in cluster.nodes}

        def start(name: str) -> None:
            nodes[name] = cluster._start_waiting()
            assert nodes[name].name == name

        with cluster.connect(timeout=5.0) as db:
            bucket = db.bucket("b")
            values = {f"k{number}": b"v%d" % number for number in range(500)}
            bucket.put_many(values)
            before = {"Join": ["n3"], "Replace": ["n4", "n5"]}
            for section in sections:
                title = section.split("\n", 1)[0]
                for name in next((names for word, names in before.items() if title.startswith(word)), []):
                    start(name)
                for block in re.findall(r"```console\n(.*?)```", section, re.DOTALL):
                    if "--force" in block:
                        nodes["n1"].kill()
                    for line in block.splitlines():
                        words = line.removeprefix("$ quorate ").replace("127.0.0.1:7400", cluster[0].address).split()
                        said = command(cluster, *words, "--timeout", "20")
                        assert said.strip(), line
                        ran += 1
                if title.startswith(("Leave", "Replace", "Join", "Zones", "The number")):
                    assert bucket.get_many(values).keys() == values.keys(), title
        members = {member["name"]: member for member in status(cluster)["members"]}
        assert set(members) == {"n0", "n4", "n5"}
        assert {name: member["zone"] for name, member in members.items()} == {"n0": "north", "n4": "south", "n5": "west"}
        assert status(cluster)["replicas"] == 2
    assert ran == page.count("$ quorate ")


def test_a_dead_node_in_a_change_is_named_and_replaced() -> None:
    config = {"cluster": {"auto_commit": False}}
    with LocalCluster(nodes=4, storage="lmdb", membership="gossip", config=config) as cluster:
        with cluster.connect(timeout=5.0) as db:
            bucket = db.bucket("b")
            values = {f"k{number}": b"v%d" % number for number in range(300)}
            bucket.put_many(values, w="all")
            cluster[3].kill()
            command(cluster, "cluster", "weight", "n0", "150")
            command(cluster, "cluster", "commit")
            until(lambda: "n3 is down and the change waits for it" in command(cluster, "status"))
            assert "remove n3 --force" in command(cluster, "cluster", "transfers")
            bucket.put("during", b"written")
            assert "add --force" in command(cluster, "cluster", "remove", "n3", code=2)
            command(cluster, "cluster", "remove", "n3", "--force")
            command(cluster, "cluster", "commit")
            lost = cluster.nodes.pop()
            cluster.wait_settled()
            assert bucket.get_many(values).keys() == values.keys() and bucket.get_value("during") == b"written"
            history = json.loads(command(cluster, "layout", "history", "--json"))
            assert [entry["number"] for entry in history] == [1, 2, 3]
            # The removed node starts again with its old data.
            bucket.delete_many(list(values))
            lost.start()
            until(lambda: "taken out of the cluster" in lost.log)
            with quorate.connect(lost.address, follow=False, timeout=1.0) as old:
                assert old.status()["removed"] is True
                with pytest.raises(quorate.QuorateError, match="taken out of the cluster"):
                    old.bucket("b").get("k0")
            time.sleep(1.0)
            assert bucket.get_many(values) == {}
            # With an empty data folder, the node can join again.
            lost.stop()
            lost.wipe()
            lost.start()
            cluster.nodes.append(lost)
            command(cluster, "cluster", "join", "n3")
            command(cluster, "cluster", "commit")
            cluster.wait_settled()
            assert status(cluster)["members"][0]["partitions"] and len(status(cluster)["members"]) == 4


def test_a_rolling_restart_fails_no_request() -> None:
    with LocalCluster(nodes=3, storage="lmdb", membership="gossip") as cluster:
        load = Load(cluster, rate=500, seconds=10.0)
        try:
            time.sleep(2.0)
            for node in cluster.nodes:
                command(cluster, "node", "drain", node.address)
                time.sleep(0.3)
                node.stop()
                node.start()
                cluster.wait_connected()
                time.sleep(0.3)
            assert load.running
            result = load.result()
        finally:
            load.kill()
        assert result["errors"] == {}, result


def test_quorums_survive_the_loss_of_a_zone() -> None:
    config = {"cluster": {"auto_commit": False}}
    with LocalCluster(nodes=1, storage="lmdb", membership="gossip", config=config) as cluster:
        command(cluster, "cluster", "zone", "n0", "a")
        for zone in ("a", "b", "b", "c", "c"):
            node = cluster._start_waiting(zone=zone)
            command(cluster, "cluster", "join", node.name)
        command(cluster, "cluster", "replicas", "3")
        plan = json.loads(command(cluster, "cluster", "plan", "--json"))
        assert plan["zones"] == 3 and plan["moved"] == plan["fewest"] == sum(node["gains"] for node in plan["nodes"])
        command(cluster, "cluster", "commit")
        cluster.wait_settled()
        members = {member["name"]: member for member in status(cluster)["members"]}
        assert [members[f"n{number}"]["zone"] for number in range(6)] == ["a", "a", "b", "b", "c", "c"]
        with cluster.connect(timeout=5.0) as db:
            bucket = db.bucket("b", sloppy=False, r=2, w=2)
            values = {f"k{number}": b"v" for number in range(200)}
            bucket.put_many(values)
            for number in (2, 3):
                cluster[number].kill()
            time.sleep(0.5)
            assert bucket.get_many(values).keys() == values.keys()
            assert all(put.acks == 2 for put in bucket.put_many(values).values())


def test_invalid_layout_changes_are_refused_with_the_reason() -> None:
    with LocalCluster(nodes=3) as cluster:
        assert "the members are n0, n1, n2" in command(cluster, "cluster", "leave", "nobody", code=2)
        assert "start it with a seed of this cluster, or give its address" in command(
            cluster, "cluster", "join", "n9", code=2
        )
        assert "no change is staged" in command(cluster, "cluster", "commit", code=2)
        assert "1 to 10000" in command(cluster, "cluster", "weight", "n0", "0", code=2)
        command(cluster, "cluster", "leave", "n0")
        assert "replicas = 3 but the cluster has 2 members" in command(cluster, "cluster", "plan", code=2)
        assert "leave n0" in command(cluster, "cluster", "show")
        assert "leave n0" not in command(cluster, "cluster", "clear")
        with pytest.raises(InvalidRequest, match="replicas = 3 but the cluster has 2 members"):
            cluster.remove_node(0)
        assert json.loads(command(cluster, "cluster", "show", "--json"))["staged"] == []


def test_commit_refuses_a_plan_that_has_changed() -> None:
    config = {"cluster": {"auto_commit": False}}
    with LocalCluster(nodes=3, storage="memory", membership="gossip", config=config) as cluster:

        def planned() -> str:
            digest: str = json.loads(command(cluster, "cluster", "plan", "--json"))["digest"]
            assert f"cluster commit --plan {digest}" in command(cluster, "cluster", "plan")
            return digest

        command(cluster, "cluster", "weight", "n0", "150")
        shown = planned()
        command(cluster, "cluster", "weight", "n1", "150")
        now = planned()
        refused = command(cluster, "cluster", "commit", "--plan", shown, code=2)
        assert f"the plan is now {now}, not {shown}" in refused and "quorate cluster plan" in refused
        assert json.loads(command(cluster, "layout", "history", "--json"))[-1]["number"] == 1
        assert "16 hexadecimal digits" in command(cluster, "cluster", "commit", "--plan", "12", code=2)
        command(cluster, "cluster", "commit", "--plan", now)
        cluster.wait_settled()
        assert json.loads(command(cluster, "cluster", "show", "--json"))["digest"] == now


def test_a_client_follows_the_layout() -> None:
    """The client uses a node that joined later, and stops using a node that left."""
    with LocalCluster(nodes=3, storage="memory", membership="gossip") as cluster:
        with quorate.connect(cluster[0].address, timeout=5.0) as db:
            bucket = db.bucket("b")
            bucket.put_many({f"k{number}": b"v" for number in range(100)})
            cluster.add_node()
            cluster.wait_settled()
            for number in range(100):
                bucket.put(f"k{number}", b"w")
            cluster.remove_node(0)
            assert bucket.get_many([f"k{number}" for number in range(100)]).keys() == {f"k{n}" for n in range(100)}
            bucket.put("k0", b"after")

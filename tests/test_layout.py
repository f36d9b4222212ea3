"""Nodes that come, go and are replaced while clients read and write. The exact histories are the simulation's."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import quorate
from quorate import InvalidRequest, LocalCluster


def command(cluster: LocalCluster, *arguments: str, code: int = 0) -> str:
    """Run a command against the cluster, as a person does."""
    ran = subprocess.run(
        [sys.executable, "-m", "quorate", *arguments, "--nodes", cluster.url],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


class Load:
    """Reads and writes at a fixed rate, from a process of its own; every read is verified."""

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
    """No node holds a partition that is another's: `wait_converged` counts the holders of each."""
    cluster.wait_converged(timeout=30.0)


@pytest.mark.parametrize("membership", ["static", "gossip"])
def test_a_cluster_grows_and_shrinks_under_load_and_a_node_is_killed_in_each_step(membership: str) -> None:
    """3 to 5 to 4 to 3 nodes at 500 reads and writes a second."""
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
                cluster.remove_node(number)
                killer.join()
            cluster.wait_settled()
            assert load.running, "the load went on all the while"
            result = load.result()
        finally:
            load.kill()
        assert result["errors"] == {}, result
        assert partitions(cluster) == {"n1": 1024, "n3": 1024, "n4": 1024}
        holds_only_its_own(cluster)

"""Measures layout changes: the data that they copy, and the latencies of clients meanwhile.

Run it with ``make transfer``. It takes about five minutes, and writes into docs/benchmarks.md.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import quorate
from quorate import LocalCluster

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/benchmarks.md"
RATE = 1_000
KEYS = 50_000
VALUE_BYTES = 2_000
ROUNDS = 5
# Seconds of client load in each measurement, before a change and during it.
SECONDS = 10.0


def cli(cluster: LocalCluster, *words: str) -> dict[str, Any]:
    """Run a ``quorate`` command, and return its JSON output."""
    command = [sys.executable, "-m", "quorate", *words, "--nodes", cluster.url, "--timeout", "20", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def bench(cluster: LocalCluster, seconds: float, *options: str) -> dict[str, Any]:
    """Run half reads and half writes in an open loop, and return the report."""
    return cli(
        cluster,
        *("bench", "--workload", "a", "--rate", str(RATE), "--in-flight", "256", "--seconds", str(seconds)),
        *("--bucket", "small", "--keys", "20000", "--warm-up", "1", "--verify"),
        *options,
    )


class Watch:
    """Poller of all nodes during a layout change.

    It collects the bytes that each node has copied, and the highest rate of one node.
    """

    def __init__(self, cluster: LocalCluster) -> None:
        self.copied: dict[str, int] = {}
        self.fastest = 0
        self._cluster = cluster
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        # Keep one connection to each node: polling must not raise the latencies that are measured.
        clients = {node.name: quorate.connect(node.address, follow=False, timeout=5.0) for node in self._cluster.nodes}
        while not self._stop.wait(0.5):
            for name, client in clients.items():
                change = client.status()["change"]
                if change is not None:
                    copied = change["transfer"]["bytes"]
                    self.copied[name] = max(self.copied.get(name, 0), copied)
                    if copied > 4 * 1024 * 1024:
                        self.fastest = max(self.fastest, change["transfer"]["bytes_per_s"])
        for client in clients.values():
            client.close()

    def end(self) -> int:
        """Stop polling, and return the bytes that all nodes copied."""
        self._stop.set()
        self._thread.join()
        return sum(self.copied.values())


def change(cluster: LocalCluster, before_us: float) -> dict[str, Any]:
    """Commit the staged changes under load, and return the measurements."""
    plan = cli(cluster, "cluster", "plan")
    watch = Watch(cluster)
    found: dict[str, Any] = {}
    load = threading.Thread(target=lambda: found.update(bench(cluster, SECONDS, "--skip-load")))
    load.start()
    time.sleep(1.5)
    began = time.monotonic()
    cli(cluster, "cluster", "commit")
    cluster.wait_settled(timeout=120.0)
    took = time.monotonic() - began
    load.join()
    copied = watch.end()
    return {
        "replicas": (plan["moved"], plan["fewest"]),
        "bytes": (copied, plan["bytes"]),
        "took": took,
        "fastest": watch.fastest,
        "p99_ms": (found["p99_us"] / 1000, before_us / 1000),
        "failed": sum(found["errors"].values()) + len(found["wrong"]),
    }


def median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the round with the median slowdown of clients. Its failures are those of all rounds.

    Its two latencies are replaced by the medians over all rounds, each separately: the latency
    before a change varies as much as the latency during it.
    """

    def slower(one: dict[str, Any]) -> float:
        return float(one["p99_ms"][0] / one["p99_ms"][1])

    middle = sorted(rounds, key=slower)[len(rounds) // 2]
    during, before = (sorted(one["p99_ms"][which] for one in rounds)[len(rounds) // 2] for which in (0, 1))
    failed = sum(one["failed"] for one in rounds)
    return {**middle, "failed": failed, "p99_ms": (during, before), "p99_all": sorted(map(slower, rounds))}


def main() -> None:
    """Measure, and write the table into the page."""
    config = {"cluster": {"auto_commit": False}}
    with LocalCluster(nodes=3, storage="lmdb", membership="gossip", config=config) as cluster:
        with cluster.connect(timeout=10.0) as db:
            bucket = db.bucket("large")
            for at in range(0, KEYS, 256):
                bucket.put_many({f"key-{n}": os.urandom(VALUE_BYTES) for n in range(at, min(at + 256, KEYS))})
        bench(cluster, 1.0)
        joins, leaves = [], []
        for _ in range(ROUNDS):
            before = bench(cluster, SECONDS, "--skip-load")["p99_us"]
            node = cluster._start_waiting()
            cli(cluster, "cluster", "join", node.name)
            joins.append(change(cluster, before))
            before = bench(cluster, SECONDS, "--skip-load")["p99_us"]
            goes = cluster[0]
            cli(cluster, "cluster", "leave", goes.name)
            leaves.append(change(cluster, before))
            goes.stop()
            cluster.nodes.remove(goes)
        cluster.wait_converged(timeout=60.0)
    joined, left = median(joins), median(leaves)
    mib = 1024 * 1024

    def row(what: str, aim: str, show: Any) -> str:
        return f"| {what} | {aim} | {show(joined)} | {show(left)} |"

    def ratio(pair: tuple[float, float], detail: Any) -> str:
        return f"{pair[0] / pair[1]:.2f} ({detail})"

    def p99(f: dict[str, Any]) -> str:
        (during, before), ratios = f["p99_ms"], f["p99_all"]
        return f"{during / before:.2f} ({during:.1f} ÷ {before:.1f} ms; all: {ratios[0]:.1f} to {ratios[-1]:.1f})"

    lines = [
        f"Measured on {datetime.date.today()}, {os.cpu_count()} cores that also run the load generator; LMDB with fsync, "
        f"{KEYS:,} values of {VALUE_BYTES:,} bytes, YCSB a at {RATE:,} operations a second. "
        f"The middle one of {ROUNDS} rounds.",
        "",
        "| | aim | a fourth node joins | the first one leaves |",
        "|---|---|---|---|",
        row("replicas of partitions moved ÷ fewest", "≤ 1.02", lambda f: ratio(f["replicas"], f["replicas"][0])),
        row(
            "bytes copied ÷ what those partitions hold (estimated from 16 of them)",
            "1",
            lambda f: ratio(f["bytes"], f"{f['bytes'][0] / mib:.0f} MiB"),
        ),
        row("from the commit until the old layout is forgotten", "", lambda f: f"{f['took']:.1f} s"),
        row("copied at, on one node", "", lambda f: f"{f['fastest'] / mib:.1f} MiB/s"),
        row("client p99 meanwhile ÷ before", "≤ 2", p99),
        row("requests that failed, or showed something wrong", "0", lambda f: str(f["failed"])),
    ]
    text = "<!-- transfer -->\n" + "\n".join(lines) + "\n<!-- /transfer -->"
    print("\n".join(lines))
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"<!-- transfer -->.*<!-- /transfer -->", lambda _: text, page, flags=re.DOTALL))


if __name__ == "__main__":
    main()

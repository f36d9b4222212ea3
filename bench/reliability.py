"""Measures the figures of docs/reliability.md and writes them into that page.

Run it with ``make reliability``. It takes about three minutes.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import airportsdata

from quorate import LocalCluster

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/reliability.md"
RATE = 2_000
RUNS = 5


def bench(cluster: LocalCluster, seconds: int, workload: str = "a") -> dict[str, Any]:
    """Run the load generator with an open loop, and return its report.

    In an open loop, the latency of a request counts from the time at which the request was due.
    """
    command = [sys.executable, "-m", "quorate", "bench", "--nodes", cluster.url, "--workload", workload]
    options = ["--rate", str(RATE), "--in-flight", "512", "--seconds", str(seconds), "--warm-up", "1", "--verify"]
    done = subprocess.run([*command, *options, "-o", "json"], capture_output=True, text=True)
    if not done.stdout:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def errors(found: dict[str, Any]) -> int:
    """Return the number of failed requests, plus the number of reads with a wrong value."""
    failed: dict[str, int] = found["errors"]
    return sum(failed.values()) + len(found["wrong"])


def killed() -> tuple[int, float]:
    """Kill and restart one of five nodes under load.

    Return the number of failed requests, and the longest latency in milliseconds.
    """
    with LocalCluster(nodes=5, storage="lmdb", membership="gossip") as cluster:
        timers = [threading.Timer(4.0, cluster[1].kill), threading.Timer(9.0, cluster[1].start)]
        for timer in timers:
            timer.start()
        found = bench(cluster, 12)
        for timer in timers:
            timer.join()
        return errors(found), found["max_us"] / 1000


def returned() -> tuple[int, float]:
    """Restart a node that missed all writes of about 28,000 keys.

    Return the number of keys, and the seconds from its start until all replicas are equal.
    """
    with LocalCluster(nodes=3, storage="lmdb") as cluster, cluster.connect(timeout=10.0) as db:
        cluster[2].kill()
        airports = db.bucket("airports", codec="json")
        source = list(airportsdata.load("ICAO").items())
        for at in range(0, len(source), 256):
            airports.put_many({key: dict(record) for key, record in source[at : at + 256]})
        began = time.monotonic()
        cluster[2].start()
        cluster.wait_connected()
        cluster.wait_converged(timeout=120.0)
        return len(source), time.monotonic() - began


def wiped() -> float:
    """Restart a node that lost its disk. Return the seconds until all replicas are equal."""
    with LocalCluster(nodes=3, storage="lmdb") as cluster, cluster.connect(timeout=10.0) as db:
        airports = db.bucket("airports", codec="json")
        source = list(airportsdata.load("ICAO").items())
        for at in range(0, len(source), 256):
            airports.put_many({key: dict(record) for key, record in source[at : at + 256]})
        cluster[2].kill()
        cluster[2].wipe()
        began = time.monotonic()
        cluster[2].start()
        cluster.wait_connected(timeout=60.0)
        cluster.wait_converged(timeout=120.0)
        return time.monotonic() - began


def paused() -> tuple[float, float, int]:
    """Freeze one of five nodes, and measure once the others treat it as down.

    Return the p99 latency with all nodes up and with one frozen, both in milliseconds, and the
    number of failed requests.
    """
    with LocalCluster(nodes=5, storage="lmdb", membership="gossip") as cluster:
        healthy = statistics.median(bench(cluster, 4)["p99_us"] for _ in range(RUNS))
        cluster[3].pause()
        time.sleep(3.0)
        frozen = [bench(cluster, 4) for _ in range(RUNS)]
        cluster[3].resume()
        return healthy / 1000, statistics.median(run["p99_us"] for run in frozen) / 1000, sum(map(errors, frozen))


def main() -> None:
    """Measure everything, and write the table into the page."""
    failed, longest = killed()
    keys, seconds = returned()
    refilled = wiped()
    healthy, frozen, frozen_failed = paused()
    rows = [
        (f"failed requests while a node of five is killed and returns, {RATE:,} ops/s open loop, YCSB a", "0", f"{failed}"),
        ("longest wait of any of them", "", f"{longest:,.0f} ms"),
        (f"a returned node that missed {keys:,} keys is identical again after", "seconds", f"{seconds:.1f} s"),
        (f"a wiped node holds its {keys:,} keys again after", "seconds", f"{refilled:.1f} s"),
        ("p99 with one node frozen ÷ with all up", "≤ 2", f"{frozen / healthy:.2f} ({frozen:.1f} ms ÷ {healthy:.1f} ms)"),
        ("failed requests with one node frozen", "0", f"{frozen_failed}"),
    ]
    lines = [
        f"Measured on {datetime.date.today()}, {os.cpu_count()} cores that also run the load generator, LMDB with fsync.",
        "",
        "| | aim | measured |",
        "|---|---|---|",
        *(f"| {what} | {aim} | {value} |" for what, aim, value in rows),
    ]
    text = "<!-- measured -->\n" + "\n".join(lines) + "\n<!-- /measured -->"
    print("\n".join(lines))
    page = PAGE.read_text()
    PAGE.write_text(re.sub(r"<!-- measured -->.*<!-- /measured -->", lambda _: text, page, flags=re.DOTALL))


if __name__ == "__main__":
    main()

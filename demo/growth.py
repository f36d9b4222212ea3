"""Demo of layout changes: three nodes become four and then three again, while a client writes.

It shows plan, progress and ring with the command line.

Run it with ``make demo``. It exits with 1 if a request fails, an airport is missing, or a node
holds a partition of which it is no replica.
"""

from __future__ import annotations

import subprocess
import sys
import time

import airportsdata
from shared import Airport, Editor, say, table

import quorate
from quorate import LocalCluster

BATCH = 256


def command(cluster: LocalCluster, *words: str) -> None:
    """Run a ``quorate`` command, and print it and its output."""
    print(f"\n  $ quorate {' '.join(words)}", flush=True)
    ran = subprocess.run(
        [sys.executable, "-m", "quorate", *words, "--nodes", cluster.url, "--timeout", "20"],
        capture_output=True,
        text=True,
    )
    for line in (ran.stdout + ran.stderr).splitlines():
        print(f"  {line}")
    if ran.returncode:
        raise SystemExit(ran.returncode)


def change(cluster: LocalCluster) -> float:
    """Plan and commit the staged changes, and wait until they are done. Return the seconds."""
    command(cluster, "cluster", "plan")
    began = time.monotonic()
    command(cluster, "cluster", "commit")
    time.sleep(0.25)
    command(cluster, "cluster", "transfers")
    cluster.wait_settled()
    return time.monotonic() - began


def main() -> int:
    """Run the demo."""
    began = time.monotonic()
    source: dict[str, Airport] = {key: dict(record) for key, record in airportsdata.load("ICAO").items()}
    rows: list[tuple[str, str]] = []

    say("Starting three nodes and loading the airports once more")
    config = {"cluster": {"auto_commit": False, "transfer_rate_mib_s": 8}}
    with LocalCluster(nodes=3, storage="lmdb", membership="gossip", config=config) as cluster:
        db = cluster.connect(timeout=10.0)
        airports = db.bucket("airports", codec="json")
        keys = list(source)
        for at in range(0, len(keys), BATCH):
            airports.put_many({key: source[key] for key in keys[at : at + BATCH]})
        with Editor(cluster, source) as editor:
            say("A fourth node joins while a client edits the airports")
            node = cluster._start_waiting()
            command(cluster, "cluster", "join", node.name)
            took = change(cluster)
            print(f"\n  layout change done after {took:.1f} s; {editor.done:,} writes so far, {len(editor.failed)} failed")
            rows.append(("a node joined in", f"{took:.1f} s"))

            say("The first node leaves: it hands over its data, and is stopped")
            command(cluster, "cluster", "leave", cluster[0].name)
            took = change(cluster)
            cluster[0].stop()
            del cluster.nodes[0]
            print(f"\n  layout change done after {took:.1f} s; {editor.done:,} writes so far, {len(editor.failed)} failed")
            rows.append(("a node left in", f"{took:.1f} s"))
        rows.append(("writes meanwhile", f"{editor.done:,}"))
        rows.append(("of them failed", f"{len(editor.failed):,}"))
        rows.append(("slowest", f"{editor.slowest:.2f} s"))

        say("The ring and the history of the layouts")
        command(cluster, "ring")
        command(cluster, "layout", "history")
        cluster.wait_converged(timeout=60.0)
        print("\n  all replicas of all partitions hold the same, and no node holds any other partition")

        say("Reading every record back at R=3 and comparing it with the source")
        differing = []
        with quorate.connect(cluster.url, timeout=10.0) as reader:
            read = reader.bucket("airports", codec="json")
            for at in range(0, len(keys), BATCH):
                batch = keys[at : at + BATCH]
                found = read.get_many(batch, r=3)
                differing += [key for key in batch if key not in found or source[key] not in found[key].siblings]
        rows.append(("records that differ", f"{len(differing):,}"))
        db.close()

    rows.append(("time", f"{time.monotonic() - began:.1f} s"))
    table(rows)
    if differing or editor.failed:
        print(f"\nFAILED: {[*differing[:10], *editor.failed[:3]]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

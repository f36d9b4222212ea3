"""Demo of failures on five nodes with gossip.

Under load, one node is killed and one is frozen. Then one loses its disk and is refilled.

Run it with ``make demo``. It exits with 1 if a request fails, an airport is missing, or the
replicas differ at the end.
"""

from __future__ import annotations

import sys
import time

import airportsdata
from shared import Airport, Editor, say, table

import quorate
from quorate import LocalCluster, QuorateError

BATCH = 256


def hints(cluster: LocalCluster) -> dict[str, int]:
    """Return the number of hints on all running nodes, by the name of the node that each is for."""
    waiting: dict[str, int] = {}
    for node in cluster.nodes:
        if node.running and not node._paused:
            with quorate.connect(node.address, follow=False, timeout=5.0) as client:
                for kept in client.status()["hints_for"]:
                    waiting[kept["target"]] = waiting.get(kept["target"], 0) + int(kept["hints"])
    return waiting


def drain(cluster: LocalCluster) -> float:
    """Wait until no hint is left, and return the time that this took, in seconds."""
    began = time.monotonic()
    while waiting := hints(cluster):
        if time.monotonic() - began > 60.0:
            raise QuorateError(f"hints are left after 60 s, by node: {waiting}")
        time.sleep(0.05)
    return time.monotonic() - began


def main() -> int:
    """Run the demo."""
    began = time.monotonic()
    source: dict[str, Airport] = {key: dict(record) for key, record in airportsdata.load("ICAO").items()}
    rows: list[tuple[str, str]] = []

    say("Starting five nodes that know one address: they discover each other by gossip and agree on a layout")
    with LocalCluster(nodes=5, storage="lmdb", membership="gossip") as cluster, cluster.connect(timeout=10.0) as db:
        names = ", ".join(f"{node.name} on {node.address}" for node in cluster.nodes)
        print(f"  {names}")
        airports = db.bucket("airports", codec="json")
        keys = list(source)
        for at in range(0, len(keys), BATCH):
            airports.put_many({key: source[key] for key in keys[at : at + BATCH]})
        print(f"  {len(keys):,} airports loaded (N=3, R=W=2)")

        say("Editing the airports one by one; meanwhile n1 is killed (kill -9) and n2 is frozen (SIGSTOP)")
        with Editor(cluster, source) as editor:
            time.sleep(0.5)
            cluster[1].kill()
            time.sleep(0.7)
            cluster[2].pause()
            for _ in range(4):
                time.sleep(1.0)
                kept = ", ".join(f"{count:,} for {name}" for name, count in sorted(hints(cluster).items()))
                print(f"  {editor.done:>6,} writes, {len(editor.failed)} failed; hints kept: {kept or 'none'}")
        rows.append(("writes with two nodes gone", f"{editor.done:,}"))
        rows.append(("of them failed", f"{len(editor.failed):,}"))
        rows.append(("slowest", f"{editor.slowest:.2f} s"))

        say("Bringing both nodes back: hints repair them, and no client reads anything")
        cluster[2].resume()
        cluster[1].start()
        took = drain(cluster)
        cluster.wait_connected()
        cluster.wait_converged(timeout=60.0)
        print(f"  hints drained in {took:.1f} s; all replicas of all partitions hold the same")
        rows.append(("hints drained in", f"{took:.1f} s"))

        say("Wiping the disk of n3 and starting it: it answers no read before it has merged with the other replicas")
        cluster[3].kill()
        cluster[3].wipe()
        again = time.monotonic()
        cluster[3].start()
        cluster.wait_connected(timeout=60.0)
        cluster.wait_converged(timeout=60.0)
        refilled = time.monotonic() - again
        print(f"  refilled in {refilled:.1f} s")
        rows.append(("wiped node refilled in", f"{refilled:.1f} s"))

        say("Reading every record back at R=3 and comparing it with the source")
        differing = []
        for at in range(0, len(keys), BATCH):
            batch = keys[at : at + BATCH]
            found = airports.get_many(batch, r=3)
            differing += [key for key in batch if key not in found or source[key] not in found[key].siblings]
        rows.append(("records that differ", f"{len(differing):,}"))

    rows.append(("time", f"{time.monotonic() - began:.1f} s"))
    table(rows)
    if differing or editor.failed:
        print(f"\nFAILED: {[*differing[:10], *editor.failed[:3]]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

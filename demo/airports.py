"""Demo of reads and writes: all airports of `airportsdata` on three nodes, one of which is killed.

Run it with ``make demo``. It exits with 1 if a record that is read back differs from its source.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator

import airportsdata
from shared import Airport, say, table

from quorate import Bucket, Client, LocalCluster

BATCH = 256


class Progress:
    """Progress bar of one step.

    On a terminal, the line is drawn again every 0.1 s. Otherwise it is printed once, at the end.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.begun = self.drawn = time.monotonic()
        self.live = sys.stdout.isatty()

    def add(self, count: int) -> None:
        """Count finished records, and draw the line if it is due."""
        self.done += count
        now = time.monotonic()
        if self.live and now - self.drawn > 0.1:
            self.drawn = now
            self.draw("\r")

    def end(self) -> float:
        """Draw the line for the last time, and return the records per second."""
        self.draw("\r" if self.live else "")
        print()
        return self.rate()

    def rate(self) -> float:
        """Return the records per second so far."""
        return self.done / max(time.monotonic() - self.begun, 1e-9)

    def draw(self, start: str) -> None:
        """Draw the line."""
        share = self.done / self.total
        bar = "█" * round(share * 30)
        counts = f"{self.done:>6,} of {self.total:,}  {self.rate():>8,.0f}/s"
        print(f"{start}  {self.what:<28} {bar:<30} {counts}", end="", flush=True)


def batches(items: Iterable[str]) -> Iterator[list[str]]:
    """Yield the items in lists of up to ``BATCH``."""
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def load(bucket: Bucket[Airport], source: dict[str, Airport], keys: list[str], what: str) -> float:
    """Put the records of these keys, and return the records per second."""
    progress = Progress(what, len(keys))
    for batch in batches(keys):
        bucket.put_many({key: source[key] for key in batch})
        progress.add(len(batch))
    return progress.end()


def check(bucket: Bucket[Airport], expected: dict[str, Airport], what: str, r: int) -> tuple[float, list[str]]:
    """Read all expected records. Return the records per second, and the keys that differ."""
    progress = Progress(what, len(expected))
    differing = []
    for batch in batches(expected):
        found = bucket.get_many(batch, r=r)
        for key in batch:
            entry = found.get(key)
            if entry is None or entry.siblings != [expected[key]]:
                differing.append(key)
        progress.add(len(batch))
    return progress.end(), differing


def edit_concurrently(one: Client, other: Client, key: str) -> Airport:
    """Let two clients edit a record that both have read, and return the merged siblings."""

    def merge(siblings: list[Airport]) -> Airport:
        return {field: value for sibling in siblings for field, value in sibling.items()}

    ours, theirs = (db.bucket("airports", codec="json", resolve=merge) for db in (one, other))
    seen_here, seen_there = ours.get(key), theirs.get(key)
    assert seen_here is not None and seen_there is not None
    ours.put(key, {**seen_here.value, "note": "best coffee in gate B"}, context=seen_here.context)
    put = theirs.put(key, {**seen_there.value, "rating": 5}, context=seen_there.context)
    print(f"  the second put returns conflict={put.conflict}")
    entry = ours.get(key)
    assert entry is not None
    for number, sibling in enumerate(entry.siblings):
        print(f"  sibling {number}: note={sibling.get('note')!r} rating={sibling.get('rating')!r}")
    ours.put(key, entry.value, context=entry.context)
    entry = theirs.get(key)
    assert entry is not None and not entry.conflict
    print(f"  merged:    note={entry.value['note']!r} rating={entry.value['rating']!r}")
    merged: Airport = entry.value
    return merged


def main() -> int:
    """Run the demo."""
    begun = time.monotonic()
    source: dict[str, Airport] = {key: dict(record) for key, record in airportsdata.load("ICAO").items()}
    keys = list(source)
    half = len(keys) // 2
    rows: list[tuple[str, str]] = [("airports", f"{len(source):,}")]

    say(f"Starting three nodes with LMDB: every write is on disk before it is acknowledged ({len(source):,} airports)")
    with LocalCluster(nodes=3, storage="lmdb") as cluster, cluster.connect(timeout=10.0) as db:
        for node in cluster.nodes:
            print(f"  {node.name} on {node.address}")
        airports = db.bucket("airports", codec="json")

        say("Loading the first half (N=3, R=W=2)")
        rate = load(airports, source, keys[:half], "put")
        rows.append(("puts, three nodes", f"{rate:,.0f}/s"))

        say(f"Killing {cluster[1].name} (kill -9) and loading the second half")
        cluster[1].kill()
        rate = load(airports, source, keys[half:], "put, one node dead")
        rows.append(("puts, one node dead", f"{rate:,.0f}/s"))

        say(f"Restarting {cluster[1].name}: it missed the second half, and receives it from the hints of the other nodes")
        cluster[1].start()
        cluster.wait_connected()
        began_to_wait = time.monotonic()
        cluster.wait_converged(timeout=60.0)
        rows.append(("caught up in", f"{time.monotonic() - began_to_wait:.1f} s"))
        held = {holding["node"]: holding["state"] for holding in airports.explain(keys[-1])["holdings"]}
        print(f"  {keys[-1]} is {', '.join(f'{state} on {node}' for node, state in sorted(held.items()))}")

        say("Two clients edit EDDF concurrently")
        with cluster.connect() as other:
            source["EDDF"] = edit_concurrently(db, other, "EDDF")

        say("Reading every record back at R=2 and comparing it with the source")
        rate, differing = check(airports, source, "get, compare", r=2)
        rows.append(("gets, R=2", f"{rate:,.0f}/s"))
        scanned = sum(1 for _ in airports.keys())
        rows.append(("keys seen by a scan", f"{scanned:,}"))
        if scanned != len(source):
            differing.append(f"scan: {scanned} keys")

        say("Reading once more at R=3: afterwards all replicas must hold the same")
        rate, more = check(airports, source, "get, R=3", r=3)
        rows.append(("gets, R=3", f"{rate:,.0f}/s"))
        differing += more
        cluster.wait_converged()
        print("  all replicas of all partitions hold the same")

    rows.append(("records that differ", f"{len(differing):,}"))
    rows.append(("time", f"{time.monotonic() - begun:.1f} s"))
    table(rows)
    if differing:
        print(f"\nFAILED: {', '.join(differing[:10])}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

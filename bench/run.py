"""Measures Quorate on this machine and writes the figures into docs/benchmarks.md.

Run it with ``make bench``. It starts its own clusters. The same run also measures bare ceilings:
one Cap'n Proto hop and three LMDB commit loops, without Quorate. Compare each figure with them,
because machines differ, and one machine differs from hour to hour.

Each figure is the median of several runs, followed by the lowest and the highest one. A figure that
misses its bar, a value that is just good enough, is marked; the run does not fail.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quorate import LocalCluster

ROOT = Path(__file__).resolve().parent.parent
NODE = ROOT / "target" / "release" / "quorate"
NODE_WITH_FJALL = ROOT / "target" / "release" / "quorate-with-fjall"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
MIB = 1024 * 1024

# Bytes of a storage key in this benchmark.
KEY_BYTES = 3 + len("bench\0") + len("key0000000000")
# Bytes of a storage key and its record, after one write of 100 bytes (schema/object.md).
RECORD_BYTES = KEY_BYTES + 40 + 100


class Figures:
    """Values of one figure, one for each run."""

    def __init__(self, values: list[float]) -> None:
        self.values = sorted(values)

    @property
    def median(self) -> float:
        """Median of the runs."""
        return statistics.median(self.values)

    def __str__(self) -> str:
        if len(self.values) == 1:
            return number(self.median)
        return f"{number(self.median)} ({number(self.values[0])}–{number(self.values[-1])})"


def number(value: float) -> str:
    """Format a number: three significant digits below 100, else whole with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


class Run:
    """Settings of this run, and the table rows so far."""

    def __init__(self, seconds: float, runs: int, keys: int) -> None:
        self.seconds, self.runs, self.keys = seconds, runs, keys
        self.rows: list[tuple[str, str, str, str, str]] = []
        self.extra: list[tuple[str, str]] = []

    def bench(self, cluster: LocalCluster, *arguments: str) -> dict[str, Any]:
        """Run the load generator once, and return its report."""
        command = [str(NODE), "bench", "--nodes", cluster.url, "-o", "json", "--seconds", str(self.seconds), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        report: dict[str, Any] = json.loads(done.stdout)
        if report["errors"]:
            print(f"    errors: {report['errors']}", flush=True)
        return report

    def measure(self, cluster: LocalCluster, field: str, *arguments: str) -> Figures:
        """Run the load generator several times, and return one field of its reports.

        Only the first run loads the keys.
        """
        values = []
        for at in range(self.runs):
            again = ["--skip-load"] if at > 0 else []
            values.append(float(self.bench(cluster, *arguments, *again)[field]))
        return Figures(values)

    def row(self, what: str, measured: str, least: str, aim: str, verdict: str) -> None:
        """Store and print a row that has a bar and an aim."""
        self.rows.append((what, measured, least, aim, verdict))
        print(f"  {what:<58} {measured:<32} {verdict}", flush=True)

    def at_least(self, what: str, figures: Figures, least: float, aim: float, unit: str = "per s") -> None:
        """Add a row whose figure should be high."""
        verdict = "aim" if figures.median >= aim else "bar" if figures.median >= least else "below"
        self.row(what, f"{figures} {unit}", number(least), number(aim), verdict)

    def at_most(self, what: str, figure: float, shown: str, least: str, aim: str, bars: tuple[float, float]) -> None:
        """Add a row whose figure should be low. ``bars``: the bar and the aim as numbers."""
        verdict = "aim" if figure <= bars[1] else "bar" if figure <= bars[0] else "below"
        self.row(what, shown, least, aim, verdict)

    def also(self, what: str, measured: str) -> None:
        """Store and print a row without a bar."""
        self.extra.append((what, measured))
        print(f"  {what:<58} {measured}", flush=True)


@contextmanager
def cluster_of(engine: str, /, nodes: int = 3, command: Path = NODE, **config: dict[str, Any]) -> Iterator[LocalCluster]:
    """Start a cluster of the release build with this storage engine."""
    with LocalCluster(nodes=nodes, storage=engine, config=config, command=[str(command)]) as cluster:
        yield cluster


def load(workload: str, in_flight: int, *more: str) -> list[str]:
    """Return arguments for the load generator."""
    return ["--workload", workload, "--in-flight", str(in_flight), *more]


def cargo_bench(package: str, name: str, *arguments: str) -> list[dict[str, float]]:
    """Run a benchmark that measures a bare ceiling, and return the JSON lines that it prints."""
    command = ["cargo", "bench", "--quiet", "--locked", "-p", package, "--bench", name, "--", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def quorum_writes_and_reads(run: Run, hop: dict[str, float], loops: dict[int, float]) -> None:
    """Measure the main table: puts and gets on three nodes."""
    with cluster_of("memory") as cluster:
        for flight, least, aim in ((64, 40_000, 75_000), (256, 70_000, 140_000)):
            figures = run.measure(cluster, "ops_per_s", *load("put", flight))
            run.at_least(f"put W=2, memory, {flight} in flight", figures, least, aim)
        for flight, least, aim in ((64, 45_000, 75_000), (256, 80_000, 150_000)):
            figures = run.measure(cluster, "ops_per_s", *load("get", flight))
            run.at_least(f"get R=2, memory, {flight} in flight", figures, least, aim)
        trip = hop["round_trip_p50_us"]
        for workload in ("put", "get"):
            alone = run.measure(cluster, "p50_us", *load(workload, 1, "--connections", "1"))
            ratio = alone.median / (2 * trip)
            shown = f"{alone} µs = {ratio:.2f} × two bare round trips of {trip:.0f} µs"
            run.at_most(f"{workload}, 1 in flight, memory, p50", ratio, shown, "1.5 ×", "1.1 ×", (1.5, 1.1))
        for workload in ("put", "get"):
            sized = load(workload, 64, "--value-bytes", "10240", "--keys", "10000", "--bucket", "large")
            figures = run.measure(cluster, "mib_per_s", *sized)
            run.at_least(f"{workload} of 10 KiB, memory, 64 in flight", figures, 300, 600, "MiB/s")
    with cluster_of("lmdb", storage={"durability": "interval"}) as cluster:
        for flight, least, aim in ((64, 30_000, 65_000), (256, 50_000, 100_000)):
            figures = run.measure(cluster, "ops_per_s", *load("put", flight))
            run.at_least(f"put W=2, LMDB interval, {flight} in flight", figures, least, aim)
    with cluster_of("lmdb") as cluster:
        for flight in (64, 256):
            figures = run.measure(cluster, "ops_per_s", *load("put", flight))
            ceiling = loops[flight]
            verdict = ("below", "bar", "aim")[(figures.median >= 0.6 * ceiling) + (figures.median >= 0.9 * ceiling)]
            shown = f"{figures} per s = {figures.median / ceiling:.2f} × three bare loops at {number(ceiling)}"
            run.row(f"put W=2, LMDB fsync, {flight} in flight", shown, "0.6 ×", "0.9 ×", verdict)
        many = load("get", 64, "--keys", str(run.keys), "--bucket", "many")
        figures = run.measure(cluster, "ops_per_s", *many)
        run.at_least(f"get R=2, LMDB, 64 in flight, {run.keys:,} keys", figures, 40_000, 70_000)


def python_client(run: Run) -> None:
    """Measure loops of Python calls on one thread."""
    with cluster_of("memory") as cluster, cluster.connect() as db:
        bucket = db.bucket("python")
        value, keys = b"x" * 100, [f"key{at:06}" for at in range(10_000)]
        bucket.put_many({key: value for key in keys})
        batches = [keys[at : at + 100] for at in range(0, len(keys), 100)]

        def each(what: Callable[[Any], object], items: list[Any], weight: int) -> Figures:
            rates = []
            for _ in range(run.runs):
                begun, done = time.perf_counter(), 0
                while time.perf_counter() - begun < run.seconds:
                    what(items[done % len(items)])
                    done += 1
                rates.append(done * weight / (time.perf_counter() - begun))
            return Figures(rates)

        run.at_least("Python put loop, one thread", each(lambda key: bucket.put(key, value), keys, 1), 4_000, 8_000)
        run.at_least("Python get loop, one thread", each(bucket.get, keys, 1), 6_000, 12_000)
        many = each(bucket.get_many, batches, 100)
        run.at_least("Python get_many of 100", many, 60_000, 200_000, "keys/s")


def memory(run: Run) -> None:
    """Measure the memory of an idle node, and the memory that each key adds."""

    def resident(pid: int | None, field: str) -> float:
        status = Path(f"/proc/{pid}/status").read_text()
        return float(next(line.split()[1] for line in status.splitlines() if line.startswith(field + ":"))) * 1024

    for storage in ("lmdb", "memory"):
        with cluster_of(storage) as cluster:
            time.sleep(1.0)
            idle = resident(cluster[0].pid, "VmRSS")
            if storage == "lmdb":
                shown = f"{idle / MIB:.1f} MiB"
                run.at_most("an idle node (LMDB)", idle / MIB, shown, "30 MiB", "15 MiB", (30, 15))
            # The first load grows buffers that later loads use again. They are no cost of the keys.
            unused = resident(cluster[0].pid, "RssAnon")
            run.bench(cluster, *load("get", 64, "--keys", str(run.keys // 4), "--bucket", "first"))
            before = resident(cluster[0].pid, "RssAnon")
            run.bench(cluster, *load("get", 64, "--keys", str(run.keys)))
            kept = max(0.0, resident(cluster[0].pid, "RssAnon") - before) / run.keys
            if storage == "lmdb":
                buffers = (before - unused) / MIB
                shown = f"{kept:.1f} bytes of anonymous memory; {buffers:.0f} MiB of buffers are there after any load"
                run.at_most("a key (LMDB; its record is in the file)", kept, shown, "16 bytes", "0", (16, 0))
            else:
                over = kept - RECORD_BYTES
                shown = f"{over:.0f} bytes above its record of {RECORD_BYTES}"
                run.at_most("a key (memory engine)", over, shown, "16 bytes", "0", (16, 0))


def without_a_bar(run: Run) -> None:
    """Measure the rows without a bar."""
    with cluster_of("memory", cluster={"replicas": 1}) as cluster:
        for workload in ("put", "get"):
            figures = run.measure(cluster, "ops_per_s", *load(workload, 64))
            run.also(f"{workload}, N=1 on three nodes, memory, 64 in flight", f"{figures} per s")
    with cluster_of("memory", nodes=5) as cluster:
        for workload in ("put", "get"):
            figures = run.measure(cluster, "ops_per_s", *load(workload, 64))
            run.also(f"{workload}, five nodes, N=3, memory, 64 in flight", f"{figures} per s")
    with cluster_of("memory") as cluster:
        for workload in ("a", "b", "c"):
            figures = run.measure(cluster, "ops_per_s", *load(workload, 64))
            run.also(f"YCSB {workload}, zipfian, memory, 64 in flight", f"{figures} per s")
        figures = run.measure(cluster, "ops_per_s", *load("put", 64, "--keys", str(run.keys)))
        run.also(f"put W=2, memory, 64 in flight, {run.keys:,} keys", f"{figures} per s")
        steady = ("--rate", "2000", "--warm-up", "3")
        for workload in ("put", "get"):
            healthy = run.bench(cluster, *load(workload, 64, *steady))
            cluster[2].pause()
            paused = run.bench(cluster, *load(workload, 64, *steady, "--skip-load"))
            cluster[2].resume()
            cluster.wait_connected()
            shown = ", ".join(
                f"{name} p50 {report['p50_us']:,} µs, p99 {report['p99_us']:,} µs, errors {sum(report['errors'].values())}"
                for name, report in (("all up:", healthy), ("one paused:", paused))
            )
            run.also(f"{workload} at 2,000/s open loop, one node paused 3 s before", shown)
    for engine in ("lmdb", "fjall"):
        with cluster_of(engine, command=NODE_WITH_FJALL) as cluster:
            for workload, flight in (("put", 64), ("put", 256), ("get", 64)):
                figures = run.measure(cluster, "ops_per_s", *load(workload, flight))
                run.also(f"{engine} in the example node: {workload}, {flight} in flight", f"{figures} per s")


def machine() -> str:
    """Return a description of this machine."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    return f"{os.cpu_count()} cores ({model}), {memory_gib:.0f} GiB, Linux {platform.release().split('-')[0]}"


def page(run: Run, hop: dict[str, float], loops: dict[int, float], took: float) -> str:
    """Return the measured part of docs/benchmarks.md, its markers included."""
    lines = [
        BEGIN,
        f"Measured on {datetime.date.today().isoformat()} by `make bench` in {took / 60:.0f} minutes, on {machine()}.",
        f"Each figure is the median of {run.runs} runs of {run.seconds:g} s, with the least and the most in brackets.",
        "Three nodes with one worker each and the load generator share the cores; values of 100 bytes, 100,000 keys, N=3,",
        "unless a row says otherwise; `--connections 4`, which are two clients with a connection to each node.",
        "",
        "| bare ceilings, same run | |",
        "|---|---|",
        f"| one Cap'n Proto round trip between two processes, p50 | {hop['round_trip_p50_us']:.1f} µs |",
        f"| one Cap'n Proto hop, 32 puts a call, two calls under way | {number(hop['ops_per_s_in_batches_of_32'])} puts/s |",
    ]
    lines += [
        f"| three LMDB commit loops side by side, {batch} puts a commit | {number(rate)} puts/s each |"
        for batch, rate in loops.items()
    ]
    lines += ["", "| | measured | at least | aim | reached |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in run.rows]
    lines += ["", "| without a bar | measured |", "|---|---|"]
    lines += [f"| {what} | {measured} |" for what, measured in run.extra]
    return "\n".join([*lines, END])


def main() -> int:
    """Measure, print the figures, and write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="duration of each run, in seconds (default: 4)")
    parser.add_argument("--runs", type=int, default=3, help="number of runs of each figure (default: 3)")
    parser.add_argument("--keys", type=int, default=1_000_000, help="keys in the rows with many keys (default: 1000000)")
    parser.add_argument("--page", type=Path, default=PAGE, help="page that the figures are written into")
    arguments = parser.parse_args()
    for program in (NODE, NODE_WITH_FJALL):
        if not program.exists():
            raise SystemExit(f"{program} is missing: run this with `make bench`")
    begun = time.monotonic()
    run = Run(arguments.seconds, arguments.runs, arguments.keys)
    print("bare ceilings", flush=True)
    hop = cargo_bench("quorate-rpc", "hop")[0]
    loops = {int(line["batch"]): line["puts_per_s_each"] for line in cargo_bench("quorate-storage-lmdb", "commit_loops")}
    print(f"  {hop}\n  {loops}\nthree nodes", flush=True)
    quorum_writes_and_reads(run, hop, loops)
    print("Python", flush=True)
    python_client(run)
    print("memory", flush=True)
    memory(run)
    print("without a bar", flush=True)
    without_a_bar(run)
    text = arguments.page.read_text() if arguments.page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    arguments.page.write_text(before + page(run, hop, loops, time.monotonic() - begun) + after)
    print(f"written to {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures the processor time of a put and of a get, by part of the program.

It samples three nodes and the load generator with perf, and writes a table into docs/benchmarks.md.
A sample counts for the part below that matches its innermost frame. If none matches, the next outer
frame decides. The microseconds are the processor time of all processes, divided by the operations
done meanwhile.

Run it with ``make profile``. It needs perf (Debian: linux-perf) and the permission to use it.
"""

from __future__ import annotations

import collections
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from quorate import LocalCluster

ROOT = Path(__file__).resolve().parent.parent
NODE = ROOT / "target" / "profiling" / "quorate"
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- profile: begin -->", "<!-- profile: end -->"
SECONDS = 4.0
FREQUENCY = 2_000

KERNEL = [
    ("system calls: send, with the receiver's side of loopback", r"sys_send|tcp_sendmsg"),
    ("system calls: receive", r"sys_recv|tcp_recvmsg"),
    ("system calls: epoll, sleeping and waking", r"epoll|schedule|futex"),
    ("system calls: fsync and file writes", r"fsync|fdatasync|sys_pwrite|sys_writev"),
    ("other kernel work (page faults, interrupts)", r""),
]
PARTS = [
    ("storage engine: lookups, inserts", r"storage_memory|storage_lmdb|mdb_"),
    ("merge and objects", r"quorate_core::(object|causality|quorum|clock)"),
    ("codec and checksums", r"quorate_core::(codec|varint|key)|xxhash"),
    ("Cap'n Proto: conversions", r"quorate_rpc::(convert|generated)|_capnp::"),
    ("Cap'n Proto: messages and calls", r"capnp"),
    ("batches, reply buffers, streams", r"quorate_rpc"),
    ("coordinator and replica", r"quorate_node"),
    ("client: routes, attempts", r"quorate_client"),
    ("the generator itself", r"quorate_server::cli::bench|hdrhistogram|rand"),
    ("scheduling: tokio, futures, timers", r"tokio|mio::|futures"),
]


def samples(data: Path) -> list[list[tuple[str, str]]]:
    """Return the sampled stacks. A stack is a list of (symbol, object), innermost frame first."""
    script = ["perf", "script", "-i", str(data), "-F", "ip,sym,dso", "--no-inline"]
    out = subprocess.run(script, capture_output=True, text=True, errors="replace", check=True).stdout
    stacks: list[list[tuple[str, str]]] = []
    for block in out.split("\n\n"):
        frames = re.findall(r"^\s*[0-9a-f]+ (.*) \((.*)\)$", block, re.MULTILINE)
        if frames:
            stacks.append(frames)
    return stacks


def part_of(stack: list[tuple[str, str]]) -> str:
    """Return the part of the program that a sample belongs to."""
    names = [symbol for symbol, _ in stack]
    if "kernel" in stack[0][1]:
        return next(part for part, pattern in KERNEL if any(re.search(pattern, name) for name in names))
    if "clock_gettime" in names[0]:
        return "reading clocks"
    for name in names:
        for part, pattern in PARTS:
            if re.search(pattern, name):
                return part
    return "allocator, copies and others, caller unknown"


def profile(workload: str) -> tuple[float, collections.Counter[str]]:
    """Return operations per second, and microseconds of each operation by part."""
    with LocalCluster(nodes=3, storage="memory", command=[str(NODE)]) as cluster, tempfile.TemporaryDirectory() as folder:
        command = [str(NODE), "bench", "--nodes", cluster.url, "--workload", workload, "-o", "json"]
        subprocess.run([*command, "--seconds", "2"], capture_output=True, check=True)
        load = [*command, "--skip-load", "--seconds", str(SECONDS + 2)]
        generator = subprocess.Popen(load, stdout=subprocess.PIPE, text=True)
        time.sleep(1.5)
        data = Path(folder) / "perf.data"
        pids = ",".join(str(pid) for pid in [generator.pid, *(node.pid for node in cluster.nodes)])
        record = ["perf", "record", "-g", "-F", str(FREQUENCY), "-e", "cpu-clock", "-o", str(data), "-p", pids]
        subprocess.run([*record, "--", "sleep", str(SECONDS)], capture_output=True, check=True)
        ops_per_s = float(json.loads(generator.communicate()[0])["ops_per_s"])
        counted = collections.Counter(part_of(stack) for stack in samples(data))
    each = 1e6 / FREQUENCY / (ops_per_s * SECONDS)
    return ops_per_s, collections.Counter({part: count * each for part, count in counted.items()})


def main() -> int:
    """Sample, print the table, and write it into the page."""
    if shutil.which("perf") is None:
        raise SystemExit("perf is missing: install linux-perf (Debian)")
    (puts, put), (gets, get) = profile("put"), profile("get")
    lines = [
        BEGIN,
        "By `make profile`: microseconds of processor time an operation, over all four processes, memory engine, 64 in",
        f"flight, while {puts:,.0f} puts and {gets:,.0f} gets a second were done under the profiler.",
        "",
        "| what | put W=2 | get R=2 |",
        "|---|---|---|",
    ]
    for part in sorted(put | get, key=lambda part: -(put[part] + get[part])):
        lines.append(f"| {part} | {put[part]:.1f} | {get[part]:.1f} |")
    lines += [f"| **all** | **{put.total():.1f}** | **{get.total():.1f}** |", END]
    print("\n".join(lines))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + "\n".join(lines) + rest.partition(END)[2])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compares the speed of two builds, in turns, because a machine's speed drifts from minute to minute.

    python bench/paired.py OLD NEW [--rounds 7] [--seconds 4]

OLD and NEW are `quorate` binaries. Each round starts three nodes of each build in memory and loads
them with that build's own generator. The output is the ratio NEW / OLD of each round, and its median.
The script does not import the package `quorate`, so the builds may be of different versions.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

IN_FLIGHT = 64
NODES = 3


@contextlib.contextmanager
def cluster_of(binary: str) -> Iterator[str]:
    """Start three nodes of a build, and yield their addresses."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(NODES)]
    addresses = [f"127.0.0.1:{opened.getsockname()[1]}" for opened in sockets]
    for opened in sockets:
        opened.close()
    members = ", ".join(f'{{ name = "n{at}", address = "{address}" }}' for at, address in enumerate(addresses))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for at, address in enumerate(addresses):
            config = Path(folder) / f"n{at}.toml"
            config.write_text(
                f'[node]\nname = "n{at}"\nlisten = "{address}"\ndata = "{folder}/n{at}"\nworkers = 1\nlog = "error"\n'
                f'[storage]\nengine = "memory"\n[membership]\nplugin = "static"\nmembers = [{members}]\n'
            )
            node = subprocess.Popen([binary, "serve", "--config", str(config)], stdout=subprocess.PIPE, text=True)
            stack.callback(node.wait)
            stack.callback(node.terminate)
            assert node.stdout is not None and node.stdout.readline().startswith("quorate ready")
        yield ",".join(addresses)


def operations_per_second(binary: str, workload: str, seconds: float) -> float:
    """Load a fresh cluster of one build, and return the operations a second."""
    with cluster_of(binary) as addresses:
        command = [binary, "bench", "--nodes", addresses, "-o", "json", "--seconds", str(seconds)]
        command += ["--workload", workload, "--in-flight", str(IN_FLIGHT), "--connections", "4"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        report = json.loads(done.stdout)
        if report["errors"]:
            raise SystemExit(f"{binary}: errors {report['errors']}")
        return float(report["ops_per_s"])


def main() -> None:
    """Run the rounds and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4.0)
    arguments = parser.parse_args()
    for workload in ["put", "get"]:
        ratios = []
        for round_number in range(arguments.rounds):
            # Every second round begins with the other build.
            order = [arguments.old, arguments.new] if round_number % 2 == 0 else [arguments.new, arguments.old]
            speed = {binary: operations_per_second(binary, workload, arguments.seconds) for binary in order}
            ratios.append(speed[arguments.new] / speed[arguments.old])
            print(f"{workload}: {speed[arguments.old]:,.0f} {speed[arguments.new]:,.0f} {ratios[-1]:.3f}", flush=True)
        median = statistics.median(ratios)
        print(f"{workload}: median ratio {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


if __name__ == "__main__":
    main()

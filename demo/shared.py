"""Code that the demos share."""

from __future__ import annotations

import threading
import time
from typing import Any

from quorate import LocalCluster, QuorateError

Airport = dict[str, Any]


def say(text: str) -> None:
    """Print the headline of the next step."""
    print(f"\n• {text}", flush=True)


def table(rows: list[tuple[str, str]]) -> None:
    """Print names and values of results as a table."""
    width = max(len(name) for name, _ in rows)
    print("\n  ┌" + "─" * (width + 20) + "┐")
    for name, value in rows:
        print(f"  │ {name:<{width}} {value:>16}  │")
    print("  └" + "─" * (width + 20) + "┘")


class Editor:
    """Client that edits the airports, one after the other, in its own thread.

    Each acknowledged edit is also made in ``source``.
    """

    def __init__(self, cluster: LocalCluster, source: dict[str, Airport]) -> None:
        self.cluster, self.source = cluster, source
        self.done = 0
        self.failed: list[Exception] = []
        self.slowest = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self.cluster.connect(timeout=10.0) as db:
            airports = db.bucket("airports", codec="json")
            for number, (key, record) in enumerate(self.source.items()):
                if self._stop.is_set():
                    return
                began = time.monotonic()
                try:
                    airports.put(key, {**record, "visit": number})
                    record["visit"] = number
                    self.done += 1
                except QuorateError as error:
                    self.failed.append(error)
                self.slowest = max(self.slowest, time.monotonic() - began)

    def __enter__(self) -> Editor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

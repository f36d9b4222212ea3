"""What the demos have in common."""

from __future__ import annotations

import threading
import time
from typing import Any

from quorate import LocalCluster, QuorateError

Airport = dict[str, Any]


def say(text: str) -> None:
    """Say what happens next."""
    print(f"\n• {text}", flush=True)


def table(rows: list[tuple[str, str]]) -> None:
    """Print results."""
    width = max(len(name) for name, _ in rows)
    print("\n  ┌" + "─" * (width + 20) + "┐")
    for name, value in rows:
        print(f"  │ {name:<{width}} {value:>16}  │")
    print("  └" + "─" * (width + 20) + "┘")


class Editor:
    """Edits airports, one after the other, in a thread of its own."""

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

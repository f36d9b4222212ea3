"""The client of a cluster."""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from quorate import _native
from quorate._bucket import Bucket, quorum_text
from quorate._codec import Codec
from quorate._errors import InvalidRequest

T = TypeVar("T")
Seconds = float | int | timedelta
Quorum = int | Literal["quorum", "all"]


def connect(url: str | None = None, *, timeout: Seconds = 2.0, follow: bool = True) -> Client:
    """Connect to a cluster, at once: an address that cannot be reached is named in the error.

    Args:
        url: nodes to begin with, ``"host:port,host:port,…"``. Default: the environment's ``QUORATE_URL``.
        timeout: how long an operation may take, retries included: seconds or a timedelta.
        follow: learn the other nodes and send each request to a replica of its key. ``False``: only talk to the named
            nodes.

    Raises:
        Unavailable: no named node can be reached.
        InvalidRequest: the url or the timeout is malformed.
    """
    if url is None:
        url = os.environ.get("QUORATE_URL")
        if not url:
            raise InvalidRequest('connect() needs an address: connect("host:port") or QUORATE_URL in the environment')
    return Client(url, timeout=timeout, follow=follow)


def seconds(value: Seconds, name: str = "timeout") -> float:
    """Check a duration given in seconds or as a timedelta."""
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 86_400:
        raise InvalidRequest(f"{name}={value!r}: use seconds, more than 0 and at most 86,400, or a timedelta")
    return float(number)


class LastSeen:
    """What this client last saw of the keys of one bucket: bounded, the least recently seen is forgotten first."""

    def __init__(self, limit: int = 10_000) -> None:
        self._contexts: OrderedDict[bytes, bytes] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes:
        """Give the context last seen of a key; empty if there is none."""
        with self._lock:
            context = self._contexts.get(key, b"")
            if context:
                self._contexts.move_to_end(key)
            return context

    def set(self, key: bytes, context: bytes) -> None:
        """Remember the context last seen of a key."""
        if not context:
            return
        with self._lock:
            self._contexts[key] = context
            self._contexts.move_to_end(key)
            if len(self._contexts) > self._limit:
                self._contexts.popitem(last=False)


class Client:
    """A client of one cluster; make one with `connect`.

    May be shared between threads (each has connections of its own), pickled, and used in a forked child: it connects
    anew there.
    """

    def __init__(self, url: str, *, timeout: Seconds = 2.0, follow: bool = True) -> None:
        self._url = url
        self._timeout = seconds(timeout)
        self._follow = follow
        self._native = _native.Client(url, self._timeout, follow)
        self._seen: dict[str, LastSeen] = {}

    @overload
    def bucket(
        self,
        name: str,
        *,
        r: Quorum | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
        codec: Literal["bytes"] | None = None,
        resolve: Callable[[list[bytes]], bytes] | None = None,
        on_conflict: Literal["warn", "raise"] = "warn",
        keys: type[str] | type[bytes] | None = None,
    ) -> Bucket[bytes]: ...
    @overload
    def bucket(
        self,
        name: str,
        *,
        r: Quorum | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
        codec: Literal["str"],
        resolve: Callable[[list[str]], str] | None = None,
        on_conflict: Literal["warn", "raise"] = "warn",
        keys: type[str] | type[bytes] | None = None,
    ) -> Bucket[str]: ...
    @overload
    def bucket(
        self,
        name: str,
        *,
        r: Quorum | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
        codec: Literal["json"],
        resolve: Callable[[list[Any]], Any] | None = None,
        on_conflict: Literal["warn", "raise"] = "warn",
        keys: type[str] | type[bytes] | None = None,
    ) -> Bucket[Any]: ...
    @overload
    def bucket(
        self,
        name: str,
        *,
        r: Quorum | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
        codec: Codec[T],
        resolve: Callable[[list[T]], T] | None = None,
        on_conflict: Literal["warn", "raise"] = "warn",
        keys: type[str] | type[bytes] | None = None,
    ) -> Bucket[T]: ...
    def bucket(
        self,
        name: str,
        *,
        r: Quorum | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
        codec: Any = None,
        resolve: Callable[[list[Any]], Any] | None = None,
        on_conflict: Literal["warn", "raise"] = "warn",
        keys: type[str] | type[bytes] | None = None,
    ) -> Bucket[Any]:
        """Open a bucket; nothing is sent.

        Args:
            name: 1 to 64 of the characters A-Z a-z 0-9 . _ -
            r: replicas that must answer a read: a number, "quorum" or "all". Default: the bucket's.
            w: replicas that must ack a write, likewise.
            sloppy: whether fallbacks may stand in for dead replicas. Default: the bucket's.
            timeout: how long an operation may take, retries included. Default: the client's.
            codec: "bytes" (default), "str", "json", or an object with ``encode`` and ``decode``.
            resolve: makes one value of a list of siblings.
            on_conflict: what ``Entry.value`` does with several siblings and no ``resolve``: "warn" (once a bucket) and
                show the last written one, or "raise" `ConflictError`.
            keys: ``str`` to get keys as text from scans. Default ``bytes``.
        """
        seen = self._seen.setdefault(name, LastSeen())
        return Bucket(
            self._native,
            name,
            seen,
            r=r,
            w=w,
            sloppy=sloppy,
            timeout=None if timeout is None else seconds(timeout),
            default_timeout=self._timeout,
            codec=codec,
            resolve=resolve,
            on_conflict=on_conflict,
            keys=keys or bytes,
        )

    def create_bucket(
        self,
        name: str,
        *,
        n: int | None = None,
        r: Quorum = "quorum",
        w: Quorum = "quorum",
        resolver: str = "siblings",
        sloppy: bool = True,
        read_repair: Literal["blocking", "background", "off"] = "blocking",
        max_siblings: int = 100,
        max_value_bytes: int = 1024 * 1024,
        timeout: Seconds = 10.0,
    ) -> Bucket[bytes]:
        """Give a bucket a definition of its own, for good, and wait until all nodes go by it.

        A bucket need not be created: without a definition it goes by that of ``default``. Creating it again in the same
        way does nothing.

        Only a bucket without keys can get another ``n``, or an ``r`` or ``w`` that need not meet what was written before,
        and all nodes must be up for it.

        Args:
            name: 1 to 64 of the characters A-Z a-z 0-9 . _ -
            n: replicas a key. Default: as many as the cluster keeps.
            r: replicas a read asks: a number, "quorum" or "all".
            w: acks a write waits for: a number, "quorum" or "all".
            resolver: what decides between versions that lie side by side: "siblings", "lww", or a plugin's name.
            sloppy: whether fallbacks may stand in for dead replicas.
            read_repair: when reads push what they merged to replicas that are behind.
            max_siblings: how many versions may lie side by side.
            max_value_bytes: largest value, up to 16 MiB.
            timeout: how long it may take.

        Returns:
            The bucket, opened as `bucket` does.

        Raises:
            InvalidRequest: it exists with another definition, or does not fit the cluster.
            Indeterminate: not all nodes have taken it in time; they will when they are back. May be repeated.
        """
        definition = {
            "n": n,
            "r": quorum_text("r", r),
            "w": quorum_text("w", w),
            "resolver": resolver,
            "sloppy": sloppy,
            "read_repair": read_repair,
            "max_siblings": max_siblings,
            "max_value_bytes": max_value_bytes,
        }
        self._native.create_bucket(name, json.dumps(definition), seconds(timeout))
        return self.bucket(name)

    def buckets(self) -> dict[str, dict[str, Any]]:
        """The definitions of buckets by name, as one node knows them; ``default`` is for all that have none.

        ``ready`` is False while a bucket is being created: until then requests to it wait.
        """
        report: dict[str, Any] = json.loads(self._native.buckets())
        buckets: dict[str, dict[str, Any]] = report["buckets"]
        return buckets

    def ping(self) -> float:
        """Seconds of one round trip to a node."""
        return self._native.ping()

    def status(self) -> dict[str, Any]:
        """The cluster as one node sees it: nodes and their states, layout, partitions, hints."""
        status: dict[str, Any] = json.loads(self._native.status())
        return status

    def close(self) -> None:
        """Close the connections. Later calls raise `InvalidRequest`."""
        self._native.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reconnect, (self._url, self._timeout, self._follow)

    def __repr__(self) -> str:
        return f"quorate.connect({self._url!r})"


def _reconnect(url: str, timeout: float, follow: bool) -> Client:
    return Client(url, timeout=timeout, follow=follow)

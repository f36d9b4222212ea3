"""Client of a cluster, and `connect`, which creates one."""

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
    """Connect to a cluster and return its client.

    The connection is made before the call returns.

    Args:
        url: addresses of one or more nodes, ``"host:port,host:port,…"``. Default: the environment
            variable ``QUORATE_URL``.
        timeout: longest duration of an operation of this client, retries included, in seconds or as
            a ``timedelta``: more than 0, at most 86,400 s. Default: 2 s.
        follow: True (default): the client learns the other nodes from the cluster, and sends each
            request to a replica of its key. False: the client uses only the nodes in ``url``.

    Returns:
        A connected client. Close it with ``close()`` or a ``with`` statement.

    Raises:
        Unavailable: no node in ``url`` can be reached. The message names each address and
                its error.
        DeadlineExceeded: a node was reached, but did not answer before the timeout.
        InvalidRequest: ``url`` or ``timeout`` is malformed, or there is neither ``url`` nor
            ``QUORATE_URL``.

    Example::

        with quorate.connect("127.0.0.1:7400,127.0.0.1:7401") as db:
            db.bucket("carts").put("ann", b"milk")
    """
    if url is None:
        url = os.environ.get("QUORATE_URL")
        if not url:
            raise InvalidRequest('connect() needs an address: connect("host:port") or QUORATE_URL in the environment')
    return Client(url, timeout=timeout, follow=follow)


def seconds(value: Seconds, name: str = "timeout") -> float:
    """Return a duration in seconds.

    Args:
        value: seconds, or a ``timedelta``.
        name: name of the argument, for the error.

    Raises:
        InvalidRequest: the duration is 0 or less, more than 86,400 s, or no number.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number <= 86_400:
        raise InvalidRequest(f"{name}={value!r}: use seconds, more than 0 and at most 86,400, or a timedelta")
    return float(number)


class LastSeen:
    """Table of the contexts that this client last saw of the keys of one bucket.

    It holds at most ``limit`` keys (default 10,000), and drops the least recently used one first.
    Threads may share it.
    """

    def __init__(self, limit: int = 10_000) -> None:
        self._contexts: OrderedDict[bytes, bytes] = OrderedDict()
        self._limit = limit
        self._lock = threading.Lock()

    def get(self, key: bytes) -> bytes:
        """Return the context that the client last saw of a key, or empty bytes if it has none."""
        with self._lock:
            context = self._contexts.get(key, b"")
            if context:
                self._contexts.move_to_end(key)
            return context

    def set(self, key: bytes, context: bytes) -> None:
        """Store the context that the client last saw of a key. An empty context is not stored."""
        if not context:
            return
        with self._lock:
            self._contexts[key] = context
            self._contexts.move_to_end(key)
            if len(self._contexts) > self._limit:
                self._contexts.popitem(last=False)


class Client:
    """Client of one cluster; returned by `connect`.

    Threads may share a client: each thread has its own connections. A client can be pickled, and
    used in a forked child process. It opens new connections there.

    Calls block until the operation ends or its timeout is over. Ctrl-C interrupts a call.

    Args:
        url: addresses of one or more nodes, ``"host:port,host:port,…"``.
        timeout: longest duration of an operation, retries included, in seconds or as a
            ``timedelta``. Default: 2 s.
        follow: True (default) to learn the other nodes from the cluster, False to use only the
            nodes in ``url``.

    Example::

        db = quorate.connect("127.0.0.1:7400")
        carts = db.bucket("carts", codec="json")
        db.close()
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
        """Return a bucket with these options. Nothing is sent to a node.

        A bucket need not be created first. All `Bucket` objects of this client with the same name
        share the contexts that the client last saw (of 10,000 keys).

        Args:
            name: name of the bucket: 1 to 64 of the characters ``A-Z a-z 0-9 . _ -``. The first
                request checks it.
            r: number of replicas that must answer a read: 1 to n, "quorum" or "all". Default: r of
                the bucket's definition.
            w: number of acknowledgements that a write needs: 1 to n, "quorum" or "all". Default: w
                of the bucket's definition.
            sloppy: True if the acknowledgement of a fallback counts for a replica that cannot be
                reached. Applies to writes. Default: as the bucket's definition says.
            timeout: longest duration of an operation, retries included, in seconds or as a
                ``timedelta``. Default: the timeout of the client.
            codec: "bytes" (default), "str", "json", or an object with ``encode`` and ``decode``
                (`Codec`).
            resolve: function that merges a list of siblings into one value. Default: none.
            on_conflict: behaviour of ``Entry.value`` if there are several siblings and no
                ``resolve``. "warn" (default) returns the last written one, and issues one
                `ConflictWarning`. "raise" raises `ConflictError`.
            keys: type of the keys that scans return: ``bytes`` (default) or ``str``.

        Returns:
            The bucket. Its value type is that of the codec.

        Raises:
            InvalidRequest: an option has an unknown value.

        Example::

            def merge(carts):
                return {item: count for cart in carts for item, count in cart.items()}

            carts = db.bucket("carts", codec="json", resolve=merge)
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
        """Create a bucket with a definition of its own, and wait until all nodes use it.

        A bucket without a definition uses the definition of ``default``, so most buckets need not
        be created. A definition is permanent. A call with the definition that the bucket already
        has does nothing.

        Some definitions are accepted only for a bucket without keys and while all nodes are up:
        those with another ``n`` than ``default`` has, and those with quorums that may miss earlier
        writes. Quorums miss no write if ``r`` and ``w`` are those of ``default``, or if the ``r``
        of each definition and the ``w`` of the other add up to more than ``n``.

        Args:
            name: name of the bucket: 1 to 64 of the characters ``A-Z a-z 0-9 . _ -``.
            n: number of replicas of each key, at most the number of the cluster. Default: the
                number of the cluster.
            r: number of replicas that must answer a read: 1 to n, "quorum" or "all". Default:
                "quorum".
            w: number of acknowledgements that a write needs: 1 to n, "quorum" or "all". Default:
                "quorum".
            resolver: conflict resolver that the nodes use: "siblings" (default) keeps all siblings,
                "lww" keeps the last write, or the name of a plugin.
            sloppy: True (default) if the acknowledgement of a fallback counts for a replica that
                cannot be reached.
            read_repair: time at which a read sends the merged object to replicas that hold less:
                "blocking" (default) before the reply, "background" after it, "off" never.
            max_siblings: largest number of versions of a key, 1 or more. Beyond it, puts with
                ``EMPTY`` are refused. Default: 100.
            max_value_bytes: largest value, 1 to 16,777,216 bytes (16 MiB). Default: 1,048,576
                (1 MiB).
            timeout: longest duration, in seconds or as a ``timedelta``. Default: 10 s.

        Returns:
            The bucket, with the options that `bucket` has by default.

        Raises:
            InvalidRequest: the bucket has another definition, or the definition does not fit the
                cluster.
            Indeterminate: some nodes do not use the definition yet. They will when they can be
                reached. The call may be repeated.

        Example::

            sessions = db.create_bucket("sessions", resolver="lww", max_value_bytes=10_000)
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
        """Return the definitions of the buckets, as one node knows them.

        Returns:
            The definitions by name. The definition ``default`` applies to all buckets that have
            none. A definition has the fields of `create_bucket`, and ``ready``: False while the
            bucket is being created. Until then nodes refuse its requests, and clients retry them.

        Raises:
            QuorateError: no node answered before the timeout of the client.
        """
        report: dict[str, Any] = json.loads(self._native.buckets())
        buckets: dict[str, dict[str, Any]] = report["buckets"]
        return buckets

    def ping(self) -> float:
        """Measure one round trip to a node.

        Returns:
            The duration in seconds.

        Raises:
            QuorateError: no node answered before the timeout of the client.
        """
        return self._native.ping()

    def status(self) -> dict[str, Any]:
        """Return the state of the cluster, as one node sees it.

        Returns:
            A report with these items, among others: ``node`` (name of the node that answered),
            ``members`` (name, address, zone, state and partitions of each member), ``layout``
            (number of the layout), ``partitions``, ``replicas``, ``hints`` (number of hints that
            the node keeps), ``recovering`` (partitions that answer no reads yet), and ``change``
            (progress of a layout change, or None).

        Raises:
            QuorateError: no node answered before the timeout of the client.
        """
        status: dict[str, Any] = json.loads(self._native.status())
        return status

    def close(self) -> None:
        """Close the connections. Later requests of this client raise `InvalidRequest`.

        The connections of other threads close when these threads use a client again, or end. It is
        no error to close a client twice.
        """
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

"""Buckets: reads and writes of values under keys."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from quorate import _codec, _native
from quorate._codec import Codec
from quorate._context import EMPTY, Context
from quorate._errors import CodecError, ConflictError, InvalidRequest, PartialError, QuorateError

if TYPE_CHECKING:
    from quorate._client import LastSeen, Quorum, Seconds

T = TypeVar("T")
D = TypeVar("D")
KeyLike = str | bytes


class ConflictWarning(UserWarning):
    """Warning that a key has several siblings and ``Entry.value`` returned the last written one.

    Issued once for each `Bucket` object without a ``resolve``. To avoid it, pass ``resolve=`` to
    ``Client.bucket``, or read ``Entry.siblings``.
    """


@dataclass(frozen=True, slots=True)
class Put:
    """Result of a successful write.

    Example::

        put = carts.put("ann", {"milk": 1})
        if put.conflict:
            entry = carts.get("ann")  # merge entry.siblings, then put with entry.context
    """

    context: Context
    """Versions of the key that this client has seen, this write included.

    A later write with this context replaces exactly these versions.
    """
    acks: int
    """Number of nodes that acknowledged the write before the reply, fallbacks included."""
    hinted: int
    """Number of the acknowledgements that came from fallbacks, which keep the write as a hint."""
    conflict: bool
    """True if the key has siblings that this client has not seen."""


class Entry(Generic[T]):
    """Result of a read: the value of a key, or its siblings, and their context.

    Example::

        entry = carts.get("ann")
        if entry is not None and entry.conflict:
            merged = {k: v for cart in entry.siblings for k, v in cart.items()}
            carts.put("ann", merged, context=entry.context)
    """

    __slots__ = ("_bucket", "_key", "context", "siblings")

    def __init__(self, bucket: Bucket[T], key: bytes, siblings: list[T], context: Context) -> None:
        self._bucket = bucket
        self._key = key
        self.siblings: list[T] = siblings
        """Values of the siblings, one or more, in the order in which they were written."""
        self.context: Context = context
        """Context of the read. A ``put`` or ``delete`` with it replaces exactly these siblings."""

    @property
    def conflict(self) -> bool:
        """True if the key has several siblings."""
        return len(self.siblings) > 1

    @property
    def value(self) -> T:
        """Value of the key.

        If there are several siblings, the ``resolve`` of the bucket merges them. Without a
        ``resolve`` this is the last written sibling, and a `ConflictWarning` is issued.

        Raises:
            ConflictError: there are several siblings, the bucket has no ``resolve``, and it was
                opened with ``on_conflict="raise"``.
        """
        return self._bucket._resolved(self._key, self.siblings)

    def __repr__(self) -> str:
        return f"Entry(siblings={self.siblings!r})"


class Bucket(Generic[T]):
    """Named group of keys with one definition; returned by ``Client.bucket``.

    ``T`` is the type of its values: ``bytes``, or the type that the codec decodes to. A key is 1 to
    1,024 bytes; a ``str`` is encoded as UTF-8. Threads may share a bucket.

    These arguments are the same in all methods. Each defaults to the option of the bucket:

    - ``r``: number of replicas that must answer a read: 1 to n, ``"quorum"`` or ``"all"``.
    - ``w``: number of acknowledgements that a write needs: 1 to n, ``"quorum"`` or ``"all"``.
    - ``sloppy``: True if the acknowledgement of a fallback counts for a replica that cannot be
      reached (sloppy quorum).
    - ``timeout``: longest duration of the call, retries included, in seconds or as a
      ``timedelta``: more than 0, at most 86,400 s.

    All methods that send requests may raise `Unavailable`, `Overloaded`, `StorageFailed` and
    `InvalidRequest`. Reads may also raise `DeadlineExceeded`, and writes `Indeterminate`.

    Example::

        carts = db.bucket("carts", codec="json")
        carts.put("ann", {"milk": 1})
        entry = carts.get("ann")
        carts.put("ann", {"milk": 2}, context=entry.context)
    """

    def __init__(
        self,
        native: _native.Client,
        name: str,
        seen: LastSeen,
        *,
        r: Quorum | None,
        w: Quorum | None,
        sloppy: bool | None,
        timeout: float | None,
        default_timeout: float,
        codec: str | Codec[T] | None,
        resolve: Callable[[list[T]], T] | None,
        on_conflict: Literal["warn", "raise"],
        keys: type[str] | type[bytes],
    ) -> None:
        if on_conflict not in ("warn", "raise"):
            raise InvalidRequest(f'on_conflict={on_conflict!r}: use "warn" or "raise"')
        if keys not in (str, bytes):
            raise InvalidRequest(f"keys={keys!r}: pass the type str or the type bytes, without quotes")
        self._native = native
        self.name = name
        """Name of the bucket."""
        self._seen = seen
        self._r = quorum_text("r", r)
        self._w = quorum_text("w", w)
        self._sloppy = sloppy
        self._timeout = timeout
        self._default_timeout = default_timeout
        self._codec: Codec[T] = _codec.find(codec)
        self._resolve = resolve
        self._on_conflict = on_conflict
        self._keys = keys
        self._warned = False

    # Reads

    def get(self, key: KeyLike, *, r: Quorum | None = None, timeout: Seconds | None = None) -> Entry[T] | None:
        """Read a key.

        Args:
            key: the key, 1 to 1,024 bytes.
            r: number of replicas that must answer. Default: the option of the bucket.
            timeout: longest duration, retries included. Default: the option of the bucket.

        Returns:
            The siblings of the key and their context, or None if the key is absent or deleted.

        Raises:
            Unavailable: fewer than ``r`` replicas can be reached.
            DeadlineExceeded: fewer than ``r`` replicas answered before the timeout.
            CodecError: the codec cannot decode a value.
            InvalidRequest: the key, ``r`` or ``timeout`` is outside its limits.
        """
        name = _key(key)
        siblings, context = self._native.get(self.name, name, self._r_of(r), self._timeout_of(timeout))
        return self._entry(name, siblings, context)

    @overload
    def get_value(self, key: KeyLike, default: D, *, r: Quorum | None = ..., timeout: Seconds | None = ...) -> T | D: ...
    @overload
    def get_value(
        self, key: KeyLike, default: None = ..., *, r: Quorum | None = ..., timeout: Seconds | None = ...
    ) -> T | None: ...
    def get_value(
        self, key: KeyLike, default: Any = None, *, r: Quorum | None = None, timeout: Seconds | None = None
    ) -> Any:
        """Read the value of a key.

        Args:
            key: the key, 1 to 1,024 bytes.
            default: result for a key that is absent or deleted. Default: None.
            r: number of replicas that must answer. Default: the option of the bucket.
            timeout: longest duration, retries included. Default: the option of the bucket.

        Returns:
            ``Entry.value`` of the key, or ``default``.

        Raises:
            ConflictError: the key has several siblings, the bucket has no ``resolve``, and it was
                opened with ``on_conflict="raise"``.
            QuorateError: as for `get`.
        """
        entry = self.get(key, r=r, timeout=timeout)
        return default if entry is None else entry.value

    def exists(self, key: KeyLike, *, r: Quorum | None = None, timeout: Seconds | None = None) -> bool:
        """Return True if the key has a value, and False if it is absent or deleted.

        Args:
            key: the key, 1 to 1,024 bytes.
            r: number of replicas that must answer. Default: the option of the bucket.
            timeout: longest duration, retries included. Default: the option of the bucket.

        Raises:
            QuorateError: as for `get`, except `CodecError`: no value is decoded.
        """
        name = _key(key)
        siblings, _ = self._native.get(self.name, name, self._r_of(r), self._timeout_of(timeout))
        return bool(siblings)

    def get_many(
        self, keys: Iterable[KeyLike], *, r: Quorum | None = None, timeout: Seconds | None = None
    ) -> dict[KeyLike, Entry[T]]:
        """Read many keys in one call.

        Args:
            keys: the keys. Duplicates are read once.
            r: number of replicas that must answer for each key. Default: the option of the bucket.
            timeout: longest duration of each read, retries included. Default: the option of the
                bucket.

        Returns:
            The entries by key. Keys that are absent or deleted are not in it.

        Raises:
            PartialError: some keys failed. ``results`` has the entries of the other keys.
            InvalidRequest: a key is not 1 to 1,024 bytes, or an option is malformed. Nothing was
                read.
        """
        asked = list(dict.fromkeys(keys))
        names = [_key(key) for key in asked]
        replies = self._native.get_many(self.name, names, self._r_of(r), self._timeout_of(timeout))
        found: dict[KeyLike, Entry[T]] = {}
        errors: dict[KeyLike, QuorateError] = {}
        for key, name, reply in zip(asked, names, replies, strict=True):
            if isinstance(reply, QuorateError):
                errors[key] = reply
                continue
            try:
                entry = self._entry(name, *reply)
            except CodecError as error:
                errors[key] = error
                continue
            if entry is not None:
                found[key] = entry
        _raise_partial("read", len(asked), found, errors)
        return found

    def scan(self, prefix: KeyLike = b"", *, cursor: bytes = b"", r: Quorum | None = None) -> Scan[T]:
        """Iterate over all live keys of the bucket and their entries.

        Each key is returned once, in storage order: by partition, then by key. Entries are fetched
        page by page, with the timeout of the bucket for each page.

        Args:
            prefix: return only keys that begin with this ``str`` or ``bytes``. Default: all keys.
            cursor: ``Scan.cursor`` of an earlier scan, to continue after its last key. Default: the
                start.
            r: number of replicas of each partition that must answer. Default: the option of the
                bucket.

        Returns:
            An iterator over ``(key, entry)``. Keys are ``bytes``, or ``str`` if the bucket was
            opened with ``keys=str``. The iteration raises the errors of `get`.
        """
        return Scan(self, _prefix(prefix), cursor, self._r_of(r))

    def keys(self, prefix: KeyLike = b"", *, r: Quorum | None = None) -> Iterator[Any]:
        """Iterate over all live keys of the bucket, without their values.

        Each key is returned once, in storage order: by partition, then by key. Keys are ``bytes``,
        or ``str`` if the bucket was opened with ``keys=str``.

        Args:
            prefix: return only keys that begin with this ``str`` or ``bytes``. Default: all keys.
            r: number of replicas of each partition that must answer. Default: the option of the
                bucket.

        Raises:
            QuorateError: as for `get`, except `CodecError`: no value is decoded.
        """
        cursor = b""
        while True:
            entries, cursor = self._native.scan(
                self.name, _prefix(prefix), cursor, 0, True, self._r_of(r), self._timeout
            )
            for key, _, _, _ in entries:
                yield self._shown_key(key)
            if not cursor:
                return

    def explain(self, key: KeyLike) -> dict[str, Any]:
        """Return the placement of a key and the versions that each replica holds.

        Args:
            key: the key, 1 to 1,024 bytes.

        Returns:
            A report with these items, among others: ``partition``, ``replicas`` and ``fallbacks``
            (names of nodes, in order), ``n``, ``r``, ``w``, ``holdings`` (one for each replica),
            ``agree`` (True if all replicas answered and hold the same), and ``hints`` (names of the
            nodes that keep a hint for the key).

        Raises:
            QuorateError: no node could answer, or the key is outside its limits.
        """
        explanation: dict[str, Any] = json.loads(self._native.explain(self.name, _key(key)))
        return explanation

    # Writes

    def put(
        self,
        key: KeyLike,
        value: T,
        *,
        context: Context | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
    ) -> Put:
        """Write a value under a key.

        The context decides which versions the write replaces. Retries keep one request id, so that
        they make no sibling.

        Args:
            key: the key, 1 to 1,024 bytes.
            value: a value that the codec of the bucket can encode.
            context: ``entry.context`` replaces exactly the versions that this read returned.
                ``EMPTY`` replaces nothing: the value becomes a sibling. None (default) overwrites:
                the write replaces the versions that the coordinator holds and those that this
                client last saw.
            w: number of acknowledgements that the write needs. Default: the option of the bucket.
            sloppy: True if the acknowledgement of a fallback counts for a replica that cannot be
                reached. Default: the option of the bucket.
            timeout: longest duration, retries included. Default: the option of the bucket.

        Returns:
            The new context, the number of acknowledgements, and whether the key has siblings that
            this client has not seen.

        Raises:
            Unavailable: fewer than ``w`` nodes that can hold the write can be reached. Nothing was
                written.
            Indeterminate: fewer than ``w`` acknowledgements arrived before the timeout. The write
                may become visible later.
            TooManySiblings: the context is ``EMPTY``, and the key has ``max_siblings`` versions.
            CodecError: the codec cannot encode the value.
            InvalidRequest: the key, the value or an option is outside its limits, or the context
                belongs to another key.
        """
        data = _codec.encode(self._codec, value)
        return self._write(_key(key), data, context, w, sloppy, timeout)

    def delete(
        self,
        key: KeyLike,
        *,
        context: Context | None = None,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
    ) -> Put:
        """Delete a key.

        A version that was written concurrently stays. Deleting an absent key is not an error.

        Args:
            key: the key, 1 to 1,024 bytes.
            context: ``entry.context`` deletes exactly the versions that this read returned. None
                (default): the call reads the key first, and deletes the versions that it read.
            w: number of acknowledgements that the delete needs. Default: the option of the bucket.
            sloppy: True if the acknowledgement of a fallback counts for a replica that cannot be
                reached. Default: the option of the bucket.
            timeout: longest duration of the read and the delete together, retries included.
                Default: the option of the bucket.

        Returns:
            The new context, the number of acknowledgements, and whether the key has siblings that
            this client has not seen.

        Raises:
            QuorateError: as for `put`. Without a context also as for `get`.
        """
        name = _key(key)
        left = self._budget(timeout)
        if context is None:
            _, seen = self._native.get(self.name, name, self._r, left())
            context = Context(seen)
        return self._write(name, None, context, w, sloppy, left())

    def update(
        self,
        key: KeyLike,
        change: Callable[[T | None], T],
        *,
        r: Quorum | None = None,
        w: Quorum | None = None,
        timeout: Seconds | None = None,
    ) -> Put:
        """Read a key, apply a function to its value, and put the result.

        The put has the context of the read, so it replaces exactly the versions that were read.
        This is not a transaction: a concurrent update becomes a sibling, and ``Put.conflict`` is
        True.

        Args:
            key: the key, 1 to 1,024 bytes.
            change: function from the value to the new value. It receives the result of ``resolve``
                if there are several siblings, and None if the key is absent. It is called once.
            r: number of replicas that must answer the read. Default: the option of the bucket.
            w: number of acknowledgements that the write needs. Default: the option of the bucket.
            timeout: longest duration of the read and the write together, retries included.
                Default: the option of the bucket.

        Returns:
            The result of the write.

        Raises:
            ConflictError: the key has several siblings, and the bucket has no ``resolve``.
            QuorateError: as for `get` and `put`.

        Example::

            carts.update("ann", lambda cart: {**(cart or {}), "eggs": 6})
        """
        name = _key(key)
        left = self._budget(timeout)
        siblings, context = self._native.get(self.name, name, self._r_of(r), left())
        entry = self._entry(name, siblings, context)
        if entry is not None and entry.conflict and self._resolve is None:
            raise _conflict(self.name, name, entry.siblings)
        value = change(None if entry is None else entry.value)
        return self._write(name, _codec.encode(self._codec, value), Context(context), w, None, left())

    def put_many(
        self,
        items: Mapping[KeyLike, T] | Mapping[str, T] | Mapping[bytes, T],
        *,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
    ) -> dict[KeyLike, Put]:
        """Overwrite many keys in one call.

        The call is not atomic: each key succeeds or fails independently.

        Args:
            items: new values by key.
            w: number of acknowledgements that each write needs. Default: the option of the bucket.
            sloppy: True if the acknowledgement of a fallback counts for a replica that cannot be
                reached. Default: the option of the bucket.
            timeout: longest duration of each write, retries included. Default: the option of the
                bucket.

        Returns:
            The results by key.

        Raises:
            PartialError: some keys failed. ``results`` has the results of the other keys.
            CodecError: the codec cannot encode a value. Nothing was written.
            InvalidRequest: a key is not 1 to 1,024 bytes, or an option is malformed. Nothing was
                written.
        """
        keys: list[KeyLike] = list(items)
        writes: list[tuple[bytes, bytes | None, bytes, bool]] = [
            (name, _codec.encode(self._codec, value), self._seen.get(name), False)
            for name, value in zip(map(_key, keys), items.values(), strict=True)
        ]
        return self._write_many("written", keys, writes, w, sloppy, timeout)

    def delete_many(
        self,
        keys: Iterable[KeyLike],
        *,
        w: Quorum | None = None,
        sloppy: bool | None = None,
        timeout: Seconds | None = None,
    ) -> dict[KeyLike, Put]:
        """Delete many keys in one call.

        The call reads all keys first, and deletes the versions that it read. It is not atomic: each
        key succeeds or fails independently.

        Args:
            keys: the keys. Duplicates are deleted once.
            w: number of acknowledgements that each delete needs. Default: the option of the bucket.
            sloppy: True if the acknowledgement of a fallback counts for a replica that cannot be
                reached. Default: the option of the bucket.
            timeout: longest duration of the reads and the deletes together, retries included.
                Default: the option of the bucket.

        Returns:
            The results by key.

        Raises:
            PartialError: some keys failed. ``results`` has the results of the other keys.
            InvalidRequest: a key is not 1 to 1,024 bytes, or an option is malformed. Nothing was
                deleted.
        """
        asked = list(dict.fromkeys(keys))
        names = [_key(key) for key in asked]
        left = self._budget(timeout)
        replies = self._native.get_many(self.name, names, self._r, left())
        errors: dict[KeyLike, QuorateError] = {}
        writes: list[tuple[bytes, bytes | None, bytes, bool]] = []
        readable: list[KeyLike] = []
        for key, name, reply in zip(asked, names, replies, strict=True):
            if isinstance(reply, QuorateError):
                errors[key] = reply
            else:
                writes.append((name, None, reply[1], True))
                readable.append(key)
        return self._write_many("deleted", readable, writes, w, sloppy, left(), errors)

    # Code that the methods above share

    def _write(
        self,
        name: bytes,
        data: bytes | None,
        context: Context | None,
        w: Quorum | None,
        sloppy: bool | None,
        timeout: Seconds | None,
    ) -> Put:
        if context is not None and not isinstance(context, Context):
            raise InvalidRequest(f"context={context!r}: use entry.context, put.context or quorate.EMPTY")
        seen, acks, hinted, conflict = self._native.put(
            self.name,
            name,
            data,
            self._seen.get(name) if context is None else bytes(context),
            context is not None,
            self._w if w is None else quorum_text("w", w),
            self._sloppy if sloppy is None else sloppy,
            self._timeout_of(timeout),
        )
        self._seen.set(name, seen)
        return Put(Context(seen), acks, hinted, conflict)

    def _write_many(
        self,
        what: str,
        keys: list[KeyLike],
        writes: list[tuple[bytes, bytes | None, bytes, bool]],
        w: Quorum | None,
        sloppy: bool | None,
        timeout: Seconds | None,
        errors: dict[KeyLike, QuorateError] | None = None,
    ) -> dict[KeyLike, Put]:
        replies = self._native.put_many(
            self.name,
            writes,
            self._w if w is None else quorum_text("w", w),
            self._sloppy if sloppy is None else sloppy,
            self._timeout_of(timeout),
        )
        done: dict[KeyLike, Put] = {}
        errors = errors or {}
        for key, write, reply in zip(keys, writes, replies, strict=True):
            if isinstance(reply, QuorateError):
                errors[key] = reply
            else:
                seen, acks, hinted, conflict = reply
                self._seen.set(write[0], seen)
                done[key] = Put(Context(seen), acks, hinted, conflict)
        _raise_partial(what, len(keys), done, errors)
        return done

    def _entry(self, name: bytes, siblings: list[bytes], context: bytes) -> Entry[T] | None:
        self._seen.set(name, context)
        if not siblings:
            return None
        return Entry(self, name, [_codec.decode(self._codec, data) for data in siblings], Context(context))

    def _resolved(self, name: bytes, siblings: list[T]) -> T:
        if len(siblings) == 1:
            return siblings[0]
        if self._resolve is not None:
            return self._resolve(list(siblings))
        if self._on_conflict == "raise":
            raise _conflict(self.name, name, siblings)
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"{_named(self.name, name)} has {len(siblings)} siblings; the last written one is shown. "
                "Pass resolve=... to bucket(), or read entry.siblings",
                ConflictWarning,
                stacklevel=3,
            )
        return siblings[-1]

    def _shown_key(self, key: bytes) -> str | bytes:
        return key.decode() if self._keys is str else key

    def _r_of(self, r: Quorum | None) -> str | None:
        return self._r if r is None else quorum_text("r", r)

    def _budget(self, timeout: Seconds | None) -> Callable[[], float]:
        """Return a function that gives the seconds left of a timeout that several requests use."""
        whole = self._timeout_of(timeout)
        end = time.monotonic() + (self._default_timeout if whole is None else whole)
        return lambda: max(end - time.monotonic(), 0.001)

    def _timeout_of(self, timeout: Seconds | None) -> float | None:
        return self._timeout if timeout is None else _seconds(timeout)

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"


class Scan(Generic[T]):
    """Iterator over the live keys of a bucket and their entries; returned by ``Bucket.scan``.

    It yields ``(key, entry)``, and fetches a page of entries when the page before is used up.

    Example::

        scan = carts.scan(prefix="a")
        for key, entry in scan:
            print(key, entry.value)
        later = carts.scan(prefix="a", cursor=scan.cursor)  # continues after the last key
    """

    def __init__(self, bucket: Bucket[T], prefix: bytes, cursor: bytes, r: str | None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._r = r
        self._page: list[tuple[bytes, list[bytes], bytes, bytes]] = []
        self._at = 0
        self._next = bytes(cursor)
        self._ended = False
        self.cursor = bytes(cursor)
        """Position after the last key returned, for ``scan(cursor=...)``. Empty at the start."""

    def __iter__(self) -> Scan[T]:
        return self

    def __next__(self) -> tuple[Any, Entry[T]]:
        while self._at == len(self._page):
            if self._ended:
                raise StopIteration
            bucket = self._bucket
            self._page, self._next = bucket._native.scan(
                bucket.name, self._prefix, self._next, 0, False, self._r, bucket._timeout
            )
            self._at = 0
            self._ended = not self._next
        key, siblings, context, self.cursor = self._page[self._at]
        self._at += 1
        values = [_codec.decode(self._bucket._codec, data) for data in siblings]
        return self._bucket._shown_key(key), Entry(self._bucket, key, values, Context(context))


def _key(key: KeyLike) -> bytes:
    if isinstance(key, str):
        return key.encode()
    if isinstance(key, bytes):
        return key
    raise InvalidRequest(f"key={key!r} of type {type(key).__name__}: use str or bytes")


def _prefix(prefix: KeyLike) -> bytes:
    return prefix.encode() if isinstance(prefix, str) else bytes(prefix)


def quorum_text(name: str, size: Quorum | None) -> str | None:
    """Return a quorum size as text for the native part, or None if ``size`` is None.

    Args:
        name: name of the argument, for the error.
        size: 1 to 255, "quorum", "all" or None.

    Raises:
        InvalidRequest: ``size`` is something else.
    """
    if size is None or size in ("quorum", "all"):
        return None if size is None else str(size)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 255:
        raise InvalidRequest(f'{name}={size!r}: use "quorum", "all", or a number of at least 1')
    return str(size)


def _seconds(timeout: float | int | timedelta) -> float:
    from quorate._client import seconds

    return seconds(timeout)


def _named(bucket: str, key: bytes) -> str:
    return f"{bucket}/{key.decode(errors='backslashreplace')}"


def _conflict(bucket: str, key: bytes, siblings: list[Any]) -> ConflictError:
    return ConflictError(
        f"{_named(bucket, key)} has {len(siblings)} siblings: pass resolve=... to bucket(), or read entry.siblings", siblings
    )


def _raise_partial(what: str, asked: int, results: dict[Any, Any], errors: dict[Any, QuorateError]) -> None:
    if errors:
        key, first = next(iter(errors.items()))
        raise PartialError(
            f"{len(errors)} of {asked} keys could not be {what}; the first, {key!r}: {first}", results, errors
        )


__all__ = ["EMPTY", "Bucket", "ConflictWarning", "Entry", "Put", "Scan"]

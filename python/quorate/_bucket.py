"""Buckets: reading and writing values under keys."""

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
    """Several siblings lie side by side and the last written one was shown: give the bucket a ``resolve``."""


@dataclass(frozen=True, slots=True)
class Put:
    """What a write came to."""

    context: Context
    """What this client has now seen of the key."""
    acks: int
    """Replicas that held the write before the answer."""
    hinted: int
    """Those of the acks that were hints at fallbacks."""
    conflict: bool
    """Siblings lie beside it that this client has not seen."""


class Entry(Generic[T]):
    """What a read showed of a key: one value, or siblings."""

    __slots__ = ("_bucket", "_key", "context", "siblings")

    def __init__(self, bucket: Bucket[T], key: bytes, siblings: list[T], context: Context) -> None:
        self._bucket = bucket
        self._key = key
        self.siblings: list[T] = siblings
        """The values that lie side by side, one or more, in the order in which they were written."""
        self.context: Context = context
        """What was seen: give it to ``put`` to replace exactly this."""

    @property
    def conflict(self) -> bool:
        """True if there are several siblings."""
        return len(self.siblings) > 1

    @property
    def value(self) -> T:
        """The value; several siblings are resolved by the bucket's ``resolve``.

        Raises:
            ConflictError: several siblings, no ``resolve``, and the bucket says ``on_conflict="raise"``.
        """
        return self._bucket._resolved(self._key, self.siblings)

    def __repr__(self) -> str:
        return f"Entry(siblings={self.siblings!r})"


class Bucket(Generic[T]):
    """A named set of keys under common rules; make one with ``Client.bucket``."""

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
            raise InvalidRequest(f"keys={keys!r}: use str or bytes")
        self._native = native
        self.name = name
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

    # Reading

    def get(self, key: KeyLike, *, r: Quorum | None = None, timeout: Seconds | None = None) -> Entry[T] | None:
        """Read a key; ``None`` if it is absent or deleted.

        Raises:
            Unavailable: fewer than ``r`` replicas are in sight.
            DeadlineExceeded: fewer than ``r`` replicas answered in time.
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
        """Read a key's value; ``default`` if it is absent."""
        entry = self.get(key, r=r, timeout=timeout)
        return default if entry is None else entry.value

    def exists(self, key: KeyLike, *, r: Quorum | None = None, timeout: Seconds | None = None) -> bool:
        """True if the key has a value."""
        name = _key(key)
        siblings, _ = self._native.get(self.name, name, self._r_of(r), self._timeout_of(timeout))
        return bool(siblings)

    def get_many(
        self, keys: Iterable[KeyLike], *, r: Quorum | None = None, timeout: Seconds | None = None
    ) -> dict[KeyLike, Entry[T]]:
        """Read many keys at once. Absent keys are absent from the result.

        Raises:
            PartialError: some keys failed; ``results`` has the others.
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
        """Go through every live key once with its entry, in storage order (by partition, then key).

        Args:
            prefix: only keys that begin with this.
            cursor: go on where an earlier scan's ``cursor`` was.
            r: replicas of each partition that must answer.
        """
        return Scan(self, _prefix(prefix), cursor, self._r_of(r))

    def keys(self, prefix: KeyLike = b"", *, r: Quorum | None = None) -> Iterator[Any]:
        """Go through every live key once, in storage order, without the values."""
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
        """Where the key lies (partition, replicas, fallbacks), and what each replica holds of it."""
        explanation: dict[str, Any] = json.loads(self._native.explain(self.name, _key(key)))
        return explanation

    # Writing

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
        """Write a key.

        Args:
            key: text (UTF-8) or 1 to 1,024 bytes.
            value: what the bucket's codec takes.
            context: replace exactly what a read showed (``entry.context``). ``EMPTY``: concurrent with everything, kept
                beside it. Without one, overwrite: replace what the coordinator holds and this client last saw.
            w: replicas that must ack.
            sloppy: whether fallbacks may stand in for dead replicas.
            timeout: how long this may take, retries included.

        Raises:
            Unavailable: fewer than ``w`` replicas are in sight; nothing was written.
            Indeterminate: fewer than ``w`` replicas acked in time; the write may surface later.
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
        """Delete a key: exactly what ``context`` contains; without one, the key is read first and what it shows deleted."""
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
        """Read, resolve, apply ``change`` (``None`` if the key is absent), and put with the context of the read.

        Not a transaction: a concurrent update becomes a sibling, and ``Put.conflict`` says so.

        Raises:
            ConflictError: several siblings, and the bucket has no ``resolve``.
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
        """Overwrite many keys at once. Not atomic: each key succeeds or fails by itself.

        Raises:
            PartialError: some keys failed; ``results`` has the others.
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
        """Delete many keys at once, each as a read shows it. Not atomic.

        Raises:
            PartialError: some keys failed; ``results`` has the others.
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

    # What these share

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
                "Give bucket() a resolve, or read entry.siblings",
                ConflictWarning,
                stacklevel=3,
            )
        return siblings[-1]

    def _shown_key(self, key: bytes) -> str | bytes:
        return key.decode() if self._keys is str else key

    def _r_of(self, r: Quorum | None) -> str | None:
        return self._r if r is None else quorum_text("r", r)

    def _budget(self, timeout: Seconds | None) -> Callable[[], float]:
        """What is left of an operation's time, for operations of several steps."""
        whole = self._timeout_of(timeout)
        end = time.monotonic() + (self._default_timeout if whole is None else whole)
        return lambda: max(end - time.monotonic(), 0.001)

    def _timeout_of(self, timeout: Seconds | None) -> float | None:
        return self._timeout if timeout is None else _seconds(timeout)

    def __repr__(self) -> str:
        return f"Bucket({self.name!r})"


class Scan(Generic[T]):
    """An iterator over ``(key, entry)``; ``cursor`` is where to resume."""

    def __init__(self, bucket: Bucket[T], prefix: bytes, cursor: bytes, r: str | None) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._r = r
        self._page: list[tuple[bytes, list[bytes], bytes, bytes]] = []
        self._at = 0
        self._next = bytes(cursor)
        self._ended = False
        self.cursor = bytes(cursor)
        """Give it to ``scan(cursor=…)`` to go on after the last key that was shown. Empty: at the start."""

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
    if size is None or size in ("quorum", "all"):
        return None if size is None else str(size)
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 255:
        raise InvalidRequest(f'{name}={size!r}: use a number from 1, "quorum" or "all"')
    return str(size)


def _seconds(timeout: float | int | timedelta) -> float:
    from quorate._client import seconds

    return seconds(timeout)


def _named(bucket: str, key: bytes) -> str:
    return f"{bucket}/{key.decode(errors='backslashreplace')}"


def _conflict(bucket: str, key: bytes, siblings: list[Any]) -> ConflictError:
    return ConflictError(
        f"{_named(bucket, key)} has {len(siblings)} siblings: give bucket() a resolve, or read entry.siblings", siblings
    )


def _raise_partial(what: str, asked: int, results: dict[Any, Any], errors: dict[Any, QuorateError]) -> None:
    if errors:
        key, first = next(iter(errors.items()))
        raise PartialError(
            f"{len(errors)} of {asked} keys could not be {what}; the first, {key!r}: {first}", results, errors
        )


__all__ = ["EMPTY", "Bucket", "ConflictWarning", "Entry", "Put", "Scan"]

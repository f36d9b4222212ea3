"""What can go wrong, by what is known. The same words as on the wire and on the command line: docs/errors.md."""

from __future__ import annotations

from typing import Any


class QuorateError(Exception):
    """Any error of Quorate's."""


class Unavailable(QuorateError, ConnectionError):
    """Too few live replicas, or no node at all, in sight: nothing was written."""

    def __init__(self, message: str, *, needed: int = 0, received: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.received = received

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.needed, self.received)


class DeadlineExceeded(QuorateError, TimeoutError):
    """A read did not get its replies in time. It may be repeated."""

    def __init__(self, message: str, *, needed: int = 0, received: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.received = received

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.needed, self.received)


class Indeterminate(QuorateError):
    """A write got some acks (``acks``) but not enough (``needed``) in time: it may surface later, whole, or never."""

    def __init__(self, message: str, *, needed: int = 0, received: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.acks = received

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.needed, self.acks)


class Overloaded(QuorateError):
    """A queue is at its bound. Nothing was done; repeat after a pause."""


class TooManySiblings(QuorateError):
    """The empty context would add a sibling to a key that has the most allowed. Read, resolve, write with the context."""


class InvalidRequest(QuorateError, ValueError):
    """The request breaks a rule; the message names the value, the limit and what to do."""


class StorageFailed(QuorateError):
    """A storage engine is full or failed."""


class ConfigError(QuorateError):
    """A node's configuration is wrong; the message names the key and what to write."""


class CodecError(QuorateError):
    """A bucket's codec could not encode or decode a value."""


class ConflictError(QuorateError):
    """Several siblings lie side by side and nothing says how to make one of them: ``siblings``."""

    def __init__(self, message: str, siblings: list[Any] | None = None) -> None:
        super().__init__(message)
        self.siblings = siblings or []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.siblings)


class PartialError(QuorateError):
    """Some keys of a ``*_many`` call failed: ``errors`` by key; ``results`` has those that did not."""

    def __init__(self, message: str, results: dict[Any, Any], errors: dict[Any, QuorateError]) -> None:
        super().__init__(message)
        self.results = results
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.results, self.errors)


_BY_NAME: dict[str, type[QuorateError]] = {
    "Unavailable": Unavailable,
    "Indeterminate": Indeterminate,
    "DeadlineExceeded": DeadlineExceeded,
    "Overloaded": Overloaded,
    "TooManySiblings": TooManySiblings,
    "StorageFailed": StorageFailed,
    "InvalidRequest": InvalidRequest,
}


def from_native(name: str, message: str, needed: int, received: int) -> QuorateError:
    """Make the exception for an error of the native part."""
    return _rebuild(_BY_NAME[name], message, needed, received)


def _rebuild(kind: type[QuorateError], message: str, needed: int, received: int) -> QuorateError:
    if issubclass(kind, Unavailable | DeadlineExceeded | Indeterminate):
        return kind(message, needed=needed, received=received)
    return kind(message)

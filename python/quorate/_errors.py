"""Exceptions, named by what the client knows about the request. docs/errors.md lists them all."""

from __future__ import annotations

from typing import Any


class QuorateError(Exception):
    """Base class of all errors of Quorate."""


class Unavailable(QuorateError, ConnectionError):
    """Error of a request that was not attempted. Nothing was written, so a retry is safe.

    Causes: fewer nodes can be reached than the request needs, no node can be reached, or the clock
    of the node differs too much from the clocks of its peers.

    Attributes:
        needed: number of nodes that the request needed; 0 if no node could be reached.
        received: number of nodes that could be reached.
    """

    def __init__(self, message: str, *, needed: int = 0, received: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.received = received

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.needed, self.received)


class DeadlineExceeded(QuorateError, TimeoutError):
    """Error of a read that did not receive enough replies before its timeout. A retry is safe.

    Attributes:
        needed: number of replies that the read needed.
        received: number of replies that arrived.
    """

    def __init__(self, message: str, *, needed: int = 0, received: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.received = received

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.needed, self.received)


class Indeterminate(QuorateError):
    """Error of a write that received too few acknowledgements before its timeout.

    The write may become visible later, as a whole, or never.

    Attributes:
        needed: number of acknowledgements that the write needed.
        acks: number of acknowledgements that arrived.
    """

    def __init__(self, message: str, *, needed: int = 0, received: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.acks = received

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), str(self), self.needed, self.acks)


class Overloaded(QuorateError):
    """Error of a request that a node refused because a limit is reached. Nothing was written.

    The limit is the length of a queue, the hints that a fallback keeps for one replica, or the
    number of layout changes. Also raised while a bucket is being created. Retry after a pause.
    """


class TooManySiblings(QuorateError):
    """Error of a put with the empty context to a key that already has ``max_siblings`` versions.

    Read the key, merge its siblings, and put the result with the context of the read.
    """


class InvalidRequest(QuorateError, ValueError):
    """Error of a request that breaks a rule.

    The message names the value, the limit and the remedy.
    """


class StorageFailed(QuorateError):
    """Error of a storage engine: the disk or the map is full, or a record is unreadable.

    The node that failed wrote nothing. Another replica may have stored the write.
    """


class ConfigError(QuorateError):
    """Error in the configuration of a node. The message names the key and the allowed values."""


class CodecError(QuorateError):
    """Error of a codec that could not encode or decode a value."""


class ConflictError(QuorateError):
    """Error of a call that needs one value but got several siblings and no ``resolve``.

    Pass ``resolve=`` to ``Client.bucket``, or merge ``siblings`` and put the result.

    Attributes:
        siblings: decoded values of the siblings, in the order in which they were written.
    """

    def __init__(self, message: str, siblings: list[Any] | None = None) -> None:
        super().__init__(message)
        self.siblings = siblings or []

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.siblings)


class PartialError(QuorateError):
    """Error of a ``get_many``, ``put_many`` or ``delete_many`` call in which some keys failed.

    Attributes:
        results: results of the other keys, by key, as the call returns them.
        errors: exceptions of the keys that failed, by key.
    """

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
    """Return the exception for an error of the native part.

    Args:
        name: name of the exception class.
        message: text of the exception.
        needed: number of replies or acknowledgements that the request needed; 0 if not applicable.
        received: number of them that arrived; 0 if not applicable.
    """
    return _rebuild(_BY_NAME[name], message, needed, received)


def _rebuild(kind: type[QuorateError], message: str, needed: int, received: int) -> QuorateError:
    if issubclass(kind, Unavailable | DeadlineExceeded | Indeterminate):
        return kind(message, needed=needed, received=received)
    return kind(message)

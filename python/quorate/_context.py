"""Causal contexts: opaque bytes to a client."""

from __future__ import annotations


class Context:
    """Causal context: the versions of one key that a client has seen.

    Reads return it as ``Entry.context``, writes as ``Put.context``. A write with a context replaces
    exactly the versions in it. A context is valid for its own key only.

    Contexts are opaque, comparable, hashable and picklable. To store or send one, use
    ``bytes(context)``; ``Context(data)`` restores it.

    Args:
        data: bytes of another context. Default: the empty context, `EMPTY`.

    Example::

        entry = carts.get("ann")
        carts.put("ann", {"milk": 2}, context=entry.context)
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytes(data)

    def __bytes__(self) -> bytes:
        return self._data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Context) and self._data == other._data

    def __hash__(self) -> int:
        return hash(self._data)

    def __reduce__(self) -> tuple[type[Context], tuple[bytes]]:
        return Context, (self._data,)

    def __repr__(self) -> str:
        return f"Context({self._data.hex()[:16]}…)" if self._data else "EMPTY"


EMPTY = Context()
"""Empty context. A put with it replaces no version: its value becomes one more sibling."""

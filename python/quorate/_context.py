"""Causal contexts, as clients hold them: opaque bytes."""

from __future__ import annotations


class Context:
    """What was seen of a key. Give it back with a write, to replace exactly that; good for that key only.

    Opaque, comparable, picklable; ``bytes(context)`` and ``Context(data)`` take it elsewhere.
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
"""The empty context: a put with it is concurrent with everything, and always kept beside what is there."""

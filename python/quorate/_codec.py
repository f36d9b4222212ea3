"""Codecs: conversions between the values of a bucket and bytes."""

from __future__ import annotations

import json
from typing import Any, Protocol, TypeVar, runtime_checkable

from quorate._errors import CodecError, InvalidRequest

T = TypeVar("T")


@runtime_checkable
class Codec(Protocol[T]):
    """Conversion between the values of a bucket and the bytes that nodes store.

    Any object with these two methods is a codec. Pass it to ``Client.bucket(codec=...)``. An
    exception that a codec raises reaches the caller as `CodecError`.

    Example::

        class Latin1:
            def encode(self, value: str) -> bytes:
                return value.encode("latin-1")

            def decode(self, data: bytes) -> str:
                return data.decode("latin-1")

        names = db.bucket("names", codec=Latin1())
    """

    def encode(self, value: T, /) -> bytes:
        """Return the bytes of a value."""
        ...

    def decode(self, data: bytes, /) -> T:
        """Return the value that ``encode`` turned into these bytes."""
        ...


class BytesCodec:
    """Codec of buckets whose values are bytes."""

    def encode(self, value: bytes | bytearray | memoryview) -> bytes:
        """Return the value as `bytes`.

        Raises:
            InvalidRequest: the value is not bytes-like.
        """
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InvalidRequest(
                f"value of type {type(value).__name__}: this bucket takes bytes; "
                'give bucket() a codec ("json" or "str"), or encode the value'
            )
        return bytes(value)

    def decode(self, data: bytes) -> bytes:
        """Return the bytes unchanged."""
        return data


class StrCodec:
    """Codec of buckets whose values are text, stored as UTF-8."""

    def encode(self, value: str) -> bytes:
        """Return text as UTF-8."""
        return value.encode()

    def decode(self, data: bytes) -> str:
        """Return the text of UTF-8 bytes."""
        return data.decode()


class JsonCodec:
    """Codec of buckets whose values are JSON: dict, list, str, int, float, bool and None."""

    def encode(self, value: Any) -> bytes:
        """Return a value as JSON in UTF-8, without spaces."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        """Return the value of JSON bytes."""
        return json.loads(data)


_NAMED: dict[str, Codec[Any]] = {"bytes": BytesCodec(), "str": StrCodec(), "json": JsonCodec()}


def find(codec: str | Codec[Any] | None) -> Codec[Any]:
    """Return the codec for the argument of ``bucket(codec=...)``.

    Args:
        codec: name of a built-in codec, a codec object, or None for "bytes".

    Raises:
        InvalidRequest: no built-in codec has this name, or the object lacks ``encode`` or
            ``decode``.
    """
    if codec is None:
        return _NAMED["bytes"]
    if isinstance(codec, str):
        if codec not in _NAMED:
            raise InvalidRequest(f"codec={codec!r}: use {', '.join(map(repr, _NAMED))}, or an object with encode and decode")
        return _NAMED[codec]
    if not isinstance(codec, Codec):
        raise InvalidRequest(f"codec={codec!r}: use a name, or an object with encode and decode")
    return codec


def encode(codec: Codec[T], value: T) -> bytes:
    """Return the bytes of a value.

    Raises:
        CodecError: the codec failed, or did not return bytes.
        InvalidRequest: the codec itself refused the value with this error.
    """
    try:
        data = codec.encode(value)
    except InvalidRequest:
        raise
    except Exception as error:
        raise CodecError(f"cannot encode a value of type {type(value).__name__}: {error}") from error
    if not isinstance(data, bytes):
        raise CodecError(f"encode of the codec returned {type(data).__name__}: it must return bytes")
    return data


def decode(codec: Codec[T], data: bytes) -> T:
    """Return the value of bytes that a node stored.

    Raises:
        CodecError: the codec failed.
    """
    try:
        return codec.decode(data)
    except Exception as error:
        raise CodecError(f"cannot decode a value of {len(data)} bytes: {error}") from error

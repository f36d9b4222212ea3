"""Codecs: between a bucket's values and bytes."""

from __future__ import annotations

import json
from typing import Any, Protocol, TypeVar, runtime_checkable

from quorate._errors import CodecError, InvalidRequest

T = TypeVar("T")


@runtime_checkable
class Codec(Protocol[T]):
    """Anything with these two methods can be a bucket's codec."""

    def encode(self, value: T, /) -> bytes:
        """Make bytes of a value."""
        ...

    def decode(self, data: bytes, /) -> T:
        """Make a value of bytes."""
        ...


class BytesCodec:
    """Values are bytes."""

    def encode(self, value: bytes | bytearray | memoryview) -> bytes:
        """Take bytes as they are."""
        if not isinstance(value, bytes | bytearray | memoryview):
            raise InvalidRequest(
                f"value of type {type(value).__name__}: this bucket takes bytes; "
                'give bucket() a codec ("json" or "str"), or encode the value'
            )
        return bytes(value)

    def decode(self, data: bytes) -> bytes:
        """Give bytes as they are."""
        return data


class StrCodec:
    """Values are text, stored as UTF-8."""

    def encode(self, value: str) -> bytes:
        """Encode text."""
        return value.encode()

    def decode(self, data: bytes) -> str:
        """Decode text."""
        return data.decode()


class JsonCodec:
    """Values are whatever JSON can say."""

    def encode(self, value: Any) -> bytes:
        """Write JSON, without spaces."""
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()

    def decode(self, data: bytes) -> Any:
        """Read JSON."""
        return json.loads(data)


_NAMED: dict[str, Codec[Any]] = {"bytes": BytesCodec(), "str": StrCodec(), "json": JsonCodec()}


def find(codec: str | Codec[Any] | None) -> Codec[Any]:
    """Find the codec that ``bucket(codec=…)`` names or is."""
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
    """Encode a value, with the codec's errors as `CodecError`."""
    try:
        data = codec.encode(value)
    except InvalidRequest:
        raise
    except Exception as error:
        raise CodecError(f"cannot encode a value of type {type(value).__name__}: {error}") from error
    if not isinstance(data, bytes):
        raise CodecError(f"the codec made {type(data).__name__} of a value, not bytes")
    return data


def decode(codec: Codec[T], data: bytes) -> T:
    """Decode a value, with the codec's errors as `CodecError`."""
    try:
        return codec.decode(data)
    except Exception as error:
        raise CodecError(f"cannot decode a value of {len(data)} bytes: {error}") from error

"""Writes the TOML of a node's configuration; Python's own library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quorate._errors import InvalidRequest


def dumps(sections: Mapping[str, Any]) -> str:
    """Write sections as TOML."""
    return "\n".join(f"[{_key(name)}]\n{_pairs(section)}" for name, section in sections.items())


def _pairs(section: Mapping[str, Any]) -> str:
    return "".join(f"{_key(key)} = {_value(value)}\n" for key, value in section.items() if value is not None)


def _key(key: str) -> str:
    return json.dumps(str(key))


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            # JSON's escapes are TOML's, but for DEL, which TOML wants escaped.
            return json.dumps(value).replace("\x7f", "\\u007f")
        case Mapping():
            return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
    raise InvalidRequest(f"{value!r} of type {type(value).__name__} can't be written into a configuration")

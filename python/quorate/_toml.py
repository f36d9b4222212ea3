"""TOML writer for the configuration of a node. Python's own `tomllib` only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quorate._errors import InvalidRequest


def dumps(sections: Mapping[str, Any]) -> str:
    """Return configuration sections as TOML text.

    Keys with the value None are left out.

    Raises:
        InvalidRequest: a value has a type that the writer does not support.
    """
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
            # The string escapes of JSON are valid TOML. TOML also requires an escape for DEL.
            return json.dumps(value).replace("\x7f", "\\u007f")
        case Mapping():
            return "{" + ", ".join(f"{_key(key)} = {_value(item)}" for key, item in value.items()) + "}"
        case list() | tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
    raise InvalidRequest(
        f"config value {value!r} of type {type(value).__name__}: use bool, int, float, str, a list or a mapping"
    )

"""Raw text of an argument to JSON, while it arrives.

A value is typed by the set of JSON types that the tool's schema allows (the target of protocol.md
4.3), and never loosened on the way: a string keeps every character, a number its spelling, and JSON
that is valid as it stands is passed on as it stands. All of it is linear in the text, whatever the
text is: nothing is evaluated, and no number is converted that could be long.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal

from mimo_engine.chat.tools import TypeSet

__all__ = ["Argument", "typed_json"]

# What stands for null where a string is allowed too. History teaches the model Python's spelling.
_NULL_SPELLINGS = ("null", "None")

_INTEGER = re.compile(r"(-?)0*([0-9]+)")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_MAX_FLOAT_LEN = 64
# Tokens of JSON in Python's spelling. A string may span anything but its own quote.
_PYTHON_TOKEN = re.compile(
    r"""(?P<plain>[\s\[\]{},:]++|-?[0-9][0-9.eE+-]*+)"""
    r"""|(?P<word>[A-Za-z]++)"""
    r"""|"(?P<double>(?:[^"\\]++|\\.)*+)"|'(?P<single>(?:[^'\\]++|\\.)*+)'""",
    re.DOTALL,
)
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|(.))|\"", re.DOTALL)
_encode = json.JSONEncoder(ensure_ascii=False).encode


class Argument:
    """One argument. Each method returns a fragment of its JSON text and the raw text it stands for.

    A string is sent as it arrives, and one that may be null from where it cannot be; other values
    at their end.
    """

    def __init__(self, types: TypeSet) -> None:
        self._types = types
        self._is_string = "string" in types and "null" not in types
        self._held: list[str] = []

    def begin(self) -> str:
        """What is known before the value: the quotation mark of a string."""
        return '"' if self._is_string else ""

    def add(self, text: str) -> tuple[str, str]:
        if self._is_string:
            return _encode(text)[1:-1], text
        self._held.append(text)
        if "string" in self._types:
            raw = "".join(self._held)
            if not any(spelling.startswith(raw) for spelling in _NULL_SPELLINGS):
                self._is_string = True
                return _encode(raw)[:-1], raw
        return "", ""

    def end(self) -> tuple[str, str]:
        if self._is_string:
            return '"', ""
        raw = "".join(self._held)
        return typed_json(raw, self._types), raw

    def cut(self) -> tuple[str, str]:
        """The value as far as it got: no fragment where its type is not decided yet."""
        raw = "" if self._is_string else "".join(self._held)
        return _encode(raw)[:-1] if raw and "string" in self._types else "", raw


def typed_json(raw: str, types: TypeSet) -> str:
    """The JSON text of a parameter whose value is `raw` and may have `types`.

    Where a string is allowed it is one, but for an exact null if that is allowed too. Otherwise the
    first of null, boolean, integer, number, object or array that `raw` can be; and when it is none
    of them a string after all, so that the client sees what the model wrote.
    """
    if "string" in types:
        return "null" if "null" in types and raw in _NULL_SPELLINGS else _encode(raw)
    text = raw.strip()
    lowered = text[:5].lower() if len(text) <= 5 else ""
    if "null" in types and lowered in ("null", "none"):
        return "null"
    if "boolean" in types and lowered in ("true", "false"):
        return lowered
    if "integer" in types and (integer := _integer(text)) is not None:
        return integer
    if "number" in types and _NUMBER.fullmatch(text):
        return text
    if ("object" in types and text[:1] == "{") or ("array" in types and text[:1] == "["):
        if _is_json(text):
            return text
        if (translated := _from_python(text)) is not None and _is_json(translated):
            return translated
    return _encode(raw)


def _integer(text: str) -> str | None:
    if match := _INTEGER.fullmatch(text):
        sign, digits = match.groups()
        return digits if digits == "0" else sign + digits
    # An integral float: 3.0, 1e3. The limits keep 1e999999999 from being written out.
    if len(text) <= _MAX_FLOAT_LEN and _NUMBER.fullmatch(text):
        number = Decimal(text)
        if number.adjusted() < _MAX_FLOAT_LEN and number == number.to_integral_value():
            return str(int(number))
    return None


def _is_json(text: str) -> bool:
    try:
        # Numbers are not converted: nothing here needs their value, and long ones are costly.
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _from_python(text: str) -> str | None:
    """JSON for a Python literal: single quotes, True, False, None. None: it is not one."""
    pieces: list[str] = []
    position = 0
    while position < len(text):
        match = _PYTHON_TOKEN.match(text, position)
        if match is None:
            return None
        position = match.end()
        if match.lastgroup == "plain":
            pieces.append(match[0])
        elif match.lastgroup == "word":
            pieces.append(_PYTHON_WORDS.get(match[0], match[0]))
        else:
            pieces.append('"' + _ESCAPE.sub(_json_escape, match[0][1:-1]) + '"')
    return "".join(pieces)


def _json_escape(match: re.Match[str]) -> str:
    """What Python writes within quotes and JSON does not: a bare `"`, an escaped `'`, `\\x1b`."""
    if match[0] == '"':
        return '\\"'
    if match[1]:
        return "\\u00" + match[1]
    return "'" if match[2] == "'" else match[0]

"""JSON files, and a mapping that remembers which of its keys were read, so that the rest can be
refused."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mimo_engine.errors import ConfigError

__all__ = ["ConfigReader", "read_json_object"]

_MISSING: Any = object()


def read_json_object(
    path: Path, *, if_missing: str = "is this a checkpoint directory?"
) -> dict[str, Any]:
    """The JSON object in a file. ConfigError: it is none, or there is no file (`if_missing`)."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: {if_missing}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


class ConfigReader:
    """Typed reads from a parsed JSON object; `finish` fails on every key that nobody read.

    For `take`, a key whose value is null counts as absent where a default is given: config.json
    files of this family write null for "not used". `take_any` and `require` see a null as it is.
    """

    def __init__(self, raw: Mapping[str, Any], *, where: str) -> None:
        self._raw = raw
        self._where = where
        self._read: set[str] = set()

    def take(self, key: str, kind: type, *, default: Any = _MISSING) -> Any:
        """The value of `key`, which must be of `kind` (an int also passes for a float)."""
        self._read.add(key)
        value = self._raw.get(key)
        if value is None:
            if default is _MISSING:
                raise ConfigError(f"{self._where} has no {key!r}, which this model needs")
            return default
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"{self._where}: {key!r} must be {kind.__name__}, not {value!r}")
        return value

    def take_any(self, key: str, *, default: Any = _MISSING) -> Any:
        """The value of `key`, whatever its type."""
        self._read.add(key)
        if key not in self._raw:
            if default is _MISSING:
                raise ConfigError(f"{self._where} has no {key!r}, which this model needs")
            return default
        return self._raw[key]

    def require(self, key: str, value: Any, *, default: Any = _MISSING) -> None:
        """Refuse every value of `key` but `value`."""
        found = self.take_any(key, default=default)
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise ConfigError(f"{self._where}: {key!r} is {found!r}; only {value!r} can be served")

    def skip(self, key: str) -> None:
        """Count `key` as read without reading it: the user vouches for it."""
        self._read.add(key)

    def finish(self, known: Collection[str], *, remedy: str | None) -> None:
        """Raise ConfigError if a key was neither read nor is `known`; `remedy` is a flag."""
        unknown = [key for key in self._raw if key not in self._read and key not in known]
        if unknown:
            way_past = f"; pass {remedy} NAME if it changes nothing" if remedy else ""
            raise ConfigError(
                f"{self._where}: unknown key {', '.join(map(repr, unknown))}{way_past}"
            )

"""Rows of a dataset: JSON Lines or parquet; a file, a directory, or a dataset of the hub.

Columns are read by the names that the public datasets have. Those that a task does not need are
left alone: a public dataset has many. A value that a task needs and a row lacks is a ConfigError
that names the row.
"""

from __future__ import annotations

import ast
import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mimo_engine.errors import ConfigError

__all__ = ["Row", "content_of", "json_rows", "read_rows"]

_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row and where it stands. What reads a column raises ConfigError."""

    values: Mapping[str, Any]
    where: str
    """For messages."""
    directory: Path
    """Of its file: paths are relative to it."""

    def text(self, column: str) -> str:
        """A string with more than space in it."""
        value = self.values.get(column)
        if not isinstance(value, str) or not value.strip():
            raise self.error(f"{column} must be a string that is not empty")
        return value

    def list_of_text(self, column: str) -> list[str]:
        """A list of strings, also as Python writes one (MMMU's are); no value: an empty list."""
        value = self.values.get(column) or []
        if isinstance(value, str):
            try:
                value = ast.literal_eval(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
                raise self.error(f"{column} is no list: {value[:60]!r}") from error
        if not isinstance(value, list | tuple):
            raise self.error(f"{column} must be a list, not {type(value).__name__}")
        return [str(one) for one in value]

    def list_of_objects(self, column: str) -> list[Mapping[str, Any]]:
        """A list of JSON objects, also as JSON text (parquet has no type for it)."""
        value = self.values.get(column)
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError) as error:
                raise self.error(f"{column} is not JSON: {error}") from error
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            raise self.error(f"{column} must be a list of objects")
        return value

    def media(self, column: str) -> Path | bytes:
        """The content of a file, or its path; it is there.

        The value is a path, or as in the hub's datasets an object with `bytes` (base64 in JSON) or
        else `path`.
        """
        value = self.values.get(column)
        if isinstance(value, Mapping):
            content = value.get("bytes")
            if content is not None:
                return self._decoded(column, content)
            value = value.get("path")
        if not isinstance(value, str) or not value:
            raise self.error(f"{column} must be a path, or an object with bytes or path")
        return self.file(column, value)

    def file(self, column: str, name: str) -> Path:
        """The file that `column` names; it is there."""
        path = self.directory / name
        if not path.is_file():
            raise self.error(f"{column}: {path} is not a file")
        return path

    def _decoded(self, column: str, content: Any) -> bytes:
        if isinstance(content, bytes):
            return content
        try:
            return base64.b64decode(content, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise self.error(f"{column}.bytes must be base64") from error

    def error(self, message: str) -> ConfigError:
        return ConfigError(f"{self.where}: {message}")


def read_rows(
    source: str, *, hub_files: str, files: str | None, columns: Sequence[str]
) -> list[Row]:
    """All rows, file by file in the order of their names. Raises ConfigError.

    source: a file, a directory, or the name of a dataset on the hub. files: pattern of the paths
    within a directory or dataset; None: of a dataset `hub_files`, of a directory see
    `_default_files`.
    """
    path = Path(source).expanduser()
    if path.is_file():
        if files:
            raise ConfigError(f"{source} is one file, of which --files cannot choose: leave it out")
        paths = [path]
    elif path.is_dir():
        paths = _matching(path, files) if files else _default_files(path, hub_files)
    else:
        paths = _matching(_downloaded(source, files or hub_files), files or hub_files)
    if not paths:
        raise ConfigError(
            f"{source} has no .jsonl or .parquet file like {files or hub_files}: see --files"
        )
    rows: list[Row] = []
    for one in paths:
        if one.suffix not in _SUFFIXES:
            raise ConfigError(f"{one} must be a .jsonl or a .parquet file")
        rows += _parquet_rows(one, columns) if one.suffix == ".parquet" else json_rows(one)
    return rows


def content_of(file: Path | bytes) -> bytes:
    """Of what `Row.media` gives. Raises ConfigError."""
    try:
        return file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error


def _default_files(directory: Path, hub_files: str) -> list[Path]:
    """Those that `hub_files` names, as in a clone of the dataset, which has the train split beside
    the test split; or its last part, as in a folder of a clone; or else everything.
    """
    patterns = (hub_files, hub_files.rpartition("/")[2], "*")
    return next(filter(None, (_matching(directory, pattern) for pattern in patterns)), [])


def _matching(directory: Path, pattern: str) -> list[Path]:
    found = [path for path in directory.rglob("*") if path.suffix in _SUFFIXES and path.is_file()]
    return sorted(
        path for path in found if fnmatch(path.relative_to(directory).as_posix(), pattern)
    )


def _downloaded(name: str, pattern: str) -> Path:
    try:
        return Path(snapshot_download(name, repo_type="dataset", allow_patterns=[pattern]))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{name} is not a local file or directory, and no dataset could be fetched from the "
            f"hub ({reason}): check --data and the connection"
        ) from error


def json_rows(path: Path) -> Iterator[Row]:
    """The rows of a file of JSON Lines. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, row {number}"
                yield Row(values=_json_object(line, where), where=where, directory=path.parent)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8: {error}") from error


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Row]:
    """Those of `columns` that the file has: the hub's others hold images by the gigabyte."""
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{path} is a parquet file, which needs pyarrow: pip install 'mimo-engine[eval]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            batches = file.iter_batches(columns=names)
            rows = (values for batch in batches for values in batch.to_pylist())
            for number, values in enumerate(rows, 1):
                yield Row(values=values, where=f"{path}, row {number}", directory=path.parent)
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} cannot be read as parquet: {reason}") from error


def _json_object(line: str, where: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a JSON object, not {type(value).__name__}")
    return value

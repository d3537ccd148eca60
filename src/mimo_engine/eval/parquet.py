"""Rows of a parquet file: the one importer of pyarrow, and only when there is such a file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mimo_engine.errors import ConfigError

__all__ = ["parquet_rows"]


def parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """The rows in order, with those of `columns` that the file has. Raises ConfigError.

    Other columns are not read: those of the hub hold images by the gigabyte.
    """
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{path} is a parquet file, which needs pyarrow: pip install 'mimo-engine[eval]'"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in columns if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=names):
                yield from batch.to_pylist()
    except (OSError, arrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path} cannot be read as parquet: {reason}") from error

"""The tensors of a checkpoint directory: names, types and places from the headers, data by mmap.

Safetensors only. `model.safetensors.index.json` is followed where there is one, else the headers of
all `*.safetensors` in the directory are read; sub-directories belong to other models. Opening reads
headers alone and refuses what is already visible there: a file that is missing or shorter than its
header says, a tensor in two files, an index that disagrees with the files. Pickled weights (`.bin`,
`.pt`) are never opened.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from mimo_engine.errors import CheckpointError

__all__ = ["INDEX_NAME", "CheckpointFile", "CheckpointIndex", "TensorInfo", "open_checkpoint"]

INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100 * 2**20

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor of one file, from the header."""

    name: str
    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """First byte, counted from the beginning of the file."""
    nbytes: int


class CheckpointFile:
    """One shard, mapped into memory. Tensors are views of the mapping: pages are read when touched
    and, being the file's own, can be dropped again by the kernel."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            # A private mapping is writable, which torch wants; nobody writes, so nothing is copied.
            self._buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def read(self, tensor: TensorInfo) -> torch.Tensor:
        """The tensor, valid as long as it is referenced."""
        if tensor.nbytes == 0:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        raw = torch.frombuffer(
            self._buffer, dtype=torch.uint8, count=tensor.nbytes, offset=tensor.start
        )
        if tensor.start % tensor.dtype.itemsize:
            raw = raw.clone()
        return raw.view(tensor.dtype).view(tensor.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointIndex:
    """What the files of a checkpoint hold."""

    model_dir: Path
    tensors: Mapping[str, TensorInfo]
    """By name, ordered by file and place in it: the order in which to stream."""
    metadata: Mapping[str, Any]
    """Metadata of the index file; the headers' own where there is no index."""

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def stream(self, names: Container[str]) -> Iterator[tuple[TensorInfo, CheckpointFile]]:
        """Those of `names` in the order of the files, each of which is opened once."""
        wanted = (tensor for tensor in self.tensors.values() if tensor.name in names)
        for name, tensors in groupby(wanted, key=lambda tensor: tensor.file):
            file = CheckpointFile(self.model_dir / name)
            for tensor in tensors:
                yield tensor, file

    def read(self, name: str) -> torch.Tensor:
        """One tensor by name, mapped; for the few that are read out of order."""
        tensor = self.tensors[name]
        return CheckpointFile(self.model_dir / tensor.file).read(tensor)


def open_checkpoint(model_dir: Path) -> CheckpointIndex:
    """Read index and headers. Raises CheckpointError; see the module docstring."""
    if not model_dir.is_dir():
        raise CheckpointError(f"{model_dir} is not a directory; pass the checkpoint's directory")
    index_path = model_dir / INDEX_NAME
    if index_path.exists():
        weight_map, metadata = _read_index(index_path)
        files = sorted(set(weight_map.values()))
    else:
        weight_map, metadata = None, {}
        files = sorted(path.name for path in model_dir.glob("*.safetensors"))
        if not files:
            raise CheckpointError(_nothing_to_load(model_dir))
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        infos, header_metadata = _read_header(model_dir / file)
        for info in infos:
            other = tensors.get(info.name)
            if other is not None:
                raise CheckpointError(
                    f"tensor {info.name} is in {other.file} and in {file}: remove the file that "
                    "does not belong to this checkpoint, or download it again"
                )
            tensors[info.name] = info
        if weight_map is None:
            metadata = {**metadata, **header_metadata}
    if weight_map is not None:
        _compare(weight_map, tensors)
    return CheckpointIndex(model_dir=model_dir, tensors=tensors, metadata=metadata)


def _read_index(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique_keys)
        weight_map, metadata = dict(raw["weight_map"]), dict(raw.get("metadata") or {})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path.name} is not a safetensors index ({error}); download it again"
        ) from error
    for name, file in weight_map.items():
        # A plain file name: an index must not lead out of its directory.
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{path.name} places {name} in {file!r}, not a file beside it")
        if not file.endswith(".safetensors"):
            raise CheckpointError(
                f"{path.name} places {name} in {file}; only .safetensors files are read"
            )
    return weight_map, metadata


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key} is listed twice")
        found[key] = value
    return found


def _nothing_to_load(model_dir: Path) -> str:
    pickled = sorted(p.name for p in model_dir.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickled:
        return (
            f"{model_dir} has pickled weights only ({pickled[0]}); pickle can run code and is "
            "never read: convert them to safetensors"
        )
    return f"{model_dir} has neither {INDEX_NAME} nor any *.safetensors file"


def _read_header(path: Path) -> tuple[list[TensorInfo], dict[str, str]]:
    """Parse one header: 8 bytes of length, then JSON {name: {dtype, shape, data_offsets}}.

    The tensors come in the order of their data, which fills the file without gap or overlap.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            data_start = 8 + header_bytes
            if file_bytes < 8 or header_bytes > _MAX_HEADER_BYTES or data_start > file_bytes:
                raise CheckpointError(_truncated(path, file_bytes, data_start))
            header = json.loads(file.read(header_bytes), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise CheckpointError(
            f"{INDEX_NAME} names {path.name}, which is missing: download it"
        ) from None
    except ValueError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path.name} has no valid safetensors header ({error}); download it again"
        ) from error
    metadata = header.pop("__metadata__", {})
    infos = [_tensor_info(path.name, name, entry, data_start) for name, entry in header.items()]
    infos.sort(key=lambda info: (info.start, info.nbytes))
    end = data_start
    for info in infos:
        if info.start != end:
            raise CheckpointError(
                f"tensor {info.name} of {path.name} begins at byte {info.start}, where the one "
                f"before ends at {end}: the file is damaged; download it again"
            )
        end += info.nbytes
    if end != file_bytes:
        raise CheckpointError(_truncated(path, file_bytes, end))
    return infos, metadata


def _truncated(path: Path, file_bytes: int, expected: int) -> str:
    return (
        f"{path.name} has {file_bytes} bytes where its header needs {expected}: the file is "
        "truncated or damaged; download it again"
    )


def _tensor_info(file: str, name: str, entry: Any, data_start: int) -> TensorInfo:
    try:
        dtype = _DTYPES[entry["dtype"]]
        shape = tuple(int(size) for size in entry["shape"])
        start, end = (int(offset) for offset in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"tensor {name} of {file} has an unreadable header entry ({error!r}): the file needs "
            "a newer reader, or is damaged"
        ) from error
    nbytes = math.prod(shape) * dtype.itemsize
    if start < 0 or any(size < 0 for size in shape) or end - start != nbytes:
        raise CheckpointError(
            f"tensor {name} of {file}: {end - start} bytes do not hold {list(shape)} {dtype}; "
            "download the file again"
        )
    return TensorInfo(
        name=name, file=file, dtype=dtype, shape=shape, start=data_start + start, nbytes=nbytes
    )


def _compare(weight_map: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> None:
    for name, file in weight_map.items():
        info = tensors.get(name)
        if info is None or info.file != file:
            where = "no file has it" if info is None else f"it is in {info.file}"
            raise CheckpointError(
                f"{INDEX_NAME} places tensor {name} in {file}, but {where}: download the "
                "checkpoint again"
            )
    for name, info in tensors.items():
        if name not in weight_map:
            raise CheckpointError(
                f"{info.file} has tensor {name}, which {INDEX_NAME} does not list: one of the two "
                "belongs to another checkpoint; download it again"
            )

"""Write the official layouts from plain weights: what `load.py` reads, in reverse.

Tensors are made one at a time and leave with their shard, so a checkpoint larger than the memory
can be written. Serves the random and demo checkpoints, and every test of the loader.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from mimo_engine.checkpoint.export_towers import (
    TowerExport,
    export_audio_tokenizer,
    main_tower_tensors,
)
from mimo_engine.checkpoint.index import INDEX_NAME
from mimo_engine.checkpoint.names import (
    FP8_SCALE_SUFFIX,
    MTP_PREFIX,
    MXFP4_SCALE_SUFFIX,
    Placement,
    placements,
    tensor_name,
)
from mimo_engine.checkpoint.params import ParamSpec, Storage, layer_of, parameter_specs
from mimo_engine.checkpoint.qkv_layout import (
    QkvLayout,
    canonical_cuts,
    fused_grid,
    fused_rows,
    num_quantiser_ranks,
)
from mimo_engine.config.model import ModelConfig
from mimo_engine.errors import CheckpointError
from mimo_engine.kernels.quant import (
    FP8_BLOCK,
    MXFP4_GROUP,
    RowGrid,
    encode_fp8,
    encode_mxfp4,
)

__all__ = [
    "ExportFormat",
    "PartReader",
    "export_checkpoint",
    "export_config",
    "export_tensors",
    "parts_of",
]

PartReader = Callable[[Placement], torch.Tensor]
"""Gives the whole canonical tensor of one part (of one expert), in any float dtype."""

_QKV = "self_attn.qkv_proj.weight"
_EXPERT = ".mlp.experts."
_DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFormat:
    """How a checkpoint is stored."""

    projection: Literal["fused", "split", "plain"] = "fused"
    """fused: T chunks. plain: [Q;K;V] rows under the fused flag, as some re-exports have it."""
    linear: Literal["plain", "fp8"] = "plain"
    """qkv and dense MLPs. o_proj is plain in every official file (text.md 0.11)."""
    experts: Literal["plain", "fp8", "mxfp4"] = "plain"
    dtype: torch.dtype = torch.bfloat16
    """Of plain tensors; float32 keeps test weights exact."""
    router_dtype: torch.dtype = torch.float32
    """float32 in the FP8 members, bfloat16 in the MXFP4 ones. Its bias is always float32."""

    def __post_init__(self) -> None:
        assert self.dtype in _DTYPE_NAMES

    @property
    def qkv_layout(self) -> QkvLayout | None:
        """Row order of fused tensors; None for split ones."""
        layouts = {"fused": QkvLayout.CHUNKED, "plain": QkvLayout.PLAIN, "split": None}
        return layouts[self.projection]


def parts_of(weights: Mapping[str, torch.Tensor]) -> PartReader:
    """Read the parts out of whole parameters, as `load_checkpoint` returns them for one rank."""

    def read(placement: Placement) -> torch.Tensor:
        tensor = weights[placement.parameter]
        if placement.expert is not None:
            tensor = tensor[placement.expert]
        return tensor.narrow(0, placement.part.row, placement.part.full_shape[0])

    return read


def export_checkpoint(
    model_dir: Path,
    config: ModelConfig,
    read: PartReader,
    stored: ExportFormat,
    *,
    towers: TowerExport | None = None,
    num_mtp_layers: int = 0,
    max_shard_bytes: int = 2 * 2**30,
    splits_experts: bool = False,
) -> None:
    """Write shards of at most about `max_shard_bytes`, towers first; draft layers and the audio
    tokenizer in files of their own; and the index, last. config.json, those that go with the towers
    and the tokenizer are the caller's business (`export_config`, `write_tower_configs`).

    `config` gives the geometry; how it stores its own weights does not matter here. splits_experts:
    all experts in a file of their own, so that a checkpoint that differs by them alone can have
    the other files in common.
    """
    model_dir.mkdir(parents=True, exist_ok=True)
    if any(model_dir.glob("*.safetensors")):
        raise CheckpointError(f"{model_dir} already has safetensors files; choose an empty one")
    writer = _ShardWriter(model_dir, max_shard_bytes, splits_experts=splits_experts)
    if towers is not None:
        export_audio_tokenizer(model_dir, towers, stored.dtype)
        for name, tensor in main_tower_tensors(towers, stored.dtype):
            writer.add(name, tensor)
    for name, tensor in export_tensors(config, read, stored, num_mtp_layers=num_mtp_layers):
        writer.add(name, tensor)
    metadata: dict[str, Any] = {}
    if stored.qkv_layout is QkvLayout.CHUNKED:
        metadata["tp_size"] = num_quantiser_ranks(config)
    writer.finish(metadata)


def export_tensors(
    config: ModelConfig, read: PartReader, stored: ExportFormat, *, num_mtp_layers: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything in the files, scales after their weight."""
    specs = parameter_specs(config, num_mtp_layers=num_mtp_layers)
    for parameter, spec in specs.items():
        places = [place for _, place in placements({parameter: spec})]
        is_qkv = parameter.endswith(_QKV)
        if is_qkv and stored.qkv_layout is not None:
            weight, grid = _fused(config, parameter, places, read, stored.qkv_layout)
            if stored.linear == "plain":
                yield tensor_name(parameter), weight.to(stored.dtype)
            else:
                yield from _encoded(tensor_name(parameter), weight, grid, stored.linear)
            continue
        for place in places:
            name = tensor_name(parameter, place.part.name, place.expert)
            weight = read(place)
            assert weight.shape == place.part.full_shape, (name, weight.shape)
            weight_format = _weight_format(parameter, spec, stored)
            if weight_format == "plain":
                yield name, weight.to(_plain_dtype(parameter, spec, stored)).contiguous()
                continue
            num_rows = weight.shape[0]
            ranks = num_quantiser_ranks(config) if is_qkv else 1
            yield from _encoded(name, weight, RowGrid(num_rows, num_rows // ranks), weight_format)


def export_config(raw: Mapping[str, Any], stored: ExportFormat) -> dict[str, Any]:
    """`raw`, a config.json, with the keys that say how the weights are stored."""
    config = copy.deepcopy(dict(raw))
    config["attention_projection_layout"] = "split" if stored.qkv_layout is None else "fused_qkv"
    config["dtype"] = _DTYPE_NAMES[stored.dtype]
    config.pop("torch_dtype", None)
    config.pop("quantization_config", None)
    if "layer_types" not in config:
        config["moe_router_dtype"] = str(stored.router_dtype).removeprefix("torch.")
    if (stored.linear, stored.experts) == ("plain", "plain"):
        return config
    num_layers = config["num_hidden_layers"]
    quantization: dict[str, Any] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [FP8_BLOCK, FP8_BLOCK],
        "store_dtype": "mxfp4" if stored.experts == "mxfp4" else "fp8",
        "ignored_layers": [
            *(f"model.layers.{i}.self_attn.o_proj" for i in range(num_layers)),
            "model.decoder.self_attn.o_proj",
        ],
    }
    if stored.experts == "mxfp4":
        quantization["mxfp4_block_size"] = MXFP4_GROUP
    config["quantization_config"] = quantization
    return config


def _weight_format(parameter: str, spec: ParamSpec, stored: ExportFormat) -> str:
    if spec.storage is not Storage.LINEAR or parameter.endswith("o_proj.weight"):
        return "plain"
    return stored.linear if spec.num_experts is None else stored.experts


def _plain_dtype(parameter: str, spec: ParamSpec, stored: ExportFormat) -> torch.dtype:
    if spec.storage is Storage.FLOAT32_ONLY:
        return torch.float32
    if parameter.endswith("mlp.gate.weight"):
        return stored.router_dtype
    return stored.dtype


def _fused(
    config: ModelConfig,
    parameter: str,
    places: Iterable[Placement],
    read: PartReader,
    layout: QkvLayout,
) -> tuple[torch.Tensor, RowGrid]:
    """The fused tensor of one layer, rows in stored order, and its scale grid."""
    layer = layer_of(config, parameter)
    num_chunks = num_quantiser_ranks(config)
    if layer.num_heads % num_chunks or layer.num_kv_heads % num_chunks:
        raise CheckpointError(
            f"{parameter}: {layer.num_heads} query and {layer.num_kv_heads} KV heads cannot be cut "
            f"into {num_chunks} chunks; export this geometry as split"
        )
    cuts = canonical_cuts(layer, num_chunks, layout)
    fused = None
    for place in places:
        part = read(place)
        if fused is None:
            fused = torch.empty(fused_rows(layer), part.shape[1], dtype=part.dtype)
        for run in cuts[place.part.name].runs:
            fused.narrow(0, run.src, run.length).copy_(part.narrow(0, run.dst, run.length))
    assert fused is not None
    return fused, fused_grid(layer, num_chunks, layout)


def _encoded(
    name: str, weight: torch.Tensor, grid: RowGrid, weight_format: str
) -> Iterator[tuple[str, torch.Tensor]]:
    if weight_format == "fp8":
        data, scales = encode_fp8(weight, grid)
        yield name, data
        yield name + FP8_SCALE_SUFFIX, scales
    else:
        packed, scales = encode_mxfp4(weight)
        yield name, packed
        yield name + MXFP4_SCALE_SUFFIX, scales


class _ShardWriter:
    """Collects tensors and writes a shard whenever enough have come."""

    def __init__(self, model_dir: Path, max_shard_bytes: int, *, splits_experts: bool) -> None:
        self._model_dir = model_dir
        self._max_shard_bytes = max_shard_bytes
        self._splits_experts = splits_experts
        self._shard: dict[str, torch.Tensor] = {}
        self._apart: dict[str, dict[str, torch.Tensor]] = {}
        """By file: those that have one of their own."""
        self._weight_map: dict[str, str] = {}
        self._num_shards = 0
        self._total_size = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        self._total_size += tensor.nbytes
        if name.startswith(MTP_PREFIX):
            self._apart.setdefault("model_mtp.safetensors", {})[name] = tensor
            return
        if self._splits_experts and _EXPERT in name:
            self._apart.setdefault("model_experts.safetensors", {})[name] = tensor
            return
        shard_bytes = sum(other.nbytes for other in self._shard.values())
        if self._shard and shard_bytes + tensor.nbytes > self._max_shard_bytes:
            self._write_shard()
        self._shard[name] = tensor

    def finish(self, metadata: dict[str, Any]) -> None:
        if self._shard:
            self._write_shard()
        for file, tensors in self._apart.items():
            self._write(file, tensors)
        index = {
            "metadata": {"total_size": self._total_size, **metadata},
            "weight_map": dict(sorted(self._weight_map.items())),
        }
        text = json.dumps(index, indent=1)
        (self._model_dir / INDEX_NAME).write_text(text + "\n", encoding="utf-8")

    def _write_shard(self) -> None:
        self._write(f"model_pp0_ep0_shard{self._num_shards}.safetensors", self._shard)
        self._shard = {}
        self._num_shards += 1

    def _write(self, file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, self._model_dir / file, metadata={"format": "pt"})
        self._weight_map |= dict.fromkeys(tensors, file)

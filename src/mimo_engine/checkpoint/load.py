"""Fill every parameter of one rank from the files, streaming them once in file order.

Data is copied (or decoded) from the mapped file straight to its place, so anonymous host memory
holds the weights of the rank and one slab of temporaries, nothing else.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm

from mimo_engine.checkpoint.formats import (
    DenseTarget,
    Fp8Target,
    Mxfp4Target,
    StoredFormat,
    StoredWeight,
    Target,
)
from mimo_engine.checkpoint.index import CheckpointFile, CheckpointIndex, open_checkpoint
from mimo_engine.checkpoint.params import Storage
from mimo_engine.checkpoint.remedies import refuse
from mimo_engine.checkpoint.verify import LoadPlan, Source, verify_headers
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.model import ModelConfig
from mimo_engine.distributed.plan import SINGLE_RANK, ParallelPlan
from mimo_engine.errors import CheckpointError
from mimo_engine.kernels.quant import QuantisedWeight

__all__ = ["Weight", "load_checkpoint", "scale_problem"]

Weight = torch.Tensor | QuantisedWeight


def load_checkpoint(
    model_dir: Path,
    config: ModelConfig,
    plan: ParallelPlan = SINGLE_RANK,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    media: MediaConfig | None = None,
    keep_quantised: bool,
    qkv_layout: str = "auto",
    num_mtp_layers: int = 0,
    progress: bool = False,
) -> dict[str, Weight]:
    """The text model's parameters of one rank, by the names and shapes of `parameter_specs`.

    dtype: of plain tensors (router, its bias and sinks are float32) and of what is decoded.
    media: the towers that the same files must hold whole, though `load_towers` loads them; None
    serves text alone.
    keep_quantised: keep FP8 and MXFP4 bits as stored; False decodes them once, here.
    qkv_layout: auto, chunked or plain. num_mtp_layers: draft layers to load, of those there are.
    progress: a bar on stderr.
    Raises CheckpointError for anything that `verify_headers` finds, and for unusable scales.
    """
    index = open_checkpoint(model_dir)
    checked = verify_headers(
        index, config, plan, media=media, qkv_layout=qkv_layout, num_mtp_layers=num_mtp_layers
    )
    refuse(model_dir, checked.problems)
    targets: dict[str, Target] = {}
    num_bytes = sum(source.tensor.nbytes for source in checked.sources.values())
    with tqdm(
        total=num_bytes, unit="B", unit_scale=True, desc="loading", disable=not progress
    ) as bar:
        for info, file in index.stream(checked.sources):
            source = checked.sources[info.name]
            place = source.placement
            if place.parameter not in targets:
                targets[place.parameter] = _target(
                    checked, place.parameter, dtype, torch.device(device), keep_quantised
                )
            stored = _read(index, file, source)
            targets[place.parameter].fill(place.part, place.expert, stored)
            bar.update(info.nbytes)
    return {name: targets[name].weight for name in checked.specs}


def scale_problem(name: str, scales: torch.Tensor) -> str | None:
    """What is wrong with the values of stored scales, or None."""
    if scales.dtype is torch.uint8:
        wrong, meaning = scales == 255, "exponent bytes 255, which is NaN"
    else:
        wrong, meaning = ~(scales.isfinite() & (scales >= 0)), "negative, infinite or NaN values"
    num_wrong = int(wrong.sum())
    if not num_wrong:
        return None
    return f"tensor {name} has {num_wrong} {meaning}: the file is damaged; download it again"


def _target(
    checked: LoadPlan,
    parameter: str,
    dtype: torch.dtype,
    device: torch.device,
    keep_quantised: bool,
) -> Target:
    spec, stored = checked.specs[parameter], checked.formats[parameter]
    if keep_quantised and stored is StoredFormat.FP8:
        return Fp8Target(spec, checked.grids(parameter), device=device)
    if keep_quantised and stored is StoredFormat.MXFP4:
        return Mxfp4Target(spec, device=device)
    if spec.storage in (Storage.FLOAT32, Storage.FLOAT32_ONLY):
        dtype = torch.float32
    return DenseTarget(spec, dtype=dtype, device=device)


def _read(index: CheckpointIndex, file: CheckpointFile, source: Source) -> StoredWeight:
    """Map one weight and its scales, which may lie in another file."""
    data = file.read(source.tensor)
    if source.scales is None:
        return StoredWeight(data=data)
    if source.scales.file == source.tensor.file:
        scales = file.read(source.scales)
    else:
        scales = index.read(source.scales.name)
    problem = scale_problem(source.scales.name, scales)
    if problem is not None:
        raise CheckpointError(problem)
    return StoredWeight(data=data, scales=scales, grid=source.grid)

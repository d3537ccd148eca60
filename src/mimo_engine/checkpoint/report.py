"""What `mimo-engine check` prints: everything there is to say about a checkpoint, raising nothing
that a list can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mimo_engine.checkpoint.formats import StoredFormat
from mimo_engine.checkpoint.index import CheckpointIndex, TensorInfo, open_checkpoint
from mimo_engine.checkpoint.load import scale_problem
from mimo_engine.checkpoint.qkv_layout import QkvLayout
from mimo_engine.checkpoint.verify import LoadPlan, Source, count_mtp_layers, verify_headers
from mimo_engine.checkpoint.verify_towers import (
    TowerPlan,
    TowerSource,
    open_audio_tokenizer,
    verify_audio_tokenizer,
)
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.model import ModelConfig
from mimo_engine.distributed.plan import SINGLE_RANK
from mimo_engine.errors import CheckpointError

__all__ = ["CheckpointReport", "TensorLine", "inspect_checkpoint"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorLine:
    """One tensor of the files."""

    name: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    use: str
    """The parameter it fills, the weight it scales, or why it is ignored; empty: a problem."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointReport:
    """A checkpoint, whole or not."""

    num_files: int
    num_tensors: int
    num_bytes: int
    projection: str
    """split, or the row order of the fused tensors: chunked, plain, undecided."""
    num_mtp_layers: int
    formats: Mapping[str, Mapping[str, int]]
    """Group of parameters (attention, dense, experts, other, and each tower) -> stored format ->
    tensors."""
    ignored: Mapping[str, int]
    """Reason -> tensors."""
    problems: tuple[str, ...]
    """What is wrong, each with its remedy. Empty: whole."""
    tensors: tuple[TensorLine, ...]


def inspect_checkpoint(
    model_dir: Path,
    config: ModelConfig,
    *,
    media: MediaConfig | None = None,
    qkv_layout: str = "auto",
    deep: bool = False,
) -> CheckpointReport:
    """Compare the files with `config`, draft layers included, and the towers with `media`.

    media: None leaves the towers out. deep: also read the data of all weights, for NaN, infinity
    and unusable scales. Raises CheckpointError only when the main headers cannot be read at all.
    """
    index = open_checkpoint(model_dir)
    problems: list[str] = []
    try:
        num_mtp_layers = count_mtp_layers(index)
    except CheckpointError as error:
        problems.append(str(error))
        num_mtp_layers = 0
    checked = verify_headers(
        index,
        config,
        SINGLE_RANK,
        media=media,
        qkv_layout=qkv_layout,
        num_mtp_layers=num_mtp_layers,
    )
    problems += checked.problems
    tokenizer_index = CheckpointIndex(model_dir=model_dir, tensors={}, metadata={})
    tokenizer = TowerPlan()
    if media is not None:
        try:
            tokenizer_index = open_audio_tokenizer(model_dir)
            tokenizer = verify_audio_tokenizer(tokenizer_index, media)
        except CheckpointError as error:
            problems.append(str(error))
    problems += tokenizer.problems
    if deep:
        problems += _unusable_scales(index, checked)
        problems += _not_finite(index, (*checked.sources.values(), *checked.towers.values()))
        problems += _not_finite(tokenizer_index, tokenizer.sources.values())
    uses = _tower_uses(tokenizer.sources, tokenizer.ignored)
    lines = (
        *_lines(index, _uses(checked)),
        *_lines(tokenizer_index, uses, folder=f"{AUDIO_TOKENIZER_DIR}/"),
    )
    return CheckpointReport(
        num_files=len({line.file for line in lines}),
        num_tensors=len(lines),
        num_bytes=sum(line.nbytes for line in lines),
        projection=_projection(config, checked.qkv_layout),
        num_mtp_layers=num_mtp_layers,
        formats=_formats(checked, tokenizer),
        ignored=Counter([*checked.ignored.values(), *tokenizer.ignored.values()]),
        problems=tuple(problems),
        tensors=lines,
    )


def _projection(config: ModelConfig, layout: QkvLayout | None) -> str:
    if config.qkv_chunks is None:
        return "split"
    return "undecided" if layout is None else str(layout)


def _formats(checked: LoadPlan, tokenizer: TowerPlan) -> dict[str, dict[str, int]]:
    groups: dict[str, Counter[str]] = {}
    for source in checked.sources.values():
        parameter = source.placement.parameter
        if source.placement.expert is not None:
            group = "experts"
        elif ".self_attn." in parameter:
            group = "attention"
        elif ".mlp." in parameter and "_proj." in parameter:
            group = "dense"
        else:
            group = "other"
        plain = _dtype_name(source.tensor)
        name = plain if source.format is StoredFormat.PLAIN else str(source.format)
        groups.setdefault(group, Counter())[name] += 1
    for source in (*checked.towers.values(), *tokenizer.sources.values()):
        groups.setdefault(str(source.param.tower), Counter())[_dtype_name(source.tensor)] += 1
    return {group: dict(counts) for group, counts in groups.items()}


def _uses(checked: LoadPlan) -> dict[str, str]:
    uses = _tower_uses(checked.towers, checked.ignored)
    for name, source in checked.sources.items():
        place = source.placement
        expert = "" if place.expert is None else f"[{place.expert}]"
        uses[name] = f"{place.parameter}{expert}{' ' if place.part.name else ''}{place.part.name}"
        if source.scales is not None:
            uses[source.scales.name] = f"scales of {name}"
    return uses


def _tower_uses(sources: Mapping[str, TowerSource], ignored: Mapping[str, str]) -> dict[str, str]:
    uses = {name: f"{s.param.name} of the {s.param.tower}" for name, s in sources.items()}
    return uses | {name: f"ignored: {reason}" for name, reason in ignored.items()}


def _lines(
    index: CheckpointIndex, uses: Mapping[str, str], folder: str = ""
) -> Iterator[TensorLine]:
    for info in index.tensors.values():
        yield TensorLine(
            name=info.name,
            file=f"{folder}{info.file}",
            dtype=_dtype_name(info),
            shape=info.shape,
            nbytes=info.nbytes,
            use=uses.get(info.name, ""),
        )


def _dtype_name(info: TensorInfo) -> str:
    return str(info.dtype).removeprefix("torch.")


def _unusable_scales(index: CheckpointIndex, checked: LoadPlan) -> Iterator[str]:
    for source in checked.sources.values():
        if source.scales is not None:
            problem = scale_problem(source.scales.name, index.read(source.scales.name))
            if problem is not None:
                yield problem


def _not_finite(index: CheckpointIndex, sources: Iterable[Source | TowerSource]) -> Iterator[str]:
    for source in sources:
        num_bad = _num_not_finite(index, source.tensor)
        if num_bad:
            yield (
                f"tensor {source.tensor.name} has {num_bad} values that are NaN or infinite: the "
                "file is damaged; download it again"
            )


def _num_not_finite(index: CheckpointIndex, info: TensorInfo) -> int:
    data = index.read(info.name)
    if info.dtype is torch.uint8:
        return 0
    if info.dtype is torch.float8_e4m3fn:
        # The format has no infinity and one NaN of each sign.
        return int(((data.view(torch.uint8) & 0x7F) == 0x7F).sum())
    return int((~data.isfinite()).sum())

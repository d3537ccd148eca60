"""Do the files hold exactly the towers that the configuration describes? Answered from the headers.

The same two-way accounting as the text model's (`verify.py`, which calls this for the main files):
each parameter has its tensor, of its shape and a plain float type, and each tensor that a tower's
name claims fills a parameter. The audio tokenizer has a directory and an index of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mimo_engine.checkpoint.index import CheckpointIndex, TensorInfo, open_checkpoint
from mimo_engine.checkpoint.names import (
    FP8_SCALE_SUFFIX,
    IGNORED_AUDIO_TOKENIZER,
    MXFP4_SCALE_SUFFIX,
    tower_of,
    tower_tensor_name,
)
from mimo_engine.checkpoint.remedies import AGAIN
from mimo_engine.checkpoint.tower_params import (
    Tower,
    TowerParam,
    audio_encoder_params,
    audio_tokenizer_params,
    vision_params,
)
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig
from mimo_engine.errors import CheckpointError

__all__ = [
    "PLAIN_DTYPES",
    "TowerPlan",
    "TowerSource",
    "open_audio_tokenizer",
    "verify_audio_tokenizer",
    "verify_towers",
]

PLAIN_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""In which a tensor that is not quantised may be stored."""
_DESCRIBED_IN = {
    Tower.VISION: "config.json's vision_config",
    Tower.AUDIO_ENCODER: "config.json's audio_config",
    Tower.AUDIO_TOKENIZER: f"{AUDIO_TOKENIZER_DIR}/config.json",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSource:
    """One tensor of the files and the parameter that it fills."""

    tensor: TensorInfo
    param: TowerParam


@dataclass(kw_only=True, slots=True)
class TowerPlan:
    """What fills what. Not to be executed while `problems` is not empty."""

    sources: dict[str, TowerSource] = field(default_factory=dict)
    """By tensor name, in the order of the parameters."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Tensor name -> reason."""
    problems: list[str] = field(default_factory=list)


def verify_towers(index: CheckpointIndex, media: MediaConfig) -> TowerPlan:
    """Match vision tower and audio encoder with the main files; their other tensors are not looked
    at. Does not raise: see `problems`."""
    params = (*vision_params(media.vision), *audio_encoder_params(media.audio))
    result = _matched(index, params, codebook_dtypes=())
    wanted = {tower_tensor_name(param) for param in params}
    for name in index.tensors:
        tower = tower_of(name)
        if tower is not None and name not in wanted:
            result.problems.append(_leftover(name, tower))
    return result


def open_audio_tokenizer(model_dir: Path) -> CheckpointIndex:
    """The index of the audio tokenizer of the checkpoint in `model_dir`. Raises CheckpointError."""
    folder = model_dir / AUDIO_TOKENIZER_DIR
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is missing: download it, or pass --text-only")
    try:
        return open_checkpoint(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{AUDIO_TOKENIZER_DIR}/: {error} (or pass --text-only)") from error


def verify_audio_tokenizer(index: CheckpointIndex, media: MediaConfig) -> TowerPlan:
    """Match the audio tokenizer with its own files. Does not raise: see `problems`."""
    params = audio_tokenizer_params(media.audio_tokenizer)
    # A codebook that is rounded at load anyway may as well be stored so.
    rounded = (torch.bfloat16,) if media.audio_tokenizer.bf16_tables else ()
    result = _matched(index, params, codebook_dtypes=(torch.float32, *rounded))
    wanted = {tower_tensor_name(param) for param in params}
    for name in index.tensors:
        if name in wanted:
            continue
        reason = next((i.reason for i in IGNORED_AUDIO_TOKENIZER if i.pattern.fullmatch(name)), "")
        if reason:
            result.ignored[name] = reason
        else:
            result.problems.append(_leftover(name, Tower.AUDIO_TOKENIZER))
    return result


def _matched(
    index: CheckpointIndex,
    params: Iterable[TowerParam],
    *,
    codebook_dtypes: tuple[torch.dtype, ...],
) -> TowerPlan:
    """Every parameter with its tensor, or what is wrong with that."""
    result = TowerPlan()
    for param in params:
        name = tower_tensor_name(param)
        info = index.tensors.get(name)
        if info is None:
            problem = (
                f"missing, which {_DESCRIBED_IN[param.tower]} calls for: {AGAIN}, or pass "
                "--text-only"
            )
        else:
            allowed = codebook_dtypes if param.is_codebook else PLAIN_DTYPES
            problem = _shape_problem(info, param) or _dtype_problem(info, param, allowed)
        if problem:
            result.problems.append(f"tensor {_where(name, param.tower)} is {problem}")
        elif info is not None:
            result.sources[name] = TowerSource(tensor=info, param=param)
    return result


def _where(name: str, tower: Tower) -> str:
    return f"{name} of {AUDIO_TOKENIZER_DIR}/" if tower is Tower.AUDIO_TOKENIZER else name


def _shape_problem(info: TensorInfo, param: TowerParam) -> str:
    if info.shape == param.shape:
        return ""
    return (
        f"{list(info.shape)}, not {list(param.shape)}: the file or {_DESCRIBED_IN[param.tower]} "
        f"belongs to another checkpoint; {AGAIN}"
    )


def _dtype_problem(info: TensorInfo, param: TowerParam, allowed: tuple[torch.dtype, ...]) -> str:
    if info.dtype in allowed:
        return ""
    if param.is_codebook and info.dtype in PLAIN_DTYPES:
        remedy = "restore the official tensor"
        if info.dtype is torch.bfloat16:
            remedy += ", or pass --audio-bf16-tables on"
        return (
            f"{info.dtype}, but must be float32 (rounding it changes which codes are chosen): "
            f"{remedy}"
        )
    return f"{info.dtype}, but towers have bfloat16, float16 and float32, never quantised: {AGAIN}"


def _leftover(name: str, tower: Tower) -> str:
    """The problem of a tensor that fills nothing."""
    if name.endswith((FP8_SCALE_SUFFIX, MXFP4_SCALE_SUFFIX)):
        why = f"is a scale, but towers are never quantised: {AGAIN}"
    else:
        why = (
            f"is no tensor of the {tower} that {_DESCRIBED_IN[tower]} describes: restore the "
            "official one, or remove the tensor"
        )
    return f"tensor {_where(name, tower)} {why}"

"""`SamplingDefaults`: what the checkpoint recommends where a chat request is silent."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import CheckpointError, RequestError

__all__ = ["SamplingDefaults", "read_sampling_defaults"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingDefaults:
    """The five fields that generation_config.json may set (protocol.md 1.5). As constructed: the
    API's own defaults, which raw completions always use."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def read_sampling_defaults(model_dir: Path) -> SamplingDefaults:
    """From generation_config.json, if there is one. `do_sample` is not read: the family's file
    says false beside a temperature. CheckpointError: not JSON, or what no request may have."""
    path = model_dir / "generation_config.json"
    if not path.is_file():
        return SamplingDefaults()
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch the file again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch the file again")
    given = {}
    for field in fields(SamplingDefaults):
        value = content.get(field.name)
        if value is None:
            continue
        kinds = int if field.name == "top_k" else int | float
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise CheckpointError(f"{field.name} in {path} is {value!r}, not a number; correct it")
        given[field.name] = value
    try:
        SamplingParams(**given)
    except RequestError as error:
        raise CheckpointError(f"{path}: {error}; correct it") from error
    return SamplingDefaults(**given)

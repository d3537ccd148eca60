"""How often the draft layers are right, by task, when every token before is the right one.

A draft pass at row j is given the token after it and guesses the three that follow. Its length is
how many tokens a step would yield: the one that is known, and the guesses up to the first wrong
one, 1 to 4 (mtp.md 5.8). Of the answer's tokens alone, on held-out examples of the text tasks; what
the engine's sampler makes of it is measured there.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.media import served_media
from mimo_engine.config.model import load_model_config
from mimo_engine.demo.encoding import Encoded, ExampleEncoder
from mimo_engine.demo.geometry import NUM_MTP_LAYERS
from mimo_engine.demo.task import Task, task_name
from mimo_engine.model.batch import packed_batch
from mimo_engine.model.mtp import MtpLayers, shifted_tokens, split_mtp_weights
from mimo_engine.model.text import TextModel

__all__ = ["Acceptance", "measure_acceptance"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Acceptance:
    """Of one task."""

    task: str
    num_rows: int
    shares: tuple[float, ...]
    """By draft layer: how often it is right, by itself."""
    length: float
    """Mean tokens of a step, 1 to 4."""


@torch.no_grad()
def measure_acceptance(
    model_dir: Path, tasks: Sequence[Task], *, items_per_task: int, seed: int = 0
) -> list[Acceptance]:
    """One a task; `tasks` without media, `model_dir` a checkpoint with its draft layers."""
    config = load_model_config(model_dir)
    media = served_media(EngineConfig(model=str(model_dir)))
    assert media is not None
    weights = split_mtp_weights(
        load_checkpoint(
            model_dir,
            config,
            media=media,
            dtype=torch.float32,
            keep_quantised=False,
            num_mtp_layers=NUM_MTP_LAYERS,
        )
    )
    text = TextModel.from_weights(config, weights.text)
    mtp = MtpLayers.from_weights(config, weights.mtp)
    encoder = ExampleEncoder(Tokenizer.from_dir(model_dir), media)
    found = []
    for task in tasks:
        rng = random.Random(f"acceptance {seed} {task.modality} {task.name}")
        rows = [
            _rows_right(text, mtp, encoder.encode(task.make(rng, "test")))
            for _ in range(items_per_task)
        ]
        right = torch.cat(rows).double()
        found.append(
            Acceptance(
                task=task_name(task),
                num_rows=len(right),
                shares=tuple(right.mean(dim=0).tolist()),
                length=1 + float(right.cumprod(dim=1).sum(dim=1).mean()),
            )
        )
    return found


def _rows_right(text: TextModel, mtp: MtpLayers, example: Encoded) -> torch.Tensor:
    """[rows, layers] bool: which guesses are right, at rows of the answer that all layers score."""
    batch = packed_batch([example.token_ids.tolist()])
    hidden = text(batch)
    right, known = [], []
    for index in range(NUM_MTP_LAYERS):
        read, targets = shifted_tokens(batch, 1 + index), shifted_tokens(batch, 2 + index)
        drafted = mtp(
            index, embeddings=text.embed_tokens(read.token_ids), hidden=hidden, batch=batch
        )
        right.append(text.logits(drafted).argmax(dim=-1) == targets.token_ids)
        known.append(targets.is_known)
    counted = torch.stack(known).all(dim=0)
    # The row before the answer is given the answer's first token.
    counted[: example.prompt_len - 1] = False
    return torch.stack(right, dim=1)[counted]

"""Examples to batches: padded to a few lengths, so that sequences of one length attend together.

A batch holds some of every task. It is a function of the seed and of its number alone, so that a
run can go on where an earlier one stopped, and workers can make batches beside each other. Padding
stands behind a sequence, where no other row sees it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mimo_engine.config.model import AttentionKind
from mimo_engine.demo.encoding import Clip, Encoded, ExampleEncoder, Picture
from mimo_engine.demo.task import Example, Task, task_name
from mimo_engine.kernels.attention import AttentionGroup
from mimo_engine.model.batch import ForwardBatch, MediaRows

__all__ = ["LENGTHS", "BatchSource", "Mix", "TrainingBatch", "collate", "padded_len"]

LENGTHS = (64, 112, 192, 320, 512, 768, 1024, 1536, 2048, 4096)
"""What sequences are padded to."""
_FRAMES = 384
"""What the mel frames of a clip are padded to a multiple of: whole groups of codes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingBatch:
    """Tensors of one batch, N rows: sequences end to end, those of one length side by side."""

    shapes: tuple[tuple[int, int], ...]
    """(sequences, length) of each group, in order; products sum to N."""
    token_ids: torch.Tensor
    """[N] int64."""
    weights: torch.Tensor
    """[N] fp32: what guessing the row's token counts; 0 for padding."""
    tasks: torch.Tensor
    """[N] int64: number of the task that the row belongs to."""
    is_real: torch.Tensor
    """[N] bool: no padding."""
    grids: tuple[tuple[int, int, int], ...] = ()
    """One for all pictures of one size."""
    patches: torch.Tensor | None = None
    vision_rows: torch.Tensor | None = None
    """[M] int64 rows of the batch, and for each of them its row of the tower's output:"""
    vision_sources: torch.Tensor | None = None
    mels: tuple[torch.Tensor, ...] = ()
    """Clips by padded length: fp32 [clips, frames, mels] each, zeros behind a clip's end."""
    num_frames: torch.Tensor | None = None
    """[clips] int64: frames of each, in the order of `mels`."""
    audio_rows: torch.Tensor | None = None
    audio_sources: torch.Tensor | None = None

    def to(self, device: torch.device) -> TrainingBatch:
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TrainingBatch:
        """What torch's loader calls."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainingBatch:
        tensors = {
            field.name: change(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), torch.Tensor)
        }
        return replace(self, **tensors, mels=tuple(map(change, self.mels)))

    def forward_batch(self, media: MediaRows | None) -> ForwardBatch:
        """For the text model, without a cache."""
        device = self.token_ids.device
        groups, positions, start = [], [], 0
        for count, length in self.shapes:
            rows = torch.arange(start, start + count * length, device=device).view(count, length)
            zeros = torch.zeros(count, dtype=torch.int64, device=device)
            groups.append(
                AttentionGroup(rows=rows, first_position=zeros, kv_slots=rows, kv_first=zeros)
            )
            positions.append(torch.arange(length, device=device).repeat(count))
            start += count * length
        return ForwardBatch(
            token_ids=self.token_ids,
            positions=torch.cat(positions),
            groups=dict.fromkeys(AttentionKind, groups),
            media=media,
        )


def padded_len(length: int) -> int:
    """The length that a sequence is padded to."""
    for limit in LENGTHS:
        if length <= limit:
            return limit
    raise ValueError(f"an example has {length} tokens; at most {LENGTHS[-1]} are taken")


def collate(examples: Sequence[Encoded], tasks: Sequence[int], *, pad_id: int) -> TrainingBatch:
    """One batch of all `examples`; tasks: the number of each one's task."""
    order = sorted(range(len(examples)), key=lambda i: padded_len(len(examples[i].token_ids)))
    lengths = [padded_len(len(examples[i].token_ids)) for i in order]
    total = sum(lengths)
    token_ids = np.full(total, pad_id, np.int64)
    weights = np.zeros(total, np.float32)
    task_ids = np.zeros(total, np.int64)
    is_real = np.zeros(total, np.bool_)
    pictures: list[tuple[Picture, int]] = []
    clips: list[tuple[Clip, int]] = []
    start = 0
    for index, length in zip(order, lengths, strict=True):
        one = examples[index]
        rows = slice(start, start + len(one.token_ids))
        token_ids[rows], weights[rows], is_real[rows] = one.token_ids, one.weights, True
        task_ids[start : start + length] = tasks[index]
        pictures += [(picture, start) for picture in one.pictures]
        clips += [(clip, start) for clip in one.clips]
        start += length
    return TrainingBatch(
        shapes=tuple((len(list(run)), length) for length, run in itertools.groupby(lengths)),
        token_ids=torch.from_numpy(token_ids),
        weights=torch.from_numpy(weights),
        tasks=torch.from_numpy(task_ids),
        is_real=torch.from_numpy(is_real),
        **_vision(pictures),
        **_audio(clips),
    )


def _vision(pictures: Sequence[tuple[Picture, int]]) -> dict[str, Any]:
    """Pictures by size: each frame is encoded by itself, so those of one size are one grid."""
    if not pictures:
        return {}
    ordered = sorted(pictures, key=lambda item: item[0].vision.grid[1:])
    grids, rows, sources, num_rows = [], [], [], 0
    for size, run in itertools.groupby(ordered, key=lambda item: item[0].vision.grid[1:]):
        num_frames = 0
        for picture, start in run:
            rows.append(picture.positions + start)
            sources.append(picture.rows + num_rows)
            num_frames += picture.vision.grid[0]
            # A token a merge unit of 2 x 2 patches.
            num_rows += len(picture.vision.patches) // 4
        grids.append((num_frames, *size))
    patches = torch.from_numpy(np.concatenate([item[0].vision.patches for item in ordered]))
    return {
        "grids": tuple(grids),
        "patches": patches.view(torch.bfloat16) if patches.dtype == torch.uint16 else patches,
        "vision_rows": torch.from_numpy(np.concatenate(rows)),
        "vision_sources": torch.from_numpy(np.concatenate(sources)),
    }


def _audio(clips: Sequence[tuple[Clip, int]]) -> dict[str, Any]:
    """Clips by padded length. A token is a group of codes, 16 frames; each clip has whole ones."""
    if not clips:
        return {}
    ordered = sorted(clips, key=lambda item: _padded_frames(item[0]))
    mels, rows, sources, num_rows = [], [], [], 0
    for num_frames, run in itertools.groupby(ordered, key=lambda item: _padded_frames(item[0])):
        padded = []
        for clip, start in run:
            rows.append(clip.positions + start)
            sources.append(clip.rows + num_rows)
            num_rows += num_frames // 16
            padded.append(np.pad(clip.mel, ((0, num_frames - len(clip.mel)), (0, 0))))
        mels.append(torch.from_numpy(np.stack(padded)))
    return {
        "mels": tuple(mels),
        "num_frames": torch.tensor([len(clip.mel) for clip, _ in ordered]),
        "audio_rows": torch.from_numpy(np.concatenate(rows)),
        "audio_sources": torch.from_numpy(np.concatenate(sources)),
    }


def _padded_frames(clip: Clip) -> int:
    return -(-len(clip.mel) // _FRAMES) * _FRAMES


Mix = Mapping[str, float]
"""How often a task comes, by `task_name`; 1 where it is not named."""


class BatchSource(Dataset[TrainingBatch]):
    """Batch number i, for any i."""

    def __init__(
        self,
        tasks: Sequence[Task],
        encoder: ExampleEncoder,
        *,
        mix: Mix,
        max_tokens: int,
        pad_id: int,
        seed: int,
    ) -> None:
        """max_tokens: of a batch, padding included; its last example may exceed it."""
        names = [task_name(task) for task in tasks]
        unknown = sorted(mix.keys() - set(names))
        if unknown:
            raise ValueError(f"no tasks of the names {', '.join(unknown)}")
        self._tasks = tasks
        self._shares = [mix.get(name, 1.0) for name in names]
        self._encoder = encoder
        self._max_tokens = max_tokens
        self._pad_id = pad_id
        self._seed = seed

    def __getitem__(self, index: int) -> TrainingBatch:
        rng = random.Random(f"batch {self._seed} {index}")
        numbers = range(len(self._tasks))
        examples: list[Encoded] = []
        tasks: list[int] = []
        num_tokens = 0
        while num_tokens < self._max_tokens:
            number = rng.choices(numbers, self._shares)[0]
            example: Example = self._tasks[number].make(rng, "train")
            examples.append(self._encoder.encode(example))
            tasks.append(number)
            num_tokens += padded_len(len(examples[-1].token_ids))
        return collate(examples, tasks, pad_id=self._pad_id)

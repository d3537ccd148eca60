"""The towers at work: features in, rows of the language model out, kept by content hash.

Only rank 0 has one of these; the other ranks are sent the rows that a step reads. Which units are
encoded when, and what may be forgotten, is the scheduler's decision (cache/encoder.py); here are
the tensors. Features lie in shared memory until their item is whole; what was encoded lies in host
memory, where a long video has room, and goes to the device with the steps that read it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mimo_engine.cache.encoder import EncodeTask
from mimo_engine.messages import MediaItem
from mimo_engine.model.audio import encode_audio
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer
from mimo_engine.model.vision import MiMoVisionTransformer
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.worker.inputs import MediaPiece

__all__ = ["MediaEncoder", "Towers"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Towers:
    """The three of a checkpoint, on one device."""

    vision: MiMoVisionTransformer
    audio_tokenizer: MiMoAudioTokenizer
    audio_encoder: MiMoAudioEncoder


@dataclass(slots=True)
class _Item:
    item: MediaItem
    features: SharedArrays | None
    """None once the item is whole."""
    rows: torch.Tensor | None = None
    """[num_rows, H] in host memory, from the first unit on."""


class MediaEncoder:
    """Not thread-safe. dtype: of the rows; device: where the towers are and rows are read."""

    def __init__(
        self, towers: Towers, *, hidden_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._towers = towers
        self._hidden_size = hidden_size
        self._dtype = dtype
        self._device = device
        self._items: dict[bytes, _Item] = {}

    @property
    def num_items(self) -> int:
        """Items with features or rows."""
        return len(self._items)

    def add(self, items: Sequence[MediaItem], features: Sequence[SharedArrays]) -> None:
        """Take over the features of a request's media; those of items known already are let go."""
        for item, shared in zip(items, features, strict=True):
            shared.close()
            known = self._items.get(item.content_hash)
            if known is None:
                self._items[item.content_hash] = _Item(item, shared)
            elif known.rows is None and known.features is None:
                known.features = shared

    def forget(self, content_hashes: Sequence[bytes]) -> None:
        for content_hash in content_hashes:
            self._items.pop(content_hash, None)

    def encode(self, tasks: Sequence[EncodeTask]) -> dict[bytes, str]:
        """Run the units of `tasks`. Returns, by content hash, why an item cannot be encoded."""
        errors = {}
        for task in tasks:
            known = self._items[task.content_hash]
            try:
                problem = self._encode(known, task)
            except torch.cuda.OutOfMemoryError:
                _logger.exception("no memory to encode %s", known.item.kind)
                problem = "the GPU has no memory left to encode this: send it smaller"
            if problem is not None:
                errors[task.content_hash] = problem
        return errors

    def read(self, pieces: Sequence[MediaPiece]) -> torch.Tensor:
        """The rows of `pieces`, one after the other: [M, H] on the device."""
        parts = []
        for piece in pieces:
            rows = self._items[piece.content_hash].rows
            assert rows is not None, "a row is read before it is encoded"
            parts.append(rows[piece.first_row : piece.first_row + piece.num_rows])
        return torch.cat(parts).to(self._device, non_blocking=True)

    def _encode(self, known: _Item, task: EncodeTask) -> str | None:
        item = known.item
        if known.features is None:
            # A step that was interrupted had done it already.
            return None
        if known.rows is None:
            known.rows = torch.empty(item.num_rows, self._hidden_size, dtype=self._dtype)
        encode = self._encode_vision if item.kind == "vision" else self._encode_audio
        rows = encode(known, task)
        first = task.first_unit * item.unit_rows
        last = min(first + task.num_units * item.unit_rows, item.num_rows)
        assert rows.shape == (last - first, self._hidden_size), (rows.shape, item)
        if not bool(rows.isfinite().all()):
            return f"the {item.kind} tower computed NaN or infinite values: try --dtype float32"
        known.rows[first:last] = rows
        if last == item.num_rows:
            known.features = None
        return None

    def _encode_vision(self, known: _Item, task: EncodeTask) -> torch.Tensor:
        assert known.item.grid is not None
        assert known.features is not None
        _, height, width = known.item.grid
        first, count = task.first_unit * height * width, task.num_units * height * width
        patches = _tensor(known.features, 0)[first : first + count]
        grid = (task.num_units, height, width)
        return self._towers.vision(patches.to(self._device), [grid])

    def _encode_audio(self, known: _Item, task: EncodeTask) -> torch.Tensor:
        assert known.features is not None
        units = range(task.first_unit, task.first_unit + task.num_units)
        segments = [_tensor(known.features, unit).to(self._device) for unit in units]
        return encode_audio(self._towers.audio_tokenizer, self._towers.audio_encoder, segments)


def _tensor(features: SharedArrays, index: int) -> torch.Tensor:
    """An array as a tensor over the same memory."""
    array = features.arrays[index]
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if array.dtype == np.uint16 else tensor

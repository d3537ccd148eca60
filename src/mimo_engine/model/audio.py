"""Sound, end to end: segments of log-mel frames to rows of the language model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer

__all__ = ["encode_audio"]


def encode_audio(
    tokenizer: MiMoAudioTokenizer, encoder: MiMoAudioEncoder, segments: Sequence[torch.Tensor]
) -> torch.Tensor:
    """Consecutive segments of one clip, [T_i, mels] fp32 each -> [tokens, out_hidden_size].

    Each segment goes through both towers by itself, so that a clip encoded in several calls has the
    rows, bit for bit, of one call. Only the clip's last segment may end inside a group.
    """
    codes = [rows[:, : encoder.num_channels] for rows in tokenizer(segments)]
    assert all(len(rows) % encoder.group_size == 0 for rows in codes[:-1]), list(map(len, codes))
    return torch.cat([encoder(rows) for rows in codes])

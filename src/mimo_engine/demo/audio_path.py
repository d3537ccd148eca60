"""Sound to rows of the language model while the audio tokenizer is still learned, and afterwards.

    learning     x[frame] = bridge(features[frame] + noise)     gradients reach the tokenizer
    fitted       x[frame] = sum of one embedding a channel       as served; the tokenizer is frozen

and then, in both, the audio encoder's groups and projection. `fit` is the step between: codebooks
by k-means over features, and embeddings that begin as the bridge of their codebook's entries, so
that the sum is about what the bridge gave and what was learned goes on. The noise stands for what
quantising will take away. While it learns, the features must also tell the log-mels that they were
made of: the tasks of the demo alone would leave out what they do not ask for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.config.media import MediaConfig
from mimo_engine.demo.residual_kmeans import residual_kmeans
from mimo_engine.kernels.residual_vq import residual_codes
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import Codebook, MiMoAudioTokenizer

__all__ = ["AudioPath", "Heard"]

_NOISE = 0.3
"""Of features whose deviation is about 1."""
_MEL_MEAN, _MEL_DEVIATION = -6.0, 3.0
"""About those of log-mels, for a loss of about 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """What a batch's clips give."""

    rows: torch.Tensor
    """[tokens, H]: of whole groups, clip after clip, padding included."""
    mel_loss: torch.Tensor | None
    """While the tokenizer is learned: mean squared error of the log-mels."""


class AudioPath(nn.Module):
    """Audio tokenizer and encoder, and what is thrown away once the first is fitted."""

    def __init__(self, media: MediaConfig) -> None:
        super().__init__()
        size = media.audio_tokenizer.d_model
        self.tokenizer = MiMoAudioTokenizer(media.audio_tokenizer)
        self.encoder = MiMoAudioEncoder(media.audio)
        self.bridge = nn.Linear(size, media.audio.hidden_size, bias=False)
        self._frames_per_code = media.audio_tokenizer.stride * media.audio_tokenizer.pool
        self.mel_head = nn.Linear(size, self._frames_per_code * media.audio_tokenizer.num_mels)
        self._sizes = media.audio_tokenizer.codebook_sizes
        self._group_size = media.audio.group_size
        self.is_fitted = False

    def forward(self, mels: Sequence[torch.Tensor], num_frames: torch.Tensor) -> Heard:
        """mels: clips by padded length, [clips, frames, mels] fp32 each; num_frames [all clips]."""
        features, losses, start = [], [], 0
        for mel in mels:
            frames = num_frames[start : start + len(mel)]
            start += len(mel)
            found = self._features(mel)
            if not self.is_fitted:
                losses.append(self._mel_loss(found, mel, frames))
            features.append(self._filled(found, frames).flatten(0, 1))
        embedded = self._embed(torch.cat(features))
        groups = self.encoder.input_local_transformer(embedded.unflatten(0, (-1, self._group_size)))
        rows = self.encoder.projection(groups.flatten(1))
        mel_loss = torch.stack(losses).mean() if losses else None
        return Heard(rows=rows, mel_loss=mel_loss)

    @torch.no_grad()
    def features(self, mels: Sequence[torch.Tensor], num_frames: torch.Tensor) -> torch.Tensor:
        """[n, d] fp32 of all clips, without padding."""
        found, start = [], 0
        for mel in mels:
            per_clip = self._features(mel)
            for clip, frames in zip(per_clip, num_frames[start:].tolist(), strict=False):
                found.append(clip[: -(-frames // self._frames_per_code)])
            start += len(mel)
        return torch.cat(found).float()

    @torch.no_grad()
    def freeze(self) -> None:
        """End the tokenizer's learning. Its weights are rounded as they will be stored, before
        anything is fitted to what they give."""
        for parameter in self.tokenizer.parameters():
            parameter.copy_(parameter.bfloat16())
            parameter.requires_grad_(False)
        for unused in (self.bridge, self.mel_head):
            unused.requires_grad_(False)
        self.is_fitted = True

    @torch.no_grad()
    def fit(self, features: torch.Tensor, seed: int) -> float:
        """Fill codebooks and embeddings from features [n, d] of the frozen tokenizer.

        Returns the part of their variance that is lost.
        """
        assert self.is_fitted, "freeze comes first"
        tables = residual_kmeans(features, self._sizes, seed=seed)
        for codebook, embedding, table in zip(
            self._codebooks(), self.encoder.speech_embeddings, tables, strict=True
        ):
            codebook.embed.copy_(table)
            rows = F.linear(table, self.bridge.weight)
            cast("nn.Embedding", embedding).weight[: len(table)] = rows
        codes = residual_codes(features, tables)
        decoded = sum(table[codes[:, level]] for level, table in enumerate(tables))
        spread = features - features.mean(dim=0)
        return float((features - decoded).square().sum() / spread.square().sum())

    def _features(self, mel: torch.Tensor) -> torch.Tensor:
        """[clips, frames, mels] -> [clips, codes, d]: the tokenizer's own forward."""
        encoder = self.tokenizer.encoder
        if not self.is_fitted:
            return encoder.equal_segments(mel)
        # fp32 as on a CPU, where the demo is mostly served.
        with torch.no_grad(), torch.autocast(mel.device.type, enabled=False):
            return encoder.equal_segments(mel)

    def _embed(self, features: torch.Tensor) -> torch.Tensor:
        """[frames, d] -> [frames, width of the encoder]."""
        if self.is_fitted:
            tables = [codebook.embed for codebook in self._codebooks()]
            return self.encoder.embed(
                residual_codes(features, tables)[:, : self.encoder.num_channels]
            )
        noise = torch.randn_like(features) * _NOISE if self.training else 0.0
        return self.bridge(features + noise)

    def _filled(self, features: torch.Tensor, num_frames: torch.Tensor) -> torch.Tensor:
        """Codes behind a clip's end repeat its last one, as the audio encoder fills a group."""
        last = (num_frames + self._frames_per_code - 1) // self._frames_per_code - 1
        index = torch.arange(features.shape[1], device=features.device)
        index = torch.minimum(index[None], last[:, None])
        return features.gather(1, index[:, :, None].expand(-1, -1, features.shape[2]))

    def _mel_loss(
        self, features: torch.Tensor, mel: torch.Tensor, num_frames: torch.Tensor
    ) -> torch.Tensor:
        guessed = self.mel_head(features).unflatten(2, (self._frames_per_code, -1)).flatten(1, 2)
        error = (guessed.float() - (mel - _MEL_MEAN) / _MEL_DEVIATION).square().mean(dim=2)
        inside = torch.arange(mel.shape[1], device=mel.device) < num_frames[:, None]
        return (error * inside).sum() / inside.sum()

    def _codebooks(self) -> Iterable[Codebook]:
        return [module for module in self.tokenizer.modules() if isinstance(module, Codebook)]

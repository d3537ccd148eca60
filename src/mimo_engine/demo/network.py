"""The modules that are trained: the engine's own, put together, and how their weights begin."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from mimo_engine.checkpoint.tower_params import Tower
from mimo_engine.demo.audio_path import AudioPath
from mimo_engine.demo.batches import TrainingBatch
from mimo_engine.demo.dense_experts import use_dense_experts
from mimo_engine.demo.geometry import NUM_MTP_LAYERS, Geometry
from mimo_engine.model.batch import ForwardBatch, MediaRows
from mimo_engine.model.mtp import MtpLayers
from mimo_engine.model.text import TextModel
from mimo_engine.model.vision import MiMoVisionTransformer

__all__ = ["DemoNetwork", "Hidden", "autocast"]

_ZERO_AT_FIRST = (
    "o_proj.weight",
    "out_proj.weight",
    "down_proj.weight",
    "fc2.weight",
    "attn.proj.weight",
    "_codebook.embed",
)
"""What a layer adds to the residual stream: at first it adds nothing. Codebooks come later."""
_FIRST_SINKS = {"attention_sink_bias": 4.5, "sinks": 3.0}
"""At first they leave a window's 32 tokens, or 9 patches, some two fifths of the weight: a head
that finds nothing says little, and training builds on that. From sinks of 0 it never did: dropped
later, they were not missed."""
_UNSEEN = 0.25
"""The part of a picture's rows that a training step takes from the language model. What is missing
must then be known to the rows beside it, so the tower learns to carry it there: along rows and
columns. Without that the language model joins the rows itself, and the tower's windows are idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hidden:
    """What one pass of the backbone gives."""

    states: torch.Tensor
    """[N, H], after the final norm."""
    batch: ForwardBatch
    mel_loss: torch.Tensor | None
    """See `AudioPath`."""


class DemoNetwork(nn.Module):
    """Text model, draft layers, vision tower, and the path of sound."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.text = TextModel(geometry.text)
        self.mtp = MtpLayers(geometry.text, NUM_MTP_LAYERS)
        self.vision = MiMoVisionTransformer(geometry.media.vision)
        self.audio = AudioPath(geometry.media)
        self.load = use_dense_experts(self.text)
        for name, parameter in self.named_parameters():
            # The bias is moved by the experts' load, codebooks are fitted.
            is_learned = not name.endswith(("e_score_correction_bias", "_codebook.embed"))
            parameter.requires_grad_(is_learned)

    @torch.no_grad()
    def begin(self, seed: int) -> None:
        """First weights, a function of `seed`."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            parameter.copy_(_first_value(name, parameter, generator))

    def forward(self, batch: TrainingBatch) -> Hidden:
        self.load.is_counted = batch.is_real
        rows: list[torch.Tensor] = []
        embeddings: list[torch.Tensor] = []
        mel_loss = None
        if batch.patches is not None and batch.vision_rows is not None:
            rows.append(batch.vision_rows)
            seen = self.vision(batch.patches, batch.grids)[batch.vision_sources].float()
            if self.training:
                seen = seen * (torch.rand(len(seen), 1, device=seen.device) >= _UNSEEN)
            embeddings.append(seen)
        if batch.num_frames is not None and batch.audio_rows is not None:
            rows.append(batch.audio_rows)
            heard = self.audio(batch.mels, batch.num_frames)
            embeddings.append(heard.rows[batch.audio_sources].float())
            mel_loss = heard.mel_loss
        media = None
        if rows:
            media = MediaRows(rows=torch.cat(rows), embeddings=torch.cat(embeddings))
        forward_batch = batch.forward_batch(media)
        return Hidden(states=self.text(forward_batch), batch=forward_batch, mel_loss=mel_loss)

    def parameters_of(self, tower: Tower) -> dict[str, torch.Tensor]:
        """A tower's parameters by the names of `tower_params`."""
        module = {
            Tower.VISION: self.vision,
            Tower.AUDIO_ENCODER: self.audio.encoder,
            Tower.AUDIO_TOKENIZER: self.audio.tokenizer,
        }[tower]
        return dict(module.named_parameters())

    def text_parameters(self) -> dict[str, torch.Tensor]:
        """Those of the text model and the draft layers by the names of `parameter_specs`."""
        drafts = {f"mtp.{name}": value for name, value in self.mtp.named_parameters()}
        return {**dict(self.text.named_parameters()), **drafts}


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """bf16 products on a GPU; fp32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _first_value(name: str, parameter: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if name.endswith((".bias", "e_score_correction_bias")):
        return torch.zeros(parameter.shape)
    if (sink := _FIRST_SINKS.get(name.rpartition(".")[2])) is not None:
        return torch.full(parameter.shape, sink)
    if parameter.dim() == 1:
        return torch.ones(parameter.shape)
    if name.endswith(_ZERO_AT_FIRST):
        return torch.zeros(parameter.shape)
    noise = torch.randn(parameter.shape, generator=generator)
    if name.endswith("embed_tokens.weight"):
        return 0.5 * noise
    if name.endswith("lm_head.weight"):
        return 0.02 * noise
    if name.endswith("mlp.gate.weight"):
        return 0.05 * noise
    if name.endswith("conv1.weight"):
        # Log-mels lie around ten.
        noise = 0.1 * noise
    fan_in = parameter.shape[-1] if name.startswith("text.") else math.prod(parameter.shape[1:])
    return noise / math.sqrt(fan_in)

"""The audio encoder: from residual codes to rows of the language model (audio.md 4).

    x[frame] = sum of one embedding a channel
    for each layer:  x += attention(norm(x));  x += mlp(norm(x))     inside a group of frames
    row[group] = projection(the group's frames side by side)

A group is four frames, so attention is four queries by four keys, and every group is independent
of the others. Attribute names are the checkpoint's without the `audio_encoder.` before most.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.config.audio import AudioEncoderConfig
from mimo_engine.kernels.rope import apply_rope, rope_tables
from mimo_engine.layers.weight_format import Weight, assign_weights

__all__ = ["MiMoAudioEncoder"]


class RoundedRMSNorm(nn.Module):
    """RMSNorm whose quotient is rounded to x's dtype before the weight, as Qwen2's is.

    The language model's (layers/norm.py) rounds once, after the weight.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self._eps)
        return self.weight * (wide * scale).to(x.dtype)


class GroupAttention(nn.Module):
    """Attention among the frames of a group; positions count from the group's first."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        width = config.num_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width)
        self.k_proj = nn.Linear(config.hidden_size, width)
        self.v_proj = nn.Linear(config.hidden_size, width)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)
        self._head_dim = config.head_dim
        self._is_causal = config.is_causal

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """x [G, S, H] -> [G, S, H]; rope: (cos, sin) of all G * S frames, each [G * S, D / 2]."""
        num_groups, size, _ = x.shape
        flat = (num_groups * size, -1, self._head_dim)
        heads = (num_groups, size, -1, self._head_dim)
        q = apply_rope(self.q_proj(x).view(flat), *rope).view(heads).transpose(1, 2)
        k = apply_rope(self.k_proj(x).view(flat), *rope).view(heads).transpose(1, 2)
        v = self.v_proj(x).view(heads).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(2, 3)).float() * self._head_dim**-0.5
        if self._is_causal:
            future = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        out = torch.matmul(scores.softmax(dim=-1).to(v.dtype), v)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GroupLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RoundedRMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = GroupAttention(config)
        self.post_attention_layernorm = RoundedRMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = GatedMlp(config.hidden_size, config.intermediate_size)

    def forward(self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """[G, S, H] -> [G, S, H]."""
        x = x + self.self_attn(self.input_layernorm(x), rope)
        return x + self.mlp(self.post_attention_layernorm(x))


class GroupTransformer(nn.Module):
    """The local transformer: [G, S, H] -> [G, S, H]."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(GroupLayer(config) for _ in range(config.num_layers))
        norm = RoundedRMSNorm(config.hidden_size, config.norm_eps)
        self.norm = norm if config.has_final_norm else nn.Identity()
        self._head_dim = config.head_dim
        self._rope_theta = config.rope_theta

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1], device=x.device).repeat(x.shape[0])
        # Not rounded to bf16, unlike the tokenizer's: these frequencies stay fp32 everywhere.
        cos, sin = rope_tables(positions, self._head_dim, self._rope_theta)
        rope = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.layers:
            x = layer(x, rope)
        return self.norm(x)


class Projection(nn.Module):
    """A group's frames side by side to one row; a single linear is `mlp.0` alone.

    The inner width is four times the input's, as it is published: 4096 -> 16384 -> 4096.
    """

    def __init__(self, in_size: int, out_size: int, num_layers: int) -> None:
        super().__init__()
        width = 4 * in_size
        self.mlp = nn.Sequential(nn.Linear(in_size, out_size, bias=False))
        if num_layers == 2:
            self.mlp = nn.Sequential(
                nn.Linear(in_size, width, bias=False),
                nn.GELU(),
                nn.Linear(width, out_size, bias=False),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(x)


class MiMoAudioEncoder(nn.Module):
    """Codes of consecutive frames to rows that replace the embeddings of audio placeholders."""

    def __init__(self, config: AudioEncoderConfig) -> None:
        super().__init__()
        self.speech_embeddings = nn.ModuleList(
            nn.Embedding(num_rows, config.hidden_size) for num_rows in config.vocab_sizes
        )
        self.input_local_transformer = GroupTransformer(config)
        self.projection = Projection(
            config.group_size * config.hidden_size, config.out_hidden_size, config.projection_layers
        )
        self.group_size = config.group_size
        self.num_channels = config.num_channels

    @classmethod
    def from_weights(
        cls, config: AudioEncoderConfig, weights: Mapping[str, Weight]
    ) -> MiMoAudioEncoder:
        """An encoder that holds `weights` without copying them."""
        with torch.device("meta"):
            model = cls(config)
        assign_weights(model, dict(weights))
        return model

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [P, channels] int64, P >= 1 -> [ceil(P / group_size), out_hidden_size].

        An incomplete last group is filled with its last frame. Segments of a clip may come one by
        one where each but the last is a multiple of a group, as the released ones are.
        """
        num_frames, num_channels = codes.shape
        assert num_channels == self.num_channels, (num_channels, self.num_channels)
        assert num_frames > 0
        missing = -num_frames % self.group_size
        codes = torch.cat((codes, codes[-1:].expand(missing, -1)))
        x = self.embed(codes).unflatten(0, (-1, self.group_size))
        return self.projection(self.input_local_transformer(x).flatten(1))

    def embed(self, codes: torch.Tensor) -> torch.Tensor:
        """codes [P, channels] -> [P, H]: the channels' rows, added in order in their dtype."""
        tables = iter(self.speech_embeddings)
        x = next(tables)(codes[:, 0])
        for channel, table in enumerate(tables, start=1):
            x = x + table(codes[:, channel])
        return x

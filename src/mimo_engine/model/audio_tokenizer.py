"""The audio tokenizer: from log-mel frames to residual codes (audio.md 3).

    x = gelu(conv2(gelu(conv1(mel))))                      half as many frames
    for each layer:  x += attention(norm(x));  x += mlp(norm(x))
    x = norm(x + output of the skip layer)
    features = norm(gelu(pool(x)))                         half as many again
    codes = residual quantiser of features

A segment is at most a minute of sound, and its codes are a function of its frames alone: each is
encoded by itself, in products of its own shape, so what else a call brings cannot change one bit.
Attribute names are those of audio_tokenizer/model.safetensors. No part of the published "dynamic"
rope update is here: it is the identity for the only rope type that the configuration lets through
(audio.md 3.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.config.audio import AudioTokenizerConfig
from mimo_engine.kernels.dispatch import REFERENCE, Kernels
from mimo_engine.kernels.residual_vq import residual_codes
from mimo_engine.kernels.rope import apply_rope
from mimo_engine.kernels.segment_attention import SegmentPlan
from mimo_engine.layers.weight_format import Weight, assign_weights

__all__ = ["MiMoAudioTokenizer"]

Rope = tuple[torch.Tensor, torch.Tensor]


class FrameConv(nn.Module):
    """A convolution over frames [..., T, in] -> [..., ceil(T / stride), out].

    Output i sees inputs i * stride - left ... i * stride - left + kernel - 1; frames past either
    end are zeros. It is one matmul over the gathered frames, because cuDNN's fp32 convolutions are
    TF32 unless a global setting says otherwise.
    """

    def __init__(
        self, in_size: int, out_size: int, kernel: int, *, stride: int, left: int, has_bias: bool
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_size, in_size, kernel))
        self.bias = nn.Parameter(torch.empty(out_size)) if has_bias else None
        self._stride = stride
        self._left = left

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel = self.weight.shape[2]
        num_frames = x.shape[-2]
        last_start = (num_frames - 1) // self._stride * self._stride - self._left
        right = max(0, last_start + kernel - num_frames)
        frames = F.pad(x, (0, 0, self._left, right)).unfold(-2, kernel, self._stride)
        return F.linear(frames.flatten(-2), self.weight.flatten(1), self.bias)


class TokenizerAttention(nn.Module):
    """Rotary attention inside a segment; keys have no bias."""

    def __init__(self, config: AudioTokenizerConfig, window: int | None, kernels: Kernels) -> None:
        super().__init__()
        size = config.d_model
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self._kernels = kernels
        self._head_dim = config.head_dim
        self._left = window
        self._right = 0 if config.is_causal else None

    def forward(self, x: torch.Tensor, rope: Rope, lengths: Sequence[int]) -> torch.Tensor:
        """x [S, L, d] -> [S, L, d]; rope: (cos, sin), each [S * L, head_dim / 2]; lengths: L of
        each of the S segments."""
        heads = (x.shape[0] * x.shape[1], -1, self._head_dim)
        out = self._kernels.segment_attention(
            apply_rope(self.q_proj(x).view(heads), *rope),
            apply_rope(self.k_proj(x).view(heads), *rope),
            self.v_proj(x).view(heads),
            lengths,
            left=self._left,
            right=self._right,
            softmax_scale=self._head_dim**-0.5,
        )
        return self.out_proj(out.flatten(1).view(x.shape))


class TokenizerLayer(nn.Module):
    """Pre-norm attention and MLP; `final_layer_norm` is the MLP's, despite its name."""

    def __init__(self, config: AudioTokenizerConfig, window: int | None, kernels: Kernels) -> None:
        super().__init__()
        self.self_attn = TokenizerAttention(config, window, kernels)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(self, x: torch.Tensor, rope: Rope, lengths: Sequence[int]) -> torch.Tensor:
        """x [S, L, d] -> [S, L, d]."""
        x = x + self.self_attn(self.self_attn_layer_norm(x), rope, lengths)
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))


class Codebook(nn.Module):
    """The entries of one level, [K, d]: fp32 whatever the model computes in, and not learned."""

    def __init__(self, num_entries: int, size: int) -> None:
        super().__init__()
        table = torch.empty(num_entries, size, dtype=torch.float32)
        self.embed = nn.Parameter(table, requires_grad=False)


class ResidualQuantiser(nn.Module):
    """Features [P, d] -> codes [P, levels]."""

    def __init__(self, config: AudioTokenizerConfig) -> None:
        super().__init__()
        levels = [Codebook(num_entries, config.d_model) for num_entries in config.codebook_sizes]
        layers = nn.ModuleList(nn.ModuleDict({"_codebook": level}) for level in levels)
        self.vq = nn.ModuleDict({"layers": layers})

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        levels = [module for module in self.modules() if isinstance(module, Codebook)]
        return residual_codes(features, [level.embed for level in levels])


class TokenizerEncoder(nn.Module):
    """Everything that the tokenizer's file holds for input: stem, layers, pool, quantiser."""

    def __init__(self, config: AudioTokenizerConfig, kernels: Kernels) -> None:
        super().__init__()
        size, kernel = config.d_model, config.kernel_size
        left = kernel // 2
        self.conv1 = FrameConv(config.num_mels, size, kernel, stride=1, left=left, has_bias=True)
        self.conv2 = FrameConv(size, size, kernel, stride=config.stride, left=left, has_bias=True)
        self.layers = nn.ModuleList(
            TokenizerLayer(config, window, kernels) for window in config.windows
        )
        self.layer_norm = nn.LayerNorm(size)
        pool = FrameConv(size, size, config.pool, stride=config.pool, left=0, has_bias=False)
        self.down_sample_layer = nn.Sequential(pool, nn.GELU())
        self.down_sample_norm = nn.LayerNorm(size)
        self.quantizer = ResidualQuantiser(config)
        self._num_heads = config.num_heads
        self._skip_layer = config.skip_layer
        self._inv_freq = rotary_frequencies(config)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [T, mels] of one segment, T >= 1 -> features [P, d], before the quantiser."""
        return self.equal_segments(mel[None])[0]

    def equal_segments(self, mel: torch.Tensor) -> torch.Tensor:
        """mel [S, T, mels] of S segments -> features [S, P, d]. Training's way in: in serving each
        segment has products of its own shape."""
        x = F.gelu(self.conv1(mel.to(self.conv1.weight.dtype)))
        x = F.gelu(self.conv2(x))
        rope, lengths = self._rope(x), self._plan(x)
        skipped = None
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, lengths)
            if index == self._skip_layer:
                skipped = x
        assert skipped is not None
        x = self.layer_norm(x + skipped)
        return self.down_sample_norm(self.down_sample_layer(x))

    def _plan(self, x: torch.Tensor) -> SegmentPlan:
        """Of the S segments of x [S, L, d], for the attention of every layer."""
        return SegmentPlan.of(
            [x.shape[1]] * x.shape[0],
            num_heads=self._num_heads,
            num_kv_heads=self._num_heads,
            device=x.device,
        )

    def _rope(self, x: torch.Tensor) -> Rope:
        """(cos, sin), each [S * L, head_dim / 2], in x's dtype: published code rounds them so."""
        inv_freq = torch.tensor(self._inv_freq, dtype=torch.float32, device="cpu")
        # The copy does not wait for what the device still has to do for the segment before.
        inv_freq = inv_freq.to(x.device, non_blocking=True)
        positions = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)
        angles = (positions[:, None] * inv_freq).repeat(x.shape[0], 1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class MiMoAudioTokenizer(nn.Module):
    """Segments of log-mel frames to codes. Weights are bf16 or fp32, codebooks always fp32."""

    def __init__(self, config: AudioTokenizerConfig, kernels: Kernels = REFERENCE) -> None:
        super().__init__()
        self.encoder = TokenizerEncoder(config, kernels)

    @classmethod
    def from_weights(
        cls,
        config: AudioTokenizerConfig,
        weights: Mapping[str, Weight],
        kernels: Kernels = REFERENCE,
    ) -> MiMoAudioTokenizer:
        """A tokenizer that holds `weights` without copying them; codebooks are copied if
        `config.bf16_tables` has them rounded."""
        with torch.device("meta"):
            model = cls(config, kernels)
        assign_weights(model, dict(weights))
        if config.bf16_tables:
            for module in model.modules():
                if isinstance(module, Codebook):
                    rounded = module.embed.to(torch.bfloat16).float()
                    module.embed = nn.Parameter(rounded, requires_grad=False)
        return model

    def features(self, segments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What the quantiser reads: [T_i, mels] fp32 -> [ceil(T_i / (stride * pool)), d] each."""
        return [self.encoder(mel) for mel in segments]

    @torch.no_grad()
    def forward(self, segments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """[T_i, mels] fp32, T_i >= 1 -> codes [ceil(T_i / (stride * pool)), levels] int64 each."""
        return [self.encoder.quantizer(features) for features in self.features(segments)]


def rotary_frequencies(config: AudioTokenizerConfig) -> list[float]:
    """Radians a position, one for each pair of dims, rounded to bf16 if `config.bf16_tables`."""
    size = config.head_dim
    exact = [config.rope_theta ** (-2 * pair / size) for pair in range(size // 2)]
    if not config.bf16_tables:
        return exact
    return torch.tensor(exact, dtype=torch.bfloat16, device="cpu").tolist()

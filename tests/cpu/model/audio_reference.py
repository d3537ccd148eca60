"""The audio towers once more, from their formulas: float64, numpy, one frame and query at a time.

Nothing here is shared with the package but the configuration classes. Weights are a mapping from
the names of the files to arrays.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np

from mimo_engine.config.audio import AudioEncoderConfig, AudioTokenizerConfig

Array = np.ndarray
Weights = Mapping[str, Array]
# Does query i see key j in this layer?
Visible = Callable[[int, int, int], bool]

ERF = np.vectorize(math.erf, otypes=[np.float64])


def gelu(x: Array) -> Array:
    return x * (1 + ERF(x / math.sqrt(2))) / 2


def linear(weights: Weights, name: str, x: Array) -> Array:
    out = x @ weights[f"{name}.weight"].T.astype(np.float64)
    bias = weights.get(f"{name}.bias")
    return out if bias is None else out + bias


def layer_norm(weights: Weights, name: str, x: Array) -> Array:
    centred = x - x.mean(axis=1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def rms_norm(weights: Weights, name: str, x: Array) -> Array:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-6) * weights[f"{name}.weight"]


def conv(
    weights: Weights, name: str, x: Array, *, stride: int, padding: int, num_frames: int
) -> Array:
    weight = weights[f"{name}.weight"].astype(np.float64)
    bias = weights.get(f"{name}.bias")
    out = np.zeros((num_frames, weight.shape[0]))
    for frame in range(num_frames):
        for tap in range(weight.shape[2]):
            source = frame * stride - padding + tap
            if 0 <= source < len(x):
                out[frame] += weight[:, :, tap] @ x[source]
        if bias is not None:
            out[frame] += bias
    return out


def rotate(head: Array, position: int, frequencies: Array) -> Array:
    half = len(head) // 2
    low, high = head[:half], head[half:]
    cos, sin = np.cos(position * frequencies), np.sin(position * frequencies)
    return np.concatenate((low * cos - high * sin, high * cos + low * sin))


def attention(
    q: Array,
    k: Array,
    v: Array,
    *,
    head_dim: int,
    frequencies: Array,
    visible: Callable[[int, int], bool],
) -> Array:
    out = np.zeros_like(q)
    for first in range(0, q.shape[1], head_dim):
        head = slice(first, first + head_dim)
        queries = [rotate(row, i, frequencies) for i, row in enumerate(q[:, head])]
        keys = np.stack([rotate(row, i, frequencies) for i, row in enumerate(k[:, head])])
        for i, query in enumerate(queries):
            seen = [j for j in range(len(keys)) if visible(i, j)]
            scores = keys[seen] @ query / math.sqrt(head_dim)
            shares = np.exp(scores - scores.max())
            out[i, head] = shares / shares.sum() @ v[seen, head]
    return out


def round_to_bf16(x: Array) -> Array:
    """Round to nearest even on the upper 16 bits of fp32."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)


def configured_mask(config: AudioTokenizerConfig) -> Visible:
    def visible(layer: int, i: int, j: int) -> bool:
        window = config.windows[layer]
        return (j <= i or not config.is_causal) and (window is None or i - j <= window)

    return visible


def tokenizer_features(
    config: AudioTokenizerConfig, weights: Weights, mel: Array, visible: Visible | None = None
) -> Array:
    """mel [T, mels] -> [ceil(ceil(T / 2) / 2), d]."""
    visible = visible or configured_mask(config)
    dims = np.arange(0, config.head_dim, 2)
    frequencies = config.rope_theta ** (-dims / config.head_dim)
    if config.bf16_tables:
        frequencies = round_to_bf16(frequencies)
    x = mel.astype(np.float64)
    x = gelu(conv(weights, "encoder.conv1", x, stride=1, padding=1, num_frames=len(x)))
    num_frames = (len(x) - 1) // 2 + 1
    x = gelu(conv(weights, "encoder.conv2", x, stride=2, padding=1, num_frames=num_frames))
    skipped = None
    for layer in range(config.num_layers):
        name = f"encoder.layers.{layer}"
        normed = layer_norm(weights, f"{name}.self_attn_layer_norm", x)
        attended = attention(
            *(linear(weights, f"{name}.self_attn.{part}_proj", normed) for part in "qkv"),
            head_dim=config.head_dim,
            frequencies=frequencies,
            visible=lambda i, j, layer=layer: visible(layer, i, j),
        )
        x = x + linear(weights, f"{name}.self_attn.out_proj", attended)
        normed = layer_norm(weights, f"{name}.final_layer_norm", x)
        x = x + linear(weights, f"{name}.fc2", gelu(linear(weights, f"{name}.fc1", normed)))
        if layer == config.skip_layer:
            skipped = x
    x = layer_norm(weights, "encoder.layer_norm", x + skipped)
    if len(x) % 2:
        x = np.concatenate((x, np.zeros((1, x.shape[1]))))
    name = "encoder.down_sample_layer.0"
    x = gelu(conv(weights, name, x, stride=2, padding=0, num_frames=len(x) // 2))
    return layer_norm(weights, "encoder.down_sample_norm", x)


def quantiser_distances(residual: Array, codebook: Array) -> Array:
    return ((residual[None] - codebook) ** 2).sum(axis=1)


def quantiser_codes(features: Array, codebooks: list[Array]) -> Array:
    """[P, d] -> [P, levels]."""
    codes = np.zeros((len(features), len(codebooks)), dtype=np.int64)
    for frame, residual in enumerate(features):
        for level, codebook in enumerate(codebooks):
            codes[frame, level] = quantiser_distances(residual, codebook).argmin()
            residual = residual - codebook[codes[frame, level]]
    return codes


def encoder_embeddings(config: AudioEncoderConfig, weights: Weights, codes: Array) -> Array:
    """codes [P, channels] -> [P, H]."""
    out = np.zeros((len(codes), config.hidden_size))
    for frame, row in enumerate(codes):
        for channel, code in enumerate(row):
            out[frame] += weights[f"speech_embeddings.{channel}.weight"][code]
    return out


def group_transformer(config: AudioEncoderConfig, weights: Weights, x: Array) -> Array:
    """The frames [S, H] of one group, after the final norm."""
    dims = np.arange(0, config.head_dim, 2)
    for layer in range(config.num_layers):
        name = f"input_local_transformer.layers.{layer}"
        normed = rms_norm(weights, f"{name}.input_layernorm", x)
        attended = attention(
            *(linear(weights, f"{name}.self_attn.{part}_proj", normed) for part in "qkv"),
            head_dim=config.head_dim,
            frequencies=config.rope_theta ** (-dims / config.head_dim),
            visible=lambda i, j: j <= i or not config.is_causal,
        )
        x = x + linear(weights, f"{name}.self_attn.o_proj", attended)
        normed = rms_norm(weights, f"{name}.post_attention_layernorm", x)
        gate = linear(weights, f"{name}.mlp.gate_proj", normed)
        up = linear(weights, f"{name}.mlp.up_proj", normed)
        x = x + linear(weights, f"{name}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)
    return rms_norm(weights, "input_local_transformer.norm", x) if config.has_final_norm else x


def encoder_rows(config: AudioEncoderConfig, weights: Weights, codes: Array) -> Array:
    """codes [P, channels] -> [ceil(P / group), out]."""
    codes = list(codes)
    while len(codes) % config.group_size:
        codes.append(codes[-1])
    frames = encoder_embeddings(config, weights, np.stack(codes))
    rows = []
    for first in range(0, len(frames), config.group_size):
        group = group_transformer(config, weights, frames[first : first + config.group_size])
        row = linear(weights, "projection.mlp.0", group.reshape(1, -1))
        if config.projection_layers == 2:
            row = linear(weights, "projection.mlp.2", gelu(row))
        rows.append(row[0])
    return np.stack(rows)


def golden_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Array]:
    """The fill rule of audio.md 10.3, float64."""
    filled = {}
    for rank, name in enumerate(sorted(shapes), start=1):
        shape = shapes[name]
        index = np.arange(1, math.prod(shape) + 1)
        wave = np.sin(0.7 * index + 1.3 * rank).reshape(shape)
        if "norm" in name:
            filled[name] = 0.1 * wave + (1 if name.endswith("weight") else 0)
        elif name.endswith("bias"):
            filled[name] = 0.1 * wave
        elif "speech_embeddings" in name:
            filled[name] = wave
        else:
            filled[name] = wave * math.sqrt(2 / math.prod(shape[1:]))
    return filled

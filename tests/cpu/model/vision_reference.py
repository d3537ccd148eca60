"""The vision tower once more, written from vision.md in float64 and for one frame at a time.

Slow and plain: a patch is known by its (y, x), the state of a frame is a dictionary over them, and
an order is a list of them. So there are no permutations, no padding, no blocks and no rotary tables
that could be wrong in the same way. Only products with weights take all patches of a frame at once.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from mimo_engine.config.vision import VisionOrder

ERF = np.vectorize(math.erf, otypes=[np.float64])


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowResult:
    hidden: np.ndarray
    """[N, H]: what the merger reads, in row order."""
    tokens: np.ndarray
    """[N / merge_unit, out]."""


class SlowTower:
    """weights: the checkpoint's names to anything that numpy takes; cast when they are used."""

    def __init__(self, config, weights):
        self.config = config
        self._weights = weights

    def run(self, patches, grids) -> SlowResult:
        patches = np.asarray(patches, dtype=np.float64)
        hidden, tokens, start = [], [], 0
        for t, h, w in grids:
            for _ in range(t):
                frame = patches[start : start + h * w]
                start += h * w
                rows = self._frame(frame, h, w)
                hidden.append(rows)
                tokens.append(self._merge(rows))
        assert start == len(patches)
        return SlowResult(hidden=np.concatenate(hidden), tokens=np.concatenate(tokens))

    def _frame(self, patches, h, w):
        row_order = self._order(h, w, by_columns=False)
        kernel = self._weight("patch_embed.proj.weight")
        embedded = patches @ kernel.reshape(len(kernel), -1).T
        state = dict(zip(row_order, embedded, strict=True))
        for index, spec in enumerate(self.config.layers):
            order = self._order(h, w, by_columns=spec.order is VisionOrder.COLUMN)
            x = np.stack([state[place] for place in order])
            x = self._block(x, order, index, spec)
            state = dict(zip(order, x, strict=True))
        return np.stack([state[place] for place in row_order])

    def _order(self, h, w, *, by_columns):
        """Places (y, x) of a frame, unit after unit."""
        m = self.config.spatial_merge_size
        units = [(uy, ux) for uy in range(h // m) for ux in range(w // m)]
        if by_columns:
            units = sorted(units, key=lambda unit: (unit[1], unit[0]))
        return [
            (uy * m + dy, ux * m + dx)
            for uy, ux in units
            for dy, dx in itertools.product(range(m), repeat=2)
        ]

    def _block(self, x, order, index, spec):
        prefix = f"blocks.{index}."
        x = x + self._attention(self._rms(x, prefix + "norm1.weight"), order, prefix, spec)
        n = self._rms(x, prefix + "norm2.weight")
        gate = self._linear(n, prefix + "mlp.gate_proj")
        up = self._linear(n, prefix + "mlp.up_proj")
        return x + self._linear(gate / (1 + np.exp(-gate)) * up, prefix + "mlp.down_proj")

    def _attention(self, x, order, prefix, spec):
        config = self.config
        qkv = self._linear(x, prefix + "attn.qkv").reshape(len(x), -1, config.head_dim)
        num_heads, num_kv_heads = config.num_heads, config.num_kv_heads
        q = self._turn(qkv[:, :num_heads], order)
        k = self._turn(qkv[:, num_heads : num_heads + num_kv_heads], order)
        v = qkv[:, num_heads + num_kv_heads :]
        sinks = self._weight(prefix + "attn.sinks") if spec.has_sinks else None
        out = np.zeros((len(x), num_heads, config.head_dim))
        for i, head in itertools.product(range(len(x)), range(num_heads)):
            group = head // (num_heads // num_kv_heads)
            window = len(x) if spec.window is None else spec.window
            seen = [j for j in range(len(x)) if abs(i - j) <= window]
            scores = k[seen, group] @ q[i, head] / math.sqrt(config.head_dim)
            if sinks is not None and config.sinks == "key0" and 0 in seen:
                scores[seen.index(0)] += sinks[head]
            weights = np.exp(scores)
            total = weights.sum()
            if sinks is not None and config.sinks == "extra_column":
                total += math.exp(sinks[head])
            out[i, head] = weights @ v[seen, group] / total
        return self._linear(out.reshape(len(x), -1), prefix + "attn.proj")

    def _turn(self, x, order):
        """x [n, heads, D]: dims d and d + D/2 are one complex number, turned by y or by x."""
        half, quarter = x.shape[-1] // 2, x.shape[-1] // 4
        complex_x = x[..., :half] + 1j * x[..., half:]
        for row, (y, x_place) in enumerate(order):
            for d in range(half):
                frequency = self.config.rope_theta ** (-(d % quarter) / quarter)
                angle = (y if d < quarter else x_place) * frequency
                complex_x[row, :, d] *= complex(math.cos(angle), math.sin(angle))
        return np.concatenate((complex_x.real, complex_x.imag), axis=-1)

    def _merge(self, rows):
        if self.config.merger_norm == "rmsnorm":
            normed = self._rms(rows, "merger.ln_q.weight")
        else:
            centred = rows - rows.mean(axis=1, keepdims=True)
            deviation = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.config.norm_eps)
            normed = centred / deviation * self._weight("merger.ln_q.weight")
        units = normed.reshape(-1, self.config.merge_unit * rows.shape[1])
        x = units @ self._weight("merger.mlp.0.weight").T
        x = x * (1 + ERF(x / math.sqrt(2))) / 2
        return x @ self._weight("merger.mlp.2.weight").T

    def _rms(self, x, name):
        mean_square = (x**2).mean(axis=1, keepdims=True)
        return x / np.sqrt(mean_square + self.config.norm_eps) * self._weight(name)

    def _linear(self, x, name):
        return x @ self._weight(name + ".weight").T + self._weight(name + ".bias")

    def _weight(self, name):
        return np.asarray(self._weights[name], dtype=np.float64)

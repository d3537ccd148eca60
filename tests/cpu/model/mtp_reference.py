"""The draft layers once more, written from mtp.md 5.3 to 5.5 in float64, one row of one sequence at
a time, from the tensors of a split checkpoint and its raw config.json.

`mistake` makes one of the errors that those sections warn of, so that a test can show that it would
be seen.
"""

import math

import numpy as np

MISTAKES = (
    "hidden half first",
    "no norm of the embedding",
    "no norm of the hidden state",
    "no final norm",
    "chained hidden states",
    "token of the first layer",
    "token of the row itself",
    "later rows a position on",
    "full rope theta",
    "whole head rotates",
    "neighbours rotate",
    "no value scale",
    "no sink",
    "scaled sink",
    "window of one less",
    "window of one more",
    "keys of the row alone",
    "sees the next row",
    "other kv head",
    "gate and up swapped",
    "norms swapped",
)


class SlowDrafts:
    """weights: the checkpoint's tensors by name; raw: its config.json; window: keys a query sees,
    itself included."""

    def __init__(self, weights, raw, window, mistake=None):
        assert mistake is None or mistake in MISTAKES
        self._weights = weights
        self._raw = raw
        self._window = window
        self._mistake = mistake

    def run(self, tokens, hidden, num_layers=3):
        """tokens of one sequence, hidden [n, H] of its rows: per layer k the outputs of the rows
        whose token x[j + 1 + k] there is, [n - 1 - k, H]."""
        hidden = np.asarray(hidden, dtype=np.float64)
        outputs = []
        for k in range(num_layers):
            if self._mistake == "chained hidden states" and k > 0:
                hidden = outputs[-1]
            outputs.append(self._layer(k, tokens, hidden))
        return outputs

    def logits(self, outputs):
        return outputs @ self._weight("lm_head.weight").T

    def _layer(self, k, tokens, hidden):
        shift = 1 + k
        if self._mistake == "token of the first layer":
            shift = 1
        elif self._mistake == "token of the row itself":
            shift = k
        num_rows = len(tokens) - 1 - k
        positions = list(range(num_rows))
        if self._mistake == "later rows a position on":
            positions = [p + (p >= num_rows // 2) for p in positions]
        prefix = f"model.mtp.layers.{k}."
        z = [self._joined(prefix, tokens[j + shift], hidden[j]) for j in range(num_rows)]
        names = ["input_layernorm", "pre_mlp_layernorm"]
        if self._mistake == "norms swapped":
            names.reverse()
        before = [self._norm(row, prefix + names[0]) for row in z]
        attended = self._attention(prefix + "self_attn.", before, positions)
        z = [row + update for row, update in zip(z, attended, strict=True)]
        z = [row + self._mlp(prefix + "mlp.", self._norm(row, prefix + names[1])) for row in z]
        if self._mistake == "no final norm":
            return np.stack(z)
        return np.stack([self._norm(row, prefix + "final_layernorm") for row in z])

    def _joined(self, prefix, token, h):
        e = self._weight("model.embed_tokens.weight")[token]
        if self._mistake != "no norm of the embedding":
            e = self._norm(e, prefix + "enorm")
        if self._mistake != "no norm of the hidden state":
            h = self._norm(h, prefix + "hnorm")
        halves = (h, e) if self._mistake == "hidden half first" else (e, h)
        return self._weight(prefix + "eh_proj.weight") @ np.concatenate(halves)

    def _attention(self, prefix, rows, positions):
        raw, mistake = self._raw, self._mistake
        num_heads, num_kv_heads = raw["swa_num_attention_heads"], raw["swa_num_key_value_heads"]
        width = raw["swa_head_dim"]
        scale = 1.0 if mistake == "no value scale" else raw["attention_value_scale"]
        sinks = self._weight(prefix + "attention_sink_bias")
        if mistake == "scaled sink":
            sinks = sinks / math.sqrt(width)
        q, k, v = ([self._heads(prefix + name, row) for row in rows] for name in "qkv")
        for turned in (q, k):
            for heads, position in zip(turned, positions, strict=True):
                for head in heads:
                    self._rotate(head, position)
        out = []
        for i in range(len(rows)):
            seen = self._seen(i, len(rows))
            mixed = []
            for head in range(num_heads):
                group = head // (num_heads // num_kv_heads)
                if mistake == "other kv head":
                    group = head % num_kv_heads
                weights = [math.exp(q[i][head] @ k[j][group] / math.sqrt(width)) for j in seen]
                total = sum(weights)
                if mistake != "no sink":
                    total += math.exp(sinks[head])
                mixed.append(
                    sum(w / total * scale * v[j][group] for w, j in zip(weights, seen, strict=True))
                )
            out.append(self._weight(prefix + "o_proj.weight") @ np.concatenate(mixed))
        return out

    def _seen(self, i, num_rows):
        if self._mistake == "keys of the row alone":
            return [i]
        window = self._window
        window += {"window of one less": -1, "window of one more": 1}.get(self._mistake, 0)
        last = min(i + (self._mistake == "sees the next row"), num_rows - 1)
        return [j for j in range(last + 1) if j > i - window]

    def _heads(self, prefix, row):
        projected = self._weight(prefix + "_proj.weight") @ row
        value = prefix.endswith("v")
        return projected.reshape(-1, self._raw["swa_v_head_dim" if value else "swa_head_dim"])

    def _rotate(self, head, position):
        """In place: two dims are one complex number, turned by the position."""
        size = int(self._raw["partial_rotary_factor"] * len(head))
        if self._mistake == "whole head rotates":
            size = len(head)
        theta = self._raw["rope_theta" if self._mistake == "full rope theta" else "swa_rope_theta"]
        for pair in range(size // 2):
            a, b = pair, pair + size // 2
            if self._mistake == "neighbours rotate":
                a, b = 2 * pair, 2 * pair + 1
            angle = position * theta ** (-2 * pair / size)
            turned = complex(head[a], head[b]) * complex(math.cos(angle), math.sin(angle))
            head[a], head[b] = turned.real, turned.imag

    def _mlp(self, prefix, row):
        gate = self._weight(prefix + "gate_proj.weight") @ row
        up = self._weight(prefix + "up_proj.weight") @ row
        if self._mistake == "gate and up swapped":
            gate, up = up, gate
        return self._weight(prefix + "down_proj.weight") @ (gate / (1 + np.exp(-gate)) * up)

    def _norm(self, row, name):
        mean_square = (row**2).mean()
        deviation = math.sqrt(mean_square + self._raw["layernorm_epsilon"])
        return row / deviation * self._weight(name + ".weight")

    def _weight(self, name):
        return self._weights[name]

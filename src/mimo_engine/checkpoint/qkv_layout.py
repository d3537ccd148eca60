"""How the rows of a fused `qkv_proj` are ordered, and how their FP8 scales lie (text.md 3.3).

*Chunked*, the official order. Training ran on T = `num_key_value_heads` tensor-parallel ranks, and
the tensor is what these ranks held, one after the other: T chunks, chunk s being

    [ Q of query heads s*h_q/T ...  |  K of KV heads s*h_kv/T ...  |  V of the same KV heads ]

with 192 rows a head in Q and K, 128 in V. T is 4 in the models of hidden size 4096, 8 in Pro, for
full, sliding and draft layers alike. Each rank quantised its own chunk, so the 128-row scale blocks
start again at every chunk: with R rows a chunk, row r uses scale row

    r // R * ceil(R / 128) + r % R // 128

A chunk of a full V2.5 layer has R = 3392 = 26.5 * 128 rows, 27 scale rows; the last block is half
empty, and the 64 last K rows share a block with the 64 first V rows. A sliding V2.5 chunk has 3712
= 29 * 128 rows: there the restarted grid and a continuous one are the same thing.

*Plain*: some re-exports keep the fused flag but hold [all Q; all K; all V], with one continuous
grid. Loading one order as the other scrambles heads without any error, so the order is decided
once, for the whole file, and only on evidence from full-attention layers (sliding ones may be
blind):

1. The count of scale rows: T * ceil(R / 128) against ceil(total / 128); 108 or 106 in V2.5. A
   continuous grid is taken as proof of a re-export, hence of plain rows: the official quantiser
   never saw the whole tensor. (The grid does not strictly prove the order; `--qkv-layout` does.)
2. Where the counts coincide but the blocks differ, the 448 test: quantising by amax leaves a code
   of magnitude 448 in every block, so the grid under which all blocks have one is the grid.
3. `tp_size` in the index metadata: the official files and `export` write T there.

Evidence that disagrees, or none (bf16 without metadata), is refused: `--qkv-layout` decides then.

Split tensors have the same restarted grid, by rows / T: `k_proj` of a full V2-Flash layer has 8
scale rows for its 4 heads of 192 rows, not 6 (text.md 3.2). For them order is no question and the
count alone (or the 448 test) tells the grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import torch

from mimo_engine.checkpoint.formats import DenseTarget, Fp8Target, StoredWeight
from mimo_engine.checkpoint.params import ParamPart, ParamSpec, attention_specs
from mimo_engine.config.model import LayerSpec, ModelConfig
from mimo_engine.distributed.plan import SINGLE_RANK, ParallelPlan
from mimo_engine.distributed.shard import Cut, Run, joined
from mimo_engine.errors import CheckpointError
from mimo_engine.kernels.quant import FP8_BLOCK, FP8_MAX, Fp8BlockWeight, RowGrid

__all__ = [
    "LayerEvidence",
    "QkvLayout",
    "canonical_cuts",
    "decide_qkv_layout",
    "full_blocks",
    "fuse_qkv",
    "fused_grid",
    "fused_rows",
    "load_mimo_v2_qkv_proj_weight",
    "num_quantiser_ranks",
    "split_grid",
]

_REMEDY = "pass --qkv-layout chunked (official files) or --qkv-layout plain ([Q;K;V] re-exports)"


class QkvLayout(StrEnum):
    CHUNKED = "chunked"
    PLAIN = "plain"


def num_quantiser_ranks(config: ModelConfig) -> int:
    """T: the ranks that q, k and v were quantised on, hence the chunks of a fused tensor. As many
    as full layers have KV heads (text.md 3.3)."""
    full = (layer for layer in config.layers if not layer.is_sliding)
    return config.qkv_chunks or next(full, config.layers[0]).num_kv_heads


def canonical_cuts(layer: LayerSpec, num_chunks: int, layout: QkvLayout) -> dict[str, Cut]:
    """For q, k and v: the canonical rows, heads in natural order, as a cut of the stored rows."""
    chunks = 1 if layout is QkvLayout.PLAIN else num_chunks
    widths = {
        "q": layer.num_heads * layer.qk_head_dim // chunks,
        "k": layer.num_kv_heads * layer.qk_head_dim // chunks,
        "v": layer.num_kv_heads * layer.v_head_dim // chunks,
    }
    chunk_rows = sum(widths.values())
    cuts, offset = {}, 0
    for part, width in widths.items():
        runs = (Run(s * chunk_rows + offset, s * width, width) for s in range(chunks))
        cuts[part] = Cut(0, chunks * width, tuple(runs))
        offset += width
    return cuts


def fused_grid(layer: LayerSpec, num_chunks: int, layout: QkvLayout) -> RowGrid:
    """The FP8 row grid of a fused tensor."""
    num_rows = fused_rows(layer)
    return RowGrid(num_rows, num_rows if layout is QkvLayout.PLAIN else num_rows // num_chunks)


def fused_rows(layer: LayerSpec) -> int:
    """Rows of a fused tensor: Q, K and V of all heads."""
    query = layer.num_heads * layer.qk_head_dim
    return query + layer.num_kv_heads * (layer.qk_head_dim + layer.v_head_dim)


def fuse_qkv(spec: ParamSpec, layer: LayerSpec, num_chunks: int, layout: QkvLayout) -> ParamSpec:
    """The `qkv_proj` parameter `spec`, cut from one fused tensor in place of q, k and v."""
    stored = canonical_cuts(layer, num_chunks, layout)
    cuts = []
    for part in spec.parts:
        assert part.cut is not None
        cuts.append(part.cut.after(stored[part.name]))
    hidden = spec.parts[0].full_shape[1]
    part = ParamPart(name="", full_shape=(fused_rows(layer), hidden), cut=joined(cuts), row=0)
    return ParamSpec(parts=(part,), storage=spec.storage)


def load_mimo_v2_qkv_proj_weight(
    weight: torch.Tensor,
    scale_inv: torch.Tensor | None,
    *,
    layer: LayerSpec,
    num_chunks: int,
    plan: ParallelPlan = SINGLE_RANK,
    layout: QkvLayout = QkvLayout.CHUNKED,
) -> torch.Tensor | Fp8BlockWeight:
    """One rank's [Q; K; V] rows, heads in local order, out of a fused tensor; nothing is rounded.

    weight: [rows of all heads, H], any float dtype, or float8_e4m3fn with scale_inv fp32
    [scale rows, ceil(H / 128)]. num_chunks is T, `get_mimo_v2_fused_qkv_expected_tp_size`.
    """
    spec = attention_specs(layer, weight.shape[1], plan)["qkv_proj.weight"]
    spec = fuse_qkv(spec, layer, num_chunks, layout)
    (part,) = spec.parts
    if weight.shape != part.full_shape:
        raise CheckpointError(f"fused qkv is {list(weight.shape)}, not {list(part.full_shape)}")
    if scale_inv is None:
        dense = DenseTarget(spec, dtype=weight.dtype, device=weight.device)
        dense.fill(part, None, StoredWeight(data=weight))
        return dense.weight
    grid = fused_grid(layer, num_chunks, layout)
    if scale_inv.shape[0] != grid.num_scale_rows:
        raise CheckpointError(
            f"fused qkv has {scale_inv.shape[0]} scale rows; {layout} rows have "
            f"{grid.num_scale_rows}; {_REMEDY}"
        )
    target = Fp8Target(spec, {"": grid}, device=weight.device)
    target.fill(part, None, StoredWeight(data=weight, scales=scale_inv, grid=grid))
    return target.weight


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerEvidence:
    """What one full-attention layer can tell about the order of its fused tensor."""

    tensor: str
    layer: LayerSpec
    num_scale_rows: int
    read: Callable[[], torch.Tensor]
    """The float8 data, read only if the counts do not decide."""


def decide_qkv_layout(
    evidence: Sequence[LayerEvidence],
    *,
    num_chunks: int,
    metadata: Mapping[str, object],
    requested: str = "auto",
) -> QkvLayout:
    """The row order of every fused tensor of a checkpoint; see the module docstring.

    evidence: the FP8 fused tensors of full-attention layers, none for bf16. Raises CheckpointError
    when the evidence disagrees or does not decide, or contradicts `requested`.
    """
    verdicts = {item.tensor: _verdict_by_count(item, num_chunks) for item in evidence}
    found = {layout for layout in verdicts.values() if layout is not None}
    if len(found) > 1:
        chunked = next(name for name, v in verdicts.items() if v is QkvLayout.CHUNKED)
        plain = next(name for name, v in verdicts.items() if v is QkvLayout.PLAIN)
        raise CheckpointError(
            f"{chunked}_scale_inv has the scale rows of chunked rows, {plain}_scale_inv those of "
            "one continuous (naive) grid; a checkpoint has one layout: restore the official scales"
        )
    verdict = next(iter(found), None) or _verdict_by_maximum(evidence, num_chunks)
    if requested != "auto":
        layout = QkvLayout(requested)
        if verdict not in (None, layout):
            raise CheckpointError(
                f"--qkv-layout {layout} contradicts the scales of {evidence[0].tensor}, which are "
                f"those of {verdict} rows: drop the flag, or restore the official scales"
            )
        return layout
    tp_size = _metadata_tp_size(metadata)
    if tp_size not in (None, num_chunks):
        raise CheckpointError(
            f"the index metadata says tp_size {tp_size}, but config.json's num_key_value_heads "
            f"makes {num_chunks} chunks in a fused qkv_proj: {_REMEDY}"
        )
    if tp_size is not None and verdict is QkvLayout.PLAIN:
        raise CheckpointError(
            f"{evidence[0].tensor}_scale_inv has one continuous (naive) scale grid, but the index "
            f"metadata says tp_size {tp_size}, that is chunked rows: {_REMEDY}"
        )
    if verdict is not None:
        return verdict
    if tp_size is not None:
        return QkvLayout.CHUNKED
    raise CheckpointError(
        "the row order of the fused qkv_proj tensors cannot be decided: no full-attention layer "
        f"has FP8 scales that tell, and the index metadata has no tp_size: {_REMEDY}"
    )


def split_grid(
    tensor: str,
    num_rows: int,
    num_scale_rows: int,
    num_chunks: int,
    read: Callable[[], torch.Tensor],
) -> RowGrid:
    """The FP8 row grid of a split q, k or v tensor: continuous, or restarted in `num_chunks` parts.

    Raises CheckpointError when neither fits, or both do and the 448 test cannot tell.
    """
    grids = [RowGrid(num_rows, num_rows)]
    if num_rows % num_chunks == 0:
        grids.insert(0, RowGrid(num_rows, num_rows // num_chunks))
    fitting = [grid for grid in grids if grid.num_scale_rows == num_scale_rows]
    if not fitting:
        raise CheckpointError(
            f"{tensor}_scale_inv has {num_scale_rows} rows; {num_rows} weight rows need "
            f"{' or '.join(str(grid.num_scale_rows) for grid in grids)}: restore the official "
            "scales"
        )
    if len(fitting) == 1 or fitting[0].same_blocks(fitting[1]):
        return fitting[0]
    restarted, continuous = (full_blocks(read(), grid) for grid in fitting)
    if (restarted == 1.0) == (continuous == 1.0):
        raise CheckpointError(
            f"the scale grid of {tensor} cannot be decided: neither or both of the restarted and "
            "the continuous blocks have a code of 448 each; restore the official file"
        )
    return fitting[0] if restarted == 1.0 else fitting[1]


def full_blocks(data: torch.Tensor, grid: RowGrid) -> float:
    """The share of `grid`'s blocks of float8 `data` whose largest magnitude is 448, zero blocks
    left out; 1.0 is what quantisation by amax on this grid leaves."""
    num_rows, num_columns = data.shape
    magnitude = data.view(torch.uint8) & 0x7F
    padded = torch.nn.functional.pad(magnitude, (0, -num_columns % FP8_BLOCK))
    by_row = padded.view(num_rows, -1, FP8_BLOCK).amax(dim=2)
    largest = torch.zeros(grid.num_scale_rows, by_row.shape[1], dtype=torch.uint8)
    index = grid.scale_rows().long()[:, None].expand_as(by_row)
    largest.scatter_reduce_(0, index, by_row, "amax")
    code_of_448 = torch.tensor(FP8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)
    num_blocks = int((largest > 0).sum())
    return float((largest == code_of_448).sum()) / num_blocks if num_blocks else 0.0


def _verdict_by_count(item: LayerEvidence, num_chunks: int) -> QkvLayout | None:
    counts = {
        layout: fused_grid(item.layer, num_chunks, layout).num_scale_rows for layout in QkvLayout
    }
    fitting = [layout for layout, count in counts.items() if count == item.num_scale_rows]
    if not fitting:
        raise CheckpointError(
            f"{item.tensor}_scale_inv has {item.num_scale_rows} rows; chunked rows have "
            f"{counts[QkvLayout.CHUNKED]}, plain ones {counts[QkvLayout.PLAIN]}: restore the "
            "official scales"
        )
    return fitting[0] if len(fitting) == 1 else None


def _verdict_by_maximum(evidence: Sequence[LayerEvidence], num_chunks: int) -> QkvLayout | None:
    """The layout under which every block has a code of 448, when exactly one is so."""
    possible = set(QkvLayout) if evidence else set()
    for item in evidence:
        grids = {layout: fused_grid(item.layer, num_chunks, layout) for layout in QkvLayout}
        if grids[QkvLayout.CHUNKED].same_blocks(grids[QkvLayout.PLAIN]):
            return None
        data = item.read()
        possible = {layout for layout in possible if full_blocks(data, grids[layout]) == 1.0}
    return possible.pop() if len(possible) == 1 else None


def _metadata_tp_size(metadata: Mapping[str, object]) -> int | None:
    value = metadata.get("tp_size")
    if value is None:
        return None
    try:
        return int(str(value))
    except ValueError:
        raise CheckpointError(f"the index metadata has tp_size {value!r}, not a number") from None

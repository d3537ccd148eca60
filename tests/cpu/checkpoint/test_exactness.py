"""load(export(w)) at every tensor-parallel degree: stored bits come back, products agree.

Where each row of the files belongs is written out here from the formulas of text.md 3.2 and 3.3 and
the head plan alone; the loader's cuts are not used. The normal run has the real heads, chunks and
expert widths with a narrow hidden size; `make prove` has the real widths.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mimo_engine.checkpoint.export import ExportFormat, export_checkpoint, export_config
from mimo_engine.checkpoint.index import CheckpointIndex, open_checkpoint
from mimo_engine.checkpoint.load import Weight, load_checkpoint
from mimo_engine.checkpoint.names import Placement
from mimo_engine.config.model import LayerSpec, ModelConfig, parse_model_config
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.quant import Fp8BlockWeight, Mxfp4Weight

DATA = Path(__file__).parents[2] / "data"
TP_SIZES = (1, 2, 4, 8, 16, 3, 6)
FUSED_FP8 = ExportFormat(linear="fp8", experts="fp8")
FUSED_MXFP4 = ExportFormat(linear="fp8", experts="mxfp4", router_dtype=torch.bfloat16)
SPLIT_FP8 = ExportFormat(projection="split", linear="fp8", experts="fp8")


def cases() -> list[Any]:
    narrow = {"hidden_size": 128, "intermediate_size": 2048}
    found = []
    for member, stored in (
        ("v2.5", FUSED_FP8),
        ("v2.6-flash", FUSED_MXFP4),
        ("v2.5-pro", FUSED_FP8),
        ("v2.6-pro", FUSED_MXFP4),
        ("v2-flash", SPLIT_FP8),
    ):
        found.append(pytest.param(member, stored, narrow, id=f"{member}-narrow"))
        full_size = pytest.param(member, stored, {}, id=f"{member}-full", marks=pytest.mark.prove)
        found.append(full_size)
    return found


@pytest.mark.parametrize(("member", "stored", "changes"), cases())
def test_stored_bits_come_back_at_every_degree(
    tmp_path: Path, member: str, stored: ExportFormat, changes: dict[str, int]
) -> None:
    raw = json.loads((DATA / f"config-mimo-{member}.json").read_text())
    raw |= {
        "num_hidden_layers": 2,
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "n_routed_experts": 2,
        "num_experts_per_tok": 2,
        "vocab_size": 1000,
        **changes,
    }
    raw = export_config(raw, stored)
    config = parse_model_config(raw)
    export_checkpoint(tmp_path, config, _random_part, stored, num_mtp_layers=1)
    files = open_checkpoint(tmp_path)
    expected: dict[str, torch.Tensor] = {}
    for tp_size in TP_SIZES:
        rebuilt = _Rebuilt(config, files)
        for tp_rank in range(tp_size):
            plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_rank)
            weights = load_checkpoint(
                tmp_path,
                config,
                plan,
                dtype=torch.bfloat16,
                keep_quantised=True,
                num_mtp_layers=1,
            )
            for name, weight in weights.items():
                rebuilt.add(plan, name, weight)
        rebuilt.check_bits()
        # The first degree is 1: the whole weights.
        expected = expected or rebuilt.products
        rebuilt.check_products(expected)


def _random_part(placement: Placement) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(repr(placement).encode()).digest()[:4], "little")
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(placement.part.full_shape, generator=generator)
    if weight.dim() == 2:
        # Blocks of different size, so that a scale taken from the wrong block shows.
        weight *= torch.rand(len(weight), 1, generator=generator) + 0.1
    return weight


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where local rows [first_row, first_row + len(rows)) of a parameter belong in the files."""

    tensor: str
    rows: torch.Tensor
    """Stored row of each local one; -1 is padding."""
    columns: torch.Tensor | None = None
    """Stored column of each local one; None: all, in order."""
    expert: int | None = None
    first_row: int = 0


class _Rebuilt:
    """The tensors of the files as the ranks of one degree hold them, and their products."""

    def __init__(self, config: ModelConfig, files: CheckpointIndex) -> None:
        self._config = config
        self._files = files
        self._bits: dict[str, torch.Tensor] = {}
        self._written: dict[str, torch.Tensor] = {}
        self.products: dict[str, torch.Tensor] = {}

    def add(self, plan: ParallelPlan, name: str, weight: Weight) -> None:
        for place in _places(self._config, plan, name, tuple(weight.shape)):
            piece = weight if place.expert is None else weight[place.expert]
            local = slice(place.first_row, place.first_row + len(place.rows))
            if isinstance(piece, Fp8BlockWeight):
                self._put(place.tensor, piece.data[local], place.rows, place.columns)
                self._put_fp8_scales(place, name, piece, local)
            elif isinstance(piece, Mxfp4Weight):
                for suffix, part, unit in (("", piece.packed, 2), ("_scale", piece.scales, 32)):
                    columns = _units(place.columns, unit)
                    self._put(place.tensor + suffix, part[local], place.rows, columns)
            else:
                self._put(place.tensor, piece[local], place.rows, place.columns)
            if name.endswith("_proj.weight"):
                self._add_product(place, piece, local)

    def check_bits(self) -> None:
        """Every tensor of the files was rebuilt whole, bit for bit."""
        assert set(self._bits) == set(self._files.tensors)
        for name, bits in self._bits.items():
            assert self._written[name].all(), name
            assert _sha256(bits) == _sha256(_bits(self._files.read(name))), name

    def check_products(self, expected: dict[str, torch.Tensor]) -> None:
        """Products over whole rows are equal; sums over cut rows differ by their order alone."""
        assert set(self.products) == set(expected)
        for name, product in self.products.items():
            if "o_proj" in name or "down_proj" in name:
                error = (product - expected[name]).norm() / expected[name].norm()
                assert error <= 1e-6, name
            else:
                assert torch.equal(product, expected[name]), name

    def _put(
        self, name: str, local: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor | None
    ) -> None:
        """Write to the stored rows or columns; padding must be zero."""
        info = self._files.tensors[name]
        if name not in self._bits:
            empty = torch.empty(info.shape, dtype=info.dtype)
            self._bits[name] = _bits(empty)
            self._written[name] = torch.zeros(info.shape[:2], dtype=torch.bool)
        local = _bits(local.to(info.dtype))
        dim, places = (0, rows) if columns is None else (1, columns)
        real = (places >= 0).nonzero().flatten()
        padding = (places < 0).nonzero().flatten()
        assert not local.index_select(dim, padding).any(), name
        self._bits[name].index_copy_(dim, places[real], local.index_select(dim, real))
        self._written[name].index_fill_(dim, places[real], True)

    def _put_fp8_scales(
        self, place: _Place, name: str, piece: Fp8BlockWeight, local: slice
    ) -> None:
        """Write the scale row that each real row uses to the one it has in the files."""
        real = place.rows >= 0
        if not real.any():
            return
        num_rows = self._files.tensors[place.tensor].shape[0]
        # The grid restarts at each of T parts of q, k and v (text.md 3.2, 3.3).
        is_qkv = name.endswith("qkv_proj.weight")
        period = num_rows // self._config.layers[0].num_kv_heads if is_qkv else num_rows
        rows = place.rows[real]
        stored = _scale_rows(rows, period)
        scales = piece.scales[piece.scale_row[local][real].long()]
        stored, first = _first_of_each(stored)
        whole = torch.zeros(int(stored[-1]) + 1, scales.shape[1])
        whole[stored] = scales[first]
        # Rows under one scale row of the files must agree about it.
        assert torch.equal(whole[_scale_rows(rows, period)], scales)
        columns = _units(place.columns, 128)
        self._put(place.tensor + "_scale_inv", whole[stored], stored, columns)

    def _add_product(self, place: _Place, piece: Weight, local: slice) -> None:
        width = self._files.tensors[place.tensor].shape[1]
        if isinstance(piece, Mxfp4Weight) and place.columns is None:
            width *= 2
        generator = torch.Generator().manual_seed(11)
        x = torch.randn(16384 * 2, generator=generator)
        columns = torch.arange(width) if place.columns is None else place.columns
        # What a padded column is multiplied by must not matter.
        x = torch.where(columns >= 0, x[columns], 3.0)
        weight = piece if isinstance(piece, torch.Tensor) else piece.decode(torch.float32)
        # Each row is summed by itself: the order of a sum never depends on other rows.
        product = (weight[local].float() * x).sum(dim=-1)
        num_rows = self._files.tensors[place.tensor].shape[0]
        total = self.products.setdefault(place.tensor, torch.zeros(num_rows))
        real = place.rows >= 0
        if place.columns is None:
            total[place.rows[real]] = product[real]
        else:
            total[place.rows[real]] += product[real]


def _places(
    config: ModelConfig, plan: ParallelPlan, name: str, shape: tuple[int, ...]
) -> Iterator[_Place]:
    hub = name if name == "lm_head.weight" else f"model.{name}"
    if ".self_attn." in name:
        yield from _attention_places(config, plan, hub, shape)
    elif name in ("embed_tokens.weight", "lm_head.weight"):
        yield _Place(tensor=hub, rows=_blocks(config.vocab_size, 64, plan))
    elif not name.endswith(("gate_up_proj.weight", "down_proj.weight")):
        yield _Place(tensor=hub, rows=torch.arange(shape[0]))
    else:
        is_moe = ".experts." in name
        width = (config.layers[1] if is_moe else config.mtp_layer).intermediate_size
        columns = _blocks(width, 128, plan)
        folder = hub.rpartition(".mlp.")[0] + ".mlp."
        for e in range(shape[0]) if is_moe else (None,):
            stem = folder if e is None else f"{folder}experts.{e}."
            if "down_proj" in name:
                rows = torch.arange(shape[-2])
                tensor = f"{stem}down_proj.weight"
                yield _Place(tensor=tensor, rows=rows, columns=columns, expert=e)
                continue
            for i, part in enumerate(("gate", "up")):
                tensor = f"{stem}{part}_proj.weight"
                yield _Place(tensor=tensor, rows=columns, expert=e, first_row=i * len(columns))


def _attention_places(
    config: ModelConfig, plan: ParallelPlan, hub: str, shape: tuple[int, ...]
) -> Iterator[_Place]:
    layer = config.mtp_layer if ".mtp." in hub else config.layers[int(hub.split(".")[2])]
    heads = plan.heads(layer)
    query, kv = heads.query_heads(plan.tp_rank), heads.kv_heads(plan.tp_rank)
    if hub.endswith("o_proj.weight"):
        yield _Place(tensor=hub, rows=torch.arange(shape[0]), columns=_head_rows(query, 128))
        return
    if hub.endswith("attention_sink_bias"):
        yield _Place(tensor=hub, rows=_head_rows(query, 1))
        return
    first_row = 0
    parts = {"q": _head_rows(query, 192), "k": _head_rows(kv, 192), "v": _head_rows(kv, 128)}
    for part, rows in parts.items():
        if config.qkv_chunks is None:
            tensor = hub.replace("qkv_proj", f"{part}_proj")
            yield _Place(tensor=tensor, rows=rows, first_row=first_row)
        else:
            stored = _stored_rows(layer, config.qkv_chunks, part, rows)
            yield _Place(tensor=hub, rows=stored, first_row=first_row)
        first_row += len(rows)


def _stored_rows(layer: LayerSpec, chunks: int, part: str, rows: torch.Tensor) -> torch.Tensor:
    """Row in a chunked fused tensor of each canonical row of q, k or v (text.md 3.3)."""
    q_rows = layer.num_heads // chunks * 192
    k_rows, v_rows = layer.num_kv_heads // chunks * 192, layer.num_kv_heads // chunks * 128
    width, first = {"q": (q_rows, 0), "k": (k_rows, q_rows), "v": (v_rows, q_rows + k_rows)}[part]
    stored = rows // width * (q_rows + k_rows + v_rows) + first + rows % width
    return torch.where(rows >= 0, stored, -1)


def _scale_rows(rows: torch.Tensor, period: int) -> torch.Tensor:
    return rows // period * -(-period // 128) + rows % period // 128


def _head_rows(heads: tuple[int | None, ...], head_dim: int) -> torch.Tensor:
    rows = [-1 if h is None else h * head_dim + i for h in heads for i in range(head_dim)]
    return torch.tensor(rows)


def _blocks(width: int, block: int, plan: ParallelPlan) -> torch.Tensor:
    num_blocks = -(-width // block)
    local = min(width, -(-num_blocks // plan.tp_size) * block)
    rows = plan.tp_rank * local + torch.arange(local)
    return torch.where(rows < width, rows, -1)


def _units(columns: torch.Tensor | None, unit: int) -> torch.Tensor | None:
    """Columns counted in units of packed bytes or scale groups."""
    if columns is None:
        return None
    first = columns[::unit]
    return torch.where(first >= 0, first // unit, -1)


def _first_of_each(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(sorted distinct values, the first place of each)."""
    distinct, place = torch.unique(values, return_inverse=True)
    first = torch.full((len(distinct),), len(values))
    return distinct, first.scatter_reduce(0, place, torch.arange(len(values)), "amin")


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits in an integer type that every operator takes."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return tensor.contiguous().view(integers[tensor.dtype.itemsize])


def _sha256(bits: torch.Tensor) -> str:
    return hashlib.sha256(bits.numpy().data).hexdigest()

"""Row order and scale grid of fused and split qkv tensors (text.md 3.2, 3.3)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mimo_engine.checkpoint.export import ExportFormat, export_config
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.qkv_layout import (
    LayerEvidence,
    QkvLayout,
    canonical_cuts,
    decide_qkv_layout,
    full_blocks,
    fused_grid,
    load_mimo_v2_qkv_proj_weight,
    num_quantiser_ranks,
    split_grid,
)
from mimo_engine.config.model import LayerSpec, ModelConfig, parse_model_config
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import CheckpointError
from mimo_engine.kernels.quant import Fp8BlockWeight, RowGrid, encode_fp8

DATA = Path(__file__).parents[2] / "data"
CHUNKED, PLAIN = QkvLayout.CHUNKED, QkvLayout.PLAIN
FP8 = ExportFormat(linear="fp8", experts="fp8")


def real_config(member: str) -> ModelConfig:
    return parse_model_config(json.loads((DATA / f"config-mimo-{member}.json").read_text()))


def real_layer(member: str, index: int) -> tuple[LayerSpec, int]:
    config = real_config(member)
    return config.layers[index], num_quantiser_ranks(config)


FLASH_FULL, FLASH_SLIDING, PRO_FULL, PRO_SLIDING = (
    real_layer("v2.5", 0),
    real_layer("v2.5", 1),
    real_layer("v2.5-pro", 0),
    real_layer("v2.5-pro", 1),
)


@pytest.mark.parametrize(
    ("case", "chunk", "q", "k", "v", "scale_row"),
    [
        (FLASH_FULL, 1, 3392, 6464, 6656, 27),
        (FLASH_FULL, 3, 10176, 13248, 13440, 81),
        (FLASH_SLIDING, 1, 3712, 6784, 7168, 29),
        (FLASH_SLIDING, 3, 11136, 14208, 14592, 87),
        (PRO_FULL, 7, 23744, 26816, 27008, 189),
        (PRO_SLIDING, 7, 23744, 26816, 27008, 189),
    ],
)
def test_the_worked_offsets(
    case: tuple[LayerSpec, int], chunk: int, q: int, k: int, v: int, scale_row: int
) -> None:
    layer, chunks = case
    cuts = canonical_cuts(layer, chunks, CHUNKED)
    assert (cuts["q"].runs[chunk].src, cuts["k"].runs[chunk].src) == (q, k)
    assert cuts["v"].runs[chunk].src == v
    assert int(fused_grid(layer, chunks, CHUNKED).scale_rows()[q]) == scale_row


@pytest.mark.parametrize(
    ("case", "rows", "chunked", "plain"),
    [
        (FLASH_FULL, 13568, 108, 106),
        (FLASH_SLIDING, 14848, 116, 116),
        (PRO_FULL, 27136, 216, 212),
        (PRO_SLIDING, 27136, 216, 212),
    ],
)
def test_the_counts_of_scale_rows(
    case: tuple[LayerSpec, int], rows: int, chunked: int, plain: int
) -> None:
    layer, chunks = case
    grid = fused_grid(layer, chunks, CHUNKED)
    continuous = fused_grid(layer, chunks, PLAIN)
    assert (grid.num_rows, grid.num_scale_rows, continuous.num_scale_rows) == (
        rows,
        chunked,
        plain,
    )
    assert grid.same_blocks(continuous) == (case is FLASH_SLIDING)


def test_k_and_v_share_a_scale_row_inside_a_full_chunk() -> None:
    rows = fused_grid(*FLASH_FULL, CHUNKED).scale_rows().tolist()
    assert rows[3071:3073] == [23, 24]
    assert (rows[3199], rows[3200], rows[3263], rows[3264], rows[3327]) == (24, 25, 25, 25, 25)
    assert (rows[3328], rows[3391], rows[3392]) == (26, 26, 27)


def test_the_rows_of_a_sliding_chunk_are_two_k_heads_then_two_v_heads() -> None:
    layer, chunks = FLASH_SLIDING
    cuts = canonical_cuts(layer, chunks, CHUNKED)
    assert [run.length for run in cuts["k"].runs] == [384] * 4
    assert [run.length for run in cuts["v"].runs] == [256] * 4
    rows = fused_grid(layer, chunks, CHUNKED).scale_rows().tolist()
    # Head a: 128 rows in 24 and 64 in 25; head b: 64 in 25 and 128 in 26; V heads in 27 and 28.
    assert [rows[3072], rows[3199], rows[3200], rows[3327], rows[3328]] == [24, 24, 25, 25, 26]
    assert [rows[3456], rows[3583], rows[3584], rows[3711]] == [27, 27, 28, 28]


def stored_from_heads(layer: LayerSpec, chunks: int, hidden: int) -> torch.Tensor:
    """A chunked tensor whose every row says which head it is: (kind, head) in columns 0 and 1."""
    rows = []
    for s in range(chunks):
        for kind, count, width in (
            (0, layer.num_heads, 192),
            (1, layer.num_kv_heads, 192),
            (2, layer.num_kv_heads, 128),
        ):
            per_chunk = count // chunks
            for head in range(s * per_chunk, (s + 1) * per_chunk):
                rows += [[kind, head, i, *[0] * (hidden - 3)] for i in range(width)]
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("tp_size", [1, 2, 3, 4, 6, 8, 16])
@pytest.mark.parametrize("case", [FLASH_FULL, FLASH_SLIDING, PRO_FULL])
def test_a_rank_gets_the_rows_of_its_heads(case: tuple[LayerSpec, int], tp_size: int) -> None:
    layer, chunks = case
    stored = stored_from_heads(layer, chunks, 4)
    for tp_rank in range(tp_size):
        plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_rank)
        got = load_mimo_v2_qkv_proj_weight(stored, None, layer=layer, num_chunks=chunks, plan=plan)
        assert isinstance(got, torch.Tensor)
        heads = plan.heads(layer)
        expected = [
            [0, 0, 0] if head is None else [kind, head, i]
            for kind, dealt, width in (
                (0, heads.query_heads(tp_rank), 192),
                (1, heads.kv_heads(tp_rank), 192),
                (2, heads.kv_heads(tp_rank), 128),
            )
            for head in dealt
            for i in range(width)
        ]
        assert torch.equal(got[:, :3], torch.tensor(expected, dtype=torch.float32))


def test_the_official_function_keeps_fp8_bits_and_scales() -> None:
    layer, chunks = FLASH_FULL
    torch.manual_seed(0)
    grid = fused_grid(layer, chunks, CHUNKED)
    weight = torch.randn(grid.num_rows, 256) * torch.rand(grid.num_rows, 1)
    data, scales = encode_fp8(weight, grid)
    got = load_mimo_v2_qkv_proj_weight(data, scales, layer=layer, num_chunks=chunks)
    assert isinstance(got, Fp8BlockWeight)
    stored = Fp8BlockWeight(data=data, scales=scales, scale_row=grid.scale_rows())
    order = torch.cat([cut.gather(torch.arange(grid.num_rows)) for cut in (
        canonical_cuts(layer, chunks, CHUNKED).values()
    )])  # fmt: skip
    assert torch.equal(got.decode(torch.float32), stored.decode(torch.float32)[order])
    with pytest.raises(CheckpointError, match="--qkv-layout"):
        load_mimo_v2_qkv_proj_weight(data, scales[:106], layer=layer, num_chunks=chunks)
    with pytest.raises(CheckpointError, match="13568"):
        load_mimo_v2_qkv_proj_weight(data[1:], scales, layer=layer, num_chunks=chunks)


def evidence(
    case: tuple[LayerSpec, int], num_scale_rows: int, data: torch.Tensor | None = None
) -> LayerEvidence:
    def read() -> torch.Tensor:
        assert data is not None, "the counts decide; the data must not be read"
        return data

    return LayerEvidence(
        tensor=f"t{num_scale_rows}", layer=case[0], num_scale_rows=num_scale_rows, read=read
    )


@pytest.mark.parametrize(("rows", "layout"), [(108, CHUNKED), (106, PLAIN)])
def test_the_count_of_scale_rows_decides(rows: int, layout: QkvLayout) -> None:
    found = decide_qkv_layout([evidence(FLASH_FULL, rows)] * 2, num_chunks=4, metadata={})
    assert found is layout


@pytest.mark.parametrize("tp_size", [4, "4"])
def test_the_index_metadata_decides_where_there_are_no_scales(tp_size: object) -> None:
    found = decide_qkv_layout([], num_chunks=4, metadata={"tp_size": tp_size})
    assert found is CHUNKED


@pytest.mark.parametrize("requested", ["chunked", "plain"])
def test_the_user_decides_where_nothing_else_does(requested: str) -> None:
    found = decide_qkv_layout([], num_chunks=4, metadata={}, requested=requested)
    assert found == requested


def test_the_user_may_overrule_metadata_but_not_scales() -> None:
    args = {"num_chunks": 4, "metadata": {"tp_size": 4}}
    assert decide_qkv_layout([], requested="plain", **args) is PLAIN
    assert decide_qkv_layout([evidence(FLASH_FULL, 106)], requested="plain", **args) is PLAIN
    with pytest.raises(CheckpointError, match="--qkv-layout chunked contradicts"):
        decide_qkv_layout([evidence(FLASH_FULL, 106)], requested="chunked", **args)
    with pytest.raises(CheckpointError, match="--qkv-layout plain contradicts"):
        decide_qkv_layout([evidence(FLASH_FULL, 108)], requested="plain", **args)


@pytest.mark.parametrize(
    ("rows", "metadata", "message"),
    [
        ([], {}, "cannot be decided.*--qkv-layout chunked"),
        ([108, 106], {}, "one layout"),
        ([107], {}, "107 rows; chunked rows have 108, plain ones 106"),
        ([106], {"tp_size": 4}, "naive.*--qkv-layout"),
        ([108], {"tp_size": 8}, "tp_size 8.*--qkv-layout"),
        ([108], {"tp_size": "four"}, "not a number"),
    ],
)
def test_evidence_that_disagrees_or_is_missing_is_refused(
    rows: list[int], metadata: dict[str, object], message: str
) -> None:
    items = [evidence(FLASH_FULL, count) for count in rows]
    with pytest.raises(CheckpointError, match=message):
        decide_qkv_layout(items, num_chunks=4, metadata=metadata)


def blind_layer() -> tuple[LayerSpec, int]:
    """Two chunks of 1504 = 11.75 * 128 rows: 2 * 12 scale rows, and ceil(23.5) = 24 as well."""
    layer, _ = FLASH_FULL
    changes = {"num_heads": 12, "num_kv_heads": 2, "v_head_dim": 160}
    fields = {name: getattr(layer, name) for name in layer.__dataclass_fields__}
    return LayerSpec(**{**fields, **changes}), 2


@pytest.mark.parametrize("layout", list(QkvLayout))
def test_the_448_test_decides_where_counts_coincide(layout: QkvLayout) -> None:
    layer, chunks = blind_layer()
    grids = {other: fused_grid(layer, chunks, other) for other in QkvLayout}
    assert grids[CHUNKED].num_scale_rows == grids[PLAIN].num_scale_rows
    assert not grids[CHUNKED].same_blocks(grids[PLAIN])
    torch.manual_seed(5)
    data, scales = encode_fp8(torch.randn(grids[layout].num_rows, 512), grids[layout])
    assert full_blocks(data, grids[layout]) == 1.0
    item = evidence((layer, chunks), len(scales), data)
    assert decide_qkv_layout([item], num_chunks=chunks, metadata={}) is layout


def test_data_without_448_leaves_the_order_undecided() -> None:
    layer, chunks = blind_layer()
    grid = fused_grid(layer, chunks, CHUNKED)
    data = torch.ones(grid.num_rows, 256).to(torch.float8_e4m3fn)
    item = evidence((layer, chunks), grid.num_scale_rows, data)
    with pytest.raises(CheckpointError, match="cannot be decided"):
        decide_qkv_layout([item], num_chunks=chunks, metadata={})
    assert decide_qkv_layout([item], num_chunks=chunks, metadata={"tp_size": 2}) is CHUNKED


def test_zero_blocks_say_nothing() -> None:
    data = torch.zeros(256, 256).to(torch.float8_e4m3fn)
    assert full_blocks(data, RowGrid(256, 128)) == 0.0
    data[0, 0] = 448
    assert full_blocks(data, RowGrid(256, 128)) == 1.0
    data[200, 200] = 416
    assert full_blocks(data, RowGrid(256, 128)) == 0.5


def no_data() -> torch.Tensor:
    raise AssertionError("the counts decide; the data must not be read")


@pytest.mark.parametrize(
    ("rows", "scale_rows", "period"), [(768, 8, 192), (768, 6, 768), (1536, 12, 384)]
)
def test_the_count_tells_the_grid_of_split_tensors(rows: int, scale_rows: int, period: int) -> None:
    assert split_grid("t", rows, scale_rows, 4, no_data) == RowGrid(rows, period)


def test_a_split_grid_that_fits_nothing_is_refused() -> None:
    with pytest.raises(
        CheckpointError, match="t_scale_inv has 7 rows; 768 weight rows need 8 or 6"
    ):
        split_grid("t", 768, 7, 4, no_data)


@pytest.mark.parametrize("period", [96, 192])
def test_the_448_test_tells_split_grids_of_equal_counts(period: int) -> None:
    # 192 rows in two parts of 96, or one of 192: two scale rows either way.
    torch.manual_seed(6)
    data, scales = encode_fp8(torch.randn(192, 512), RowGrid(192, period))
    assert len(scales) == 2
    assert split_grid("t", 192, 2, 2, lambda: data) == RowGrid(192, period)
    with pytest.raises(CheckpointError, match="cannot be decided"):
        split_grid("t", 192, 2, 2, lambda: torch.ones(192, 512).to(torch.float8_e4m3fn))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_plain_reexport_is_recognised_and_loaded(
    small_checkpoint: Callable[..., Any], dtype: torch.dtype
) -> None:
    stored = ExportFormat(projection="plain", linear="fp8", dtype=dtype)
    plain = small_checkpoint(stored, num_mtp_layers=1, name="plain")
    loaded = load_checkpoint(
        plain.model_dir, plain.config, dtype=dtype, keep_quantised=False, num_mtp_layers=1
    )
    for name, weight in plain.weights.items():
        got = loaded[name]
        assert isinstance(got, torch.Tensor)
        assert (got.float() - weight).abs().max() <= 0.04 * weight.abs().max(), name


def test_the_verdict_of_full_layers_holds_for_sliding_and_draft_layers(
    small_checkpoint: Callable[..., Any],
) -> None:
    # The small sliding chunk is 1024 = 8 * 128 rows: blind, as in V2.5.
    official = small_checkpoint(FP8, num_mtp_layers=1, name="official")
    layers = official.config.layers
    grids = [fused_grid(layers[1], 4, layout) for layout in QkvLayout]
    assert grids[0].same_blocks(grids[1])
    plain_format = ExportFormat(projection="plain", linear="fp8", experts="fp8")
    plain = small_checkpoint(plain_format, num_mtp_layers=1, name="plain")
    for checkpoint in (official, plain):
        loaded = load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            dtype=torch.float32,
            keep_quantised=False,
            num_mtp_layers=1,
        )
        for name in ("layers.1", "mtp.layers.0"):
            name += ".self_attn.qkv_proj.weight"
            weight, got = checkpoint.weights[name], loaded[name]
            assert isinstance(got, torch.Tensor)
            assert (got - weight).abs().max() <= 0.04 * weight.abs().max()


@pytest.mark.parametrize("projection", ["fused", "plain"])
def test_a_bf16_checkpoint_without_metadata_needs_the_flag(
    small_checkpoint: Callable[..., Any], projection: Any
) -> None:
    stored = ExportFormat(projection=projection, dtype=torch.float32)
    checkpoint = small_checkpoint(stored)
    index_path = checkpoint.model_dir / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    index["metadata"].pop("tp_size", None)
    index_path.write_text(json.dumps(index))

    def load(qkv_layout: str) -> dict[str, Any]:
        return load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            dtype=torch.float32,
            keep_quantised=True,
            qkv_layout=qkv_layout,
        )

    with pytest.raises(CheckpointError, match=r"--qkv-layout chunked.*plain"):
        load("auto")
    loaded = load("chunked" if projection == "fused" else "plain")
    for name, weight in checkpoint.weights.items():
        assert torch.equal(loaded[name], weight)


@pytest.mark.parametrize(("member", "ranks"), [("v2-flash", 4), ("v2.5", 4), ("v2.6-pro", 8)])
def test_the_quantiser_had_as_many_ranks_as_full_layers_have_kv_heads(
    member: str, ranks: int
) -> None:
    assert num_quantiser_ranks(real_config(member)) == ranks


def test_export_says_which_layout_it_wrote(shrunken: Callable[..., dict[str, Any]]) -> None:
    for projection, layout in (("fused", "fused_qkv"), ("plain", "fused_qkv"), ("split", "split")):
        config = export_config(shrunken(), ExportFormat(projection=projection))
        assert config["attention_projection_layout"] == layout
        assert "quantization_config" not in config

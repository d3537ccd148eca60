"""Loading what export wrote: every format, type, part and place."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimo_engine.checkpoint.export import ExportFormat, export_checkpoint, parts_of
from mimo_engine.checkpoint.index import INDEX_NAME, open_checkpoint
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.params import ParamSpec, parameter_specs
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.checkpoint.verify import count_mtp_layers
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import CheckpointError
from mimo_engine.kernels.quant import Fp8BlockWeight, Mxfp4Weight, RowGrid, encode_fp8

FP8 = ExportFormat(linear="fp8", experts="fp8")
MXFP4 = ExportFormat(linear="fp8", experts="mxfp4", router_dtype=torch.bfloat16)


def decoded(weight: Any, dtype: torch.dtype) -> torch.Tensor:
    return weight if isinstance(weight, torch.Tensor) else weight.decode(dtype)


def cut_of(whole: torch.Tensor, spec: ParamSpec) -> torch.Tensor:
    """One rank's share of a whole parameter."""
    parts, row = [], 0
    for part in spec.parts:
        rows = part.full_shape[0]
        piece = whole.narrow(0 if spec.num_experts is None else 1, row, rows)
        if part.cut is not None and spec.num_experts is not None:
            piece = torch.stack([part.cut.gather(expert) for expert in piece])
        elif part.cut is not None:
            piece = part.cut.gather(piece)
        parts.append(piece)
        row += rows
    return torch.cat(parts, dim=0 if spec.num_experts is None else 1)


@pytest.mark.parametrize("projection", ["fused", "split"])
@pytest.mark.parametrize("tp_size", [1, 2, 3, 8])
def test_float32_weights_come_back_exactly(
    small_checkpoint: Callable[..., Any], projection: Any, tp_size: int
) -> None:
    stored = ExportFormat(projection=projection, dtype=torch.float32)
    checkpoint = small_checkpoint(stored, num_mtp_layers=2)
    for tp_rank in range(tp_size):
        plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_rank)
        loaded = load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            plan,
            dtype=torch.float32,
            keep_quantised=True,
            num_mtp_layers=2,
        )
        specs = parameter_specs(checkpoint.config, plan, num_mtp_layers=2)
        assert list(loaded) == list(specs)
        for name, spec in specs.items():
            assert loaded[name].shape == spec.shape
            assert torch.equal(loaded[name], cut_of(checkpoint.weights[name], spec)), name


@pytest.mark.parametrize(
    ("projection", "linear", "experts"),
    list(itertools.product(("fused", "split"), ("plain", "fp8"), ("plain", "fp8", "mxfp4"))),
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_at_load_equals_decoding_what_was_kept(
    small_checkpoint: Callable[..., Any],
    projection: Any,
    linear: Any,
    experts: Any,
    dtype: torch.dtype,
) -> None:
    stored = ExportFormat(projection=projection, linear=linear, experts=experts)
    checkpoint = small_checkpoint(stored, num_mtp_layers=1)
    plan = ParallelPlan(tp_size=3, tp_rank=1)
    kept, plain = (
        load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            plan,
            dtype=dtype,
            keep_quantised=keep,
            num_mtp_layers=1,
        )
        for keep in (True, False)
    )
    kinds = {type(weight) for weight in kept.values()}
    assert (Fp8BlockWeight in kinds) == ("fp8" in (linear, experts))
    assert (Mxfp4Weight in kinds) == (experts == "mxfp4")
    for name, weight in plain.items():
        assert isinstance(weight, torch.Tensor)
        assert torch.equal(decoded(kept[name], dtype), weight), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_bias_and_sinks_stay_in_float32(
    small_checkpoint: Callable[..., Any], dtype: torch.dtype
) -> None:
    checkpoint = small_checkpoint(MXFP4)
    loaded = load_checkpoint(
        checkpoint.model_dir, checkpoint.config, dtype=dtype, keep_quantised=False
    )
    for name, weight in loaded.items():
        precise = name.endswith(("mlp.gate.weight", "correction_bias", "sink_bias"))
        assert isinstance(weight, torch.Tensor)
        assert weight.dtype is (torch.float32 if precise else dtype), name
    bias = "layers.1.mlp.gate.e_score_correction_bias"
    assert torch.equal(loaded[bias], checkpoint.weights[bias])


def test_bare_shards_load_without_an_index(small_checkpoint: Callable[..., Any]) -> None:
    stored = ExportFormat(projection="split", linear="fp8", experts="mxfp4")
    checkpoint = small_checkpoint(stored)
    args = {"dtype": torch.float32, "keep_quantised": False}
    before = load_checkpoint(checkpoint.model_dir, checkpoint.config, **args)
    (checkpoint.model_dir / INDEX_NAME).unlink()
    after = load_checkpoint(checkpoint.model_dir, checkpoint.config, **args)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_scales_may_lie_in_another_file(small_checkpoint: Callable[..., Any]) -> None:
    checkpoint = small_checkpoint(FP8)
    args = {"dtype": torch.float32, "keep_quantised": True}
    before = load_checkpoint(checkpoint.model_dir, checkpoint.config, **args)
    tensors: dict[str, torch.Tensor] = {}
    for path in checkpoint.model_dir.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    weight_map = {}
    for file, is_scale in (("a.safetensors", True), ("b.safetensors", False)):
        part = {n: t for n, t in tensors.items() if n.endswith("_scale_inv") == is_scale}
        save_file(part, checkpoint.model_dir / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"tp_size": 4}, "weight_map": weight_map}
    (checkpoint.model_dir / INDEX_NAME).write_text(json.dumps(index))
    after = load_checkpoint(checkpoint.model_dir, checkpoint.config, **args)
    for name, weight in before.items():
        assert torch.equal(decoded(weight, torch.float32), decoded(after[name], torch.float32))


def quantise_o_proj(model_dir: Path) -> None:
    """Store every o_proj in FP8, which no official file does, but the format allows."""
    index = json.loads((model_dir / INDEX_NAME).read_text())
    for path in model_dir.glob("*.safetensors"):
        tensors = load_file(path)
        for name in [name for name in tensors if name.endswith("o_proj.weight")]:
            weight = tensors[name]
            data, scales = encode_fp8(weight, RowGrid(len(weight), len(weight)))
            tensors |= {name: data, f"{name}_scale_inv": scales}
            index["weight_map"][f"{name}_scale_inv"] = path.name
        save_file(tensors, path)
    (model_dir / INDEX_NAME).write_text(json.dumps(index))


@pytest.mark.parametrize("v_head_dim", [128, 64])
def test_an_fp8_o_proj_is_cut_between_scale_blocks_or_refused(
    small_checkpoint: Callable[..., Any], v_head_dim: int
) -> None:
    widths = {"v_head_dim": v_head_dim, "swa_v_head_dim": v_head_dim}
    stored = ExportFormat(projection="split", linear="fp8")
    checkpoint = small_checkpoint(stored, **widths)
    quantise_o_proj(checkpoint.model_dir)

    def load(tp_rank: int, tp_size: int) -> torch.Tensor:
        loaded = load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            ParallelPlan(tp_size=tp_size, tp_rank=tp_rank),
            dtype=torch.float32,
            keep_quantised=True,
        )
        weight = loaded["layers.1.self_attn.o_proj.weight"]
        assert isinstance(weight, Fp8BlockWeight)
        return weight.decode(torch.float32)

    whole = load(0, 1)
    if v_head_dim == 128:
        assert torch.equal(torch.cat([load(rank, 8) for rank in range(8)], dim=1), whole)
    else:
        with pytest.raises(CheckpointError, match=r"o_proj.*store it unquantised"):
            load(1, 8)


def test_draft_layers_are_counted_from_the_files(small_checkpoint: Callable[..., Any]) -> None:
    checkpoint = small_checkpoint(FP8, num_mtp_layers=3)
    assert count_mtp_layers(open_checkpoint(checkpoint.model_dir)) == 3
    for wanted in (0, 1, 3):
        loaded = load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            dtype=torch.float32,
            keep_quantised=True,
            num_mtp_layers=wanted,
        )
        drafts = {name.split(".")[2] for name in loaded if name.startswith("mtp.")}
        assert len(drafts) == wanted


def test_towers_are_ignored_for_a_reason_that_the_report_gives(
    small_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = small_checkpoint(FP8, num_mtp_layers=1)
    towers = {
        "visual.patch_embed.proj.weight": torch.ones(2, 3, 2, 4, 4),
        "visual.blocks.1.attn.sinks": torch.ones(2),
        "visual.blocks.0.mlp.gate_proj.bias": torch.ones(2),
        "visual.merger.mlp.2.weight": torch.ones(2, 2),
        "audio_encoder.input_local_transformer.layers.0.self_attn.q_proj.bias": torch.ones(2),
        "audio_encoder.projection.mlp.0.weight": torch.ones(2, 2),
        "speech_embeddings.19.weight": torch.ones(2, 2),
    }
    file = "towers.safetensors"
    save_file(towers, checkpoint.model_dir / file)
    index_path = checkpoint.model_dir / INDEX_NAME
    index = json.loads(index_path.read_text())
    index["weight_map"] |= dict.fromkeys(towers, file)
    index_path.write_text(json.dumps(index))
    load_checkpoint(
        checkpoint.model_dir, checkpoint.config, dtype=torch.float32, keep_quantised=True
    )
    report = inspect_checkpoint(checkpoint.model_dir, checkpoint.config, deep=True)
    assert report.problems == ()
    assert report.ignored == {
        "vision tower; only text is served": 4,
        "audio tower; only text is served": 2,
        "audio code embeddings; only text is served": 1,
    }
    assert report.projection == "chunked"
    assert report.num_mtp_layers == 1
    assert report.formats["experts"] == {"fp8": 2 * 3 * 3}
    assert report.formats["attention"]["fp8"] == 4
    assert report.num_tensors == len(report.tensors) == len(index["weight_map"])
    assert all(line.use for line in report.tensors)


def test_the_deep_report_finds_values_that_are_not_numbers(
    small_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = small_checkpoint(FP8, max_shard_bytes=2**30)
    path = checkpoint.model_dir / "model_pp0_ep0_shard0.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = float("inf")
    expert = "model.layers.1.mlp.experts.0.up_proj.weight"
    tensors[expert].view(torch.uint8)[0, 0] = 0x7F
    save_file(tensors, path)
    assert inspect_checkpoint(checkpoint.model_dir, checkpoint.config).problems == ()
    deep = inspect_checkpoint(checkpoint.model_dir, checkpoint.config, deep=True)
    assert len(deep.problems) == 2
    for problem in deep.problems:
        assert "1 values that are NaN or infinite" in problem
        assert expert in problem or "model.norm.weight" in problem


def test_export_does_not_write_over_a_checkpoint(small_checkpoint: Callable[..., Any]) -> None:
    checkpoint = small_checkpoint(FP8)
    read = parts_of(checkpoint.weights)
    with pytest.raises(CheckpointError, match="already has safetensors files"):
        export_checkpoint(checkpoint.model_dir, checkpoint.config, read, FP8)


def test_exported_files_keep_to_their_size_and_sum_to_the_index(
    small_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = small_checkpoint(FP8, num_mtp_layers=1, max_shard_bytes=2**20)
    index = json.loads((checkpoint.model_dir / INDEX_NAME).read_text())
    opened = open_checkpoint(checkpoint.model_dir)
    assert index["metadata"] == {"total_size": opened.num_bytes, "tp_size": 4}
    sizes: dict[str, list[int]] = {}
    for info in opened.tensors.values():
        sizes.setdefault(info.file, []).append(info.nbytes)
    drafts = [n for n in opened.tensors if n.startswith("model.mtp.")]
    assert {opened.tensors[n].file for n in drafts} == {"model_mtp.safetensors"}
    assert len(drafts) == len(sizes.pop("model_mtp.safetensors")) == 16
    assert len(sizes) > 3
    for tensors in sizes.values():
        assert sum(tensors) <= 2**20 or len(tensors) == 1


_MEASURE = """
import sys
import torch
from pathlib import Path
from mimo_engine.config.model import load_model_config
from mimo_engine.checkpoint.load import load_checkpoint

def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

peak = 0
def watch(frame, event, argument):
    global peak
    if event == "c_return":
        peak = max(peak, anonymous())

model_dir = Path(sys.argv[1])
config = load_model_config(model_dir)
before = anonymous()
sys.setprofile(watch)
weights = load_checkpoint(
    model_dir, config, dtype=torch.bfloat16, keep_quantised=sys.argv[2] == "keep"
)
sys.setprofile(None)
print(peak - before - sum(weight.nbytes for weight in weights.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("mode", ["decode", pytest.param("keep", marks=pytest.mark.prove)])
def test_loading_needs_little_more_memory_than_the_weights(
    small_checkpoint: Callable[..., Any], mode: str
) -> None:
    checkpoint = small_checkpoint(FP8, hidden_size=1024, intermediate_size=24576)
    (checkpoint.model_dir / "config.json").write_text(json.dumps(checkpoint.raw))
    command = [sys.executable, "-c", _MEASURE, str(checkpoint.model_dir), mode]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # Slabs of decoding and code; a second copy of the weights would be twice as much.
    assert int(done.stdout) < 100e6

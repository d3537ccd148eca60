"""Every way to damage a checkpoint is refused, by a message with the tensor and the remedy."""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimo_engine.checkpoint.export import ExportFormat
from mimo_engine.checkpoint.index import INDEX_NAME
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.config.model import parse_model_config
from mimo_engine.errors import CheckpointError, ConfigError

FP8 = ExportFormat(linear="fp8", experts="fp8")
MXFP4 = ExportFormat(linear="fp8", experts="mxfp4", router_dtype=torch.bfloat16)
SPLIT = ExportFormat(projection="split", linear="fp8", experts="fp8")
AGAIN = r"[Dd]ownload"
RESTORE = r"restore the official"

LAYER = "model.layers.1"
FULL_QKV = "model.layers.0.self_attn.qkv_proj.weight"
SLIDING_QKV = f"{LAYER}.self_attn.qkv_proj.weight"
EXPERT = f"{LAYER}.mlp.experts.2.gate_proj.weight"
BIAS = f"{LAYER}.mlp.gate.e_score_correction_bias"
SINK = f"{LAYER}.self_attn.attention_sink_bias"
O_PROJ = "model.layers.2.self_attn.o_proj.weight"


@dataclass(kw_only=True)
class Checkpoint:
    """A checkpoint taken apart: a test changes it, `write` puts it back together."""

    tensors: dict[str, torch.Tensor]
    raw: dict[str, Any]
    metadata: dict[str, Any]
    extra_files: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def write(self, model_dir: Path) -> None:
        model_dir.mkdir()
        save_file(self.tensors, model_dir / "model.safetensors")
        for name, tensors in self.extra_files.items():
            save_file(tensors, model_dir / name)
        weight_map = dict.fromkeys(self.tensors, "model.safetensors")
        for name, tensors in self.extra_files.items():
            weight_map |= dict.fromkeys(tensors, name)
        index = {"metadata": self.metadata, "weight_map": weight_map}
        (model_dir / INDEX_NAME).write_text(json.dumps(index))

    def rename(self, old: str, new: str) -> None:
        self.tensors[new] = self.tensors.pop(old)


def taken_apart(checkpoint: Any) -> Checkpoint:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(checkpoint.model_dir.glob("*.safetensors")):
        tensors |= load_file(path)
    index = json.loads((checkpoint.model_dir / INDEX_NAME).read_text())
    return Checkpoint(tensors=tensors, raw=checkpoint.raw, metadata=index["metadata"])


Damage = Callable[[Checkpoint], None]


def drop(name: str) -> Damage:
    def damage(c: Checkpoint) -> None:
        del c.tensors[name]

    return damage


def replace(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    def damage(c: Checkpoint) -> None:
        c.tensors[name] = change(c.tensors[name]).contiguous()

    return damage


def configure(**changes: Any) -> Damage:
    return lambda c: c.raw.update(changes)


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Put `value` at a seeded place."""

    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        flat = tensor.view(-1)
        flat[random.Random(3).randrange(len(flat))] = value
        return tensor

    return change


def add(name: str, tensor: torch.Tensor) -> Damage:
    return lambda c: c.tensors.update({name: tensor})


def naive_grid(c: Checkpoint) -> None:
    """The scales of one full layer on one continuous grid, under official metadata."""
    scales = c.tensors[FULL_QKV + "_scale_inv"]
    c.tensors[FULL_QKV + "_scale_inv"] = scales[: -(-c.tensors[FULL_QKV].shape[0] // 128)].clone()


def naive_grid_everywhere(c: Checkpoint) -> None:
    for name in list(c.tensors):
        if name.endswith("qkv_proj.weight_scale_inv"):
            rows = c.tensors[name.removesuffix("_scale_inv")].shape[0]
            c.tensors[name] = c.tensors[name][: -(-rows // 128)].clone()


def swap_layer_kinds(c: Checkpoint) -> None:
    c.raw["hybrid_layer_pattern"] = [1, 0, 0]


def swap_layer_kinds_of_equal_geometry(c: Checkpoint) -> None:
    """As in Pro, where only the sinks tell the kinds apart."""
    c.tensors.pop(SINK)
    c.tensors["model.layers.2.self_attn.attention_sink_bias"] = torch.zeros(8).bfloat16()


def read_mxfp4_as_fp8(c: Checkpoint) -> None:
    for name in list(c.tensors):
        if ".experts." in name and name.endswith("weight_scale"):
            c.rename(name, name + "_inv")


def store_one_expert_in_bf16(c: Checkpoint) -> None:
    del c.tensors[EXPERT + "_scale_inv"]
    c.tensors[EXPERT] = c.tensors[EXPERT].bfloat16()


def hide_metadata(c: Checkpoint) -> None:
    c.metadata.pop("tp_size")
    for name in list(c.tensors):
        if name.endswith("qkv_proj.weight"):
            rows, columns = c.tensors[name].shape
            c.tensors[name] = torch.zeros(rows, columns).bfloat16()
            c.tensors.pop(name + "_scale_inv")


DAMAGES: dict[str, tuple[ExportFormat, Damage, str]] = {
    "missing_tensor": (FP8, drop(O_PROJ), f"{O_PROJ} is missing: {AGAIN}"),
    "missing_expert": (FP8, drop(EXPERT), f"{EXPERT} is missing: {AGAIN}"),
    "missing_sink": (FP8, drop(SINK), f"{SINK} is missing.*sliding.*{RESTORE}"),
    "missing_scale": (FP8, drop(EXPERT + "_scale_inv"), f"{EXPERT} is fp8, but.*missing.*{AGAIN}"),
    "missing_qkv_scale": (
        FP8,
        drop(SLIDING_QKV + "_scale_inv"),
        f"{SLIDING_QKV} is fp8, but its scales.*missing.*{AGAIN}",
    ),
    "extra_tensor": (
        FP8,
        add("model.layers.1.self_attn.q_norm.weight", torch.ones(192)),
        r"layers\.1\.self_attn\.q_norm\.weight fills no parameter.*remove it",
    ),
    "extra_layer": (
        FP8,
        add("model.layers.3.input_layernorm.weight", torch.ones(256)),
        rf"layers\.3\.input_layernorm\.weight is beyond the 3 layers.*{RESTORE}",
    ),
    "extra_scale": (
        FP8,
        add(O_PROJ + "_scale_inv", torch.ones(2, 8)),
        f"{O_PROJ}_scale_inv is a scale without a quantised weight: {AGAIN}",
    ),
    "one_scale_for_the_tensor": (
        FP8,
        replace(FULL_QKV + "_scale_inv", lambda t: t.amax()),
        rf"{FULL_QKV}_scale_inv is \[\], not one scale a block.*{RESTORE}",
    ),
    "scalar_in_place_of_a_matrix": (
        FP8,
        replace(FULL_QKV, lambda t: t[0, 0]),
        rf"{FULL_QKV} is \[\], not \[2816, 256\].*{AGAIN}",
    ),
    "tower_without_config": (
        FP8,
        add("vit.blocks.0.norm1.weight", torch.ones(8)),
        r"vit\.blocks\.0\.norm1\.weight fills no parameter",
    ),
    "wrong_shape": (
        FP8,
        replace(f"{LAYER}.input_layernorm.weight", lambda t: t[:-1]),
        rf"{LAYER}\.input_layernorm\.weight is \[255\], not \[256\].*{AGAIN}",
    ),
    "transposed": (
        FP8,
        replace(O_PROJ, torch.t),
        rf"{O_PROJ} is \[1024, 256\], not \[256, 1024\].*{AGAIN}",
    ),
    "wrong_dtype": (
        FP8,
        replace(O_PROJ, lambda t: t.to(torch.int8)),
        rf"{O_PROJ} is torch\.int8, which no weight.*{AGAIN}",
    ),
    "fp8_of_the_other_kind": (
        FP8,
        replace(EXPERT, lambda t: t.float().to(torch.float8_e5m2)),
        rf"{EXPERT} is torch\.float8_e5m2.*{AGAIN}",
    ),
    "rounded_bias": (
        FP8,
        replace(BIAS, torch.Tensor.bfloat16),
        f"{BIAS} is torch.bfloat16, but must be float32.*{RESTORE}",
    ),
    "quantised_norm": (
        FP8,
        replace("model.norm.weight", lambda t: t.float().to(torch.float8_e4m3fn)),
        rf"model\.norm\.weight is torch\.float8_e4m3fn, but.*never quantised: {AGAIN}",
    ),
    "vocabulary": (
        FP8,
        configure(vocab_size=512),
        r"embed_tokens\.weight is \[640, 256\], not \[512, 256\].*vocab_size 512.*config\.json",
    ),
    "hidden_size": (
        FP8,
        configure(hidden_size=128),
        r"norm\.weight is \[256\], not \[128\].*config\.json",
    ),
    "fewer_experts_in_config": (
        FP8,
        configure(n_routed_experts=2),
        r"mlp\.gate\.weight is \[3, 256\], not \[2, 256\]",
    ),
    "swapped_layer_kinds": (
        FP8,
        swap_layer_kinds,
        rf"layers\.0\.self_attn\.qkv_proj\.weight is \[2816, 256\], not \[4096, 256\].*full layer.*"
        rf"layer 0 sliding.*{RESTORE}.*hybrid_layer_pattern",
    ),
    "swapped_sinks": (
        FP8,
        swap_layer_kinds_of_equal_geometry,
        rf"{SINK} is missing.*{RESTORE}",
    ),
    "naive_grid_in_one_layer": (
        FP8,
        naive_grid,
        rf"{FULL_QKV}_scale_inv those of one continuous \(naive\) grid.*{RESTORE}",
    ),
    "naive_grid_everywhere": (
        FP8,
        naive_grid_everywhere,
        rf"{FULL_QKV}_scale_inv has one continuous \(naive\) scale grid.*--qkv-layout",
    ),
    "scale_grid_of_another_block": (
        FP8,
        replace(EXPERT + "_scale_inv", lambda t: t.repeat(2, 1)),
        rf"{EXPERT}_scale_inv is \[2, 2\], not \[1, 2\].*{RESTORE}",
    ),
    "k_proj_grid": (
        SPLIT,
        replace("model.layers.0.self_attn.k_proj.weight_scale_inv", lambda t: t[:7]),
        rf"k_proj\.weight_scale_inv has 7 rows; 768 weight rows need 8 or 6: {RESTORE}",
    ),
    "scale_nan": (
        FP8,
        replace(EXPERT + "_scale_inv", with_value(float("nan"))),
        f"{EXPERT}_scale_inv has 1 negative, infinite or NaN.*{AGAIN}",
    ),
    "scale_infinite": (
        FP8,
        replace(FULL_QKV + "_scale_inv", with_value(float("inf"))),
        f"{FULL_QKV}_scale_inv has 1 negative, infinite or NaN.*{AGAIN}",
    ),
    "scale_negative": (
        FP8,
        replace(FULL_QKV + "_scale_inv", with_value(-1.0)),
        f"{FULL_QKV}_scale_inv has 1 negative.*{AGAIN}",
    ),
    "exponent_255": (
        MXFP4,
        replace(EXPERT + "_scale", with_value(255)),
        f"{EXPERT}_scale has 1 exponent bytes 255.*{AGAIN}",
    ),
    "mxfp4_scale_read_as_fp8": (
        MXFP4,
        read_mxfp4_as_fp8,
        rf"{EXPERT} is mxfp4, but its scales {EXPERT}_scale are missing.*other format.*{AGAIN}",
    ),
    "fp8_scale_is_an_exponent": (
        FP8,
        replace(EXPERT + "_scale_inv", lambda t: torch.full(t.shape, 120, dtype=torch.uint8)),
        rf"{EXPERT}_scale_inv is torch\.uint8 \(exponents of MXFP4\).*{RESTORE}",
    ),
    "mxfp4_scale_is_a_float": (
        MXFP4,
        replace(EXPERT + "_scale", torch.Tensor.float),
        rf"{EXPERT}_scale is torch\.float32.*{RESTORE}",
    ),
    "store_dtype_says_fp8": (
        MXFP4,
        lambda c: c.raw["quantization_config"].update(store_dtype="fp8"),
        rf"{EXPERT} is torch\.uint8, that is MXFP4, but.*store_dtype.*{RESTORE}",
    ),
    "store_dtype_says_mxfp4": (
        FP8,
        lambda c: c.raw["quantization_config"].update(store_dtype="mxfp4"),
        rf"{EXPERT} is torch\.float8_e4m3fn, but.*experts are mxfp4: {RESTORE}",
    ),
    "no_quantization_config": (
        FP8,
        configure(quantization_config=None),
        rf"{EXPERT} is torch\.float8_e4m3fn, that is quantised.*{RESTORE}",
    ),
    "one_expert_in_bf16": (
        FP8,
        store_one_expert_in_bf16,
        rf"{EXPERT} is plain, but others of layers\.1\.mlp\.experts\.gate_up.* are fp8",
    ),
    "undecidable_layout": (
        FP8,
        hide_metadata,
        r"row order of the fused qkv_proj.*--qkv-layout chunked",
    ),
    "split_called_fused": (
        SPLIT,
        configure(attention_projection_layout="fused_qkv"),
        r"split q_proj.*set it to 'split'",
    ),
    "fused_called_split": (
        FP8,
        configure(attention_projection_layout="split"),
        r"fused qkv_proj tensors.*attention_projection_layout.*set it",
    ),
    "tp_size_of_another_model": (
        FP8,
        lambda c: c.metadata.update(tp_size=8),
        r"tp_size 8.*num_key_value_heads.*--qkv-layout",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, small_checkpoint: Callable[..., Any], name: str
) -> None:
    stored, damage, message = DAMAGES[name]
    checkpoint = taken_apart(small_checkpoint(stored, num_mtp_layers=1))
    damage(checkpoint)
    checkpoint.write(tmp_path / "damaged")
    config = parse_model_config(checkpoint.raw)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(
            tmp_path / "damaged",
            config,
            dtype=torch.float32,
            keep_quantised=True,
            num_mtp_layers=1,
        )
    report = inspect_checkpoint(tmp_path / "damaged", config, deep=True)
    problems = "\n".join(report.problems)
    assert re.search(message, problems), problems
    if len(report.problems) <= 8:
        assert re.search(message, str(caught.value))
    else:
        # The error shows the first problems; `check` lists all.
        assert report.problems[0] in str(caught.value)
        assert "more: `mimo-engine check` lists them" in str(caught.value)


def test_the_undamaged_checkpoints_load(
    tmp_path: Path, small_checkpoint: Callable[..., Any]
) -> None:
    for i, stored in enumerate((FP8, MXFP4, SPLIT)):
        original = small_checkpoint(stored, num_mtp_layers=1, name=f"m{i}")
        checkpoint = taken_apart(original)
        checkpoint.write(tmp_path / str(i))
        load_checkpoint(
            tmp_path / str(i), original.config, dtype=torch.float32, keep_quantised=True
        )


def test_unknown_config_keys_are_refused(shrunken: Callable[..., dict[str, Any]]) -> None:
    with pytest.raises(ConfigError, match=r"'attention_sinks'.*--ignore-config-key"):
        parse_model_config(shrunken(attention_sinks=4))


def test_asking_for_more_draft_layers_than_there_are_is_refused(
    small_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = small_checkpoint(FP8, num_mtp_layers=1)
    with pytest.raises(CheckpointError, match=r"model\.mtp\.layers\.1\.enorm\.weight is missing"):
        load_checkpoint(
            checkpoint.model_dir,
            checkpoint.config,
            dtype=torch.float32,
            keep_quantised=True,
            num_mtp_layers=2,
        )


def test_a_damaged_draft_layer_is_noticed_even_when_drafts_are_off(
    tmp_path: Path, small_checkpoint: Callable[..., Any]
) -> None:
    original = small_checkpoint(FP8, num_mtp_layers=2)
    checkpoint = taken_apart(original)
    checkpoint.tensors["model.mtp.layers.0.shared_head.weight"] = torch.ones(3)
    checkpoint.write(tmp_path / "extra")
    with pytest.raises(CheckpointError, match=r"shared_head\.weight is no tensor of a draft"):
        load_checkpoint(
            tmp_path / "extra", original.config, dtype=torch.float32, keep_quantised=True
        )


def test_a_gap_in_the_draft_layers_is_reported(
    tmp_path: Path, small_checkpoint: Callable[..., Any]
) -> None:
    original = small_checkpoint(FP8, num_mtp_layers=3)
    checkpoint = taken_apart(original)
    for name in [n for n in checkpoint.tensors if n.startswith("model.mtp.layers.1.")]:
        checkpoint.tensors.pop(name)
    checkpoint.write(tmp_path / "gap")
    report = inspect_checkpoint(tmp_path / "gap", original.config)
    assert any("numbered [0, 2]" in problem for problem in report.problems)

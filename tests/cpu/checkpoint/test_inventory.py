"""The released checkpoints, header by header: names, shapes and types as published (text.md 3, 4,
mtp.md 5.2, vision.md 3, audio.md 5), written out here independently, in sparse files of full size
without data."""

import json
import math
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from mimo_engine.checkpoint.export_towers import write_tower_configs
from mimo_engine.checkpoint.index import INDEX_NAME
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.cli.tower_files import RELEASED_AUDIO_TOKENIZER, RELEASED_PREPROCESSOR
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import parse_model_config

DATA = Path(__file__).parents[2] / "data"
ITEM_BYTES = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}
Entry = tuple[str, str, tuple[int, ...]]


def fp8(name: str, rows: int, columns: int, scale_rows: int | None = None) -> Iterator[Entry]:
    yield name, "F8_E4M3", (rows, columns)
    yield name + "_scale_inv", "F32", (scale_rows or rows // 128, columns // 128)


def mxfp4(name: str, rows: int, columns: int) -> Iterator[Entry]:
    yield name, "U8", (rows, columns // 2)
    yield name + "_scale", "U8", (rows, columns // 32)


def attention(prefix: str, hidden: int, *, sliding: bool, split: bool) -> Iterator[Entry]:
    is_pro = hidden == 6144
    if split:
        yield from fp8(f"{prefix}q_proj.weight", 12288, hidden)
        if sliding:
            yield from fp8(f"{prefix}k_proj.weight", 1536, hidden)
            yield from fp8(f"{prefix}v_proj.weight", 1024, hidden)
        else:
            yield from fp8(f"{prefix}k_proj.weight", 768, hidden, scale_rows=8)
            yield from fp8(f"{prefix}v_proj.weight", 512, hidden)
    elif is_pro:
        yield from fp8(f"{prefix}qkv_proj.weight", 27136, hidden, scale_rows=216)
    elif sliding:
        yield from fp8(f"{prefix}qkv_proj.weight", 14848, hidden, scale_rows=116)
    else:
        yield from fp8(f"{prefix}qkv_proj.weight", 13568, hidden, scale_rows=108)
    yield f"{prefix}o_proj.weight", "BF16", (hidden, 16384 if is_pro else 8192)
    if sliding:
        yield f"{prefix}attention_sink_bias", "BF16", (128 if is_pro else 64,)


def dense_mlp(prefix: str, hidden: int) -> Iterator[Entry]:
    yield from fp8(f"{prefix}gate_proj.weight", 16384, hidden)
    yield from fp8(f"{prefix}up_proj.weight", 16384, hidden)
    yield from fp8(f"{prefix}down_proj.weight", hidden, 16384)


def tensors(raw: dict[str, Any], router: str) -> Iterator[Entry]:
    hidden, experts = raw["hidden_size"], raw["n_routed_experts"]
    split = "attention_projection_layout" not in raw
    weight = mxfp4 if raw["quantization_config"].get("store_dtype") == "mxfp4" else fp8
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        yield name, "BF16", (152576, hidden)
    yield "model.norm.weight", "BF16", (hidden,)
    for i, sliding in enumerate(raw["hybrid_layer_pattern"]):
        layer = f"model.layers.{i}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}{norm}.weight", "BF16", (hidden,)
        yield from attention(f"{layer}self_attn.", hidden, sliding=bool(sliding), split=split)
        if i == 0:
            yield from dense_mlp(f"{layer}mlp.", hidden)
            continue
        yield f"{layer}mlp.gate.weight", router, (experts, hidden)
        yield f"{layer}mlp.gate.e_score_correction_bias", "F32", (experts,)
        for e in range(experts):
            expert = f"{layer}mlp.experts.{e}."
            yield from weight(f"{expert}gate_proj.weight", 2048, hidden)
            yield from weight(f"{expert}up_proj.weight", 2048, hidden)
            yield from weight(f"{expert}down_proj.weight", hidden, 2048)
    for n in range(3):
        layer = f"model.mtp.layers.{n}."
        for norm in ("enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm"):
            yield f"{layer}{norm}.weight", "BF16", (hidden,)
        yield f"{layer}eh_proj.weight", "BF16", (hidden, 2 * hidden)
        yield from attention(f"{layer}self_attn.", hidden, sliding=True, split=split)
        yield from dense_mlp(f"{layer}mlp.", hidden)


def vision_tower() -> Iterator[Entry]:
    yield "visual.patch_embed.proj.weight", "BF16", (1280, 3, 2, 16, 16)
    for i in range(28):
        block = f"visual.blocks.{i}."
        for name, rows, columns in (
            ("attn.qkv", 3072, 1280),
            ("attn.proj", 1280, 2048),
            ("mlp.gate_proj", 4608, 1280),
            ("mlp.up_proj", 4608, 1280),
            ("mlp.down_proj", 1280, 4608),
        ):
            yield f"{block}{name}.weight", "BF16", (rows, columns)
            yield f"{block}{name}.bias", "BF16", (rows,)
        yield f"{block}norm1.weight", "BF16", (1280,)
        yield f"{block}norm2.weight", "BF16", (1280,)
        if i not in (0, 9, 18, 27):
            yield f"{block}attn.sinks", "BF16", (32,)
    yield "visual.merger.ln_q.weight", "BF16", (1280,)
    yield "visual.merger.mlp.0.weight", "BF16", (5120, 5120)
    yield "visual.merger.mlp.2.weight", "BF16", (4096, 5120)


def audio_encoder() -> Iterator[Entry]:
    for channel in range(20):
        yield f"speech_embeddings.{channel}.weight", "BF16", (1280, 1024)
    prefix = "audio_encoder.input_local_transformer."
    for i in range(6):
        layer = f"{prefix}layers.{i}."
        yield f"{layer}input_layernorm.weight", "BF16", (1024,)
        yield f"{layer}post_attention_layernorm.weight", "BF16", (1024,)
        for part in "qkv":
            yield f"{layer}self_attn.{part}_proj.weight", "BF16", (1024, 1024)
            yield f"{layer}self_attn.{part}_proj.bias", "BF16", (1024,)
        yield f"{layer}self_attn.o_proj.weight", "BF16", (1024, 1024)
        yield f"{layer}mlp.gate_proj.weight", "BF16", (4096, 1024)
        yield f"{layer}mlp.up_proj.weight", "BF16", (4096, 1024)
        yield f"{layer}mlp.down_proj.weight", "BF16", (1024, 4096)
    yield f"{prefix}norm.weight", "BF16", (1024,)
    yield "audio_encoder.projection.mlp.0.weight", "BF16", (16384, 4096)
    yield "audio_encoder.projection.mlp.2.weight", "BF16", (4096, 16384)


def audio_tokenizer() -> Iterator[Entry]:
    yield "encoder.conv1.weight", "BF16", (1024, 128, 3)
    yield "encoder.conv2.weight", "BF16", (1024, 1024, 3)
    biased = ["conv1", "conv2", "layer_norm", "down_sample_norm"]
    for i in range(24):
        for part in "qkv":
            yield f"encoder.layers.{i}.self_attn.{part}_proj.weight", "BF16", (1024, 1024)
        yield f"encoder.layers.{i}.self_attn.out_proj.weight", "BF16", (1024, 1024)
        yield f"encoder.layers.{i}.fc1.weight", "BF16", (4096, 1024)
        yield f"encoder.layers.{i}.fc1.bias", "BF16", (4096,)
        yield f"encoder.layers.{i}.fc2.weight", "BF16", (1024, 4096)
        for name in ("q_proj", "v_proj", "out_proj"):
            biased.append(f"layers.{i}.self_attn.{name}")
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            yield f"encoder.layers.{i}.{name}.weight", "BF16", (1024,)
            biased.append(f"layers.{i}.{name}")
        biased.append(f"layers.{i}.fc2")
    for name in biased:
        yield f"encoder.{name}.bias", "BF16", (1024,)
    yield "encoder.layer_norm.weight", "BF16", (1024,)
    yield "encoder.down_sample_norm.weight", "BF16", (1024,)
    yield "encoder.down_sample_layer.0.weight", "BF16", (1024, 1024, 2)
    for level, size in enumerate((1024, 1024, 256, *(128,) * 17)):
        codebook = f"encoder.quantizer.vq.layers.{level}._codebook."
        yield f"{codebook}embed", "F32", (size, 1024)
        yield f"{codebook}embed_avg", "F32", (size, 1024)
        yield f"{codebook}cluster_size", "F32", (size,)
        yield f"{codebook}inited", "F32", (1,)


def write_sparse(model_dir: Path, entries: Iterator[Entry]) -> int:
    """Write headers, and as many absent zeros as they call for; the number of tensors."""
    files: dict[str, tuple[dict[str, Any], int]] = {}
    for name, dtype, shape in entries:
        file = "model_mtp" if ".mtp." in name else "model_pp0_ep0_shard0"
        header, start = files.get(file, ({}, 0))
        end = start + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        files[file] = (header, end)
    weight_map = {}
    for file, (header, num_bytes) in files.items():
        text = json.dumps(header).encode()
        path = model_dir / f"{file}.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        os.truncate(path, 8 + len(text) + num_bytes)
        weight_map |= dict.fromkeys(header, path.name)
    (model_dir / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return len(weight_map)


PROVE = pytest.mark.prove


@pytest.mark.parametrize(
    ("member", "router", "num_tensors", "num_bytes", "projection", "experts"),
    [
        ("v2.6-flash", "BF16", 382 + 72192 + 48, 170.94e9, "chunked", "mxfp4"),
        pytest.param("v2-flash", "F32", 72826, 313.1e9, "split", "fp8", marks=PROVE),
        pytest.param("v2.5", "F32", 382 + 72192 + 48, 313.1e9, "chunked", "fp8", marks=PROVE),
        # The total_size of the released index, to the byte.
        pytest.param("v2.5-pro", "F32", 159581, 1033369538304, "chunked", "fp8", marks=PROVE),
        pytest.param("v2.6-pro", "BF16", 159581, 564.0e9, "chunked", "mxfp4", marks=PROVE),
    ],
)
def test_a_released_checkpoint_is_whole(
    tmp_path: Path,
    member: str,
    router: str,
    num_tensors: int,
    num_bytes: float,
    projection: str,
    experts: str,
) -> None:
    raw = json.loads((DATA / f"config-mimo-{member}.json").read_text())
    assert write_sparse(tmp_path, tensors(raw, router)) == num_tensors
    report = inspect_checkpoint(tmp_path, parse_model_config(raw))
    assert report.problems == ()
    assert report.num_tensors == num_tensors
    if isinstance(num_bytes, int):
        assert report.num_bytes == num_bytes
    else:
        assert report.num_bytes == pytest.approx(num_bytes, rel=1e-3)
    assert report.projection == projection
    assert report.num_mtp_layers == 3
    assert list(report.formats["experts"]) == [experts]
    assert report.formats["attention"].keys() == {"fp8", "bfloat16"}


@pytest.mark.parametrize(
    ("member", "router"),
    [("v2.6-flash", "BF16"), pytest.param("v2.5", "F32", marks=PROVE)],
)
def test_a_released_checkpoint_with_towers_is_whole(
    tmp_path: Path, member: str, router: str
) -> None:
    raw = json.loads((DATA / f"config-mimo-{member}.json").read_text())
    entries = chain(tensors(raw, router), vision_tower(), audio_encoder())
    # The published number of tensors (vision.md, CKPT).
    assert write_sparse(tmp_path, entries) == 73_081
    write_tower_configs(
        tmp_path, audio_tokenizer=RELEASED_AUDIO_TOKENIZER, preprocessor=RELEASED_PREPROCESSOR
    )
    assert write_sparse(tmp_path / AUDIO_TOKENIZER_DIR, audio_tokenizer()) == 369 + 4 * 20
    config = parse_model_config(raw)
    media = load_media_config(tmp_path, config.media, MediaFacts(), hidden_size=config.hidden_size)
    report = inspect_checkpoint(tmp_path, config, media=media)
    assert report.problems == ()
    assert report.ignored == {"moving averages of the codebooks; training only": 3 * 20}
    assert report.formats["vision tower"] == {"bfloat16": 364}
    assert report.formats["audio encoder"] == {"bfloat16": 95}
    assert report.formats["audio tokenizer"] == {"bfloat16": 369, "float32": 20}
    vision_bytes = sum(t.nbytes for t in report.tensors if t.name.startswith("visual."))
    assert vision_bytes == 1_457_188_864

"""`mimo-engine random-checkpoint`: an official layout with random weights, whole and servable.

The built-in configuration is small, but of the family's shape: layer kinds that do not repeat with
a period, the real head sizes, T = 4 fused chunks whose scale blocks straddle K and V, experts,
draft layers, vocabulary rows that no token has, and towers for images and sound. The same seed
gives the same files. Tensors are made one at a time, so real widths need little memory.
"""

from __future__ import annotations

import copy
import json
import math
import tempfile
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import torch
from tqdm import tqdm
from tyro.conf import Positional

from mimo_engine.chat.template import family_template
from mimo_engine.checkpoint.export import ExportFormat, export_checkpoint, export_config
from mimo_engine.checkpoint.export_towers import TowerExport, write_tower_configs
from mimo_engine.checkpoint.names import Placement, placements
from mimo_engine.checkpoint.params import parameter_specs
from mimo_engine.checkpoint.synthetic_tokenizer import (
    media_token_ids,
    write_synthetic_tokenizer,
)
from mimo_engine.checkpoint.tower_params import TowerParam, tower_params
from mimo_engine.cli.model_argument import (
    num_mtp_layers,
    read_beside_config,
    read_config_json,
)
from mimo_engine.cli.tower_files import (
    RELEASED_AUDIO_TOKENIZER,
    RELEASED_PREPROCESSOR,
    SMALL_AUDIO_TOKENIZER,
    SMALL_TOWERS,
)
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig, load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import (
    MlpKind,
    ModelConfig,
    get_mimo_v2_fused_qkv_expected_tp_size,
    parse_model_config,
)
from mimo_engine.errors import ConfigError
from mimo_engine.kernels.quant import MXFP4_GROUP

__all__ = ["SMALL_MODEL", "Command", "random_part", "random_tower_param", "run"]

TOKENIZER_SIZE = 512

SMALL_MODEL: dict[str, Any] = {
    "architectures": ["MiMoV2ForCausalLM"],
    "model_type": "mimo_v2",
    "vocab_size": 576,
    "hidden_size": 256,
    "num_hidden_layers": 8,
    "hybrid_layer_pattern": [0, 1, 1, 0, 1, 1, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1, 1, 1, 1, 1],
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_shared_experts": None,
    "n_group": 1,
    "topk_group": 1,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": None,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_value_scale": 0.707,
    "attention_projection_layout": "fused_qkv",
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "partial_rotary_factor": 0.334,
    "rope_theta": 10000000,
    "swa_rope_theta": 10000,
    "sliding_window": 128,
    "max_position_embeddings": 32768,
    "layernorm_epsilon": 1e-05,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": 3,
    "quantization_config": {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
    **SMALL_TOWERS,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Write a checkpoint with random weights: config.json, tokenizer, chat template, tensors.

    Without --like it is a small model that a laptop serves; with it, the text model and the towers
    of that config.json. The other flags change it.
    """

    out: Positional[str]
    """The directory to make."""
    like: str | None = None
    """config.json, checkpoint directory or name on the hub whose models to follow."""
    layout: Literal["fused", "split"] | None = None
    """q, k and v as one tensor of official chunks, or as three. Default: as --like."""
    format: Literal["bf16", "fp8", "mxfp4-experts"] | None = None
    """How linears are stored; mxfp4-experts has fp8 elsewhere. Default: as --like."""
    seed: int = 0
    """Of the weights."""
    num_layers: int | None = None
    """Keep this many of the first layers."""
    num_mtp_layers: int | None = None
    """Draft layers. Default: as --like says, else 3."""
    hidden_size: int | None = None
    """Width of the residual stream."""
    intermediate_size: int | None = None
    """Width of the dense MLPs."""
    moe_intermediate_size: int | None = None
    """Width of an expert."""
    num_experts: int | None = None
    """Experts in a MoE layer."""
    vocab_size: int | None = None
    """Rows of embedding and head; those without a token are dead, as in the real ones."""
    text_only: bool = False
    """Write no tower for images and sound."""
    small_towers: bool = False
    """Write the towers of the small model, whatever those of --like are."""

    def __post_init__(self) -> None:
        if self.text_only and self.small_towers:
            raise ConfigError("give --text-only or --small-towers, not both")


def run(command: Command) -> int:
    out = Path(command.out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists: choose a new directory, or remove it first")
    raw = _config_json(command)
    config = parse_model_config(raw)
    stored = _export_format(command, raw)
    _check_widths(config, stored)
    out.parent.mkdir(parents=True, exist_ok=True)
    # An interrupted run leaves nothing that looks like a checkpoint.
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        model_dir = Path(folder) / "checkpoint"
        model_dir.mkdir()
        vocab = write_synthetic_tokenizer(
            model_dir,
            chat_template=family_template(),
            vocab_size=min(TOKENIZER_SIZE, config.vocab_size),
        )
        raw["eos_token_id"] = vocab.ids["<|im_end|>"]
        raw["pad_token_id"] = vocab.ids["<|endoftext|>"]
        if "processor_config" in raw:
            raw |= media_token_ids(raw, vocab.ids)
        media = _write_media_files(model_dir, parse_model_config(raw), command)
        _write_weights(model_dir, config, media, stored, command.seed)
        text = json.dumps(export_config(raw, stored), indent=2) + "\n"
        (model_dir / "config.json").write_text(text, encoding="utf-8")
        model_dir.rename(out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    towers = "no towers" if media is None else f"{len(media.vision.layers)} vision blocks"
    print(f"{out}: {config.num_layers} layers, {towers}, {size / 1e6:,.1f} MB")
    return 0


def random_part(place: Placement, seed: int) -> torch.Tensor:
    """One canonical tensor, float32, a function of its place and `seed` alone.

    Matrices have unit gain, the head a gain of 3 and norms, sinks and router bias some spread, so
    that every part of the model matters to the text and no distribution over it is flat.
    """
    key = f"{seed} {place.parameter} {place.part.name} {place.expert}"
    noise = _noise(key, place.part.full_shape)
    name = place.parameter
    if name.endswith("norm.weight"):
        return 1 + 0.1 * noise
    if name.endswith("e_score_correction_bias"):
        return 0.1 * noise
    if name.endswith(("attention_sink_bias", "embed_tokens.weight")):
        return noise
    gain = 3.0 if name == "lm_head.weight" else 1.0
    return noise.mul_(gain / math.sqrt(noise.shape[-1]))


def random_tower_param(param: TowerParam, seed: int) -> torch.Tensor:
    """One parameter of a tower, float32, a function of its name and `seed` alone.

    Activations have about unit size everywhere, and rows for the language model that of its
    embeddings, so that every part of a tower matters to the text.
    """
    noise = _noise(f"{seed} {param.tower} {param.name}", param.shape)
    name = param.name
    if param.is_codebook:
        # Smaller from level to level, as what the levels before leave is.
        return noise.mul_(0.5 * 0.9 ** int(name.split(".")[4]))
    if name.endswith(".bias"):
        return noise.mul_(0.1)
    if noise.dim() == 1:
        return noise if name.endswith(".sinks") else 1 + 0.1 * noise
    if name.startswith("speech_embeddings."):
        # The sum over about twenty channels has unit size.
        return noise.mul_(0.25)
    # Log-mels lie around ten, and a GELU before the last matmul halves the variance.
    gains = {
        "encoder.conv1.weight": 0.1,
        "merger.mlp.2.weight": 1.5,
        "projection.mlp.2.weight": 1.5,
    }
    return noise.mul_(gains.get(name, 1.0) / math.sqrt(math.prod(param.shape[1:])))


def _noise(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    # torch seeds with 64 bits, of which the sign is one.
    digest = blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))
    return torch.randn(shape, generator=generator)


def _config_json(command: Command) -> dict[str, Any]:
    """config.json, but for how weights are stored."""
    raw = copy.deepcopy(SMALL_MODEL if command.like is None else read_config_json(command.like))
    like = parse_model_config(raw)
    if like.is_native:
        raise ConfigError("--like must be in the hub's dialect, not that of transformers")
    if command.text_only:
        for key in (*like.media, "vision_model_type"):
            raw.pop(key, None)
    if command.small_towers:
        raw |= copy.deepcopy(SMALL_TOWERS)
    changes = {
        "num_hidden_layers": command.num_layers,
        "hidden_size": command.hidden_size,
        "intermediate_size": command.intermediate_size,
        "moe_intermediate_size": command.moe_intermediate_size,
        "n_routed_experts": command.num_experts,
        "vocab_size": command.vocab_size,
    }
    for key, value in changes.items():
        if value is None:
            continue
        if value < 1:
            raise ConfigError(f"{key} must be at least 1, not {value}")
        raw[key] = value
    num_layers = raw["num_hidden_layers"]
    if num_layers > like.num_layers:
        raise ConfigError(f"--num-layers {num_layers}: there are only {like.num_layers}")
    for key in ("hybrid_layer_pattern", "moe_layer_freq"):
        if isinstance(raw.get(key), list):
            raw[key] = raw[key][:num_layers]
    for key in ("vision_config", "audio_config"):
        if key in raw:
            raw[key]["out_hidden_size"] = raw["hidden_size"]
    raw["num_nextn_predict_layers"] = num_mtp_layers(command.num_mtp_layers, like)
    return raw


def _export_format(command: Command, raw: dict[str, Any]) -> ExportFormat:
    is_fused = get_mimo_v2_fused_qkv_expected_tp_size(raw) is not None
    layout = command.layout or ("fused" if is_fused else "split")
    quantization = raw.get("quantization_config")
    if command.format is not None:
        name = command.format
    elif not quantization:
        name = "bf16"
    else:
        name = "mxfp4-experts" if quantization.get("store_dtype") == "mxfp4" else "fp8"
    match name:
        case "bf16":
            return ExportFormat(projection=layout, linear="plain", experts="plain")
        case "fp8":
            return ExportFormat(projection=layout, linear="fp8", experts="fp8")
        case _:
            return ExportFormat(
                projection=layout,
                linear="fp8",
                experts="mxfp4",
                router_dtype=torch.bfloat16,
            )


def _check_widths(config: ModelConfig, stored: ExportFormat) -> None:
    if stored.experts != "mxfp4":
        return
    for layer in config.layers:
        for width in (config.hidden_size, layer.intermediate_size):
            if layer.mlp is MlpKind.MOE and width % MXFP4_GROUP:
                raise ConfigError(f"mxfp4-experts needs widths in groups of 32, not {width}")


def _write_media_files(
    model_dir: Path, config: ModelConfig, command: Command
) -> MediaConfig | None:
    """Write what goes with config.json's towers beside it; None when it has none."""
    tokenizer, preprocessor = SMALL_AUDIO_TOKENIZER, RELEASED_PREPROCESSOR
    if command.like is not None and not command.small_towers:
        found = read_beside_config(command.like, f"{AUDIO_TOKENIZER_DIR}/config.json")
        tokenizer = found or RELEASED_AUDIO_TOKENIZER
        preprocessor = read_beside_config(command.like, "preprocessor_config.json") or preprocessor
    if config.has_towers:
        write_tower_configs(model_dir, audio_tokenizer=tokenizer, preprocessor=preprocessor)
    return load_media_config(model_dir, config.media, MediaFacts(), hidden_size=config.hidden_size)


def _write_weights(
    model_dir: Path,
    config: ModelConfig,
    media: MediaConfig | None,
    stored: ExportFormat,
    seed: int,
) -> None:
    num_drafts = config.num_mtp_layers or 0
    specs = parameter_specs(config, num_mtp_layers=num_drafts)
    num_weights = sum(math.prod(place.part.full_shape) for _, place in placements(specs))
    if media is not None:
        num_weights += sum(math.prod(param.shape) for param in tower_params(media))
    with tqdm(total=num_weights, unit=" weights", unit_scale=True, desc="writing") as bar:

        def read(place: Placement) -> torch.Tensor:
            part = random_part(place, seed)
            bar.update(part.numel())
            return part

        def read_tower(param: TowerParam) -> torch.Tensor:
            tensor = random_tower_param(param, seed)
            bar.update(tensor.numel())
            return tensor

        export_checkpoint(
            model_dir,
            config,
            read,
            stored,
            towers=None if media is None else TowerExport(media=media, read=read_tower),
            num_mtp_layers=num_drafts,
        )

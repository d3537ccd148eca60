"""The demo model's shape: config.json and the files beside it, before any weight exists.

Some 15 million parameters with every layer kind and trap of the released models: full and sliding
attention with different KV heads, heads of 192 and 128, sinks, a dense first layer, experts, fused
qkv in T = 4 chunks whose scale blocks straddle K and V, draft layers, towers for images and sound.
What must hold: widths of experts come in groups of 32, so that they can be MXFP4; and what an
engine may lose must matter, so that a test sees it. Windows are shorter than what the tasks bring,
the value scale is further from 1 than the released 0.707, and behind its first layer the vision
tower sees along rows and columns alone.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_engine.checkpoint.export_towers import write_tower_configs
from mimo_engine.checkpoint.synthetic_tokenizer import media_token_ids
from mimo_engine.config.media import MediaConfig, load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import ModelConfig, parse_model_config
from mimo_engine.config.processor import CLIP_STATS

__all__ = [
    "AUDIO_TOKENIZER",
    "NUM_MTP_LAYERS",
    "PREPROCESSOR",
    "VOCAB_ROWS",
    "Geometry",
    "geometry",
]

VOCAB_ROWS = 1024
"""Rows of embedding and head; the tokenizer has fewer tokens, as the released ones have."""
NUM_MTP_LAYERS = 3

_HIDDEN = 192
_CODEBOOKS = [256, 256, 128, *[64] * 17]

_TEXT: dict[str, Any] = {
    "architectures": ["MiMoV2ForCausalLM"],
    "model_type": "mimo_v2",
    "vocab_size": VOCAB_ROWS,
    "hidden_size": _HIDDEN,
    "num_hidden_layers": 6,
    "hybrid_layer_pattern": [0, 1, 1, 0, 1, 0],
    "moe_layer_freq": [0, 1, 1, 1, 1, 1],
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 192,
    "v_head_dim": 128,
    "swa_num_attention_heads": 8,
    "swa_num_key_value_heads": 8,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "intermediate_size": 512,
    "moe_intermediate_size": 96,
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
    "attention_value_scale": 0.5,
    "attention_projection_layout": "fused_qkv",
    "add_full_attention_sink_bias": False,
    "add_swa_attention_sink_bias": True,
    "partial_rotary_factor": 0.334,
    "rope_theta": 1000000,
    "swa_rope_theta": 10000,
    "sliding_window": 32,
    "max_position_embeddings": 4096,
    "layernorm_epsilon": 1e-05,
    "tie_word_embeddings": False,
    "num_nextn_predict_layers": NUM_MTP_LAYERS,
}

_VISION: dict[str, Any] = {
    "depth": 6,
    "fullatt_block_indexes": [0],
    "hidden_act": "silu",
    "hidden_size": 128,
    "in_chans": 3,
    "intermediate_size": 256,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "num_query_groups": 2,
    "out_hidden_size": _HIDDEN,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "spatial_patch_size": 16,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "use_sink": True,
    "visual_token_window_size": 4,
    "vit_window_attn_types": [-1, 0, 1, 1, 0, 1],
    "window_size": 128,
}

_AUDIO: dict[str, Any] = {
    "add_post_norm": True,
    "audio_channels": len(_CODEBOOKS),
    "audio_segment_size": 6000,
    "group_size": 4,
    "input_full_attention": True,
    "input_local_attn_heads": 2,
    "input_local_dim": 64,
    "input_local_head_dim": 32,
    "input_local_hidden_dropout": 0.0,
    "input_local_intermediate_size": 128,
    "input_local_layers": 2,
    "out_hidden_size": _HIDDEN,
    "partial_rotary_factor": 1.0,
    "projection_layers": 2,
    "rope_theta": 640000,
    # A row more than a level has entries, the one that the released models leave unused.
    "speech_vocab_size": "-".join(str(size + 1) for size in _CODEBOOKS),
    "speech_zeroemb_idx": "-".join(map(str, _CODEBOOKS)),
}

_PROCESSOR: dict[str, Any] = {
    "audio_avg_pooler": 2,
    "audio_channels": len(_CODEBOOKS),
    "audio_fmax": None,
    "audio_fmin": 0,
    "audio_group_size": 4,
    "audio_hop_length": 240,
    "audio_input_id_per_second": 25.0,
    "audio_kernel_size": 3,
    "audio_n_mels": 128,
    "audio_nfft": 960,
    "audio_sampling_rate": 24000,
    "audio_segment_size": 6000,
    "audio_stride_size": 2,
    "audio_window_size": 960,
    "audio_zeroemb_idx": _CODEBOOKS,
    "fps": 2.0,
    "image_max_pixels": 262144,
    "image_min_pixels": 1024,
    "max_frames": 64,
    "merge_size": 2,
    "min_frames": 2,
    "num_frames": None,
    "patch_size": 16,
    "rope_type": "rope",
    "temporal_compression_ratio": 1,
    "temporal_patch_size": 2,
    "use_per_grid_t_timestamps": False,
    "use_video_timestamps": True,
    "video_audio_interleave_length": 0.0,
    "video_max_pixels": 65536,
    "video_min_pixels": 1024,
    "video_process_num_threads": 4,
    "video_tokens_per_second": 2,
    "video_total_max_pixels": 1048576,
}

AUDIO_TOKENIZER: dict[str, Any] = {
    "activation_function": "gelu",
    "avg_pooler": 2,
    "codebook_size": _CODEBOOKS,
    "d_model": 128,
    "encoder_attention_heads": 2,
    "encoder_attn_window_size": [16, 0],
    "encoder_causal": True,
    "encoder_ffn_dim": 256,
    "encoder_layers": 4,
    "encoder_skip_layer_id": 3,
    "fmax": None,
    "fmin": 0,
    "hop_length": 240,
    "hybrid_attention": True,
    "kernel_size": 3,
    "ln_type": "LayerNorm",
    "n_mels": 128,
    "nfft": 960,
    "num_quantizers": len(_CODEBOOKS),
    "position_embedding_type": "rope",
    "rope_theta": 10000,
    "rope_type": "default",
    "sampling_rate": 24000,
    "scale_embedding": False,
    "stride_size": 2,
    "swa_per_block": 2,
    "window_size": 960,
}
"""audio_tokenizer/config.json."""

PREPROCESSOR: dict[str, Any] = {
    "image_mean": list(CLIP_STATS[0]),
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": list(CLIP_STATS[1]),
    "max_pixels": 262144,
    "merge_size": 2,
    "min_pixels": 1024,
    "patch_size": 16,
    "processor_class": "Qwen2_5_VLProcessor",
    "temporal_patch_size": 2,
}
"""preprocessor_config.json."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Geometry:
    """config.json, but for how weights are stored, and what the engine reads out of it."""

    raw: Mapping[str, Any]
    text: ModelConfig
    media: MediaConfig


def geometry(ids: Mapping[str, int]) -> Geometry:
    """The shape of a model whose tokenizer has the special tokens `ids`, by name."""
    raw = copy.deepcopy(_TEXT)
    raw |= {
        "vision_model_type": "mimovl",
        "vision_config": copy.deepcopy(_VISION),
        "audio_config": copy.deepcopy(_AUDIO),
        "processor_config": copy.deepcopy(_PROCESSOR),
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": ids["<|endoftext|>"],
    }
    raw |= media_token_ids(raw, ids)
    text = parse_model_config(raw)
    with tempfile.TemporaryDirectory() as folder:
        # The engine's own way from files to a configuration, with all its checks.
        write_tower_configs(
            Path(folder), audio_tokenizer=AUDIO_TOKENIZER, preprocessor=PREPROCESSOR
        )
        media = load_media_config(
            Path(folder), text.media, MediaFacts(), hidden_size=text.hidden_size
        )
    assert media is not None
    return Geometry(raw=raw, text=text, media=media)

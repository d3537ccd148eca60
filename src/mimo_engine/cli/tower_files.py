"""Configurations of towers that no checkpoint at hand gives: the released files, and small ones.

`plan` and `random-checkpoint` need what lies beside config.json (audio.md 1.4, vision.md 1.3). For
a MODEL that is config.json alone, the releases' own files stand in. The loader never does so:
there, a missing file is an error.
"""

from __future__ import annotations

from typing import Any

from mimo_engine.config.processor import CLIP_STATS

__all__ = [
    "RELEASED_AUDIO_TOKENIZER",
    "RELEASED_PREPROCESSOR",
    "SMALL_AUDIO_TOKENIZER",
    "SMALL_TOWERS",
]

RELEASED_AUDIO_TOKENIZER: dict[str, Any] = {
    "activation_function": "gelu",
    "avg_pooler": 2,
    "codebook_size": [1024, 1024, 256, *[128] * 17],
    "d_model": 1024,
    "encoder_attention_heads": 16,
    "encoder_attn_window_size": [128, 0],
    "encoder_causal": True,
    "encoder_ffn_dim": 4096,
    "encoder_layers": 24,
    "encoder_skip_layer_id": 3,
    "fmax": None,
    "fmin": 0,
    "hop_length": 240,
    "hybrid_attention": True,
    "hybrid_block_size": 8,
    "kernel_size": 3,
    "ln_type": "LayerNorm",
    "max_audio_seconds": 300,
    "n_mels": 128,
    "nfft": 960,
    "num_quantizers": 20,
    "position_embedding_type": "rope",
    "rope_theta": 10000,
    "rope_type": "default",
    "sampling_rate": 24000,
    "scale_embedding": False,
    "stride_size": 2,
    "swa_per_block": 2,
    "threshold_ema_dead_code": 2,
    "window_size": 960,
}

RELEASED_PREPROCESSOR: dict[str, Any] = {
    "image_mean": list(CLIP_STATS[0]),
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": list(CLIP_STATS[1]),
    "max_pixels": 12845056,
    "merge_size": 2,
    "min_pixels": 3136,
    "patch_size": 16,
    "processor_class": "Qwen2_5_VLProcessor",
    "temporal_patch_size": 2,
}

_SMALL_CODEBOOKS = [64, 64, 32, *[16] * 17]

SMALL_AUDIO_TOKENIZER: dict[str, Any] = {
    **RELEASED_AUDIO_TOKENIZER,
    "codebook_size": _SMALL_CODEBOOKS,
    "d_model": 64,
    "encoder_attention_heads": 2,
    "encoder_attn_window_size": [16, 0],
    "encoder_ffn_dim": 128,
    "encoder_layers": 4,
}

# Every kind of block, runs of one kind, and a front end that treats media as the real one does.
SMALL_TOWERS: dict[str, Any] = {
    "vision_model_type": "mimovl",
    "vision_config": {
        "depth": 6,
        "fullatt_block_indexes": [0, 5],
        "hidden_act": "silu",
        "hidden_size": 64,
        "in_chans": 3,
        "intermediate_size": 128,
        "num_heads": 4,
        "num_key_value_heads": 2,
        "num_query_groups": 2,
        "out_hidden_size": 256,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "spatial_patch_size": 16,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "use_sink": True,
        "visual_token_window_size": 16,
        "vit_window_attn_types": [-1, 0, 1, 1, 0, -1],
        "window_size": 128,
    },
    "audio_config": {
        "add_post_norm": True,
        "audio_channels": 20,
        "audio_segment_size": 6000,
        "group_size": 4,
        "input_full_attention": True,
        "input_local_attn_heads": 2,
        "input_local_dim": 32,
        "input_local_head_dim": 16,
        "input_local_hidden_dropout": 0.0,
        "input_local_intermediate_size": 64,
        "input_local_layers": 2,
        "out_hidden_size": 256,
        "partial_rotary_factor": 1.0,
        "projection_layers": 2,
        "rope_theta": 640000,
        "speech_vocab_size": "80",
        "speech_zeroemb_idx": "64",
    },
    "processor_config": {
        "audio_avg_pooler": 2,
        "audio_channels": 20,
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
        "audio_zeroemb_idx": [64] * 20,
        "fps": 1.0,
        "image_max_pixels": 8388608,
        "image_min_pixels": 8192,
        "max_frames": 3600,
        "merge_size": 2,
        "min_frames": None,
        "num_frames": None,
        "patch_size": 16,
        "rope_type": "rope",
        "temporal_compression_ratio": 1,
        "temporal_patch_size": 2,
        "use_per_grid_t_timestamps": False,
        "use_video_timestamps": True,
        "video_audio_interleave_length": 0.0,
        "video_max_pixels": 8388608,
        "video_min_pixels": 8192,
        "video_process_num_threads": 16,
        "video_tokens_per_second": 2,
        "video_total_max_pixels": 268435456,
    },
}

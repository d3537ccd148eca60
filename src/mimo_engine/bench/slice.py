"""The shape that peers were measured on: twelve layers of MiMo-V2.5 at full width, random weights.

Layers 0, 5 and 11 attend to everything, the others slide; layer 0 is dense, the others have 256
experts (perf.md 1). `random_slice` gives an `LLM` over it, through which the benches go as any user
would. More layers are the first of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from mimo_engine.checkpoint.synthetic_tokenizer import Merge, write_synthetic_tokenizer
from mimo_engine.config.engine import (
    CacheConfig,
    KernelChoice,
    Mxfp4Activations,
    RandomWeights,
    SchedulerConfig,
    SpeculativeConfig,
)
from mimo_engine.llm import LLM

__all__ = ["SliceOptions", "random_slice", "slice_config"]

_FULL_EVERY = 6
_NUM_TOKENS = 151_000
"""Below the ids that mean something in the family's own vocabulary."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceOptions:
    """Which model, and how it is run."""

    layers: int = 12
    """Of MiMo-V2.5, from the first on."""
    weights: RandomWeights = "random-fp8"
    mxfp4_activations: Mxfp4Activations = "bf16"
    kv_cache_gib: float = 8.0
    rounds: int = 5
    """Of which the median counts."""


def slice_config(num_layers: int) -> dict[str, Any]:
    """config.json of the first layers of MiMo-V2.5, text alone (text.md 1)."""
    is_full = [i == 0 or i % _FULL_EVERY == _FULL_EVERY - 1 for i in range(num_layers)]
    return {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "num_hidden_layers": num_layers,
        "hybrid_layer_pattern": [int(not full) for full in is_full],
        "moe_layer_freq": [int(i > 0) for i in range(num_layers)],
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 8,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "sliding_window": 128,
        "attention_value_scale": 0.707,
        "attention_projection_layout": "fused_qkv",
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "partial_rotary_factor": 0.334,
        "rope_theta": 10000000,
        "swa_rope_theta": 10000,
        "layernorm_epsilon": 1e-05,
        "vocab_size": 152576,
        "max_position_embeddings": 1048576,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "eos_token_id": 151645,
        "num_nextn_predict_layers": 3,
    }


@contextmanager
def random_slice(
    num_layers: int,
    weights: RandomWeights,
    *,
    kernels: KernelChoice = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    kv_cache_gib: float,
    max_num_seqs: int = 128,
    max_num_batched_tokens: int = 8192,
    num_drafts: int = 0,
    captured: bool = True,
    prefix_caching: bool = False,
    mxfp4_activations: Mxfp4Activations = "bf16",
) -> Iterator[LLM]:
    """An engine over it; num_drafts: in every step. captured: whether decode steps are replayed."""
    with TemporaryDirectory() as folder:
        config = slice_config(num_layers)
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        _write_tokenizer(Path(folder))
        drafts = SpeculativeConfig(speculative="off")
        if num_drafts:
            drafts = SpeculativeConfig(speculative="mtp", max_draft_tokens=num_drafts)
        engine = LLM(
            folder,
            dtype=dtype,
            kernels=kernels,
            weights=weights,
            mxfp4_activations=mxfp4_activations,
            cache=CacheConfig(kv_cache_gib=kv_cache_gib, prefix_caching=prefix_caching),
            scheduler=SchedulerConfig(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_model_len=40960,
            ),
            speculative=drafts,
        )
        runner = engine.core.executor.worker.runner
        assert runner is not None
        if not captured:
            runner.graphs = None
        try:
            yield engine
        finally:
            engine.close()


def _write_tokenizer(folder: Path) -> None:
    """A token for nearly every row of the head, so that any can be sampled and spelled: all pairs
    of letters, then triples and so on until there are enough."""
    letters = [chr(code) for code in range(0x21, 0x7F)]
    merges: list[Merge] = []
    words = letters
    while len(merges) < _NUM_TOKENS:
        longer = list(product(words, letters))
        merges += longer
        words = ["".join(pair) for pair in longer]
    write_synthetic_tokenizer(folder, chat_template="", vocab_size=_NUM_TOKENS, merges=merges)

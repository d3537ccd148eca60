"""`EngineConfig`: every choice of the person who runs the engine, as one frozen tree.

The command line is made from this tree (`cli/`), so a field here is a flag there: its docstring is
the help text, its default the flag's default. Nothing mutates a config after it was built.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mimo_engine.config.media_settings import EncoderConfig, MediaFacts
from mimo_engine.errors import ConfigError

__all__ = [
    "CacheConfig",
    "EngineConfig",
    "KernelChoice",
    "ModelSettings",
    "Mxfp4Activations",
    "ParallelConfig",
    "RandomWeights",
    "SchedulerConfig",
    "SpeculativeConfig",
]

GIB = 1024**3
KernelChoice = Literal["auto", "reference", "triton"]
Mxfp4Activations = Literal["bf16", "fp8"]
RandomWeights = Literal["random-bf16", "random-fp8", "random-mxfp4"]
CPU_KV_BYTES = GIB
"""Of K and V on a CPU, where nobody says how much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """How the checkpoint is read, where public sources disagree or the user knows better."""

    num_visible_tokens: int | None = None
    """Tokens a sliding layer sees, the query included (128 or 129). Default: the checkpoint's."""
    qkv_layout: Literal["auto", "chunked", "plain"] = "auto"
    """Row order of fused qkv tensors: the official chunks, plain [Q;K;V] rows of a re-export, or
    decided from the file."""
    ignore_config_key: tuple[str, ...] = ()
    """Keys of config.json that this engine does not know and you know to change nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheConfig:
    """The KV cache."""

    page_size: int = 16
    """Tokens in a page, a power of two."""
    kv_cache_gib: float | None = None
    """Memory for K and V, GiB a rank. Default: the part of the free memory that gpu_memory_share
    allows on a GPU, 1 GiB on a CPU."""
    gpu_memory_share: float = 0.9
    """Share of the GPU's memory that weights, cache and activations may take together."""
    prefix_caching: bool = True
    """Keep the pages of finished requests for later requests with the same prefix."""

    def __post_init__(self) -> None:
        if self.page_size < 1 or self.page_size & (self.page_size - 1):
            raise ConfigError(f"--page-size must be a power of two, not {self.page_size}")
        if not 0 < self.gpu_memory_share <= 1:
            raise ConfigError(f"--gpu-memory-share must be in (0, 1], not {self.gpu_memory_share}")
        if self.kv_cache_gib is not None and not 0 < self.kv_cache_gib < math.inf:
            raise ConfigError(f"--kv-cache-gib must be positive, not {self.kv_cache_gib}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """What may run at once."""

    max_num_seqs: int = 64
    """Requests that run at once."""
    max_num_batched_tokens: int = 2048
    """Tokens in one step: a longer prompt is computed in chunks."""
    max_queue_len: int = 1024
    """Requests that may wait; one more is refused with HTTP 503."""
    max_model_len: int | None = None
    """Longest prompt plus output, in tokens. Default: the checkpoint's, or what the cache holds."""

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "max_queue_len"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens ({self.max_num_batched_tokens}) must be at least "
                f"--max-num-seqs ({self.max_num_seqs}): each running request decodes every step"
            )
        if self.max_model_len is not None and self.max_model_len < 2:
            raise ConfigError("--max-model-len must be at least 2")

    def context_len(self, longest: int) -> int:
        """The context to serve. ConfigError when it is more than `longest`, the checkpoint's."""
        if self.max_model_len is not None and self.max_model_len > longest:
            raise ConfigError(
                f"--max-model-len {self.max_model_len}: this checkpoint's context is {longest}"
            )
        return self.max_model_len or longest


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeculativeConfig:
    """Drafts by the checkpoint's MTP layers, verified by the model: the text stays what it is."""

    speculative: Literal["auto", "mtp", "off"] = "auto"
    """auto: drafts where the checkpoint has MTP layers, as many in each step as pay off now. mtp:
    always max_draft_tokens of them. off: none."""
    max_draft_tokens: int = 3
    """Most drafts of a request in one step; each takes a layer of its own."""
    draft_choice: Literal["likeliest", "sampled"] = "likeliest"
    """How drafts are chosen where temperature is above 0: the likeliest token, which keeps the
    text of a seed as it is without drafts, or a drawn one, which is accepted more often."""
    recompute_boundary: bool = True
    """Compute the draft layers' last rows again once the tokens after them are known."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_draft_tokens <= 16:
            raise ConfigError(
                f"--max-draft-tokens must be 1 to 16, not {self.max_draft_tokens}; "
                "--speculative off turns drafts off"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelConfig:
    """How many ranks, and what each holds."""

    tensor_parallel_size: int = 1
    """Ranks that share every layer. Any degree loads exactly; 3, 6 and the like are zero-padded."""

    def __post_init__(self) -> None:
        if self.tensor_parallel_size < 1:
            raise ConfigError("--tensor-parallel-size must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """The model and where it runs."""

    model: str
    """A checkpoint directory, or the name of a repository on the hub (OWNER/NAME)."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations, cache and decoded weights. auto: bfloat16 on a GPU, float32 on a CPU."""
    device: str = "auto"
    """cpu, cuda, or cuda:N. auto: cuda when there is one."""
    kernels: KernelChoice = "auto"
    """What computes the operators: triton, or plain torch (reference). auto: triton for bfloat16 on
    a GPU, reference elsewhere."""
    mxfp4_activations: Mxfp4Activations = "bf16"
    """What MXFP4 experts are multiplied with in Triton: bfloat16, or FP8 by rows and 128 columns,
    which decodes about 1.4 times as fast and adds a rounding (docs/kernels.md)."""
    weights: Literal["checkpoint"] | RandomWeights = "checkpoint"
    """Where weights come from. random-...: normals in the format named, made on the device, of a
    model whose directory has only a configuration and a tokenizer: to time shapes."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    media: MediaFacts = field(default_factory=MediaFacts)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    speculative: SpeculativeConfig = field(default_factory=SpeculativeConfig)

    def __post_init__(self) -> None:
        if ":" in self.device and self.parallel.tensor_parallel_size > 1:
            raise ConfigError(
                f"--device {self.device} is one GPU, but there are "
                f"{self.parallel.tensor_parallel_size} ranks: pass --device cuda, and choose the "
                "GPUs with CUDA_VISIBLE_DEVICES"
            )

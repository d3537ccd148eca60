"""`mimo-engine plan`: what fits on which GPUs. Reads configurations and no weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tyro.conf import Positional

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.checkpoint.tower_params import (
    TowerParam,
    audio_encoder_params,
    audio_tokenizer_params,
    vision_params,
)
from mimo_engine.cli.capacity import (
    KVCost,
    WeightGroup,
    kv_cost,
    layout_for,
    tower_groups,
    weight_groups,
)
from mimo_engine.cli.model_argument import (
    num_mtp_layers,
    read_beside_config,
    read_config_json,
)
from mimo_engine.cli.tower_files import RELEASED_AUDIO_TOKENIZER
from mimo_engine.config.audio import (
    AUDIO_TOKENIZER_DIR,
    parse_audio_config,
    parse_audio_tokenizer_config,
)
from mimo_engine.config.engine import (
    CPU_KV_BYTES,
    GIB,
    CacheConfig,
    ModelSettings,
    SchedulerConfig,
)
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import ModelConfig, parse_model_config
from mimo_engine.config.vision import parse_vision_config
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import ConfigError

GPU_MIB = {"a100": 81_920, "h100": 81_559, "h20": 97_871, "h200": 143_771, "b200": 183_359}
"""Memory that the driver reports, MiB."""

RESERVED_BYTES = 4 * GIB
"""Of a GPU, for activations, the CUDA context and collectives: an estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What fits: bytes of weights and KV cache a rank, and how many tokens the cache holds.

    MODEL is a config.json, a checkpoint directory or a name on the hub, of which only configuration
    is fetched. The flags of `serve` mean the same here. Exits with 1 when it does not fit.
    """

    model: Positional[str]
    """config.json, checkpoint directory, or the name of a repository on the hub (OWNER/NAME)."""
    gpus: int = 1
    """How many GPUs there are."""
    gpu: Literal["a100", "h100", "h20", "h200", "b200"] | None = None
    """Their kind (the largest memory of each)."""
    gpu_gib: float | None = None
    """Their memory in GiB, for a kind that is not listed."""
    tensor_parallel_size: int | None = None
    """Ranks that share one copy of the model. Default: all GPUs."""
    device: Literal["cuda", "cpu"] = "cuda"
    """On a cpu, quantised weights are decoded at load and counted so."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of activations, cache and decoded weights. auto: bfloat16 on a GPU, float32 on a CPU."""
    num_mtp_layers: int | None = None
    """Draft layers to count; 0: those of --speculative off. Default: what config.json says, else
    3."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    media: MediaFacts = field(default_factory=MediaFacts)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)

    def __post_init__(self) -> None:
        if self.gpu is not None and self.gpu_gib is not None:
            raise ConfigError("give --gpu or --gpu-gib, not both")
        if self.gpus < 1 or (self.gpu_gib is not None and self.gpu_gib <= 0):
            raise ConfigError("--gpus and --gpu-gib must be positive")
        if self.num_replicas * self.tp_size != self.gpus or self.tp_size < 1:
            raise ConfigError(
                f"--gpus {self.gpus} cannot be divided into copies of the model on "
                f"--tensor-parallel-size {self.tp_size} GPUs each"
            )

    @property
    def tp_size(self) -> int:
        return self.gpus if self.tensor_parallel_size is None else self.tensor_parallel_size

    @property
    def num_replicas(self) -> int:
        return self.gpus // max(self.tp_size, 1)

    @property
    def dtype_bytes(self) -> int:
        wide = self.dtype == "float32" or (self.dtype == "auto" and self.device == "cpu")
        return 4 if wide else 2

    @property
    def gpu_bytes(self) -> int | None:
        """Memory of one GPU; None when nobody said."""
        if self.gpu is not None:
            return GPU_MIB[self.gpu] * 2**20
        return None if self.gpu_gib is None else int(self.gpu_gib * GIB)


def run(command: Command) -> int:
    config = parse_model_config(
        read_config_json(command.model),
        num_visible_tokens=command.settings.num_visible_tokens,
        ignore_keys=command.settings.ignore_config_key,
    )
    plan = ParallelPlan(tp_size=command.tp_size)
    num_drafts = num_mtp_layers(command.num_mtp_layers, config)
    weights = weight_groups(
        config,
        plan,
        dtype_bytes=command.dtype_bytes,
        decoded=command.device == "cpu",
        num_mtp_layers=num_drafts,
    )
    towers = tower_groups(_tower_params(config, command), dtype_bytes=command.dtype_bytes)
    cost = kv_cost(
        config,
        plan,
        dtype_bytes=command.dtype_bytes,
        page_size=command.cache.page_size,
        num_draft_layers=num_drafts,
    )
    _print_model(config, command)
    _print_weights(weights, towers, command.tp_size)
    _print_kv(cost, config, command)
    # Every rank has as many pages as the fullest, which is rank 0.
    budget_bytes = _cache_budget(command, _sum([*weights, *towers]).num_bytes)
    if budget_bytes is None:
        print("\nPass --gpu or --gpu-gib to see how many tokens fit.")
        return 0
    if budget_bytes <= 0:
        print(f"\nDoes not fit: {-budget_bytes / GIB:.2f} GiB a rank short before any KV cache.")
        return 1
    layout = layout_for(
        config,
        plan,
        budget_bytes=budget_bytes,
        dtype_bytes=command.dtype_bytes,
        cache=command.cache,
        scheduler=command.scheduler,
        num_draft_layers=num_drafts,
    )
    _print_layout(layout, budget_bytes, config, command)
    return 0


def _tower_params(config: ModelConfig, command: Command) -> list[TowerParam]:
    """Of the towers that config.json describes; none with --text-only."""
    vision, audio = (config.media.get(key) for key in ("vision_config", "audio_config"))
    params: list[TowerParam] = []
    if vision and not command.media.text_only:
        params += vision_params(parse_vision_config(vision, command.media))
    if audio and not command.media.text_only:
        params += audio_encoder_params(parse_audio_config(audio))
        found = read_beside_config(command.model, f"{AUDIO_TOKENIZER_DIR}/config.json")
        tokenizer = found or RELEASED_AUDIO_TOKENIZER
        params += audio_tokenizer_params(parse_audio_tokenizer_config(tokenizer, command.media))
    return params


def _cache_budget(command: Command, weight_bytes: int) -> int | None:
    """Bytes a rank for K and V; zero or less when weights and reserve leave none."""
    kv_cache_gib = command.cache.kv_cache_gib
    asked = None if kv_cache_gib is None else int(kv_cache_gib * GIB)
    if command.device == "cpu":
        return CPU_KV_BYTES if asked is None else asked
    if command.gpu_bytes is None:
        return asked
    free = int(command.gpu_bytes * command.cache.gpu_memory_share) - weight_bytes - RESERVED_BYTES
    if asked is not None and asked > free > 0:
        raise ConfigError(
            f"--kv-cache-gib {kv_cache_gib} does not fit: {free / GIB:.2f} GiB of a GPU are left"
        )
    return free if asked is None else min(asked, free)


def _print_model(config: ModelConfig, command: Command) -> None:
    num_sliding = sum(layer.is_sliding for layer in config.layers)
    router = config.router
    experts = f", {router.num_experts} experts" if router else ""
    print(
        f"{config.architecture}: {config.num_layers} layers ({config.num_layers - num_sliding} "
        f"full, {num_sliding} sliding), hidden {config.hidden_size}{experts}"
    )
    ranks = f"{command.tp_size} rank{'s' if command.tp_size > 1 else ''}"
    copies = f", {command.num_replicas} copies" if command.num_replicas > 1 else ""
    print(f"{command.device}, {ranks}{copies}")


def _print_weights(weights: list[WeightGroup], towers: list[WeightGroup], tp_size: int) -> None:
    """The table of parameters. The towers are on rank 0 alone, whatever the number of ranks."""
    print(f"\n{'weights':<25}{'format':<17}{'parameters':>12}{'GB a rank':>12}{'GB in all':>12}")
    for group in weights:
        _print_row(group.name, group, tp_size * group.num_bytes)
    text = _sum(weights)
    _print_row("sum", text, tp_size * text.num_bytes)
    if not towers:
        return
    for group in towers:
        _print_row(f"{group.name}, rank 0", group, group.num_bytes)
    rank_0 = _sum([*weights, *towers])
    _print_row("sum, rank 0", rank_0, (tp_size - 1) * text.num_bytes + rank_0.num_bytes)


def _sum(groups: list[WeightGroup]) -> WeightGroup:
    return WeightGroup(
        name="sum",
        formats=(),
        num_parameters=sum(group.num_parameters for group in groups),
        num_bytes=sum(group.num_bytes for group in groups),
    )


def _print_row(name: str, group: WeightGroup, total_bytes: int) -> None:
    """One group; total_bytes: on all ranks together."""
    print(
        f"{name:<25}{', '.join(group.formats):<17}{group.num_parameters / 1e9:>10.3f} B"
        f"{group.num_bytes / 1e9:>12.2f}{total_bytes / 1e9:>12.2f}"
    )


def _print_kv(cost: KVCost, config: ModelConfig, command: Command) -> None:
    longest = command.scheduler.context_len(config.max_position_embeddings)
    print("\nKV cache a rank")
    print(f"  {'full layers, a token':<38}{cost.full_bytes_per_token:>12,} B")
    full_gib = longest * cost.full_bytes_per_token / GIB
    print(f"  {f'full layers, {longest:,} tokens':<38}{full_gib:>12.2f} GiB")
    sliding_mib = cost.sliding_bytes_per_sequence / 2**20
    print(f"  {'sliding layers, a sequence at most':<38}{sliding_mib:>12.2f} MiB")


def _print_layout(
    layout: CacheLayout, budget_bytes: int, config: ModelConfig, command: Command
) -> None:
    wanted = command.scheduler.context_len(config.max_position_embeddings)
    longest = layout.longest_request(wanted)
    print("\nfits a rank")
    if command.gpu_bytes is not None and command.device == "cuda":
        print(f"  {'memory of a GPU':<38}{command.gpu_bytes / GIB:>12.2f} GiB")
        print(f"  {'kept for activations (estimate)':<38}{RESERVED_BYTES / GIB:>12.2f} GiB")
    print(f"  {'for the KV cache':<38}{budget_bytes / GIB:>12.2f} GiB")
    print(f"  {'used by its pages':<38}{layout.total_bytes / GIB:>12.2f} GiB")
    print(f"  {'sliding pages':<38}{layout.num_sliding_pages:>12,}")
    print(f"  {'full pages':<38}{layout.num_full_pages:>12,}")
    print(f"\n{'tokens that fit':<40}{layout.num_full_pages * layout.page_size:>12,} a copy")
    print(f"{'longest request':<40}{longest:>12,} of {wanted:,}")

"""One rank: its device, its share of the weights and of the cache, and the runner over both.

worker = Worker(...)            loads the weights; kv_budget_bytes() says what is left
worker.allocate(layout)
result = worker.run(plan)       for every plan
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.load import Weight, load_checkpoint
from mimo_engine.checkpoint.random_weights import random_weights
from mimo_engine.checkpoint.tower_params import Tower
from mimo_engine.checkpoint.towers import load_towers
from mimo_engine.config.engine import CPU_KV_BYTES, GIB, CacheConfig, EngineConfig
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.model import AttentionKind, ModelConfig
from mimo_engine.distributed.groups import Comm
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import ConfigError
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.kernels.dispatch import choose_kernels, describe
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer
from mimo_engine.model.batch import LayerCache
from mimo_engine.model.mtp import MtpLayers, split_mtp_weights
from mimo_engine.model.text import TextModel
from mimo_engine.model.vision import MiMoVisionTransformer
from mimo_engine.scheduler.plan import StepPlan, StepResult
from mimo_engine.worker.budget import reserved_bytes
from mimo_engine.worker.drafting import Drafter
from mimo_engine.worker.graphs import DecodeGraphs
from mimo_engine.worker.inputs import StepInputs
from mimo_engine.worker.kv_pools import allocate_pools
from mimo_engine.worker.masks import ConstraintTable
from mimo_engine.worker.media import MediaEncoder, Towers
from mimo_engine.worker.runner import BROKEN_NUMBERS, Pending, Runner
from mimo_engine.worker.warm_up import warm_passes, warm_up

__all__ = ["Worker", "resolve_device", "resolve_dtype"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_logger = logging.getLogger(__name__)


def resolve_device(device: str, tp_rank: int = 0) -> torch.device:
    """The device of one rank. Raises ConfigError when a GPU is asked for and there is none."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device != "cpu" and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: this torch sees no GPU; use --device cpu")
    return torch.device("cuda", tp_rank) if device == "cuda" else torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """auto: bfloat16 on a GPU; float32 on a CPU, where bfloat16 is not faster."""
    if dtype == "auto":
        dtype = "float32" if device.type == "cpu" else "bfloat16"
    return _DTYPES[dtype]


class Worker:
    """A loaded rank. `allocate` must come before the first `run`."""

    def __init__(
        self,
        config: EngineConfig,
        model_config: ModelConfig,
        *,
        plan: ParallelPlan,
        comm: Comm,
        num_live_tokens: int,
        num_draft_layers: int = 0,
        media: MediaConfig | None = None,
    ) -> None:
        """num_draft_layers: how many of the checkpoint's MTP layers are used."""
        self.num_draft_layers = num_draft_layers
        self._config = config
        self._model_config = model_config
        self._plan = plan
        self._comm = comm
        self._num_live_tokens = num_live_tokens
        self.device = resolve_device(config.device, plan.tp_rank)
        self.dtype = resolve_dtype(config.dtype, self.device)
        self._kernels = choose_kernels(config.kernels, self.device, self.dtype)
        split = split_mtp_weights(self._weights(media))
        for name in [name for name in split.text if ".experts." in name]:
            # One at a time, so that memory never holds both forms of all.
            split.text[name] = self._kernels.prepare_experts(
                split.text.pop(name), config.mxfp4_activations
            )
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # what packing left; the cache's budget is what is free
        _logger.info("kernels: %s", describe(self._kernels))
        self.model = TextModel.from_weights(
            model_config, split.text, plan, comm, kernels=self._kernels
        )
        self.draft_layers = MtpLayers.from_weights(
            model_config, split.mtp, plan, comm, kernels=self._kernels
        )
        # Rank 0 chooses the tokens, so it alone needs grammars.
        self._compiler = _grammar_compiler(config, model_config) if plan.tp_rank == 0 else None
        # Rank 0 encodes media for all, and alone has the towers.
        self._media_config = media if plan.tp_rank == 0 else None
        self.media = None if self._media_config is None else self._load_towers(self._media_config)
        self.runner: Runner | None = None

    def _weights(self, media: MediaConfig | None) -> dict[str, Weight]:
        config, plan = self._config, self._plan
        if config.weights != "checkpoint":
            return random_weights(
                self._model_config,
                config.weights,
                plan,
                dtype=self.dtype,
                device=self.device,
                num_mtp_layers=self.num_draft_layers,
            )
        return load_checkpoint(
            Path(config.model),
            self._model_config,
            plan,
            dtype=self.dtype,
            device=self.device,
            # On a CPU a decode a step would cost more than the matmul: decode once, at load.
            keep_quantised=self.device.type != "cpu",
            qkv_layout=config.settings.qkv_layout,
            media=media,
            num_mtp_layers=self.num_draft_layers,
            progress=plan.tp_rank == 0,
        )

    def _load_towers(self, media: MediaConfig) -> MediaEncoder:
        weights = load_towers(
            Path(self._config.model),
            media,
            dtype=self.dtype,
            device=self.device,
            progress=True,
        )
        towers = Towers(
            vision=MiMoVisionTransformer.from_weights(
                media.vision, weights[Tower.VISION], self._kernels
            ),
            audio_tokenizer=MiMoAudioTokenizer.from_weights(
                media.audio_tokenizer, weights[Tower.AUDIO_TOKENIZER], self._kernels
            ),
            audio_encoder=MiMoAudioEncoder.from_weights(media.audio, weights[Tower.AUDIO_ENCODER]),
        )
        return MediaEncoder(
            towers,
            hidden_size=self._model_config.hidden_size,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def kv_heads(self) -> dict[AttentionKind, int]:
        """KV slots that this rank caches, by attention kind."""
        return {
            spec.attention: self._plan.heads(spec).slots_per_rank
            for spec in self._model_config.layers
        }

    def kv_budget_bytes(self) -> int:
        """Memory this rank can give to K and V, after its weights."""
        cache = self._config.cache
        if cache.kv_cache_gib is not None:
            return int(cache.kv_cache_gib * GIB)
        if self.device.type == "cpu":
            return CPU_KV_BYTES
        return self._gpu_budget_bytes(cache)

    def _gpu_budget_bytes(self, cache: CacheConfig) -> int:
        """What gpu_memory_share leaves after what is taken and what is needed beside the cache."""
        free, total = torch.cuda.mem_get_info(self.device)
        reserved = reserved_bytes(
            self._config,
            self._model_config,
            element_bytes=self.dtype.itemsize,
            num_draft_layers=self.num_draft_layers,
            media=self._media_config,
            captures=self._captures,
        )
        budget = int(total * cache.gpu_memory_share) - (total - free) - reserved
        if budget <= 0:
            raise ConfigError(
                f"no GPU memory is left for the KV cache: {free / GIB:.1f} of "
                f"{total / GIB:.1f} GiB are free after loading, and {reserved / GIB:.1f} are for "
                "activations, drafts and captured steps; use more ranks (--tensor-parallel-size), "
                "a larger --gpu-memory-share, or a smaller --max-num-batched-tokens, "
                "--max-num-seqs or --max-model-len"
            )
        return budget

    def allocate(self, layout: CacheLayout, *, max_model_len: int) -> None:
        """Make the pools and the page tables for `layout`."""
        caches = allocate_pools(
            self._model_config,
            layout,
            kv_heads=self.kv_heads,
            dtype=self.dtype,
            device=self.device,
            num_draft_layers=self.num_draft_layers,
        )
        inputs = StepInputs(
            num_slots=self._config.scheduler.max_num_seqs,
            # Drafts behind a request's last position are read, though they never count.
            max_pages=-(-(max_model_len + self.num_draft_layers) // layout.page_size),
            page_size=layout.page_size,
            window=self._model_config.window,
            device=self.device,
            reads_pages=self._kernels.reads_pages,
        )
        num_layers = len(self._model_config.layers)
        drafter = self._drafter(inputs, caches[num_layers:])
        self.runner = Runner(
            self.model,
            inputs,
            caches[:num_layers],
            ConstraintTable(self._compiler, num_tokens=self._num_live_tokens),
            num_live_tokens=self._num_live_tokens,
            comm=self._comm,
            media=self.media,
            drafter=drafter,
            graphs=self._captured(inputs, caches[:num_layers], drafter, max_model_len),
        )

    @property
    def _captures(self) -> bool:
        """Whether decode steps are captured: where kernels can be; between ranks not yet."""
        return self._kernels.step is not None and self._plan.tp_size == 1

    def _captured(
        self,
        inputs: StepInputs,
        caches: Sequence[LayerCache],
        drafter: Drafter | None,
        max_len: int,
    ) -> DecodeGraphs | None:
        """Every kernel is compiled and every decode step captured when this returns."""
        kernels = self._kernels.step
        if kernels is None or not self._captures:
            return None
        started = time.perf_counter()
        num_slots = self._config.scheduler.max_num_seqs
        warm_up(
            self.model,
            inputs,
            caches,
            drafter,
            passes=warm_passes(
                num_slots=num_slots, max_depth=self.num_draft_layers, max_len=max_len
            ),
        )
        graphs = DecodeGraphs(
            self.model,
            inputs,
            caches,
            kernels,
            drafter=drafter,
            max_depth=self.num_draft_layers,
            recomputes=self._config.speculative.recompute_boundary,
            num_slots=num_slots,
            num_live_tokens=self._num_live_tokens,
            max_len=max_len,
            error=BROKEN_NUMBERS,
        )
        graphs.capture()
        _logger.info(
            "compiled kernels and captured %d decode steps in %.1f s; they take %.0f MiB, "
            "%.0f of them the driver's",
            graphs.memory.num_graphs,
            time.perf_counter() - started,
            graphs.memory.num_bytes / 2**20,
            graphs.memory.num_driver_bytes / 2**20,
        )
        return graphs

    def _drafter(self, inputs: StepInputs, caches: Sequence[LayerCache]) -> Drafter | None:
        if not caches:
            return None
        window = self._model_config.window
        assert window is not None
        return Drafter(
            self.model,
            self.draft_layers,
            inputs,
            caches,
            num_slots=self._config.scheduler.max_num_seqs,
            # Rows that are rejected must not reach round to the window.
            ring_len=window + 1 + len(caches),
            max_rows=self._config.scheduler.max_num_batched_tokens,
            num_live_tokens=self._num_live_tokens,
            samples_drafts=self._config.speculative.draft_choice == "sampled",
            comm=self._comm,
        )

    def launch(self, plan: StepPlan) -> Pending:
        assert self.runner is not None, "allocate comes first"
        return self.runner.launch(plan)

    def run(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()


def _grammar_compiler(config: EngineConfig, model_config: ModelConfig) -> GrammarCompiler:
    tokenizer = Tokenizer.from_dir(config.model)
    return GrammarCompiler(
        tokenizer.to_json(),
        num_tokens=tokenizer.num_tokens,
        end_ids=(*model_config.eos_token_ids, *tokenizer.stop_token_ids()),
    )

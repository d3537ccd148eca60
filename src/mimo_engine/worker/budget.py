"""What a rank's GPU needs beside weights, keys and values, in bytes: the cache gets the rest.

Upper bounds from shapes, so that nothing runs short when traffic is at its widest; only what the
driver keeps of a captured graph is an estimate.
"""

from __future__ import annotations

from mimo_engine.config.engine import GIB, EngineConfig
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.model import AttentionKind, ModelConfig
from mimo_engine.kernels.decode_step import RECENT
from mimo_engine.worker.graphs import batch_sizes

__all__ = ["reserved_bytes"]

_SPLIT_BYTES = 64 * 2**20
"""Parts of keys that attention merges: at most 1,024 tiles of 128 rows and 128 floats each."""
_GRAPH_BYTES = 4 * 2**20
"""Of one captured step, what the driver keeps: its kernels and their arguments."""
_MARGIN_BYTES = GIB // 2
"""Fragments, and libraries' own buffers."""


def reserved_bytes(
    config: EngineConfig,
    model: ModelConfig,
    *,
    element_bytes: int,
    num_draft_layers: int,
    media: MediaConfig | None,
    captures: bool,
) -> int:
    """Of any step, of what is kept by slot, and of captured steps. element_bytes: of activations;
    media: of the towers on this rank. captures: whether steps are captured."""
    scheduler = config.scheduler
    max_len = scheduler.context_len(model.max_position_embeddings)
    num_pages = -(-(max_len + num_draft_layers) // config.cache.page_size)
    num_slots = scheduler.max_num_seqs
    total = _MARGIN_BYTES
    # The draft layers compute as many, or a window of one request.
    num_rows = max(scheduler.max_num_batched_tokens, _ring_len(model, num_draft_layers))
    total += _activation_bytes(model, num_rows, num_slots * (1 + num_draft_layers))
    if media is not None:
        total += _tower_bytes(config, media)
    total += _slot_bytes(model, num_slots, num_pages, element_bytes, num_draft_layers)
    if captures:
        total += _captured_bytes(model, num_slots, num_pages, num_draft_layers)
    return total


def _activation_bytes(model: ModelConfig, num_rows: int, num_logit_rows: int) -> int:
    widest = max(spec.intermediate_size for spec in model.layers)
    row_bytes = 4 * (8 * model.hidden_size + 4 * widest)
    # As float32, sorted, and their weights.
    return num_rows * row_bytes + num_logit_rows * model.vocab_size * 4 * 4


def _slot_bytes(
    model: ModelConfig, num_slots: int, num_pages: int, element_bytes: int, num_draft_layers: int
) -> int:
    """Page tables, the ring of hidden states, and what captured steps know of a slot."""
    own = len(AttentionKind) * num_pages * 4
    own += _ring_len(model, num_draft_layers) * model.hidden_size * element_bytes
    own += 8 * (RECENT + num_draft_layers + 16)
    return (1 + num_slots) * own


def _ring_len(model: ModelConfig, num_draft_layers: int) -> int:
    """Rows of a request whose hidden states are kept for draft layers."""
    if not num_draft_layers:
        return 0
    assert model.window is not None
    return model.window + 1 + num_draft_layers


def _captured_bytes(
    model: ModelConfig, num_slots: int, num_pages: int, num_draft_layers: int
) -> int:
    """All graphs share one pool, so the widest step counts, and each graph by itself."""
    # Draft layers compute the rows of two verifications: certain ones, and guesses of before.
    num_rows = num_slots * max(1 + num_draft_layers, 2 * num_draft_layers)
    tables = (1 + len(AttentionKind)) * num_slots * num_pages * 4
    num_graphs = len(batch_sizes(num_slots)) * (1 + num_draft_layers)
    buffers = _activation_bytes(model, num_rows, num_slots * (1 + num_draft_layers))
    return buffers + tables + _SPLIT_BYTES + num_graphs * _GRAPH_BYTES


def _tower_bytes(config: EngineConfig, media: MediaConfig) -> int:
    """What the vision tower's activations take at most in one step; the audio tower's take less, a
    minute at a time."""
    processor, vision = media.processor, media.vision
    pixels = max(processor.image_max_pixels, processor.video_max_pixels)
    patches = max(
        pixels // processor.patch_size**2,
        config.encoder.max_encoder_tokens * vision.merge_unit,
    )
    return patches * 4 * (3 * vision.intermediate_size + 8 * vision.hidden_size)

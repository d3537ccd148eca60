"""How the memory for K and V is divided: two groups of pages, sized from one byte budget.

Full-attention layers keep every token; sliding ones only the last window, which the scheduler
gives back as it passes. The groups differ in width and in lifetime, so each has its own pages: one
page of a group holds `page_size` tokens of all its layers. Nobody sets a ratio: what the sliding
group can use is known from the limits of the scheduler, and the rest goes to full pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mimo_engine.config.engine import GIB
from mimo_engine.config.model import AttentionKind, ModelConfig
from mimo_engine.errors import ConfigError

__all__ = ["CacheLayout", "KVGroup", "kv_groups", "max_window_pages", "num_pages_for", "plan_cache"]

MIN_SERVED_TOKENS = 256
"""A cache that holds less than this, when the model takes more, is a mistake and not a choice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KVGroup:
    """The layers that share one page table."""

    layer_indices: tuple[int, ...]
    elements_per_token: int
    """K and V of every KV head of every layer in the group, on one rank."""

    def bytes_per_token(self, bytes_per_element: int) -> int:
        return self.elements_per_token * bytes_per_element


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheLayout:
    """How many pages each group has. A group without layers has no pages."""

    page_size: int
    """Tokens in a page, in both groups."""
    num_full_pages: int
    num_sliding_pages: int
    window: int | None
    """Tokens a query of a sliding layer sees, itself included; None: no sliding layers."""
    full_page_bytes: int = 0
    """Bytes of one page over all layers of its group, on one rank."""
    sliding_page_bytes: int = 0

    def __post_init__(self) -> None:
        assert (self.window is None) == (self.num_sliding_pages == 0)
        assert self.num_full_pages or self.num_sliding_pages

    @property
    def total_bytes(self) -> int:
        full = self.num_full_pages * self.full_page_bytes
        return full + self.num_sliding_pages * self.sliding_page_bytes

    def longest_request(self, wanted_tokens: int) -> int:
        """`wanted_tokens`, or as many of them as one request alone can keep in the full group."""
        if not self.num_full_pages:
            return wanted_tokens
        return min(wanted_tokens, self.num_full_pages * self.page_size)


def kv_groups(
    config: ModelConfig,
    kv_heads: Mapping[AttentionKind, int] | None = None,
    num_draft_layers: int = 0,
) -> tuple[KVGroup, KVGroup]:
    """The (full, sliding) groups of the model, either of which may have no layers. Draft layers
    join the sliding one: they add to its elements, and are no layers of the model.

    kv_heads: KV heads that one layer of the kind keeps on this rank, where tensor parallelism
    divides, replicates or pads them; by default those of the model.
    """
    groups: list[KVGroup] = []
    for kind in (AttentionKind.FULL, AttentionKind.SLIDING):
        layers = {i: spec for i, spec in enumerate(config.layers) if spec.attention is kind}
        elements = 0
        drafts = num_draft_layers if kind is config.mtp_layer.attention else 0
        for spec in (*layers.values(), *[config.mtp_layer] * drafts):
            num_heads = spec.num_kv_heads if kv_heads is None else kv_heads[kind]
            elements += spec.kv_elements_per_token // spec.num_kv_heads * num_heads
        groups.append(KVGroup(layer_indices=tuple(layers), elements_per_token=elements))
    return groups[0], groups[1]


def num_pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that hold positions 0 ... num_tokens - 1."""
    return -(-num_tokens // page_size)


def max_window_pages(window: int, page_size: int) -> int:
    """The most pages that `window` consecutive positions touch, wherever they start."""
    return num_pages_for(window - 1, page_size) + 1


def plan_cache(
    config: ModelConfig,
    budget_bytes: int,
    *,
    page_size: int,
    bytes_per_element: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    max_model_len: int,
    kv_heads: Mapping[AttentionKind, int] | None = None,
    num_draft_layers: int = 0,
) -> CacheLayout:
    """Divide `budget_bytes` of one rank between the two groups.

    The sliding group wants its working set (a window for each of max_num_seqs requests, and the
    rows of one step, which are written before the window passes them) and two windows a request
    for cached prefixes. It gets that, but no more than half of the budget; as live requests come
    before cached prefixes, a tight budget costs prefixes first. All else goes to full pages, up to
    what can ever be used: max_num_seqs requests of max_model_len, and as much again for cached
    prefixes.

    max_model_len is the longest that requests may be; what the layout can hold of it is its
    `longest_request`. num_draft_layers: also the most drafts that a step has behind a request's
    window. Raises ConfigError when not even one request of useful length fits.
    """
    full, sliding = kv_groups(config, kv_heads, num_draft_layers)
    full_page_bytes = page_size * full.bytes_per_token(bytes_per_element)
    sliding_page_bytes = page_size * sliding.bytes_per_token(bytes_per_element)
    pages_of_longest = num_pages_for(max_model_len, page_size)
    useful_len = min(max_model_len, MIN_SERVED_TOKENS)
    min_full = num_pages_for(useful_len, page_size) if full.layer_indices else 0

    num_sliding = min_sliding = 0
    window = config.window
    if window is not None:
        widest = window + num_draft_layers
        window_pages = min(max_window_pages(widest, page_size), pages_of_longest)
        min_sliding = window_pages + 1
        step_pages = max_num_batched_tokens // page_size + 1
        wanted = 3 * max_num_seqs * window_pages + step_pages
        share_bytes = budget_bytes - min_full * full_page_bytes
        if full.layer_indices:
            share_bytes = min(share_bytes, budget_bytes // 2)
        num_sliding = max(min_sliding, min(wanted, share_bytes // sliding_page_bytes))

    _require(
        min_sliding * sliding_page_bytes + min_full * full_page_bytes, budget_bytes, useful_len
    )
    num_full = 0
    if full.layer_indices:
        left_bytes = budget_bytes - num_sliding * sliding_page_bytes
        num_full = min(left_bytes // full_page_bytes, 2 * max_num_seqs * pages_of_longest)
    return CacheLayout(
        page_size=page_size,
        num_full_pages=num_full,
        num_sliding_pages=num_sliding,
        window=window,
        full_page_bytes=full_page_bytes,
        sliding_page_bytes=sliding_page_bytes,
    )


def _require(needed_bytes: int, budget_bytes: int, useful_len: int) -> None:
    """Refuse a budget that cannot hold one request."""
    if needed_bytes > budget_bytes:
        raise ConfigError(
            f"{budget_bytes / GIB:.4g} GiB of KV cache cannot hold one request of {useful_len} "
            f"tokens, which takes {needed_bytes / GIB:.4g} GiB: raise --kv-cache-gib"
        )

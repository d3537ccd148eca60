"""Which part of the model one tensor-parallel rank holds: the one place that specifies every cut.

Three rules cover every degree, with no special cases; degrees that divide nothing (3, 6) are
zero-padded by the same formulas. Every rank has the same shapes. What no rule here names is
replicated: norms, router, correction bias, the `eh_proj` of draft layers.

Attention (`HeadPlan`). Each KV head is held in `copies` KV slots; a slot serves
`heads_per_slot = ceil(group / copies)` consecutive query heads of its KV head, the last slot of a
head possibly fewer, padded with zero heads. Slots are dealt to the ranks in order,
`slots_per_rank = ceil(num_kv_heads * copies / tp_size)` each; trailing slots are all zero. `copies`
in 1 ... group minimises `heads_per_rank + 2 * slots_per_rank` (ties: fewer copies): a KV slot costs
about as many bytes of weights and cache as two query heads. Out of this one formula come the plain
cut, the replication of KV heads at degrees above their number, and padding. Inside a rank GQA stays
uniform: local query head `i` reads local slot `i // heads_per_slot`.

Widths (`BlockPlan`). MLP columns, dense and experts, are dealt in contiguous runs of whole blocks
of 128, `ceil(ceil(width / 128) / tp_size)` blocks a rank, whatever the stored format: 128 is the
scale block of FP8 and a multiple of MXFP4's group. Vocabulary rows likewise, in blocks of 64.
"""

from __future__ import annotations

from dataclasses import dataclass

from mimo_engine.config.model import LayerSpec

__all__ = ["SINGLE_RANK", "BlockPlan", "HeadPlan", "KVSlot", "ParallelPlan", "plan_heads"]

_MLP_BLOCK = 128
_VOCAB_BLOCK = 64
_SLOT_COST_IN_HEADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class KVSlot:
    """One local KV head. None stands for zero padding."""

    kv_head: int | None
    query_heads: tuple[int | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """How the heads of one attention layer are dealt to the ranks; see the module docstring."""

    num_heads: int
    num_kv_heads: int
    tp_size: int
    copies: int
    heads_per_slot: int
    slots_per_rank: int

    @property
    def heads_per_rank(self) -> int:
        return self.slots_per_rank * self.heads_per_slot

    def slots(self, tp_rank: int) -> tuple[KVSlot, ...]:
        """The `slots_per_rank` KV slots of one rank, in local order."""
        assert 0 <= tp_rank < self.tp_size
        first = tp_rank * self.slots_per_rank
        return tuple(self._slot(first + i) for i in range(self.slots_per_rank))

    def query_heads(self, tp_rank: int) -> tuple[int | None, ...]:
        """The `heads_per_rank` query heads of one rank, in local order."""
        return tuple(head for slot in self.slots(tp_rank) for head in slot.query_heads)

    def kv_heads(self, tp_rank: int) -> tuple[int | None, ...]:
        """The KV head behind each slot of one rank."""
        return tuple(slot.kv_head for slot in self.slots(tp_rank))

    def _slot(self, index: int) -> KVSlot:
        kv_head, copy = divmod(index, self.copies)
        if kv_head >= self.num_kv_heads:
            return KVSlot(kv_head=None, query_heads=(None,) * self.heads_per_slot)
        group = self.num_heads // self.num_kv_heads
        in_group = range(copy * self.heads_per_slot, (copy + 1) * self.heads_per_slot)
        return KVSlot(
            kv_head=kv_head,
            query_heads=tuple(kv_head * group + i if i < group else None for i in in_group),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockPlan:
    """A dimension of `size` dealt in contiguous whole blocks, the tail zero-padded."""

    size: int
    local_size: int
    """Entries a rank holds, padding included; the same on every rank."""

    def start(self, tp_rank: int) -> int:
        """First global entry of the rank; `size` when it holds padding only."""
        return min(tp_rank * self.local_size, self.size)

    def num_real(self, tp_rank: int) -> int:
        """Entries of the rank that are not padding; they come first."""
        return self.start(tp_rank + 1) - self.start(tp_rank)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelPlan:
    """One rank of `tp_size`."""

    tp_size: int = 1
    tp_rank: int = 0

    def __post_init__(self) -> None:
        assert 0 <= self.tp_rank < self.tp_size

    def heads(self, spec: LayerSpec) -> HeadPlan:
        """How the heads of this kind of layer are dealt."""
        return plan_heads(spec.num_heads, spec.num_kv_heads, self.tp_size)

    def mlp_columns(self, intermediate_size: int) -> BlockPlan:
        """How the columns of an MLP, dense or one expert, are dealt."""
        return _plan_blocks(intermediate_size, _MLP_BLOCK, self.tp_size)

    def vocabulary(self, vocab_size: int) -> BlockPlan:
        """How the rows of `embed_tokens` and `lm_head` are dealt."""
        return _plan_blocks(vocab_size, _VOCAB_BLOCK, self.tp_size)


SINGLE_RANK = ParallelPlan()
"""The whole model on one rank."""


def plan_heads(num_heads: int, num_kv_heads: int, tp_size: int) -> HeadPlan:
    """The cheapest `HeadPlan` for this geometry."""
    assert num_heads % num_kv_heads == 0
    group = num_heads // num_kv_heads

    def with_copies(copies: int) -> HeadPlan:
        return HeadPlan(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            tp_size=tp_size,
            copies=copies,
            heads_per_slot=_ceil_div(group, copies),
            slots_per_rank=_ceil_div(num_kv_heads * copies, tp_size),
        )

    candidates = [with_copies(copies) for copies in range(1, group + 1)]
    # `min` keeps the first of equals: the fewest copies.
    return min(candidates, key=lambda p: p.heads_per_rank + _SLOT_COST_IN_HEADS * p.slots_per_rank)


def _plan_blocks(size: int, block: int, tp_size: int) -> BlockPlan:
    local_size = _ceil_div(_ceil_div(size, block), tp_size) * block
    # One rank, or a width below one block, needs no padding up to the block.
    return BlockPlan(size=size, local_size=min(local_size, size))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)

"""Decoding by replay: one captured graph a batch size, from last tokens to the next ones.

    graphs.capture()              once, at start
    pending = graphs.launch(plan) the step is under way when this returns
    result = pending.result()     waits for it

What a step needs is on the device: last tokens, positions, sampling parameters and page tables, by
slot. The step reads and advances them itself, so the next one can be launched before anybody has
seen this one's tokens. The host keeps its own copy of the tokens, from the results; where it has
moved on by itself (a prompt was computed), the slot is sent anew.

Batches are padded to the next captured size by rows of nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from mimo_engine.config.model import AttentionKind
from mimo_engine.kernels.attention import PagedRows
from mimo_engine.kernels.decode_step import SlotTensors
from mimo_engine.kernels.dispatch import StepKernels
from mimo_engine.kernels.sampling import RowParams
from mimo_engine.model.batch import ForwardBatch, LayerCache
from mimo_engine.model.text import TextModel
from mimo_engine.scheduler.plan import RowResult, StepPlan, StepResult
from mimo_engine.worker.inputs import SlotState, StepInputs

__all__ = ["DecodeGraphs", "PendingStep", "batch_sizes"]


def batch_sizes(largest: int) -> list[int]:
    """Sizes that are captured: dense where a request more costs most, and the largest itself."""
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, *range(128, largest, 64)]
    return [size for size in sizes if size < largest] + [largest]


@dataclass(slots=True)
class _Graph:
    """Of one batch size."""

    slots: torch.Tensor
    """[B] int64, on the device."""
    members: tuple[int, ...]
    """What stands in `slots`."""
    graph: torch.cuda.CUDAGraph = field(default_factory=torch.cuda.CUDAGraph)
    tokens: torch.Tensor | None = None
    """[B, 2] int64: how many came (0: broken logits), and which."""


class PendingStep:
    """A step under way."""

    is_under_way = True

    def __init__(
        self,
        states: Sequence[SlotState],
        tokens: torch.Tensor,
        event: torch.cuda.Event,
        error: str,
    ) -> None:
        """tokens: [B, 1 + most tokens a row], in pinned memory, there when `event` is."""
        self._states = states
        self._tokens = tokens
        self._event = event
        self._error = error

    def result(self) -> StepResult:
        """Waits; the slots know their tokens then."""
        self._event.synchronize()
        rows = []
        for state, (count, *tokens) in zip(self._states, self._tokens.tolist(), strict=False):
            if count == 0:
                rows.append(RowResult(error=self._error))
                continue
            state.token_ids += tokens[:count]
            rows.append(RowResult(token_ids=tuple(tokens[:count])))
        return StepResult(rows=tuple(rows))


class DecodeGraphs:
    """Of plain requests, on one GPU. Owns what the device knows of the slots."""

    def __init__(
        self,
        model: TextModel,
        inputs: StepInputs,
        caches: Sequence[LayerCache],
        kernels: StepKernels,
        *,
        num_slots: int,
        num_live_tokens: int,
        max_len: int,
        error: str,
    ) -> None:
        """max_len: of a request, ever. error: what is said of broken logits."""
        self._model = model
        self._inputs = inputs
        self._caches = caches
        self._kernels = kernels
        self._num_live_tokens = num_live_tokens
        self._max_len = max_len
        self._error = error
        self._device = model.norm.weight.device
        self._state = SlotTensors.empty(num_slots, 0, self._device)
        self._sizes = batch_sizes(num_slots)
        self._graphs: dict[int, _Graph] = {}

    @torch.inference_mode()
    def capture(self, progress: Callable[[int], object] | None = None) -> None:
        """All sizes, the largest first, in one pool of memory; the first run of each kernel, which
        compiles it, is outside of any graph. progress: told each size."""
        pool = torch.cuda.graph_pool_handle()
        for size in reversed(self._sizes):
            slots = torch.zeros(size, dtype=torch.int64, device=self._device)
            graph = _Graph(slots=slots, members=(0,) * size)
            self._step(slots)
            torch.cuda.synchronize(self._device)
            with torch.cuda.graph(graph.graph, pool=pool):
                graph.tokens = self._step(slots)
            self._graphs[size] = graph
            if progress is not None:
                progress(size)

    def takes(self, plan: StepPlan) -> bool:
        """Whether the step is decoding alone, of requests that need nothing from the host."""
        return 0 < len(plan.rows) <= self._sizes[-1] and all(
            row.samples
            and row.num_rows == 1
            and not row.num_proposals
            and self._inputs.state(row.slot).params.is_plain
            for row in plan.rows
        )

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Of a plan that `takes` accepts and whose pages are entered."""
        members = [row.slot + 1 for row in plan.rows]
        states = [self._inputs.state(row.slot) for row in plan.rows]
        self._send([pair for pair in zip(members, states, strict=True) if not pair[1].on_device])
        size = self._sizes[bisect_left(self._sizes, len(members))]
        graph = self._graphs[size]
        padded = (*members, *(0,) * (size - len(members)))
        if padded != graph.members:
            graph.members = padded
            graph.slots.copy_(_pinned(padded, torch.int64), non_blocking=True)
        graph.graph.replay()
        assert graph.tokens is not None
        tokens = torch.empty(graph.tokens.shape, dtype=torch.int64, pin_memory=True)
        tokens.copy_(graph.tokens, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return PendingStep(states, tokens, event, self._error)

    def _send(self, stale: Sequence[tuple[int, SlotState]]) -> None:
        """What the device does not know yet of some slots."""
        if not stale:
            return
        whole, parts = [], []
        for member, state in stale:
            params = state.params
            position = len(state.token_ids) - 1
            index = len(state.token_ids) - state.num_prompt_tokens
            seed = (state.seed + 2**63) % 2**64 - 2**63
            whole.append((member, state.token_ids[-1], position, index, seed, params.top_k))
            parts.append((params.temperature, params.top_p, params.min_p))
            state.on_device = True
        own = _pinned(whole, torch.int64).to(self._device, non_blocking=True).T
        floats = _pinned(parts, torch.float32).to(self._device, non_blocking=True).T
        slots, state = own[0], self._state
        for tensor, values in (
            (state.last_token, own[1]),
            (state.position, own[2]),
            (state.output_index, own[3]),
            (state.seed, own[4]),
            (state.top_k, own[5].int()),
            (state.temperature, floats[0]),
            (state.top_p, floats[1]),
            (state.min_p, floats[2]),
        ):
            tensor[slots] = values

    def _step(self, slots: torch.Tensor) -> torch.Tensor:
        """The whole of it: [B, 2] as `end_step` gives it."""
        kernels, num_members = self._kernels, len(slots)
        tables = self._inputs.device_tables
        rows = kernels.begin_step(
            self._state, slots, list(tables.values()), self._inputs.page_size, 1
        )
        zeros = torch.zeros(num_members, dtype=torch.int32, device=self._device)
        first_row = torch.arange(num_members + 1, dtype=torch.int32, device=self._device)
        groups: dict[AttentionKind, PagedRows] = {
            kind: PagedRows(
                first_row=first_row,
                first_position=rows.first_position,
                visible_from=zeros,
                page_table=table.index_select(0, slots),
                page_size=self._inputs.page_size,
                max_rows=1,
                max_len=self._max_len,
            )
            for kind, table in tables.items()
        }
        batch = ForwardBatch(
            token_ids=rows.token_ids,
            positions=rows.positions,
            groups=groups,
            write_slots=dict(zip(tables, rows.write_slots, strict=True)),
            caches=self._caches,
        )
        logits = self._model.raw_logits(self._model(batch))
        params = RowParams(
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
            min_p=rows.min_p,
            seed=rows.seed,
            output_index=rows.output_index,
            num_live_tokens=self._num_live_tokens,
        )
        tokens = kernels.sample_rows(logits, params)
        return kernels.end_step(self._state, slots, zeros, tokens, 1)


def _pinned(values: Sequence[object], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).pin_memory()

"""Decoding by replay: a captured graph does a whole step, from last tokens to the next ones.

    graphs.capture()              all of them, once, at start
    pending = graphs.launch(plan) the step is under way when this returns
    result = pending.result()     waits for it

    verify:  last tokens and drafts -> model -> a token for every row -> accepted drafts
    draft:   the rows that are certain now, and some before -> draft layers, one by one -> drafts

What a step needs is on the device, by slot: last tokens, positions, drafts, sampling parameters and
page tables. The step reads and advances them itself, so the next one can be launched before anyone
has seen this one's tokens. The host keeps its own copy of tokens and drafts, from results; where
it has moved on by itself (a prompt was computed), the slot is sent anew.

There is a graph for each number of requests and depth of drafts; batches are padded to the next
number by rows of nobody.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mimo_engine.config.model import AttentionKind
from mimo_engine.kernels.attention import PagedRows
from mimo_engine.kernels.decode_step import RECENT, DraftRows, SlotTensors, StepRows
from mimo_engine.kernels.dispatch import StepKernels
from mimo_engine.kernels.sampling import RowParams
from mimo_engine.model.batch import ForwardBatch, LayerCache
from mimo_engine.model.text import TextModel
from mimo_engine.scheduler.plan import RowResult, StepPlan, StepResult, StepRow
from mimo_engine.worker.drafting import Drafter
from mimo_engine.worker.inputs import SlotState, StepInputs

__all__ = ["CaptureMemory", "DecodeGraphs", "PendingStep", "batch_sizes"]


def batch_sizes(largest: int) -> list[int]:
    """Sizes that are captured: dense where a request more costs most, and the largest itself."""
    sizes = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, *range(128, largest, 64)]
    return [size for size in sizes if size < largest] + [largest]


@dataclass(slots=True)
class _Graph:
    """Of one number of requests and one depth."""

    slots: torch.Tensor
    """[B] int64, on the device; 0 is nobody."""
    num_drafts: torch.Tensor
    """[B] int32: of the drafts that are verified, those that count."""
    members: Sequence[tuple[int, int]]
    """What stands in both."""
    graph: torch.cuda.CUDAGraph
    out: torch.Tensor
    """[B, 2 + 2 * depth] int64: how many tokens came (0: broken logits), those, and drafts."""


class PendingStep:
    """A step under way."""

    is_under_way = True

    def __init__(
        self,
        states: Sequence[SlotState],
        rows: Sequence[StepRow],
        out: torch.Tensor,
        event: torch.cuda.Event,
        error: str,
    ) -> None:
        """out: as in `_Graph`, in pinned memory, there when `event` is."""
        self._states = states
        self._rows = rows
        self._out = out
        self._event = event
        self._error = error

    def result(self) -> StepResult:
        """Waits; the slots know their tokens and drafts then."""
        self._event.synchronize()
        depth = self._out.shape[1] // 2 - 1
        results = []
        pairs = zip(self._states, self._rows, self._out.tolist(), strict=False)
        for state, row, (count, *numbers) in pairs:
            if count == 0:
                results.append(RowResult(error=self._error))
                continue
            state.token_ids += numbers[:count]
            state.drafts = numbers[1 + depth : 1 + depth + row.num_proposals]
            state.draft_proposals = []
            results.append(RowResult(token_ids=tuple(numbers[:count])))
        return StepResult(rows=tuple(results))


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptureMemory:
    """What all captured steps took of the device's memory, in bytes."""

    num_graphs: int
    num_bytes: int
    num_driver_bytes: int
    """Of those, what torch's allocator does not have: kernels, their arguments, the graphs."""


class DecodeGraphs:
    """Of plain requests, on one GPU. Owns what the device knows of the slots."""

    def __init__(
        self,
        model: TextModel,
        inputs: StepInputs,
        caches: Sequence[LayerCache],
        kernels: StepKernels,
        *,
        drafter: Drafter | None,
        max_depth: int,
        recomputes: bool,
        num_slots: int,
        num_live_tokens: int,
        max_len: int,
        error: str,
    ) -> None:
        """max_depth: most drafts. recomputes: rows whose following tokens were guessed are computed
        again by the draft layers. max_len: of a request, ever. error: said of broken logits."""
        assert (drafter is None) == (max_depth == 0)
        assert 2 * max_depth + 2 <= RECENT
        self._model = model
        self._inputs = inputs
        self._caches = caches
        self._kernels = kernels
        self._drafter = drafter
        self._max_depth = max_depth
        self._recomputes = recomputes
        self._num_live_tokens = num_live_tokens
        self._max_len = max_len
        self._error = error
        self._device = model.norm.weight.device
        self._state = SlotTensors.empty(num_slots, max_depth, self._device)
        self._sizes = batch_sizes(num_slots)
        self._graphs: dict[tuple[int, int], _Graph] = {}
        self._made: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self.memory = CaptureMemory(num_graphs=0, num_bytes=0, num_driver_bytes=0)

    def capture(self) -> None:
        """All sizes at all depths, the largest first: no later one needs more memory, and none is
        captured in the middle of traffic."""
        taken, own = _taken_bytes(self._device)
        for size in reversed(self._sizes):
            for depth in reversed(range(self._max_depth + 1)):
                self._graph(size, depth)
        taken_now, own_now = _taken_bytes(self._device)
        self.memory = CaptureMemory(
            num_graphs=len(self._graphs),
            num_bytes=taken_now - taken,
            num_driver_bytes=(taken_now - own_now) - (taken - own),
        )

    def forget(self, size: int, depth: int) -> None:
        """The graph of a size and depth: it is captured anew when it is next asked for."""
        self._graphs.pop((size, depth), None)

    def takes(self, plan: StepPlan) -> bool:
        """Whether the step is decoding alone, of requests that need nothing from the host."""
        depth = _depth(plan)
        return 0 < len(plan.rows) <= self._sizes[-1] and all(
            row.samples
            and row.num_tokens == 1
            and self._inputs.state(row.slot).params.is_plain
            and (plan.is_ahead or not row.num_proposals or self._follows(row, depth))
            for row in plan.rows
        )

    def _follows(self, row: StepRow, depth: int) -> bool:
        """Whether the draft layers are to go on where a step of this depth would have left off."""
        num_back = max(1, depth) if self._recomputes else 1
        return row.start - row.draft_start < num_back and not (
            self._drafter is None or self._drafter.samples_drafts
        )

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> PendingStep:
        """Of a plan that `takes` accepts and whose pages are entered."""
        states = [self._inputs.state(row.slot) for row in plan.rows]
        depth = _depth(plan)
        own = list(zip(plan.rows, states, strict=True))
        # Draft layers of another depth, or none of a row's own, would have left other bounds there.
        stale = [one for one in own if one[1].depth_on_device != depth]
        assert not (stale and plan.is_ahead), "the host does not know yet where those rows are"
        self._send(stale)
        for row, state in own:
            state.depth_on_device = depth if row.num_proposals == depth else None
        size = self._sizes[bisect_left(self._sizes, len(plan.rows))]
        graph = self._graph(size, depth)
        members = [(row.slot + 1, row.num_drafts) for row in plan.rows]
        members += [(0, 0)] * (size - len(members))
        if members != graph.members:
            graph.members = members
            both = _pinned(members, torch.int64).to(self._device, non_blocking=True)
            graph.slots.copy_(both[:, 0])
            graph.num_drafts.copy_(both[:, 1])
        graph.graph.replay()
        out = torch.empty(graph.out.shape, dtype=torch.int64, pin_memory=True)
        out.copy_(graph.out, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return PendingStep(states, plan.rows, out, event, self._error)

    @torch.inference_mode()
    def _graph(self, size: int, depth: int) -> _Graph:
        """Captured now, if it was not yet. Kernels run once before, outside of any graph: that
        compiles them, and they find nobody's slots alone."""
        if (size, depth) not in self._graphs:
            slots = torch.zeros(size, dtype=torch.int64, device=self._device)
            num_drafts = torch.zeros(size, dtype=torch.int32, device=self._device)
            self._step(slots, num_drafts, depth)
            torch.cuda.synchronize(self._device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                out = self._step(slots, num_drafts, depth)
            members = [(0, 0)] * size
            self._graphs[size, depth] = _Graph(slots, num_drafts, members, graph, out)
        return self._graphs[size, depth]

    def _send(self, stale: Sequence[tuple[StepRow, SlotState]]) -> None:
        """What the device does not know yet of some slots."""
        if not stale:
            return
        whole, parts = [], []
        for row, state in stale:
            params, known = state.params, len(state.token_ids)
            seed = (state.seed + 2**63) % 2**64 - 2**63
            first = max(0, known - RECENT)
            recent = [0] * RECENT
            for position in range(first, known):
                recent[position % RECENT] = state.token_ids[position]
            drafts = (state.drafts + [0] * self._max_depth)[: max(1, self._max_depth)] or [0]
            # A row without drafts to make has a place in the pass of others, and leaves nothing.
            bounds = (row.draft_start, row.draft_visible_from)
            bounds = bounds if row.num_proposals else (self._max_len, self._max_len)
            whole.append(
                (
                    *(row.slot + 1, state.token_ids[-1], known - 1),
                    *(known - state.num_prompt_tokens, seed, params.top_k),
                    *(*bounds, *recent, *drafts),
                )
            )
            parts.append((params.temperature, params.top_p, params.min_p))
        own = _pinned(whole, torch.int64).to(self._device, non_blocking=True).T
        floats = _pinned(parts, torch.float32).to(self._device, non_blocking=True).T
        slots, state = own[0], self._state
        for tensor, values in (
            (state.last_token, own[1]),
            (state.position, own[2]),
            (state.output_index, own[3]),
            (state.seed, own[4]),
            (state.top_k, own[5].int()),
            (state.draft_from, own[6]),
            (state.visible_from, own[7]),
            (state.recent, own[8 : 8 + RECENT].T),
            (state.drafts, own[8 + RECENT :].T),
            (state.temperature, floats[0]),
            (state.top_p, floats[1]),
            (state.min_p, floats[2]),
        ):
            tensor[slots] = values

    def _step(self, slots: torch.Tensor, num_drafts: torch.Tensor, depth: int) -> torch.Tensor:
        """The whole of it: out of `_Graph`."""
        kernels, num_rows = self._kernels, 1 + depth
        tables = self._inputs.device_tables
        rows = kernels.begin_step(
            self._state, slots, num_drafts, list(tables.values()), self._inputs.page_size, num_rows
        )
        groups = {
            kind: self._paged(table, slots, rows, None, num_rows) for kind, table in tables.items()
        }
        batch = ForwardBatch(
            token_ids=rows.token_ids,
            positions=rows.positions,
            groups=groups,
            write_slots=dict(zip(tables, rows.write_slots, strict=True)),
            caches=self._caches,
        )
        hidden = self._model(batch)
        params = RowParams(
            temperature=rows.temperature,
            top_k=rows.top_k,
            top_p=rows.top_p,
            min_p=rows.min_p,
            seed=rows.seed,
            output_index=rows.output_index,
            num_live_tokens=self._num_live_tokens,
        )
        tokens = kernels.sample_rows(self._model.raw_logits(hidden), params)
        if self._drafter is not None:
            # At depth 0 too: the draft layers may have to catch up later.
            self._drafter.remember_at(slots, rows.positions, hidden)
        if self._drafter is None or not depth:
            return kernels.end_step(self._state, slots, num_drafts, tokens, 1)
        first_row = groups[AttentionKind.SLIDING].first_row
        drafts = self._state.drafts.index_select(0, slots)
        num_accepted, next_token = kernels.accept_drafts(tokens, first_row, drafts, num_drafts)
        out = kernels.end_step(self._state, slots, num_accepted, next_token, num_rows)
        return torch.cat((out, self._draft(slots, depth)), dim=1)

    def _draft(self, slots: torch.Tensor, depth: int) -> torch.Tensor:
        """Drafts [B, depth], which the slots hold from now on."""
        kernels, drafter = self._kernels, self._drafter
        assert drafter is not None
        # As many rows as can be certain now, and those that were guesses before.
        num_kept = depth - 1 if self._recomputes else 0
        num_rows = 1 + depth + num_kept
        kind, size = AttentionKind.SLIDING, len(slots)
        table = self._inputs.device_tables[kind]
        rows = kernels.begin_drafts(
            self._state, slots, table, self._inputs.page_size, num_rows, drafter.ring_len
        )
        own = self._paged(table, slots, rows, rows.visible_from, num_rows)
        batch = ForwardBatch(
            token_ids=rows.positions,  # not read: each layer has tokens of its own
            positions=rows.positions,
            groups={kind: own},
            write_slots={kind: rows.write_slots},
            caches=drafter.caches,
        )
        hidden = drafter.hidden_at(rows.places)
        last = torch.arange(1, size + 1, device=self._device) * num_rows - 1
        guesses = torch.zeros(size, depth, dtype=torch.int64, device=self._device)
        for layer in range(depth):
            tokens = kernels.draft_tokens(self._state, slots, guesses, layer, num_rows)
            logits = drafter.layer_logits(layer, tokens, hidden, batch, last)
            guesses[:, layer] = self._likeliest(logits)
        kernels.end_drafts(self._state, slots, guesses, num_kept)
        return guesses

    def _likeliest(self, logits: torch.Tensor) -> torch.Tensor:
        """[B]: the largest of each row, any token where that is not a number."""
        size = len(logits)

        def all_rows(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((size,), value, dtype=dtype, device=self._device)

        greedy = RowParams(
            temperature=all_rows(0.0, torch.float32),
            top_k=all_rows(0, torch.int32),
            top_p=all_rows(1.0, torch.float32),
            min_p=all_rows(0.0, torch.float32),
            seed=all_rows(0, torch.int64),
            output_index=all_rows(0, torch.int64),
            num_live_tokens=self._num_live_tokens,
        )
        return self._kernels.sample_rows(logits, greedy).clamp_(min=0)

    def _paged(
        self,
        table: torch.Tensor,
        slots: torch.Tensor,
        rows: StepRows | DraftRows,
        visible_from: torch.Tensor | None,
        num_rows: int,
    ) -> PagedRows:
        """num_rows rows of each slot, end to end."""
        first_row, zeros = self._constants(len(slots), num_rows)
        return PagedRows(
            first_row=first_row,
            first_position=rows.first_position,
            last_position=rows.last_position,
            visible_from=zeros if visible_from is None else visible_from,
            page_table=table.index_select(0, slots),
            page_size=self._inputs.page_size,
            max_rows=num_rows,
            max_len=self._max_len,
        )

    def _constants(self, size: int, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(first rows [size + 1], zeros [size]), int32: made before a step is captured, so that no
        replay has to make them."""
        if (size, num_rows) not in self._made:
            first_row = torch.arange(size + 1, dtype=torch.int32, device=self._device) * num_rows
            zeros = torch.zeros(size, dtype=torch.int32, device=self._device)
            self._made[size, num_rows] = first_row, zeros
        return self._made[size, num_rows]


def _depth(plan: StepPlan) -> int:
    """Of the graph that can run it."""
    return max((max(row.num_drafts, row.num_proposals) for row in plan.rows), default=0)


def _taken_bytes(device: torch.device) -> tuple[int, int]:
    """(by anybody, by torch's allocator) of a GPU's memory."""
    if device.type != "cuda":
        return 0, 0
    free, total = torch.cuda.mem_get_info(device)
    return total - free, torch.cuda.memory_reserved(device)


def _pinned(values: Sequence[Sequence[float]], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).pin_memory()

"""One step on one rank: build the batch, run the model, sample or verify, draft.

The runner is the only place where the step's parts meet; it keeps no state beyond what `StepInputs`
and `ConstraintTable` remember of the running requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import torch

from mimo_engine.distributed.groups import Comm
from mimo_engine.messages import TokenLogprobs
from mimo_engine.model.batch import LayerCache, MediaRows
from mimo_engine.model.text import TextModel
from mimo_engine.sampling.logprobs import LogprobRow, logprob_rows
from mimo_engine.sampling.rejection import Drafts, verify
from mimo_engine.sampling.sampler import SamplingRow, TokenChoice
from mimo_engine.scheduler.plan import RowResult, StepPlan, StepResult, StepRow
from mimo_engine.worker.drafting import Drafter, DraftPass
from mimo_engine.worker.graphs import DecodeGraphs
from mimo_engine.worker.inputs import Rows, SlotState, StepInputs
from mimo_engine.worker.masks import ConstraintTable, SamplingSlot, StepMasks
from mimo_engine.worker.media import MediaEncoder

__all__ = ["BROKEN_NUMBERS", "Done", "Pending", "Runner"]

BROKEN_NUMBERS = (
    "the model computed NaN or infinite numbers for this request: run `mimo-engine check --deep` "
    "on the checkpoint, and try --dtype float32"
)


@dataclass(slots=True)
class _LogitRows:
    """Which batch rows need logits: of each StepRow, a range for the prompt and the last row."""

    rows: list[int]
    prompt: list[range]
    """Per StepRow, indices into `rows` of the rows whose next token is a scored prompt token."""
    sampled: list[range]
    """Per StepRow, indices into `rows` of its last known token and of its drafts; empty when it
    does not sample."""


class Pending(Protocol):
    """A step that was begun."""

    @property
    def is_under_way(self) -> bool:
        """Whether the step runs by itself, so that the one after it can be launched behind it."""
        ...

    def result(self) -> StepResult:
        """Waits for it. Once."""
        ...


@dataclass(frozen=True, slots=True)
class Done:
    """A step that is over."""

    value: StepResult
    is_under_way = False

    def result(self) -> StepResult:
        return self.value


class Runner:
    """Runs plans over a loaded model. `num_live_tokens`: ids from there on are never sampled.

    media: rank 0's towers; None on other ranks, and where text alone is served. drafter: the draft
    layers; None where nothing is drafted. graphs: captured steps; None: each step is run piece by
    piece.
    """

    def __init__(
        self,
        model: TextModel,
        inputs: StepInputs,
        caches: Sequence[LayerCache],
        constraints: ConstraintTable,
        *,
        num_live_tokens: int,
        comm: Comm,
        media: MediaEncoder | None = None,
        drafter: Drafter | None = None,
        graphs: DecodeGraphs | None = None,
    ) -> None:
        self.model = model
        self.inputs = inputs
        self.caches = caches
        self._constraints = constraints
        self._num_live_tokens = num_live_tokens
        self._comm = comm
        self._media = media
        self._drafter = drafter
        self.graphs = graphs

    def launch(self, plan: StepPlan) -> Pending:
        """Begin the step; what is captured is under way when this returns, anything else done."""
        graphs = self.graphs
        if graphs is None or plan.admissions or plan.encode or not graphs.takes(plan):
            assert not plan.is_ahead
            return Done(self.run(plan))
        if self._media is not None:
            self._media.forget(plan.forget)
        self.inputs.apply(plan)
        return graphs.launch(plan)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Compute the plan's rows; K and V of every row are cached when this returns."""
        encode_errors = self._see_to_media(plan)
        self.inputs.apply(plan)
        self._constraints.apply(plan.admissions)
        if not plan.rows:
            return StepResult(encode_errors=encode_errors)
        sampling = {
            row.slot: SamplingSlot(self.inputs.state(row.slot), row.num_drafts)
            for row in plan.rows
            if row.samples
        }
        self._constraints.start(sampling)
        batch = self.inputs.batch(plan, self.caches, self._media_rows(plan))
        hidden = self.model(batch)
        if self._drafter is not None:
            self._drafter.remember(_rows_of(plan.rows), hidden)
        wanted = self._wanted_logits(plan.rows)
        if not wanted.rows:
            is_broken = _broken_rows(plan.rows, wanted, hidden, None)
            errors = [BROKEN_NUMBERS if broken else None for broken in is_broken]
            rows = tuple(RowResult(error=error) for error in errors)
            return StepResult(rows=rows, encode_errors=encode_errors)
        rows = torch.tensor(wanted.rows, device=hidden.device)
        logits = self.model.logits(hidden[rows])[:, : self._num_live_tokens]
        is_broken = _broken_rows(plan.rows, wanted, hidden, logits)
        masks = self._constraints.finish(sampling)
        choices = self._sample(plan.rows, wanted, is_broken, logits, masks)
        results = []
        for row, prompt, broken in zip(plan.rows, wanted.prompt, is_broken, strict=True):
            error = BROKEN_NUMBERS if broken else masks.error(row.slot)
            if error is not None:
                results.append(RowResult(error=error))
            else:
                scores = self._prompt_logprobs(row, prompt, logits)
                results.append(_row_result(choices.get(row.slot, []), scores))
        return StepResult(rows=tuple(results), encode_errors=encode_errors)

    def _see_to_media(self, plan: StepPlan) -> dict[bytes, str]:
        if self._media is None:
            return {}
        self._media.forget(plan.forget)
        return self._media.encode(plan.encode)

    def _media_rows(self, plan: StepPlan) -> MediaRows | None:
        """The encoded rows that the plan reads, on every rank."""
        pieces = self.inputs.media_pieces(plan)
        if not pieces:
            return None
        parameter = self.model.norm.weight
        places = [range(piece.batch_row, piece.batch_row + piece.num_rows) for piece in pieces]
        rows = torch.tensor([row for place in places for row in place], device=parameter.device)
        if self._media is not None:
            embeddings = self._media.read(pieces)
        else:
            embeddings = parameter.new_empty(len(rows), parameter.shape[0])
        return MediaRows(rows=rows, embeddings=self._comm.broadcast(embeddings))

    def _wanted_logits(self, step_rows: Sequence[StepRow]) -> _LogitRows:
        wanted = _LogitRows([], [], [])
        first = 0
        for row in step_rows:
            state = self.inputs.state(row.slot)
            begin = len(wanted.rows)
            if state.params.prompt_logprobs is not None:
                # Row p scores the prompt token at p + 1; the prompt's last row scores none.
                stop = min(row.start + row.num_tokens, state.num_prompt_tokens - 1)
                wanted.rows += range(first, first + max(0, stop - row.start))
            wanted.prompt.append(range(begin, len(wanted.rows)))
            begin = len(wanted.rows)
            if row.samples:
                wanted.rows += range(first + row.num_tokens - 1, first + row.num_rows)
            wanted.sampled.append(range(begin, len(wanted.rows)))
            first += row.num_rows
        return wanted

    def _sample(
        self,
        step_rows: Sequence[StepRow],
        wanted: _LogitRows,
        is_broken: Sequence[bool],
        logits: torch.Tensor,
        masks: StepMasks,
    ) -> dict[int, list[TokenChoice]]:
        """By slot, the tokens of each sound row that samples; the slots remember them, and make
        the drafts that are asked for.

        Masks are rank 0's, so a row without an allowed token, or whose mask is late, is sampled
        like any other, in every rank's batch: the error is said afterwards, the late row's token is
        dropped on every rank.
        """
        sampling = {
            row.slot: (row, sampled)
            for row, sampled, broken in zip(step_rows, wanted.sampled, is_broken, strict=True)
            if row.samples and not broken
        }
        if not sampling:
            return {}
        num_drafts = {
            slot: masks.num_drafts(slot, row.num_drafts) for slot, (row, _) in sampling.items()
        }
        states = {slot: self.inputs.state(slot) for slot in sampling}
        indices: list[int] = []
        rows: list[SamplingRow] = []
        for slot, (_, own) in sampling.items():
            indices += own[: 1 + num_drafts[slot]]
            rows += _sampling_rows(states[slot], num_drafts[slot])
        verified = verify(
            logits if len(indices) == logits.shape[0] else logits[indices],
            rows,
            [_drafts(state, num_drafts[slot]) for slot, state in states.items()],
            num_live_tokens=self._num_live_tokens,
            masks=masks.tensor(num_drafts, logits.device),
        )
        taken = {
            slot: choices[: masks.num_tokens(slot, num_drafts[slot])]
            for slot, choices in zip(sampling, verified, strict=True)
            if not masks.is_late(slot)
        }
        self._agree([row for row, _ in sampling.values()], taken, logits.device)
        return taken

    def _agree(
        self,
        rows: Sequence[StepRow],
        taken: dict[int, list[TokenChoice]],
        device: torch.device,
    ) -> None:
        """Ranks see the same logits; taking rank 0's choices makes a divergence impossible."""
        width = 1 + max(row.num_drafts for row in rows)
        table = [[choice.token_id for choice in taken.get(row.slot, [])] for row in rows]
        padded = [ids + [-1] * (width - len(ids)) for ids in table]
        agreed = self._comm.broadcast(torch.tensor(padded, device=device)).tolist()
        passes = []
        for row, ids in zip(rows, agreed, strict=True):
            state = self.inputs.state(row.slot)
            tokens = [token_id for token_id in ids if token_id >= 0]
            if not tokens:
                continue
            state.token_ids += tokens
            state.depth_on_device = None
            state.drafts = []
            state.draft_proposals = []
            if row.num_proposals:
                count = row.start + row.num_tokens + len(tokens) - 1 - row.draft_start
                own = Rows(
                    slot=row.slot,
                    start=row.draft_start,
                    count=count,
                    visible_from=row.draft_visible_from,
                )
                passes.append(DraftPass(rows=own, num_proposals=row.num_proposals))
        if passes:
            assert self._drafter is not None
            self._drafter.propose(passes)

    def _prompt_logprobs(
        self, row: StepRow, indices: range, logits: torch.Tensor
    ) -> list[LogprobRow]:
        if not indices:
            return []
        state = self.inputs.state(row.slot)
        targets = state.token_ids[row.start + 1 : row.start + 1 + len(indices)]
        num_top = [state.params.prompt_logprobs or 0] * len(indices)
        scored = logits[indices.start : indices.stop]
        return logprob_rows(scored, targets, num_top, num_live_tokens=self._num_live_tokens)


def _rows_of(step_rows: Sequence[StepRow]) -> list[Rows]:
    return [Rows(slot=row.slot, start=row.start, count=row.num_rows) for row in step_rows]


def _broken_rows(
    step_rows: Sequence[StepRow],
    wanted: _LogitRows,
    hidden: torch.Tensor,
    logits: torch.Tensor | None,
) -> list[bool]:
    """Per StepRow, whether NaN or infinite numbers came of it: in a logit that it needs, or in the
    hidden state of any position of a chunk, as then its keys and values may have them too, and no
    prompt may find those in the prefix cache. Of one token that is sampled after, the logits tell
    as much. One answer from the device, however much is asked."""
    chunks, first = [], 0
    for row in step_rows:
        is_chunk = row.num_tokens > 1 or not row.samples
        chunks.append(range(first, first + row.num_tokens * is_chunk))
        first += row.num_rows
    asked = [torch.isfinite(hidden).all(dim=-1)] if any(chunks) else []
    num_hidden = len(hidden) if any(chunks) else 0
    if logits is not None:
        # NaN is larger than anything to torch: a row's maximum shows it.
        asked.append(torch.isfinite(logits.amax(dim=-1)))
    finite = torch.cat(asked).tolist()
    return [
        not all(finite[i] for i in chain(chunk, (num_hidden + i for i in (*prompt, *sampled))))
        for chunk, prompt, sampled in zip(chunks, wanted.prompt, wanted.sampled, strict=True)
    ]


def _sampling_rows(state: SlotState, num_drafts: int) -> list[SamplingRow]:
    """For the token after the last known one, and after each draft as if those had been sampled."""
    num_output = len(state.token_ids) - state.num_prompt_tokens
    return [
        SamplingRow(
            params=state.params,
            seed=state.seed,
            output_index=num_output + index,
            # Read for penalties alone: the copy would take long for every request.
            token_ids=[*state.token_ids, *state.drafts[:index]]
            if index and state.params.has_penalty
            else state.token_ids,
            num_prompt_tokens=state.num_prompt_tokens,
            stop_ids=state.stop_ids,
        )
        for index in range(1 + num_drafts)
    ]


def _drafts(state: SlotState, num_drafts: int) -> Drafts:
    proposals = state.draft_proposals[:num_drafts]
    return Drafts(token_ids=state.drafts[:num_drafts], probabilities=proposals or None)


def _row_result(choices: Sequence[TokenChoice], scores: Sequence[LogprobRow]) -> RowResult:
    return RowResult(
        token_ids=tuple(choice.token_id for choice in choices),
        logprobs=tuple(
            _message(choice.logprobs) for choice in choices if choice.logprobs is not None
        ),
        prompt_logprobs=tuple(_message(score) for score in scores),
    )


def _message(row: LogprobRow) -> TokenLogprobs:
    return TokenLogprobs(row.token_id, row.logprob, row.rank, tuple(row.top))

"""Drafts: the MTP layers beside the model, on one rank.

    remember(rows, hidden)        after every forward pass: the target's hidden states
    propose(passes, ...)          after sampling: guesses of the tokens that follow

A pass of the draft layers computes rows `start` ... `end` - 1 of each request, the last of which
is the last row whose token is certain to be followed by tokens that are known: by the one just
sampled. Row j of layer k reads the token 1 + k after it, known or guessed by the layers before, and
the target's hidden state of row j. Hidden states of a window are kept in a ring by position, so a
pass may begin at rows of earlier steps: of the prompt's chunks, of rows whose tokens were guessed
then and are known now (mtp.md 5.5), or of all that a pause has left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from mimo_engine.config.model import AttentionKind
from mimo_engine.distributed.groups import Comm
from mimo_engine.model.batch import ForwardBatch, LayerCache
from mimo_engine.model.mtp import MtpLayers
from mimo_engine.model.text import TextModel
from mimo_engine.sampling.penalties import SamplingRow
from mimo_engine.sampling.rejection import draw_drafts
from mimo_engine.worker.inputs import Rows, StepInputs

__all__ = ["DraftPass", "Drafter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftPass:
    """What one request wants of the draft layers."""

    rows: Rows
    num_proposals: int
    """At least 1, at most the layers there are."""


class Drafter:
    """Owns the draft layers, their pools and the hidden states that they will read."""

    def __init__(
        self,
        model: TextModel,
        layers: MtpLayers,
        inputs: StepInputs,
        caches: Sequence[LayerCache],
        *,
        num_slots: int,
        ring_len: int,
        max_rows: int,
        num_live_tokens: int,
        samples_drafts: bool,
        comm: Comm,
    ) -> None:
        """caches: one a draft layer. ring_len: positions whose hidden states are kept: a window,
        and the rows of one request that may be rejected. max_rows: of a pass, where it is of
        several requests."""
        self._model = model
        self._layers = layers
        self._inputs = inputs
        self.caches = caches
        self.ring_len = ring_len
        self._max_rows = max_rows
        self.samples_drafts = samples_drafts
        self._num_live_tokens = num_live_tokens
        self._comm = comm
        weight = model.norm.weight
        # By 1 + slot: the first place is nobody's, as in graphs.py.
        self._ring = weight.new_zeros(1 + num_slots, ring_len, weight.shape[0])

    def remember(self, rows: Sequence[Rows], hidden: torch.Tensor) -> None:
        """hidden [N, H] of `rows`, in order; rows that are computed again replace the old ones."""
        ring_len = self._ring.shape[1]
        slots: list[int] = []
        places: list[int] = []
        sources: list[int] = []
        first = 0
        for row in rows:
            skipped = max(0, row.count - ring_len)
            slots += [1 + row.slot] * (row.count - skipped)
            places += range(row.start + skipped, row.start + row.count)
            sources += range(first + skipped, first + row.count)
            first += row.count
        device = self._ring.device
        place = torch.tensor(places, device=device) % ring_len
        kept = hidden[torch.tensor(sources, device=device)]
        self._ring[torch.tensor(slots, device=device), place] = kept.to(self._ring.dtype)

    def remember_at(
        self, slots: torch.Tensor, positions: torch.Tensor, hidden: torch.Tensor
    ) -> None:
        """`remember` of equally many rows [N, H] of each of `slots` [B] (1 + slot; 0: nobody),
        wherever they are; positions [N]."""
        by_row = slots.repeat_interleave(len(positions) // len(slots), output_size=len(positions))
        self._ring[by_row, positions % self.ring_len] = hidden

    def hidden_at(self, places: torch.Tensor) -> torch.Tensor:
        """[N, H] of places [N]: (1 + slot) * ring_len + position % ring_len."""
        return self._ring.view(-1, self._ring.shape[-1]).index_select(0, places)

    def layer_logits(
        self,
        layer: int,
        tokens: torch.Tensor,
        hidden: torch.Tensor,
        batch: ForwardBatch,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """[R, V], not widened, of some `rows` [R] of what one layer makes of tokens [N]."""
        drafted = self._layers(
            layer,
            embeddings=self._model.embed_tokens(tokens),
            hidden=hidden,
            batch=batch,
            cache=self.caches[layer],
        )
        return self._model.raw_logits(drafted[rows])

    def propose(self, passes: Sequence[DraftPass]) -> None:
        """Fill the slots' drafts. The slots know the tokens just sampled.

        After a pause each request computes its window again: more rows than a step has."""
        for part in _parts(passes, self._max_rows):
            self._propose(part)

    def _propose(self, passes: Sequence[DraftPass]) -> None:
        batch = self._batch(passes)
        hidden = self._hidden(passes)
        depth = max(one.num_proposals for one in passes)
        guesses = torch.zeros(len(passes), depth, dtype=torch.int64, device=hidden.device)
        drawn_from: list[list[torch.Tensor | None]] = []
        last_rows = _last_rows(passes)
        last = torch.tensor(last_rows, device=hidden.device)
        for layer in range(depth):
            tokens = self._tokens(passes, last_rows, layer, guesses)
            logits = self.layer_logits(layer, tokens, hidden, batch, last).float()
            logits = logits[:, : self._num_live_tokens]
            guesses[:, layer], proposals = draw_drafts(
                logits,
                [self._sampling_row(one, layer) for one in passes],
                num_live_tokens=self._num_live_tokens,
                sampled=self.samples_drafts,
            )
            drawn_from.append(proposals)
        self._keep(passes, self._comm.broadcast(guesses).tolist(), drawn_from)

    def _batch(self, passes: Sequence[DraftPass]) -> ForwardBatch:
        rows = [one.rows for one in passes]
        num_rows = sum(row.count for row in rows)
        # Each layer has tokens of its own; the batch's are not read.
        return self._inputs.batch_of(
            rows, [0] * num_rows, caches=self.caches, kinds=(AttentionKind.SLIDING,)
        )

    def _hidden(self, passes: Sequence[DraftPass]) -> torch.Tensor:
        slots = [1 + one.rows.slot for one in passes for _ in range(one.rows.count)]
        places = [
            position
            for one in passes
            for position in range(one.rows.start, one.rows.start + one.rows.count)
        ]
        device = self._ring.device
        place = torch.tensor(places, device=device) % self._ring.shape[1]
        return self._ring[torch.tensor(slots, device=device), place]

    def _tokens(
        self,
        passes: Sequence[DraftPass],
        last_rows: Sequence[int],
        layer: int,
        guesses: torch.Tensor,
    ) -> torch.Tensor:
        """[N]: the token 1 + layer after each row; the last `layer` of a request are guesses."""
        tokens: list[int] = []
        rows: list[int] = []
        sources: list[tuple[int, int]] = []
        for index, one in enumerate(passes):
            known = self._inputs.state(one.rows.slot).token_ids
            first = one.rows.start + 1 + layer
            own = known[first : first + one.rows.count]
            num_guessed = one.rows.count - len(own)
            tokens += own + [0] * num_guessed
            for back in range(num_guessed):
                rows.append(last_rows[index] - back)
                sources.append((index, layer - 1 - back))
        result = torch.tensor(tokens, device=guesses.device)
        if rows:
            who, which = torch.tensor(sources, device=guesses.device).unbind(dim=1)
            result[torch.tensor(rows, device=guesses.device)] = guesses[who, which]
        return result

    def _sampling_row(self, one: DraftPass, layer: int) -> SamplingRow:
        """Of the token that the layer guesses: the first one is sampled by the target next."""
        state = self._inputs.state(one.rows.slot)
        return SamplingRow(
            params=state.params,
            seed=state.seed,
            output_index=len(state.token_ids) - state.num_prompt_tokens + layer,
            token_ids=state.token_ids,
            num_prompt_tokens=state.num_prompt_tokens,
            stop_ids=state.stop_ids,
        )

    def _keep(
        self,
        passes: Sequence[DraftPass],
        guesses: Sequence[Sequence[int]],
        drawn_from: Sequence[Sequence[torch.Tensor | None]],
    ) -> None:
        for index, one in enumerate(passes):
            state = self._inputs.state(one.rows.slot)
            state.drafts = list(guesses[index][: one.num_proposals])
            proposals = [layer[index] for layer in drawn_from[: one.num_proposals]]
            state.draft_proposals = [q for q in proposals if q is not None]


def _parts(passes: Sequence[DraftPass], max_rows: int) -> Iterator[Sequence[DraftPass]]:
    """Of at most so many rows each, or of one request."""
    first = num_rows = 0
    for index, one in enumerate(passes):
        if index > first and num_rows + one.rows.count > max_rows:
            yield passes[first:index]
            first, num_rows = index, 0
        num_rows += one.rows.count
    yield passes[first:]


def _last_rows(passes: Sequence[DraftPass]) -> list[int]:
    """The batch row of each request's last position."""
    rows, end = [], 0
    for one in passes:
        end += one.rows.count
        rows.append(end - 1)
    return rows

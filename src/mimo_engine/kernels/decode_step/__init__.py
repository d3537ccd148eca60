"""The ends of a decode step that runs without the host: from slots to a batch, and back.

A slot is a running request's place in the tensors of `SlotTensors`; slot 0 is nobody's: its
position is -1, it pads a batch, and nothing is written for it.

`begin_step(state, slots, num_drafts, tables, page_size, num_rows)`: slots [B] int64, distinct but
for 0. Each has num_rows rows, its last token and then its first num_rows - 1 drafts, of which
num_drafts ([B] int32, fewer than num_rows) count: K and V of the others go nowhere. tables: one or
two page tables, int32 [slots, P] each, wide enough for num_rows positions past any last token.
Returns a `StepRows`.

`end_step(state, slots, num_accepted, next_token, num_rows)`: num_accepted [B] int32 and next_token
[B] int64 as kernels/sampling has them. Returns tokens [B, num_rows + 1] int64: how many came, and
those: accepted drafts and the next token; of a row whose logits were broken (next_token -1), none.
In place, state goes on by them: last_token, recent, position and output_index.

`begin_drafts(state, slots, table, page_size, num_rows, ring_len)`: rows of a pass of draft layers
behind `end_step`: the last num_rows positions before each slot's last token. Returns a `DraftRows`;
rows before state.draft_from are not written. Hidden states are kept by slot and position in a ring.

`draft_tokens(state, slots, guesses, layer, num_rows)`: what layer `layer` reads in those rows: the
token 1 + layer after each (mtp.md 5.4), where that is past the last token one of guesses [B, D]
int64 (layer's first ones are made by then). Returns [N] int64.

`end_drafts(state, slots, guesses, num_kept)`: guesses are the slots' drafts from now on, and the
next pass begins num_kept rows before the last token, where the tokens that follow were guesses.
"""

from mimo_engine.kernels.decode_step.reference import (
    begin_drafts,
    begin_step,
    draft_tokens,
    end_drafts,
    end_step,
)
from mimo_engine.kernels.decode_step.state import RECENT, DraftRows, SlotTensors, StepRows

__all__ = [
    "RECENT",
    "DraftRows",
    "SlotTensors",
    "StepRows",
    "begin_drafts",
    "begin_step",
    "draft_tokens",
    "end_drafts",
    "end_step",
]

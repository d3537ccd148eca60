"""The two ends of a decode step that runs without the host: from slots to a batch, and back.

A slot is a running request's place in the tensors of `SlotTensors`; slot 0 is nobody's: its
position is -1, it pads a batch, and nothing is written for it.

`begin_step(state, slots, tables, page_size, num_rows)`: slots [B] int64, distinct but for 0. Each
has num_rows rows, its last token and then its first num_rows - 1 drafts. tables: page tables, int32
[slots, P] each. Returns a `StepRows`.

`end_step(state, slots, num_accepted, next_token, num_rows)`: num_accepted [B] int32 and next_token
[B] int64 as kernels/sampling has them. Returns tokens [B, num_rows + 1] int64: how many came, and
those: accepted drafts and the next token; of a row whose logits were broken (next_token -1), none.
In place, state goes on by them: last_token, position and output_index.
"""

from mimo_engine.kernels.decode_step.reference import begin_step, end_step
from mimo_engine.kernels.decode_step.state import SlotTensors, StepRows

__all__ = ["SlotTensors", "StepRows", "begin_step", "end_step"]

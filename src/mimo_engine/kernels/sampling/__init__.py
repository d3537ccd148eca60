"""From logits to tokens, and from tokens to accepted drafts, without a word to the host.

`sample_rows(logits, params)`: logits [R, V] (float32 or bfloat16, rows of any stride), R >= 1;
`params` a `RowParams` of the same rows. Returns tokens [R] (int64). The token of a row is a
function of its own logits, its own parameters and (seed, output_index): the same bit for bit in
every batch, on every device and in the reference, because everything that is summed is an integer.

What a token is drawn from is what sampling/weights.py says: weights fall by half with every
temperature * ln 2 of logit; min_p, top_k and top_p keep a prefix of the tokens in falling order of
logit, equal ones by id, each of what the one before it left; greedy rows take the largest logit,
the lowest id among equal ones. The number is sampling/random.py's, of Stream.TOKEN. Weights here
come of float32 distances and a polynomial in integers (reference.py), so the distribution is
another one by a total variation under 1e-6, whatever the logits; a seed's token differs about as
rarely.

Token -1: a row whose largest allowed logit is not finite, or that has a NaN where it is allowed.
Whoever reads the tokens raises; whoever looks up the row of such a token first must clamp.

`accept_drafts(tokens, first_row, drafts, num_drafts)`: tokens [R] int64, one of each row; rows
first_row[s] ... first_row[s + 1] - 1 (int32 [S + 1], rising) belong to sequence s, row i of them
being drawn as if drafts 0 ... i - 1 (drafts [S, D] int64) had been accepted, and num_drafts (int32
[S]) says how many drafts there are, fewer than rows. A draft that is its row's own token is
accepted, up to the first that is not. Returns num_accepted (int32 [S]) and next_token (int64 [S]),
the token of the row after the last accepted draft. A sequence without rows has 0 and -1.
"""

from mimo_engine.kernels.sampling.params import RowParams
from mimo_engine.kernels.sampling.reference import accept_drafts, sample_rows

__all__ = ["RowParams", "accept_drafts", "sample_rows"]

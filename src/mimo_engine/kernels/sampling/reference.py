"""The definition, in plain torch.

Of a row with largest logit m, scale c = float32(2**26 * log2(e) / temperature) and logit x:

    z(m - x) = (m - x) * c in float32, cut to an integer: the distance in octaves, 26 bits of it
               fractional, at most 63 octaves and some
    w(z)     = floor(2**44 * 2**-(z / 2**26)), 2**-fraction by a polynomial in 32-bit integers

Sums of w are exact in any order. Rows with top_k or top_p are drawn in falling order of logit from
w(z(m - x)). All others are drawn in order of id, a chunk of 1024 ids first, in proportion to its
share, then a token in it: weights of a chunk are measured from its own largest logit p, so that
logits are read once, and its share is their sum times w(z(m - p)) / 2**44.

Error: m - x, c and their product are rounded, each by 2**-24 of z at most, which changes a weight
by a = 3 * 2**-24 * ln 2 of itself and octave. The total variation is half the mean deviation of
these changes, so about a / 2 times the mean of z, which is at most 13.4 octaves with 2**18 tokens:
8.4e-7, were every rounding the worst and half of them against the others. The polynomial adds at
most 3e-9, cut fractions 3e-8. Normals and flat rows are off by some 5e-8.
"""

from __future__ import annotations

import torch

from mimo_engine.kernels.sampling.params import CHUNK, RowParams, check

__all__ = ["accept_drafts", "probabilities", "sample_rows", "uniform"]

FRACTION_BITS = 26
OCTAVE = 2**FRACTION_BITS
OCTAVES_PER_NAT = OCTAVE * 1.4426950408889634
LARGEST_Z = 4294967040.0
"""The largest float32 below 2**32."""
UNIT_BITS = 44
UNIT = 2**UNIT_BITS
POLYNOMIAL = (2147483648, 1488521968, 515877632, 119164179, 20568337, 2734809, 233163)
"""2**-f in units of 2**-31 on [0, 1], signs alternating: exact at both ends, falling throughout,
off by at most 2.3e-9 of itself."""
MIN_TEMPERATURE = 1e-6
"""Below: greedy (SamplingParams.is_greedy)."""

_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def sample_rows(logits: torch.Tensor, params: RowParams) -> torch.Tensor:
    """See the package."""
    check(logits, params)
    x = _allowed(logits, params)
    peak, best = x.max(dim=-1)
    is_finite = peak.isfinite()
    x = torch.where(is_finite[:, None], x, 0)
    number = uniform(params.seed, params.output_index)
    tokens = torch.where(
        _is_ordered(params), _ordered(x, params, number), _by_chunk(x, params, number)
    )
    tokens = torch.where(_is_greedy(params), best, tokens)
    return tokens.masked_fill(~is_finite, -1)


def probabilities(logits: torch.Tensor, params: RowParams) -> torch.Tensor:
    """What rows that are not greedy are drawn from: [R, num_live_tokens] (float64)."""
    check(logits, params)
    x = _allowed(logits, params)
    weights, ids, _ = _kept(x, params)
    ordered = torch.zeros_like(weights).scatter_(1, ids, weights).double()
    local, sums, shares = _chunks(x, params)
    chunked = (local / sums.clamp(min=1)[..., None] * shares[..., None]).flatten(1)
    chunked = chunked[:, : x.shape[1]]
    mass = torch.where(_is_ordered(params)[:, None], ordered, chunked)
    return mass / mass.sum(dim=-1, keepdim=True)


def accept_drafts(
    tokens: torch.Tensor, first_row: torch.Tensor, drafts: torch.Tensor, num_drafts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package."""
    num_accepted = torch.zeros_like(num_drafts)
    next_token = tokens.new_full(num_drafts.shape, -1)
    for s, count in enumerate(num_drafts.tolist()):
        own = tokens[int(first_row[s]) : int(first_row[s + 1])]
        if not len(own):
            continue
        differs = (own[:count] != drafts[s, :count]).tolist()
        accepted = differs.index(True) if True in differs else count
        num_accepted[s] = accepted
        next_token[s] = own[accepted]
    return num_accepted, next_token


def uniform(seed: torch.Tensor, counter: torch.Tensor) -> torch.Tensor:
    """sampling/random.py's number [R] (float64) of `seed` and `counter` [R] (int64)."""
    golden = _signed(_GOLDEN)
    word = _mix(_mix(seed + golden) + (counter + 1) * golden)
    return (_shifted(word, 12).double() + 0.5) * 2.0**-52


def _mix(word: torch.Tensor) -> torch.Tensor:
    word = (word ^ _shifted(word, 30)) * _signed(_FACTORS[0])
    word = (word ^ _shifted(word, 27)) * _signed(_FACTORS[1])
    return word ^ _shifted(word, 31)


def _shifted(word: torch.Tensor, bits: int) -> torch.Tensor:
    """Right, with zeros from the left."""
    return (word >> bits) & (2 ** (64 - bits) - 1)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _allowed(logits: torch.Tensor, params: RowParams) -> torch.Tensor:
    """[R, num_live_tokens] (float32): -inf where forbidden, inf where NaN."""
    x = logits[:, : params.num_live_tokens].float()
    if params.masks is not None:
        bits = torch.arange(32, dtype=torch.int32, device=x.device)
        allowed = ((params.masks.unsqueeze(-1) >> bits) & 1).flatten(1)[:, : x.shape[1]].bool()
        x = x.masked_fill(~allowed, -torch.inf)
    return torch.where(x.isnan(), torch.inf, x)


def _is_greedy(params: RowParams) -> torch.Tensor:
    return params.temperature < MIN_TEMPERATURE


def _is_ordered(params: RowParams) -> torch.Tensor:
    return (params.top_k > 0) | (params.top_p < 1)


def _distances(d: torch.Tensor, params: RowParams) -> torch.Tensor:
    """z (int64) of differences of logits [R, ...] (float32)."""
    temperature = torch.where(_is_greedy(params), 1, params.temperature.double())
    scale = (OCTAVES_PER_NAT / temperature).float()
    return (d * scale.view(-1, *(1,) * (d.ndim - 1))).clamp(0, LARGEST_Z).long()


def _halving(z: torch.Tensor) -> torch.Tensor:
    """2**-fraction of z, in units of 2**-31 (int64)."""
    fraction = (z & (OCTAVE - 1)) << (32 - FRACTION_BITS)
    total = torch.full_like(z, POLYNOMIAL[-1])
    for coefficient in POLYNOMIAL[-2::-1]:
        total = coefficient - ((total * fraction) >> 32)
    return total


def _weights(z: torch.Tensor) -> torch.Tensor:
    return (_halving(z) << (UNIT_BITS - 31)) >> (z >> FRACTION_BITS)


def _least(params: RowParams) -> torch.Tensor:
    """The least weight [R] (int64) that min_p keeps."""
    return (params.min_p.double() * UNIT).ceil().long()


def _kept(x: torch.Tensor, params: RowParams) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [R, L] in falling order under all filters, their ids, and their sum [R, 1]."""
    values, ids = x.sort(dim=-1, descending=True, stable=True)
    weights = _weights(_distances(values[:, :1] - values, params))
    weights = weights.masked_fill(weights < _least(params)[:, None], 0)
    places = torch.arange(x.shape[1], device=x.device)
    weights = weights.masked_fill(
        (places >= params.top_k[:, None]) & (params.top_k > 0)[:, None], 0
    )
    total = weights.sum(dim=-1, keepdim=True)
    limit = (total * params.top_p.double()[:, None]).ceil().long().clamp(min=1)
    limit = torch.where(params.top_p[:, None] < 1, limit, total)
    weights = weights.masked_fill(weights.cumsum(dim=-1) - weights >= limit, 0)
    return weights, ids, weights.sum(dim=-1, keepdim=True)


def _ordered(x: torch.Tensor, params: RowParams, number: torch.Tensor) -> torch.Tensor:
    weights, ids, total = _kept(x, params)
    target = (number[:, None] * total).long().minimum(total - 1)
    places = torch.searchsorted(weights.cumsum(dim=-1), target, right=True)
    return ids.gather(1, places).squeeze(1)


def _chunks(x: torch.Tensor, params: RowParams) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of chunks [R, C]: their weights [R, C, up to CHUNK] by their own scale, sums and shares."""
    num_rows, size = x.shape
    width = min(CHUNK, size)
    padded = torch.nn.functional.pad(x, (0, -size % width), value=-torch.inf)
    padded = padded.view(num_rows, -1, width)
    peaks = padded.amax(dim=-1)
    peak = peaks.amax(dim=-1)
    local = _weights(
        _distances(torch.where(peaks.isfinite(), peaks, 0)[..., None] - padded, params)
    )
    shared = _weights(_distances(peak[:, None, None] - padded, params))
    local = local.masked_fill(shared < _least(params)[:, None, None], 0)
    sums = local.sum(dim=-1)
    z = _distances(peak[:, None] - peaks, params)
    factor, high, low = _halving(z), sums >> 31, sums & (2**31 - 1)
    shares = (high * factor + ((low * factor) >> 31)) >> (z >> FRACTION_BITS)
    return local, sums, shares


def _by_chunk(x: torch.Tensor, params: RowParams, number: torch.Tensor) -> torch.Tensor:
    local, sums, shares = _chunks(x, params)
    cumulative = shares.cumsum(dim=-1)
    total = cumulative[:, -1:]
    target = (number[:, None] * total).long().minimum(total - 1)
    chunk = torch.searchsorted(cumulative, target, right=True)
    share, own = shares.gather(1, chunk), sums.gather(1, chunk)
    within = target - (cumulative.gather(1, chunk) - share)
    # The middle of the cell of the share, in the chunk's own scale.
    target = ((within + 0.5) / share * own).long().minimum(own - 1)
    inner = local.take_along_dim(chunk[..., None], dim=1)[:, 0].cumsum(dim=-1)
    return (chunk * CHUNK + torch.searchsorted(inner, target, right=True)).squeeze(1)

"""The draws: pinned for ever, uniform, and unrelated between neighbours."""

import math
from functools import partial
from itertools import combinations

import pytest

from mimo_engine.sampling.random import Stream, uniform

NUM_CELLS = 64


def chi_square(values):
    counts = [0] * NUM_CELLS
    for value in values:
        counts[int(value * NUM_CELLS)] += 1
    expected = len(values) / NUM_CELLS
    return sum((count - expected) ** 2 / expected for count in counts)


def test_values_are_pinned():
    """A change here changes the text of every seeded request."""
    assert uniform(0, 0) == 0.6524484863740322
    assert uniform(0, 1) == 0.7012121095215252
    assert uniform(2**64 - 1, 1000) == 0.033884161635480026
    assert uniform(-1, 1000) == uniform(2**64 - 1, 1000)
    assert uniform(0, 0, Stream.TOKEN) == uniform(0, 0)
    assert uniform(0, 0, Stream.ACCEPT) == 0.1429843700326231
    assert uniform(0, 0, Stream.RESIDUAL) == 0.6296287629801599
    assert uniform(0, 0, Stream.DRAFT) == 0.5575836854990136


PAIRS = list(combinations(Stream, 2))


def _of_seed(stream, i):
    return uniform(i, 4, stream)


def _difference(a, b, i):
    return (uniform(i, 4, a) - uniform(i, 4, b)) % 1.0


STREAMS = {
    "places of one request": lambda i: uniform(7, i),
    "first place of neighbouring seeds": lambda i: uniform(i, 0),
    "seeds that differ in high bits": lambda i: uniform(i << 40, 3),
    "seed and place falling together": lambda i: uniform(10_000 - i, i),
    "difference of neighbouring seeds": lambda i: (uniform(i, 5) - uniform(i + 1, 5)) % 1.0,
    "difference of neighbouring places": lambda i: (uniform(9, i) - uniform(9, i + 1)) % 1.0,
    **{f"places, {stream.name}": partial(uniform, 7, stream=stream) for stream in Stream},
    **{f"seeds, {stream.name}": partial(_of_seed, stream) for stream in Stream},
    **{f"difference of {a.name} and {b.name}": partial(_difference, a, b) for a, b in PAIRS},
}


@pytest.mark.parametrize("draw", STREAMS.values(), ids=STREAMS.keys())
def test_every_stream_is_uniform(draw):
    values = [draw(i) for i in range(20_000)]
    assert min(values) > 0.0
    assert max(values) < 1.0
    # Mean 63, standard deviation 11.2: five of them.
    num_free = NUM_CELLS - 1
    assert abs(chi_square(values) - num_free) < 5 * math.sqrt(2 * num_free)

"""Bodies are measured as a parser would see them, however they are cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.server.body_limits import JsonMeter
from mimo_engine.server.errors import RefusedError

LEAVES = st.none() | st.booleans() | st.integers() | st.text(alphabet='ab"\\[]{},\n🙂é')
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text('"\\[a,'), inner, max_size=4)
    ),
    max_leaves=30,
)


def depth(value):
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0)


def num_counted(value):
    """Opening brackets and commas."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(0, len(value) - 1) + sum(map(num_counted, inner))


def num_members(value):
    """Objects and their keys."""
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    own = 1 + len(value) if isinstance(value, dict) else 0
    return own + sum(map(num_members, inner))


def pieces(data, cuts):
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False) if begin < end]


def is_refused(meter, parts):
    try:
        for part in parts:
            meter.add(part)
    except RefusedError:
        return True
    return False


@given(value=VALUES, cuts=st.lists(st.integers(0, 10**6), max_size=8), ascii_only=st.booleans())
def test_depth_values_and_members_are_those_of_the_parsed_text(value, cuts, ascii_only):
    data = json.dumps(value, ensure_ascii=ascii_only, indent=1 if cuts else None).encode()
    parts = pieces(data, cuts)
    levels, values, members = depth(value), num_counted(value), num_members(value)
    exact = JsonMeter(max_depth=levels, max_values=values, max_members=members)
    assert not is_refused(exact, parts)
    if members:
        assert is_refused(JsonMeter(max_members=members - 1), parts)
    if levels:
        assert is_refused(JsonMeter(max_depth=levels - 1, max_values=values), parts)
        assert is_refused(JsonMeter(max_depth=levels, max_values=values - 1), parts)


@given(data=st.text(alphabet='"\\[]{}a').map(str.encode), cuts=st.lists(st.integers(0, 99)))
def test_no_text_that_a_parser_takes_has_more_than_was_counted(data, cuts):
    try:
        value = json.loads(data)
    except ValueError:
        value = None
    limits = {"max_depth": depth(value), "max_values": num_counted(value)}
    refused = is_refused(JsonMeter(**limits), pieces(data, cuts))
    assert not refused or value is None


def test_brackets_in_one_long_string_are_text():
    meter = JsonMeter(max_depth=1, max_values=1)
    for part in (b'["', b"[" * 100_000, b'\\"[[', b"\\", b'"[[[', b'"]'):
        meter.add(part)


def test_utf_16_is_refused_since_its_quotes_are_elsewhere():
    with pytest.raises(RefusedError, match="UTF-8"):
        JsonMeter().add(json.dumps(["\u2222"], ensure_ascii=False).encode("utf-16-le"))


def test_a_long_string_of_quotes_is_read_once():
    meter = JsonMeter(max_depth=1, max_values=1)
    # Time that grows with the square of the length would be hours.
    meter.add(b'["' + b'\\"' * 2**21)
    meter.add(b'\\"' * 2**21 + b'[["]')

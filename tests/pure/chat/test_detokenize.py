"""Streaming text equals whole text, however the stream is cut and whatever ends it."""

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mimo_engine.chat.detokenize import Detokenizer, OutputText
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import TokenLogprobs, TokenOutput

# Few letters, so that stop strings overlap with themselves, with each other and with the text.
SHORT = st.text(alphabet="ab€", max_size=30)
STOPS = st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3)


class Watched(str):
    """A text that counts how often a character of it is read."""

    num_reads = 0

    def __getitem__(self, key):
        Watched.num_reads += 1
        return super().__getitem__(key)


def cut_anywhere(draw, ids):
    """`ids` in pieces of any sizes, empty ones included."""
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=6)))
    return [ids[a:b] for a, b in pairwise([0, *cuts, len(ids)])]


def stream(detokenizer, pieces):
    """(deltas, stop, number of tokens taken)"""
    deltas, num_tokens = [], 0
    for piece in pieces:
        delta = detokenizer.push(piece)
        deltas.append(delta.text)
        num_tokens += delta.num_tokens
        if delta.stopped is not None:
            return deltas, delta.stopped, num_tokens
    delta = detokenizer.finish()
    return [*deltas, delta.text], delta.stopped, num_tokens


def first_stop(text, stops):
    """(end, start, stop) of the stop string that is complete first, the longest of equals."""
    found = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    return min(found, default=None)


def byte_ids(tokenizer, text):
    """One token for each byte."""
    singles = {tokenizer.token_bytes(i): i for i in range(256)}
    return [singles[bytes([byte])] for byte in text.encode()]


@given(data=st.data())
def test_deltas_together_are_the_decoded_text(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, tokenizer.num_tokens - 1)))
    skip = data.draw(st.booleans())
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    deltas, stopped, num_tokens = stream(detokenizer, cut_anywhere(data.draw, ids))
    assert "".join(deltas) == tokenizer.decode(ids, skip_special_tokens=skip)
    assert (stopped, num_tokens) == (None, len(ids))


@given(text=st.text(), data=st.data())
def test_whole_characters_are_handed_out_at_once_and_halves_never(tokenizer, text, data):
    detokenizer = Detokenizer(tokenizer)
    seen = b""
    for token_id in byte_ids(tokenizer, text):
        delta = detokenizer.push([token_id]).text
        seen += tokenizer.token_bytes(token_id)
        whole = seen.decode("utf-8", errors="ignore")
        assert delta == (whole[-1:] if seen == whole.encode() else "")


def test_half_a_character_at_the_end_is_one_replacement_character(tokenizer):
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push(byte_ids(tokenizer, "🎉")[:3]).text == ""
    assert detokenizer.finish().text == "\ufffd"


@given(text=SHORT, stops=STOPS, include=st.booleans(), data=st.data())
@example(text="aab", stops=["aab", "ab", "b"], include=False, data=None)
def test_any_cut_stops_where_a_search_of_the_whole_text_stops(
    tokenizer, text, stops, include, data
):
    ids = byte_ids(tokenizer, text)
    pieces = [[i] for i in ids] if data is None else cut_anywhere(data.draw, ids)
    detokenizer = Detokenizer(tokenizer, stops, include_stop=include)
    deltas, stopped, num_tokens = stream(detokenizer, pieces)
    expected = first_stop(text, stops)
    if expected is None:
        assert ("".join(deltas), stopped, num_tokens) == (text, None, len(ids))
        return
    end, start, stop = expected
    assert "".join(deltas) == text[: end if include else start]
    assert (stopped, num_tokens) == (stop, len(text[:end].encode()))


@given(text=SHORT, stops=STOPS)
def test_no_more_is_held_than_may_become_a_stop_string(tokenizer, text, stops):
    detokenizer = Detokenizer(tokenizer, stops)
    shown = ""
    for i, character in enumerate(text):
        delta = detokenizer.push(byte_ids(tokenizer, character))
        if delta.stopped is not None:
            return
        shown += delta.text
        so_far = text[: i + 1]
        starts = {stop[:n] for stop in stops for n in range(1, len(stop))}
        held = max((len(start) for start in starts if so_far.endswith(start)), default=0)
        assert shown == so_far[: len(so_far) - held]


def test_a_stop_string_may_span_tokens_and_the_rest_of_a_burst_is_not_taken(tokenizer):
    ids = tokenizer.encode("the end. And more")
    detokenizer = Detokenizer(tokenizer, ["end."])
    delta = detokenizer.push(ids)
    assert (delta.text, delta.stopped) == ("the ", "end.")
    taken = tokenizer.decode(ids[: delta.num_tokens])
    assert taken.startswith("the end.")
    assert "end." not in tokenizer.decode(ids[: delta.num_tokens - 1])


def test_a_replacement_character_may_complete_a_stop_string_at_the_end(tokenizer):
    detokenizer = Detokenizer(tokenizer, ["x\ufffd"])
    assert detokenizer.push(byte_ids(tokenizer, "ax€")[:3]).text == "a"
    delta = detokenizer.finish()
    assert (delta.text, delta.stopped) == ("", "x\ufffd")


def test_a_stop_string_before_min_tokens_does_not_count(tokenizer):
    detokenizer = Detokenizer(tokenizer, ["ab"], min_tokens=3)
    delta = detokenizer.push(byte_ids(tokenizer, "ababab"))
    assert (delta.text, delta.stopped, delta.num_tokens) == ("ab", "ab", 4)
    exact = Detokenizer(tokenizer, ["ab"], min_tokens=2)
    assert exact.push(byte_ids(tokenizer, "ab")).stopped == "ab"


def test_a_long_stop_string_costs_no_more_for_each_token(tokenizer):
    steps = 4000
    stop = "a" * steps + "b"
    detokenizer = Detokenizer(tokenizer, [stop])
    text = "".join(detokenizer.push(byte_ids(tokenizer, "a")).text for _ in range(2 * steps))
    assert text + detokenizer.finish().text == "a" * (2 * steps)


def output(ids, **fields):
    scores = [TokenLogprobs(token_id, -1.0, 1, ()) for token_id in ids]
    return TokenOutput(request_id="r", token_ids=ids, logprobs=scores, **fields)


def test_an_output_ends_at_a_stop_token_whose_text_is_left_out(tokenizer):
    params = SamplingParams(skip_special_tokens=False, logprobs=0)
    grown = OutputText(tokenizer, params)
    end = tokenizer.id_of("<|im_end|>")
    first, second = tokenizer.encode("Hel"), [*tokenizer.encode("lo"), end]
    deltas = [
        grown.add(output(first, num_cached_tokens=7)),
        grown.add(output(second, finish_reason="stop", stop_token_id=end)),
    ]
    assert "".join(deltas) == grown.text == "Hello"
    assert grown.token_ids == first + second
    assert [row.token_id for row in grown.logprobs or []] == first + second
    assert (grown.finish_reason, grown.stop_reason, grown.num_cached_tokens) == ("stop", end, 7)


def test_an_output_ends_at_a_stop_string_while_the_engine_runs_on(tokenizer):
    grown = OutputText(tokenizer, SamplingParams(stop=("lo",), logprobs=0))
    ids = byte_ids(tokenizer, "Hello!")
    assert grown.add(output(ids)) == "Hel"
    assert grown.token_ids == ids[:5]
    assert len(grown.logprobs or []) == 5
    assert (grown.finish_reason, grown.stop_reason) == ("stop", "lo")


def test_held_text_is_handed_out_when_the_output_ends(tokenizer):
    grown = OutputText(tokenizer, SamplingParams(stop=("lo!",)))
    ids = byte_ids(tokenizer, "Hello")
    assert grown.add(output(ids)) == "Hel"
    assert grown.add(output([], finish_reason="length")) == "lo"
    assert (grown.finish_reason, grown.stop_reason, grown.logprobs) == ("length", None, None)


def test_a_stop_token_stays_when_the_stop_is_asked_for(tokenizer):
    params = SamplingParams(include_stop_str_in_output=True)
    grown = OutputText(tokenizer, params)
    ids = byte_ids(tokenizer, "a.")
    grown.add(output(ids, finish_reason="stop", stop_token_id=ids[-1]))
    assert grown.text == "a."


def test_tokens_after_the_end_are_our_own_mistake(tokenizer):
    grown = OutputText(tokenizer, SamplingParams())
    grown.add(output([], finish_reason="abort"))
    with pytest.raises(AssertionError):
        grown.add(output([1]))


def test_a_long_stop_string_costs_nothing_before_it_is_matched(tokenizer, monkeypatch):
    monkeypatch.setattr(Watched, "num_reads", 0)
    detokenizer = Detokenizer(tokenizer, [Watched("ab" * 500)])
    assert Watched.num_reads == 0
    detokenizer.push(byte_ids(tokenizer, "abab" + "x" * 10))
    assert Watched.num_reads < 100


@given(text=st.text(alphabet="ab", min_size=1, max_size=12), data=st.data())
def test_a_stop_string_that_overlaps_with_itself_is_found_where_it_ends_first(
    tokenizer, text, data
):
    before = data.draw(st.text(alphabet="ab", max_size=40))
    end = (before + text).index(text) + len(text)
    detokenizer = Detokenizer(tokenizer, [text], include_stop=True)
    deltas, stopped, _ = stream(detokenizer, [byte_ids(tokenizer, before + text)])
    assert ("".join(deltas), stopped) == ((before + text)[:end], text)

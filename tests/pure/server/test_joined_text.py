"""Texts of chunks become one text, whatever the pieces in which they arrive."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.server.joined_text import JoinedText


def joined(pieces):
    """pieces: lists of texts."""
    whole, added = JoinedText(), []
    for texts in pieces:
        added += [whole.add(text) for text in texts]
        whole.next_piece()
    assert "".join(added) == whole.text
    return whole.text


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["one two", "three"], "one two three"),
        ([" one ", "", "  ", "\ntwo\n"], "one two"),
        (["你好。", "世界"], "你好。世界"),
        (["你好", "world"], "你好world"),
        (["안녕", "세계"], "안녕 세계"),
        ([], ""),
    ],
)
def test_a_space_stands_between_chunks_of_scripts_that_have_spaces(pieces, text):
    assert joined([[piece] for piece in pieces]) == text


TEXTS = st.text(st.sampled_from("ab \n。日"), max_size=8)


@given(st.lists(st.tuples(TEXTS, st.lists(st.integers(0, 8), max_size=4)), max_size=5))
def test_the_text_does_not_depend_on_how_its_pieces_arrive(parts):
    def split(text, cuts):
        edges = [0, *sorted(cuts), len(text)]
        return [text[a:b] for a, b in pairwise(edges)]

    whole = joined([[text] for text, _ in parts])
    assert joined([split(text, cuts) for text, cuts in parts]) == whole
    assert whole == whole.strip()

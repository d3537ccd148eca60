"""Words of transcripts, and the distance between two of them against its definition."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.eval.word_errors import num_word_errors, words_of


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("  Don’t  STOP\n", ["don't", "stop"]),
        ("'tis the dogs' 'quoted'", ["tis", "the", "dogs", "quoted"]),
        ("well-known — e.g. 3.5%", ["well", "known", "e", "g", "3", "5"]),
        ("Straße, ＡＢＣ, ﬁne", ["strasse", "abc", "fine"]),
        ("Ça va, naïve café", ["ça", "va", "naïve", "café"]),
        ("今天天气好。OK 了", ["今", "天", "天", "气", "好", "ok", "了"]),
        ("カタかな", ["カ", "タ", "か", "な"]),
        ("$5 + 6 = 11", ["5", "6", "11"]),
        ("", []),
        ("...!?", []),
    ],
)
def test_words_are_what_is_left_of_case_marks_and_space(text, words):
    assert words_of(text) == words


def test_one_letter_is_one_word_however_it_is_composed():
    assert words_of("cafe\u0301") == words_of("caf\u00e9")


@pytest.mark.parametrize(
    ("reference", "answer", "errors"),
    [
        ("a b c", "a b c", 0),
        ("a b c", "", 3),
        ("", "a b", 2),
        ("", "", 0),
        ("a b c", "a x c", 1),
        ("a b c", "a c", 1),
        ("a b c", "a b x c", 1),
        ("a b c d", "b c d e", 2),
        ("the cat sat", "the the the the cat", 4),
        ("a", "b c d", 3),
    ],
)
def test_errors_are_substitutions_deletions_and_insertions(reference, answer, errors):
    assert num_word_errors(reference.split(), answer.split()) == errors


def by_definition(reference, answer):
    @cache
    def distance(i, j):
        if not i or not j:
            return i + j
        return min(
            distance(i - 1, j - 1) + (reference[i - 1] != answer[j - 1]),
            distance(i - 1, j) + 1,
            distance(i, j - 1) + 1,
        )

    return distance(len(reference), len(answer))


SENTENCES = st.lists(st.sampled_from("abcd"), max_size=9)


@given(SENTENCES, SENTENCES)
def test_the_rows_of_the_programme_give_the_definitions_value(reference, answer):
    assert num_word_errors(reference, answer) == by_definition(tuple(reference), tuple(answer))


@given(st.text())
def test_every_text_has_words_without_marks_or_space(text):
    for word in words_of(text):
        assert word
        assert not any(character.isspace() for character in word)

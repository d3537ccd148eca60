"""Which option a text chooses, rule by rule, and which texts hold an open answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.eval.mmmu_answers import chosen_option, is_right_open_answer

OPTIONS = ["red", "dark red", "blue", "$4.50"]


@pytest.mark.parametrize(
    ("text", "letter", "found_by"),
    [
        ("Answer: B", "B", "stated"),
        ("First (A), then (C).\nAnswer: D.", "D", "stated"),
        ("Answer: A\nNo, wait.\nAnswer: C", "C", "stated"),
        ("**Answer:** B", "B", "stated"),
        ("**Answer**: **(C)**", "C", "stated"),
        ("The final answer: $B$", "B", "stated"),
        ("ANSWER:D", "D", "stated"),
        ("Answer: \\boxed{(B)}", "B", "bracketed"),
        ("Answer: Blue, which is (C)", "C", "bracketed"),
        ("(A) is too light, so (B)", "B", "bracketed"),
        ("Not A but D here", "D", "letter"),
        ("It must be C.", "C", "letter"),
        ("B\n", "B", "letter"),
        ("B) the dark one", "A", "guessed"),
        ("it looks blue to me", "C", "option text"),
        ("blue, or rather Dark Red", "B", "option text"),
        ("it costs $4.50", "D", "option text"),
        ("Answer: E", "A", "guessed"),
        ("I cannot see it", "A", "guessed"),
    ],
)
def test_the_first_rule_that_finds_something_decides(text, letter, found_by):
    choice = chosen_option(text, OPTIONS)
    assert (choice.letter, choice.found_by) == (letter, found_by)


def test_letters_beyond_the_options_are_no_choice():
    assert chosen_option("Answer: C", ["yes", "no"]).found_by == "guessed"
    assert chosen_option("Answer: C", ["yes", "no", "both"]).letter == "C"


@given(st.text(), st.lists(st.text(), min_size=1, max_size=26))
def test_every_text_chooses_one_of_the_options(text, options):
    assert chosen_option(text, options).letter in [chr(65 + i) for i in range(len(options))]


@pytest.mark.parametrize(
    ("text", "expected", "is_right"),
    [
        ("Answer: 12", ["12"], True),
        ("12 and 13.\nAnswer: 13", ["12"], False),
        ("Answer: 1,200.004 m", ["1200"], True),
        ("Answer: 1200.04", ["1200"], False),
        ("Answer: -3", ["3"], False),
        ("Answer: 1.5e3", ["1500"], True),
        ("So it is 12.\nThus 11.", ["12"], False),
        ("So it is 11.\nThus 12.", ["12"], True),
        ("**Answer:** the Eiffel-Tower.", ["Eiffel Tower"], True),
        ("Answer: a catalogue", ["cat"], False),
        ("Answer: 7 cats", ["dog", "cats"], True),
        ("Answer: %", ["%"], True),
        ("Answer:", ["12"], False),
        ("The Answer:\n", ["answer"], True),
        ("Answer: 112", ["12"], False),
    ],
)
def test_an_open_answer_is_looked_for_where_it_is_stated_or_in_the_last_line(
    text, expected, is_right
):
    assert is_right_open_answer(text, expected) is is_right


@given(st.text().filter(str.strip), st.lists(st.text(min_size=1)))
def test_no_text_and_no_answer_breaks_the_comparison(text, expected):
    is_right_open_answer(text, expected)

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
        ("Answer: \\boxed{(B)}", "B", "stated"),
        ("Answer: \\boxed{B}", "B", "stated"),
        ("Answer: $\\text{B}$", "B", "stated"),
        ("$$\\boxed{\\text{B}}$$", "B", "bracketed"),
        ("**Answer: Option B**", "B", "stated"),
        ("Answer: b", "B", "stated"),
        ("**Answer:** (b).\nThat is all.", "B", "stated"),
        ("Answer: b) the dark one", "B", "stated"),
        ("Answer: a dark red one", "B", "option text"),
        ("The answer is **B**.", "B", "said"),
        ("(C) is not blue, so the answer is B, I think", "B", "said"),
        ("The answer is blue", "C", "option text"),
        ("The answer is A.\nAnswer: B", "B", "stated"),
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


@pytest.mark.parametrize(
    ("text", "letter", "found_by"),
    [
        ("Answer: A cat", "C", "option text"),
        ("**Answer: A cat.**", "C", "option text"),
        ("The answer is A cat, of course", "C", "option text"),
        ("A cat", "C", "option text"),
        ("Answer: A tabby cat", "D", "option text"),
        ("Answer: A dog", "B", "option text"),
        ("Answer: A", "A", "stated"),
        ("Answer: A. bird", "A", "stated"),
        ("Answer: A catalogue", "A", "stated"),
        ("Answer: A, since a cat has whiskers", "A", "stated"),
        ("Answer: B, not A cat", "B", "stated"),
    ],
)
def test_a_letter_with_which_an_option_begins_is_a_word_of_it(text, letter, found_by):
    choice = chosen_option(text, ["bird", "dog", "A cat", "a tabby cat"])
    assert (choice.letter, choice.found_by) == (letter, found_by)


def test_a_small_letter_that_is_an_options_text_is_no_choice_by_letter():
    assert chosen_option("Answer: c", ["c", "2v", "v/2"]).letter == "A"
    assert chosen_option("Answer: C", ["c", "2v", "v/2"]).letter == "C"


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
        ("**Answer:**\n42", ["42"], True),
        ("**Answer:**\n\nThe Eiffel Tower.\n\nIt is tall.", ["Eiffel Tower"], True),
        ("Answer:\nLet me see.\n42", ["42"], True),
        ("Answer: \\[\n\\boxed{42}\n\\]", ["42"], True),
        ("It is\n\\[\n\\boxed{42}\n\\]", ["42"], True),
        ("**Answer:** 41\n42", ["42"], False),
        ("**Answer:**\n42", ["*"], False),
        ("**Answer:**\n%", ["%"], True),
        ("Answer: <\nfor a > b", [">"], False),
        ("Answer: +", ["-"], False),
        ("Answer: \N{MINUS SIGN}3", ["3"], False),
        ("Answer: \N{MINUS SIGN}3", ["-3"], True),
    ],
)
def test_an_open_answer_is_looked_for_where_it_is_stated_or_in_the_last_line(
    text, expected, is_right
):
    assert is_right_open_answer(text, expected) is is_right


@pytest.mark.parametrize(
    ("answer", "same", "others"),
    [
        ("-0.5 V", ["-0.5 V", "-0.50 v", "$-0.5$ V", "-0.5\\text{ V}", "-.5V"], ["0.5 V", "-5 V"]),
        ("0.5 V", ["0.5 V", "+0.5 V", "V = 0.5 V", "- 0.5 V"], ["-0.5 V", "10.5 V", "5 V"]),
        ("$0.6", ["$0.6", "\\$0.60", "0.6 dollars"], ["$6", "-$0.6", "$10.6"]),
        ("$6", ["$6", "$6 each"], ["$0.6", "$6.5", "$6,000"]),
        ("$1,200", ["$1,200", "$1200"], ["$1", "$200"]),
        ("x+1", ["x+1", "y = x + 1"], ["x-1", "2x+1", "x1", "x*1"]),
        ("x-1", ["x-1", "x - 1", "x\N{MINUS SIGN}1"], ["x+1", "x/1"]),
        ("3*10^5 m", ["3 * 10^5 m", "3 \\times 10^5 m"], ["3*10^-5 m", "3*105 m"]),
        ("x > 5", ["x>5"], ["x < 5", "x = 5"]),
        ("A+", ["A+", "blood group A+"], ["A", "A-"]),
        ("T cell", ["T-cell", "a **T** cell"], ["B cell"]),
        ("COVID-19", ["Covid 19"], ["COVID"]),
        ("Paris, France", ["Paris - France", "Paris\N{EM DASH}France"], ["Paris"]),
    ],
)
def test_signs_decimals_and_operators_of_an_open_answer_count(answer, same, others):
    assert [is_right_open_answer(f"Answer: {text}", [answer]) for text in same] == [True] * len(
        same
    )
    assert [text for text in others if is_right_open_answer(f"Answer: {text}", [answer])] == []


@given(st.from_regex(r"[-a-c01.,+*/^=$%() ]*[a-c01][-a-c01.,+*/^=$%() ]*", fullmatch=True))
def test_every_open_answer_is_right_as_it_is_written(answer):
    assert is_right_open_answer(f"Answer: {answer}", [answer])


@given(st.text().filter(str.strip), st.lists(st.text(min_size=1)))
def test_no_text_and_no_answer_breaks_the_comparison(text, expected):
    is_right_open_answer(text, expected)

"""GSM8K: prompts to the letter, which items are asked, which number of an answer counts."""

from decimal import Decimal

import pytest
from eval_helpers import graded, gsm8k_rows, write_jsonl

from mimo_engine.errors import ConfigError
from mimo_engine.eval.evaluation import Options
from mimo_engine.eval.gsm8k import few_shot_prompt, gsm8k, gsm8k_chat, last_number


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "test.jsonl", gsm8k_rows(8))


def test_a_prompt_is_the_shots_with_their_worked_answers_and_then_the_question():
    shots = [("How many?", "One.\n#### 1"), ("And now?", "1+1=2\n#### 2")]
    assert few_shot_prompt(shots, "And then?") == (
        "Question: How many?\nAnswer: One.\n#### 1\n\n"
        "Question: And now?\nAnswer: 1+1=2\n#### 2\n\n"
        "Question: And then?\nAnswer:"
    )


def test_the_first_five_items_are_the_shots_and_are_not_asked(data):
    evaluation = gsm8k(Options(data=data))
    assert [item.id for item in evaluation.items] == ["5", "6", "7"]
    for item in evaluation.items:
        prompt = item.pose().request.body["prompt"]
        assert prompt.count("Question: ") == 6
        assert prompt.startswith("Question: Tom has 0 bags of 10 apples.")
        assert prompt.endswith(f"Tom has {item.id} bags of 10 apples. How many apples?\nAnswer:")


def test_a_completion_is_greedy_with_the_public_stops_and_length(data):
    question = gsm8k(Options(data=data)).items[0].pose()
    assert question.request.path == "/v1/completions"
    body = dict(question.request.body)
    del body["prompt"]
    assert body == {
        "temperature": 0,
        "max_tokens": 512,
        "stop": ["Question", "Assistant:", "<|separator|>"],
    }


def test_the_chat_form_is_the_same_text_as_one_user_message_without_stops(data):
    options = Options(data=data)
    completion, chat = (task(options).items[0].pose().request for task in (gsm8k, gsm8k_chat))
    assert chat.path == "/v1/chat/completions"
    assert chat.body == {
        "messages": [{"role": "user", "content": completion.body["prompt"]}],
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 2048,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_a_thought_gets_four_thousand_tokens_of_its_own_unless_the_length_is_given(data):
    body = gsm8k_chat(Options(data=data, thinks=True)).items[0].pose().request.body
    assert body["max_tokens"] == 2048 + 4096
    assert body["chat_template_kwargs"] == {"enable_thinking": True}
    given = Options(data=data, thinks=True, max_tokens=77)
    assert gsm8k_chat(given).items[0].pose().request.body["max_tokens"] == 77


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("#### 1,234,567", "1234567"),
        ("it costs $1,000.50 in all", "1000.50"),
        ("3 and then -4", "-4"),
        ("5-3", "-3"),
        ("18 apples, of 20", "20"),
        ("no number at all", None),
        ("", None),
        (".", None),
    ],
)
def test_the_last_number_counts_and_commas_do_not(text, number):
    assert last_number(text) == (None if number is None else Decimal(number))


def test_an_answer_is_right_when_its_last_number_equals_the_last_of_the_gold(data):
    item = gsm8k(Options(data=data)).items[0]
    assert item.pose().expected == "50"
    assert graded(item, " 5*10=50 apples.\n#### 50").count == 1
    assert graded(item, " It is 50.0").count == 1
    assert graded(item, " It is 50, or 51").count == 0


def test_a_chat_answer_without_content_or_with_a_cut_thought_is_wrong(data):
    item = gsm8k_chat(Options(data=data)).items[0]
    for content in (None, "", "  \n", "<think>It is 50", 3):
        grade = graded(item, content, reasoning_content="It is 50")
        assert (grade.count, grade.note) == (0, "empty")
    assert graded(item, "<think>It is 7</think>It is 50").count == 1
    assert graded(item, "many").note == "no number"


def test_a_limit_counts_what_is_asked(data):
    assert [item.id for item in gsm8k(Options(data=data, limit=2)).items] == ["5", "6"]


def test_too_few_rows_and_an_answer_without_a_number_are_refused(tmp_path):
    few = write_jsonl(tmp_path / "few.jsonl", gsm8k_rows(5))
    with pytest.raises(ConfigError, match="more than 5 rows, not 5"):
        gsm8k(Options(data=few))
    rows = [*gsm8k_rows(5), {"question": "Why?", "answer": "Because."}]
    with pytest.raises(ConfigError, match=r"bad\.jsonl, row 6: answer has no number"):
        gsm8k(Options(data=write_jsonl(tmp_path / "bad.jsonl", rows)))

"""What /v1/completions has beside texts and their log-probabilities, over a fake engine."""

import pytest
from fake_server import MODEL, FakeServer

PROMPT = "one two three four"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FakeServer(tmp_path_factory.mktemp("model")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.openai() as client:
        yield client


def complete(client, prompt, **kwargs):
    return client.completions.create(model=MODEL, prompt=prompt, **kwargs)


def test_best_of_gives_the_likeliest_answers_the_best_first(server, client):
    # Candidates have the seeds 1, 2, 3, of which the engine finds 3 the likeliest, then 1.
    prompts = [PROMPT, "five six seven"]
    result = complete(client, prompts, best_of=3, n=2, seed=1, max_tokens=3)
    expected = [server.answer(p, seed=seed, max_tokens=3) for p in prompts for seed in (3, 1)]
    assert [choice.text for choice in result.choices] == expected
    assert [choice.index for choice in result.choices] == [0, 1, 2, 3]
    assert all(choice.logprobs is None for choice in result.choices)
    assert result.usage.completion_tokens == 3 * 2 * 3
    assert result.usage.prompt_tokens == sum(len(server.tokenizer.encode(p)) for p in prompts)


def test_the_best_come_with_their_own_log_probabilities(server, client):
    [choice] = complete(client, PROMPT, best_of=2, seed=1, max_tokens=3, logprobs=1).choices
    assert choice.text == server.answer(PROMPT, seed=1, max_tokens=3)
    assert choice.logprobs.token_logprobs == [-0.6] * 3
    assert "".join(choice.logprobs.tokens) == choice.text


def test_best_of_n_of_n_may_stream(client):
    chunks = list(complete(client, PROMPT, best_of=2, n=2, seed=0, stream=True))
    assert {chunk.choices[0].index for chunk in chunks} == {0, 1}


@pytest.mark.parametrize("stream", [False, True])
def test_token_ids_are_given_where_they_are_asked_for(server, client, stream):
    result = complete(client, PROMPT, stream=stream, extra_body={"return_token_ids": True})
    choices = [chunk.choices[0] for chunk in (result if stream else [result])]
    ids = server.tokenizer.encode(PROMPT)
    assert choices[0].prompt_token_ids == ids
    assert all(not hasattr(choice, "prompt_token_ids") for choice in choices[1:])
    assert [i for choice in choices for i in choice.token_ids] == [*ids, server.eos_id]


def test_a_suffix_makes_a_prompt_with_a_gap(server, client):
    encode, id_of = server.tokenizer.encode, server.tokenizer.id_of
    for prompt in (PROMPT, encode(PROMPT)):
        result = complete(client, prompt, suffix="the end", extra_body={"return_token_ids": True})
        assert result.choices[0].prompt_token_ids == [
            id_of("<|fim_prefix|>"),
            *encode(PROMPT),
            id_of("<|fim_suffix|>"),
            *encode("the end"),
            id_of("<|fim_middle|>"),
        ]
    plain = complete(client, PROMPT, suffix="", extra_body={"return_token_ids": True})
    assert plain.choices[0].prompt_token_ids == encode(PROMPT)


def test_special_tokens_can_be_left_out(server, client):
    result = complete(client, PROMPT, extra_body={"add_special_tokens": False})
    assert result.usage.prompt_tokens == len(server.tokenizer.encode(PROMPT))


def test_values_that_mean_off_are_taken(client):
    off = {"use_beam_search": False, "length_penalty": 1.0, "spaces_between_special_tokens": True}
    assert complete(client, PROMPT, user="me", extra_body=off).choices

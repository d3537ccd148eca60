"""The API as the official client and plain HTTP see it, over a fake engine."""

import math

import httpx
import openai
import pytest
from fake_server import MODEL, FakeServer

USER = [{"role": "user", "content": "Tell me a tale, please."}]
EMOJI = "naïve 🙂 ok"


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


def chat(client, messages=USER, **kwargs):
    return client.chat.completions.create(model=MODEL, messages=messages, **kwargs)


def test_a_plain_completion_is_the_models_text_with_its_usage(server, client):
    result = complete(client, "Once upon a time", max_tokens=100)
    prompt = server.tokenizer.encode("Once upon a time")
    assert result.object == "text_completion"
    assert result.model == MODEL
    [choice] = result.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, "Once upon a time", "stop")
    assert choice.logprobs is None
    assert choice.matched_stop == server.eos_id
    assert result.usage.prompt_tokens == len(prompt)
    assert result.usage.completion_tokens == len(prompt) + 1
    assert result.usage.total_tokens == 2 * len(prompt) + 1
    assert result.usage.prompt_tokens_details.cached_tokens == 0


def test_max_tokens_is_16_for_completions_and_the_context_for_chat(server, client):
    text = "a b c d e f g h i j k l m n o p q r s t u v w x y z"
    result = complete(client, text)
    assert result.usage.completion_tokens == 16
    assert result.choices[0].finish_reason == "length"
    assert result.choices[0].text == server.answer(text, max_tokens=16)
    result = chat(client, extra_body={"ignore_eos": True}, max_completion_tokens=None)
    assert result.usage.total_tokens == 4096
    assert result.choices[0].finish_reason == "length"


def test_cached_tokens_are_reported(client):
    first, second = (
        complete(client, "a prompt that comes twice, and is long", max_tokens=1).usage
        for _ in range(2)
    )
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second.prompt_tokens_details.cached_tokens == (second.prompt_tokens - 1) // 16 * 16 > 0


def test_prompts_come_as_text_or_ids_alone_or_in_lists_and_n_times(server, client):
    ids = [server.tokenizer.encode(text) for text in ("one two", "three")]
    for prompt, texts in (
        ("one two", ["one two"]),
        (["one two", "three"], ["one two", "three"]),
        (ids[0], ["one two"]),
        (ids, ["one two", "three"]),
    ):
        result = complete(client, prompt)
        assert [choice.text for choice in result.choices] == texts
        assert [choice.index for choice in result.choices] == list(range(len(texts)))
    result = complete(client, ["one two", "three"], n=2, seed=1, best_of=2)
    assert [choice.text for choice in result.choices] == [
        server.answer(text, seed=seed) for text in ("one two", "three") for seed in (1, 2)
    ]
    assert result.usage.prompt_tokens == sum(map(len, ids))
    assert result.usage.completion_tokens == 2 * sum(len(one) + 1 for one in ids)


def test_a_streamed_completion_is_the_plain_one_in_pieces(server, client):
    prompts = ["Once upon a time", EMOJI]
    texts, reasons = {}, {}
    stream = complete(
        client,
        prompts,
        n=2,
        seed=0,
        max_tokens=200,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    for chunk in chunks[:-1]:
        assert chunk.usage is None
        [choice] = chunk.choices
        assert choice.index not in reasons
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    plain = complete(client, prompts, n=2, seed=0, max_tokens=200)
    assert [texts[i] for i in range(4)] == [choice.text for choice in plain.choices]
    assert reasons == dict.fromkeys(range(4), "stop")
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_no_piece_of_a_stream_holds_half_a_character(client):
    pieces = [
        chunk.choices[0].text for chunk in complete(client, EMOJI, max_tokens=99, stream=True)
    ]
    assert "".join(pieces) == EMOJI
    assert all("\ufffd" not in piece for piece in pieces)


def test_a_chat_answer_has_openais_shape(server, client):
    result = chat(client)
    prompt = server.chat_prompt(USER)
    [choice] = result.choices
    assert result.object == "chat.completion"
    assert choice.message.role == "assistant"
    assert choice.message.content == server.answer(prompt)
    assert choice.message.reasoning_content is None
    assert choice.finish_reason == "stop"
    assert choice.logprobs is None
    assert result.usage.prompt_tokens == len(prompt)


def test_a_chat_stream_gives_role_text_end_and_usage_in_this_order(server):
    body = {"messages": USER, "n": 2, "seed": 0, "max_tokens": 300}
    options = {"stream_options": {"include_usage": True}}
    chunks = server.chunks("/v1/chat/completions", {**body, **options})
    last = chunks.pop()
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    prompt = server.chat_prompt(USER)
    for index in range(2):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": "", "reasoning_content": None}
        assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + ["stop"]
        assert "content" not in mine[-1]["delta"]
        text = "".join(c["delta"]["content"] for c in mine[:-1])
        assert text == server.answer(prompt, seed=index)
    assert all(c["usage"] is None and c["object"] == "chat.completion.chunk" for c in chunks)
    assert all("usage" not in chunk for chunk in server.chunks("/v1/chat/completions", body))


def test_continuous_usage_counts_up(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    for path, body in (
        ("/v1/completions", {"prompt": "one two three"}),
        ("/v1/chat/completions", {"messages": USER, "max_tokens": 9}),
    ):
        chunks = server.chunks(path, {**body, "stream_options": options})
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == sorted(counts)
        assert counts[0] == 1 < counts[-1]
        alone = {**body, "stream": True, "stream_options": {"continuous_usage_stats": True}}
        refused = server.post(path, alone)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream_options")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_tokens_ends_the_text_and_the_request(server, client, stream):
    prompt = "The quick brown fox jumps over the lazy dog and runs away into the wood"
    kwargs = {
        "stop": ["never", "wn fox ju"],
        "max_tokens": 4000,
        "extra_body": {"ignore_eos": True},
    }
    result = complete(client, prompt, stream=stream, **kwargs)
    if stream:
        chunks = list(result)
        text = "".join(chunk.choices[0].text for chunk in chunks)
        choice = chunks[-1].choices[0]
    else:
        [choice] = result.choices
        text = choice.text
        assert result.usage.completion_tokens < 40
    assert text == "The quick bro"
    assert (choice.finish_reason, choice.matched_stop) == ("stop", "wn fox ju")
    kwargs["extra_body"] = {"ignore_eos": True, "include_stop_str_in_output": True}
    assert complete(client, prompt, **kwargs).choices[0].text == "The quick brown fox ju"


def test_chat_logprobs_spell_every_token(server, client):
    result = chat(client, logprobs=True, top_logprobs=2, max_tokens=8)
    content = result.choices[0].logprobs.content
    ids = server.answer_ids(server.chat_prompt(USER), max_tokens=8)
    assert [bytes(entry.bytes) for entry in content] == [
        server.tokenizer.token_bytes(token) for token in ids
    ]
    assert all(entry.logprob == -0.5 and len(entry.top_logprobs) == 2 for entry in content)
    assert content[0].top_logprobs[0].token == content[0].token
    assert (
        chat(client, logprobs=True, max_tokens=1).choices[0].logprobs.content[0].top_logprobs == []
    )
    streamed = chat(client, logprobs=True, top_logprobs=2, max_tokens=8, stream=True)
    pieces = [chunk.choices[0].logprobs for chunk in streamed]
    assert [entry for piece in pieces if piece for entry in piece.content] == content


@pytest.mark.parametrize("stream", [False, True])
def test_echo_with_logprobs_covers_prompt_and_answer_in_one_text(server, client, stream):
    result = complete(client, EMOJI, echo=True, logprobs=2, max_tokens=4, stream=stream)
    chunks = list(result) if stream else [result]
    text = "".join(chunk.choices[0].text for chunk in chunks)
    parts = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].logprobs]
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    values = [value for part in parts for value in part.token_logprobs]
    tops = [top for part in parts for top in part.top_logprobs]
    ids = server.tokenizer.encode(EMOJI)
    ids += server.answer_ids(ids, max_tokens=4)
    assert text == server.tokenizer.decode(ids)
    assert len(tokens) == len(offsets) == len(values) == len(tops) == len(ids)
    assert values == [None] + [-0.5] * (len(ids) - 1)
    assert tops[0] is None
    assert all(len(top) >= 2 for top in tops[1:])
    for token, offset in zip(tokens, offsets, strict=True):
        assert token.startswith("bytes:") or text[offset:].startswith(token)
    assert any(token.startswith("bytes:\\x") for token in tokens)


def test_echo_with_no_tokens_scores_the_prompt_alone(client):
    result = complete(client, "one two", echo=True, logprobs=0, max_tokens=0)
    [choice] = result.choices
    assert (choice.text, choice.finish_reason) == ("one two", "length")
    assert len(choice.logprobs.tokens) == result.usage.prompt_tokens
    assert result.usage.completion_tokens == 0


def test_prompt_logprobs_are_given_by_token_id(server, client):
    result = complete(client, "one two", max_tokens=1, extra_body={"prompt_logprobs": 1})
    ids = server.tokenizer.encode("one two")
    first, *rest = result.choices[0].prompt_logprobs
    assert first is None
    assert [list(entry) for entry in rest] == [[str(i)] for i in ids[1:]]
    assert rest[0][str(ids[1])]["rank"] == 1


@pytest.mark.parametrize(
    ("switch", "thinks"),
    [
        ({}, True),
        ({"chat_template_kwargs": {"enable_thinking": False}}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"reasoning_effort": 0.5}, True),
        ({"reasoning": {"enabled": False}}, False),
        ({"reasoning": {"effort": "none"}}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"enable_thinking": False}, False),
        ({"enable_thinking": True, "reasoning_effort": "none"}, True),
        ({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}}, True),
    ],
)
def test_every_switch_of_thinking_reaches_the_template(server, switch, thinks):
    result = server.post("/tokenize", {"messages": USER, **switch}).json()
    assert result["tokens"] == server.chat_prompt(USER, enable_thinking=thinks)
    if "tokens" in result and switch:
        usage = server.post("/v1/chat/completions", {"messages": USER, **switch}).json()["usage"]
        assert usage["prompt_tokens"] == result["count"]


def test_a_last_message_can_be_continued(server):
    messages = [*USER, {"role": "assistant", "content": "Once upon"}]
    body = {"messages": messages, "continue_final_message": True}
    text = server.tokenizer.decode(
        server.post("/tokenize", body).json()["tokens"], skip_special_tokens=False
    )
    assert text.endswith("Once upon")
    assert server.post("/v1/chat/completions", body).status_code == 200


def test_text_goes_to_tokens_and_back(server):
    for prefix in ("", "/v1"):
        tokens = server.post(f"{prefix}/tokenize", {"prompt": EMOJI}).json()
        assert tokens == {
            "tokens": server.tokenizer.encode(EMOJI),
            "count": len(server.tokenizer.encode(EMOJI)),
            "max_model_len": 4096,
        }
        body = {"tokens": tokens["tokens"]}
        assert server.post(f"{prefix}/detokenize", body).json() == {"text": EMOJI}


def test_the_model_is_listed_and_found_by_name(client):
    [card] = client.models.list()
    assert (card.id, card.object, card.max_model_len) == (MODEL, "model", 4096)
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_fields_that_change_no_output_are_taken(server):
    body = {"messages": USER, "max_tokens": 2, "user": "me", "metadata": {"a": "b"}}
    inert = {"store": False, "service_tier": "auto", "tools": [], "tool_choice": "auto"}
    inert |= {"response_format": {"type": "text"}, "parallel_tool_calls": True, "audio": None}
    inert |= {"thinking_token_budget": 10**30}
    assert server.post("/v1/chat/completions", body | inert).status_code == 200
    inert |= {"stream": True, "stream_options": {"include_obfuscation": True}}
    assert server.post("/v1/chat/completions", body | inert).status_code == 200
    assert server.post("/v1/completions", {"prompt": "a", "suffix": None}).status_code == 200


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"temprature": 1}, "temprature", "unknown field 'temprature'"),
        ({"temprature": None}, "temprature", "unknown field"),
        ({"messages": []}, "messages", "cannot be empty"),
        ({"messages": "hello"}, "messages", "list"),
        ({"messages": [IMAGE]}, "messages", "Model only supports text input; received"),
        ({"messages": [{"content": "x"}]}, "messages", "role"),
        ({"temperature": -1}, "temperature", "temperature must be in"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": math.nan}, "temperature", "temperature must be in"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"n": 0}, "n", "n must be in"),
        ({"n": True}, "n", "integer"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token ids"),
        ({"logit_bias": {"99999": 1}}, "logit_bias", "outside 0 to"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        ({"stream": True, "stream_options": {"usage": 1}}, "usage", "unknown field"),
        ({"min_tokens": 2**80}, "prompt", "maximum context length"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty", "must be in"),
        ({"stop": "\ud800"}, "stop", "surrogate"),
        ({"stop": "a" * 5000}, "stop", "1 to 1024 characters"),
        ({"reasoning": {"exclude": True}}, "reasoning", "one key 'enabled'"),
        ({"reasoning": {"effort": "low", "max_tokens": 5}}, "reasoning", "no other"),
        ({"reasoning_effort": "lots"}, "reasoning_effort", "choose one of"),
        ({"thinking": {"type": "maybe"}}, "thinking", "'enabled'"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template_kwargs", "may not set"),
        ({"top_k": 2**80}, "top_k", "less than"),
        ({"seed": 2**80}, "seed", "64 bits"),
        ({"stop_token_ids": [2**80]}, "stop_token_ids", "outside 0 to"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "token ids"),
        ({"\ud800": 1}, "?", "unknown field"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "surrogate"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "messages", "list of parts"),
        ({"continue_final_message": True}, "continue_final_message", "role assistant"),
        ({"seed": 666}, "seed", "refuses the seed 666"),
        ({"seed": 666, "stream": True}, "seed", "refuses the seed 666"),
    ],
)
def test_a_bad_chat_request_is_a_400_that_names_the_field(server, fields, param, message):
    response = server.post("/v1/chat/completions", {"messages": USER, **fields})
    assert response.status_code == 400
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert (param or "") in (error["param"] or "")
    assert message in error["message"]


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": "\ud800"}, None, "surrogate"),
        ({"prompt": []}, "prompt", "prompt must be"),
        ({"prompt": [[]]}, "prompt", "prompt must be"),
        ({"prompt": [1, "a"]}, "prompt", "prompt must be"),
        ({"prompt": [True]}, "prompt", "prompt must be"),
        ({"prompt": ""}, "prompt", "empty"),
        ({"prompt": [1, 99999]}, "prompt", "outside 0 to"),
        ({"prompt": [-1]}, "prompt", "outside 0 to"),
        ({"prompt": "a", "suffix": "b", "echo": True}, "suffix", "echo"),
        ({"prompt": "a", "best_of": 2, "n": 3}, "best_of", "at least n"),
        ({"prompt": "a", "best_of": 2, "stream": True}, "best_of", "stream"),
        ({"prompt": "a", "best_of": 0}, "best_of", "greater than or equal to 1"),
        ({"prompt": ["a"] * 10, "best_of": 128}, "prompt", "best_of"),
        ({"prompt": "a", "use_beam_search": True}, "use_beam_search", "not supported"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs", "stream"),
        ({}, "prompt", "required"),
    ],
)
def test_a_bad_completion_request_is_a_400_that_names_the_field(server, fields, param, message):
    response = server.post("/v1/completions", fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (param or "") in (error["param"] or "")
    assert message in error["message"]


def test_what_does_not_fit_the_context_is_refused_by_its_code(server, client):
    for kwargs in ({"max_tokens": 4096}, {"max_tokens": None, "prompt": [1] * 4096}):
        with pytest.raises(
            openai.BadRequestError, match="maximum context length is 4096"
        ) as caught:
            complete(client, kwargs.pop("prompt", "a"), **kwargs)
        assert caught.value.code == "context_length_exceeded"
    # The default of 16 is not a demand.
    assert complete(client, [65] * 4090).usage.completion_tokens == 6


def test_other_http_errors_have_the_same_shape(server, client):
    with pytest.raises(openai.NotFoundError) as caught:
        complete(client.with_options(), "a", extra_body={"model": "other"})
    assert caught.value.code == "model_not_found"
    url = f"{server.url}/v1/completions"
    json_type, text_type = {"content-type": "application/json"}, {"content-type": "text/plain"}
    for response, status, message in (
        (server.get("/nowhere"), 404, "Not Found"),
        (server.get("/v1/completions"), 405, "Not Allowed"),
        (server.post("/v1/responses/input_tokens", {"input": "x"}), 404, "count_tokens"),
        (server.post("/v1/responses/compact", {"input": "x"}), 404, "not served"),
        (httpx.post(url, content=b"{not json", headers=json_type), 400, "not JSON"),
        (httpx.post(url, content=b'{"prompt": "a"}', headers=text_type), 400, "content-type"),
        (httpx.post(url, json=["a list"]), 400, "JSON object"),
        (httpx.post(url, content=b"[" * 100_000, headers=json_type), 400, "body"),
    ):
        assert response.status_code == status
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] is None
        assert message in error["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_whose_numbers_break_is_a_500_with_the_reason_and_is_counted(server, stream):
    name = 'mimo_engine_requests_total{finish_reason="error"}'
    before = server.metric(name) or 0
    body = {"prompt": "a b c", "seed": 14, "n": 2, "stream": stream}
    response = server.post("/v1/completions", body)
    assert response.status_code == 500
    assert response.json()["error"] == {
        "message": "broken logits",
        "type": "server_error",
        "param": None,
        "code": None,
    }
    assert server.metric(name) == before + 2
    assert server.get("/health").status_code == 200


def test_metrics_tell_times_pages_hits_and_ends(server, client):
    before = server.metric('mimo_engine_requests_total{finish_reason="stop"}') or 0
    complete(client, "a prompt whose tokens are counted", n=2, seed=0, max_tokens=99)
    assert server.metric('mimo_engine_requests_total{finish_reason="stop"}') == before + 2
    assert server.metric("mimo_engine_time_to_first_token_seconds_count") >= 2
    assert server.metric("mimo_engine_time_per_output_token_seconds_count") >= 2
    assert server.metric('mimo_engine_kv_pages_total{group="full"}') == 1000
    assert server.metric('mimo_engine_kv_pages_total{group="sliding"}') == 500
    assert server.metric('mimo_engine_kv_pages_used{group="full"}') == 0
    assert server.metric("mimo_engine_prefix_query_tokens_total") > 0
    assert server.metric("mimo_engine_prefix_hit_tokens_total") > 0
    assert server.metric("mimo_engine_engine_up") == 1
    assert server.metric("mimo_engine_engine_restarts_total") == 0
    assert server.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/health", "/ping"])
def test_probes_may_ask_for_the_head_alone(server, path):
    response = httpx.head(f"{server.url}{path}", timeout=30)
    assert (response.status_code, response.content) == (200, b"")

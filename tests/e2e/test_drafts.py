"""With drafts the demo model says what it says without: whatever is cached, chunked, batched or
asked for.

The other side is an engine without drafts, cache or company: each request alone. Greedy texts are
equal but for a tie of the two likeliest tokens; those of a seed are equal.
"""

import json
import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from mimo_engine import LLM, SamplingParams
from mimo_engine.cache.groups import plan_cache
from mimo_engine.config.engine import CacheConfig, SchedulerConfig, SpeculativeConfig
from mimo_engine.config.sampling import GrammarSpec, ThinkingSpec
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.engine import core
from mimo_engine.messages import NewRequest
from mimo_engine.utils.hub import resolve_model
from mimo_engine.worker import masks

GREEDY = SamplingParams(temperature=0.0, max_tokens=96, logprobs=2)
SAMPLED = SamplingParams(temperature=1.0, max_tokens=64)
TIE = 1e-4


def make_llm(speculative, *, chunk=2048, max_num_seqs=16, prefix_caching=True, **choices):
    return LLM(
        str(resolve_model("demo")),
        device="cpu",
        dtype="float32",
        cache=CacheConfig(kv_cache_gib=0.25, prefix_caching=prefix_caching),
        scheduler=SchedulerConfig(max_num_seqs=max_num_seqs, max_num_batched_tokens=chunk),
        speculative=SpeculativeConfig(speculative=speculative, **choices),
    )


@pytest.fixture(scope="module")
def plain():
    return make_llm("off", prefix_caching=False)


@pytest.fixture(scope="module")
def drafting():
    return make_llm("mtp")


@pytest.fixture(scope="module")
def tasks():
    found = {f"{task.modality}/{task.name}": task for task in demo_tasks(SpeechBanks(None))}
    assert len(found) == 24
    return found


@pytest.fixture(scope="module")
def prompts_of(tasks, plain):
    """Held-out examples of tasks as `LLM.chat` makes prompts of them, each a function: the engine
    takes over the features of media, so each run has its own."""

    def prepare(example):
        seen = []
        # `chat`, up to where it would run.
        plain._generate = lambda prompts, *_: seen.extend(prompts)
        try:
            plain.chat(
                example.messages,
                tools=example.tools or None,
                chat_template_kwargs={"enable_thinking": example.thinks},
            )
        finally:
            del plain._generate
        return seen[0]

    def same(prompt):
        return prompt

    def make(names, count, seed=0):
        prompts = []
        for name in names:
            draw = random.Random(f"drafts {seed} {name}")
            for example in [tasks[name].make(draw, "test") for _ in range(count)]:
                first = prepare(example)
                prompts.append(
                    partial(prepare, example) if first.features else partial(same, first)
                )
        return prompts

    return make


def run(llm, prompts, params):
    """All at once."""
    return llm._generate([prompt() for prompt in prompts], params, False)


def run_alone(llm, prompts, params):
    pairs = zip(prompts, params, strict=True)
    return [run(llm, [prompt], [own])[0] for prompt, own in pairs]


def compare_greedy(first, second):
    """(same, tie or different; the largest distance of log-probabilities until they differ)."""
    distance = 0.0
    for i, (mine, theirs) in enumerate(zip(first.token_ids, second.token_ids, strict=False)):
        if mine != theirs:
            (_, best), (_, next_best) = first.logprobs[i].top
            return "tie" if best - next_best < TIE else "different", distance
        pairs = zip(first.logprobs[i].top, second.logprobs[i].top, strict=True)
        distances = [abs(a - b) for (_, a), (_, b) in pairs]
        distance = max(
            distance, *distances, abs(first.logprobs[i].logprob - second.logprobs[i].logprob)
        )
    is_same = (first.token_ids, first.text, first.finish_reason, first.stop_reason) == (
        second.token_ids,
        second.text,
        second.finish_reason,
        second.stop_reason,
    )
    assert len(second.logprobs) == len(second.token_ids)
    return "same" if is_same else "different", distance


def check_greedy(plain, prompts, engines):
    """engines: arguments of `make_llm`. Each answers all prompts twice, then from its cache."""
    expected = run_alone(plain, prompts, [GREEDY] * len(prompts))
    verdicts, most = Counter(), 0.0
    for arguments in engines:
        llm = make_llm(**arguments)
        for turn in range(2):
            outputs = run(llm, prompts, [GREEDY] * len(prompts))
            assert any(output.num_cached_tokens for output in outputs) or not turn
            for mine, theirs in zip(expected, outputs, strict=True):
                verdict, distance = compare_greedy(mine, theirs)
                verdicts[verdict] += 1
                most = max(most, distance)
        stats = llm.core.stats().drafts
        # They are good drafts; with one page in a step there may be no room for them.
        assert stats.num_accepted > 0.7 * stats.num_drafted > 0
        assert 0 < stats.num_verifications <= stats.num_drafted
        llm.close()
    assert verdicts["different"] == 0
    assert verdicts["tie"] <= 0.01 * verdicts.total()
    assert most < 1e-4


ENGINES = [
    {"speculative": "mtp", "chunk": 16, "max_num_seqs": 1},
    {"speculative": "mtp", "chunk": 80, "max_num_seqs": 16},
    {"speculative": "auto", "chunk": 2048, "max_num_seqs": 5},
]


def test_greedy_text_and_logprobs_are_those_without_drafts(plain, tasks, prompts_of):
    check_greedy(plain, prompts_of(tasks, 1), ENGINES[:2])


@pytest.mark.prove
def test_greedy_texts_of_five_hundred_prompts(plain, tasks, prompts_of):
    draw = random.Random(0)
    for seed in range(7):
        more = [
            {
                "speculative": draw.choice(("mtp", "auto")),
                "chunk": draw.choice((16, 17, 32, 48, 100, 256)),
                "max_num_seqs": draw.randint(1, 16),
                "max_draft_tokens": draw.choice((1, 2, 3)),
                "recompute_boundary": draw.random() < 0.5,
            }
            for _ in range(2)
        ]
        check_greedy(plain, prompts_of(tasks, 3, seed), [*ENGINES, *more])


def json_spec(schema):
    return GrammarSpec(kind="json_schema", text=json.dumps(schema))


OBJECT = json_spec(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)
NO_E = GrammarSpec(kind="regex", text="[^e]{5,40}")


@pytest.fixture(scope="module")
def kinds(plain):
    """Ways to ask, of which each has something to do in every row of a verification."""
    tokenizer = plain.tokenizer
    greedy = replace(GREEDY, logprobs=None, max_tokens=64)
    thought = ThinkingSpec(
        start_id=tokenizer.id_of("<think>"), end_id=tokenizer.id_of("</think>"), budget=9
    )
    banned = tuple(map(tokenizer.id_of, ("<tool_call>", "</tool_call>")))
    return {
        "seed": SAMPLED,
        "filtered": replace(SAMPLED, temperature=1.3, top_p=0.9, top_k=20, min_p=0.01),
        "repetition": replace(greedy, repetition_penalty=1.3),
        "presence": replace(greedy, presence_penalty=1.5, frequency_penalty=0.4),
        "penalties and seed": replace(SAMPLED, repetition_penalty=1.2, frequency_penalty=0.6),
        "bias": replace(greedy, logit_bias={**dict.fromkeys(range(48, 58), -3.0), 65: 4.0}),
        "minimum": replace(greedy, min_tokens=20, max_tokens=40),
        "no end": replace(greedy, ignore_eos=True, max_tokens=40),
        "schema": replace(greedy, grammar=OBJECT),
        "schema and seed": replace(SAMPLED, grammar=OBJECT),
        "letters": replace(greedy, grammar=NO_E),
        "budget": replace(greedy, thinking=thought),
        "budget and seed": replace(SAMPLED, thinking=replace(thought, budget=2)),
        "schema after a thought": replace(
            greedy, grammar=OBJECT, thinking=replace(thought, banned_ids=banned)
        ),
    }


KINDS = [
    "seed", "filtered", "repetition", "presence", "penalties and seed", "bias", "minimum", "no end",
    "schema", "schema and seed", "letters", "budget", "budget and seed", "schema after a thought",
]  # fmt: skip
MIX = [
    "text/sums", "text/word_problems", "text/json", "text/needle", "text/tool_call", "image/digits",
    "video/order", "audio/spoken_words",
]  # fmt: skip


def same_outputs(expected, outputs):
    """How many are; all parts of an output count."""
    return sum(
        (mine.token_ids, mine.text, mine.finish_reason, mine.stop_reason)
        == (theirs.token_ids, theirs.text, theirs.finish_reason, theirs.stop_reason)
        for mine, theirs in zip(expected, outputs, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, pytest.param(12, marks=pytest.mark.prove)])
def test_however_it_is_asked_the_text_is_that_without_drafts(
    plain, drafting, prompts_of, kinds, kind, count
):
    assert list(kinds) == KINDS
    prompts = prompts_of(MIX if count > 1 else MIX[::2], count, 1)
    params = [replace(kinds[kind], seed=number) for number in range(len(prompts))]
    before = drafting.core.stats().drafts
    outputs = run(drafting, prompts, params)
    after = drafting.core.stats().drafts
    assert after.num_accepted > before.num_accepted + len(prompts)
    assert not any(output.error for output in outputs)
    # A draw may fall on the border of two tokens as greedy texts have ties: one in 100,000.
    allowed = 0 if count == 1 else 1
    assert same_outputs(run(plain, prompts, params), outputs) >= len(prompts) - allowed


def test_a_grammar_that_cannot_be_followed_ends_its_request_where_it_does_without_drafts(
    plain, drafting, prompts_of
):
    ways = " | ".join(" ".join(["s"] * length) for length in range(2, 9))
    grammars = [
        GrammarSpec(kind="lark", text=f"start: {'c ' * count} s\ns: {ways} | c\nc: /(.|\\n)/")
        for count in range(9)
    ]
    params = [replace(GREEDY, grammar=grammar) for grammar in grammars]
    prompts = prompts_of(["text/word_problems"], 1, 6) * len(params)
    expected = run(plain, prompts, params)
    before = drafting.core.stats().drafts
    outputs = run(drafting, prompts, params) + run_alone(drafting, prompts, params)
    assert drafting.core.stats().drafts.num_accepted > before.num_accepted
    assert same_outputs(expected * 2, outputs) == len(outputs)
    assert [output.error for output in outputs] == [output.error for output in expected * 2]
    failed = [output for output in expected if output.finish_reason == "error"]
    assert all("make it simpler" in output.error for output in failed)
    assert len({len(output.token_ids) for output in failed}) > 2


def test_masks_that_come_late_change_no_text(plain, drafting, prompts_of, kinds, monkeypatch):
    names = ["schema", "schema and seed", "letters", "budget"]
    prompts = prompts_of(["text/json"], 1, 7) * len(names)
    params = [replace(kinds[name], seed=number) for number, name in enumerate(names)]
    expected = run(plain, prompts, params)
    # Each mask is one that a later step takes, unless it is made during the forward pass.
    monkeypatch.setattr(masks, "_PATIENCE_S", 0.0)
    assert same_outputs(expected, run(drafting, prompts, params)) == len(names)


def assert_close(scores, others):
    for one, other in zip(scores, others, strict=True):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        values, wanted = ([score.logprob, *dict(score.top).values()] for score in (one, other))
        assert values == pytest.approx(wanted, abs=1e-4)


def test_logprobs_of_sampled_tokens_and_of_prompts_are_those_without_drafts(
    plain, drafting, prompts_of
):
    prompts = prompts_of(MIX, 1, 2)
    params = [
        replace(SAMPLED, seed=i, logprobs=i % 4, prompt_logprobs=1 if i % 2 else None, n=1 + i % 3)
        for i in range(len(prompts))
    ]
    expected, outputs = run(plain, prompts, params), run(drafting, prompts, params)
    assert same_outputs(expected, outputs) == len(outputs) > len(prompts)
    for mine, theirs in zip(expected, outputs, strict=True):
        assert len(theirs.logprobs) == len(theirs.token_ids)
        assert_close(mine.logprobs, theirs.logprobs)
        if mine.prompt_logprobs is not None:
            assert_close(mine.prompt_logprobs[1:], theirs.prompt_logprobs[1:])


def test_an_end_inside_accepted_drafts_cuts_at_the_same_place(plain, drafting, prompts_of):
    (prompt,) = prompts_of(["text/sums"], 1, 3)
    (whole,) = run(plain, [prompt], [GREEDY])
    ids, text = whole.token_ids, whole.text
    assert len(ids) > 20
    ends = [replace(GREEDY, max_tokens=count) for count in range(1, len(ids))]
    ends += [replace(GREEDY, stop_token_ids=(token_id,)) for token_id in dict.fromkeys(ids)]
    draw = random.Random(4)
    ends += [
        replace(GREEDY, stop_token_ids=(token_id,), min_tokens=draw.randint(2, 20))
        for token_id in draw.sample(ids, 8)
    ]
    for _ in range(16):
        first = draw.randrange(len(text))
        stop = text[first : first + draw.randint(1, 6)]
        ends.append(
            replace(
                GREEDY,
                stop=(stop,),
                include_stop_str_in_output=draw.random() < 0.5,
                min_tokens=draw.choice((0, 12)),
            )
        )
    expected = run(plain, [prompt] * len(ends), ends)
    # In company, and some one by one, so that there is room for every draft.
    some = draw.sample(range(len(ends)), 24)
    outputs = run(drafting, [prompt] * len(ends), ends)
    outputs += run_alone(drafting, [prompt] * len(some), [ends[i] for i in some])
    assert same_outputs([*expected, *(expected[i] for i in some)], outputs) == len(outputs)
    assert all(len(output.logprobs) == len(output.token_ids) for output in outputs)
    assert {output.finish_reason for output in expected} == {"stop", "length"}
    assert len({len(output.token_ids) for output in expected}) > 20
    assert drafting.core.stats().drafts.acceptance_length > 2


def tokens_of_traffic(llm, requests, draw):
    """Requests {name: (prompt, params)} come at random steps, and some are aborted. (the tokens of
    all by name, who was aborted)."""
    rate = draw.choice((0.2, 1.0))
    waiting, running, aborted = list(requests), [], set()
    tokens = {name: [] for name in requests}
    while waiting or llm.core.has_work:
        if waiting and draw.random() < rate:
            name = waiting.pop()
            prompt, params = requests[name]
            made = prompt()
            llm.core.add(
                NewRequest(
                    request_id=name,
                    prompt_token_ids=made.token_ids,
                    params=params,
                    media=made.media,
                ),
                made.features,
            )
            running.append(name)
        if running and draw.random() < 0.02:
            name = running.pop(draw.randrange(len(running)))
            assert llm.core.abort(name)
            aborted.add(name)
        for output in llm.core.step():
            assert output.finish_reason != "error", output.error
            tokens[output.request_id] += output.token_ids
            if output.finish_reason is not None:
                running.remove(output.request_id)
        llm.core._scheduler._cache.check()
    return tokens, aborted


def few_pages(*arguments, **named):
    """Full pages for the longest prompt, and little more."""
    return replace(plan_cache(*arguments, **named), num_full_pages=34)


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 12), marks=pytest.mark.prove)])
def test_requests_of_all_kinds_that_come_and_go_have_the_text_they_have_alone(
    plain, tasks, prompts_of, kinds, monkeypatch, seeds
):
    monkeypatch.setattr(core, "plan_cache", few_pages)
    num_aborted = num_preemptions = num_texts = num_different = 0
    for seed in seeds:
        draw = random.Random(seed)
        prompts = prompts_of([name for name in tasks if draw.random() < 0.6], 1, 100 + seed)
        params = [kinds[draw.choice(KINDS)] for _ in prompts]
        # These come first, are short, and outgrow the cache together.
        prompts += prompts_of(["text/sums", "text/count"], 4, 100 + seed)
        params += [replace(kinds["no end"], max_tokens=100)] * 8
        params = [replace(own, seed=number) for number, own in enumerate(params)]
        requests = {f"{i}": pair for i, pair in enumerate(zip(prompts, params, strict=True))}
        llm = make_llm("auto" if seed % 2 else "mtp", chunk=40, max_num_seqs=12)
        tokens, aborted = tokens_of_traffic(llm, requests, draw)
        stats = llm.core.stats()
        assert (stats.full_pages_used, stats.sliding_pages_used) == (0, 0)
        num_preemptions += stats.num_preemptions
        num_aborted += len(aborted)
        max_model_len = llm.core.info().max_model_len
        llm.close()
        for name, alone in zip(requests, run_alone(plain, prompts, params), strict=True):
            # So few pages hold no more of a long prompt's answer.
            count = max_model_len - len(alone.prompt_token_ids)
            if name in aborted:
                count = len(tokens[name])
            num_texts += 1
            num_different += tokens[name] != alone.token_ids[:count]
    assert num_aborted >= len(seeds)
    assert num_preemptions >= len(seeds)
    assert num_different <= 0.002 * num_texts

"""The drafts of a running engine are those of slow layers that know no cache, page or chunk.

In steps of all kinds: chunked prompts, many requests, prefixes from the cache, preemption, any
number of accepted drafts, changes of depth. And an engine with a mistake is found out.
"""

import random
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from draft_traffic import GREEDY, SAMPLED, random_prompt, random_traffic
from mtp_reference import MISTAKES
from slow_drafting import LOUD_TOKENS, DraftWatch, SlowDrafting, make_tiny_checkpoint, play

from mimo_engine import LLM
from mimo_engine.config.engine import (
    CacheConfig,
    ModelSettings,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
)
from mimo_engine.config.model import AttentionKind

LENGTHS = [1, 2, 7, 8, 9, 23, 32, 50, 61, 4, 100, 16]


@dataclass(frozen=True, kw_only=True)
class Setup:
    page_size: int
    window: int
    chunk: int
    max_num_seqs: int
    num_pages: int | None = None
    """About so many full pages; None: plenty."""


ALONE = Setup(page_size=4, window=8, chunk=4, max_num_seqs=1)
FEW = Setup(page_size=4, window=10, chunk=12, max_num_seqs=4)
WIDE = Setup(page_size=16, window=24, chunk=16, max_num_seqs=5)
MANY = Setup(page_size=16, window=31, chunk=64, max_num_seqs=16)
CROWDED = Setup(page_size=4, window=8, chunk=24, max_num_seqs=8, num_pages=40)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_tiny_checkpoint(tmp_path_factory.mktemp("drafting"))


@pytest.fixture(scope="module")
def load(checkpoint):
    def make(setup, *, prefix_caching=True, speculative="mtp", num_ranks=1, **choices):
        kv_cache_gib = None
        if setup.num_pages is not None:
            # float32 K and V of two full layers, and as much for the sliding ones.
            kv_cache_gib = 2 * setup.num_pages * setup.page_size * 2 * 2 * (24 + 16) * 4 / 2**30
        return LLM(
            str(checkpoint),
            device="cpu",
            dtype="float32",
            settings=ModelSettings(num_visible_tokens=setup.window),
            cache=CacheConfig(
                page_size=setup.page_size,
                prefix_caching=prefix_caching,
                kv_cache_gib=kv_cache_gib,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=setup.max_num_seqs,
                max_num_batched_tokens=setup.chunk,
                max_model_len=None if setup.num_pages is None else 140,
            ),
            speculative=SpeculativeConfig(speculative=speculative, **choices),
            parallel=ParallelConfig(tensor_parallel_size=num_ranks),
        )

    return make


@pytest.fixture(scope="module")
def slow_of(checkpoint):
    """The slow drafting that an engine's is to equal."""

    def make(llm, setup):
        return SlowDrafting(
            checkpoint, llm.core.executor.worker.model, setup.window, llm.core.info().vocab_size
        )

    return make


def mixed_requests(lengths, *, seed=0, spread=0, max_tokens=(4, 40)):
    """Half of them sampled; they arrive within `spread` steps, and end at different times."""
    draw = random.Random(seed)
    return {
        f"{number}": (
            draw.randint(0, spread),
            random_prompt(length, seed + number),
            replace(
                SAMPLED if number % 2 else GREEDY,
                seed=number,
                max_tokens=draw.randint(*max_tokens),
            ),
        )
        for number, length in enumerate(lengths)
    }


def related_requests(page_size):
    """The same prompts again, other ends after the same pages, one after another and at once."""
    long = random_prompt(7 * page_size + 3, 1)
    prompts = [long, long, *(long[: count * page_size + 1] for count in (1, 5, 7))]
    # What follows a page is other than what its last rows were computed with.
    short = random_prompt(2 * page_size, 6)
    prompts += [short + random_prompt(3, seed) for seed in (7, 8, 9)]
    prompts += [long[: 5 * page_size] + random_prompt(page_size + 2, seed) for seed in (2, 3)]
    prompts += [long[: 5 * page_size] + random_prompt(1, 4)]
    prompts += [long[: 6 * page_size] + random_prompt(2, 5)]
    return {
        f"{first_step} {number}": (
            first_step,
            prompt,
            replace(SAMPLED if number % 2 else GREEDY, seed=number, max_tokens=16),
        )
        for first_step in (0, 11, 40)
        for number, prompt in enumerate(prompts)
    }


def checker(llm):
    return llm.core._scheduler._cache.check


def assert_right(verdict, *, at_least):
    assert verdict.wrong == []
    assert verdict.num_drafts >= at_least
    assert verdict.num_ties <= 0.002 * verdict.num_drafts


@pytest.mark.parametrize("setup", [ALONE, FEW, WIDE, MANY], ids=["alone", "few", "wide", "many"])
@pytest.mark.parametrize("draft_choice", ["likeliest", "sampled"])
def test_every_draft_is_that_of_the_slow_layers(load, slow_of, setup, draft_choice):
    llm = load(setup, draft_choice=draft_choice)
    watch = DraftWatch(llm)
    play(llm, mixed_requests(LENGTHS, spread=16), after_step=checker(llm))
    assert_right(slow_of(llm, setup).compare(watch.made), at_least=350)
    assert set(watch.acceptance) == {0, 1, 2, 3}
    assert {len(made.drafts) for made in watch.made} == {1, 2, 3}
    # Nothing came from the prefix cache, so nothing may be missing.
    assert all(made.is_window_whole(setup.window) for made in watch.made)
    assert max(len(plan.rows) for plan in watch.plans) == min(setup.max_num_seqs, 9)


@pytest.mark.parametrize("setup", [FEW, WIDE], ids=["few", "wide"])
def test_prompts_that_the_cache_knows_are_drafted_for_as_well(load, slow_of, setup):
    llm = load(setup)
    watch = DraftWatch(llm)
    play(llm, related_requests(setup.page_size), after_step=checker(llm))
    assert_right(slow_of(llm, setup).compare(watch.made), at_least=500)
    assert llm.core.stats().prefix_hit_tokens > 60 * setup.page_size
    # Of some prompts the cache has less than the window: rows were left out, and had to be.
    assert {made.is_window_whole(setup.window) for made in watch.made} == {True, False}


@pytest.mark.parametrize("setup", [FEW, WIDE], ids=["few", "wide"])
def test_a_conversation_loses_nothing_from_turn_to_turn(load, slow_of, setup):
    llm = load(setup)
    watch = DraftWatch(llm)
    texts = [random_prompt(length, length) for length in (5, 37, 50, 64)]
    num_cached = 0
    for turn in range(4):
        lengths = random.Random(turn).sample(range(6, 30), len(texts))
        params = [
            replace(
                SAMPLED if i % 2 else GREEDY,
                seed=turn,
                min_tokens=lengths[i],
                max_tokens=60,
                stop_token_ids=LOUD_TOKENS,
            )
            for i in range(len(texts))
        ]
        outputs = llm.generate(texts, params)
        assert {output.finish_reason for output in outputs} == {"stop"}
        num_cached += sum(output.num_cached_tokens for output in outputs)
        texts = [
            text + output.token_ids + random_prompt(5 + 3 * turn, turn)
            for text, output in zip(texts, outputs, strict=True)
        ]
    assert num_cached > 600
    assert_right(slow_of(llm, setup).compare(watch.made), at_least=400)
    assert all(made.is_window_whole(setup.window) for made in watch.made)


@pytest.mark.parametrize("prefix_caching", [True, False], ids=["cached", "uncached"])
def test_requests_that_were_preempted_are_drafted_for_as_before(load, slow_of, prefix_caching):
    llm = load(CROWDED, prefix_caching=prefix_caching)
    watch = DraftWatch(llm)
    requests = mixed_requests([9, 20, 3, 14, 6, 17], seed=3, spread=8, max_tokens=(40, 70))
    tokens = play(llm, requests, after_step=checker(llm))
    assert llm.core.stats().num_preemptions >= 3
    assert_right(slow_of(llm, CROWDED).compare(watch.made), at_least=300)
    plain = load(replace(CROWDED, num_pages=None), speculative="off")
    assert tokens == play(plain, requests)


def test_ranks_that_share_the_draft_layers_make_the_same_drafts(load, slow_of):
    """Three of them, so that heads are padded."""
    requests = mixed_requests(LENGTHS[:8], spread=10)
    whole = load(FEW)
    tokens = play(whole, requests)
    llm = load(FEW, num_ranks=3)
    watch = DraftWatch(llm)
    assert play(llm, requests) == tokens
    llm.close()
    assert_right(slow_of(whole, FEW).compare(watch.made), at_least=200)


class Depths:
    """Takes the place of the engine's control: the depths that it is given, over and over."""

    def __init__(self, depths):
        self._depths = depths
        self._num_steps = 0

    def choose(self, num_decoding):
        depth = self._depths[self._num_steps % len(self._depths)]
        self._num_steps += 1
        return depth

    def saw(self, *_):
        pass


DEPTHS = {
    "a pause": [3] * 4 + [0] * 22 + [3] * 6,
    "short pauses": [3, 0, 3, 0, 0, 3, 0, 0, 0, 3, 3],
    "up and down": [3, 2, 1, 0, 1, 2, 3, 1, 3, 2, 3, 0, 2],
    "any": random.Random(0).choices(range(4), k=200),
}


@pytest.mark.parametrize(
    ("setup", "name"), [*((FEW, name) for name in DEPTHS), (WIDE, "a pause"), (WIDE, "any")]
)
def test_after_other_depths_drafts_are_again_those_of_the_slow_layers(load, slow_of, setup, name):
    llm = load(setup)
    llm.core._drafts = Depths(DEPTHS[name])
    watch = DraftWatch(llm)
    requests = mixed_requests(LENGTHS[5:], spread=9, max_tokens=(40, 60))
    tokens = play(llm, requests, after_step=checker(llm))
    assert_right(slow_of(llm, setup).compare(watch.made), at_least=80)
    assert all(made.is_window_whole(setup.window) for made in watch.made)
    assert {len(made.drafts) for made in watch.made} >= {max(DEPTHS[name])}
    assert tokens == play(load(setup, speculative="off"), requests)


@pytest.mark.parametrize("setup", [FEW, WIDE], ids=["few", "wide"])
def test_a_pass_of_draft_layers_has_no_more_rows_than_a_step_or_a_window(load, setup):
    llm = load(setup)
    llm.core._drafts = Depths(DEPTHS["a pause"])
    drafter = llm.core.executor.worker.runner._drafter
    propose, propose_part, parts = drafter.propose, drafter._propose, []

    def watched(passes):
        parts.append([])
        propose(passes)

    def watched_part(passes):
        parts[-1].append([one.rows.count for one in passes])
        propose_part(passes)

    drafter.propose, drafter._propose = watched, watched_part
    play(llm, mixed_requests(LENGTHS[5:], spread=9, max_tokens=(40, 60)))
    assert max(map(len, parts)) > 1
    all_counts = [counts for step in parts for counts in step]
    assert max(sum(counts) for counts in all_counts if len(counts) > 1) <= setup.chunk
    assert max(map(max, all_counts)) <= drafter.ring_len


def test_rows_that_stay_as_they_were_guessed_change_drafts_and_no_text(load, slow_of):
    requests = mixed_requests(LENGTHS, spread=16)
    tokens, wrong = [], []
    for choices in ({"speculative": "off"}, {}, {"recompute_boundary": False}):
        llm = load(FEW, **choices)
        watch = DraftWatch(llm)
        tokens.append(play(llm, requests, after_step=checker(llm)))
        wrong.append(len(slow_of(llm, FEW).compare(watch.made).wrong))
    assert tokens[1] == tokens[0]
    assert tokens[2] == tokens[0]
    assert wrong[:2] == [0, 0]
    assert wrong[2] > 10


@pytest.fixture(scope="module")
def intact(load, slow_of):
    """What an engine made, drafts drawn where requests are sampled; its slow side."""
    llm = load(FEW, draft_choice="sampled")
    watch = DraftWatch(llm)
    play(llm, mixed_requests(LENGTHS[:8], spread=16))
    return SimpleNamespace(made=watch.made, slow=slow_of(llm, FEW))


# The one joins the layers, which the slow side does by itself; the other does not change the last
# row, and keys and values do not depend on what their own row sees.
@pytest.mark.parametrize(
    "mistake", sorted({*MISTAKES} - {"chained hidden states", "sees the next row"})
)
def test_drafts_of_another_definition_are_told_apart(intact, mistake):
    """Agreement with the slow layers is agreement with none of their neighbours."""
    assert len(intact.slow.compare(intact.made, mistake).wrong) > 10


def forget_the_final_norm(llm):
    worker = llm.core.executor.worker
    before = []
    last = worker.model.layers[-1]
    last.register_forward_hook(lambda _, inputs, out: before.append(out[0] + out[1].sum(dim=1)))
    change_rows(llm, lambda rows, hidden: (rows, before[-1]))


def shift_hidden_states(llm):
    change_rows(
        llm, lambda rows, hidden: ([replace(row, start=row.start + 1) for row in rows], hidden)
    )


def change_rows(llm, change):
    drafter = llm.core.executor.worker.runner._drafter
    remember = drafter.remember
    drafter.remember = lambda rows, hidden: remember(*change(rows, hidden))


def shift_later_positions(llm):
    """The pass that follows a prompt is as it should be."""
    inputs = llm.core.executor.worker.runner.inputs
    batch_of = inputs.batch_of

    def shifted(rows, tokens, *, kinds=None, **rest):
        batch = batch_of(rows, tokens, kinds=kinds, **rest)
        is_later = [row.count <= 6 for row in rows for _ in range(row.count)]
        if kinds != (AttentionKind.SLIDING,):
            return batch
        return replace(batch, positions=batch.positions + torch.tensor(is_later))

    inputs.batch_of = shifted


def end_a_row_early(llm):
    drafter = llm.core.executor.worker.runner._drafter
    propose = drafter.propose

    def shorter(passes):
        propose(
            [
                replace(one, rows=replace(one.rows, count=max(1, one.rows.count - 1)))
                for one in passes
            ]
        )

    drafter.propose = shorter


def guess_at_ends_of_chunks(llm):
    """Layers 1 and 2 do not look into the next chunk: they take token 0 for what is there."""
    drafter = llm.core.executor.worker.runner._drafter
    tokens_of = drafter._tokens

    def blind(passes, last_rows, layer, guesses):
        tokens = tokens_of(passes, last_rows, layer, guesses)
        rows = [
            row for one in passes for row in range(one.rows.start, one.rows.start + one.rows.count)
        ]
        cut = [row // FEW.chunk != (row + layer) // FEW.chunk for row in rows]
        return tokens.masked_fill(torch.tensor(cut), 0)

    drafter._tokens = blind


def keep_too_few_hidden_states(llm):
    drafter = llm.core.executor.worker.runner._drafter
    drafter._ring = drafter._ring[:, : FEW.window - 2].clone()


def skip_what_a_pause_left_out(llm):
    cache = llm.core._scheduler._cache
    draft_start = cache.draft_start

    def careless(pages, num_computed, num_layers):
        start, visible_from = draft_start(pages, num_computed, num_layers)
        return (num_computed - 2, 0) if pages.num_draft_layers else (start, visible_from)

    cache.draft_start = careless


def ignore_what_follows_a_page(llm):
    """Rows that were computed with other tokens pass for those of this prompt."""
    cached = llm.core._scheduler._cache._prefix
    find = cached.find

    def careless(chain):
        for page, entry in enumerate(find(chain).entries):
            end = (page + 1) * chain.page_size
            entry.drafted = tuple(chain.token_ids[end : end + len(entry.drafted)])
        return find(chain)

    cached.find = careless


BUGS = [
    forget_the_final_norm,
    shift_hidden_states,
    shift_later_positions,
    end_a_row_early,
    guess_at_ends_of_chunks,
    keep_too_few_hidden_states,
    skip_what_a_pause_left_out,
    ignore_what_follows_a_page,
]


@pytest.fixture(scope="module")
def all_kinds():
    """Requests, and depths of their steps, for all that an engine can do wrong."""
    return {**related_requests(FEW.page_size), **mixed_requests(LENGTHS[6:10], spread=50)}


@pytest.fixture(scope="module")
def plain_tokens(load, all_kinds):
    return play(load(FEW, speculative="off"), all_kinds)


@pytest.mark.parametrize("bug", [None, *BUGS], ids=lambda bug: bug and bug.__name__)
def test_a_bug_shows_in_the_drafts_and_not_in_the_text(load, slow_of, all_kinds, plain_tokens, bug):
    # Half of the drafts are drawn: then what they were drawn from shows the least error.
    llm = load(FEW, draft_choice="sampled")
    llm.core._drafts = Depths([3] * 30 + [0] * 12 + [3] * 8 + [1, 2])
    if bug is not None:
        bug(llm)
    watch = DraftWatch(llm)
    tokens = play(llm, all_kinds)
    for name, (_, _, params) in all_kinds.items():
        # The text of a seed is another with drawn drafts.
        assert tokens[name] == plain_tokens[name] or not params.is_greedy
    num_wrong = len(slow_of(llm, FEW).compare(watch.made).wrong)
    assert num_wrong > 10 if bug else num_wrong == 0


def random_setup(draw):
    page_size = draw.choice((2, 4, 8, 16))
    max_num_seqs = draw.randint(1, 8)
    return Setup(
        page_size=page_size,
        window=draw.randint(4, 40),
        chunk=draw.randint(max_num_seqs, 64),
        max_num_seqs=max_num_seqs,
        num_pages=draw.choice((None, 150 // page_size + draw.randint(0, 20))),
    )


@pytest.mark.parametrize(
    "seeds",
    [
        range(3),
        *(pytest.param(range(n, n + 50), marks=pytest.mark.prove) for n in range(3, 1003, 50)),
    ],
)
def test_any_traffic_on_any_engine(load, slow_of, seeds):
    for seed in seeds:
        draw = random.Random(seed)
        setup = random_setup(draw)
        llm = load(
            setup,
            prefix_caching=draw.random() < 0.8,
            max_draft_tokens=draw.choice((1, 2, 3, 3, 3)),
            draft_choice=draw.choice(("likeliest", "sampled")),
        )
        if draw.random() < 0.5:
            llm.core._drafts = Depths(draw.choices(range(llm.core._drafts._max_depth + 1), k=50))
        watch = DraftWatch(llm)
        ended = random_traffic(llm, draw)
        assert slow_of(llm, setup).compare(watch.made).wrong == [], seed
        plain = load(replace(setup, num_pages=None), speculative="off", prefix_caching=False)
        outputs = plain.generate(
            [prompt for prompt, _, _ in ended.values()], [params for _, params, _ in ended.values()]
        )
        for (_, params, tokens), output in zip(ended.values(), outputs, strict=True):
            if params.is_greedy or llm.config.speculative.draft_choice == "likeliest":
                assert tokens == output.token_ids, seed

"""The rules of the scheduler, one example each. Pages of 4 tokens, a window of 8."""

import pytest

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.cache.manager import CacheManager
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import ContextLengthError, QueueFullError, RequestError
from mimo_engine.messages import NewRequest, TokenLogprobs, TokenOutput
from mimo_engine.scheduler.plan import PageRun, RowResult, StepPlan, StepResult
from mimo_engine.scheduler.scheduler import Scheduler

EOS = 99


def make(
    *,
    num_full: int = 64,
    num_sliding: int = 64,
    max_num_seqs: int = 4,
    budget: int = 16,
    max_model_len: int = 100,
    max_queue_len: int = 100,
) -> Scheduler:
    layout = CacheLayout(
        page_size=4, num_full_pages=num_full, num_sliding_pages=num_sliding, window=8
    )
    config = SchedulerConfig(
        max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_queue_len=max_queue_len
    )
    return Scheduler(
        config,
        CacheManager(layout, prefix_caching=True),
        max_model_len=max_model_len,
        eos_token_ids=(EOS,),
        seed=0,
    )


def add(scheduler: Scheduler, request_id: str, prompt: list[int] | int, **params) -> None:
    """A request; a prompt given as a length is unlike every other one."""
    if isinstance(prompt, int):
        prompt = [1000 + 100 * len(scheduler._requests) + i for i in range(prompt)]
    params = {"max_tokens": None} | params
    scheduler.add(
        NewRequest(request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(**params))
    )


def result_of(plan: StepPlan, token_id: int = 1) -> StepResult:
    return StepResult(
        rows=tuple(RowResult(token_ids=(token_id,) if row.samples else ()) for row in plan.rows)
    )


def step(scheduler: Scheduler, token_id: int = 1) -> tuple[StepPlan, list[TokenOutput]]:
    plan = scheduler.plan()
    assert plan is not None
    return plan, scheduler.apply(plan, result_of(plan, token_id))


def shape(plan: StepPlan) -> list[tuple[int, int, int]]:
    return [(row.slot, row.start, row.num_tokens) for row in plan.rows]


def test_an_idle_scheduler_plans_nothing():
    scheduler = make()
    assert scheduler.plan() is None
    assert not scheduler.has_work


def test_decode_rows_come_first_and_chunks_fill_the_budget():
    scheduler = make()
    add(scheduler, "a", 10)
    add(scheduler, "b", 30)
    add(scheduler, "c", 3)
    assert shape(step(scheduler)[0]) == [(0, 0, 10), (1, 0, 6)]
    assert shape(step(scheduler)[0]) == [(0, 10, 1), (1, 6, 15)]
    assert shape(step(scheduler)[0]) == [(0, 11, 1), (1, 21, 9), (2, 0, 3)]
    assert shape(step(scheduler)[0]) == [(0, 12, 1), (1, 30, 1), (2, 3, 1)]


def test_a_row_samples_when_it_ends_with_the_last_known_token():
    scheduler = make()
    add(scheduler, "a", 20)
    plan, outputs = step(scheduler)
    assert [row.samples for row in plan.rows] == [False]
    assert outputs == []
    plan, outputs = step(scheduler)
    assert [row.samples for row in plan.rows] == [True]
    assert [output.token_ids for output in outputs] == [[1]]


def test_a_plan_tells_new_pages_once():
    scheduler = make()
    add(scheduler, "a", 7)
    plan, _ = step(scheduler)
    assert plan.rows[0].full == PageRun(0, (0, 1))
    assert plan.rows[0].sliding == PageRun(0, (0, 1))
    assert step(scheduler)[0].rows[0].full.pages == ()
    assert step(scheduler)[0].rows[0].full == PageRun(2, (2,))


def test_an_admission_says_all_that_a_slot_needs():
    scheduler = make()
    add(scheduler, "a", [5, 6], seed=3, stop_token_ids=(4,), min_tokens=1)
    admission = step(scheduler)[0].admissions[0]
    assert admission.slot == 0
    assert admission.token_ids == (5, 6)
    assert admission.num_prompt_tokens == 2
    assert admission.sample_seed == 3
    assert admission.stop_ids == (EOS, 4)
    assert admission.params.min_tokens == 1


def test_seeds_depend_on_the_arrival_alone():
    seeds = []
    for others in (0, 3):
        scheduler = make()
        add(scheduler, "a", 3)
        for index in range(others):
            add(scheduler, f"other {index}", 3)
        seeds.append(step(scheduler)[0].admissions[0].sample_seed)
        admissions = scheduler.plan().admissions
        assert len({admission.sample_seed for admission in admissions}) == len(admissions)
    assert seeds[0] == seeds[1]


def test_slots_are_reused_lowest_first():
    scheduler = make(max_num_seqs=3)
    for name in "abc":
        add(scheduler, name, 2)
    step(scheduler)
    scheduler.abort("b")
    scheduler.abort("a")
    add(scheduler, "d", 2)
    add(scheduler, "e", 2)
    assert [admission.slot for admission in step(scheduler)[0].admissions] == [0, 1]


def test_a_stop_token_is_part_of_the_output_and_named():
    scheduler = make()
    add(scheduler, "a", 3, stop_token_ids=(7,))
    assert step(scheduler)[1][0].finish_reason is None
    (output,) = step(scheduler, 7)[1]
    assert (output.token_ids, output.finish_reason, output.stop_token_id) == ([7], "stop", 7)
    assert not scheduler.has_work
    assert scheduler.plan() is None


def test_eos_ends_a_request_unless_it_is_ignored():
    scheduler = make()
    add(scheduler, "a", 3)
    add(scheduler, "b", 3, ignore_eos=True)
    outputs = step(scheduler, EOS)[1]
    assert [output.finish_reason for output in outputs] == ["stop", None]


def test_a_stop_id_before_min_tokens_does_not_end_a_request():
    scheduler = make()
    add(scheduler, "a", 3, min_tokens=2)
    assert step(scheduler, EOS)[1][0].finish_reason is None
    assert step(scheduler, EOS)[1][0].finish_reason is None
    assert step(scheduler, EOS)[1][0].finish_reason == "stop"


def test_max_tokens_and_the_context_end_a_request_by_length():
    scheduler = make(max_model_len=10)
    add(scheduler, "a", 3, max_tokens=2)
    add(scheduler, "b", 8, max_tokens=50)
    assert [output.finish_reason for output in step(scheduler)[1]] == [None, None]
    assert [output.finish_reason for output in step(scheduler)[1]] == ["length", "length"]


def test_the_next_turn_finds_prompt_and_answer_in_the_cache():
    scheduler = make(budget=64)
    prompt = list(range(200, 214))
    add(scheduler, "a", prompt, max_tokens=8)
    answer = []
    for token_id in range(300, 308):
        answer += step(scheduler, token_id)[1][0].token_ids
    # 21 of the 22 tokens have K and V: five whole pages.
    add(scheduler, "b", [*prompt, *answer, 9, 9])
    plan, outputs = step(scheduler)
    assert shape(plan) == [(0, 20, 4)]
    assert outputs[0].num_cached_tokens == 20
    assert step(scheduler)[1][0].num_cached_tokens == 0
    stats = scheduler.stats()
    assert (stats.prefix_query_tokens, stats.prefix_hit_tokens) == (14 + 24, 20)


def test_a_request_that_wants_prompt_logprobs_computes_every_row():
    scheduler = make(budget=8)
    prompt = list(range(200, 212))
    add(scheduler, "a", prompt, max_tokens=1)
    step(scheduler)
    step(scheduler)
    add(scheduler, "b", prompt, prompt_logprobs=0)
    entries = [TokenLogprobs(token_id, -1.0, 1, ()) for token_id in prompt[1:]]
    plan = scheduler.plan()
    assert shape(plan) == [(0, 0, 8)]
    done = RowResult(prompt_logprobs=tuple(entries[:8]))
    assert scheduler.apply(plan, StepResult(rows=(done,))) == []
    plan = scheduler.plan()
    done = RowResult(token_ids=(1,), prompt_logprobs=tuple(entries[8:]))
    (output,) = scheduler.apply(plan, StepResult(rows=(done,)))
    assert output.prompt_logprobs == [None, *entries]
    assert output.num_cached_tokens == 0
    assert step(scheduler)[1][0].prompt_logprobs is None


def test_logprobs_go_with_their_tokens():
    scheduler = make()
    add(scheduler, "a", 3, logprobs=1)
    plan = scheduler.plan()
    entry = TokenLogprobs(1, -0.5, 1, ((1, -0.5),))
    (output,) = scheduler.apply(
        plan, StepResult(rows=(RowResult(token_ids=(1,), logprobs=(entry,)),))
    )
    assert output.logprobs == [entry]


def test_the_youngest_is_preempted_and_comes_back_with_its_tokens():
    # Ten pages hold two requests of 20 tokens.
    scheduler = make(num_full=10, max_model_len=40, budget=40)
    add(scheduler, "a", 15, max_tokens=10)
    add(scheduler, "b", 15)
    add(scheduler, "c", 2)
    for _ in range(6):
        assert len(step(scheduler)[0].rows) == 2
    assert scheduler.stats().num_waiting == 1
    add(scheduler, "d", 2)
    while not scheduler.stats().num_preemptions:
        plan, _ = step(scheduler)
    assert len(plan.rows) == 1
    assert scheduler.stats().num_waiting == 3
    while not plan.admissions:
        plan, _ = step(scheduler)
    # "a" has run to its end; "b" is first in the queue, before "c" and "d", which came later.
    first, *others = plan.admissions
    assert first.num_prompt_tokens == 15
    assert len(first.token_ids) == 21
    assert [admission.num_prompt_tokens for admission in others] == [2, 2]
    # "a" took one of the five pages that "b" had left in the prefix cache: the last one.
    assert plan.rows[0].start == 16


def test_a_preempted_request_does_not_resend_prompt_logprobs():
    scheduler = make(num_full=10, max_model_len=40, budget=40)
    add(scheduler, "a", 15)
    add(scheduler, "b", 15, prompt_logprobs=0)
    sent = []
    admitted = 0
    while scheduler.has_work:
        plan = scheduler.plan()
        admitted += sum(a.params.prompt_logprobs is not None for a in plan.admissions)
        wants = {a.slot for a in plan.admissions if a.params.prompt_logprobs is not None}
        rows = [
            RowResult(
                token_ids=(1,),
                prompt_logprobs=tuple(
                    TokenLogprobs(i, 0.0, 1, ()) for i in range(row.start + 1, 15)
                )
                if row.slot in wants
                else (),
            )
            for row in plan.rows
        ]
        for output in scheduler.apply(plan, StepResult(rows=tuple(rows))):
            if output.prompt_logprobs is not None:
                sent.append(output.prompt_logprobs)
    assert admitted == 2
    assert len(sent) == 1
    assert len(sent[0]) == 15


def test_a_newcomer_waits_until_its_whole_prompt_fits():
    scheduler = make(num_full=10, max_model_len=40, budget=40)
    add(scheduler, "a", 20)
    add(scheduler, "b", 20)
    assert shape(step(scheduler)[0]) == [(0, 0, 20)]
    for _ in range(5):
        assert len(step(scheduler)[0].rows) == 1
    scheduler.abort("a")
    assert shape(step(scheduler)[0]) == [(0, 0, 20)]


def test_nobody_overtakes_the_head_of_the_queue():
    scheduler = make(num_full=10, max_model_len=40, budget=40)
    add(scheduler, "a", 20)
    add(scheduler, "b", 20)
    add(scheduler, "c", 1)
    for _ in range(5):
        assert len(step(scheduler)[0].rows) == 1


def test_the_head_of_the_queue_may_join_a_prompt_it_shares():
    scheduler = make(num_full=10, max_model_len=40, budget=64)
    prompt = list(range(200, 224))
    add(scheduler, "a", prompt)
    add(scheduler, "b", prompt)
    assert shape(step(scheduler)[0]) == [(0, 0, 24)]
    assert shape(step(scheduler)[0]) == [(0, 24, 1), (1, 20, 4)]


def test_an_abort_takes_effect_at_once_where_nothing_is_in_flight():
    scheduler = make(max_num_seqs=1)
    add(scheduler, "a", 3)
    add(scheduler, "b", 3)
    step(scheduler)
    assert scheduler.abort("b")
    assert scheduler.stats().num_waiting == 0
    assert scheduler.abort("a")
    assert not scheduler.abort("a")
    assert not scheduler.abort("never seen")
    assert scheduler.stats().num_running == 0
    assert scheduler.stats().full_pages_used == 0


def test_an_abort_in_flight_keeps_the_pages_until_the_result_is_in():
    scheduler = make()
    add(scheduler, "a", 3)
    add(scheduler, "b", 3)
    plan = scheduler.plan()
    assert scheduler.abort("a")
    assert not scheduler.abort("a")
    assert scheduler.stats().full_pages_used == 2
    assert scheduler.has_work
    outputs = scheduler.apply(plan, result_of(plan))
    assert [output.request_id for output in outputs] == ["b"]
    assert scheduler.stats().full_pages_used == 1
    assert shape(scheduler.plan()) == [(1, 3, 1)]


def test_an_id_is_free_again_when_its_request_is_gone():
    scheduler = make()
    add(scheduler, "a", 3, max_tokens=1)
    with pytest.raises(RequestError, match="in use"):
        add(scheduler, "a", 3)
    step(scheduler)
    add(scheduler, "a", 3)


def test_requests_that_cannot_run_are_refused():
    scheduler = make(max_model_len=20, max_queue_len=2)
    with pytest.raises(RequestError, match="empty"):
        add(scheduler, "a", [])
    with pytest.raises(ContextLengthError, match=r"20 tokens.*context of 20"):
        add(scheduler, "a", 20)
    add(scheduler, "a", 19)
    add(scheduler, "b", 1)
    with pytest.raises(QueueFullError, match="--max-queue-len"):
        add(scheduler, "c", 1)


def test_a_context_that_the_cache_cannot_hold_is_our_own_error():
    with pytest.raises(AssertionError):
        make(num_full=10, max_model_len=41)


def test_two_plans_without_a_result_between_are_our_own_error():
    scheduler = make()
    add(scheduler, "a", 3)
    scheduler.plan()
    with pytest.raises(AssertionError):
        scheduler.plan()


def test_stats_count_live_pages_of_both_groups():
    scheduler = make()
    add(scheduler, "a", 14, max_tokens=1)
    plan = scheduler.plan()
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting) == (1, 0)
    assert (stats.full_pages_used, stats.full_pages_total) == (4, 64)
    assert (stats.sliding_pages_used, stats.sliding_pages_total) == (4, 64)
    scheduler.apply(plan, result_of(plan))
    assert scheduler.stats().full_pages_used == scheduler.stats().sliding_pages_used == 0


def test_a_step_that_was_lost_ends_its_requests_and_no_other():
    scheduler = make(max_num_seqs=2)
    for request_id in "abc":
        add(scheduler, request_id, 5)
    scheduler.plan()
    scheduler.discard()
    stats = scheduler.stats()
    assert (stats.num_running, stats.num_waiting, stats.full_pages_used) == (0, 1, 0)
    assert not scheduler.abort("a")
    plan = scheduler.plan()
    [output] = scheduler.apply(plan, result_of(plan))
    assert output.request_id == "c"
    add(scheduler, "a", 5)

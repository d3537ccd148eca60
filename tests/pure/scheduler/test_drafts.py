"""The rules of drafts, one example each. Pages of 4 tokens, a window of 12, 3 draft layers."""

from __future__ import annotations

import pytest
from simulated_worker import Setup

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import NewRequest, TokenOutput
from mimo_engine.scheduler.plan import RowResult, StepPlan, StepResult, StepRow
from mimo_engine.scheduler.scheduler import Scheduler

STOP = 7


def make(
    num_full: int = 64,
    num_sliding: int = 64,
    *,
    page_size: int = 4,
    max_num_seqs: int = 4,
    budget: int = 64,
    max_model_len: int = 100,
    recompute_boundary: bool = True,
) -> Scheduler:
    setup = Setup(
        page_size=page_size,
        num_full_pages=num_full,
        num_sliding_pages=num_sliding,
        window=12,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        prefix_caching=True,
        num_draft_layers=3,
        recompute_boundary=recompute_boundary,
    )
    return setup.scheduler()[0]


def add(scheduler: Scheduler, request_id: str, prompt: list[int] | int, **params) -> None:
    """A request; a prompt given as a length is unlike every other one."""
    if isinstance(prompt, int):
        prompt = [1000 + 100 * len(scheduler._requests) + i for i in range(prompt)]
    params = {"max_tokens": None, "stop_token_ids": (STOP,)} | params
    scheduler.add(
        NewRequest(request_id=request_id, prompt_token_ids=prompt, params=SamplingParams(**params))
    )


def step(
    scheduler: Scheduler, *tokens: tuple[int, ...], depth: int = 3
) -> tuple[StepPlan, list[TokenOutput]]:
    """tokens: of the first rows that sample, in order; one token of each other one."""
    plan = scheduler.plan(depth)
    assert plan is not None
    left = list(tokens)
    results = []
    for row in plan.rows:
        token_ids = (left.pop(0) if left else (1,)) if row.samples else ()
        results.append(RowResult(token_ids=token_ids))
    return plan, scheduler.apply(plan, StepResult(rows=tuple(results)))


def drafts(plan: StepPlan) -> list[tuple[int, int]]:
    return [(row.num_drafts, row.num_proposals) for row in plan.rows]


def draft_rows(row: StepRow) -> tuple[int, int]:
    return row.draft_start, row.draft_visible_from


def test_drafts_are_made_with_a_token_and_verified_in_the_next_step():
    scheduler = make()
    add(scheduler, "a", 5)
    assert drafts(step(scheduler, depth=2)[0]) == [(0, 2)]
    plan, outputs = step(scheduler, (1, 2, 3), depth=3)
    assert drafts(plan) == [(2, 3)]
    assert (plan.num_tokens, plan.rows[0].num_tokens) == (3, 1)
    assert outputs[0].token_ids == [1, 2, 3]
    assert step(scheduler)[0].rows[0].start == 8


def test_a_step_without_drafts_leaves_the_slot_without_any():
    scheduler = make()
    add(scheduler, "a", 5)
    step(scheduler)
    assert drafts(step(scheduler, depth=0)[0]) == [(0, 0)]
    assert drafts(step(scheduler)[0]) == [(0, 3)]
    assert drafts(step(scheduler, depth=1)[0]) == [(1, 1)]
    assert drafts(step(scheduler)[0]) == [(1, 3)]


def test_a_chunk_of_a_prompt_has_no_drafts():
    scheduler = make(budget=8)
    add(scheduler, "a", 12)
    assert drafts(step(scheduler)[0]) == [(0, 0)]
    assert drafts(step(scheduler)[0]) == [(0, 3)]


def test_only_requests_whose_prompt_is_computed_are_decoding():
    scheduler = make(budget=8, max_num_seqs=2)
    for name in "abc":
        add(scheduler, name, 6)
    numbers = []
    for _ in range(3):
        numbers.append(scheduler.num_decoding)
        step(scheduler)
    # The first step computes "a" and 2 tokens of "b", the second one the rest of "b".
    assert numbers == [0, 1, 2]


def test_a_late_row_keeps_its_drafts():
    scheduler = make()
    add(scheduler, "a", 5)
    step(scheduler)
    plan, outputs = step(scheduler, ())
    assert outputs == []
    again, _ = step(scheduler, (1, 2))
    assert (again.rows[0].start, again.rows[0].num_drafts) == (plan.rows[0].start, 3)


def test_nothing_is_drafted_past_the_end():
    scheduler = make()
    add(scheduler, "a", 5, max_tokens=5)
    seen = []
    while scheduler.has_work:
        seen += drafts(step(scheduler)[0])
    # Tokens 1 to 5: behind the fourth, one is left, and that is sampled without a draft.
    assert seen == [(0, 3), (3, 2), (2, 1), (1, 0), (0, 0)]


def test_a_stop_among_accepted_drafts_ends_the_text_there():
    scheduler = make()
    add(scheduler, "a", 5)
    step(scheduler)
    _, (output,) = step(scheduler, (1, STOP, 3, 4))
    assert (output.token_ids, output.finish_reason) == ([1, STOP], "stop")
    assert not scheduler.has_work


def test_an_output_is_found_by_the_row_that_it_came_of():
    scheduler = make()
    for name in "abcd":
        add(scheduler, name, 5, max_tokens=3 if name == "c" else None)
    step(scheduler)
    plan = scheduler.plan(3)
    scheduler.abort("d")
    rows = [(1, 2), (1, STOP, 3, 4), (1, 2, 3, 4), (1, 2)]
    result = StepResult(rows=tuple(RowResult(token_ids=token_ids) for token_ids in rows))
    assert scheduler.row_ids() == list("abcd")
    outputs = scheduler.apply(plan, result)
    assert [(output.request_id, len(output.token_ids)) for output in outputs] == [
        (name, 2) for name in "abc"
    ]


def test_a_preempted_request_comes_back_without_drafts():
    scheduler = make(num_full=10, max_model_len=40)
    add(scheduler, "a", 15)
    add(scheduler, "b", 15)
    while not scheduler.stats().num_preemptions:
        step(scheduler)
    scheduler.abort("a")
    plan, _ = step(scheduler)
    assert len(plan.admissions) == 1
    assert drafts(plan) == [(0, 3)]


def test_rows_whose_token_was_a_guess_are_computed_again():
    for recompute_boundary, starts in ((True, [0, 3, 5]), (False, [0, 5, 7])):
        scheduler = make(recompute_boundary=recompute_boundary)
        add(scheduler, "a", 5)
        rows = [step(scheduler, tokens)[0].rows[0] for tokens in ((1,), (1, 2), (1,))]
        assert [draft_rows(row) for row in rows] == [(start, 0) for start in starts]


def test_a_short_pause_is_made_up_and_after_a_long_one_the_window_is_computed():
    for num_steps, expected in ((12, (20, 8)), (13, (21, 21))):
        scheduler = make()
        add(scheduler, "a", 20)
        # The window before position 20 is 8 ... 19.
        assert draft_rows(step(scheduler, depth=1)[0].rows[0]) == (8, 8)
        for _ in range(num_steps - 1):
            step(scheduler, depth=0)
        assert draft_rows(step(scheduler, depth=1)[0].rows[0]) == expected


def test_more_layers_begin_with_a_window_and_fewer_go_on():
    scheduler = make()
    add(scheduler, "a", 20)
    step(scheduler, depth=2)
    assert draft_rows(step(scheduler, depth=1)[0].rows[0]) == (19, 8)
    assert draft_rows(step(scheduler, depth=2)[0].rows[0]) == (10, 10)


def answer(scheduler: Scheduler, num_tokens: int, last: int) -> list[int]:
    """One token a step, none of them a draft's."""
    tokens = [*range(300, 300 + num_tokens - 1), last]
    for token_id in tokens:
        step(scheduler, (token_id,))
    return tokens


def next_turn(num_tokens: int, page_size: int, **params) -> tuple[StepRow, int]:
    """(the first row of a turn that follows an answer of so many tokens, the turn's tokens)."""
    scheduler = make(page_size=page_size)
    prompt = list(range(200, 236))
    add(scheduler, "a", prompt, **params)
    text = prompt + answer(scheduler, num_tokens, STOP)
    assert not scheduler.has_work
    add(scheduler, "b", [*text, 9, 9])
    row = step(scheduler)[0].rows[0]
    assert row.start >= len(text) - 2 * page_size
    assert row.draft_start <= max(row.start, len(text) + 2 - 12)
    return row, len(text) + 2


@pytest.mark.parametrize("page_size", [2, 4, 8])
@pytest.mark.parametrize("num_tokens", range(8, 24))
def test_the_next_turn_sees_draft_rows_of_a_whole_window(num_tokens, page_size):
    row, end = next_turn(num_tokens, page_size)
    # The first turn computed them from position 24 on.
    assert row.draft_visible_from <= max(24, end - 12)


def test_the_next_turn_sees_them_after_an_answer_that_was_cut_off_too():
    turns = [next_turn(num_tokens, 8, max_tokens=num_tokens) for num_tokens in range(8, 24)]
    hidden = [(row.start, row.draft_visible_from, end) for row, end in turns]
    assert all(visible_from <= max(24, end - 12) for _, visible_from, end in hidden), hidden


def test_drafts_do_not_take_the_last_page_from_another_request():
    scheduler = make(num_full=6, max_model_len=24)
    add(scheduler, "a", 10)
    add(scheduler, "b", 8)
    assert len(step(scheduler)[0].rows) == 2
    # 3 and 2 of the 6 pages are used. The token of "b" needs another one, that of "a" none, but
    # "a" has 3 drafts.
    plan, _ = step(scheduler)
    assert [(row.start, row.num_tokens) for row in plan.rows] == [(10, 1), (8, 1)]
    assert scheduler.stats().num_preemptions == 0


def test_no_draft_is_made_that_the_next_step_has_no_budget_for():
    scheduler = make(budget=6)
    for name in "abc":
        add(scheduler, name, 2)
    step(scheduler)
    seen = [drafts(step(scheduler)[0]) for _ in range(3)]
    assert seen == [[(3, 3), (0, 0), (0, 0)]] * 3
    scheduler.abort("a")
    # There is room for four, of which none has been made yet.
    seen = [drafts(step(scheduler)[0]) for _ in range(2)]
    assert seen == [[(0, 3), (0, 1)], [(3, 3), (1, 1)]]


def test_drafts_leave_budget_for_the_head_of_the_queue():
    scheduler = make(budget=4)
    add(scheduler, "a", 3)
    step(scheduler)
    add(scheduler, "b", 3)
    for _ in range(20):
        if len(step(scheduler)[0].rows) == 2:
            return
    pytest.fail("a slot, pages and budget were free for 20 steps")


def test_the_head_of_the_queue_is_asked_again_when_rejected_drafts_gave_pages_back():
    scheduler = make(num_full=10, num_sliding=40, page_size=1, max_model_len=10)
    add(scheduler, "a", 2)
    step(scheduler)
    add(scheduler, "b", 4)
    # The token and three drafts of "a" leave 4 pages: "b" needs 4, and one for the next token.
    # When the drafts have been rejected, 6 are left.
    assert 2 in [len(step(scheduler, depth=depth)[0].rows) for depth in (3, 0)]

"""Steps that are planned before the result of the one in flight: the same texts, sound pages."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worker import Luck
from traffic import CROWDED, Driver, check_outputs, random_operations, setups

from mimo_engine.config.sampling import SamplingParams


def plain(operations):
    """The same, but that all requests may be foreseen."""
    kept = ("max_tokens", "ignore_eos", "stop_token_ids")
    for operation, argument in operations:
        if operation in ("add", "go on"):
            *rest, params = argument
            argument = (*rest, {name: params[name] for name in kept if name in params})
        yield operation, argument


@given(
    st.booleans().flatmap(lambda with_drafts: setups(with_drafts=with_drafts)),
    st.integers(0, 2**32),
    st.sampled_from([0.5, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_any_traffic_has_the_texts_it_has_without(setup, seed, ahead):
    operations = list(plain(random_operations(random.Random(seed), 40)))
    driver = Driver(setup, seed=seed, ahead=ahead, luck=Luck(broken=0.02))
    check_outputs(driver.run(operations), setup)


@pytest.mark.parametrize("num_draft_layers", [0, 3])
def test_most_steps_of_a_steady_batch_are_planned_ahead(num_draft_layers):
    setup = replace(
        CROWDED, num_full_pages=200, num_sliding_pages=200, num_draft_layers=num_draft_layers
    )
    driver = Driver(setup, depth=num_draft_layers, ahead=1.0)
    for number in range(4):
        driver.add([number, 1, 2], {"max_tokens": 40, "ignore_eos": True})
    trace = driver.run([])
    check_outputs(trace, setup)
    assert trace.num_ahead > (30 if not num_draft_layers else 8)


def test_nothing_is_foreseen_for_requests_that_need_the_host():
    driver = Driver(CROWDED, ahead=1.0)
    driver.add([1, 2, 3], {"max_tokens": 20, "ignore_eos": True, "logprobs": 0})
    assert driver.run([]).num_ahead == 0
    assert SamplingParams(temperature=0.7, top_k=5, seed=1).is_plain
    assert not SamplingParams(min_tokens=2).is_plain
    assert not SamplingParams(logit_bias={1: 1.0}).is_plain


def test_a_newcomer_that_has_a_slot_is_not_kept_waiting():
    driver = Driver(CROWDED)
    driver.add([1, 2, 3], {"max_tokens": 30, "ignore_eos": True})
    driver.step()
    plan = driver.plan(0)
    result = driver.worker.run(plan)
    driver.add([4, 5, 6], {"max_tokens": 3, "ignore_eos": True})
    assert driver.plan_ahead() is None
    driver.apply(plan, result)
    assert len(driver.plan(0).rows) == 2


def test_an_abort_of_a_request_with_two_rows_at_the_workers_waits_for_both():
    driver = Driver(CROWDED)
    driver.add([1, 2, 3], {"max_tokens": 30, "ignore_eos": True})
    driver.step()
    first = driver.plan(0)
    result = driver.worker.run(first)
    second = driver.plan_ahead()
    driver.abort(0)
    driver.apply(first, result)
    assert driver.scheduler.stats().full_pages_used > 0
    driver.apply(second, driver.worker.run(second))
    assert driver.scheduler.stats().full_pages_used == 0
    assert not driver.scheduler.has_work


def test_an_interrupt_while_a_step_is_planned_ahead_leaves_no_request_in_flight(monkeypatch):
    driver = Driver(CROWDED)
    for prompt in ([1, 2, 3], [4, 5, 6]):
        driver.add(prompt, {"max_tokens": 30, "ignore_eos": True})
    driver.step()
    driver.plan(0)
    monkeypatch.setattr(driver.cache, "take_new_pages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.scheduler.plan_ahead()
    driver.discard()
    assert not driver.scheduler.has_work


def interrupted(_pages):
    raise KeyboardInterrupt

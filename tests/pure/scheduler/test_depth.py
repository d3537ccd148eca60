"""The controller of draft depth finds the best depth, and notices when it has become another."""

import math
import random
from itertools import pairwise

import pytest

from mimo_engine.scheduler.depth import DepthController

MAX_DEPTH = 3
DEPTHS = range(MAX_DEPTH + 1)
GOOD, FAIR, POOR, FAILING = (0.95, 0.93, 0.9), (0.7, 0.5, 0.3), (0.35, 0.2, 0.1), (0.0, 0.0, 0.0)
CATCH_UP = 0.5
"""What drafting costs once after depth 0, in steps; the controller supposes more."""


def flat(num_requests, depth):
    """A machine on which rows cost next to nothing."""
    return 0.01 * (1 + 0.02 * num_requests) * (1 + 0.05 * depth)


def by_rows(num_requests, depth):
    """Every row costs."""
    return 0.004 + 0.002 * num_requests * (1 + 1.1 * depth)


def experts(num_requests, depth):
    """Bytes of 8 experts of 256 a row, each read once, and of all the rest (mtp.md 6.4)."""
    touched = 256 * (1 - (1 - 8 / 256) ** (num_requests * (1 + depth)))
    return 0.0002 * (7.74 + 302.8 / 256 * touched + 1.65 * depth)


COSTS = [flat, by_rows, experts]


def num_tokens(rates, depth):
    """Expected of a step that verifies so many drafts."""
    return 1 + sum(math.prod(rates[: k + 1]) for k in range(depth))


def best_depth(rates, cost, num_requests):
    return max(DEPTHS, key=lambda depth: num_tokens(rates, depth) / cost(num_requests, depth))


def as_measured(size, depth):
    return 1.0


class Simulation:
    """Requests that accept drafts at random, and steps that take a noisy time.

    wrong: the factor by which a calibration is wrong, None: nothing is calibrated. growth: by which
    part of the first step's time each step is slower than the one before, at all depths.
    """

    def __init__(
        self, cost, *, wrong=as_measured, noise=0.05, hiccups=0.0, growth=0.0, controller=None
    ):
        self.controller = controller or DepthController(MAX_DEPTH)
        self.cost, self.noise, self.hiccups, self.growth = cost, noise, hiccups, growth
        self.rng = random.Random(1)
        self.held = 0
        self.chosen = []
        for size in (1, 4, 16) if wrong else ():
            for depth in DEPTHS:
                self.controller.calibrate(size, depth, cost(size, depth) * wrong(size, depth))

    def run(self, rates, num_steps, num_requests=1):
        """The time that the best fixed depth takes for the same tokens, over the time taken.

        num_requests: of all steps, or of each.
        """
        sizes = [num_requests] * num_steps if isinstance(num_requests, int) else num_requests
        needed, taken = [0.0] * len(DEPTHS), 0.0
        for size in sizes[:num_steps]:
            slower = 1 + self.growth * len(self.chosen)
            verified, seconds = self.step(rates, size, slower)
            taken += seconds
            tokens = num_tokens(rates, verified)
            for depth in DEPTHS:
                alone = slower * self.cost(size, depth)
                needed[depth] += alone * tokens / num_tokens(rates, depth)
        return min(needed) / taken

    def step(self, rates, num_requests, slower):
        depth = self.controller.choose(num_requests)
        self.chosen.append(depth)
        verified = min(self.held, depth)
        seconds = slower * self.cost(num_requests, depth)
        for _ in range(num_requests if verified else 0):
            accepted = 0
            while accepted < verified and self.rng.random() < rates[accepted]:
                accepted += 1
            self.controller.saw_drafts(verified, accepted)
        if verified == depth:
            # Uniform, of the standard deviation that is asked for.
            seen = seconds * (1 + self.noise * math.sqrt(3) * self.rng.uniform(-1, 1))
            seen *= 10 if self.rng.random() < self.hiccups else 1
            self.controller.saw_step(num_requests=num_requests, depth=depth, seconds=seen)
        if depth and not self.held:
            seconds += CATCH_UP * slower * self.cost(num_requests, 0)
        self.held = depth
        return verified, seconds

    @property
    def num_changes(self):
        return sum(before != after for before, after in pairwise(self.chosen))


def walk(num_steps, seed):
    """Batch sizes of 1 to 64 that come and go."""
    rng = random.Random(seed)
    log_size, sizes = 0.0, []
    for _ in range(num_steps):
        log_size = min(6.0, max(0.0, log_size + rng.gauss(0.01, 0.1)))
        sizes.append(round(2**log_size))
    return sizes


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rates", [GOOD, FAIR, POOR, FAILING])
@pytest.mark.parametrize("num_requests", [1, 4, 16, 48])
def test_it_comes_near_the_best_fixed_depth(cost, rates, num_requests):
    simulation = Simulation(cost)
    assert simulation.run(rates, 2000, num_requests) > 0.95
    assert simulation.num_changes < 80


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rates", [GOOD, FAIR, POOR, FAILING])
def test_it_follows_the_batch_size(cost, rates):
    assert Simulation(cost).run(rates, 2000, walk(2000, seed=1)) > 0.95


def test_all_depths_are_best_somewhere():
    found = {
        best_depth(rates, cost, size)
        for cost in COSTS
        for rates in (GOOD, FAIR, POOR, FAILING)
        for size in (1, 4, 16, 48)
    }
    assert found == set(DEPTHS)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("num_requests", [1, 8])
def test_drafts_that_always_fail_cost_next_to_nothing(cost, num_requests):
    simulation = Simulation(cost)
    assert simulation.run(FAILING, 3000, num_requests) > 0.98
    assert simulation.run(FAILING, 3000, num_requests) > 0.985


@pytest.mark.parametrize("cost", COSTS)
def test_another_workload_is_noticed_within_500_steps(cost):
    simulation = Simulation(cost)
    simulation.run(FAILING, 1500)
    for _ in range(2):
        simulation.run(GOOD, 500)
        assert simulation.run(GOOD, 500) > 0.92
        assert simulation.chosen[-500:].count(0) < 50
        assert simulation.run(GOOD, 500) > 0.95
        simulation.run(FAILING, 150)
        assert simulation.run(FAILING, 1000) > 0.97


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rates", [GOOD, FAIR, POOR])
def test_hiccups_change_nothing(cost, rates):
    simulation = Simulation(cost, hiccups=0.01)
    assert simulation.run(rates, 2000) > 0.95
    assert simulation.num_changes < 80


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rates", [GOOD, FAIR, POOR])
def test_a_machine_that_slows_down_says_nothing_of_depths(cost, rates):
    simulation = Simulation(cost, growth=1 / 1000)
    assert simulation.run(rates, 2000) > 0.95
    assert simulation.num_changes < 80


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("rates", [GOOD, FAIR])
def test_it_finds_out_costs_that_nobody_measured(cost, rates):
    assert Simulation(cost, wrong=None).run(rates, 2000, 4) > 0.95


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("factor", [0.5, 2])
@pytest.mark.parametrize("wrong_depth", DEPTHS)
def test_a_wrong_calibration_is_corrected(cost, factor, wrong_depth):
    simulation = Simulation(cost, wrong=lambda _, depth: factor if depth == wrong_depth else 1)
    simulation.run(FAIR, 1500)
    assert simulation.run(FAIR, 1000) > 0.95


@pytest.mark.parametrize("hiccup_at", range(3))
def test_of_calibrations_the_median_counts(hiccup_at):
    controller = DepthController(1)
    for depth in (0, 1):
        for index in range(3):
            controller.calibrate(1, depth, 9 if index == hiccup_at and depth == 0 else 1)
    controller.choose(1)
    assert controller.depth == 1
    assert controller.gain == pytest.approx(1.9)


@pytest.mark.parametrize("fixed", [0, 1, 3])
def test_a_fixed_depth_stays(fixed):
    simulation = Simulation(flat, controller=DepthController(MAX_DEPTH, fixed=fixed))
    simulation.run(FAIR, 200)
    assert set(simulation.chosen) == {fixed}


@pytest.mark.parametrize("max_depth", [0, 1])
def test_fewer_layers_do(max_depth):
    controller = DepthController(max_depth)
    simulation = Simulation(flat, wrong=None, controller=controller)
    simulation.run(GOOD, 200)
    assert max(simulation.chosen) == max_depth
    assert simulation.chosen[100:].count(max_depth) > 90


def test_the_same_measurements_give_the_same_depths():
    first, second = Simulation(experts), Simulation(experts)
    for simulation in (first, second):
        simulation.run(FAIR, 500, walk(500, seed=2))
    assert first.chosen == second.chosen


def test_steps_of_no_time_are_no_measurement():
    controller = DepthController(MAX_DEPTH)
    for _ in range(50):
        depth = controller.choose(1)
        controller.saw_step(num_requests=1, depth=depth, seconds=0.0)
    assert 0 <= controller.depth <= MAX_DEPTH


def test_what_it_tells_is_what_happens():
    simulation = Simulation(flat)
    simulation.run(GOOD, 1000)
    controller = simulation.controller
    assert controller.depth == 3
    assert controller.acceptance == pytest.approx(GOOD, abs=0.08)
    assert controller.acceptance_length == pytest.approx(num_tokens(GOOD, 3), abs=0.2)
    gain = num_tokens(GOOD, 3) * flat(1, 0) / flat(1, 3)
    assert controller.gain == pytest.approx(gain, rel=0.1)


def test_without_drafts_there_is_no_gain():
    simulation = Simulation(by_rows)
    simulation.run(FAILING, 300)
    assert simulation.controller.gain == 1
    assert max(simulation.controller.acceptance) < 0.6
    assert simulation.controller.acceptance_length < 1.1

"""The controller of draft depth finds the best depth, and notices when it has become another."""

import math
import random

import pytest

from mimo_engine.scheduler.depth import DepthController

MAX_DEPTH = 3
GOOD, FAIR, POOR, FAILING = (0.95, 0.93, 0.9), (0.7, 0.5, 0.3), (0.35, 0.2, 0.1), (0.0, 0.0, 0.0)


def flat(num_requests, depth):
    """A machine on which rows cost next to nothing."""
    return 0.01 * (1 + 0.02 * num_requests) * (1 + 0.05 * depth)


def by_rows(num_requests, depth):
    """Every row costs."""
    return 0.004 + 0.002 * num_requests * (1 + 1.1 * depth)


def experts(num_requests, depth):
    """Bytes of 8 experts of 256 a row, each read once, and of all the rest (mtp.md 6.4)."""
    touched = 256 * (1 - (1 - 8 / 256) ** (num_requests * (1 + depth)))
    return 0.0002 * (30 + touched) * (1 + 0.04 * depth)


def speed(rates, cost, num_requests, depth):
    """Tokens a second at a fixed depth."""
    tokens = 1 + sum(math.prod(rates[: k + 1]) for k in range(depth))
    return num_requests * tokens / cost(num_requests, depth)


class Simulation:
    """Requests that accept drafts at random, and steps that take a noisy time."""

    def __init__(self, cost, *, is_calibrated=True, noise=0.05, hiccups=0.0, controller=None):
        self.controller = controller or DepthController(MAX_DEPTH)
        self.cost, self.noise, self.hiccups = cost, noise, hiccups
        self.rng = random.Random(1)
        self.held = 0
        self.chosen = []
        if is_calibrated:
            for size in (1, 4, 16):
                for depth in range(MAX_DEPTH + 1):
                    self.controller.calibrate(size, depth, cost(size, depth))

    def run(self, rates, num_steps, num_requests=1):
        """Tokens a second, without the noise of the times."""
        tokens = seconds = 0.0
        for _ in range(num_steps):
            depth = self.controller.choose(num_requests)
            self.chosen.append(depth)
            verified = min(self.held, depth)
            took = self.cost(num_requests, depth)
            seconds += took
            for _ in range(num_requests):
                accepted = 0
                while accepted < verified and self.rng.random() < rates[accepted]:
                    accepted += 1
                tokens += 1 + accepted
                if verified:
                    self.controller.saw_drafts(verified, accepted)
            if verified == depth:
                took *= self.rng.uniform(1 - self.noise, 1 + self.noise)
                took *= 10 if self.rng.random() < self.hiccups else 1
                self.controller.saw_step(num_requests=num_requests, depth=depth, seconds=took)
            self.held = depth
        return tokens / seconds


@pytest.mark.parametrize("cost", [flat, by_rows, experts])
@pytest.mark.parametrize("rates", [GOOD, FAIR, POOR, FAILING])
@pytest.mark.parametrize("num_requests", [1, 4, 16, 48])
def test_it_comes_near_the_best_fixed_depth(cost, rates, num_requests):
    best = max(speed(rates, cost, num_requests, depth) for depth in range(MAX_DEPTH + 1))
    simulation = Simulation(cost)
    simulation.run(rates, 300, num_requests)
    assert simulation.run(rates, 1700, num_requests) > 0.95 * best


def test_all_depths_are_best_somewhere():
    best = {
        max(range(MAX_DEPTH + 1), key=lambda d, c=cost, r=rates, n=size: speed(r, c, n, d))
        for cost in (flat, by_rows, experts)
        for rates in (GOOD, FAIR, POOR, FAILING)
        for size in (1, 4, 16, 48)
    }
    assert best == {0, 1, 2, 3}


@pytest.mark.parametrize("cost", [flat, by_rows, experts])
def test_drafts_that_always_fail_cost_next_to_nothing(cost):
    simulation = Simulation(cost)
    assert simulation.run(FAILING, 3000) > 0.97 * speed(FAILING, cost, 1, 0)


def test_another_workload_is_noticed():
    simulation = Simulation(flat)
    for rates in (FAILING, GOOD, FAILING, GOOD):
        simulation.run(rates, 600)
        best = max(speed(rates, flat, 1, depth) for depth in range(MAX_DEPTH + 1))
        assert simulation.run(rates, 300) > 0.93 * best


def test_hiccups_change_nothing():
    simulation = Simulation(flat, hiccups=0.01)
    simulation.run(GOOD, 200)
    simulation.chosen.clear()
    simulation.run(GOOD, 2000)
    assert simulation.chosen.count(3) > 1900


def test_it_finds_out_costs_that_nobody_measured():
    best = max(speed(FAIR, by_rows, 4, depth) for depth in range(MAX_DEPTH + 1))
    simulation = Simulation(by_rows, is_calibrated=False)
    simulation.run(FAIR, 500, 4)
    assert simulation.run(FAIR, 1500, 4) > 0.95 * best


@pytest.mark.parametrize("fixed", [0, 1, 3])
def test_a_fixed_depth_stays(fixed):
    simulation = Simulation(flat, controller=DepthController(MAX_DEPTH, fixed=fixed))
    simulation.run(FAIR, 200)
    assert set(simulation.chosen) == {fixed}


@pytest.mark.parametrize("max_depth", [0, 1])
def test_fewer_layers_do(max_depth):
    controller = DepthController(max_depth)
    simulation = Simulation(flat, is_calibrated=False, controller=controller)
    simulation.run(GOOD, 200)
    assert max(simulation.chosen) == max_depth


def test_what_it_tells_is_what_happens():
    simulation = Simulation(flat)
    simulation.run(GOOD, 1000)
    controller = simulation.controller
    assert controller.depth == 3
    assert controller.acceptance == pytest.approx(GOOD, abs=0.08)
    length = 1 + 0.95 + 0.95 * 0.93 + 0.95 * 0.93 * 0.9
    assert controller.acceptance_length == pytest.approx(length, abs=0.2)
    gain = speed(GOOD, flat, 1, 3) / speed(GOOD, flat, 1, 0)
    assert controller.gain == pytest.approx(gain, rel=0.1)

"""How many tokens to draft in each step of speculative decoding.

Drafting d tokens turns a step of one token a request into one of

    tokens(d) = 1 + a_1 + a_1 a_2 + ... + a_1 ... a_d

tokens, a_k the chance that draft k is right when those before it were, and makes it dearer: more
rows touch more experts, and the draft layers run. Neither is known beforehand, so both are
measured, and the depth of most tokens a second is taken, tokens(d) / seconds(requests, d).

What is not in use is not measured either. The rule against that is optimism, dosed: what is unknown
is taken to be good, so it is tried, and seen to be good or not. Acceptance starts high and is worth
few samples. Now and then a probe forgets that of the layers out of use, which brings them into use
until it has fallen again, the shallow ones first, so that drafts that always fail cost a step or
two at depth 1; or it runs a depth of uncertain cost for a few steps. What a probe cost is paid for
by the distance to the next: `_BUDGET` of the time, and twice the distance before it when nothing
came of it, but `_MAX_INTERVAL` at most, so that a change of workload is noticed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
from operator import mul
from statistics import median

__all__ = ["DepthController"]

# Acceptance: what is supposed of an unknown layer, the samples that this is worth, and those from
# which on the next layer may be tried too.
_OPTIMISM, _OPTIMISM_WEIGHT, _TRUSTED_WEIGHT = 0.9, 3, 5
# An estimate averages over so many samples, or so many steps if those have more.
_SLOW_SAMPLES, _SLOW_STEPS = 256, 16
_FAST_SAMPLES, _FAST_STEPS = 16, 4

# Costs: steps of which the median counts, and how far it moves a depth's own cost and all others.
_NUM_MEDIAN = 3
_OWN_GAIN, _COMMON_GAIN = 0.01, 0.1
_MAX_ERROR = math.log(2)
# By which factor a depth may be cheaper than it seems: never seen, and seen once.
_UNSEEN, _SEEN_ONCE = 2.0, 1.15
# Seconds grow with requests to this power, between a batch size and the nearest that has a row.
_POWER = 0.5

_HYSTERESIS = 0.01
_BUDGET = 0.01
_MIN_INTERVAL, _MAX_INTERVAL = 50, 400  # steps between two probes
_MAX_TRIAL, _MAX_PROBE = 16, 80  # steps of a probe; who still promises more after them has won


class DepthController:
    """Chooses the depth of each step; is told what steps took and which drafts were right.

    fixed: always this depth. catch_up: what drafting costs once after a time at depth 0, in steps
    of depth 0 (the draft layers must read what they missed).
    """

    def __init__(self, max_depth: int, *, fixed: int | None = None, catch_up: float = 1.0) -> None:
        assert 0 <= (fixed or 0) <= max_depth
        self._fixed = fixed
        self._catch_up = catch_up
        self._depths = range(max_depth + 1)
        self._layers = [_Layer() for _ in range(max_depth)]
        self._costs = _Costs(max_depth + 1)
        self._uncalibrated = list(self._depths)
        self._length, self._length_weight = 1.0, 0
        self._step, self._num_requests, self._depth = 0, 1, fixed or 0
        self._probe: _Probe | None = None
        self._last_probe, self._paid_interval, self._interval = 0, _MIN_INTERVAL, _MIN_INTERVAL

    @property
    def depth(self) -> int:
        """The depth last chosen."""
        return self._depth

    @property
    def acceptance_length(self) -> float:
        """Tokens of a verification on average, the bonus token counted: 1 to max_depth + 1."""
        return self._length

    @property
    def acceptance(self) -> tuple[float, ...]:
        """Of each layer's drafts, the part that is believed to be right where those before it were:
        optimistic of what is untested, or forgotten by a probe."""
        rates = []
        for layer in self._layers:
            # Of a layer without a sample: no more than of the one before it.
            is_known = layer.weight > _OPTIMISM_WEIGHT or not rates
            rates.append(layer.rate if is_known else min(layer.rate, rates[-1]))
        return tuple(rates)

    @property
    def gain(self) -> float:
        """Tokens a second expected at the depth last chosen, as a multiple of those at depth 0."""
        rates = self._rates(self._costs.row(self._num_requests))
        return rates[self._depth] / rates[0]

    def calibrate(self, num_requests: int, depth: int, seconds: float) -> None:
        """A measurement at start: so many requests verified and proposed `depth` drafts each."""
        self._costs.calibrate(num_requests, depth, seconds)
        self._uncalibrated = [other for other in self._uncalibrated if other != depth]

    def saw_step(self, *, num_requests: int, depth: int, seconds: float) -> None:
        """A step of decoding alone, at the same depth as the step before it, took so long."""
        if seconds > 0:  # else the clock is too coarse to tell
            self._costs.saw(num_requests, depth, math.log(seconds))

    def saw_drafts(self, num_drafts: int, num_accepted: int) -> None:
        """One request's verification: of num_drafts (>= 1), the first num_accepted were right."""
        assert 0 <= num_accepted <= num_drafts
        self._length_weight = min(self._length_weight + 1, _SLOW_SAMPLES)
        self._length += (1 + num_accepted - self._length) / self._length_weight
        for index, layer in enumerate(self._layers[:num_drafts]):
            layer.last_step = self._step
            if index <= num_accepted:
                layer.observe(float(index < num_accepted), self._num_requests)

    def choose(self, num_requests: int) -> int:
        """The depth of the next step, in which so many requests (>= 1) decode."""
        self._step += 1
        self._num_requests = num_requests
        if self._fixed is None:
            row = self._costs.row(num_requests)
            self._probe = self._probe or self._new_probe(row)
            if self._probe is None:
                self._depth = self._pick(row, self._depth)
            else:
                self._depth = self._go_on(self._probe, row)
        return self._depth

    def _tokens(self) -> list[float]:
        """Of a request's step, by depth."""
        return list(accumulate(accumulate(self.acceptance, mul), initial=1.0))

    def _rates(self, row: list[_Cell]) -> list[float]:
        """Tokens a second and request, by depth."""
        return [tokens / cell.seconds for tokens, cell in zip(self._tokens(), row, strict=True)]

    def _pick(self, row: list[_Cell], current: int) -> int:
        """The best depth, or the least deep that promises more but has yet to prove it."""
        rates = self._rates(row)
        trusted = takewhile(lambda layer: layer.weight >= _TRUSTED_WEIGHT, self._layers)
        num_trusted = len(list(trusted))
        best = max(self._depths[: num_trusted + 1], key=rates.__getitem__)
        if current <= num_trusted and rates[best] < (1 + _HYSTERESIS) * rates[current]:
            best = current
        hopes = self._depths[num_trusted + 1 :]
        return next((d for d in hopes if rates[d] > (1 + _HYSTERESIS) * rates[best]), best)

    def _new_probe(self, row: list[_Cell]) -> _Probe | None:
        """A probe, if one is due."""
        elapsed = self._step - self._last_probe
        trial = None
        if self._uncalibrated:
            trial = self._uncalibrated.pop(0)
        elif elapsed >= self._paid_interval:
            trial = self._doubtful(row, unseen_only=elapsed < self._interval)
        forgot = self._forget(trial or 0)
        if trial is None:
            return _Probe(row, self._depth) if forgot else None
        # A depth that was tried in vain is a close rival: it is measured better every time.
        num_seen = row[trial].num_seen
        num_wanted = num_seen + min(max(num_seen, _NUM_MEDIAN), _MAX_TRIAL - _NUM_MEDIAN)
        return _Probe(row, self._depth, trial, num_wanted)

    def _doubtful(self, row: list[_Cell], *, unseen_only: bool) -> int | None:
        """The least measured depth that would be best if its cost were estimated too high."""
        rates = self._rates(row)
        rivals = [
            (-cell.doubt, abs(depth - self._depth), depth)
            for depth, cell in enumerate(row)
            if depth != self._depth
            and cell.doubt * rates[depth] > rates[self._depth]
            and (cell.doubt == _UNSEEN or not unseen_only)
        ]
        return min(rivals)[-1] if rivals else None

    def _forget(self, num_used: int) -> bool:
        """Forgets what is known of layers out of use, if it is old; of the first num_used always,
        as a trial uses them anyway. Whether there were any."""
        since = self._step - self._interval
        num_forgotten = 0
        for index, layer in enumerate(self._layers[self._depth :], self._depth):
            if index < num_used or layer.last_step <= since:
                layer.rate = layer.recent = max(layer.rate, _OPTIMISM)
                layer.weight = _OPTIMISM_WEIGHT
                layer.last_step = self._step
                num_forgotten += 1
        return num_forgotten > 0

    def _go_on(self, probe: _Probe, row: list[_Cell]) -> int:
        """The depth of the probe's next step; with its verdict, the probe ends."""
        probe.num_steps += 1
        depth = probe.trial
        if depth is not None:
            is_measured = row[depth].num_seen >= probe.num_wanted
            if is_measured or row is not probe.row or probe.num_steps > _MAX_TRIAL:
                depth = probe.trial = None
        if depth is None:
            kept = self._pick(probe.row, probe.base) == probe.base
            if kept or probe.num_steps > _MAX_PROBE or self._uncalibrated:
                self._end_probe(probe, kept=kept)
                return self._pick(row, probe.base)
            depth = self._pick(row, self._depth)
        # What the step loses if the drafts beyond base fail, in steps at base.
        dearer = row[depth].seconds / row[probe.base].seconds
        tokens = self._tokens()
        probe.lost_steps += max(0.0, dearer - tokens[min(depth, probe.base)] / tokens[probe.base])
        return depth

    def _end_probe(self, probe: _Probe, *, kept: bool) -> None:
        self._probe = None
        self._last_probe = self._step
        lost_steps = probe.lost_steps + (self._catch_up if probe.base == 0 else 0)
        wait = max(_MIN_INTERVAL, math.ceil(lost_steps / _BUDGET))
        self._paid_interval = min(wait, _MAX_INTERVAL)
        self._interval = (
            min(max(wait, 2 * self._interval), _MAX_INTERVAL) if kept else _MIN_INTERVAL
        )


@dataclass(slots=True)
class _Probe:
    """Steps that are to show whether `base`, the depth before them, is still the best."""

    row: list[_Cell]
    base: int
    trial: int | None = None
    """A depth to run, whatever it promises, until num_wanted of its steps were seen."""
    num_wanted: int = 0
    num_steps: int = 0
    lost_steps: float = 0.0


@dataclass(slots=True)
class _Layer:
    """How often a layer's drafts are right where those before them were."""

    rate: float = _OPTIMISM
    weight: float = _OPTIMISM_WEIGHT
    """Samples that the rate is worth."""
    recent: float = _OPTIMISM
    last_step: int = 0
    """When it drafted, or was forgotten."""

    def observe(self, right: float, num_requests: int) -> None:
        self.weight = min(self.weight + 1, max(_SLOW_SAMPLES, _SLOW_STEPS * num_requests))
        fast = min(self.weight, max(_FAST_SAMPLES, _FAST_STEPS * num_requests))
        self.rate += (right - self.rate) / self.weight
        self.recent += (right - self.recent) / fast
        noise = math.sqrt(self.rate * (1 - self.rate) / (2 * fast))
        if abs(self.recent - self.rate) > 0.1 + 3 * noise:
            # Another workload: what was learnt before it counts no more.
            self.rate, self.weight = self.recent, fast / 2


@dataclass(slots=True)
class _Cell:
    """The cost of a step at one batch size and depth."""

    log_seconds: float
    num_seen: int = 0
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=_NUM_MEDIAN))

    @property
    def seconds(self) -> float:
        return math.exp(self.log_seconds)

    @property
    def is_known(self) -> bool:
        return self.num_seen >= _NUM_MEDIAN

    @property
    def doubt(self) -> float:
        """By which factor the depth may be cheaper than it seems."""
        return 1 + (_SEEN_ONCE - 1) / math.sqrt(self.num_seen) if self.is_known else _UNSEEN


class _Costs:
    """Seconds of a step by batch size and depth, kept for powers of two and where calibrated.

    Only the ratios within a batch size count, so the nearest of these sizes stands for all.
    """

    def __init__(self, num_depths: int) -> None:
        self._depths = range(num_depths)
        self._rows: dict[int, list[_Cell]] = {}
        self._calibrated: set[int] = set()

    def calibrate(self, num_requests: int, depth: int, seconds: float) -> None:
        """Of several measurements, the median of the last three counts."""
        log_seconds = math.log(seconds)
        row = self._rows.setdefault(num_requests, [_Cell(log_seconds) for _ in self._depths])
        row[depth].latest.append(log_seconds)
        row[depth].log_seconds = median(row[depth].latest)
        self._calibrated.add(num_requests)

    def row(self, num_requests: int) -> list[_Cell]:
        """The costs by depth at the size nearest to this one."""
        return self._rows[self._nearest(num_requests)]

    def saw(self, num_requests: int, depth: int, log_seconds: float) -> None:
        """Moves what is known towards the median of the latest steps, which knows no hiccups.

        The first median of a batch size says what that costs at all depths, the first of each other
        depth there what that one costs. Later ones say less and less of the depth, and the more of
        how the machine and the contexts are now, so they move all depths.
        """
        size = self._nearest(num_requests)
        row = self._rows[size]
        cell = row[depth]
        if cell.num_seen == 0:
            cell.latest.clear()  # of calibrations
        cell.num_seen += 1
        cell.latest.append(log_seconds - _POWER * math.log(num_requests / size))
        if not cell.is_known:
            return
        error = median(cell.latest) - cell.log_seconds
        if cell.num_seen > _NUM_MEDIAN:
            error = max(-_MAX_ERROR, min(error, _MAX_ERROR))
            own, common = max(1 / cell.num_seen, _OWN_GAIN), _COMMON_GAIN
        elif any(other.is_known for other in row if other is not cell):
            own, common = (1.0 if abs(error) > 0.1 else 0.5), 0.0
        else:
            own, common = 0.0, 1.0
        cell.log_seconds += own * error
        for other in row:
            other.log_seconds += common * error

    def _nearest(self, num_requests: int) -> int:
        size = 1 << round(math.log2(num_requests))
        if size not in self._rows:
            self._rows[size] = [_Cell(self._estimate(size, depth)) for depth in self._depths]
        return self._closest(num_requests)

    def _closest(self, num_requests: int) -> int:
        return min(self._rows, key=lambda size: abs(math.log(size / num_requests)))

    def _estimate(self, num_requests: int, depth: int) -> float:
        """log(seconds) by a power law through two sizes: bytes grow with rows ever slower."""
        sizes = sorted(self._calibrated)
        if len(sizes) < 2:
            # Live steps are too noisy for a trend. Nothing known: all depths cost the same.
            return self._rows[self._closest(num_requests)][depth].log_seconds if self._rows else 0.0
        index = min(max(bisect_left(sizes, num_requests), 1), len(sizes) - 1)
        low, high = sizes[index - 1 : index + 1]
        below, above = (self._rows[size][depth].log_seconds for size in (low, high))
        power = max(0.0, min((above - below) / math.log(high / low), 1.0))
        return below + power * math.log(num_requests / low)

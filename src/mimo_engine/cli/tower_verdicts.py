"""From scores of tower variants to verdicts on settings: the rules of `check --towers`.

vision_sinks         the colour probe: right on at least 80 % with one value, and significantly
                     worse with the other (sign test over the probes, 5 %)
vision_merger_norm   captions: likelier with one value by more than two standard errors of the
                     difference picture by picture
pixel_stats          either of the two, if they do not contradict each other

Two values are compared where nothing else differs, at the variant that likes the captions best.
Captions count only if the weights look at the pictures: each caption must be clearly likelier with
its own picture than with another's. Random weights fail that, and nothing is concluded from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from mimo_engine.cli.paired_tests import (
    PairedDifference,
    mean_and_error,
    paired_difference,
    sign_test,
)

__all__ = [
    "CHOICES",
    "NOTHING",
    "UNDECIDED",
    "Variant",
    "VariantScores",
    "Verdict",
    "best_of",
    "judge",
    "picture_margin",
]

CHOICES = {
    "vision_sinks": ("extra_column", "key0"),
    "vision_merger_norm": ("layernorm", "rmsnorm"),
    "pixel_stats": ("clip", "imagenet"),
}
"""The settings that have a test, and their values."""

UNDECIDED = "undecided"
NOTHING = "nothing can be concluded"

MIN_CAPTIONS = 8
# A conclusion from weights that see nothing would be the worst mistake: random weights like one
# norm or the other for no reason. The best variant's captions are likely in part by luck, and few
# scatter widely, so two standard errors would not do; weights that see have ten with 50 captions.
CONTROL_ERRORS = 5.0
MIN_COLOURS_RIGHT = 0.8
MAX_CHANCE = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """The towers under one value of each tested setting; the fields are those of MediaFacts."""

    vision_sinks: str
    vision_merger_norm: str
    pixel_stats: str

    def other(self, setting: str) -> Variant:
        """The same with the other value of `setting`."""
        (value,) = set(CHOICES[setting]) - {getattr(self, setting)}
        return replace(self, **{setting: value})


assert {one.name for one in fields(Variant)} == set(CHOICES)


@dataclass(frozen=True, kw_only=True, slots=True)
class VariantScores:
    """What one variant makes of the captions and colours, in the same order for all variants."""

    variant: Variant
    caption_nll: tuple[float, ...]
    """Of each caption with its own picture: mean negative log-likelihood of its tokens."""
    shuffled_nll: tuple[float, ...]
    """The same with another caption's picture."""
    colours_right: tuple[bool, ...]

    @property
    def num_right(self) -> int:
        return sum(self.colours_right)

    @property
    def sees_colours(self) -> bool:
        return self.num_right >= MIN_COLOURS_RIGHT * len(self.colours_right)


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """On one setting."""

    setting: str
    finding: str
    """A value of the setting, UNDECIDED or NOTHING."""
    reason: str

    @property
    def is_decided(self) -> bool:
        return self.finding not in (UNDECIDED, NOTHING)


def best_of(results: Sequence[VariantScores]) -> VariantScores:
    """The variant that finds the captions likeliest."""
    return min(results, key=lambda one: mean_and_error(one.caption_nll)[0])


def picture_margin(results: Sequence[VariantScores]) -> PairedDifference:
    """How much likelier captions are with their own picture, at the best variant of all."""
    best = best_of(results)
    return paired_difference(best.caption_nll, best.shuffled_nll)


def judge(results: Sequence[VariantScores]) -> list[Verdict]:
    """A verdict on each setting of CHOICES.

    results: the grid of norms and statistics under one value of vision_sinks, and the best of the
    grid once more under the other.
    """
    by_variant = {one.variant: one for one in results}
    sinks = results[0].variant.vision_sinks
    best = best_of([one for one in results if one.variant.vision_sinks == sinks])
    others = {setting: by_variant[best.variant.other(setting)] for setting in CHOICES}
    verdicts = [_by_colours("vision_sinks", best, others["vision_sinks"])]
    if verdicts[0].is_decided and verdicts[0].finding != sinks:
        reason = f"measured with vision_sinks {sinks}: run again with --vision-sinks "
        reason += verdicts[0].finding
        return verdicts + [
            Verdict(setting=setting, finding=UNDECIDED, reason=reason)
            for setting in ("vision_merger_norm", "pixel_stats")
        ]
    margin = picture_margin(results)
    norm, stats = (
        _by_captions(setting, best, others[setting], margin)
        for setting in ("vision_merger_norm", "pixel_stats")
    )
    colours = _by_colours("pixel_stats", best, others["pixel_stats"])
    return [*verdicts, norm, _joined(stats, colours)]


def _by_captions(
    setting: str, best: VariantScores, other: VariantScores, margin: PairedDifference
) -> Verdict:
    """margin: `picture_margin`."""
    if margin.num < MIN_CAPTIONS:
        reason = f"captions: {margin.num}, and at least {MIN_CAPTIONS} are needed"
        return Verdict(setting=setting, finding=NOTHING, reason=reason)
    if not margin.exceeds(CONTROL_ERRORS):
        reason = "captions are not clearly likelier with their own picture than with another's"
        return Verdict(setting=setting, finding=NOTHING, reason=reason)
    gain = paired_difference(best.caption_nll, other.caption_nll)
    values = [getattr(one.variant, setting) for one in (best, other)]
    reason = (
        f"captions likelier with {values[0]} than with {values[1]} by {gain.mean:.4f} a token, "
        f"s.e. {gain.standard_error:.4f}"
    )
    if gain.is_decisive:
        return Verdict(setting=setting, finding=values[0], reason=reason)
    if gain.num_needed is None:
        reason = f"captions equally likely with {values[0]} and {values[1]}"
    else:
        reason += f": it would take some {gain.num_needed:,} captions to tell"
    return Verdict(setting=setting, finding=UNDECIDED, reason=reason)


def _by_colours(setting: str, first: VariantScores, second: VariantScores) -> Verdict:
    better, worse = sorted((first, second), key=lambda one: -one.num_right)
    reason = " and ".join(
        f"{one.num_right} with {getattr(one.variant, setting)}" for one in (better, worse)
    )
    reason = f"colours right of {len(better.colours_right)}: {reason}"
    if not better.sees_colours:
        reason += f", and at least {MIN_COLOURS_RIGHT:.0%} are needed"
        return Verdict(setting=setting, finding=NOTHING, reason=reason)
    if sign_test(better.colours_right, worse.colours_right) >= MAX_CHANCE:
        reason += ", too little between them"
        return Verdict(setting=setting, finding=UNDECIDED, reason=reason)
    return Verdict(setting=setting, finding=getattr(better.variant, setting), reason=reason)


def _joined(captions: Verdict, colours: Verdict) -> Verdict:
    """Of two tests of one setting."""
    if captions.is_decided and colours.is_decided and captions.finding != colours.finding:
        reason = f"captions say {captions.finding} ({captions.reason}), colours {colours.finding} "
        reason += f"({colours.reason})"
        return replace(captions, finding=UNDECIDED, reason=reason)
    if colours.is_decided and not captions.is_decided:
        return colours
    if captions.finding == NOTHING and colours.finding == UNDECIDED:
        return colours
    return captions

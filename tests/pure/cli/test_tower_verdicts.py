"""The rules by which scores become verdicts."""

import random
from dataclasses import fields, replace
from itertools import product

import pytest

from mimo_engine.cli.tower_verdicts import (
    CHOICES,
    NOTHING,
    UNDECIDED,
    Variant,
    VariantScores,
    best_of,
    judge,
    picture_margin,
)
from mimo_engine.config.media_settings import MediaFacts

TRUTH = Variant(vision_sinks="extra_column", vision_merger_norm="rmsnorm", pixel_stats="imagenet")
NUM_COLOURS = 24


def experiment(
    truth=TRUTH,
    *,
    num=20,
    loss=0.2,
    noise=0.1,
    sees=True,
    num_right=(24, 24),
    wrong_sinks_right=6,
    sinks="extra_column",
):
    """Scores of the five variants in a world where `truth` is trained.

    loss: what each wrong setting costs a caption; noise: how much that varies by picture and
    variant. num_right: colours right with the right and the wrong statistics.
    """
    rng = random.Random(0)
    hardness = [rng.uniform(1.0, 3.0) for _ in range(num)]

    def scores(variant):
        num_wrong = sum(getattr(variant, name) != getattr(truth, name) for name in CHOICES)
        nll = [one + loss * num_wrong + rng.gauss(0, noise) for one in hardness]
        penalty = 1.0 if sees else 0.0
        shuffled = [one + penalty + rng.gauss(0, 0.2) for one in nll]
        right = num_right[variant.pixel_stats != truth.pixel_stats]
        if variant.vision_sinks != truth.vision_sinks:
            right = wrong_sinks_right
        return VariantScores(
            variant=variant,
            caption_nll=tuple(nll),
            shuffled_nll=tuple(shuffled),
            colours_right=tuple(i < right for i in range(NUM_COLOURS)),
        )

    return five(scores, sinks)


def five(scores, sinks="extra_column"):
    """The variants that are measured, by `scores` of a variant."""
    grid = [
        scores(Variant(vision_sinks=sinks, vision_merger_norm=norm, pixel_stats=stats))
        for norm, stats in product(CHOICES["vision_merger_norm"], CHOICES["pixel_stats"])
    ]
    return [*grid, scores(best_of(grid).variant.other("vision_sinks"))]


def findings(results):
    return {verdict.setting: verdict.finding for verdict in judge(results)}


def reason(results, setting):
    return next(verdict.reason for verdict in judge(results) if verdict.setting == setting)


def test_the_tested_settings_are_fields_of_media_facts_with_their_values():
    assert [one.name for one in fields(Variant)] == list(CHOICES)
    for setting, values in CHOICES.items():
        for value in values:
            assert getattr(replace(MediaFacts(), **{setting: value}), setting) == value
        # Defaults come first: `file` stands for one of the two.
        assert getattr(MediaFacts(), setting) in (values[0], "file")


@pytest.mark.parametrize("norm", CHOICES["vision_merger_norm"])
@pytest.mark.parametrize("stats", CHOICES["pixel_stats"])
def test_what_was_trained_wins(norm, stats):
    truth = replace(TRUTH, vision_merger_norm=norm, pixel_stats=stats)
    assert findings(experiment(truth)) == {
        "vision_sinks": "extra_column",
        "vision_merger_norm": norm,
        "pixel_stats": stats,
    }


def test_variants_that_are_alike_are_undecided_with_the_captions_it_would_take():
    results = experiment(loss=0.0)
    assert findings(results) == {
        "vision_sinks": "extra_column",
        "vision_merger_norm": UNDECIDED,
        "pixel_stats": UNDECIDED,
    }
    assert "it would take some " in reason(results, "vision_merger_norm")


def test_variants_with_equal_scores_are_undecided_and_no_number_would_do():
    results = experiment(loss=0.0, noise=0.0)
    assert findings(results)["vision_merger_norm"] == UNDECIDED
    assert reason(results, "vision_merger_norm").startswith("captions equally likely with")


def test_a_small_difference_is_found_when_there_are_captions_enough():
    assert findings(experiment(num=10, loss=0.02))["vision_merger_norm"] == UNDECIDED
    assert findings(experiment(num=1000, loss=0.02))["vision_merger_norm"] == "rmsnorm"


def test_weights_that_do_not_look_conclude_nothing_however_they_like_one_variant():
    results = experiment(sees=False, loss=1.0, num_right=(6, 5), wrong_sinks_right=7)
    assert set(findings(results).values()) == {NOTHING}
    assert "not clearly likelier with their own picture" in reason(results, "pixel_stats")


@pytest.mark.parametrize(("num", "num_allowed"), [(8, 10), (50, 0)])
def test_random_numbers_conclude_nothing(num, num_allowed):
    """But for one run in a hundred with the fewest captions."""
    rng = random.Random(0)

    def scores(variant):
        return VariantScores(
            variant=variant,
            caption_nll=tuple(rng.gauss(10, 1) for _ in range(num)),
            shuffled_nll=tuple(rng.gauss(10, 1) for _ in range(num)),
            colours_right=tuple(rng.random() < 0.25 for _ in range(NUM_COLOURS)),
        )

    verdicts = [set(findings(five(scores)).values()) for _ in range(1000)]
    assert sum(found != {NOTHING} for found in verdicts) <= num_allowed


def test_seven_captions_are_too_few_and_eight_are_not():
    few, enough = experiment(num=7), experiment(num=8)
    assert findings(few)["vision_merger_norm"] == NOTHING
    assert reason(few, "vision_merger_norm") == "captions: 7, and at least 8 are needed"
    assert findings(enough)["vision_merger_norm"] == "rmsnorm"


def test_colours_decide_the_sinks_even_without_captions_enough():
    assert findings(experiment(num=2))["vision_sinks"] == "extra_column"


@pytest.mark.parametrize(
    ("right", "wrong", "finding"),
    [
        (24, 6, "extra_column"),
        (20, 14, "extra_column"),
        (20, 15, UNDECIDED),  # five against none: 1 in 16 by chance
        (24, 24, UNDECIDED),
        (19, 0, NOTHING),  # under 80 %
        (6, 20, "key0"),
        (6, 6, NOTHING),
    ],
)
def test_sinks_need_a_winner_that_sees_and_a_loser_that_does_not(right, wrong, finding):
    results = experiment(num_right=(right, right), wrong_sinks_right=wrong)
    assert findings(results)["vision_sinks"] == finding


def test_when_the_other_sinks_win_the_rest_waits_for_a_run_with_them():
    truth = replace(TRUTH, vision_sinks="key0")
    first = experiment(truth)
    assert findings(first) == {
        "vision_sinks": "key0",
        "vision_merger_norm": UNDECIDED,
        "pixel_stats": UNDECIDED,
    }
    assert reason(first, "pixel_stats").endswith("run again with --vision-sinks key0")
    assert findings(experiment(truth, sinks="key0")) == {
        "vision_sinks": "key0",
        "vision_merger_norm": "rmsnorm",
        "pixel_stats": "imagenet",
    }


def test_colours_decide_the_statistics_where_captions_do_not():
    alike = experiment(loss=0.0, num_right=(22, 6))
    assert findings(alike)["vision_merger_norm"] == UNDECIDED
    assert findings(alike)["pixel_stats"] == "imagenet"
    assert "colours right" in reason(alike, "pixel_stats")
    few = experiment(num=3, num_right=(22, 6))
    assert findings(few)["vision_merger_norm"] == NOTHING
    assert findings(few)["pixel_stats"] == "imagenet"


def test_tests_that_contradict_each_other_decide_nothing():
    results = experiment(num_right=(6, 24), wrong_sinks_right=0)
    assert findings(results)["pixel_stats"] == UNDECIDED
    assert "captions say imagenet" in reason(results, "pixel_stats")
    assert "colours clip" in reason(results, "pixel_stats")


def test_the_margin_is_that_of_the_variant_that_likes_the_captions_best():
    results = experiment()
    best = best_of(results)
    assert best.variant == TRUTH
    margin = picture_margin(results)
    pairs = zip(best.caption_nll, best.shuffled_nll, strict=True)
    assert margin.mean == pytest.approx(sum(b - a for a, b in pairs) / margin.num)

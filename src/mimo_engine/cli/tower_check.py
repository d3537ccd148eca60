"""`mimo-engine check --towers`: which settings of the towers are right, found on the weights.

Public sources disagree on some facts about the towers, and a wrong one gives a model that runs and
sees badly. So the towers are loaded under each value of the doubtful settings, one after the other,
and asked about pictures; tower_verdicts.py has the rules by which that decides anything.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.cli.answer_scores import (
    BATCH_QUESTIONS,
    SCORING,
    AnswerFinder,
    Question,
    Scorer,
    open_scorer,
)
from mimo_engine.cli.captions import Caption, read_captions
from mimo_engine.cli.colour_probe import COLOURS, colour_probes, named_colour
from mimo_engine.cli.paired_tests import mean_and_error
from mimo_engine.cli.tower_verdicts import (
    CHOICES,
    NOTHING,
    Variant,
    VariantScores,
    Verdict,
    best_of,
    judge,
    picture_margin,
)
from mimo_engine.config.engine import EngineConfig, ModelSettings, ParallelConfig
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.processor import CLIP_STATS, IMAGENET_STATS, ProcessorConfig
from mimo_engine.errors import ConfigError, RequestError

__all__ = ["NOT_TESTED", "TowerOptions", "check_towers"]

CAPTION_QUESTION = "Describe the image in one sentence."

NOT_TESTED = {
    "resize_filter": "agreement with the vendor's serving stack decides",
    "pixel_limits": "agreement with the vendor's serving stack decides",
    "image_alpha": "how a file is to be read, and no fact of the weights",
    "exif_orientation": "how a file is to be read, and no fact of the weights",
    "audio_mask": "the error rate of transcribing known clips decides",
    "audio_bf16_tables": "the error rate of transcribing known clips decides",
    "video_step_without_audio": "no test of it is known",
}
"""Every other setting of the towers, and why."""

OpenScorer = Callable[[EngineConfig], AbstractContextManager[Scorer]]


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerOptions:
    """Flags of --towers."""

    towers: bool = False
    """Find out on the weights which settings of the towers are right: loads the model five times.
    Needs --captions."""
    captions: str | None = None
    """Pictures for --towers, in JSON Lines: each line an object with image, a path that may be
    relative to the file, and caption, one sentence about it. Some 50 will do."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """For --towers: as of serve."""
    device: str = "auto"
    """For --towers: as of serve."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)

    def __post_init__(self) -> None:
        if self.towers and self.captions is None:
            raise ConfigError("--towers needs --captions FILE: pictures that are to be described")
        unused = (None, "auto", "auto", ParallelConfig())
        given = (self.captions, self.dtype, self.device, self.parallel)
        if not self.towers and given != unused:
            raise ConfigError(
                "--captions, --dtype, --device and --tensor-parallel-size are for --towers: "
                "without it, nothing is run"
            )


def check_towers(
    model_dir: Path,
    options: TowerOptions,
    settings: ModelSettings,
    facts: MediaFacts,
    media: MediaConfig | None,
    *,
    scorer_of: OpenScorer = open_scorer,
) -> None:
    """Print what each variant of the towers makes of the pictures, and a verdict on each setting.

    media: the checkpoint's, under `facts`; None: it has none. Raises ConfigError before anything is
    loaded: no towers, no chat template, or captions that cannot be used.
    """
    assert options.captions is not None
    if media is None:
        raise ConfigError("--towers needs towers: a checkpoint that has them, without --text-only")
    if (facts.vision_merger_norm, facts.pixel_stats) != ("layernorm", "file"):
        raise ConfigError(
            "--towers tries every value of --vision-merger-norm and --pixel-stats: leave them out"
        )
    config = EngineConfig(
        model=str(model_dir),
        dtype=options.dtype,
        device=options.device,
        settings=settings,
        scheduler=SCORING,
        media=facts,
        parallel=options.parallel,
    )
    captions = read_captions(Path(options.captions).expanduser(), media.processor)
    _check_answers(captions, AnswerFinder(Tokenizer.from_dir(model_dir)))
    results = _measure_all(config, captions, scorer_of)
    verdicts = judge(results)
    _print_scores(results)
    _print_verdicts(verdicts, media.processor)


def _check_answers(captions: Sequence[Caption], finder: AnswerFinder) -> None:
    for caption in captions:
        try:
            finder.find(_caption_question(caption, caption))
        except RequestError as error:
            raise ConfigError(f"{caption.where}: {error}") from error


def _measure_all(
    config: EngineConfig, captions: Sequence[Caption], scorer_of: OpenScorer
) -> list[VariantScores]:
    """Of the grid of norms and statistics, and of its best point with the other sinks."""
    questions = _questions(captions)
    sinks = config.media.vision_sinks
    pairs = itertools.product(CHOICES["vision_merger_norm"], CHOICES["pixel_stats"])
    grid = [
        Variant(vision_sinks=sinks, vision_merger_norm=norm, pixel_stats=stats)
        for norm, stats in pairs
    ]
    results: list[VariantScores] = []
    with tqdm(
        total=(len(grid) + 1) * len(questions), unit=" answers", desc="scoring answers"
    ) as bar:

        def measure(variant: Variant) -> VariantScores:
            scores = _scores(_config_of(config, variant), questions, scorer_of, bar)
            return _variant_scores(variant, scores, len(captions))

        results += map(measure, grid)
        results.append(measure(best_of(results).variant.other("vision_sinks")))
    return results


def _config_of(config: EngineConfig, variant: Variant) -> EngineConfig:
    values: dict[str, Any] = {setting: getattr(variant, setting) for setting in CHOICES}
    return replace(config, media=replace(config.media, **values))


def _questions(captions: Sequence[Caption]) -> list[Question]:
    """Captions with their own pictures, captions with the next caption's, every colour for each
    colour probe."""
    own = [_caption_question(caption, caption) for caption in captions]
    shuffled = [
        _caption_question(caption, captions[(i + 1) % len(captions)])
        for i, caption in enumerate(captions)
    ]
    colours = [
        Question(image=probe.image, text=probe.question, answer=colour)
        for probe in colour_probes()
        for colour in COLOURS
    ]
    return own + shuffled + colours


def _caption_question(caption: Caption, pictured: Caption) -> Question:
    return Question(image=pictured.image, text=CAPTION_QUESTION, answer=caption.text)


def _scores(
    config: EngineConfig, questions: Sequence[Question], scorer_of: OpenScorer, bar: tqdm[Any]
) -> list[list[float]]:
    scores: list[list[float]] = []
    with scorer_of(config) as score:
        for first in range(0, len(questions), BATCH_QUESTIONS):
            batch = questions[first : first + BATCH_QUESTIONS]
            scores += score(batch)
            bar.update(len(batch))
    return scores


def _variant_scores(
    variant: Variant, scores: Sequence[Sequence[float]], num_captions: int
) -> VariantScores:
    """scores: of `_questions`. A caption counts by its mean token, so that long ones do not
    outweigh short ones; a colour by its whole word."""
    nll = [-math.fsum(one) / len(one) for one in scores[: 2 * num_captions]]
    words = [math.fsum(one) for one in scores[2 * num_captions :]]
    named = [
        named_colour(words[i * len(COLOURS) : (i + 1) * len(COLOURS)])
        for i in range(len(words) // len(COLOURS))
    ]
    right = [name == probe.colour for name, probe in zip(named, colour_probes(), strict=True)]
    return VariantScores(
        variant=variant,
        caption_nll=tuple(nll[:num_captions]),
        shuffled_nll=tuple(nll[num_captions:]),
        colours_right=tuple(right),
    )


def _print_scores(results: Sequence[VariantScores]) -> None:
    """NLL: mean negative log-likelihood of a token of a caption."""
    widths = {setting: len(setting) + 2 for setting in CHOICES}
    names = "".join(f"{setting:<{width}}" for setting, width in widths.items())
    print(f"\n{names}{'NLL':>10}{'s.e.':>10}{'shuffled':>12}{'colours right':>16}")
    for one in results:
        values = "".join(f"{getattr(one.variant, name):<{width}}" for name, width in widths.items())
        nll, error = mean_and_error(one.caption_nll)
        shuffled, _ = mean_and_error(one.shuffled_nll)
        colours = f"{one.num_right} of {len(one.colours_right)}"
        print(f"{values}{nll:>10.4f}{error:>10.4f}{shuffled:>12.4f}{colours:>16}")
    margin = picture_margin(results)
    print(
        f"\ncaptions: {margin.num}, likelier with their own picture than with another's by "
        f"{margin.mean:.4f} a token, s.e. {margin.standard_error:.4f}\n"
    )


def _print_verdicts(verdicts: Sequence[Verdict], processor: ProcessorConfig) -> None:
    """processor: as the checkpoint's own files say."""
    for verdict in verdicts:
        hint = f", {_how_to_set(verdict, processor)}" if verdict.is_decided else ""
        print(f"{verdict.setting}: {verdict.finding}{hint} ({verdict.reason})")
    for setting, reason in NOT_TESTED.items():
        print(f"{setting}: not tested here ({reason})")
    if all(verdict.finding == NOTHING for verdict in verdicts):
        print("\nNothing can be concluded: no sign that these weights see the pictures")


def _how_to_set(verdict: Verdict, processor: ProcessorConfig) -> str:
    stats = (processor.image_mean, processor.image_std)
    of_file = {CLIP_STATS: "clip", IMAGENET_STATS: "imagenet"}.get(stats, "file")
    default = of_file if verdict.setting == "pixel_stats" else CHOICES[verdict.setting][0]
    if verdict.finding == default:
        return "the default"
    return f"pass --{verdict.setting.replace('_', '-')} {verdict.finding}"

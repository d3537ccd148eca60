"""`mimo-engine check`: is this checkpoint whole, and which layout has it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

from tyro.conf import Positional

from mimo_engine.checkpoint.report import CheckpointReport, inspect_checkpoint
from mimo_engine.cli.tower_check import TowerOptions, check_towers
from mimo_engine.config.engine import ModelSettings
from mimo_engine.config.media import load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.utils.hub import resolve_model


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Compare a checkpoint's files with its config.json. Exits with 1 when they do not fit.

    MODEL is a directory or a name on the hub. Reads headers only, unless --deep. With --text-only
    the towers for images and sound are not looked at. With --towers a checkpoint that is whole is
    also loaded and shown pictures, to find out how its towers were trained.
    """

    model: Positional[str]
    """A checkpoint directory, or the name of a repository on the hub (OWNER/NAME)."""
    tensors: bool = False
    """List every tensor and what it fills."""
    deep: bool = False
    """Read all data too, for NaN, infinity and unusable scales."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    media: MediaFacts = field(default_factory=MediaFacts)
    tower_check: TowerOptions = field(default_factory=TowerOptions)


def run(command: Command) -> int:
    model_dir = resolve_model(command.model)
    config = load_model_config(
        model_dir,
        num_visible_tokens=command.settings.num_visible_tokens,
        ignore_keys=command.settings.ignore_config_key,
    )
    media = None
    if not command.media.text_only:
        media = load_media_config(
            model_dir, config.media, command.media, hidden_size=config.hidden_size
        )
    report = inspect_checkpoint(
        model_dir,
        config,
        media=media,
        qkv_layout=command.settings.qkv_layout,
        deep=command.deep,
    )
    if command.tensors:
        _print_tensors(report)
    _print_summary(report)
    for problem in report.problems:
        print(f"error: {problem}", file=sys.stderr)
    if report.problems:
        print(f"{model_dir}: {len(report.problems)} problems", file=sys.stderr)
        return 1
    print("whole: every tensor has its place, every parameter its tensor")
    if command.tower_check.towers:
        check_towers(model_dir, command.tower_check, command.settings, command.media, media)
    return 0


def _print_tensors(report: CheckpointReport) -> None:
    for tensor in report.tensors:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        print(f"{tensor.name}  {tensor.dtype} {shape}  {tensor.file}  {tensor.use or 'PROBLEM'}")
    print()


def _print_summary(report: CheckpointReport) -> None:
    print(
        f"{report.num_tensors:,} tensors in {report.num_files} files, "
        f"{report.num_bytes / 1e9:,.3f} GB"
    )
    print(f"qkv: {report.projection}; draft layers: {report.num_mtp_layers}")
    for group, formats in report.formats.items():
        counts = ", ".join(f"{count:,} {stored}" for stored, count in formats.items())
        print(f"{group}: {counts}")
    for reason, count in report.ignored.items():
        print(f"ignored: {count:,} ({reason})")

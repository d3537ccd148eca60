"""Where media stand in a prompt: token ids and the rows of the towers among them. Pure functions.

    image              <|vision_start|> pads <|vision_end|>
    sound              <|mimo_audio_start|> pads <|mimo_audio_end|>
    video              <|mimo_video_start|>, then for each grid step its time as text and
                       <|vision_start|> pads <|vision_end|>, at last <|mimo_video_end|>
    video with sound   the same, each step (or group of steps) followed by the sound that belongs to
                       it, as above

A grid step is a pair of frames; its time is the first one's. The sound of a video is encoded as a
whole, and its rows are dealt to the steps by time: step k has rows trunc(rate * t_k) up to
trunc(rate * t_k+1), the last step up to the end of its second frame. Sound that ends early leaves
the later steps without any; sound beyond the last step is dropped. Facts: vision.md 5.4 and 5.5,
audio.md 4.2 and 6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.messages import MediaSpan

__all__ = ["Layout", "audio_layout", "deal_audio", "image_layout", "timestamp_text", "video_layout"]


@dataclass(slots=True)
class Layout:
    """Token ids, and which of them stand for rows of the pictures and of the sound."""

    token_ids: list[int] = field(default_factory=list)
    vision: list[MediaSpan] = field(default_factory=list)
    """`start` counts from the beginning of this layout."""
    audio: list[MediaSpan] = field(default_factory=list)

    def add(self, kind: Literal["vision", "audio"], marks: _Marks, count: int, row: int) -> None:
        """Append `count` pads for rows from `row` on, between their marks."""
        self.token_ids.append(marks.start)
        if count:
            spans = self.vision if kind == "vision" else self.audio
            spans.append(MediaSpan(len(self.token_ids), count, row))
            self.token_ids.extend([marks.pad] * count)
        self.token_ids.append(marks.end)


@dataclass(frozen=True, slots=True)
class _Marks:
    start: int
    pad: int
    end: int


def _audio_marks(config: ProcessorConfig) -> _Marks:
    return _Marks(config.audio_start_token_id, config.audio_token_id, config.audio_end_token_id)


def _vision_marks(config: ProcessorConfig, pad: int) -> _Marks:
    return _Marks(config.vision_start_token_id, pad, config.vision_end_token_id)


def image_layout(config: ProcessorConfig, num_tokens: int) -> Layout:
    layout = Layout()
    layout.add("vision", _vision_marks(config, config.image_token_id), num_tokens, 0)
    return layout


def audio_layout(config: ProcessorConfig, num_tokens: int) -> Layout:
    layout = Layout()
    layout.add("audio", _audio_marks(config), num_tokens, 0)
    return layout


def timestamp_text(seconds: float) -> str:
    """MM:SS, rounded down; minutes go on beyond 99."""
    return f"{int(seconds // 60):02d}:{int(seconds % 60):02d}"


def video_layout(
    config: ProcessorConfig,
    encode: Callable[[str], list[int]],
    timestamps: Sequence[float],
    tokens_per_step: int,
    num_audio_tokens: int | None = None,
) -> Layout:
    """A video whose frames have `timestamps` (a whole number of grid steps), seconds rising.

    encode: the text tokenizer. num_audio_tokens: rows of its whole sound; None: it has none.
    """
    step_times = timestamps[:: config.temporal_patch_size]
    layout = Layout([config.video_start_token_id])
    dealt = None
    if num_audio_tokens is not None:
        dealt = deal_audio(config, timestamps, num_audio_tokens)
    for group in _groups(step_times, config.interleave_s if dealt else 0.0):
        layout.token_ids.extend(encode(timestamp_text(step_times[group[0]])))
        for step in group:
            marks = _vision_marks(config, config.video_token_id)
            layout.add("vision", marks, tokens_per_step, step * tokens_per_step)
        if dealt is not None:
            count = sum(dealt[step][1] for step in group)
            if count or config.video_step_without_audio == "empty_span":
                layout.add("audio", _audio_marks(config), count, dealt[group[0]][0])
    layout.token_ids.append(config.video_end_token_id)
    return layout


def deal_audio(
    config: ProcessorConfig, timestamps: Sequence[float], num_audio_tokens: int
) -> list[tuple[int, int]]:
    """(first row, rows) of the sound of each grid step; a step beyond its end has none."""
    rate = config.audio_tokens_per_second
    step_times = timestamps[:: config.temporal_patch_size]
    starts = [int(time * rate) for time in step_times]
    stops = [*starts[1:], int(_end(timestamps) * rate)]
    return [
        (start, max(0, min(stop, num_audio_tokens) - start))
        for start, stop in zip(starts, stops, strict=True)
    ]


def _end(timestamps: Sequence[float]) -> float:
    """When the last frame ends, at the rate of the first two; 1 frame a second for a single one."""
    if len(timestamps) < 2 or timestamps[1] <= timestamps[0]:
        return timestamps[-1] + 1.0
    return timestamps[-1] + (timestamps[1] - timestamps[0])


def _groups(step_times: Sequence[float], length_s: float) -> list[list[int]]:
    """Steps that share one timestamp and one run of sound (`interleave_s` of the config)."""
    steps = list(range(len(step_times)))
    if length_s < 0:
        return [steps]
    if length_s == 0:
        return [[step] for step in steps]
    groups: dict[int, list[int]] = {}
    for step in steps:
        groups.setdefault(int(step_times[step] // length_s), []).append(step)
    return list(groups.values())

"""An example as the model reads it: token ids, what each of them counts, and features of media."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from mimo_engine.chat.template import ChatTemplate, family_template
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.media import MediaConfig
from mimo_engine.demo.features import Vision, media_features
from mimo_engine.demo.rendering import media_parts, render
from mimo_engine.demo.task import Example
from mimo_engine.multimodal.interleave import Layout

__all__ = ["Clip", "Encoded", "ExampleEncoder", "Picture"]

_PROMPT_WEIGHT = 0.02
"""Of a token of the prompt's text: some language is learned there."""
_USUAL_LEN = 8
"""Tokens of an answer that count 1 each. Those of longer ones count less, by the root, so that
answers of one word are learned as soon as whole calculations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image or the pictures of a video, and where its rows stand."""

    vision: Vision
    positions: np.ndarray
    """int64 [n]: places in the sequence."""
    rows: np.ndarray
    """int64 [n]: rows of the tower for them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One sound, and where its rows stand: not all of a video's sound has a place."""

    mel: np.ndarray
    """float32 [frames, mels], at most a segment of them."""
    positions: np.ndarray
    rows: np.ndarray


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """One example."""

    token_ids: np.ndarray
    """int64 [n], prompt and completion."""
    weights: np.ndarray
    """float32 [n]: what guessing each token counts; 0 for marks and rows of media."""
    prompt_len: int
    pictures: tuple[Picture, ...] = ()
    clips: tuple[Clip, ...] = ()


class ExampleEncoder:
    """Examples to `Encoded`, with the token ids and features of `MediaProcessor`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        media: MediaConfig,
        *,
        dtype: str = "float32",
    ) -> None:
        """dtype: of patches."""
        self._tokenizer = tokenizer
        self._config = media.processor
        self._dtype = dtype
        self._template = ChatTemplate(family_template())

    def encode(self, example: Example) -> Encoded:
        rendered = render(example, self._template)
        ids: list[int] = []
        weights: list[float] = []
        pictures: list[Picture] = []
        clips: list[Clip] = []
        parts = media_parts(example.messages)
        for index, text in enumerate(rendered.texts):
            piece = self._tokenizer.encode(text) if text else []
            ids += piece
            weights += [_PROMPT_WEIGHT] * len(piece)
            if index == len(parts):
                break
            features = media_features(
                *parts[index], self._config, self._tokenizer, dtype=self._dtype
            )
            layout, start = features.layout, len(ids)
            if features.vision is not None:
                where = _places(layout, "vision", start)
                pictures.append(Picture(vision=features.vision, positions=where[0], rows=where[1]))
            if features.mel is not None:
                where = _places(layout, "audio", start)
                clips.append(Clip(mel=features.mel, positions=where[0], rows=where[1]))
            ids += layout.token_ids
            weights += [0.0] * len(layout.token_ids)
        prompt_len = len(ids)
        completion = self._tokenizer.encode(rendered.completion)
        ids += completion
        weights += [(_USUAL_LEN / len(completion)) ** 0.5] * len(completion)
        return Encoded(
            token_ids=np.array(ids, np.int64),
            weights=np.array(weights, np.float32),
            prompt_len=prompt_len,
            pictures=tuple(pictures),
            clips=tuple(clips),
        )


def _places(
    layout: Layout, kind: Literal["vision", "audio"], start: int
) -> tuple[np.ndarray, np.ndarray]:
    """(positions in the sequence, rows of the tower) of all spans."""
    spans = layout.vision if kind == "vision" else layout.audio
    positions = [np.arange(span.num_tokens) + start + span.start for span in spans]
    rows = [np.arange(span.num_tokens) + span.first_row for span in spans]
    if not spans:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(positions), np.concatenate(rows)

"""A conversation with media to what the engine takes: token ids, and features where media stand.

    messages -> inputs (inputs.py) -> bytes (fetch.py) -> features (image.py, video.py, audio.py)
    messages -> rendered text -> pieces (placeholders.py) -> token ids with spans (interleave.py)

Fetching waits on the event loop, decoding runs on threads of its own; both stop when the caller is
cancelled. What goes wrong with one piece of media is a RequestError that names its part.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mimo_engine.chat.template import normalise_messages
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.media import served_media
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import RequestError
from mimo_engine.messages import EngineInfo, MediaItem, MediaSpan
from mimo_engine.multimodal.audio import SoundChunk, audio_features, sound_chunks
from mimo_engine.multimodal.features import AudioFeatures, SoundTooShortError, VisionFeatures
from mimo_engine.multimodal.fetch import MediaFetcher
from mimo_engine.multimodal.image import image_features
from mimo_engine.multimodal.inputs import (
    MEDIA_KINDS,
    AudioInput,
    ImageInput,
    MediaInput,
    VideoAudioInput,
    VideoInput,
    read_input,
)
from mimo_engine.multimodal.interleave import Layout, audio_layout, image_layout, video_layout
from mimo_engine.multimodal.placeholders import hide_pads, split_prompt
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.multimodal.sources import BytesSource, MediaKind, errors_at
from mimo_engine.multimodal.video import video_features, video_frames_features
from mimo_engine.multimodal.video_file import has_audio_stream

__all__ = ["MediaProcessor", "MultimodalProcessorOutput", "Render"]

Message = Mapping[str, Any]
Render = Callable[[Sequence[Message]], str]
"""The chat template, with all that a request says about it."""

T = TypeVar("T")

_MAX_THREADS = 4
_MAX_AT_ONCE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class MultimodalProcessorOutput:
    """A prompt, ready for the engine."""

    text: str
    """As the template rendered it."""
    token_ids: list[int]
    media: list[MediaItem] = field(default_factory=list)
    features: list[SharedArrays] = field(default_factory=list)
    """Of `media`, in its order."""
    num_image_tokens: int = 0
    num_video_tokens: int = 0
    num_audio_tokens: int = 0
    """Sound of videos included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Decoded:
    """One part of a message, decoded."""

    kind: MediaKind
    vision: VisionFeatures | None = None
    audio: AudioFeatures | None = None


class MediaProcessor:
    """For one event loop, or one at a time. `config` None: text alone is served.

    dtype: of vision features, float32 or bfloat16. max_tokens: of a prompt; longer texts are
    refused before they are all tokenised.
    """

    def __init__(
        self,
        config: ProcessorConfig | None,
        tokenizer: Tokenizer,
        limits: MediaLimits,
        *,
        dtype: str = "float32",
        max_tokens: int | None = None,
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._limits = limits
        self._dtype = dtype
        self._max_tokens = max_tokens
        self._fetcher = MediaFetcher(limits)
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="media")

    @classmethod
    def of_engine(
        cls, config: EngineConfig, info: EngineInfo, tokenizer: Tokenizer, limits: MediaLimits
    ) -> MediaProcessor:
        """The processor whose features the engine of `config` takes."""
        if info.feature_dtype is None:
            return cls(None, tokenizer, limits, max_tokens=info.max_model_len)
        media = served_media(config)
        assert media is not None, "the engine has towers"
        return cls(
            media.processor,
            tokenizer,
            limits,
            dtype=info.feature_dtype,
            max_tokens=info.max_model_len,
        )

    async def process_mm_data_async(
        self, messages: Sequence[Message], *, render: Render
    ) -> MultimodalProcessorOutput:
        """Fetch and decode the media of `messages`, render them, lay out the tokens.

        messages: as a request has them. render: turns them into text. Raises RequestError, whose
        message and `param` name the part at fault.
        """
        messages = await asyncio.to_thread(normalise_messages, messages)
        parts = list(_media_parts(messages))
        if not parts:
            text = await asyncio.to_thread(render, messages)
            ids = await asyncio.to_thread(self._encode, text)
            return MultimodalProcessorOutput(text=text, token_ids=ids)
        if self._config is None:
            where, part = parts[0]
            raise RequestError(
                "Model only supports text input; received unsupported content type "
                f"{part['type']!r} in {where}",
                param="messages",
            )
        if len(parts) > self._limits.max_media_items:
            raise RequestError(
                f"the request has {len(parts)} images, videos and audio clips; at most "
                f"{self._limits.max_media_items} are taken (--max-media-items)",
                param="messages",
            )
        inputs = [(where, read_input(part, where)) for where, part in parts]
        kinds: list[MediaKind] = [media.kind for _, media in inputs]
        text = await asyncio.to_thread(render, hide_pads(_shown(messages, kinds)))
        texts = split_prompt(text, kinds)
        decoded = await self._all(inputs)
        return await asyncio.to_thread(self._assemble, text, texts, decoded, self._config)

    @property
    def takes_media(self) -> bool:
        return self._config is not None

    async def sound_chunks(
        self, data: bytes, where: str, *, longest_s: float
    ) -> AsyncGenerator[SoundChunk]:
        """A sound file cut to chunks (audio.py), each decoded when it is asked for.

        Raises RequestError, also midway; its `param` is `where`. The processor must take media.
        """
        assert self._config is not None
        file = await self._fetcher.fetch(BytesSource(data=data), where)
        chunks = sound_chunks(file, self._config, self._limits, longest_s=longest_s)
        step: Future[SoundChunk | None] | None = None
        try:
            while True:
                step = self._threads.submit(next, chunks, None)
                with errors_at(where):
                    chunk = await asyncio.wrap_future(step)
                if chunk is None:
                    break
                yield chunk
        finally:
            # A step may still run, when its waiter was cancelled.
            if step is not None:
                step.add_done_callback(lambda _: chunks.close())

    async def close(self) -> None:
        await self._fetcher.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _all(self, inputs: Sequence[tuple[str, MediaInput]]) -> list[_Decoded]:
        """The results in order; the first failure ends the others and is raised.

        A request works on a few of its media at a time, so that one with many leaves downloads and
        threads to others.
        """
        places = asyncio.Semaphore(_MAX_AT_ONCE)

        async def decode(where: str, media: MediaInput) -> _Decoded:
            async with places:
                return await self._decode(media, where)

        tasks = [asyncio.ensure_future(decode(where, media)) for where, media in inputs]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            # No circle of a failed task, its exception and this frame: features hang on it.
            tasks.clear()

    async def _decode(self, media: MediaInput, where: str) -> _Decoded:
        match media:
            case ImageInput(source=source):
                data = await self._fetcher.fetch(source, where)
                return _Decoded(
                    kind="image", vision=await self._run(where, self._image, media, data)
                )
            case AudioInput(source=source):
                data = await self._fetcher.fetch(source, where)
                sound = await self._run(where, self._sound, data)
                return _Decoded(kind="audio", audio=sound)
            case VideoInput():
                return await self._decode_video(media, None, where)
            case VideoAudioInput(video=video, audio=audio):
                return await self._decode_video(video, audio, where)

    async def _decode_video(
        self, video: VideoInput, audio: AudioInput | None, where: str
    ) -> _Decoded:
        """Pictures, and the sound from elsewhere, or the video's own where it has any."""
        data = await self._fetcher.fetch(video.source, where)
        sound_data = data if audio is None else await self._fetcher.fetch(audio.source, where)
        vision = await self._run(where, self._video, video, data)
        if audio is not None:
            sound = await self._run(where, self._sound, sound_data)
        else:
            sound = await self._run(where, self._own_sound, video, data)
        return _Decoded(kind="video", vision=vision, audio=sound)

    async def _run(self, where: str, work: Callable[..., T], *arguments: Any) -> T:
        """`work` on a thread; its RequestErrors name the part."""
        loop = asyncio.get_running_loop()
        with errors_at(where):
            return await loop.run_in_executor(self._threads, work, *arguments)

    def _image(self, image: ImageInput, data: Any) -> VisionFeatures:
        assert self._config is not None
        return image_features(
            data,
            self._config,
            self._limits,
            dtype=self._dtype,
            min_pixels=image.min_pixels,
            max_pixels=image.max_pixels,
        )

    def _video(self, video: VideoInput, data: Any) -> VisionFeatures:
        assert self._config is not None
        options = video.options
        if not isinstance(data, tuple):
            return video_features(data, self._config, self._limits, options, dtype=self._dtype)
        frames, fps = data
        if options.fps or options.min_frames or options.max_frames:
            raise RequestError("frames of a video are all looked at: leave fps and limits out")
        return video_frames_features(
            frames, self._config, self._limits, options, dtype=self._dtype, fps=fps
        )

    def _sound(self, data: Any) -> AudioFeatures:
        assert self._config is not None
        return audio_features(data, self._config, self._limits)

    def _own_sound(self, video: VideoInput, data: Any) -> AudioFeatures | None:
        """The sound that goes with a video's pictures; None: it has none, or is not to."""
        if video.use_audio is False or isinstance(data, tuple):
            return None
        if has_audio_stream(data):
            try:
                return self._sound(data)
            except SoundTooShortError:
                if video.use_audio:
                    raise
                return None
        if video.use_audio:
            raise RequestError("use_audio is true, but the video has no sound: leave use_audio out")
        return None

    def _assemble(
        self,
        text: str,
        texts: Sequence[str],
        decoded: Sequence[_Decoded],
        config: ProcessorConfig,
    ) -> MultimodalProcessorOutput:
        token_ids: list[int] = []
        media: list[MediaItem] = []
        features: list[SharedArrays] = []
        counts: dict[MediaKind, int] = {"image": 0, "video": 0, "audio": 0}
        for i, piece in enumerate(texts):
            token_ids.extend(self._encode(piece) if piece else ())
            if i == len(decoded):
                break
            one = decoded[i]
            layout = self._layout(one, config)
            counts[one.kind] += sum(span.num_tokens for span in layout.vision)
            counts["audio"] += sum(span.num_tokens for span in layout.audio)
            start = len(token_ids)
            if one.vision is not None:
                media.append(_vision_item(one.vision, layout.vision, start, config))
                features.append(one.vision.shared)
            if one.audio is not None and layout.audio:
                media.append(_audio_item(one.audio, layout.audio, start, config))
                features.append(one.audio.shared)
            token_ids.extend(layout.token_ids)
        return MultimodalProcessorOutput(
            text=text,
            token_ids=token_ids,
            media=media,
            features=features,
            num_image_tokens=counts["image"],
            num_video_tokens=counts["video"],
            num_audio_tokens=counts["audio"],
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, max_tokens=self._max_tokens)

    def _layout(self, one: _Decoded, config: ProcessorConfig) -> Layout:
        if one.kind == "audio":
            assert one.audio is not None
            return audio_layout(config, one.audio.num_tokens)
        assert one.vision is not None
        tokens_per_step = _tokens_per_step(one.vision, config)
        if one.kind == "image":
            return image_layout(config, tokens_per_step)
        return video_layout(
            config,
            self._tokenizer.encode,
            one.vision.timestamps,
            tokens_per_step,
            None if one.audio is None else one.audio.num_tokens,
        )


def _media_parts(messages: Sequence[Message]) -> list[tuple[str, Mapping[str, Any]]]:
    """(where, part) of every part that is no text, in order."""
    return [
        (f"messages[{i}].content[{j}]", part)
        for i, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for j, part in enumerate(message["content"])
        if part.get("type") in MEDIA_KINDS
    ]


def _shown(messages: Sequence[Message], kinds: Sequence[MediaKind]) -> list[Message]:
    """The messages with each piece of media as its kind alone: a template tells kinds by the keys
    of a part, of which a video with sound from elsewhere has two."""
    left = iter(kinds)
    shown = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            parts = [
                {"type": next(left)} if part.get("type") in MEDIA_KINDS else part
                for part in content
            ]
            message = {**message, "content": parts}
        shown.append(message)
    return shown


def _tokens_per_step(vision: VisionFeatures, config: ProcessorConfig) -> int:
    _, height, width = vision.grid
    return height * width // config.merge_size**2


def _vision_item(
    vision: VisionFeatures, spans: Sequence[MediaSpan], start: int, config: ProcessorConfig
) -> MediaItem:
    unit_rows = _tokens_per_step(vision, config)
    return MediaItem(
        kind="vision",
        content_hash=vision.shared.content_hash("vision", vision.grid),
        num_rows=vision.grid[0] * unit_rows,
        unit_rows=unit_rows,
        spans=_moved(spans, start),
        arrays=list(vision.shared.specs),
        grid=vision.grid,
    )


def _audio_item(
    audio: AudioFeatures, spans: Sequence[MediaSpan], start: int, config: ProcessorConfig
) -> MediaItem:
    return MediaItem(
        kind="audio",
        content_hash=audio.shared.content_hash("audio"),
        num_rows=audio.num_tokens,
        unit_rows=config.segment_frames // config.frames_per_token,
        spans=_moved(spans, start),
        arrays=list(audio.shared.specs),
    )


def _moved(spans: Sequence[MediaSpan], start: int) -> list[MediaSpan]:
    return [MediaSpan(start + span.start, span.num_tokens, span.first_row) for span in spans]

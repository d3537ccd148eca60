"""The text of a sound while it grows: chunks of the sound, a request to the engine for each.

Chunks run side by side, a few at a time, and their texts come out in the order of the sound: what a
later one says waits until those before it have ended. None is told what was said before it: a
mistake of one would be repeated by the next, and they would have to wait for each other. Nor is a
silent chunk asked about: models hear words in silence. The model is told not to think.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from mimo_engine.chat.events import Content, Reasoning
from mimo_engine.chat.stream_parser import StreamParser, thinking_after
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.messages import TokenLogprobs
from mimo_engine.multimodal.audio import SoundChunk
from mimo_engine.server.chat_schemas import Conversation
from mimo_engine.server.generation import Generation, ServerContext
from mimo_engine.server.joined_text import JoinedText
from mimo_engine.server.transcription_schemas import TranscriptionRequest
from mimo_engine.server.turn import conversation_prompt

__all__ = ["Piece", "Segment", "Transcript"]

logger = logging.getLogger(__name__)

_MAX_AT_ONCE = 8
"""Chunks of one sound that are decoded, transcribed, or wait for those before them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """What was added to a text."""

    text: str
    logprobs: list[TokenLogprobs]
    """Of the tokens that say it, where they were asked for."""


@dataclass(kw_only=True, slots=True)
class Segment:
    """A chunk, and what was said in it so far."""

    start_s: float
    end_s: float
    text: str = ""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_text_tokens: int = 0
    """Of the prompt, as the next."""
    num_audio_tokens: int = 0
    num_output_tokens: int = 0


class Transcript:
    """`updates` runs it; the other attributes are complete when that has ended."""

    def __init__(self, body: TranscriptionRequest, context: ServerContext, data: bytes) -> None:
        """data: the sound, as an encoded file."""
        self._body = body
        self._context = context
        self._sounds = context.media.sound_chunks(
            data,
            "file",
            longest_s=context.config.transcription.transcription_chunk_s,
        )
        self._joined = JoinedText()
        self.segments: list[Segment] = []
        """One for each chunk."""

    @property
    def text(self) -> str:
        return self._joined.text

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        return [entry for segment in self.segments for entry in segment.logprobs]

    @property
    def duration_s(self) -> float:
        return self.segments[-1].end_s if self.segments else 0.0

    async def updates(self) -> AsyncGenerator[Piece]:
        """The pieces of `text`. Closing the generator ends all that still runs.

        Raises RequestError and its kin, also midway: a file may be damaged anywhere.
        """
        chunks: asyncio.Queue[_Chunk | None] = asyncio.Queue()
        places = asyncio.Semaphore(_MAX_AT_ONCE)
        tasks: list[asyncio.Task[None]] = []
        feeder = asyncio.create_task(self._feed(chunks, places, tasks))
        try:
            while (chunk := await chunks.get()) is not None:
                self.segments.append(chunk.segment)
                async for piece in chunk.pieces():
                    added = self._joined.add(piece.text)
                    if added or piece.logprobs:
                        yield Piece(text=added, logprobs=piece.logprobs)
                self._joined.next_piece()
                places.release()
            await feeder
        finally:
            feeder.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(feeder, *tasks, return_exceptions=True)
            # No circle of a failed task, its exception and this frame.
            del feeder
            tasks.clear()

    async def _feed(
        self,
        chunks: asyncio.Queue[_Chunk | None],
        places: asyncio.Semaphore,
        tasks: list[asyncio.Task[None]],
    ) -> None:
        """Start the chunks, as there are places; then say that there are no more."""
        try:
            await places.acquire()
            async with aclosing(self._sounds) as sounds:
                async for sound in sounds:
                    chunk = _Chunk(self._body, self._context, sound)
                    del sound
                    tasks.append(chunk.task)
                    chunks.put_nowait(chunk)
                    await places.acquire()
        finally:
            chunks.put_nowait(None)


class _Chunk:
    """One chunk on its way through the engine."""

    def __init__(
        self, body: TranscriptionRequest, context: ServerContext, sound: SoundChunk
    ) -> None:
        self.segment = Segment(start_s=sound.start_s, end_s=sound.end_s)
        self._body = body
        self._context = context
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._run(sound))

    async def pieces(self) -> AsyncGenerator[Piece]:
        """Those of its text, as they come."""
        while (piece := await self._pieces.get()) is not None:
            self.segment.text += piece.text
            self.segment.logprobs += piece.logprobs
            yield piece
        await self.task

    async def _run(self, sound: SoundChunk) -> None:
        try:
            if not sound.is_silent:
                speech, generation = await self._start(sound)
                del sound
                await self._read(speech, generation)
        finally:
            self._pieces.put_nowait(None)

    async def _start(self, sound: SoundChunk) -> tuple[_Speech, Generation]:
        body, segment = self._body, self.segment
        instruction = body.instruction(self._context.config.transcription.transcription_prompt)
        content = [
            {"type": "audio", "audio": (sound.samples, sound.rate)},
            {"type": "text", "text": instruction},
        ]
        message = {"role": "user", "content": content}
        prompt = await conversation_prompt(
            Conversation(messages=[message], enable_thinking=False), self._context
        )
        segment.num_audio_tokens = prompt.num_audio_tokens
        segment.num_text_tokens = len(prompt.token_ids) - prompt.num_audio_tokens
        room = self._context.client.info.max_model_len - len(prompt.token_ids)
        generation = Generation(
            self._context,
            [prompt.token_ids],
            body.sampling_params(segment.end_s - segment.start_s, room),
            media=prompt.media,
            features=prompt.features,
        )
        return _Speech(self._context.tokenizer, prompt.text), generation

    async def _read(self, speech: _Speech, generation: Generation) -> None:
        [output] = generation.outputs
        async with aclosing(generation.updates()) as updates:
            async for update in updates:
                is_last = output.finish_reason is not None
                piece = speech.take(update.text, update.logprobs, is_last=is_last)
                self.segment.num_output_tokens = len(output.token_ids)
                self._pieces.put_nowait(piece)
        if output.finish_reason == "length" and self._body.max_completion_tokens is None:
            logger.warning(
                "the text of a sound from %.0f to %.0f s was cut after %d tokens",
                self.segment.start_s,
                self.segment.end_s,
                self.segment.num_output_tokens,
            )


class _Speech:
    """An answer without thoughts, which some templates leave to the model, and the
    log-probabilities of what is left."""

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        self._parser = StreamParser(thinking=thinking_after(prompt))
        self._tokenizer = tokenizer
        self._end_id = tokenizer.find_id("</think>")
        self._held: list[TokenLogprobs] = []
        """Of text that the parser holds: it may become a tag."""

    def take(self, text: str, logprobs: list[TokenLogprobs], *, is_last: bool) -> Piece:
        events = self._parser.push(text)
        if is_last:
            events = [*events, *self._parser.finish()]
        self._held += logprobs
        said = "".join(event.text for event in events if isinstance(event, Content))
        if any(isinstance(event, Reasoning) for event in events):
            ends = [i for i, entry in enumerate(self._held) if entry.token_id == self._end_id]
            self._held = self._held[ends[-1] :] if ends else []
        if not said and not is_last:
            return Piece(text="", logprobs=[])
        spelled, self._held = self._held, []
        return Piece(text=said, logprobs=[entry for entry in spelled if self._is_text(entry)])

    def _is_text(self, entry: TokenLogprobs) -> bool:
        return entry.token_id != self._end_id and not self._tokenizer.is_skipped(entry.token_id)

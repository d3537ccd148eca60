"""POST /v1/audio/transcriptions: a sound file to text, in OpenAI's formats, whole or as events.

The model gives no times, so a segment is a chunk of the sound, with that chunk's beginning and end
(multimodal/cutting.py says where sounds are cut); one in which nothing was said is left out.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from statistics import fmean
from typing import Literal

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import UNSET, UnsetType

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.errors import RequestError
from mimo_engine.messages import TokenLogprobs
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.objects import TopLogprob, finite
from mimo_engine.server.stream import drained, json_response, stream_events, while_connected
from mimo_engine.server.transcript import Segment, Transcript
from mimo_engine.server.transcription_schemas import (
    TranscriptionRequest,
    form_schema,
    read_form,
)

__all__ = ["Transcription", "transcriptions_router"]


class InputTokenDetails(msgspec.Struct, frozen=True):
    text_tokens: int
    audio_tokens: int


class TokenUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Of all chunks, each of which reads the instruction."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int
    input_token_details: InputTokenDetails
    output_tokens: int
    total_tokens: int


class DurationUsage(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    logprobs: list[TopLogprob] | UnsetType = UNSET
    usage: TokenUsage


class VerboseSegment(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    seek: int
    """Hundredths of a second before it, as Whisper counts."""
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: None = None
    """Nothing tells it."""


class VerboseTranscription(msgspec.Struct, frozen=True, kw_only=True):
    task: Literal["transcribe"] = "transcribe"
    language: str
    """As the request says: nothing detects it."""
    duration: float
    text: str
    segments: list[VerboseSegment]
    usage: DurationUsage


class TextDelta(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    logprobs: list[TopLogprob] | UnsetType = UNSET


class TextDone(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    logprobs: list[TopLogprob] | UnsetType = UNSET
    usage: TokenUsage


def transcriptions_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/audio/transcriptions", openapi_extra=form_schema())
    async def create(request: Request) -> Response:
        if not context.media.takes_media or context.template is None:
            raise RequestError(
                f"the model `{context.model_name}`, as it is served here, hears nothing: it has no "
                "audio tower (or --text-only is set), or no chat template",
                param="model",
            )
        body, data = await read_form(request)
        context.check_model(body.model)
        # For what it refuses: before anything is decoded.
        body.sampling_params(0, 1)
        transcript = Transcript(body, context, data)
        del data
        renderer = _Renderer(body, transcript, context.tokenizer)
        if body.stream:
            return await stream_events(request, renderer.events())
        await while_connected(request.receive, drained(transcript.updates()))
        return renderer.whole()

    return router


class _Renderer:
    """One transcript as a whole response or as events."""

    def __init__(
        self, body: TranscriptionRequest, transcript: Transcript, tokenizer: Tokenizer
    ) -> None:
        self._body = body
        self._transcript = transcript
        self._tokenizer = tokenizer

    def whole(self) -> Response:
        match self._body.response_format:
            case "json":
                return json_response(
                    Transcription(
                        text=self._transcript.text,
                        logprobs=self._logprobs(self._transcript.logprobs),
                        usage=self._usage(),
                    )
                )
            case "verbose_json":
                return json_response(self._verbose())
            case "text":
                text = f"{self._transcript.text}\n"
            case "srt":
                text = _srt(self._spoken())
            case "vtt":
                text = _vtt(self._spoken())
        return Response(text, media_type="text/plain")

    async def events(self) -> AsyncGenerator[TextDelta | TextDone]:
        async with aclosing(self._transcript.updates()) as updates:
            async for piece in updates:
                yield TextDelta(delta=piece.text, logprobs=self._logprobs(piece.logprobs))
        yield TextDone(
            text=self._transcript.text,
            logprobs=self._logprobs(self._transcript.logprobs),
            usage=self._usage(),
        )

    def _spoken(self) -> list[Segment]:
        return [segment for segment in self._transcript.segments if segment.text.strip()]

    def _verbose(self) -> VerboseTranscription:
        transcript = self._transcript
        return VerboseTranscription(
            language=(self._body.language_name() or "unknown").lower(),
            duration=round(transcript.duration_s, 3),
            text=transcript.text,
            segments=[
                _verbose_segment(i, segment, self._body.temperature)
                for i, segment in enumerate(self._spoken())
            ],
            usage=DurationUsage(seconds=round(transcript.duration_s, 3)),
        )

    def _usage(self) -> TokenUsage:
        segments = self._transcript.segments
        text = sum(segment.num_text_tokens for segment in segments)
        audio = sum(segment.num_audio_tokens for segment in segments)
        output = sum(segment.num_output_tokens for segment in segments)
        return TokenUsage(
            input_tokens=text + audio,
            input_token_details=InputTokenDetails(text_tokens=text, audio_tokens=audio),
            output_tokens=output,
            total_tokens=text + audio + output,
        )

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> list[TopLogprob] | UnsetType:
        if not self._body.include:
            return UNSET
        return [TopLogprob.of(entry.token_id, entry.logprob, self._tokenizer) for entry in entries]


def _verbose_segment(index: int, segment: Segment, temperature: float) -> VerboseSegment:
    text = segment.text.strip()
    data = text.encode()
    logprobs = [entry.logprob for entry in segment.logprobs]
    return VerboseSegment(
        id=index,
        seek=round(100 * segment.start_s),
        start=round(segment.start_s, 3),
        end=round(segment.end_s, 3),
        text=text,
        tokens=[entry.token_id for entry in segment.logprobs],
        temperature=temperature,
        avg_logprob=finite(fmean(logprobs)) if logprobs else 0.0,
        compression_ratio=round(len(data) / len(zlib.compress(data)), 3),
    )


def _srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered, with commas in its times."""
    return "".join(
        f"{i}\n{_time(one.start_s, ',')} --> {_time(one.end_s, ',')}\n"
        f"{_line(one).replace('-->', '->')}\n\n"
        for i, one in enumerate(segments, start=1)
    )


def _vtt(segments: Sequence[Segment]) -> str:
    """WebVTT, whose texts are escaped as HTML's are."""
    cues = []
    for one in segments:
        text = _line(one).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        cues.append(f"{_time(one.start_s, '.')} --> {_time(one.end_s, '.')}\n{text}\n\n")
    return "WEBVTT\n\n" + "".join(cues)


def _line(segment: Segment) -> str:
    """An empty line would end a cue."""
    return " ".join(segment.text.split())


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{point}{milliseconds % 1000:03}"

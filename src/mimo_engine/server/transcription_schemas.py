"""The form of POST /v1/audio/transcriptions: its fields, read and checked.

A form has texts alone: lists come as repeated fields (`include[]`), and a field that is empty is
not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError, field_validator, model_validator
from starlette.datastructures import FormData, UploadFile

from mimo_engine.config.sampling import MAX_TOP_K, SamplingParams
from mimo_engine.errors import RequestError
from mimo_engine.server.languages import LANGUAGES
from mimo_engine.server.schemas import RequestModel

__all__ = ["TranscriptionRequest", "form_schema", "read_form"]

_MAX_FIELDS = 256
_FILE_FORM = "send multipart/form-data with the sound in the field file"
_LISTS = ("include", "keywords", "languages", "timestamp_granularities")
_TOKENS_A_S, _LEAST_TOKENS = 32, 64
"""Fast speech has some five words a second, and no script needs more than six tokens for one."""


class TranscriptionRequest(RequestModel):
    """All but the file. None: as if the field were not there."""

    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        # Long sounds are cut anyway. An object with the settings of a detector is not.
        "chunking_strategy": ("auto",),
        "known_speaker_names": (),
        "known_speaker_references": (),
        "n": ("1",),
        # The end of a stream has its usage anyway.
        "stream_include_usage": ("true",),
        "stream_continuous_usage_stats": ("false",),
    }

    model: str | None = None
    language: str | None = None
    languages: list[str] = Field(default_factory=list)
    prompt: str | None = None
    keywords: list[str] = Field(default_factory=list)
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    stream: bool = False
    include: list[str] = Field(default_factory=list)
    timestamp_granularities: list[Literal["word", "segment"]] = Field(default_factory=list)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Of each chunk."""
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = Field(default=-1, le=MAX_TOP_K)
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    @field_validator("include")
    @classmethod
    def _check_include(cls, include: list[str]) -> list[str]:
        for name in include:
            if name != "logprobs":
                raise RequestError(
                    f"include has {name!r}: logprobs is all there is", param="include"
                )
        return include

    @model_validator(mode="after")
    def _check(self) -> TranscriptionRequest:
        if self.language and self.languages:
            raise RequestError("language and languages exclude each other", param="languages")
        for code in self._codes():
            if code.lower() not in LANGUAGES:
                raise RequestError(
                    f"language is {code!r}: give a code of ISO 639-1, such as en or zh",
                    param="language" if self.language else "languages",
                )
        if "word" in self.timestamp_granularities:
            raise RequestError(
                "the model gives no times of words: timestamp_granularities takes segment",
                param="timestamp_granularities",
            )
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise RequestError(
                "timestamp_granularities needs response_format verbose_json",
                param="timestamp_granularities",
            )
        if self.include and self.response_format != "json":
            raise RequestError("include needs response_format json", param="include")
        if self.stream and self.response_format not in ("json", "text"):
            raise RequestError(
                f"a stream has no {self.response_format}: leave response_format or stream out",
                param="response_format",
            )
        return self

    def language_name(self) -> str | None:
        """In English; None: the request does not say one."""
        codes = self._codes()
        return LANGUAGES[codes[0].lower()] if len(codes) == 1 else None

    def instruction(self, base: str) -> str:
        """What the model is asked: `base`, and a line for all that the request says."""
        names = [LANGUAGES[code.lower()] for code in self._codes()]
        lines = [base]
        if len(names) == 1:
            lines.append(f"The language is {names[0]}.")
        elif names:
            lines.append(f"The language is one of these: {', '.join(names)}.")
        if self.keywords:
            lines.append(f"These words may occur in it: {', '.join(self.keywords)}.")
        if self.prompt:
            lines.append(f"Context and spelling, not part of the audio: {self.prompt}")
        return "\n".join(lines)

    def sampling_params(self, sound_s: float, room: int) -> SamplingParams:
        """Of a chunk of so many seconds. room: tokens that the context has left for its text.
        RequestError: out of bounds."""
        needs_logprobs = bool(self.include) or self.response_format == "verbose_json"
        most = min(_LEAST_TOKENS + int(_TOKENS_A_S * sound_s), room)
        return SamplingParams(
            max_tokens=self.max_completion_tokens or max(1, most),
            logprobs=0 if needs_logprobs else None,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
        )

    def _codes(self) -> Sequence[str]:
        return [self.language] if self.language else self.languages


async def read_form(request: Request) -> tuple[TranscriptionRequest, bytes]:
    """The fields and the file. RequestError, RequestValidationError: what is wrong with them."""
    # The other kind of form has no files, and Starlette has no limit for its fields.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise RequestError(f"the content-type is {kind!r:.80}: {_FILE_FORM}", param="file")
    async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
        fields = _fields(form)
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise RequestError(f"file is missing: {_FILE_FORM}", param="file")
        try:
            # A form is read from texts, JSON's strictness about types would refuse them all.
            body = TranscriptionRequest.model_validate_strings(fields, strict=False)
        except ValidationError as error:
            raise RequestValidationError(
                [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
            ) from error
        return body, await upload.read()


def form_schema() -> dict[str, Any]:
    """For the server's OpenAPI: `openapi_extra` of the route."""
    schema = TranscriptionRequest.model_json_schema()
    schema["properties"]["file"] = {"type": "string", "format": "binary"}
    schema["required"] = ["file"]
    return {
        "requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    }


def _fields(form: FormData) -> dict[str, Any]:
    """By name: texts, and lists of texts."""
    fields: dict[str, Any] = {}
    for key, value in form.multi_items():
        name, _, rest = key.partition("[")
        if key == "file":
            continue
        if not isinstance(value, str):
            raise RequestError(f"{key} must not be a file: {_FILE_FORM}", param=key)
        if not value:
            continue
        if name in _LISTS and rest in ("", "]"):
            fields.setdefault(name, []).append(value)
        elif name in fields and not rest:
            raise RequestError(f"{key} is given twice", param=key)
        else:
            fields[name] = value
    return fields

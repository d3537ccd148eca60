"""Content blocks of requests, and what each of them may say.

An unknown block or key is an error that names its place. The keys of images, videos and audio clips
beside their source are options of `multimodal/inputs.py`, which has the last word on them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, FailFast, Field
from pydantic_core import PydanticCustomError

from mimo_engine.server.schemas import Strict


class _Block(Strict):
    cache_control: dict[str, Any] | None = None
    """Of no effect: prefixes are cached without being asked for."""


class TextBlock(_Block):
    type: Literal["text"]
    text: str
    citations: list[Any] | None = None
    """Of an earlier answer, which the model does not read."""


def _blocks(content: Any) -> Any:
    """A string is short for one block of text."""
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextContent = Annotated[list[TextBlock], BeforeValidator(_blocks)]


class Base64Source(Strict):
    type: Literal["base64"]
    media_type: str
    data: str


class UrlSource(Strict):
    type: Literal["url"]
    url: str


MediaSource = Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class MediaBlock(_Block):
    """`audio` and `video` are this server's own: Anthropic's API has images alone."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["image", "audio", "video"]
    source: MediaSource

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TextSource(Strict):
    type: Literal["text"]
    media_type: Literal["text/plain"]
    data: str


def _no_pdf(source: Any) -> Any:
    kind = source.get("type") if isinstance(source, dict) else None
    if kind in ("base64", "url", "file"):
        raise PydanticCustomError(
            "pdf",
            "this model reads no PDF: send its text as a source of type text, or its pages as "
            "image blocks",
        )
    return source


class ContentSource(Strict):
    type: Literal["content"]
    content: Annotated[
        list[Annotated[TextBlock | MediaBlock, Field(discriminator="type")]],
        BeforeValidator(_blocks),
    ]


class _Citations(Strict):
    enabled: Literal[False] | None = None
    """This model cites nothing."""


class DocumentBlock(_Block):
    type: Literal["document"]
    source: Annotated[
        Annotated[TextSource | ContentSource, Field(discriminator="type")],
        BeforeValidator(_no_pdf),
    ]
    title: str | None = None
    context: str | None = None
    citations: _Citations | None = None


class SearchResultBlock(_Block):
    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]
    citations: _Citations | None = None


class ThinkingBlock(_Block):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(_Block):
    """What another service has encrypted: the model does not see it."""

    type: Literal["redacted_thinking"]
    data: str


class ToolUseBlock(_Block):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: dict[str, Any] | None = None
    toolset_name: None = None


class ToolResultBlock(_Block):
    type: Literal["tool_result"]
    tool_use_id: str
    content: (
        Annotated[
            list[
                Annotated[
                    TextBlock | MediaBlock | DocumentBlock | SearchResultBlock,
                    Field(discriminator="type"),
                ]
            ],
            BeforeValidator(_blocks),
        ]
        | None
    ) = None
    is_error: bool | None = None
    toolset_name: None = None


Block = Annotated[
    TextBlock
    | MediaBlock
    | DocumentBlock
    | SearchResultBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock,
    Field(discriminator="type"),
]

Content = Annotated[list[Block], FailFast(), BeforeValidator(_blocks)]

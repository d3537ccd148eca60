"""An example to the prompt that the server makes of it, and the completion to be learned.

What must hold: prompt and completion together are what the chat template shows of the whole
conversation, so that what was trained is what a later turn of the same conversation reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimo_engine.chat.template import ChatTemplate, normalise_messages
from mimo_engine.demo.task import Example, Message
from mimo_engine.multimodal.placeholders import hide_pads, split_prompt
from mimo_engine.multimodal.sources import MediaKind

__all__ = ["Rendered", "media_parts", "render"]

_KINDS: dict[str, MediaKind] = {"image": "image", "audio": "audio", "video": "video"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """The text of an example."""

    texts: Sequence[str]
    """Of the prompt: before, between and after its media."""
    completion: str

    @property
    def prompt(self) -> str:
        """Without its media."""
        return "".join(self.texts)


def media_parts(messages: Sequence[Message]) -> list[tuple[MediaKind, Mapping[str, Any]]]:
    """Every part with media, in order."""
    return [
        (_KINDS[part["type"]], part)
        for message in messages
        if isinstance(message.get("content"), list | tuple)
        for part in message["content"]
        if part["type"] in _KINDS
    ]


def render(example: Example, template: ChatTemplate) -> Rendered:
    """`example` as the server renders it: media by their kind, characters of a text as text."""
    kinds: list[MediaKind] = [kind for kind, _ in media_parts(example.messages)]
    shown = [hide_pads(_shown(message)) for message in example.messages]
    messages = normalise_messages(shown)
    whole = normalise_messages([*shown, example.answer])
    prompt = template.render(
        messages,
        tools=example.tools,
        template_kwargs={} if example.thinks else {"enable_thinking": False},
    )
    conversation = template.render(whole, tools=example.tools, add_generation_prompt=False)
    assert conversation.startswith(prompt), "an answer with a thought, though thinking is off"
    return Rendered(texts=split_prompt(prompt, kinds), completion=conversation[len(prompt) :])


def _shown(message: Message) -> Message:
    """The message with its media as kinds alone: a video with sound has keys of both."""
    content = message.get("content")
    if not isinstance(content, list | tuple):
        return message
    parts = [{"type": part["type"]} if part["type"] in _KINDS else dict(part) for part in content]
    return {**message, "content": parts}

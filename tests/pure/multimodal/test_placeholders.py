"""The template's own pads are found, and those that somebody wrote are text."""

import pytest

from mimo_engine.chat.template import ChatTemplate, family_template
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.placeholders import hide_pads, split_prompt

TEMPLATE = ChatTemplate(family_template())
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def user(*parts):
    return [{"role": "user", "content": list(parts)}]


def text(value):
    return {"type": "text", "text": value}


def test_media_are_cut_out_in_order():
    messages = user(
        {"type": "image"}, text("Describe."), {"type": "video"}, {"type": "audio"}, text("End")
    )
    rendered = TEMPLATE.render(messages)
    texts = split_prompt(rendered, ["image", "video", "audio"])
    assert texts[0].endswith("<|im_start|>user\n")
    assert texts[1:3] == ["Describe.", ""]
    assert texts[3].startswith("End<|im_end|>")


def test_pads_that_a_user_wrote_are_text_and_come_back_as_they_were():
    quoted = f"What is {IMAGE}, and <|audio_pad|>?"
    messages = hide_pads(user(text(quoted), {"type": "image"}, text(IMAGE)))
    texts = split_prompt(TEMPLATE.render(messages), ["image"])
    assert texts[0].endswith(quoted)
    assert texts[1].startswith(IMAGE)


def test_pads_in_tool_calls_are_text():
    call = {"function": {"name": "f", "arguments": {"a": IMAGE, "b": [IMAGE, 1, None]}}}
    messages = [
        *user({"type": "image"}),
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    texts = split_prompt(TEMPLATE.render(hide_pads(messages)), ["image"])
    assert texts[1].count(IMAGE) == 2


def test_a_template_that_shows_other_media_is_found_out():
    template = ChatTemplate("{% for m in messages %}{{ m.role }}{% endfor %}")
    with pytest.raises(RequestError, match="shows no media where the messages have image"):
        split_prompt(template.render(user({"type": "image"})), ["image"])
    with pytest.raises(RequestError, match="shows image where the messages have image, audio"):
        split_prompt(IMAGE, ["image", "audio"])


def test_text_without_media_is_one_piece():
    assert split_prompt("a <|image_pad|> b", []) == ["a <|image_pad|> b"]

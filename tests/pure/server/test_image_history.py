"""Of a conversation's images the newest are kept, and all else is left as it came."""

import copy

import pytest

from mimo_engine.server.image_history import with_newest_images

GONE = {"type": "text", "text": "[image removed]"}


def image(name):
    return {"type": "image_url", "image_url": {"url": name}}


def text(said):
    return {"type": "text", "text": said}


VIDEO = {"type": "video_url", "video_url": {"url": "v"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
MESSAGES = [
    {"role": "system", "content": "Look."},
    {"role": "user", "content": [image("a"), text("first"), VIDEO, image("b")]},
    {"role": "assistant", "content": "Seen."},
    {"role": "user", "content": [SOUND, {"type": "image", "image": "c"}, text("and this")]},
]


def shown(num_kept):
    """The names of the images that are kept, with None for each one that is not."""
    found, _ = with_newest_images(MESSAGES, num_kept)
    parts = [part for message in found for part in message["content"] if isinstance(part, dict)]
    names = {str(image("a")): "a", str(image("b")): "b"}
    return [
        None if part == GONE else names.get(str(part), "c")
        for part in parts
        if part == GONE or part["type"] in ("image", "image_url")
    ]


@pytest.mark.parametrize(
    ("num_kept", "expected"),
    [
        (None, ["a", "b", "c"]),
        (4, ["a", "b", "c"]),
        (3, ["a", "b", "c"]),
        (2, [None, "b", "c"]),
        (1, [None, None, "c"]),
        (0, [None, None, None]),
    ],
)
def test_the_newest_images_are_kept(num_kept, expected):
    before = copy.deepcopy(MESSAGES)
    assert shown(num_kept) == expected
    assert with_newest_images(MESSAGES, num_kept)[1] == expected.count(None)
    assert before == MESSAGES


def test_all_else_is_left_as_it_came():
    found, _ = with_newest_images(MESSAGES, 1)
    assert found[1]["content"] == [GONE, text("first"), VIDEO, GONE]
    assert [found[i] for i in (0, 2, 3)] == [MESSAGES[i] for i in (0, 2, 3)]
    # To be refused by who reads them.
    odd = [{"content": None}, {"content": [None, "x", {"type": ["image"]}, image("a")]}, {}]
    found, _ = with_newest_images(odd, 0)
    assert found == [{"content": None}, {"content": [None, "x", {"type": ["image"]}, GONE]}, {}]

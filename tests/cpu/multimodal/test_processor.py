"""`process_mm_data_async` by itself: messages in, token ids and features out."""

import asyncio

import numpy as np
import pytest

from media_config import processor_config
from media_files import gradient, make_image, tone
from mimo_engine.chat.template import ChatTemplate, family_template
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.synthetic_tokenizer import write_synthetic_tokenizer
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.processor import MediaProcessor

TEMPLATE = ChatTemplate(family_template())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    write_synthetic_tokenizer(folder, chat_template=family_template())
    return Tokenizer.from_dir(folder)


def process(tokenizer, *parts, limits=None, config="released", **options):
    config = processor_config() if config == "released" else config

    async def main():
        processor = MediaProcessor(config, tokenizer, limits or MediaLimits(), **options)
        try:
            messages = [{"role": "user", "content": list(parts)}]
            return await processor.process_mm_data_async(messages, render=TEMPLATE.render)
        finally:
            await processor.close()

    return asyncio.run(main())


IMAGE = {"type": "image", "image": gradient(160, 128)}
SOUND = {"type": "audio", "audio": (tone(1.0)[0], 24_000)}
TEXT = {"type": "text", "text": "What?"}


def test_items_stand_where_their_parts_do(tokenizer):
    output = process(tokenizer, IMAGE, TEXT, SOUND)
    image, sound = output.media
    ids = np.array(output.token_ids)
    assert ids[image.spans[0].start - 1] == 151652
    assert (ids[image.spans[0].start :][:20] == 151655).all()
    assert (ids[sound.spans[0].start :][:7] == 151669).all()
    assert (image.num_rows, image.unit_rows, image.grid) == (20, 20, (1, 8, 10))
    assert (sound.num_rows, sound.unit_rows) == (7, 375)
    assert (output.num_image_tokens, output.num_video_tokens, output.num_audio_tokens) == (20, 0, 7)
    assert [shared.specs for shared in output.features] == [image.arrays, sound.arrays]


def test_text_alone_needs_no_towers(tokenizer):
    output = process(tokenizer, TEXT, config=None)
    assert output.media == output.features == []
    assert tokenizer.decode(output.token_ids).count("What?") == 1


def test_a_hash_is_of_what_the_towers_see(tokenizer):
    hashes = [
        process(tokenizer, part, **options).media[0].content_hash
        for part, options in (
            (IMAGE, {}),
            ({"type": "image", "image": make_image(gradient(160, 128))}, {}),
            ({**IMAGE, "max_pixels": 10_000}, {}),
            (IMAGE, {"dtype": "bfloat16"}),
            ({"type": "image", "image": gradient(128, 160)}, {}),
        )
    ]
    # The same pixels as an array and as a file are the same picture.
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 4


def test_too_many_media_are_refused_before_any_is_read(tokenizer):
    missing = {"type": "image", "image": "/nowhere.png"}
    with pytest.raises(RequestError, match="max-media-items"):
        process(tokenizer, *[missing] * 3, limits=MediaLimits(max_media_items=2))


def test_the_first_failure_is_told_and_the_others_are_dropped(tokenizer):
    broken = {"type": "image", "image": b"no picture"}
    with pytest.raises(RequestError, match=r"messages\[0\]\.content\[1\]") as caught:
        process(tokenizer, IMAGE, broken, SOUND)
    assert caught.value.param == "messages[0].content[1]"

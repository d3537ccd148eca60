"""What training reads of an example is what serving makes of the same conversation."""

import asyncio
import random

import numpy as np
import pytest

from mimo_engine.chat.template import ChatTemplate, family_template, normalise_messages
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.demo.encoding import ExampleEncoder
from mimo_engine.demo.rendering import render
from mimo_engine.multimodal.processor import MediaProcessor


def served(example, tokenizer, shape, dtype):
    """The prompt of `example` through the engine's own processor."""
    template = ChatTemplate(family_template())

    def shown(messages):
        return template.render(
            messages,
            tools=example.tools,
            template_kwargs={"enable_thinking": example.thinks},
        )

    async def main():
        processor = MediaProcessor(shape.media.processor, tokenizer, MediaLimits(), dtype=dtype)
        try:
            return await processor.process_mm_data_async(
                normalise_messages(example.messages), render=shown
            )
        finally:
            await processor.close()

    return asyncio.run(main())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_have_the_ids_spans_and_features_of_the_server(tasks, tokenizer, shape, dtype):
    encoder = ExampleEncoder(tokenizer, shape.media, dtype=dtype)
    seen = set()
    for task in tasks:
        for seed in range(2):
            example = task.make(random.Random(seed), "train")
            encoded = encoder.encode(example)
            output = served(example, tokenizer, shape, dtype)
            assert encoded.token_ids[: encoded.prompt_len].tolist() == output.token_ids, task.name
            pictures, clips = iter(encoded.pictures), iter(encoded.clips)
            for item, features in zip(output.media, output.features, strict=True):
                positions = [p for s in item.spans for p in range(s.start, s.start + s.num_tokens)]
                rows = [
                    r for s in item.spans for r in range(s.first_row, s.first_row + s.num_tokens)
                ]
                seen.add(item.kind)
                if item.kind == "vision":
                    ours = next(pictures)
                    assert ours.vision.grid == item.grid
                    np.testing.assert_array_equal(ours.vision.patches, features.arrays[0])
                else:
                    ours = next(clips)
                    np.testing.assert_array_equal(ours.mel, np.concatenate(features.arrays))
                assert ours.positions.tolist() == positions
                assert ours.rows.tolist() == rows
            assert next(pictures, None) is None
            assert next(clips, None) is None
    assert seen == {"vision", "audio"}


def test_prompt_and_completion_are_the_conversation_as_the_template_shows_it(tasks):
    template = ChatTemplate(family_template())
    for task in tasks:
        example = task.make(random.Random(5), "train")
        rendered = render(example, template)
        assert rendered.completion.endswith("<|im_end|>")
        assert rendered.prompt.endswith("<think></think>") == (not example.thinks)
        assert rendered.completion.startswith("<think>") == example.thinks

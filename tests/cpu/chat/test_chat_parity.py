"""The same prompts as transformers, an independent implementation of both halves of the work."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from mimo_engine.chat.template import ChatTemplate, family_template
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.checkpoint.synthetic_tokenizer import write_synthetic_tokenizer

TEXT = st.text(alphabet="ab é<>&'\"\n{}%€", max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ARGUMENTS = st.dictionaries(TEXT, JSON, max_size=3)
CALL = st.builds(lambda a: {"function": {"name": "f", "arguments": a}}, ARGUMENTS)
MESSAGE = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "tool", "developer"]), "content": TEXT}
    ),
    st.fixed_dictionaries(
        {"role": st.just("assistant"), "content": TEXT | st.just("<think>a</think>b")},
        optional={"reasoning_content": TEXT, "tool_calls": st.lists(CALL, max_size=2)},
    ),
)
TOOL = st.fixed_dictionaries(
    {"name": TEXT},
    optional={
        "description": st.none() | TEXT,
        "parameters": st.fixed_dictionaries(
            {"properties": st.dictionaries(TEXT, ARGUMENTS, max_size=2)},
            optional={"required": st.lists(TEXT, max_size=2)},
        ),
        "strict": st.booleans(),
    },
)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    write_synthetic_tokenizer(path, chat_template=family_template())
    return path


@given(
    messages=st.lists(MESSAGE, min_size=1, max_size=5),
    tools=st.lists(TOOL, max_size=2),
    prompt=st.booleans(),
    template_kwargs=st.fixed_dictionaries(
        {}, optional={"enable_thinking": st.booleans(), "keep_all_reasoning": st.booleans()}
    ),
)
def test_the_family_template_renders_as_transformers_renders_it(
    messages, tools, prompt, template_kwargs
):
    rendered = ChatTemplate(family_template()).render(
        messages, tools=tools, add_generation_prompt=prompt, template_kwargs=template_kwargs
    )
    (expected,), _ = render_jinja_template(
        [messages],
        tools=tools or None,
        chat_template=family_template(),
        add_generation_prompt=prompt,
        **template_kwargs,
    )
    assert rendered == expected


def test_ids_and_text_are_those_of_transformers(tokenizer_dir):
    ours = Tokenizer.from_dir(tokenizer_dir)
    theirs = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    messages = [{"role": "user", "content": "Größe 2024, 你好\n\n  x = 'it''s'"}]
    rendered = ChatTemplate(ours.chat_template or "").render(messages)
    ids = ours.encode(rendered)
    assert ids == theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    for skip in (False, True):
        expected = theirs.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip_special_tokens=skip) == expected
    assert theirs.eos_token_id == ours.id_of("<|im_end|>")
    assert len(theirs) == ours.num_tokens

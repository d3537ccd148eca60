"""The tokenizer read from files: names, bytes, special tokens, and what is refused."""

import json
import shutil

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.errors import CheckpointError, RequestError

VERIFIED_TAIL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture
def own_dir(tokenizer_dir, tmp_path):
    return shutil.copytree(tokenizer_dir, tmp_path / "own")


def edit(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


@given(text=st.text())
def test_text_survives_up_to_its_normal_form(tokenizer, text):
    normal = tokenizers.normalizers.NFC().normalize_str(text)
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == normal


@given(data=st.data())
def test_any_ids_decode_as_the_library_decodes_them(tokenizer, tokenizer_dir, data):
    library = tokenizers.Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    ids = data.draw(st.lists(st.integers(0, tokenizer.num_tokens - 1)))
    for skip in (False, True):
        expected = library.decode(ids, skip_special_tokens=skip)
        assert tokenizer.decode(ids, skip_special_tokens=skip) == expected


def test_every_byte_has_a_token_and_specials_spell_their_names(tokenizer):
    singles = {tokenizer.token_bytes(i) for i in range(256)}
    assert singles == {bytes([b]) for b in range(256)}
    assert tokenizer.token_bytes(tokenizer.id_of("<|im_end|>")) == b"<|im_end|>"


def test_the_text_of_markup_is_its_token(tokenizer):
    names = [tokenizer.id_of("<|im_start|>"), tokenizer.id_of("<think>")]
    assert tokenizer.encode("<|im_start|><think>") == names


def test_nothing_is_added_around_a_text(tokenizer):
    assert tokenizer.encode("a", add_special_tokens=True) == tokenizer.encode("a")


def test_digits_are_single_tokens(tokenizer):
    assert len(tokenizer.encode("2024")) == 4


def test_parser_markup_survives_skipping_whatever_its_flag(own_dir):
    path = own_dir / "tokenizer.json"
    added = json.loads(path.read_text())["added_tokens"]
    edit(path, added_tokens=[{**token, "special": True} for token in added])
    tokenizer = Tokenizer.from_dir(own_dir)
    text = "<|im_start|><think>a</think><tool_call>b</tool_call><|im_end|>"
    assert tokenizer.decode(tokenizer.encode(text)) == ("<think>a</think><tool_call>b</tool_call>")


def test_stop_ids_are_found_by_name(tokenizer):
    names = [tokenizer.token_bytes(i).decode() for i in tokenizer.stop_token_ids()]
    assert names == ["<|endoftext|>", "<|im_end|>", "<|mimo_audio_eod|>"]


def test_unknown_names_and_ids_are_errors(tokenizer):
    assert tokenizer.find_id("<|nothing|>") is None
    with pytest.raises(CheckpointError, match=r"no token '<\|nothing\|>'"):
        tokenizer.id_of("<|nothing|>")
    for token_id in (-1, tokenizer.num_tokens):
        with pytest.raises(RequestError, match=f"no token {token_id}"):
            tokenizer.decode([token_id])


def test_half_a_surrogate_pair_is_refused(tokenizer):
    with pytest.raises(RequestError, match="surrogate pair at character 1"):
        tokenizer.encode("a\ud800")


def test_the_template_inside_the_config_wins_over_the_file_beside_it(own_dir):
    (own_dir / "chat_template.jinja").write_text("beside")
    assert "MiMo-V2.5" in (Tokenizer.from_dir(own_dir).chat_template or "")
    edit(own_dir / "tokenizer_config.json", chat_template=None)
    assert Tokenizer.from_dir(own_dir).chat_template == "beside"


def test_the_template_of_a_sub_folder_is_never_used(own_dir):
    edit(own_dir / "tokenizer_config.json", chat_template=None)
    (own_dir / "audio_tokenizer").mkdir()
    (own_dir / "audio_tokenizer" / "chat_template.jinja").write_text("wrong")
    assert Tokenizer.from_dir(own_dir).chat_template is None


def test_of_several_named_templates_the_default_is_used(own_dir):
    named = [{"name": "tools", "template": "t"}, {"name": "default", "template": "d"}]
    edit(own_dir / "tokenizer_config.json", chat_template=named)
    assert Tokenizer.from_dir(own_dir).chat_template == "d"


def test_tokens_by_role_come_from_the_config(own_dir):
    edit(own_dir / "tokenizer_config.json", bos_token={"content": "<|im_start|>"})
    roles = Tokenizer.from_dir(own_dir).special_tokens
    assert roles == {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }


def test_a_token_that_only_the_config_declares_is_added(own_dir, tokenizer):
    path = own_dir / "tokenizer_config.json"
    declared = json.loads(path.read_text())["added_tokens_decoder"]
    new = {**declared[str(tokenizer.id_of("<|im_end|>"))], "content": "<|new|>"}
    edit(path, added_tokens_decoder={**declared, str(tokenizer.num_tokens): new})
    extended = Tokenizer.from_dir(own_dir)
    assert extended.encode("<|new|>") == [tokenizer.num_tokens]
    assert extended.num_tokens == tokenizer.num_tokens + 1


def test_two_files_that_disagree_are_refused(own_dir):
    path = own_dir / "tokenizer_config.json"
    declared = json.loads(path.read_text())["added_tokens_decoder"]
    first, second = list(declared)[:2]
    edit(path, added_tokens_decoder={first: declared[second]})
    with pytest.raises(CheckpointError, match="two files of the same release"):
        Tokenizer.from_dir(own_dir)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_and_broken_files_are_refused_by_name(own_dir, name):
    (own_dir / name).write_text("{")
    with pytest.raises(CheckpointError, match=f"{name}.*fetch the file again"):
        Tokenizer.from_dir(own_dir)
    (own_dir / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing.*copy"):
        Tokenizer.from_dir(own_dir)


def full_vocabulary(names):
    """A tokenizer whose base vocabulary has the real size; its 151,643 tokens mean nothing."""
    symbols = [chr(code) for code in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x143))]
    words = (a + b + c for a in symbols for b in symbols[:30] for c in symbols[:30])
    vocab = {word: i for i, word in zip(range(151643), words, strict=False)}
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    core.add_tokens([tokenizers.AddedToken(name, special=True) for name in names])
    return Tokenizer(core)


def test_the_full_vocabulary_must_have_the_ids_of_the_family():
    full_vocabulary(VERIFIED_TAIL).assert_family_ids()
    with pytest.raises(CheckpointError, match="151645"):
        full_vocabulary([*VERIFIED_TAIL[:2], "<|other|>", "<|im_end|>"]).assert_family_ids()
    with pytest.raises(CheckpointError, match="the id None"):
        full_vocabulary(VERIFIED_TAIL[:2]).assert_family_ids()
    with pytest.raises(CheckpointError, match="151667"):
        full_vocabulary([*VERIFIED_TAIL, "<think>"]).assert_family_ids()


def test_a_tokenizer_that_is_not_byte_level_is_refused():
    core = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"▁a": 0}, merges=[]))
    with pytest.raises(CheckpointError, match="byte-level BPE"):
        Tokenizer(core)

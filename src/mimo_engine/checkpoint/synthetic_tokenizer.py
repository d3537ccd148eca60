"""A small tokenizer of the family's kind, for checkpoints that this project makes itself.

Byte-level BPE with the family's normaliser, pre-tokenizer and decoder, and with every special token
of the family by name and in order, after the base vocabulary as in the real one (protocol.md 1.1,
1.2). Only the ids differ, because the base vocabulary is small. Unless a caller has better ones,
the merges are learned from the text below by the plain algorithm, so that the files are the same on
every machine and in every run, and writing them needs no library.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mimo_engine.errors import ConfigError

__all__ = ["Merge", "SyntheticVocab", "media_token_ids", "write_synthetic_tokenizer"]

Merge = tuple[str, str]
"""Two tokens that become one, as byte-level BPE writes their bytes."""

# In the family's order, with the flag `special`: Qwen3's, from which the older ones come.
_ADDED = {
    "<|endoftext|>": True,
    "<|im_start|>": True,
    "<|im_end|>": True,
    "<|object_ref_start|>": True,
    "<|object_ref_end|>": True,
    "<|box_start|>": True,
    "<|box_end|>": True,
    "<|quad_start|>": True,
    "<|quad_end|>": True,
    "<|vision_start|>": True,
    "<|vision_end|>": True,
    "<|vision_pad|>": True,
    "<|image_pad|>": True,
    "<|video_pad|>": True,
    "<tool_call>": False,
    "</tool_call>": False,
    "<|fim_prefix|>": False,
    "<|fim_middle|>": False,
    "<|fim_suffix|>": False,
    "<|fim_pad|>": False,
    "<|repo_name|>": False,
    "<|file_sep|>": False,
    "<tool_response>": False,
    "</tool_response>": False,
    "<think>": False,
    "</think>": False,
    "<|audio_pad|>": True,
    "<|mimo_video_start|>": True,
    "<|mimo_video_end|>": True,
    "<|mimo_audio_eod|>": True,
    "<|mimo_audio_start|>": True,
    "<|mimo_audio_end|>": True,
}
_STOP_NAMES = ("<|endoftext|>", "<|im_end|>", "<|mimo_audio_eod|>")

_MEDIA_TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "audio_token_id": "<|audio_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "video_start_token_id": "<|mimo_video_start|>",
    "video_end_token_id": "<|mimo_video_end|>",
    "audio_start_token_id": "<|mimo_audio_start|>",
    "audio_end_token_id": "<|mimo_audio_end|>",
}
_TOP_LEVEL = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")

_MIN_VOCAB_SIZE = 256 + len(_ADDED)

# Qwen2's: contractions, letters with one leading mark, single digits, marks, line ends, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Where learning may merge: finer than _SPLIT, and within what the standard library can say.
_LEARNING_SPLIT = re.compile(r" ?[^\W\d_]+|\d| ?[^\s\w]+|\s+|_")

_TEXT = """
Once upon a time there was a small engine that served one family of models, and did it well.
The user asks a question and the assistant gives an answer. It is written one token at a time.
You are a helpful assistant. What is the weather in Paris today? Let me look that up for you.
A page holds the keys and values of sixteen tokens. When it is free, another request may use it.
In the morning the light came over the hills, and the people of the town went out to their work.
She said that the river was higher than it had been for many years, but he did not believe her.
There are three things that we should remember: be correct, be clear, and be quick, in this order.
If you have a list of numbers, you can sort them, add them, or find the largest one among them.
def add(first, second): return first + second
for item in range(10): print(item, "is even" if item % 2 == 0 else "is odd")
{"name": "get_weather", "arguments": {"location": "Paris", "days": 3, "unit": "celsius"}}
<function=get_weather> <parameter=location>Paris</parameter> </function>
Please write a short story about a fox, a bird and a river. Thank you, that would be very kind.
The first number is one, the second is two, the third is three, and so on until we reach the end.
Hello! How are you? I am fine, thanks. Could you help me with something, please? Of course I can.
你好,世界。今天天气很好。我是一个人工智能助手。请问你需要什么帮助? 谢谢你。
Größe, élève, niño, año, façade, naïve: words with marks above or below their letters.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticVocab:
    """What was written: ids 0 ... num_tokens - 1 have a token, those of `ids` by name."""

    num_tokens: int
    ids: dict[str, int]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return tuple(self.ids[name] for name in _STOP_NAMES)


def write_synthetic_tokenizer(
    directory: Path,
    *,
    chat_template: str,
    vocab_size: int = 512,
    merges: Sequence[Merge] | None = None,
) -> SyntheticVocab:
    """Write tokenizer.json, tokenizer_config.json and generation_config.json into `directory`.

    The vocabulary has at most `vocab_size` tokens, the special ones included; fewer when there are
    no more merges to give. merges: the most frequent first; None: those of the text below.
    ConfigError: too small for every byte and every special token.
    """
    if vocab_size < _MIN_VOCAB_SIZE:
        raise ConfigError(
            f"a vocabulary of {vocab_size} is too small: 256 bytes and {len(_ADDED)} special "
            f"tokens need {_MIN_VOCAB_SIZE}"
        )
    num_merges = vocab_size - _MIN_VOCAB_SIZE
    merges = _learn(num_merges) if merges is None else merges[:num_merges]
    vocab = _vocab(merges)
    ids = {name: len(vocab) + i for i, name in enumerate(_ADDED)}
    written = SyntheticVocab(num_tokens=len(vocab) + len(ids), ids=ids)
    files = {
        "tokenizer.json": _tokenizer(vocab, merges, ids),
        "tokenizer_config.json": _tokenizer_config(ids, chat_template),
        "generation_config.json": _generation_config(written),
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    return written


def media_token_ids(raw: Mapping[str, Any], ids: Mapping[str, int]) -> dict[str, Any]:
    """The keys of `raw`, a config.json with towers, that hold ids of media tokens, with those of a
    tokenizer's tokens by name: processor_config, and four of them at the top, as released."""
    by_key = {key: ids[token] for key, token in _MEDIA_TOKENS.items()}
    processor = {**raw["processor_config"], **by_key, "pad_token_id": ids["<|endoftext|>"]}
    return {**{key: by_key[key] for key in _TOP_LEVEL}, "processor_config": processor}


def _learn(num_merges: int) -> list[Merge]:
    """Byte-pair encoding: merge the most frequent pair, the smallest of equals, until enough."""
    symbols = _byte_symbols()
    tokens = set(symbols)
    merges: list[Merge] = []
    counts = Counter(_LEARNING_SPLIT.findall(_TEXT))
    words = [([symbols[b] for b in word.encode("utf-8")], n) for word, n in sorted(counts.items())]
    while len(tokens) < len(symbols) + num_merges:
        pairs: Counter[Merge] = Counter()
        for parts, count in words:
            for pair in pairwise(parts):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        tokens.add("".join(best))
        words = [(_merge(parts, best), count) for parts, count in words]
    return merges


def _vocab(merges: Sequence[Merge]) -> dict[str, int]:
    """Ids: the bytes, then what each merge makes."""
    vocab = {symbol: i for i, symbol in enumerate(sorted(_byte_symbols()))}
    for pair in merges:
        vocab.setdefault("".join(pair), len(vocab))
    return vocab


def _merge(parts: list[str], pair: Merge) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level BPE writes each byte, 0 to 255."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(b) if b in visible else chr(0x100 + hidden.index(b)) for b in range(256)]


def _added_token(name: str) -> dict[str, Any]:
    return {
        "content": name,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": _ADDED[name],
    }


def _tokenizer(
    vocab: dict[str, int], merges: Sequence[Merge], ids: dict[str, int]
) -> dict[str, Any]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": _SPLIT},
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, **_added_token(name)} for name, i in ids.items()],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [list(pair) for pair in merges],
        },
    }


def _tokenizer_config(ids: dict[str, int], chat_template: str) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(i): _added_token(name) for name, i in ids.items()},
        "bos_token": None,
        "chat_template": chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _generation_config(vocab: SyntheticVocab) -> dict[str, Any]:
    """As the family's: the three stop ids, and a do_sample that servers ignore."""
    return {
        "bos_token_id": vocab.ids["<|endoftext|>"],
        "do_sample": False,
        "eos_token_id": list(vocab.stop_ids),
        "pad_token_id": vocab.ids["<|endoftext|>"],
        "temperature": 1.0,
        "top_p": 0.95,
    }

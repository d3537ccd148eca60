"""The checkpoint's tokenizer: text to ids, ids to bytes, and tokens by name.

The family's tokenizer is byte-level BPE: every token is a byte string, and text is the UTF-8 of
those bytes put together. Decoding is done here from the bytes, so that streaming (detokenize.py),
whole decoding and the `bytes` of log-probabilities agree by construction.

Ids are looked up by name. Where the vocabulary is the real one, the ids that public sources agree
on are asserted (protocol.md 1.2), since weights are trained for ids and not for names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from mimo_engine.errors import CheckpointError, ContextLengthError, RequestError

__all__ = ["STOP_NAMES", "Tokenizer"]

STOP_NAMES = ("<|endoftext|>", "<|im_end|>", "<|mimo_audio_eod|>")

# Markup that the parsers of reasoning and tool calls read: never skipped, whatever its flag says.
_KEPT_NAMES = ("<think>", "</think>", "<tool_call>", "</tool_call>")

_NUM_REAL_BASE_TOKENS = 151643
_VERIFIED_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
    "<think>": 151667,
    "</think>": 151668,
    "<|audio_pad|>": 151669,
    "<|mimo_video_start|>": 151670,
    "<|mimo_video_end|>": 151671,
    "<|mimo_audio_eod|>": 151672,
    "<|mimo_audio_start|>": 151673,
    "<|mimo_audio_end|>": 151674,
}
_REQUIRED_NAMES = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


class Tokenizer:
    """Thread-safe: nothing changes after construction."""

    def __init__(
        self,
        core: tokenizers.Tokenizer,
        *,
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        core.no_truncation()
        core.no_padding()
        self._core = core
        self.chat_template = chat_template
        """Jinja source, or None (base models have none)."""
        self.special_tokens = dict(special_tokens or {})
        """What a template may call by role: bos_token, eos_token, pad_token, ..."""
        added = core.get_added_tokens_decoder()
        self._id_by_name = {token.content: token_id for token_id, token in added.items()}
        self._bytes = _token_bytes(core)
        self._longest_token_bytes = max(map(len, self._bytes))
        kept = {self._id_by_name.get(name) for name in _KEPT_NAMES}
        self._skipped = frozenset(
            token_id for token_id, token in added.items() if token.special and token_id not in kept
        )

    @classmethod
    def from_dir(cls, path: str | Path) -> Tokenizer:
        """Read tokenizer.json and tokenizer_config.json in `path` (never in a sub-folder).

        The chat template is tokenizer_config.json's; only where that has none, the file
        chat_template.jinja beside it. CheckpointError: a file is missing, is not what it should
        be, or carries ids that the weights of this family are not trained for.
        """
        path = Path(path)
        core = _read_core(path / "tokenizer.json")
        config = _read_config(path / "tokenizer_config.json")
        _add_declared_tokens(core, config)
        tokenizer = cls(
            core,
            chat_template=_chat_template(config, path),
            special_tokens=_named_by_role(config),
        )
        tokenizer.assert_family_ids()
        return tokenizer

    @property
    def num_tokens(self) -> int:
        """1 + the highest id with a token. The model's rows from here on are never sampled."""
        return len(self._bytes)

    def encode(
        self, text: str, *, add_special_tokens: bool = False, max_tokens: int | None = None
    ) -> list[int]:
        """Ids of `text`. The text `<|im_end|>` becomes that token, as in vLLM and SGLang.

        `add_special_tokens` applies the post-processor of tokenizer.json; this family's adds none.
        RequestError: text that is not valid Unicode (half of a surrogate pair). ContextLengthError:
        text that is surely more than `max_tokens`, found out in about the time that twice as many
        tokens take; less sure ones are encoded, and the caller looks at their length.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the text holds half of a surrogate pair at character {error.start}; "
                "send whole characters"
            ) from None
        if max_tokens is not None and self._is_surely_longer(text, max_tokens):
            raise ContextLengthError(
                f"the text has {len(text)} characters, which are more than the {max_tokens} "
                "tokens of this model's context. Please shorten it.",
                param="prompt",
            )
        return self._encoded(text, add_special_tokens).ids

    def _encoded(self, text: str, add_special_tokens: bool = False) -> tokenizers.Encoding:
        # A batch, since for a single text the library keeps Python's lock, for seconds if it is
        # long, and all streams of the server would stand still.
        [encoding] = self._core.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return encoding

    def _is_surely_longer(self, text: str, max_tokens: int) -> bool:
        """A bound by the longest token first. Then windows of the text are counted: cutting it
        makes a token more here and there, far from twice as many."""
        if len(text) > max_tokens * self._longest_token_bytes:
            return True
        window = 4 * max_tokens
        if len(text) <= 2 * window:
            return False
        num_tokens = 0
        for begin in range(0, len(text), window):
            num_tokens += len(self._encoded(text[begin : begin + window]))
            if num_tokens > 2 * max_tokens:
                return True
        return False

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. RequestError: an unknown id."""
        pieces = [
            self.token_bytes(token_id)
            for token_id in ids
            if not (skip_special_tokens and self.is_skipped(token_id))
        ]
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; for an added token, its name. RequestError: an unknown id."""
        if not 0 <= token_id < len(self._bytes):
            raise RequestError(
                f"there is no token {token_id}: this model has 0 to {self.num_tokens - 1}"
            )
        return self._bytes[token_id]

    def is_skipped(self, token_id: int) -> bool:
        """True for a token that skip_special_tokens leaves out of the text.

        `<think>`, `</think>`, `<tool_call>` and `</tool_call>` never are.
        """
        return token_id in self._skipped

    def id_of(self, name: str) -> int:
        """Id of the added token `name`. CheckpointError when the tokenizer has none."""
        token_id = self.find_id(name)
        if token_id is None:
            raise CheckpointError(
                f"the tokenizer has no token {name!r}, which this model family needs; "
                "use the tokenizer.json that came with the weights"
            )
        return token_id

    def find_id(self, name: str) -> int | None:
        """Id of the added token `name`, or None."""
        return self._id_by_name.get(name)

    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids that end a generation, as far as this tokenizer has them (protocol.md 1.3)."""
        found = (self.find_id(name) for name in STOP_NAMES)
        return tuple(token_id for token_id in found if token_id is not None)

    def to_json(self) -> str:
        """The text of tokenizer.json, with the tokens that only tokenizer_config.json declares."""
        return self._core.to_str()

    def assert_family_ids(self) -> None:
        """CheckpointError where the full vocabulary has other ids than the family's.

        A token may be missing (text-only checkpoints need no audio), but not the three that
        every conversation uses. A smaller vocabulary (random and demo models) is free.
        """
        if self._core.get_vocab_size(with_added_tokens=False) < _NUM_REAL_BASE_TOKENS:
            return
        for name, expected in _VERIFIED_IDS.items():
            found = self.find_id(name)
            if found != expected and (found is not None or name in _REQUIRED_NAMES):
                raise CheckpointError(
                    f"tokenizer.json gives {name!r} the id {found}; the weights of this family "
                    f"are trained with {expected}. Use the tokenizer.json that came with them"
                )


def _token_bytes(core: tokenizers.Tokenizer) -> list[bytes]:
    """Bytes by id; b"" for an id without a token below the highest one."""
    added = core.get_added_tokens_decoder()
    vocab = core.get_vocab(with_added_tokens=True)
    if not vocab:
        raise CheckpointError("tokenizer.json has no tokens; fetch the file again")
    byte_of = {ord(symbol): byte for byte, symbol in enumerate(_byte_symbols())}
    table = [b""] * (max(vocab.values()) + 1)
    for token, token_id in vocab.items():
        if token_id in added:
            table[token_id] = token.encode("utf-8")
            continue
        try:
            table[token_id] = bytes([byte_of[ord(symbol)] for symbol in token])
        except KeyError:
            raise CheckpointError(
                f"token {token_id} ({token!r}) of tokenizer.json is not written in byte-level "
                "BPE, the only kind of tokenizer of this family"
            ) from None
    return table


def _byte_symbols() -> list[str]:
    """The printable character by which byte-level BPE writes each byte, 0 to 255.

    Visible Latin-1 characters stand for themselves; the other 68 bytes are numbered from U+0100.
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(b) if b in visible else chr(0x100 + hidden.index(b)) for b in range(256)]


def _read_core(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: copy the tokenizer files of the model's repository beside its "
            "weights"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{path} cannot be read ({error}); fetch the file again") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: it holds the chat template; copy it from the model's repository"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); fetch the file again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} is not a JSON object; fetch the file again")
    return config


def _add_declared_tokens(core: tokenizers.Tokenizer, config: Mapping[str, Any]) -> None:
    """Bring in the tokens that only tokenizer_config.json declares; refuse two ids for a name."""
    declared = config.get("added_tokens_decoder") or {}
    for token_id, entry in sorted((int(key), value) for key, value in declared.items()):
        name = entry["content"]
        if core.token_to_id(name) is None:
            flags = {key: bool(value) for key, value in entry.items() if key != "content"}
            core.add_tokens([tokenizers.AddedToken(name, **flags)])
        found = core.token_to_id(name)
        if found != token_id:
            raise CheckpointError(
                f"tokenizer_config.json gives {name!r} the id {token_id}, tokenizer.json {found}; "
                "use two files of the same release"
            )


def _chat_template(config: Mapping[str, Any], path: Path) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):
        # The form with several named templates.
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if template is None and (path / "chat_template.jinja").is_file():
        template = (path / "chat_template.jinja").read_text(encoding="utf-8")
    if not isinstance(template, str | None):
        raise CheckpointError(
            f"chat_template in {path / 'tokenizer_config.json'} is not a text; fetch it again"
        )
    return template


def _named_by_role(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token, eos_token and the like, given as a text or as an object with `content`."""
    named = {}
    for key, value in config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            named[key] = content
    return named

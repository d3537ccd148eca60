"""Speech recognition: clips with their transcripts, and the share of words that are wrong."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from mimo_engine.config.server import TRANSCRIPTION_PROMPT
from mimo_engine.eval.api import Reply, chat_request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Options, Question
from mimo_engine.eval.media_uris import data_uri
from mimo_engine.eval.rows import Row, content_of
from mimo_engine.eval.word_errors import num_word_errors, words_of

__all__ = ["asr"]

ANSWER_TOKENS = 2048


def asr(options: Options) -> Evaluation:
    """Rows with `audio` and `text`, as LibriSpeech and its like have them."""
    rows = options.rows(hub_files="*test*", columns=("audio", "text"))
    max_tokens = options.tokens_for(ANSWER_TOKENS)
    return Evaluation(
        metric="word error rate",
        items=[
            _item(index, row, max_tokens, options.thinks)
            for index, row in enumerate(rows[: options.limit])
        ],
        settings={
            "max_tokens": max_tokens,
            "thinking": options.thinks,
            "instruction": TRANSCRIPTION_PROMPT,
        },
    )


def _item(index: int, row: Row, max_tokens: int, thinks: bool) -> Item:
    clip, text = row.media("audio"), row.text("text")
    words = words_of(text)
    if not words:
        raise row.error("text has no words")

    def pose() -> Question:
        # The file as it is, whatever it is: it says so itself.
        content = [
            {"type": "audio_url", "audio_url": {"url": data_uri("audio/wav", content_of(clip))}},
            {"type": "text", "text": TRANSCRIPTION_PROMPT},
        ]
        message = {"role": "user", "content": content}
        return Question(
            request=chat_request([message], max_tokens=max_tokens, thinks=thinks),
            expected=text,
            grade=partial(_grade, words),
        )

    return Item(id=str(index), group="asr", pose=pose, total=len(words))


def _grade(words: Sequence[str], reply: Reply) -> Grade:
    num_wrong = num_word_errors(words, words_of(reply.text))
    return Grade(count=num_wrong, answer=reply.text, note="" if reply.text else "empty")

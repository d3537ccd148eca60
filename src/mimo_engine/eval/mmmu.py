"""MMMU, college questions about pictures, with options or open.

The form is that of SGLang's `run_eval mmmu`, for which public numbers of this family exist: items
in the order of their ids, of each the first picture, where the prompt names it. docs/eval.md lists
what differs. Of the prompt it is this: `run_eval` cuts it at its first `<` and its first `>`, which
loses text where a question compares numbers, and here it is cut at the picture's tag.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image, UnidentifiedImageError

from mimo_engine.errors import ConfigError
from mimo_engine.eval.api import Reply, chat_request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Options, Question
from mimo_engine.eval.media_uris import data_uri
from mimo_engine.eval.mmmu_answers import GUESSED, chosen_option, is_right_open_answer
from mimo_engine.eval.rows import Row, content_of

__all__ = ["mmmu", "user_content"]

ANSWER_TOKENS = 2048
INSTRUCTION = (
    "Think step by step, then end with a line of the form 'Answer: $LETTER' (without quotes), "
    "where LETTER is that of the right option."
)
_COLUMNS = ("id", "question", "options", "answer", "image_1")
_PICTURE = re.compile(r"<image \d+>")
_SUBJECT = re.compile(r"[a-z]+_(.+)_\d+")
"""Of an id such as validation_Art_Theory_3."""


def mmmu(options: Options) -> Evaluation:
    """Validation set by default. Groups are subjects."""
    rows = options.rows(hub_files="*/validation-*", columns=_COLUMNS)
    max_tokens = options.tokens_for(ANSWER_TOKENS)
    by_id = sorted(rows, key=lambda row: row.text("id"))
    return Evaluation(
        metric="accuracy",
        items=[_item(row, max_tokens, options.thinks) for row in by_id[: options.limit]],
        settings={"max_tokens": max_tokens, "thinking": options.thinks},
    )


def user_content(question: str, choices: Sequence[str], image_url: str) -> list[Mapping[str, Any]]:
    """The parts of the one user message: text, the picture, text."""
    if choices:
        lines = [f"{letter}. {c}" for letter, c in zip(ascii_uppercase, choices, strict=False)]
        prompt = "\n".join([question, *lines, INSTRUCTION])
    else:
        prompt = f"{question}\nAnswer: "
    tag = _PICTURE.search(prompt)
    begin, end = tag.span() if tag else (len(prompt), len(prompt))
    texts = [{"type": "text", "text": text} for text in (prompt[:begin], prompt[end:])]
    picture = {"type": "image_url", "image_url": {"url": image_url}}
    return [part for part in (texts[0], picture, texts[1]) if part.get("text") != ""]


def _item(row: Row, max_tokens: int, thinks: bool) -> Item:
    choices = row.list_of_text("options")
    if len(choices) > len(ascii_uppercase):
        raise row.error(f"options has {len(choices)} entries, more than there are letters")
    question, picture = row.text("question"), row.media("image_1")
    if choices:
        expected: str | list[str] = row.text("answer")
        if expected not in list(ascii_uppercase[: len(choices)]):
            raise row.error(f"answer is {expected!r}, which is none of the options' letters")
        grade = partial(_grade_choice, expected, choices)
    else:
        expected = _open_answers(row)
        grade = partial(_grade_open, expected)
    subject = _SUBJECT.fullmatch(row.text("id"))

    def pose() -> Question:
        content = user_content(question, choices, _png_uri(picture, row.where))
        message = {"role": "user", "content": content}
        return Question(
            request=chat_request([message], max_tokens=max_tokens, thinks=thinks),
            expected=expected,
            grade=grade,
        )

    return Item(id=row.text("id"), group=subject[1] if subject else "mmmu", pose=pose)


def _open_answers(row: Row) -> list[str]:
    """One answer, or a list of them as Python writes it."""
    text = row.text("answer")
    return row.list_of_text("answer") if text.lstrip().startswith("[") else [text]


def _grade_choice(expected: str, choices: Sequence[str], reply: Reply) -> Grade:
    if not reply.text:
        return Grade(count=0, note="empty")
    choice = chosen_option(reply.text, choices)
    if choice.found_by == GUESSED and reply.is_cut:
        # Perhaps a thought whose tags the server dropped: to guess for it would reward cutting.
        return Grade(count=0, note="cut")
    return Grade(count=int(choice.letter == expected), answer=choice.letter, note=choice.found_by)


def _grade_open(expected: Sequence[str], reply: Reply) -> Grade:
    if not reply.text:
        return Grade(count=0, note="empty")
    is_right = is_right_open_answer(reply.text, expected)
    return Grade(count=int(is_right), answer=reply.text, note="open")


def _png_uri(picture: Path | bytes, where: str) -> str:
    """The file itself when it is PNG, which is lossless: the server decides about transparency."""
    content = content_of(picture)
    try:
        with Image.open(BytesIO(content)) as image:
            if image.format != "PNG":
                buffer = BytesIO()
                image.convert("RGB").save(buffer, "PNG")
                content = buffer.getvalue()
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError) as error:
        raise ConfigError(f"{where}: the picture cannot be read: {error}") from error
    return data_uri("image/png", content)
